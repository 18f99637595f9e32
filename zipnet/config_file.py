"""A deployment's configuration as a TOML file for people.

    schema = "zipnet.config/1"     name, init, k, clients, anchor, suite, wire_version
    [datum]                        type_tag, wire_size
    [window]                       as in `config.ShuffleWindow`
    [[operators]]                  name, key

Every field is there, no other is. Bytes are lower-case hex digits. At most 64 KiB of UTF-8, in
lines of at most 256 bytes: the time that TOML's readers take grows with the square of a dotted key.
"""

import json
import re
import tomllib
from dataclasses import fields
from pathlib import Path
from typing import Any

from attestation.files import read_file
from zipnet.config import Anchor, Config, Operator, ShuffleWindow
from zipnet.errors import ConfigRejected

SCHEMA = "zipnet.config/1"
MAX_BYTES = 64 << 10
MAX_LINE = 256

_WINDOW = tuple(field.name for field in fields(ShuffleWindow))
_TOP = {
    "schema": str,
    "name": str,
    "init": str,
    "k": int,
    "clients": str,
    "anchor": str,
    "suite": str,
    "wire_version": int,
    "datum": dict,
    "window": dict,
    "operators": list,
}
_NOTES = {
    "round_period_ms": "a round opens so often",
    "round_deadline_ms": "from then on it can be given up; over NATS at least 25000",
    "fold_deadline_ms": "so long envelopes are taken",
    "min_participants": "no round goes on with fewer clients",
    "min_servers": "no round goes on with fewer servers",
    "max_clients_per_platform": "0: no limit",
    "epoch_rounds": "keys change after so many rounds",
    "messages_per_epoch": "of one client",
    "byte_quota": "what one author may append to the log in a round",
}


def load(path: Path) -> Config:
    """The configuration in a file.

    Raises ConfigRejected, and FileUnreadable or FileTooLarge of `attestation.errors`.
    """
    return loads(read_file(path, MAX_BYTES))


def loads(raw: bytes | str) -> Config:
    """The configuration in a TOML text. Raises ConfigRejected."""
    top = _table(_toml(_decoded(raw)), _TOP, "")
    if top["schema"] != SCHEMA:
        raise _wrong("schema", SCHEMA, ascii(top["schema"])[:80], "file.schema")
    datum = _table(top["datum"], {"type_tag": str, "wire_size": int}, "datum")
    window = _table(top["window"], dict.fromkeys(_WINDOW, int), "window")
    return Config(
        name=top["name"],
        type_tag=datum["type_tag"],
        wire_size=datum["wire_size"],
        window=ShuffleWindow(**window),
        operators=tuple(
            _operator(each, f"operators[{at}]") for at, each in enumerate(top["operators"])
        ),
        init=_bytes(top["init"], "init"),
        k=top["k"],
        clients=top["clients"],
        anchor=Anchor.parse(top["anchor"]),
        suite=top["suite"],
        wire_version=top["wire_version"],
    )


def dumps(config: Config) -> str:
    """The one text that we write of a configuration."""
    lines = [
        "# A deployment of zipnet. All of this is in its id: whoever changes a value has another.",
        *_lines(
            schema=SCHEMA,
            name=config.name,
            init=config.init.hex(),
            clients=str(config.clients),
            anchor=str(config.anchor),
            suite=config.suite,
            wire_version=config.wire_version,
        ),
        "# So many operators must sign a list of accepted measurements.",
        *_lines(k=config.k),
        "",
        "[datum]",
        *_lines(type_tag=config.type_tag, wire_size=config.wire_size),
        "",
        "[window]",
        *_lines(**{name: getattr(config.window, name) for name in _WINDOW}),
    ]
    for each in config.operators:
        lines += ["", "[[operators]]", *_lines(name=each.name, key=each.key.hex())]
    return "\n".join(lines) + "\n"


def _lines(**values: str | int) -> list[str]:
    """TOML writes printable ASCII as JSON does, and whole numbers too."""
    return [
        f"{name} = {json.dumps(value)}" + (f"  # {_NOTES[name]}" if name in _NOTES else "")
        for name, value in values.items()
    ]


def _decoded(raw: bytes | str) -> str:
    try:
        data = raw.encode() if isinstance(raw, str) else raw
        text = data.decode()
    except UnicodeError as error:
        raise _wrong("the file", "UTF-8", ascii(str(error))[:120], "file.utf8") from None
    if len(data) > MAX_BYTES:
        raise _wrong("the file", f"at most {MAX_BYTES} bytes", str(len(data)), "file.size")
    longest = max(map(len, data.split(b"\n")))
    if longest > MAX_LINE:
        raise _wrong("a line", f"at most {MAX_LINE} bytes", str(longest), "file.line")
    return text


def _toml(text: str) -> dict[str, Any]:
    try:
        return tomllib.loads(text)
    except (ValueError, RecursionError) as error:
        raise _wrong("the file", "TOML", ascii(str(error))[:120], "file.toml") from None


def _table(value: object, types: dict[str, type], where: str) -> dict[str, Any]:
    """`value`, if it is a table of exactly these fields. Raises ConfigRejected."""
    if type(value) is not dict:
        raise _wrong(where, "a table", type(value).__name__, "file.type")
    prefix = f"{where}." if where else ""
    for name in sorted(types.keys() - value.keys()):
        raise _wrong(prefix + name, "a value", "none", "file.missing")
    for name in sorted(value.keys() - types.keys()):
        path = prefix + ascii(name)[1:-1][:80]
        raise _wrong(path, f"only {', '.join(types)}", "an unknown field", "file.unknown")
    for name, kind in types.items():
        # Not isinstance: a bool is an int.
        if type(value[name]) is not kind:
            expected = {str: "a text", int: "a whole number", dict: "a table", list: "an array"}
            raise _wrong(prefix + name, expected[kind], type(value[name]).__name__, "file.type")
    return value


def _operator(value: object, where: str) -> Operator:
    table = _table(value, {"name": str, "key": str}, where)
    key = _bytes(table["key"], f"{where}.key")
    try:
        return Operator(table["name"], key)
    except ConfigRejected as error:
        raise _wrong(
            error.rule.replace("operators", where), error.expected, error.got, error.rule
        ) from error


def _bytes(text: str, where: str) -> bytes:
    if not re.fullmatch(r"[0-9a-f]{64}", text):
        raise _wrong(where, "64 lower-case hex digits", ascii(text)[:80], "file.hex")
    return bytes.fromhex(text)


def _wrong(where: str, expected: str, got: str, rule: str) -> ConfigRejected:
    return ConfigRejected(
        f"the configuration is wrong: {where}",
        expected=expected,
        got=got,
        rule=rule,
        hint="`zipnet config new` writes such a file",
    )
