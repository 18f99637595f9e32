"""What an operator's tool hands a booted guest, beside the configuration: secrets and settings.

It travels in the sealed box of `attestation.provision`. Canonical JSON: sorted keys, two spaces of
indent, ASCII, a newline at the end, at most 1 MiB; bytes are lower-case hex digits. Any other text
of the same value is refused, and so is a field that is missing or belongs to another role.

    {"schema": "zipnet.grant/1", "role": "server" | "aggregator" | "client",
     "universe": hex, "urls": [text, ...], "replicas": 1 to 5, "certificates": PEM or "",
     "metrics": bool, "own": one of these}

    server      {"trust": ..., "committee_secret": text, "endorsement": hex, "trees": [hex, ...],
                 "door": text or "", "recovery": hex or ""}
    aggregator  {"secret": text}
    client      {"trust": ..., "instance_key": hex or "", "message": text, "cadence_ms": number}

    trust       {"collateral": object or null, "pccs": text or "", "fmspcs": [hex, ...],
                 "mock_root": hex or ""}

An `instance_key` is the Ed25519 seed under which the committee seals a client's state; without one
the client keeps nothing. `collateral` has the members of `attestation.collateral_format`.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from attestation.collateral_format import Collateral
from attestation.envelope import fields, load_json, shown
from attestation.errors import AllowListRejected, CollateralFormatError
from zipnet.errors import DocumentRejected, ZipnetError
from zipnet.ids import UNIVERSE
from zipnet.network.nats import REPLICAS
from zipnet.network.recovery import Reopening
from zipnet.node.service_network import URL
from zipnet.operators import Endorsement
from zipnet.preflight import Role
from zipnet.protocol.codec import Reader
from zipnet.protocol.tree import AggregatorTree

SCHEMA = "zipnet.grant/1"
# A recovery's checkpoint is most of it; the box of `attestation.provision` holds twice as much.
MAX_BYTES = 1 << 20
MAX_URLS = 16
MAX_TREES = 8
MAX_FMSPCS = 16
MAX_SECRET = 4096
MAX_URL = 300
MAX_MESSAGE = 4096
MAX_CADENCE_MS = 1 << 32
MAX_ROOT = 4096
ENDORSEMENT_BYTES = 168
MAX_REPLICAS = 5
HINT = "take the tool of the release that the guest runs"


@dataclass(frozen=True, slots=True)
class Trust:
    """How peers' quotes are checked: collateral of a file, or of a service for named models.

    `pccs` is as `--pccs` takes it, `fmspcs` are 6 bytes each, `mock_root` is the root certificate
    (DER) of a mock anchor.
    """

    collateral: Collateral | None = field(default=None, repr=False)
    pccs: str = ""
    fmspcs: tuple[bytes, ...] = ()
    mock_root: bytes = field(default=b"", repr=False)


@dataclass(frozen=True, slots=True)
class ForServer:
    """What only a server is told."""

    trust: Trust
    committee_secret: str = field(repr=False)
    endorsement: Endorsement
    trees: tuple[AggregatorTree, ...] = ()
    door: str = ""
    recovery: Reopening | None = None


@dataclass(frozen=True, slots=True)
class ForAggregator:
    """What only an aggregator is told: the text that its keys derive from, as these must stay."""

    secret: str = field(repr=False)


@dataclass(frozen=True, slots=True)
class ForClient:
    """What only a client is told; with an `instance_key` (32 bytes) the committee seals its state.

    `message` is said every `cadence_ms`, if there is one.
    """

    trust: Trust
    instance_key: bytes = field(default=b"", repr=False)
    message: str = field(default="", repr=False)
    cadence_ms: int = 10_000


Own = ForServer | ForAggregator | ForClient


@dataclass(frozen=True, slots=True)
class Grant:
    """All of it. `urls` and `certificates` (PEM) are the bus's, `universe` is 32 bytes."""

    own: Own
    urls: tuple[str, ...]
    certificates: bytes = field(default=b"", repr=False)
    replicas: int = REPLICAS
    universe: bytes = UNIVERSE.raw
    metrics: bool = True

    @property
    def role(self) -> Role:
        """Whom it is for."""
        return _ROLE_OF[type(self.own)]

    def dumps(self) -> bytes:
        """The canonical text. Raises DocumentRejected for what no grant can hold."""
        raw = self._encode()
        if Grant.loads(raw) != self:
            raise _wrong("value", "values in their canonical form", "others")
        return raw

    @classmethod
    def loads(cls, raw: bytes) -> Grant:
        """The grant in a text. Raises DocumentRejected, whatever the bytes."""
        if len(raw) > MAX_BYTES:
            raise _wrong("size", f"at most {MAX_BYTES} bytes", str(len(raw)))
        with _as_document():
            result = _read(load_json(raw, "grant"))
        if result._encode() != raw:
            raise _wrong("canonical", "canonical JSON", "another text of the same")
        return result

    def _encode(self) -> bytes:
        value = {
            "schema": SCHEMA,
            "role": str(self.role),
            "universe": self.universe.hex(),
            "urls": list(self.urls),
            "replicas": self.replicas,
            # What is not ASCII comes out as it is, for the reader to refuse.
            "certificates": self.certificates.decode("latin-1"),
            "metrics": self.metrics,
            "own": _own_json(self.own),
        }
        return json.dumps(value, indent=2, sort_keys=True).encode() + b"\n"


