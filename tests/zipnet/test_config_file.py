"""Configuration files: what is written is read, and everything else is refused with its place."""

import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given

from attestation.errors import FileTooLarge, FileUnreadable
from tests.zipnet.configs import CONFIG, configs
from zipnet.config import Anchor, Config, deployment_id
from zipnet.config_file import MAX_BYTES, MAX_LINE, dumps, load, loads
from zipnet.errors import ConfigRejected

TEXT = dumps(CONFIG)


def refused(raw: bytes | str) -> ConfigRejected:
    with pytest.raises(ConfigRejected) as caught:
        loads(raw)
    caught.value.diagnostics().encode()
    return caught.value


def with_line(old: str, new: str) -> str:
    """The text with the line that begins with `old` replaced."""
    lines = TEXT.splitlines(keepends=True)
    (at,) = [at for at, line in enumerate(lines) if line.startswith(old)]
    return "".join([*lines[:at], new + "\n" if new else "", *lines[at + 1 :]])


@given(configs())
def test_round_trip(config: Config) -> None:
    text = dumps(config)
    assert loads(text) == loads(text.encode()) == config
    assert dumps(loads(text)) == text


def test_text() -> None:
    assert TEXT.isascii()
    assert max(map(len, TEXT.splitlines())) <= 100
    assert 'name = "acme.mainnet"\n' in TEXT
    assert f'init = "{"09" * 32}"\n' in TEXT
    assert TEXT.endswith(f'[[operators]]\nname = "c"\nkey = "{"03" * 32}"\n')
    quoted = replace(CONFIG, type_tag='"\\#')
    assert loads(dumps(quoted)) == quoted


def test_another_text_of_the_same_values_has_the_same_id() -> None:
    lines = [line for line in TEXT.splitlines() if not line.startswith("#")]
    again = "\r\n".join(line.replace(" = ", "=") for line in lines) + "# a note, é"
    assert deployment_id(loads(again)) == deployment_id(CONFIG)
    zero = with_line("min_servers", "min_servers = 0").replace("k = 3", "k = 0")
    assert loads(zero) == CONFIG


def test_load(tmp_path: Path) -> None:
    path = tmp_path / "acme.toml"
    with pytest.raises(FileUnreadable):
        load(path)
    path.write_text(TEXT)
    assert load(path) == CONFIG
    path.write_text(TEXT + "\n" * MAX_BYTES)
    with pytest.raises(FileTooLarge):
        load(path)


FIELDS = [line.partition(" = ")[0] for line in TEXT.splitlines() if " = " in line]


@pytest.mark.parametrize("name", sorted(set(FIELDS) - {"name", "key"}))
def test_missing(name: str) -> None:
    error = refused(with_line(f"{name} = ", ""))
    assert error.rule == "file.missing"
    assert error.message.endswith(name)


@pytest.mark.parametrize(
    ("section", "where"),
    [
        ("", "extra"),
        ("[datum]", "datum.extra"),
        ("[window]", "window.extra"),
        ("[more]", "more"),
    ],
)
def test_unknown(section: str, where: str) -> None:
    text = TEXT
    if section in TEXT:
        at = TEXT.index(section) + len(section)
        text = f"{TEXT[:at]}\nextra = 1\n{TEXT[at:]}" if section else f"extra = 1\n{TEXT}"
    else:
        text += f"{section}\nextra = 1\n"
    error = refused(text)
    assert error.rule == "file.unknown"
    assert error.message == f"the configuration is wrong: {where}"


KEY = f'key = "{"02" * 32}"'


