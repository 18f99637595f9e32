"""Checks inside a TD: the kernel's interface, a quote, its event log, then what judges it.

Which of guest, hypervisor and quoting service refused a quote is read off the rule of
`attestation.providers.tsm`, where the kernel's errors are told apart.
"""

import secrets
from collections.abc import Iterator

from attestation.doctor import (
    TPMS,
    VTPM,
    Area,
    Check,
    Status,
    System,
    at_least,
    cpu_field,
    exempt,
    is_td,
    readable,
    reason,
)
from attestation.doctor_trust import Trust
from attestation.doctor_trust import examine as examine_trust
from attestation.errors import AttestationError, EventLogFormatError, ProviderError
from attestation.measure.eventlog import MAX_BYTES, EventLog, check_digests, check_registers
from attestation.providers.tsm import REPORT_DATA_SIZE, REPORTS
from attestation.quote import Quote, TdReport

CONFIGFS = "/sys/kernel/config"
CCEL = "/sys/firmware/acpi/tables/data/CCEL"

_MAX_MOUNTS = 256 << 10
_DEBUG = 0x01
_ASK_HOST = "`attestation doctor --host`, run there, tells whether the service listens"
# Other kinds of confidential guests, by what their kernels show.
_OTHERS = {
    "/dev/sev-guest": "AMD SEV-SNP",
    "/sys/module/sev_guest": "AMD SEV-SNP",
    "/dev/nsm": "AWS Nitro",
}
# Of each rule of the provider whose fault it is; what is not here happened in the guest's kernel.
_AREAS = {
    "tsm.hypercall": Area.HYPERVISOR,
    "tsm.busy": Area.QGS,
    "tsm.empty-quote": Area.QGS,
    "tsm.no-answer": Area.QGS,
    "tsm.no-quote": Area.QGS,
    "tsm.report-data": Area.QGS,
}
_HINTS = {
    "tsm.hypercall": (
        "on the host: start QEMU with quote-generation-socket in its tdx-guest object (JSON form: "
        "dotted keys are refused), then look in the logs of QEMU and of the quoting service; "
        + _ASK_HOST
    ),
}
_IN_A_TD = (
    (Area.GUEST, "kernel"),
    (Area.GUEST, "configfs"),
    (Area.GUEST, "configfs-tsm"),
    (Area.GUEST, "quote provider"),
    (Area.QGS, "quote"),
    (Area.HYPERVISOR, "debug"),
    (Area.GUEST, "registers"),
    (Area.GUEST, "event log"),
)


def examine(system: System, trust: Trust) -> Iterator[Check]:
    """All checks of a guest, one by one."""
    domain = _trust_domain(system)
    yield domain
    if domain.status is Status.FAIL:
        for area, name in _IN_A_TD:
            yield exempt(area, name, "needs: trust domain")
        yield from examine_trust(system, trust, None)
        return
    broken = ""
    for check in _interface(system):
        yield check
        broken = broken or (check.name if check.status is Status.FAIL else "")
    body, raw = None, None
    if broken:
        yield exempt(Area.GUEST, "quote provider", f"needs: {broken}")
        yield exempt(Area.QGS, "quote", f"needs: {broken}")
    else:
        provider, made, raw = _quote(system)
        yield from (provider, made)
    if raw is None:
        yield exempt(Area.HYPERVISOR, "debug", "needs: quote")
    else:
        body = Quote.parse(raw).body
        yield _debug(body)
    yield _registers(system, body)
    yield _event_log(system, body)
    yield from examine_trust(system, trust, raw)
    yield _tpm(system)


def _interface(system: System) -> Iterator[Check]:
    # Where the interface is, its kernel is new enough, and configfs mounted, whatever they say.
    present = system.exists(str(REPORTS))
    release = system.release()
    recent = present or at_least(release, 6, 7)
    yield _guest(
        "kernel", recent, release, "run Linux 6.7 or later in the guest: it has configfs-tsm"
    )
    mounted = present or _mounted(system)
    yield _guest(
        "configfs",
        mounted,
        f"{CONFIGFS} is {'' if mounted else 'not '}mounted",
        f"`modprobe configfs; mount -t configfs none {CONFIGFS}`; in a container, bind it from the "
        "guest's root",
    )
    if recent and mounted:
        yield _guest(
            "configfs-tsm",
            present,
            f"{REPORTS} is {'there' if present else 'missing'}",
            "`modprobe tdx_guest`, or a kernel with CONFIG_TDX_GUEST_DRIVER",
        )
    else:
        yield exempt(Area.GUEST, "configfs-tsm", f"needs: {'configfs' if recent else 'kernel'}")


def _guest(name: str, good: bool, found: str, hint: str) -> Check:
    return Check(Area.GUEST, name, Status.OK if good else Status.FAIL, found, "" if good else hint)


