"""TDs that a software TDX started, and lists to hold against their quotes."""

from dataclasses import replace
from functools import cache
from hashlib import sha384
from typing import Any

from attestation.measure import firmware
from attestation.measure.eventlog import EventLog, LogEvent
from attestation.measure.explain import Candidate, Finding, explain
from attestation.measure.record import BootProof, Measurement, measure_image
from attestation.measure.tdvf import ATTRIBUTES_AT, SectionType, Tdvf
from attestation.providers.mock import MockQuoteService, MockTee
from attestation.quote import Quote, TdReport
from tests.attestation.measure import synthetic

TEE = MockTee(b"explain")
NOW = 1_800_000_000
BASE = synthetic.Firmware().build()
UKI = synthetic.uki()
OTHER_UKI = synthetic.uki({".cmdline": b"console=ttyS1 panic=-1\n"})
FD = firmware.bind(BASE, UKI)
OTHER_FD = firmware.bind(BASE, OTHER_UKI)
ROM = synthetic.pe([(".text", b"option rom", None)])
APPLICATION, DRIVER, ACTION, GPT = 0x80000003, 0x80000004, 0x80000007, 0x80000006


def measured(fd: bytes = FD, uki: bytes = UKI, role: str = "server") -> tuple[Measurement, ...]:
    """Upstream with kernel and esp, then canonical-24.04 with both."""
    proof = BootProof.PASSED
    return measure_image(role, fd, uki, is_dev=False, boot_proof=proof).entries


ENTRIES = measured()
OTHERS = measured(OTHER_FD, OTHER_UKI, "client")


def unmeasured(fd: bytes) -> bytes:
    """The firmware without the attribute that has its variable store measured."""
    (cfv,) = Tdvf.parse(fd).of_type(SectionType.CFV)
    at = cfv.entry_offset + ATTRIBUTES_AT
    return fd[:at] + bytes(4) + fd[at + 4 :]


def wanted(*entries: Measurement) -> list[Candidate]:
    return [Candidate(entry, "wanted.json", index) for index, entry in enumerate(entries)]


def known(*entries: Measurement) -> list[Candidate]:
    return [Candidate(entry, "known.json", n, wanted=False) for n, entry in enumerate(entries)]


@cache
def started(fd: bytes = FD, uki: bytes = UKI, **inputs: Any) -> tuple[TdReport, EventLog]:
    """The report and the log of a TD; `option_roms` must be a tuple."""
    service = MockQuoteService(TEE, fd, uki, **inputs)
    report = Quote.parse(service.quote(bytes(64))).body
    return report, EventLog.parse(service.event_log())


def event(register: int, kind: int, data: bytes, digest: bytes | None = None) -> LogEvent:
    """An event of RTMR `register`, numbered by `booted`."""
    return LogEvent(
        0, register + 1, kind, sha384(data).digest() if digest is None else digest, data
    )


def booted(report: TdReport, events: list[LogEvent]) -> tuple[TdReport, EventLog]:
    """The same TD, had it measured these events."""
    log = EventLog(tuple(replace(one, number=number) for number, one in enumerate(events)))
    return replace(report, rtmr0=log.rtmr(0), rtmr1=log.rtmr(1), rtmr2=log.rtmr(2)), log


def why(report: TdReport, candidates: list[Candidate], **options: Any) -> tuple[Finding, ...]:
    return explain(report, candidates, **{"now": NOW, **options})


def causes(findings: tuple[Finding, ...]) -> list[tuple[str, bool]]:
    return [(finding.cause.value, finding.proved) for finding in findings]