@pytest.mark.parametrize(
    ("text", "rule", "where"),
    [
        (TEXT.replace(KEY, ""), "file.missing", "operators[1].key"),
        (TEXT.replace(KEY, KEY + "\nage = 1"), "file.unknown", "operators[1].age"),
        (TEXT.replace(KEY, "key = 2"), "file.type", "operators[1].key"),
        (TEXT.replace(KEY, 'key = "02"'), "file.hex", "operators[1].key"),
        (TEXT.replace(KEY, f'key = "{"0A" * 32}"'), "file.hex", "operators[1].key"),
        (TEXT.replace(KEY, f'key = "{"00" * 32}"'), "operators.key", "operators[1].key"),
        (TEXT.replace('name = "b"', 'name = "B"'), "operators.name", "operators[1].name"),
        (TEXT.replace('name = "b"', 'name = "a"'), "operators", "operators"),
        (with_line("schema", 'schema = "zipnet.config/2"'), "file.schema", "schema"),
        (with_line("schema", "schema = 1"), "file.type", "schema"),
        (with_line("k =", "k = true"), "file.type", "k"),
        (with_line("k =", "k = 3.0"), "file.type", "k"),
        (with_line("k =", 'k = "3"'), "file.type", "k"),
        (with_line("k =", "k = 4"), "k", "k"),
        (with_line("init", "init = 2026-01-01"), "file.type", "init"),
        (with_line("init", f'init = "{"0" * 63}"'), "file.hex", "init"),
        (with_line("wire_size", "wire_size = false"), "file.type", "datum.wire_size"),
        (with_line("wire_size", "wire_size = 0"), "datum.wire_size", "datum.wire_size"),
        (with_line("num_slots", "num_slots = 0"), "window.num_slots", "window.num_slots"),
        (with_line("num_slots", "num_slots = nan"), "file.type", "window.num_slots"),
        (with_line("num_slots", f"num_slots = {9**99}"), "window.num_slots", "num_slots"),
        (with_line("anchor", 'anchor = "sgx"'), "anchor", "anchor"),
        (with_line("anchor", "anchor = ['tdx']"), "file.type", "anchor"),
        (with_line("clients", 'clients = "maybe"'), "clients", "clients"),
        (with_line("suite", 'suite = "null"'), "suite", "suite"),
        (with_line("wire_version", "wire_version = 1"), "wire_version", "wire_version"),
        (with_line('name = "acme', 'name = "ACME"'), "name", "name"),
        (TEXT.replace("[window]", "[[window]]"), "file.type", "window"),
        (TEXT.replace("[[operators]]", "[operators]", 1), "file.toml", "the file"),
        (TEXT[: TEXT.index("\n[[op")] + "[operators]\n", "file.type", "operators"),
        ("operators = []\n" + TEXT[: TEXT.index("\n[[op")], "operators", "operators"),
        ("operators = [1]\n" + TEXT[: TEXT.index("\n[[op")], "file.type", "operators[0]"),
        (TEXT + 'key = "00"', "file.toml", "the file"),
        (TEXT.replace("k = 3", "k = 3\nk = 3"), "file.toml", "the file"),
        ("", "file.missing", "anchor"),
        (b"\xff", "file.utf8", "the file"),
        (b"\xef\xbb\xbf" + TEXT.encode(), "file.toml", "the file"),
        ("\ud800", "file.utf8", "the file"),
        ("k = \x00", "file.toml", "the file"),
        (TEXT + "\n" * MAX_BYTES, "file.size", "the file"),
        (TEXT + "#" * (MAX_LINE + 1), "file.line", "a line"),
        ("a = " + "[\n" * 20_000, "file.toml", "the file"),
        ('"\\u001b[31m" = 1\n' + TEXT, "file.unknown", r"\x1b[31m"),
    ],
)
def test_refused(text: Any, rule: str, where: str) -> None:
    error = refused(text)
    assert error.rule == rule
    assert error.message.endswith(where)


def test_lines_may_be_as_long_as_said() -> None:
    assert loads(TEXT + "#" * MAX_LINE) == CONFIG


def test_long_keys_take_no_time() -> None:
    line = ".".join("a" * (MAX_LINE // 2 - 4)) + ".b"
    text = "\n".join(f"{line}{at}=1" for at in range(10, 99))
    begin = time.process_time()
    assert refused(f"{text}\n{text}").rule == "file.toml"
    assert refused(text).rule == "file.missing"
    assert time.process_time() - begin < 2


def test_anchors() -> None:
    mock = loads(with_line("anchor", f'anchor = "mock={"0b" * 32}"'))
    assert mock.anchor == Anchor.mock(b"\x0b" * 32)
