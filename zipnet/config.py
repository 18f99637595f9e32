"""What the parties of a deployment must share, all of it, and the id that follows from it.

    deployment id = BLAKE3.derive_key("zipnet/deployment/v2")(encoding)

The encoding is a version byte (1), then fields, each as u32 length ‖ bytes: name, datum type tag,
wire size, window, suite, wire version, init, operators, k, clients, anchor. Numbers are u64, texts
ASCII. The window is its 12 numbers in the order of `ShuffleWindow`; the operators are, sorted by
name, each a field that holds a name and a key, fields in turn; the anchor is the field of its kind,
then that of its root, empty for `tdx`.
"""

import re
from collections.abc import Iterable
from dataclasses import astuple, dataclass, fields, replace
from enum import StrEnum
from typing import Literal

from blake3 import blake3

from zipnet.datum import MAX_TAG, MAX_WIRE_SIZE, ShuffleDatum, check_kind, type_tag_is_valid
from zipnet.errors import ConfigRejected, DatumRejected, WireFormatError
from zipnet.ids import UniqueId
from zipnet.protocol.roster import MAX_CLIENTS, MAX_SERVERS
from zipnet.protocol.shape import MAX_SLOTS, TAG_LEN, Shape

DEPLOYMENT = "zipnet/deployment/v2"
ENCODING_VERSION = 1
SUITE = "x25519-hkdf-sha256-aes256ctr"
WIRE_VERSION = 2
MAX_OPERATORS = MAX_SERVERS
MAX_MS = 24 * 3600 * 1000
# Epoch keys live as long as their epoch, and catching up after a pause takes time in proportion.
MAX_EPOCH_ROUNDS = 10_000
REGISTRATION_BYTES = 8 << 10
MAX_QUOTA = 1 << 30

_LABEL = re.compile(r"[a-z0-9]([a-z0-9.-]{0,62}[a-z0-9])?")


class Clients(StrEnum):
    """Whether a client must prove by a quote which code it runs."""

    ATTESTED = "attested"
    UNATTESTED = "unattested"


@dataclass(frozen=True, slots=True)
class Operator:
    """Who runs one server of the committee, and his Ed25519 public key. Raises ConfigRejected."""

    name: str
    key: bytes

    def __post_init__(self) -> None:
        _check_label(self.name, "operators.name")
        # All zeros, a placeholder's value, is a point whose signatures anybody can make.
        if type(self.key) is not bytes or len(self.key) != 32 or not any(self.key):
            got = self.key.hex()[:80] if type(self.key) is bytes else type(self.key).__name__
            raise _wrong("operators.key", "an Ed25519 public key, 32 bytes, not all zero", got)


@dataclass(frozen=True, slots=True)
class Anchor:
    """What quotes chain to: Intel (`tdx`), or the `mock` root whose DER has this SHA-256.

    Raises ConfigRejected.
    """

    kind: Literal["tdx", "mock"]
    root: bytes = b""

    def __post_init__(self) -> None:
        sizes = {"tdx": 0, "mock": 32}
        known = type(self.kind) is str and type(self.root) is bytes
        if not known or len(self.root) != sizes.get(self.kind, -1):
            raise _wrong("anchor", _ANCHOR, f"{_shown(self.kind)} and {_shown(self.root)}")

    @classmethod
    def tdx(cls) -> "Anchor":
        """Intel's root, which is compiled in."""
        return cls("tdx")

    @classmethod
    def mock(cls, root_sha256: bytes) -> "Anchor":
        """A software TDX, for tests and trials. Raises ConfigRejected."""
        return cls("mock", root_sha256)

    @classmethod
    def parse(cls, text: str) -> "Anchor":
        """`tdx`, or `mock=` and 64 lower-case hex digits. Raises ConfigRejected."""
        if text == "tdx":
            return cls.tdx()
        if re.fullmatch(r"mock=[0-9a-f]{64}", text):
            return cls.mock(bytes.fromhex(text.removeprefix("mock=")))
        raise _wrong("anchor", _ANCHOR, _shown(text))

    def __str__(self) -> str:
        return f"mock={self.root.hex()}" if self.kind == "mock" else self.kind


