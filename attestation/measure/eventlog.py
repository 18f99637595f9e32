"""The event log of a TD (the table CCEL): what was measured into its registers, in order.

Formats: TCG "PC Client Platform Firmware Profile" 1.06, section 10 (crypto-agile log, also of a
TPM), and UEFI 2.11, section 38 (EFI_CC_MEASUREMENT_PROTOCOL: the index is 0 for MR_TD, 1 to 4 for
RTMR0 to RTMR3). Integers are little-endian. A log is

    header record: index u32 | EV_NO_ACTION u32 | 20 zeros | size u32 | "Spec ID Event03" and a NUL
                   | class u32 | version 3 bytes | u8 | count u32 | count of (algorithm u16,
                   digest size u16) | vendor size u8 | vendor bytes
    records:       index u32 | type u32 | count u32 | count of (algorithm u16, digest)
                   | size u32 | data
    end:           0xFFFFFFFF, or the end of the table; then 0xFF or 0 throughout

Nothing signs a log: whoever hands it over can write what he likes. It says something only where a
quote's register is its replay (`check_registers`) and the data is what was hashed
(`check_digests`). Not all data is, and the type of an event never is; `backing` tells.
"""

import hashlib
import struct
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NoReturn

from attestation.errors import EventLogFormatError, EventLogRejected
from attestation.measure import eventlog_events as events
from attestation.measure.eventlog_events import EV_NO_ACTION, Backing
from attestation.quote import TdReport

__all__ = ["Backing", "EventLog", "LogEvent", "backing", "check_digests", "check_registers"]

MAX_BYTES = 1 << 20
MAX_EVENTS = 4096
MAX_DATA = 64 << 10
MAX_REGISTER = 31
MAX_ALGORITHMS = 8
DIGEST_SIZE = 48

_SHA384 = 0x000C
# TCG Algorithm Registry: SHA-1, SHA-256, SHA-384, SHA-512, SM3, SHA3-256, SHA3-384, SHA3-512.
_SIZES = {
    0x04: 20,
    0x0B: 32,
    _SHA384: DIGEST_SIZE,
    0x0D: 64,
    0x12: 32,
    0x27: 32,
    0x28: 48,
    0x29: 64,
}
_SIGNATURE = b"Spec ID Event03\0"
_END = b"\xff\xff\xff\xff"
_HEADER = struct.Struct("<II20sI")
_SPECIFICATION = struct.Struct("<16sIBBBBI")
_ALGORITHM = struct.Struct("<HH")
_RECORD = struct.Struct("<III")
_U16 = struct.Struct("<H")
_U32 = struct.Struct("<I")
_SUSPECTS = 12


@dataclass(frozen=True, slots=True)
class LogEvent:
    """One record.

    `number` counts from 0; `register` is the index in the log (0 MR_TD, 1 to 4 RTMR0 to RTMR3; a
    PCR in a TPM's log), `kind` the EV_ type, `digest` SHA-384 (48 bytes), `offset` where the record
    begins, in bytes (not compared).
    """

    number: int
    register: int
    kind: int
    digest: bytes
    data: bytes
    offset: int = field(default=0, compare=False)

    @property
    def name(self) -> str:
        """The type as TCG names it, or in hex."""
        return events.name(self.kind)

    @property
    def description(self) -> str:
        """What the data says, for people: printable ASCII, at most 100 characters."""
        return events.describe(self.kind, self.data)


@dataclass(frozen=True, slots=True)
class EventLog:
    """The records of a log, without its header."""

    events: tuple[LogEvent, ...]

    @classmethod
    def parse(cls, raw: bytes) -> "EventLog":
        """Read a log of several algorithms, SHA-384 among them. Raises EventLogFormatError.

        Bounds: 1 MiB, 4096 records, 64 KiB of data each, 8 algorithms, index up to 31.
        """
        if len(raw) > MAX_BYTES:
            _refuse("log.size", "log is too large", f"at most {MAX_BYTES} bytes", str(len(raw)))
        sizes, at = _header(raw)
        found: list[LogEvent] = []
        while not _ends(raw, at):
            if len(found) == MAX_EVENTS:
                _refuse("log.events", "log has too many records", f"at most {MAX_EVENTS}", "more")
            event, at = _record(raw, at, len(found), sizes)
            found.append(event)
        return cls(tuple(found))

    def dumps(self) -> bytes:
        """The log with SHA-384 alone, as firmware writes it; `parse` gives this log again."""
        head = _SPECIFICATION.pack(_SIGNATURE, 0, 0, 2, 0, 2, 1)
        head += _ALGORITHM.pack(_SHA384, DIGEST_SIZE) + b"\0"
        parts = [_HEADER.pack(1, EV_NO_ACTION, bytes(20), len(head)), head]
        for event in self.events:
            parts += [
                _RECORD.pack(event.register, event.kind, 1),
                _U16.pack(_SHA384),
                event.digest,
                _U32.pack(len(event.data)),
                event.data,
            ]
        return b"".join([*parts, _END])

    def of_rtmr(self, index: int) -> tuple[LogEvent, ...]:
        """The events that RTMR `index` (0 to 3) was extended with, in order."""
        return tuple(
            event
            for event in self.events
            if event.register == index + 1 and event.kind != EV_NO_ACTION
        )

    def rtmr(self, index: int) -> bytes:
        """The value (48 bytes) that RTMR `index` (0 to 3) has after these events."""
        value = bytes(DIGEST_SIZE)
        for event in self.of_rtmr(index):
            value = hashlib.sha384(value + event.digest).digest()
        return value