def _trust_domain(system: System) -> Check:
    if is_td(system):
        return Check(Area.GUEST, "trust domain", Status.OK, "an Intel TDX guest")
    flags = cpu_field(system, "flags")
    other = next((name for path, name in _OTHERS.items() if system.exists(path)), None)
    if other is None and "hypervisor" in flags and flags & {"sev", "sev_es", "sev_snp"}:
        other = "AMD SEV"
    if other is not None:
        found = f"no TD: this is a guest of {other}"
    elif "hypervisor" in flags:
        found = "no TD: a virtual machine without TDX"
    else:
        found = "no TD: no virtual machine at all"
    return Check(
        Area.GUEST,
        "trust domain",
        Status.FAIL,
        found,
        "run this in a guest that QEMU starts with confidential-guest-support=tdx-guest, and a "
        "kernel with CONFIG_INTEL_TDX_GUEST; on the host below it, use --host",
    )


def _mounted(system: System) -> bool:
    mounts = readable(system, "/proc/self/mounts", _MAX_MOUNTS).splitlines()
    return any(line.split()[1:3] == [CONFIGFS, "configfs"] for line in mounts)


def _quote(system: System) -> tuple[Check, Check, bytes | None]:
    """Who would make a quote, the quote, and its bytes if there is a good one."""
    data = secrets.token_bytes(REPORT_DATA_SIZE)
    try:
        raw = system.quote(data)
        body = Quote.parse(raw).body
    except ProviderError as error:
        return (*_refusal(error), None)
    except AttestationError as error:
        broken = f"{error} (rule {error.rule})"
        return _provider(), Check(Area.QGS, "quote", Status.FAIL, broken, error.hint), None
    if body.report_data != data:
        return (
            _provider(),
            Check(
                Area.QGS,
                "quote",
                Status.FAIL,
                "the quote is about other report data (rule report-data)",
                "restart the quoting service of the host, and QEMU if it stays",
            ),
            None,
        )
    return _provider(), Check(Area.QGS, "quote", Status.OK, f"{len(raw)} bytes, ours"), raw


def _provider() -> Check:
    return Check(Area.GUEST, "quote provider", Status.OK, "tdx_guest")


def _refusal(error: ProviderError) -> tuple[Check, Check]:
    area = _AREAS.get(error.rule, Area.GUEST)
    found = f"{error} (rule {error.rule})"
    hint = _HINTS.get(error.rule, error.hint)
    if area is Area.GUEST:
        return (
            Check(area, "quote provider", Status.FAIL, found, hint),
            exempt(Area.QGS, "quote", "needs: quote provider"),
        )
    return _provider(), Check(area, "quote", Status.FAIL, found, hint)


def _debug(body: TdReport) -> Check:
    if body.td_attributes[0] & _DEBUG:
        return Check(
            Area.HYPERVISOR,
            "debug",
            Status.FAIL,
            "a debug TD: its host reads and writes its memory, and every verifier refuses it",
            "start the TD without attributes: bit 0 is DEBUG",
        )
    return Check(Area.HYPERVISOR, "debug", Status.OK, "off")


def _registers(system: System, body: TdReport | None) -> Check:
    try:
        found = system.registers()
    except ProviderError as error:
        return Check(Area.GUEST, "registers", Status.WARN, f"{error}", error.hint)
    names = ("mr_td", "rtmr0", "rtmr1", "rtmr2", "rtmr3")
    if body is None:
        return Check(Area.GUEST, "registers", Status.OK, f"MR_TD {found.mr_td.hex()[:16]}...")
    other = [name for name in names if getattr(found, name) != getattr(body, name)]
    if other:
        return Check(
            Area.GUEST,
            "registers",
            Status.WARN,
            f"the kernel and the quote differ in {', '.join(other)}",
            "run this again; what stays different was extended by a program between the two",
        )
    return Check(Area.GUEST, "registers", Status.OK, "MR_TD and RTMR0 to RTMR3 as in the quote")


def _event_log(system: System, body: TdReport | None) -> Check:
    name = "event log"
    try:
        raw = system.read(CCEL, MAX_BYTES + 1)
    except OSError as error:
        return Check(
            Area.GUEST,
            name,
            Status.WARN,
            f"{CCEL}: {reason(error)}",
            "without it a measurement that differs can't be explained: run as root; boot with a "
            "firmware that writes the CCEL table (TDVF does)",
        )
    try:
        log = EventLog.parse(raw)
        check_digests(log)
        if body is not None:
            check_registers(log, body)
    except AttestationError as error:
        hint = error.hint
        if not isinstance(error, EventLogFormatError):
            hint = f"{hint}; `attestation explain` compares them".removeprefix("; ")
        return Check(Area.GUEST, name, Status.FAIL, f"{error} (rule {error.rule})", hint)
    told = "digests hold" if body is None else "replays to the registers of the quote"
    return Check(Area.GUEST, name, Status.OK, f"{len(log.events)} events, {told}")


def _tpm(system: System) -> Check:
    device = next((path for path in TPMS if system.exists(path)), None)
    if device is None:
        return Check(Area.TPM, "TPM", Status.OK, "none, as it should be in a TD")
    return Check(
        Area.TPM,
        "TPM",
        Status.WARN,
        f"{device}: {VTPM}",
        "seal nothing with it: its host can read its state and set it back; only the vTPM of a "
        "paravisor or SVSM, which a quote vouches for, is of use",
    )
