"""Which input explains that a TD measures otherwise than an image that is listed.

What is found is computed: a register that comes out equal after one change proves that this change
is the difference. Where nothing comes out equal, the finding says so, and what to supply.
"""

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from datetime import UTC, datetime

from attestation.errors import PolicyError
from attestation.measure import eventlog, explain_firmware, explain_log
from attestation.measure.eventlog import EventLog
from attestation.measure.explain_types import (
    NEXT,
    REGISTERS,
    Candidate,
    Cause,
    Evidence,
    Finding,
    ordered,
)
from attestation.measure.pe import Pe
from attestation.measure.record import Binding, BootProof, Measurement
from attestation.measure.rtmr import BootPath
from attestation.measure.tdvf import HostProfile
from attestation.quote import TdReport

__all__ = ["REGISTERS", "Candidate", "Cause", "Finding", "explain", "nearest"]

_DEBUG = 0xFF  # Intel TDX Module ABI specification, bits 0 to 7 of ATTRIBUTES
_RTMR0_SHOWN = 24  # events


def explain(
    report: TdReport,
    candidates: Sequence[Candidate],
    *,
    log: EventLog | None = None,
    firmware: bytes | None = None,
    uki: bytes | None = None,
    role: str | None = None,
    now: int,
) -> tuple[Finding, ...]:
    """Findings about `report` at `now` (Unix seconds), the one to put right first in front.

    `role` is the role that was expected. `firmware` and `uki` are those of the release, or those
    that the host starts. A lone MATCH says that nothing is wrong.

    Raises PolicyError without candidates that name an image, EventLogRejected for a log that is
    not this quote's, and as `tdvf.mr_td`, `rtmr.rtmr1` and `rtmr.rtmr2` for the files.
    """
    if log is not None:
        eventlog.check_digests(log)
        eventlog.check_registers(log, report)
    entry = nearest(report, candidates, firmware=firmware, uki=uki, role=role)
    if int.from_bytes(report.td_attributes, "little") & _DEBUG:
        return (_debug(report),)
    evidence = Evidence(log, firmware, None if uki is None else Pe.parse(uki))
    candidate = candidates[entry]
    common = _common(report, candidate.measurement)
    named = [
        *_identity(report, candidates, entry, role),
        *_registers(report, candidates, entry, evidence),
    ]
    if not common and not any(finding.proved for finding in named):
        named = [_unknown(evidence, entry)]
    findings = [*_secure_boot(log), *_rtmr3(report), *named]
    if _is_wanted(candidate, role) and _identifies(report, candidate.measurement):
        findings += _state(candidate, entry, now)
        if len(common) == len(REGISTERS) and not any(f.cause is Cause.RTMR0 for f in named):
            findings.append(_match(candidate, entry))
    return ordered(findings)


def nearest(
    report: TdReport,
    candidates: Sequence[Candidate],
    *,
    firmware: bytes | None = None,
    uki: bytes | None = None,
    role: str | None = None,
) -> int:
    """The index of the candidate that has most in common with the report, wanted ones first.

    Raises PolicyError (rule `explain.candidates`) if none names an image.
    """
    given = {hashlib.sha256(data).digest() for data in (firmware, uki) if data is not None}

    def rank(index: int) -> tuple[int, bool, bool, int, int]:
        found = candidates[index].measurement
        is_wanted = _is_wanted(candidates[index], role)
        counts = is_wanted or _identifies(report, found)
        return (
            len(_common(report, found)) if counts else 0,
            is_wanted,
            found.rtmr0 in {None, report.rtmr0},
            len(given & {found.firmware_sha256, found.uki_sha256}),
            -index,
        )

    images = [n for n, c in enumerate(candidates) if c.measurement.binding is not Binding.PROCESS]
    if not images:
        raise PolicyError(
            "there is nothing to compare the quote with",
            expected="measurements of images",
            got="none, or of programs on a host",
            rule="explain.candidates",
            hint="give the measurements.json of a release",
        )
    return max(images, key=rank)


def _is_wanted(candidate: Candidate, role: str | None) -> bool:
    return candidate.wanted and role in {None, candidate.measurement.role}


def _common(report: TdReport, found: Measurement) -> list[str]:
    return [name for name in REGISTERS if getattr(report, name) == getattr(found, name)]


def _identifies(report: TdReport, found: Measurement) -> bool:
    """Whether what they have in common names an image."""
    common = set(_common(report, found))
    return bool(common - {"mr_td"}) or (bool(common) and found.binding is Binding.MRTD_CFV)