def _header(raw: bytes) -> tuple[dict[int, int], int]:
    """Digest sizes by algorithm, and where the records begin."""
    if len(raw) < _HEADER.size + _SPECIFICATION.size:
        _refuse(
            "log.header-truncated",
            "log is shorter than its header",
            f"at least {_HEADER.size + _SPECIFICATION.size} bytes",
            str(len(raw)),
        )
    _, kind, digest, size = _HEADER.unpack_from(raw)
    signature, _, _, _, _, _, count = _SPECIFICATION.unpack_from(raw, _HEADER.size)
    if kind != EV_NO_ACTION or any(digest) or signature != _SIGNATURE:
        _refuse(
            "log.signature",
            "this is no crypto-agile event log",
            "a first record of type 3 with 'Spec ID Event03'",
            f"type {kind:#x} with {signature.decode('latin-1')!a}",
            "give the data of the table CCEL (acpi/tables/data/CCEL), not its header",
        )
    if not 1 <= count <= MAX_ALGORITHMS:
        _refuse(
            "log.algorithms",
            "log has an impossible number of digest algorithms",
            f"1 to {MAX_ALGORITHMS}",
            str(count),
        )
    at = _HEADER.size + _SPECIFICATION.size
    end = at + count * _ALGORITHM.size
    if end >= len(raw) or end + 1 + raw[end] > len(raw):
        _refuse(
            "log.header-truncated",
            "header of the log runs past its end",
            f"{end + 1} bytes and the vendor's",
            str(len(raw)),
        )
    if size != end + 1 + raw[end] - _HEADER.size:
        _refuse(
            "log.header-size",
            "header of the log is not as long as it says",
            str(end + 1 + raw[end] - _HEADER.size),
            str(size),
        )
    pairs = [_ALGORITHM.unpack_from(raw, at + n * _ALGORITHM.size) for n in range(count)]
    sizes: dict[int, int] = dict(pairs)
    if len(sizes) != count:
        _refuse("log.algorithm-twice", "log names an algorithm twice", "each once", str(pairs))
    for algorithm, length in pairs:
        if _SIZES.get(algorithm) != length:
            _refuse(
                "log.digest-size",
                f"digests of algorithm {algorithm:#x} have a size that is not theirs",
                str(_SIZES.get(algorithm, "a known algorithm")),
                str(length),
            )
    if _SHA384 not in sizes:
        _refuse(
            "log.no-sha384",
            "log has no SHA-384 digests, so it is of no TD",
            f"algorithm {_SHA384:#x}",
            ", ".join(f"{algorithm:#x}" for algorithm in sizes),
        )
    return sizes, _HEADER.size + size


def _ends(raw: bytes, at: int) -> bool:
    """Whether no record follows."""
    head = raw[at : at + _RECORD.size]
    if not any(head):
        return not raw[at:].strip(b"\0")
    if not head.startswith(_END):
        return False
    rest = raw[at + len(_END) :]
    if rest.strip(b"\xff") and rest.strip(b"\0"):
        _refuse("log.trailing", "data follows the end of the log", "0xff or 0 throughout", "others")
    return True


