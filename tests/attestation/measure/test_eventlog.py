"""Event logs: the format and its bounds, replay, and what contradicts a log."""

import struct
from contextlib import suppress
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from attestation.errors import EventLogFormatError, EventLogRejected
from attestation.measure import eventlog
from attestation.measure.eventlog import (
    MAX_BYTES,
    MAX_DATA,
    MAX_EVENTS,
    EventLog,
    LogEvent,
    check_digests,
    check_registers,
)
from attestation.quote import Quote, TdReport
from tests.attestation.measure.logs import (
    ACTION,
    END,
    HEADER,
    SEPARATOR,
    SHA1,
    SHA256,
    SHA384,
    SHA512,
    Header,
    log_of,
    record,
    sha384,
    u16,
    u32,
)
from tests.attestation.measure.support import refused
from tests.attestation.quotes import V4

SPLIT = record(1, SEPARATOR, bytes(4))
ZERO = bytes(48)


def report_of(log: EventLog) -> TdReport:
    """A quote's report whose registers are the replay of the log."""
    registers = {f"rtmr{n}": log.rtmr(n) for n in range(4)}
    return Quote.parse(V4.with_(**registers).build()).body


def changed(log: EventLog, number: int, **changes: bytes) -> EventLog:
    events = list(log.events)
    events[number] = replace(events[number], **changes)  # type: ignore[arg-type]
    return EventLog(tuple(events))


# The format.
def test_one_record() -> None:
    (event,) = log_of(record(2, ACTION, b"text")).events
    assert event == LogEvent(0, 2, ACTION, sha384(b"text"), b"text")
    assert event.offset == len(HEADER)
    assert (event.name, event.description) == ("EV_EFI_ACTION", "text")


@pytest.mark.parametrize(
    "end",
    [b"", END, END + b"\xff" * 9, END + bytes(9), bytes(1), bytes(11), bytes(5000)],
    ids=["end", "mark", "0xff", "mark and zeros", "a zero", "zeros", "many zeros"],
)
def test_ways_to_end(end: bytes) -> None:
    assert len(EventLog.parse(HEADER + SPLIT + SPLIT + end).events) == 2
    assert EventLog.parse(HEADER + end).events == ()


def test_several_algorithms() -> None:
    """As a TPM's log: SHA-384 is taken, whichever place it has, and others go."""
    names = (SHA1, SHA256, SHA384, SHA512)
    header = Header(algorithms=((4, 20), (11, 32), (12, 48), (13, 64)), vendor=b"\3abc").build()
    raw = header + record(0, SEPARATOR, b"one", algorithms=names)
    raw += record(23, SEPARATOR, b"two", algorithms=(SHA384, SHA256))
    log = EventLog.parse(raw)
    assert [e.digest for e in log.events] == [sha384(b"one"), sha384(b"two")]
    assert EventLog.parse(log.dumps()) == log
    assert len(log.dumps()) < len(raw)


def test_what_firmware_writes() -> None:
    assert log_of(SPLIT).dumps() == HEADER + SPLIT + END


R = len(HEADER)  # where the first record begins


@pytest.mark.parametrize(
    ("raw", "rule"),
    [
        (HEADER[:59], "log.header-truncated"),
        (HEADER[:-2], "log.header-truncated"),
        (HEADER[:-1], "log.header-truncated"),
        (Header(vendor=b"\3ab").build(), "log.header-truncated"),
        (Header(kind=u32(4)).build(), "log.signature"),
        (Header(digest=bytes(19) + b"\1").build(), "log.signature"),
        (Header(signature=b"Spec ID Event02\0").build(), "log.signature"),
        (b"CCEL" + bytes(60), "log.signature"),
        (Header(count=u32(0)).build(), "log.algorithms"),
        (Header(algorithms=((SHA384, 48),) * 9).build(), "log.algorithms"),
        (Header(size=u32(32)).build(), "log.header-size"),
        (Header(size=u32(34)).build() + bytes(1), "log.header-size"),
        (Header(algorithms=((SHA384, 48),) * 2).build(), "log.algorithm-twice"),
        (Header(algorithms=((SHA384, 47),)).build(), "log.digest-size"),
        (Header(algorithms=((SHA384, 48), (0x99, 32))).build(), "log.digest-size"),
        (Header(algorithms=((SHA256, 32),)).build(), "log.no-sha384"),
        (HEADER + SPLIT[:-1], "log.truncated"),
        (HEADER + SPLIT[:3], "log.truncated"),
        (HEADER + SPLIT[:13], "log.truncated"),
        (HEADER + SPLIT[:61], "log.truncated"),
        (HEADER + SPLIT[:65], "log.truncated"),
        (HEADER + SPLIT[:58] + b"\xff" * 4, "log.truncated"),
        (HEADER + record(32, SEPARATOR, b""), "log.register"),
        (HEADER + u32(1) + u32(4) + u32(0) + u32(0), "log.digests"),
        (HEADER + record(1, 4, b"", algorithms=(SHA384, SHA1)), "log.digests"),
        (HEADER + record(1, 4, b"", algorithms=(SHA256,)), "log.algorithm"),
        (HEADER + bytes(12) + b"\1", "log.digests"),
        (HEADER + END + b"\xff\0\xff", "log.trailing"),
        (HEADER + END + SPLIT, "log.trailing"),
    ],
)
def test_what_is_no_log(raw: bytes, rule: str) -> None:
    with refused(EventLogFormatError, rule):
        EventLog.parse(raw)