def _debug(report: TdReport) -> Finding:
    return Finding(
        Cause.DEBUG,
        "td_attributes",
        "the TD is a debug TD: its host reads and writes its memory, whatever it measures",
        f"td_attributes {report.td_attributes.hex()} have one of the bits 0 to 7",
        NEXT[Cause.DEBUG],
    )


def _secure_boot(log: EventLog | None) -> Iterator[Finding]:
    event = explain_log.secure_boot_off(() if log is None else log.of_rtmr(0))
    if event is not None:
        yield Finding(
            Cause.SECURE_BOOT,
            "rtmr0",
            "Secure Boot was off: the firmware starts any image",
            f"{explain_log.shown(event)} holds 0, and its digest is that of its data",
            NEXT[Cause.SECURE_BOOT],
        )


def _rtmr3(report: TdReport) -> Iterator[Finding]:
    if any(report.rtmr3):
        yield Finding(
            Cause.RTMR3,
            "rtmr3",
            "something was extended into RTMR3 at run time, which no listed image does",
            f"RTMR3 is {report.rtmr3.hex()}, not zero",
            NEXT[Cause.RTMR3],
        )


def _identity(
    report: TdReport, candidates: Sequence[Candidate], entry: int, role: str | None
) -> Iterator[Finding]:
    """How an entry that is not wanted, but that the quote has, differs from the wanted ones."""
    candidate = candidates[entry]
    found = candidate.measurement
    if _is_wanted(candidate, role) or not _identifies(report, found):
        return
    common = _common(report, found)
    proof = f"{_listed(common)} of the quote are those of {candidate.name}"

    def finding(cause: Cause, message: str) -> Finding:
        register = next(name for name in ("rtmr2", *REGISTERS) if name in common)
        return Finding(cause, register, message, proof, NEXT[cause], entry)

    wanted = [c.measurement for c in candidates if _is_wanted(c, role)]
    roles = role or ", ".join(sorted({other.role for other in wanted}))
    closest = max(wanted, key=lambda other: _likeness(other, found), default=None)
    if closest is None or closest.role != found.role:
        yield finding(Cause.ROLE, f"the image is the one for {found.role}, not for {roles}")
        return
    differences = []
    if found.is_dev and not closest.is_dev:
        message = f"the image is the development image for {found.role}"
        differences.append(finding(Cause.DEV_IMAGE, message))
    elif (found.uki_sha256, found.rtmr2) != (closest.uki_sha256, closest.rtmr2):
        message = f"the image for {found.role} is that of another release"
        differences.append(finding(Cause.RELEASE, message))
    elif found.firmware_sha256 != closest.firmware_sha256 and "mr_td" in common:
        message = "the image is right, its firmware is that of another entry"
        differences.append(finding(Cause.FIRMWARE, message))
    if found.host_profile is not closest.host_profile and "mr_td" in common:
        message = (
            f"the host adds pages in {found.host_profile.page_order} order, as hosts of profile"
            f" {found.host_profile} do; wanted is {closest.host_profile}"
        )
        differences.append(finding(Cause.PAGE_ORDER, message))
    if found.boot_path is not closest.boot_path and "rtmr1" in common:
        message = f"the image was started by boot path {found.boot_path}"
        differences.append(finding(Cause.BOOT_PATH, f"{message}; wanted is {closest.boot_path}"))
    if not differences:
        message = "the lists contradict each other: two entries of the same files measure otherwise"
        differences.append(finding(Cause.UNKNOWN, message))
    yield from differences


def _likeness(one: Measurement, other: Measurement) -> tuple[bool, ...]:
    names = ("role", "is_dev", "uki_sha256", "firmware_sha256", "host_profile", "boot_path")
    return tuple(getattr(one, name) == getattr(other, name) for name in names)


def _registers(
    report: TdReport, candidates: Sequence[Candidate], entry: int, evidence: Evidence
) -> Iterator[Finding]:
    """Why registers are not those of the nearest entry."""
    candidate = candidates[entry]
    found = candidate.measurement
    common = _common(report, found)
    other_image = "rtmr2" not in common
    if other_image:
        yield from explain_log.rtmr2(report, (entry, candidate), evidence)
    if "rtmr1" not in common:
        targets = _by_path(candidates, entry)
        yield from _worth(explain_log.rtmr1(report, targets, evidence), other_image)
    if "mr_td" not in common:
        firmware = explain_firmware.mr_td(report, candidate, entry, evidence)
        yield from _worth(firmware, other_image)
    elif found.rtmr0 not in {None, report.rtmr0}:
        yield _rtmr0(candidate, entry, evidence.log)


