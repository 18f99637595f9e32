"""The doctor inside a TD: broken guests, hypervisors and quoting services are told apart."""

import errno
import os
import re
from dataclasses import replace
from pathlib import Path

import pytest

from attestation import doctor_guest
from attestation.doctor import Area, Diagnosis, System, is_td
from attestation.providers import tsm
from attestation.providers.tsm import REPORTS
from tests.attestation.doctor_support import (
    ABSENT,
    BODY,
    CCEL,
    LOG,
    REGISTERS,
    FakeSystem,
    cpuinfo,
    event,
    found,
    guest,
    states,
    trust,
)
from tests.attestation.mock_support import TEE
from tests.attestation.providers.fake_tsm import FakeTsm, Host, failing, unloading

NAMES = [
    "trust domain",
    "kernel",
    "configfs",
    "configfs-tsm",
    "quote provider",
    "quote",
    "debug",
    "registers",
    "event log",
    "clock",
    "collateral",
    "TCB",
    "TPM",
]


def examine(system: FakeSystem) -> Diagnosis:
    return Diagnosis(tuple(doctor_guest.examine(system, trust(service="https://pccs.example"))))


def without(system: FakeSystem, *paths: str) -> FakeSystem:
    return replace(system, files={k: v for k, v in system.files.items() if k not in paths})


def with_(system: FakeSystem, **files: bytes | OSError) -> FakeSystem:
    return replace(system, files={**system.files, **files})


def test_a_good_guest() -> None:
    system = guest()
    diagnosis = examine(system)
    assert states(diagnosis) == dict.fromkeys(NAMES, "ok")
    assert (diagnosis.verdict, diagnosis.cause) == (None, None)
    assert system.tsm.reports == {}
    assert is_td(system)


@pytest.mark.parametrize(
    ("files", "text"),
    [
        ({"/proc/cpuinfo": cpuinfo("hypervisor")}, "a virtual machine without TDX"),
        ({"/proc/cpuinfo": cpuinfo("vmx")}, "no virtual machine at all"),
        ({}, "no virtual machine at all"),
        ({"/proc/cpuinfo": cpuinfo("hypervisor", "sev_snp")}, "a guest of AMD SEV"),
        ({"/proc/cpuinfo": cpuinfo("hypervisor"), "/dev/sev-guest": b""}, "AMD SEV-SNP"),
    ],
)
def test_no_td(files: dict[str, bytes | OSError], text: str) -> None:
    system = FakeSystem(files)
    diagnosis = examine(system)
    assert diagnosis.verdict is Area.GUEST
    assert text in found(diagnosis, "trust domain").found
    shown = states(diagnosis)
    assert [name for name, status in shown.items() if status == "fail"] == ["trust domain"]
    assert shown["quote"] == shown["event log"] == "skipped"
    assert system.tsm.log == []
    assert not is_td(system)


@pytest.mark.parametrize("path", ["/dev/tdx_guest", "/sys/module/tdx_guest"])
def test_a_td_whose_processor_does_not_say_so(path: str) -> None:
    system = with_(guest(), **{path: b"", "/proc/cpuinfo": cpuinfo("hypervisor")})
    assert is_td(system)
    assert examine(system).verdict is None


@pytest.mark.parametrize(
    ("mounts", "kernel", "name", "hint"),
    [
        (True, "6.1.0-28-amd64", "kernel", "Linux 6.7"),
        (False, "6.12.0", "configfs", "mount -t configfs"),
        (True, "6.12.0", "configfs-tsm", "modprobe tdx_guest"),
        (True, "junk", "kernel", "Linux 6.7"),
    ],
)
def test_no_interface(mounts: bool, kernel: str, name: str, hint: str) -> None:
    system = without(guest(kernel=kernel), str(REPORTS), *([] if mounts else ["/proc/self/mounts"]))
    diagnosis = examine(system)
    assert diagnosis.verdict is Area.GUEST
    assert diagnosis.cause == found(diagnosis, name)
    assert hint in found(diagnosis, name).next
    shown = states(diagnosis)
    assert [shown[n] for n in ("quote provider", "quote", "debug")] == ["skipped"] * 3
    # What needs no quote is still looked at.
    assert shown["event log"] == shown["registers"] == shown["clock"] == "ok"
    assert "digests hold" in found(diagnosis, "event log").found


def test_an_old_kernel_with_the_interface() -> None:
    """Vendors bring it to older kernels: what is there counts, not its version."""
    assert examine(without(guest(kernel="5.14.0"), "/proc/self/mounts")).verdict is None


CAUSES = [
    (FakeTsm(configfs=False), Area.GUEST, "tsm.no-configfs", "Linux 6.7"),
    (FakeTsm(provider=None), Area.GUEST, "tsm.no-provider", "modprobe tdx_guest"),
    (FakeTsm(provider="sev_guest"), Area.GUEST, "tsm.other-provider", "Intel TDX guest"),
    (FakeTsm(hooks={"mkdir": [failing(errno.EACCES)]}), Area.GUEST, "tsm.permission", "root"),
    (FakeTsm(hooks={"read outblob": [unloading]}), Area.GUEST, "tsm.provider-gone", "modprobe"),
    (FakeTsm(buffer=100), Area.GUEST, "tsm.oversized", "kernel of the guest"),
    (
        FakeTsm(host=[Host.REFUSES_CALL]),
        Area.HYPERVISOR,
        "tsm.hypercall",
        "quote-generation-socket",
    ),
    (
        FakeTsm(host=[Host.REFUSES_QUOTE], checks_status=True),
        Area.HYPERVISOR,
        "tsm.hypercall",
        "quoting service",
    ),
    (FakeTsm(host=[Host.REFUSES_QUOTE]), Area.QGS, "tsm.empty-quote", "DCAP 1.21"),
    (FakeTsm(host=[Host.SILENT] * 9), Area.QGS, "tsm.no-answer", "runs"),
    (FakeTsm(host=[Host.LAST_MOMENT] * 9), Area.QGS, "tsm.no-answer", "runs"),
    (FakeTsm(in_flight=99), Area.QGS, "tsm.busy", "restart"),
    (FakeTsm(quote=lambda _: bytes(range(1, 256)) * 9), Area.QGS, "tsm.no-quote", "ECDSA"),
    (FakeTsm(quote=lambda _: TEE.quote(bytes(64))), Area.QGS, "tsm.report-data", "another"),
]