_ANCHOR = "tdx, or mock=HEX with the SHA-256 of the mock root's DER"

# Smallest and largest value of each.
_RANGES = {
    "num_slots": (1, MAX_SLOTS),
    "num_sched_slots": (1, MAX_SLOTS),
    "round_period_ms": (100, MAX_MS),
    "round_deadline_ms": (100, MAX_MS),
    "fold_deadline_ms": (50, MAX_MS),
    "min_participants": (1, MAX_CLIENTS),
    "min_servers": (0, MAX_OPERATORS),
    "max_clients": (1, MAX_CLIENTS),
    "max_clients_per_platform": (0, MAX_CLIENTS),
    "epoch_rounds": (1, MAX_EPOCH_ROUNDS),
    "messages_per_epoch": (1, MAX_EPOCH_ROUNDS),
    "byte_quota": (0, MAX_QUOTA),
}


@dataclass(frozen=True, slots=True)
class ShuffleWindow:
    """Sizes, times (milliseconds) and limits of rounds. Raises ConfigRejected.

    A round opens every `round_period_ms`; its aggregators fold for `fold_deadline_ms`, and from
    `round_deadline_ms` on it can be timed out. `min_servers`: without how many servers no round
    goes on, 0 for all operators. `max_clients_per_platform`: 0 for no limit. `messages_per_epoch`:
    of one client. `byte_quota`: what one author may append to the log in a round, 0 for the least
    power of two that is enough. `Config` puts numbers in place of the zeros of `min_servers` and
    `byte_quota`.
    """

    num_slots: int
    num_sched_slots: int
    round_period_ms: int
    round_deadline_ms: int
    fold_deadline_ms: int
    min_participants: int
    min_servers: int = 0
    max_clients: int = 4096
    max_clients_per_platform: int = 0
    epoch_rounds: int = 64
    messages_per_epoch: int = 32
    byte_quota: int = 0

    def __post_init__(self) -> None:
        for name, (low, high) in _RANGES.items():
            _check_number(getattr(self, name), low, high, f"window.{name}")
        if self.num_sched_slots < self.num_slots:
            expected = f"at least num_slots, {self.num_slots}"
            raise _wrong("window.num_sched_slots", expected, str(self.num_sched_slots))
        if self.round_deadline_ms <= self.fold_deadline_ms:
            expected = f"more than fold_deadline_ms, {self.fold_deadline_ms}"
            raise _wrong("window.round_deadline_ms", expected, str(self.round_deadline_ms))
        if self.min_participants > self.max_clients:
            expected = f"at most max_clients, {self.max_clients}"
            raise _wrong("window.min_participants", expected, str(self.min_participants))
        if self.messages_per_epoch > self.epoch_rounds:
            expected = f"at most epoch_rounds, {self.epoch_rounds}: one message a round"
            raise _wrong("window.messages_per_epoch", expected, str(self.messages_per_epoch))

    @classmethod
    def interactive(cls) -> "ShuffleWindow":
        """Few senders who wait for each other: 64 slots every 2 s."""
        return cls(
            num_slots=64,
            num_sched_slots=256,
            round_period_ms=2_000,
            round_deadline_ms=30_000,
            fold_deadline_ms=1_000,
            min_participants=3,
            max_clients=1024,
        )

    @classmethod
    def standard(cls) -> "ShuffleWindow":
        """Hundreds of senders: 256 slots every 10 s."""
        return cls(
            num_slots=256,
            num_sched_slots=1024,
            round_period_ms=10_000,
            round_deadline_ms=40_000,
            fold_deadline_ms=5_000,
            min_participants=8,
        )

    @classmethod
    def bulk(cls) -> "ShuffleWindow":
        """Thousands of senders with time: 1024 slots a minute."""
        return cls(
            num_slots=1024,
            num_sched_slots=4096,
            round_period_ms=60_000,
            round_deadline_ms=120_000,
            fold_deadline_ms=30_000,
            min_participants=32,
            max_clients=16_384,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Config:
    """A deployment. Raises ConfigRejected; `rule` is the path of the value in the TOML file.

    `operators` (1 to 64) are kept sorted by name. `k` of them sign a list of measurements, 0 for
    all, which is replaced by their number. `init` is 32 bytes that tell apart what is else equal.
    Servers are always attested.
    """

    name: str
    type_tag: str
    wire_size: int
    window: ShuffleWindow
    operators: tuple[Operator, ...]
    init: bytes
    k: int = 0
    clients: Clients = Clients.ATTESTED
    anchor: Anchor = Anchor("tdx")
    suite: str = SUITE
    wire_version: int = WIRE_VERSION

    def __post_init__(self) -> None:
        _check_label(self.name, "name")
        if not type_tag_is_valid(self.type_tag):
            expected = f"1 to {MAX_TAG} characters of printable ASCII"
            raise _wrong("datum.type_tag", expected, _shown(self.type_tag))
        _check_number(self.wire_size, 1, MAX_WIRE_SIZE, "datum.wire_size")
        if type(self.init) is not bytes or len(self.init) != 32:
            raise _wrong("init", "32 bytes", _shown(self.init))
        if self.suite != SUITE:
            raise _wrong("suite", SUITE, _shown(self.suite))
        _check_number(self.wire_version, WIRE_VERSION, WIRE_VERSION, "wire_version")
        if not isinstance(self.clients, str) or self.clients not in set(Clients):
            raise _wrong("clients", ", ".join(Clients), _shown(self.clients))
        object.__setattr__(self, "clients", Clients(self.clients))
        if type(self.anchor) is not Anchor or type(self.window) is not ShuffleWindow:
            raise _wrong("type", "an Anchor and a ShuffleWindow", "others")
        operators = sorted_operators(self.operators)
        object.__setattr__(self, "operators", operators)
        _check_number(self.k, 0, len(operators), "k")
        object.__setattr__(self, "k", self.k or len(operators))
        object.__setattr__(self, "window", self._resolved())

    def _resolved(self) -> ShuffleWindow:
        """The window with what its zeros stand for, checked against the rest."""
        window, everyone = self.window, len(self.operators)
        least = 4 * self.shape.payload_bytes + (1 << 20)
        # All clients may come at once, through one server, with a bundle and a voucher each.
        roomy = least + window.max_clients * REGISTRATION_BYTES
        if window.min_servers > everyone:
            expected = f"at most {everyone}, the number of operators"
            raise _wrong("window.min_servers", expected, str(window.min_servers))
        if 0 < window.byte_quota < least:
            expected = f"at least {least}: an aggregate and a partial, twice, and 1 MiB"
            raise _wrong("window.byte_quota", expected, str(window.byte_quota))
        return replace(
            window,
            min_servers=window.min_servers or everyone,
            byte_quota=window.byte_quota or min(MAX_QUOTA, 1 << (roomy - 1).bit_length()),
        )

    @classmethod
    def new(
        cls, name: str, datum: type[ShuffleDatum], *, operators: Iterable[Operator]
    ) -> "Config":
        """A deployment of this type, interactive, attested by TDX, with all zeros as its init.

        Change what shall differ by `with_window`, `with_init` and `dataclasses.replace`. Raises
        ConfigRejected, and DatumRejected for a type that can't be broadcast.
        """
        check_kind(datum)
        return cls(
            name=name,
            type_tag=datum.TYPE_TAG,
            wire_size=datum.WIRE_SIZE,
            window=ShuffleWindow.interactive(),
            operators=tuple(operators),
            init=bytes(32),
        )

    def with_window(self, window: ShuffleWindow) -> "Config":
        """The same with another window. Raises ConfigRejected."""
        return replace(self, window=window)

    def with_init(self, init: bytes) -> "Config":
        """The same with another init, 32 bytes. Raises ConfigRejected."""
        return replace(self, init=init)

    @property
    def shape(self) -> Shape:
        """The sizes of a round's vectors. Raises ConfigRejected."""
        slot_bytes = self.wire_size + TAG_LEN
        try:
            return Shape(self.window.num_slots, slot_bytes, self.window.num_sched_slots)
        except WireFormatError as error:
            raise ConfigRejected(
                "the configuration is wrong: window and datum make no round",
                expected=error.expected,
                got=error.got,
                rule="shape",
                hint=error.hint,
            ) from error

    def encode(self) -> bytes:
        """The one encoding of everything in here, as the module says."""
        operators = (_field(_text(each.name)) + _field(each.key) for each in self.operators)
        parts = (
            _text(self.name),
            _text(self.type_tag),
            _number(self.wire_size),
            b"".join(map(_number, astuple(self.window))),
            _text(self.suite),
            _number(self.wire_version),
            self.init,
            b"".join(map(_field, operators)),
            _number(self.k),
            _text(self.clients),
            _field(_text(self.anchor.kind)) + _field(self.anchor.root),
        )
        return bytes([ENCODING_VERSION]) + b"".join(map(_field, parts))


def deployment_id(config: Config, datum: type[ShuffleDatum] | None = None) -> UniqueId:
    """The id of a deployment, from which all its ids derive.

    With the type that a program was built for, also checks that the deployment carries it. Raises
    ConfigRejected.
    """
    if datum is not None:
        try:
            check_kind(datum)
        except DatumRejected as error:
            raise ConfigRejected(
                error.message, expected=error.expected, got=error.got, rule="datum"
            ) from error
        ours, theirs = (datum.TYPE_TAG, datum.WIRE_SIZE), (config.type_tag, config.wire_size)
        if ours != theirs:
            raise ConfigRejected(
                "the deployment carries another datum than this program",
                expected=f"{theirs[0]} of {theirs[1]} bytes",
                got=f"{ours[0]} of {ours[1]} bytes",
                rule="datum",
                hint="use the release of the program that knows this deployment",
            )
    return UniqueId(blake3(config.encode(), derive_key_context=DEPLOYMENT).digest())


def sorted_operators(operators: Iterable[Operator]) -> tuple[Operator, ...]:
    """Operators by name: 1 to 64, names and keys distinct. Raises ConfigRejected."""
    result = tuple(operators)
    if any(type(each) is not Operator for each in result):
        raise _wrong("operators", "operators", "something else")
    if not 1 <= len(result) <= MAX_OPERATORS:
        raise _wrong("operators", f"1 to {MAX_OPERATORS} operators", str(len(result)))
    for name in (field.name for field in fields(Operator)):
        if len({getattr(each, name) for each in result}) != len(result):
            raise _wrong("operators", "operators of distinct names and keys", f"a {name} twice")
    return tuple(sorted(result, key=lambda each: each.name))


def _field(value: bytes) -> bytes:
    return len(value).to_bytes(4, "big") + value


def _number(value: int) -> bytes:
    return value.to_bytes(8, "big")


def _text(value: str) -> bytes:
    return value.encode("ascii")


def _check_label(value: object, where: str) -> None:
    if type(value) is not str or not _LABEL.fullmatch(value):
        expected = "1 to 64 of a-z, 0-9, dot and hyphen, a letter or digit at both ends"
        raise _wrong(where, expected, _shown(value))


def _check_number(value: object, low: int, high: int, where: str) -> None:
    # Not isinstance: a bool is an int.
    if type(value) is not int or not low <= value <= high:
        expected = str(low) if low == high else f"a whole number, {low} to {high}"
        raise _wrong(where, expected, _shown(value))


def _shown(value: object) -> str:
    if isinstance(value, bytes):
        return f"{len(value)} bytes"
    if not isinstance(value, str | int | float | None):
        return type(value).__name__
    try:
        text = ascii(value)
    except ValueError:  # an integer of more digits than Python prints
        return type(value).__name__
    return text if len(text) <= 80 else f"{text[:80]}..."


def _wrong(where: str, expected: str, got: str) -> ConfigRejected:
    return ConfigRejected(
        f"the configuration is wrong: {where}", expected=expected, got=got, rule=where
    )
