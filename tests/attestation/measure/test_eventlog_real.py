"""The event log of a real TD and its quote: replay, and every event changed."""

from collections import Counter
from dataclasses import replace

import pytest

from attestation.errors import EventLogRejected
from attestation.measure import eventlog_events
from attestation.measure.eventlog import (
    Backing,
    EventLog,
    LogEvent,
    backing,
    check_digests,
    check_registers,
)
from attestation.quote import Quote, TdReport
from tests.attestation.test_quote import REAL

pytestmark = pytest.mark.skipif(not REAL.is_dir(), reason="no real quotes beside the checkout")

EVENTS = 43
# By type: how many of the 43 can be recomputed from the log, and how many can't.
COUNTED = {
    ("EV_EFI_HANDOFF_TABLES2", "content"): 1,
    ("EV_EFI_PLATFORM_FIRMWARE_BLOB2", "content"): 1,
    ("EV_PLATFORM_CONFIG_FLAGS", "content"): 3,
    ("EV_EFI_BOOT_SERVICES_APPLICATION", "content"): 2,
    ("EV_IPL", "content"): 5,
    ("EV_IPL", "data"): 15,
    ("EV_EFI_VARIABLE_DRIVER_CONFIG", "data"): 5,
    ("EV_EFI_VARIABLE_BOOT", "data"): 3,
    ("EV_EFI_VARIABLE_AUTHORITY", "data"): 2,
    ("EV_SEPARATOR", "data"): 2,
    ("EV_EFI_ACTION", "data"): 3,
    ("EV_EFI_GPT_EVENT", "data"): 1,
}


@pytest.fixture(scope="module")
def log() -> EventLog:
    return EventLog.parse((REAL / "gce-cos113.ccel").read_bytes())


@pytest.fixture(scope="module")
def report() -> TdReport:
    return Quote.parse((REAL / "gce-cos113-v4.quote").read_bytes()).body


def changed(log: EventLog, event: LogEvent) -> EventLog:
    events = list(log.events)
    events[event.number] = event
    return EventLog(tuple(events))


def flipped(data: bytes, at: int) -> bytes:
    return data[:at] + bytes([data[at] ^ 0x01]) + data[at + 1 :]


def check(log: EventLog, report: TdReport) -> None:
    check_digests(log)
    check_registers(log, report)


def covered(event: LogEvent) -> range:
    """Where in the data of an event of class DATA the hashed bytes are."""
    content = eventlog_events.hashed(event.kind, event.data).content
    assert content is not None
    end = len(event.data) - event.data.endswith(content + b"\0")
    return range(end - len(content), end)


def test_it_replays_to_all_registers_of_its_quote(log: EventLog, report: TdReport) -> None:
    check(log, report)
    assert tuple(log.rtmr(n) for n in range(4)) == report.rtmrs
    assert EventLog.parse(log.dumps()) == log


def test_how_many_events_prove_their_data(log: EventLog) -> None:
    assert len(log.events) == EVENTS
    assert Counter((e.name, str(backing(e))) for e in log.events) == COUNTED
    totals = Counter(map(backing, log.events))
    assert totals == {Backing.DATA: 31, Backing.CONTENT: 12}


@pytest.mark.parametrize("number", range(EVENTS))
def test_a_flipped_byte_of_a_digest(log: EventLog, report: TdReport, number: int) -> None:
    """DATA: this event is named. CONTENT: its register is, and the event among those it can be."""
    event = log.events[number]
    for at in (0, 23, 47):
        other = changed(log, replace(event, digest=flipped(event.digest, at)))
        with pytest.raises(EventLogRejected) as caught:
            check(other, report)
        if backing(event) is Backing.DATA:
            assert caught.value.rule == "eventlog.digest"
            assert f"event {number}, register {event.register}" in caught.value.message
            assert event.description in caught.value.message
        else:
            assert caught.value.rule == f"eventlog.rtmr{event.register - 1}"
            assert f"{number} {event.name} ({event.description})" in caught.value.message


@pytest.mark.parametrize("number", range(EVENTS))
def test_a_flipped_byte_of_data(log: EventLog, number: int) -> None:
    event = log.events[number]
    if backing(event) is Backing.CONTENT:
        # The digest is of something else, so this goes unseen: what the class says.
        check_digests(changed(log, replace(event, data=flipped(event.data, 0))))
        return
    for at in covered(event):
        other = changed(log, replace(event, data=flipped(event.data, at)))
        with pytest.raises(EventLogRejected) as caught:
            check_digests(other)
        assert caught.value.rule == "eventlog.digest"
        assert f"event {number}, register {event.register}" in caught.value.message


def test_which_bytes_of_proved_events_are_not_covered(log: EventLog) -> None:
    """Names of boot variables and prefixes of GRUB's texts: the digests leave them out."""
    uncovered = {
        event.data[: covered(event).start].decode("latin-1").replace("\0", "").rstrip()
        if event.name == "EV_IPL"
        else event.name
        for event in log.events
        if backing(event) is Backing.DATA and len(covered(event)) < len(event.data)
    }
    assert uncovered == {"EV_EFI_VARIABLE_BOOT", "grub_cmd:", "kernel_cmdline:"}


def test_a_log_of_another_boot(log: EventLog, report: TdReport) -> None:
    other = replace(report, rtmr0=bytes(48))
    with pytest.raises(EventLogRejected) as caught:
        check_registers(log, other)
    assert caught.value.rule == "eventlog.rtmr0"
    assert "0 EV_EFI_HANDOFF_TABLES2 (TdxTable)" in caught.value.message