def _record(raw: bytes, at: int, number: int, sizes: dict[int, int]) -> tuple[LogEvent, int]:
    """The record at `at`, and where the next begins."""
    start = at
    where = f"record {number} of the log, at {start:#x},"

    def take(size: int) -> bytes:
        nonlocal at
        if at + size > len(raw):
            _refuse(
                "log.truncated",
                f"{where} runs past the end",
                f"{at + size} bytes",
                str(len(raw)),
            )
        at += size
        return raw[at - size : at]

    register, kind, count = _RECORD.unpack(take(_RECORD.size))
    if register > MAX_REGISTER:
        _refuse(
            "log.register", f"{where} has no such register", f"0 to {MAX_REGISTER}", str(register)
        )
    if not 1 <= count <= len(sizes):
        _refuse(
            "log.digests", f"{where} has too many digests or none", f"1 to {len(sizes)}", str(count)
        )
    digests: dict[int, bytes] = {}
    for _ in range(count):
        (algorithm,) = _U16.unpack(take(_U16.size))
        if algorithm not in sizes:
            _refuse(
                "log.algorithm",
                f"{where} has a digest that the header doesn't announce",
                ", ".join(f"{known:#x}" for known in sizes),
                f"{algorithm:#x}",
            )
        if algorithm in digests:
            _refuse("log.digest-twice", f"{where} repeats a digest", "each once", f"{algorithm:#x}")
        digests[algorithm] = take(sizes[algorithm])
    if _SHA384 not in digests:
        _refuse(
            "log.no-sha384",
            f"{where} has no SHA-384 digest",
            f"algorithm {_SHA384:#x}",
            ", ".join(f"{algorithm:#x}" for algorithm in digests),
        )
    (size,) = _U32.unpack(take(_U32.size))
    if size > MAX_DATA:
        _refuse("log.data-size", f"{where} has too much data", f"at most {MAX_DATA}", str(size))
    return LogEvent(number, register, kind, digests[_SHA384], take(size), start), at


def _refuse(rule: str, message: str, expected: str, got: str, hint: str = "") -> NoReturn:
    raise EventLogFormatError(
        message,
        expected=expected,
        got=got,
        rule=rule,
        hint=hint or "read the log anew, whole: /sys/firmware/acpi/tables/data/CCEL",
    )


def backing(event: LogEvent) -> Backing:
    """Whether the digest of `event` can be recomputed from its data.

    DATA doesn't mean that all of the data is covered: the name of a boot variable and the prefix of
    GRUB's texts are not (`eventlog_events.hashed`).
    """
    rule = events.hashed(event.kind, event.data)
    if rule.section and rule.content is not None and event.digest == _digest(rule.content):
        return Backing.DATA
    return rule.backing


def check_digests(log: EventLog) -> None:
    """Recompute every digest that the log's data determines, RTMR3's too.

    Raises EventLogRejected (rule `eventlog.digest`) for the first event that is not as it says.
    """
    named: dict[int, bytes] = {}  # by register: the section whose content must come next
    for event in log.events:
        rule = events.hashed(event.kind, event.data)
        if event.kind == EV_NO_ACTION:
            wanted, expected = bytes(DIGEST_SIZE), "zeros, since it is not extended"
        elif rule.section and named.pop(event.register, b"") == event.data:
            continue
        elif rule.section or rule.backing is Backing.DATA:
            wanted = b"" if rule.content is None else _digest(rule.content)
            expected = f"SHA-384 of {rule.what}, {wanted.hex() or 'which it does not have'}"
        else:
            continue
        if event.digest != wanted:
            raise EventLogRejected(
                f"the log contradicts itself: data or digest of {_shown(event)} is changed",
                expected=expected,
                got=event.digest.hex(),
                rule="eventlog.digest",
                hint="read log and quote anew in the guest; a log has no signature of its own",
            )
        if rule.section:
            named[event.register] = event.data


def check_registers(log: EventLog, report: TdReport) -> None:
    """Replay RTMR0 to RTMR2 and compare; call `check_digests` first.

    RTMR3 is not compared, since what is extended at run time is in no log. Raises EventLogRejected
    (rules `eventlog.register`, `eventlog.rtmr0` to `eventlog.rtmr2`).
    """
    for event in log.events:
        if event.kind != EV_NO_ACTION and not 1 <= event.register <= 4:
            raise EventLogRejected(
                f"the log has events of a register that no TD extends: {_shown(event)}",
                expected="index 1 to 4",
                got=str(event.register),
                rule="eventlog.register",
                hint="give the CCEL of the TD, not the log of a TPM",
            )
    for index, value in enumerate(report.rtmrs[:3]):
        replayed = log.rtmr(index)
        if replayed != value:
            suspects = [e for e in log.of_rtmr(index) if backing(e) is Backing.CONTENT]
            raise EventLogRejected(
                f"the log is not the one of this quote: an event of RTMR{index} was left out, added"
                f" or moved, or the digest of one of these is changed: {_listed(suspects)}",
                expected=value.hex(),
                got=replayed.hex(),
                rule=f"eventlog.rtmr{index}",
                hint="read log and quote anew in the same boot of the guest",
            )


def _digest(data: bytes) -> bytes:
    return hashlib.sha384(data).digest()


def _shown(event: LogEvent) -> str:
    return f"event {event.number}, register {event.register}, {event.name} ({event.description})"


def _listed(suspects: Sequence[LogEvent]) -> str:
    shown = [f"{event.number} {event.name} ({event.description})" for event in suspects[:_SUSPECTS]]
    more = len(suspects) - len(shown)
    return "; ".join([*shown, f"and {more} more"] if more else shown) or "none"