@pytest.mark.parametrize(
    ("fake", "area", "rule", "hint"),
    CAUSES,
    ids=[f"{case[2]}-{n}" for n, case in enumerate(CAUSES)],
)
def test_no_quote(fake: FakeTsm, area: Area, rule: str, hint: str) -> None:
    """By what the real provider makes of the kernel's ways to fail."""
    started = fake.clock.now
    diagnosis = examine(guest(tsm=fake))
    assert diagnosis.verdict is area
    cause = diagnosis.cause
    assert cause is not None
    assert f"rule {rule}" in cause.found
    assert hint in cause.next
    assert cause.name == ("quote provider" if area is Area.GUEST else "quote")
    shown = states(diagnosis)
    assert [name for name, status in shown.items() if status == "fail"] == [cause.name]
    assert (shown["quote"] == "skipped") == (area is Area.GUEST)
    assert shown["debug"] == "skipped"
    assert "TCB" not in shown
    assert fake.clock.now - started <= 41
    assert fake.reports == {}


def test_each_rule_of_the_provider_has_an_area() -> None:
    source = Path(tsm.__file__).read_text("utf-8")
    rules = set(re.findall(r'"(tsm\.[a-z-]+)"', source))
    # Left to the guest, by name: a new rule has to be looked at.
    own = {
        *("tsm.cleanup", "tsm.folder-gone", "tsm.generation-format", "tsm.generation-race"),
        *("tsm.inblob", "tsm.interrupted", "tsm.kernel", "tsm.no-configfs", "tsm.no-provider"),
        *("tsm.other-provider", "tsm.oversized", "tsm.permission", "tsm.provider-gone"),
        *("tsm.report-data-refused", "tsm.report-data-size", "tsm.write-lost"),
    }
    assert rules == own | doctor_guest._AREAS.keys()


class Careless(FakeSystem):
    """A machine whose provider checks nothing."""

    made = b"junk"

    def quote(self, report_data: bytes) -> bytes:  # noqa: ARG002  # that is careless
        return self.made


@pytest.mark.parametrize(
    ("made", "rule"), [(b"junk", "rule size"), (TEE.quote(bytes(64)), "rule report-data")]
)
def test_a_quote_of_a_careless_provider(made: bytes, rule: str) -> None:
    system = Careless(guest().files)
    system.made = made
    diagnosis = examine(system)
    assert diagnosis.verdict is Area.QGS
    assert rule in found(diagnosis, "quote").found
    assert states(diagnosis)["debug"] == "skipped"


def test_a_debug_td() -> None:
    fake = FakeTsm(quote=lambda data: TEE.quote(data, body={**BODY, "td_attributes": 0x10000001}))
    diagnosis = examine(guest(tsm=fake))
    assert diagnosis.verdict is Area.HYPERVISOR
    assert "a debug TD" in found(diagnosis, "debug").found
    states(diagnosis)


def test_registers() -> None:
    diagnosis = examine(guest(seen=ABSENT))
    assert states(diagnosis)["registers"] == "warn"
    assert found(diagnosis, "registers").next == "Linux 6.16"
    assert diagnosis.verdict is None
    diagnosis = examine(guest(seen=replace(REGISTERS, rtmr3=b"\1" * 48, mr_td=bytes(48))))
    assert states(diagnosis)["registers"] == "warn"
    assert "mr_td, rtmr3" in found(diagnosis, "registers").found


LIE = replace(LOG, events=(replace(LOG.events[0], data=b"\1\0\0\0"), *LOG.events[1:]))
OTHER = replace(LOG, events=(*LOG.events, replace(event(2), number=3)))


@pytest.mark.parametrize(
    ("raw", "status", "text"),
    [
        (FileNotFoundError(2, os.strerror(2)), "warn", "No such file"),
        (PermissionError(13, os.strerror(13)), "warn", "Permission denied"),
        (b"junk", "fail", "rule log."),
        (b"\0" * (2 << 20), "fail", "rule log.size"),
        (LIE.dumps(), "fail", "rule eventlog.digest"),
        (OTHER.dumps(), "fail", "rule eventlog.rtmr1"),
    ],
)
def test_event_log(raw: bytes | OSError, status: str, text: str) -> None:
    diagnosis = examine(with_(guest(), **{CCEL: raw}))
    assert states(diagnosis)["event log"] == status
    assert text in found(diagnosis, "event log").found
    assert diagnosis.verdict is (Area.GUEST if status == "fail" else None)


@pytest.mark.parametrize("device", ["/dev/tpmrm0", "/dev/tpm0"])
def test_a_tpm_in_a_td(device: str) -> None:
    diagnosis = examine(with_(guest(), **{device: b""}))
    check = found(diagnosis, "TPM")
    assert (check.area, check.status) == (Area.TPM, "warn")
    assert "a host-run vTPM protects nothing here" in check.found
    assert "paravisor" in check.next
    assert diagnosis.verdict is None


def test_the_fake_is_a_system() -> None:
    system: System = guest()
    assert system.release() == "6.18.0"