def test_records_that_repeat_or_lack_digests() -> None:
    header = Header(algorithms=((SHA256, 32), (SHA384, 48))).build()
    with refused(EventLogFormatError, "log.digest-twice", "record 0"):
        EventLog.parse(header + record(1, 4, b"", algorithms=(SHA384, SHA384)))
    with refused(EventLogFormatError, "log.no-sha384", "record 0"):
        EventLog.parse(header + record(1, 4, b"", algorithms=(SHA256,)))


def test_bounds() -> None:
    most = record(31, 7, bytes(MAX_DATA))
    assert EventLog.parse(HEADER + most).events[0].data == bytes(MAX_DATA)
    with refused(EventLogFormatError, "log.data-size", f"at {R:#x}"):
        EventLog.parse(HEADER + record(1, 7, bytes(MAX_DATA + 1)))
    many = HEADER + record(1, 7, b"") * MAX_EVENTS
    assert len(EventLog.parse(many).events) == MAX_EVENTS
    assert len(EventLog.parse(many + END).events) == MAX_EVENTS
    with refused(EventLogFormatError, "log.events"):
        EventLog.parse(many + SPLIT)
    assert EventLog.parse(HEADER.ljust(MAX_BYTES, b"\xff")).events == ()
    with refused(EventLogFormatError, "log.size"):
        EventLog.parse(HEADER.ljust(MAX_BYTES + 1, b"\xff"))


def test_the_hint_tells_where_a_log_is() -> None:
    with pytest.raises(EventLogFormatError) as caught:
        EventLog.parse(b"junk" * 100)
    assert "acpi/tables/data/CCEL" in caught.value.hint


# Replay.
def test_replay_by_hand() -> None:
    log = log_of(
        record(1, SEPARATOR, b"one"),
        record(2, SEPARATOR, b"other register"),
        record(1, 3, b"not extended"),
        record(1, SEPARATOR, b"two"),
    )
    assert log.rtmr(0) == sha384(sha384(ZERO + sha384(b"one")) + sha384(b"two"))
    assert log.rtmr(1) == sha384(ZERO + sha384(b"other register"))
    assert (log.rtmr(2), log.rtmr(3)) == (ZERO, ZERO)
    assert [event.number for event in log.of_rtmr(0)] == [0, 3]


# What contradicts a log.
IMAGE = record(2, 0x80000003, bytes(32), b"image")
GOOD = log_of(
    record(1, SEPARATOR, bytes(4)),
    record(1, 0xA, b"ACPI DATA", b"tables"),
    record(2, ACTION, b"Calling"),
    IMAGE,
    record(3, 6, bytes(8) + b"Linux initrd\0", b"initrd"),
    record(4, ACTION, b"at run time"),
)


def test_a_good_log() -> None:
    check_digests(GOOD)
    check_registers(GOOD, report_of(GOOD))


@pytest.mark.parametrize("field", ["data", "digest"])
def test_the_changed_event_is_named(field: str) -> None:
    other = changed(GOOD, 2, **{field: b"Falling".ljust(48 if field == "digest" else 0)})
    with refused(EventLogRejected, "eventlog.digest", "event 2, register 2, EV_EFI_ACTION ("):
        check_digests(other)


def test_run_time_extends_are_in_no_log() -> None:
    report = replace(report_of(GOOD), rtmr3=b"\7" * 48)
    check_registers(GOOD, report)


@pytest.mark.parametrize(
    ("index", "suspect"),
    [(0, "1 EV_PLATFORM"), (1, "3 EV_EFI_BOOT"), (2, "4 EV_EVENT_TAG (Linux initrd)")],
)
def test_a_register_that_is_another(index: int, suspect: str) -> None:
    """The message lists the events whose data proves nothing, and those alone."""
    report = replace(report_of(GOOD), **{f"rtmr{index}": b"\7" * 48})
    with pytest.raises(EventLogRejected) as caught:
        check_registers(GOOD, report)
    assert caught.value.rule == f"eventlog.rtmr{index}"
    assert caught.value.got == GOOD.rtmr(index).hex()
    assert suspect in caught.value.message
    assert "SEPARATOR" not in caught.value.message
    assert "EV_EFI_ACTION" not in caught.value.message