_ROLE_OF: dict[type[Own], Role] = {
    ForServer: Role.SERVER,
    ForAggregator: Role.AGGREGATOR,
    ForClient: Role.CLIENT,
}


def _own_json(own: Own) -> dict[str, Any]:
    match own:
        case ForServer():
            return {
                "trust": _trust_json(own.trust),
                "committee_secret": own.committee_secret,
                "endorsement": own.endorsement.encode().hex(),
                "trees": [tree.encode().hex() for tree in own.trees],
                "door": own.door,
                "recovery": "" if own.recovery is None else own.recovery.encode().hex(),
            }
        case ForAggregator():
            return {"secret": own.secret}
        case ForClient():
            return {
                "trust": _trust_json(own.trust),
                "instance_key": own.instance_key.hex(),
                "message": own.message,
                "cadence_ms": own.cadence_ms,
            }


def _trust_json(trust: Trust) -> dict[str, Any]:
    return {
        "collateral": None if trust.collateral is None else trust.collateral.to_json(),
        "pccs": trust.pccs,
        "fmspcs": [one.hex() for one in trust.fmspcs],
        "mock_root": trust.mock_root.hex(),
    }


_TOP = {"schema", "role", "universe", "urls", "replicas", "certificates", "metrics", "own"}


def _read(value: object) -> Grant:
    top = fields(value, _TOP, "grant")
    if top["schema"] != SCHEMA:
        raise _wrong("schema", SCHEMA, shown(top["schema"]))
    read = next((read for role, read in _READERS if top["role"] == str(role)), None)
    if read is None:
        raise _wrong("role", ", ".join(Role), shown(top["role"]))
    if type(top["metrics"]) is not bool:
        raise _wrong("metrics", "true or false", shown(top["metrics"]))
    urls = _many(top["urls"], "urls", 1, MAX_URLS)
    return Grant(
        read(top["own"]),
        tuple(_url(one, "urls") for one in urls),
        _text(top["certificates"], "certificates", 0, MAX_BYTES).encode("ascii", "replace"),
        _number(top["replicas"], "replicas", 1, MAX_REPLICAS),
        _hex(top["universe"], "universe", 32),
        top["metrics"],
    )


def _server(value: object) -> ForServer:
    names = {"trust", "committee_secret", "endorsement", "trees", "door", "recovery"}
    own = fields(value, names, "grant", "own")
    endorsed = _hex(own["endorsement"], "endorsement", ENDORSEMENT_BYTES)
    recovery = _hex(own["recovery"], "recovery")
    trees = _many(own["trees"], "trees", 0, MAX_TREES)
    return ForServer(
        _trust(own["trust"]),
        _text(own["committee_secret"], "committee_secret", 1, MAX_SECRET),
        Endorsement.read(Reader(endorsed, "endorsement", at_most=ENDORSEMENT_BYTES)),
        tuple(AggregatorTree.decode(_hex(one, "trees")) for one in trees),
        "" if own["door"] == "" else _url(own["door"], "door"),
        Reopening.decode(recovery) if recovery else None,
    )