def _worth(findings: Iterable[Finding], other_image: bool) -> Iterator[Finding]:
    """Another image changes every register: what is not proved adds nothing then."""
    return (finding for finding in findings if finding.proved or not other_image)


def _by_path(candidates: Sequence[Candidate], entry: int) -> dict[BootPath, explain_log.Target]:
    """The nearest entry, and the one that differs from it in the boot path only."""
    candidate = candidates[entry]
    found = candidate.measurement
    targets = {found.boot_path: (entry, candidate)}
    for index, other in enumerate(candidates):
        measurement = other.measurement
        if (other.wanted, measurement.role, measurement.uki_sha256, measurement.mr_td) == (
            candidate.wanted,
            found.role,
            found.uki_sha256,
            found.mr_td,
        ):
            targets.setdefault(measurement.boot_path, (index, other))
    return targets


def _rtmr0(candidate: Candidate, entry: int, log: EventLog | None) -> Finding:
    message = "the host gave the TD other memory, ACPI tables, devices or settings than the entry's"
    then = NEXT[Cause.RTMR0]
    if log is None:
        then += "; --log names what RTMR0 consists of"
    else:
        events = log.of_rtmr(0)
        shown = "; ".join(map(explain_log.shown, events[:_RTMR0_SHOWN]))
        more = len(events) - _RTMR0_SHOWN
        message += f"; RTMR0 is made of {shown}" + (f" and {more} more" if more > 0 else "")
    return Finding(
        Cause.RTMR0,
        "rtmr0",
        message,
        f"MR_TD is that of {candidate.name}, and RTMR0 is not the one that it pins",
        then,
        entry,
    )


def _state(candidate: Candidate, entry: int, now: int) -> Iterator[Finding]:
    """What makes validators refuse an entry that is wanted."""
    found = candidate.measurement

    def finding(cause: Cause, message: str, proof: str) -> Finding:
        return Finding(cause, "", message, f"{candidate.name} {proof}", NEXT[cause], entry)

    if found.is_dev:
        yield finding(
            Cause.DEV_IMAGE,
            f"the image is the development image for {found.role}",
            "has is_dev: mock deployments alone accept it",
        )
    if found.boot_proof is not BootProof.PASSED:
        yield finding(
            Cause.BOOT_PROOF,
            "nobody saw the image's firmware refuse other images",
            f"has boot_proof {found.boot_proof}",
        )
    if now < candidate.not_before:
        yield finding(
            Cause.FUTURE,
            "the entry is not in force yet",
            f"holds from {_time(candidate.not_before)}, judged as of {_time(now)}",
        )
    if candidate.retire_after is not None and now >= candidate.retire_after:
        yield finding(
            Cause.RETIRED,
            "the entry is retired",
            f"holds until {_time(candidate.retire_after)}, judged as of {_time(now)}",
        )


def _match(candidate: Candidate, entry: int) -> Finding:
    found = candidate.measurement
    then = NEXT[Cause.MATCH]
    if found.host_profile is not HostProfile.UPSTREAM:
        then += f'; validators admit such hosts with .profiles("{found.host_profile}") only'
    if found.boot_path is not BootPath.KERNEL:
        then += f'; validators admit such boots with .boot_paths("{found.boot_path}") only'
    pinned = "and RTMR0 too" if found.rtmr0 is not None else "RTMR0 is not pinned"
    return Finding(
        Cause.MATCH,
        "mr_td",
        f"the quote measures as {candidate.name}",
        f"{_listed(REGISTERS)} are equal, {pinned}",
        then,
        entry,
    )


def _unknown(evidence: Evidence, entry: int) -> Finding:
    options = {"--log": evidence.log, "--firmware": evidence.firmware, "--uki": evidence.uki}
    missing = [name for name, given in options.items() if given is None]
    then = "give the measurements of other releases and roles with --against"
    if missing:
        then += f"; of the wanted release, and of the TD, {_listed(missing)}"
    return Finding(
        Cause.UNKNOWN,
        "mr_td",
        "neither MR_TD nor RTMR1 nor RTMR2 is that of any entry",
        "",
        then,
        entry,
    )


def _listed(names: Sequence[str]) -> str:
    shown = [name.upper() if name in REGISTERS else name for name in names]
    return " and ".join([", ".join(shown[:-1]), shown[-1]] if len(shown) > 1 else shown)


def _time(seconds: int) -> str:
    return datetime.fromtimestamp(seconds, UTC).isoformat()