def test_left_out_added_moved() -> None:
    report, events = report_of(GOOD), GOOD.events
    for other, rule in (
        (events[1:], "eventlog.rtmr0"),
        ((events[0], *events), "eventlog.rtmr0"),
        ((events[0], events[1], events[3], events[2], *events[4:]), "eventlog.rtmr1"),
        (events[:4], "eventlog.rtmr2"),
    ):
        check_digests(EventLog(other))
        with refused(EventLogRejected, rule):
            check_registers(EventLog(other), report)


def test_a_list_of_suspects_is_bounded() -> None:
    log = log_of(*(record(1, 0xA, b"ACPI DATA") for _ in range(40)))
    with refused(EventLogRejected, "eventlog.rtmr0", "and 28 more"):
        check_registers(log, report_of(GOOD))
    with refused(EventLogRejected, "eventlog.rtmr0", "is changed: none"):
        check_registers(EventLog(()), report_of(GOOD))


@pytest.mark.parametrize("register", [0, 5, 31])
def test_registers_that_no_td_extends(register: int) -> None:
    log = log_of(record(register, SEPARATOR, bytes(4)))
    with refused(EventLogRejected, "eventlog.register", f"event 0, register {register}"):
        check_registers(log, report_of(log))
    silent = log_of(record(register, 3, bytes(4)))
    check_registers(silent, report_of(silent))


# Any log.
EVENTS = st.lists(
    st.tuples(
        st.integers(0, 31),
        st.sampled_from([0, 3, 4, 6, 0xA, 0xD, ACTION, 0x80000002, 0x80000003, 2**32 - 1])
        | st.integers(0, 2**32 - 1),
        st.binary(min_size=48, max_size=48),
        st.binary(max_size=100),
    ),
    max_size=6,
)


def log_from(rows: list[tuple[int, int, bytes, bytes]]) -> EventLog:
    return EventLog(tuple(LogEvent(n, *row) for n, row in enumerate(rows)))


@given(EVENTS)
def test_round_trip(rows: list[tuple[int, int, bytes, bytes]]) -> None:
    log = log_from(rows)
    raw = log.dumps()
    again = EventLog.parse(raw)
    assert again == log
    assert [raw[e.offset : e.offset + 4] for e in again.events] == [u32(row[0]) for row in rows]
    for event in log.events:
        assert event.description.isascii()
        assert event.description.isprintable()
        assert len(event.description) <= 100
        assert eventlog.backing(event) in eventlog.Backing


@given(EVENTS)
def test_checks_raise_only_ours(rows: list[tuple[int, int, bytes, bytes]]) -> None:
    log = log_from(rows)
    with suppress(EventLogRejected):
        check_digests(log)
    with suppress(EventLogRejected):
        check_registers(log, report_of(GOOD))


FLIPPED = GOOD.dumps()


@pytest.mark.parametrize("bits", [0x01, 0x80, 0xFF])
def test_any_byte_flipped(bits: int) -> None:
    """Each is refused, or is one of those that no digest covers: types, data of CONTENT events."""
    report, silent = report_of(GOOD), []
    for at in range(len(FLIPPED)):
        raw = bytearray(FLIPPED)
        raw[at] ^= bits
        try:
            log = EventLog.parse(bytes(raw))
            check_digests(log)
            check_registers(log, report)
        except (EventLogFormatError, EventLogRejected):
            continue
        silent.append(at)
    header = set(range(4)) | set(range(48, 56))  # index, class, version: mean nothing here
    starts = [event.offset for event in GOOD.events] + [len(FLIPPED) - 4]
    unproved = {
        at
        for event, end in zip(GOOD.events, starts[1:], strict=True)
        for at in range(event.offset, end)
        if event.register == 4
        or at in range(event.offset + 4, event.offset + 8)
        or (eventlog.backing(event) is eventlog.Backing.CONTENT and at >= event.offset + 66)
    }
    assert set(silent) <= header | unproved


@given(st.binary(max_size=300))
def test_any_bytes(tail: bytes) -> None:
    with suppress(EventLogFormatError):
        EventLog.parse(tail)
    with suppress(EventLogFormatError):
        EventLog.parse(HEADER + tail)


def test_layout_of_the_header() -> None:
    """Against the specification's offsets, not the parser's structures."""
    assert struct.unpack_from("<I", HEADER, 28) == (len(HEADER) - 32,)
    assert HEADER[60:64] == u16(SHA384) + u16(48)