def _aggregator(value: object) -> ForAggregator:
    own = fields(value, {"secret"}, "grant", "own")
    return ForAggregator(_text(own["secret"], "secret", 1, MAX_SECRET))


def _client(value: object) -> ForClient:
    own = fields(value, {"trust", "instance_key", "message", "cadence_ms"}, "grant", "own")
    return ForClient(
        _trust(own["trust"]),
        b"" if own["instance_key"] == "" else _hex(own["instance_key"], "instance_key", 32),
        _text(own["message"], "message", 0, MAX_MESSAGE),
        _number(own["cadence_ms"], "cadence_ms", 1, MAX_CADENCE_MS),
    )


_READERS: tuple[tuple[Role, Callable[[object], Own]], ...] = (
    (Role.SERVER, _server),
    (Role.AGGREGATOR, _aggregator),
    (Role.CLIENT, _client),
)


def _trust(value: object) -> Trust:
    trust = fields(value, {"collateral", "pccs", "fmspcs", "mock_root"}, "grant", "trust")
    collateral = trust["collateral"]
    if collateral is not None:
        if not isinstance(collateral, dict):
            raise _wrong("collateral", "an object or null", type(collateral).__name__)
        collateral = Collateral.of_json(collateral)
    pccs = _text(trust["pccs"], "pccs", 0, MAX_URL)
    fmspcs = _many(trust["fmspcs"], "fmspcs", 0, MAX_FMSPCS)
    if bool(pccs) != bool(fmspcs) or (pccs and collateral):
        raise _wrong("trust", "collateral, or a service with models of platforms", "both, or half")
    models = tuple(_hex(one, "fmspcs", 6) for one in fmspcs)
    return Trust(collateral, pccs, models, _hex(trust["mock_root"], "mock_root"))


def _many(value: object, where: str, least: int, most: int) -> list[object]:
    if not isinstance(value, list) or not least <= len(value) <= most:
        got = str(len(value)) if isinstance(value, list) else type(value).__name__
        raise _wrong(where, f"a list of {least} to {most}", got)
    return value


def _text(value: object, where: str, least: int, most: int) -> str:
    # JSON can name surrogates, which are no text. What came is not shown: it may be a secret.
    if not isinstance(value, str) or any("\ud800" <= one <= "\udfff" for one in value):
        raise _wrong(where, "a text", "something else")
    if not least <= len(value) <= most:
        raise _wrong(where, f"{least} to {most} characters", str(len(value)))
    return value


def _url(value: object, where: str) -> str:
    text = _text(value, where, 1, MAX_URL)
    if not URL.fullmatch(text):
        raise _wrong(where, "nats://host:port or tls://host:port", shown(text))
    return text


def _hex(value: object, where: str, size: int | None = None) -> bytes:
    text = _text(value, where, 0, 2 * MAX_BYTES)
    if not re.fullmatch(r"(?:[0-9a-f]{2})*", text) or size not in (None, len(text) // 2):
        count = "" if size is None else f"{2 * size} "
        raise _wrong(where, f"{count}lower-case hex digits", f"{len(text)} characters")
    return bytes.fromhex(text)


def _number(value: object, where: str, least: int, most: int) -> int:
    # Not isinstance: a bool is an int.
    if type(value) is not int or not least <= value <= most:
        raise _wrong(where, f"a whole number, {least} to {most}", shown(value))
    return value


@contextmanager
def _as_document() -> Iterator[None]:
    """Errors of what is within as DocumentRejected, by rules that begin with `grant`."""
    try:
        yield
    except DocumentRejected:
        raise
    except (AllowListRejected, CollateralFormatError, ZipnetError) as error:
        rule = error.rule if error.rule.startswith("grant.") else f"grant.{error.rule}"
        raise DocumentRejected(
            f"the grant is wrong: {error.message}",
            expected=error.expected,
            got=error.got,
            rule=rule,
            hint=HINT,
        ) from error


def _wrong(what: str, expected: str, got: str) -> DocumentRejected:
    return DocumentRejected(
        f"the grant is wrong: {what}", expected=expected, got=got, rule=f"grant.{what}", hint=HINT
    )
