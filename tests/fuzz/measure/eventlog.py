"""Fuzz target: event logs. What is read is written again as the same log, replay and all."""

from contextlib import suppress

from attestation.errors import EventLogFormatError, EventLogRejected
from attestation.measure.eventlog import EventLog, backing, check_digests
from tests.attestation.measure.logs import END, HEADER, SHA256, SHA384, Header, record, variable


def seeds() -> list[bytes]:
    several = Header(algorithms=((11, 32), (12, 48))).build()
    return [
        HEADER + record(1, 0x80000001, variable("SecureBoot", b"\1")) + END,
        HEADER + record(1, 0x80000002, variable("Boot0000", bytes(9)), bytes(9)) + bytes(20),
        HEADER + record(2, 0x80000003, bytes(24) + b"\4" + bytes(7) + b"\x7f\xff\4\0") + END,
        HEADER + record(3, 0xD, b"grub_cmd: x\0", b"x") + record(3, 6, bytes(8) + b"text\0"),
        HEADER + record(3, 0xD, ".linux\0".encode("utf-16-le"), b".linux\0") * 2,
        several + record(0, 4, bytes(4), algorithms=(SHA256, SHA384)) + END,
    ]


def fuzz_one(data: bytes) -> None:
    try:
        log = EventLog.parse(data)
    except EventLogFormatError as error:
        error.diagnostics().encode()
        return
    again = EventLog.parse(log.dumps())
    assert again == log
    assert [again.rtmr(index) for index in range(4)] == [log.rtmr(index) for index in range(4)]
    for event in log.events:
        backing(event)
        assert f"{event.name} {event.description}".isascii()
    with suppress(EventLogRejected):
        check_digests(log)
