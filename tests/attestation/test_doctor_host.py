"""The doctor below the guests: KVM, QEMU, SGX, the quoting service, its PCCS."""

import errno
import json
import os
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from attestation import doctor_host
from attestation.doctor import Area, Diagnosis
from attestation.doctor_host import pccs_url
from attestation.doctor_trust import Trust
from tests.attestation.doctor_support import (
    GOOD,
    URL,
    FakeSystem,
    cpuinfo,
    found,
    host,
    states,
    trust,
)

TDX = "/sys/module/kvm_intel/parameters/tdx"
QCNL = "/etc/sgx_default_qcnl.conf"
NAMES = [
    "TDX",
    "kernel",
    "KVM",
    "QEMU",
    "tdx-guest",
    "SGX",
    "QGS",
    "PCCS settings",
    "clock",
    "collateral",
    "TPM",
]
NOBODY = Trust(trust().check, trust().verify)


def examine(system: FakeSystem, judge: Trust = NOBODY, *, ask: bool = True) -> Diagnosis:
    return Diagnosis(tuple(doctor_host.examine(system, judge, ask=ask)))


def error(number: int) -> OSError:
    return OSError(number, os.strerror(number))


def test_a_good_host() -> None:
    system = host()
    diagnosis = examine(system)
    assert states(diagnosis) == dict.fromkeys(NAMES, "ok")
    assert diagnosis.verdict is None
    # Where the quoting service would ask, and no more of it than its host.
    assert system.asked == [URL]
    assert found(diagnosis, "PCCS settings").found == "PCCS at pccs.example:8081"
    assert not any("secret" in check.found + check.next for check in diagnosis.checks)
    assert "can seal" in found(diagnosis, "TPM").found


def test_nobody_is_asked_who_should_not_be() -> None:
    system = host()
    assert states(examine(system, ask=False))["collateral"] == "skipped"
    assert "valid for" in found(examine(system, trust(GOOD, bundle=True)), "collateral").found
    assert system.asked == []
    examine(system, trust(None, service="https://other.example"), ask=False)
    assert system.asked == ["https://other.example"]


Changes = dict[str, bytes | OSError | None]


def changed(files: Changes, system: FakeSystem | None = None) -> FakeSystem:
    made = system or host()
    merged = {**made.files, **files}
    return replace(made, files={k: v for k, v in merged.items() if v is not None})


@pytest.mark.parametrize(
    ("files", "text", "hint"),
    [
        ({TDX: None}, "is missing", "Linux 6.16"),
        ({TDX: b"N\n"}, "is N", "BIOS"),
        ({TDX: None, "/proc/cpuinfo": cpuinfo("svm", vendor="AuthenticAMD")}, "AMD", "Intel"),
        ({TDX: None, "/proc/cpuinfo": None}, "of unknown", "Intel"),
        ({TDX: None, "/proc/cpuinfo": cpuinfo("hypervisor")}, "a virtual machine", "bare host"),
    ],
)
def test_no_tdx(files: Changes, text: str, hint: str) -> None:
    diagnosis = examine(changed(files))
    check = found(diagnosis, "TDX")
    assert (diagnosis.verdict, diagnosis.cause) == (Area.HYPERVISOR, check)
    assert check.found.startswith("no TDX: ")
    assert text in check.found
    assert hint in check.next
    states(diagnosis)


def test_a_virtual_machine_does_not_ask_the_machine_below() -> None:
    files: Changes = {TDX: None, "/proc/cpuinfo": cpuinfo("hypervisor")}
    diagnosis = examine(changed(files, host(vsock=AssertionError("asked"))))
    assert "no quoting service in a virtual machine" in found(diagnosis, "QGS").found
    assert found(diagnosis, "TPM").status == "warn"
    assert "a host-run vTPM protects nothing here" in found(diagnosis, "TPM").found
    states(diagnosis)


@pytest.mark.parametrize(
    ("kernel", "tdx", "status"),
    [
        ("6.16.0", b"Y", "ok"),
        ("7.0.1-rc1", b"1", "ok"),
        ("6.8.0-1015-intel", b"Y", "warn"),
        ("6.12.0", b"N", "fail"),
    ],
)
def test_kernel(kernel: str, tdx: bytes, status: str) -> None:
    diagnosis = examine(changed({TDX: tdx}, host(kernel=kernel)))
    assert states(diagnosis)["kernel"] == status
    if status == "warn":
        assert "host profile" in found(diagnosis, "kernel").next
        assert diagnosis.verdict is None


@pytest.mark.parametrize(
    ("file", "hint"),
    [(None, "modprobe"), (error(errno.EACCES), "group kvm"), (error(errno.ENODEV), "modprobe")],
)
def test_kvm(file: OSError | None, hint: str) -> None:
    diagnosis = examine(changed({"/dev/kvm": file}))
    assert diagnosis.cause == found(diagnosis, "KVM")
    assert hint in found(diagnosis, "KVM").next
    states(diagnosis)


HELP = "-object tdx-guest,help"
KNOWN = "quote-generation-socket=<SocketAddress>"


@pytest.mark.parametrize(
    ("version", "offered", "qemu", "tdx_guest"),
    [
        ("QEMU emulator version 10.0.8", KNOWN, "warn", "ok"),
        ("QEMU emulator version 8.2.2 (Debian)", KNOWN, "warn", "ok"),
        ("QEMU emulator version 9.2.0", "invalid object type: tdx-guest", "fail", "fail"),
        ("QEMU emulator version 11.1", "invalid object type: tdx-guest", "ok", "fail"),
        ("QEMU emulator version 11.1", "tdx-guest options:\n  mrowner=<string>", "ok", "fail"),
        ("\x1b[31m", "", "fail", "fail"),
        ("", TimeoutError("x"), "fail", "skipped"),
        (PermissionError(13, "Permission denied"), "", "fail", "skipped"),
    ],
)
def test_qemu(version: str | OSError, offered: str | OSError, qemu: str, tdx_guest: str) -> None:
    diagnosis = examine(host(outputs={"--version": version, HELP: offered}))
    shown = states(diagnosis)
    assert (shown["QEMU"], shown["tdx-guest"]) == (qemu, tdx_guest)
    bad = "fail" in {qemu, tdx_guest}
    assert diagnosis.verdict is (Area.HYPERVISOR if bad else None)


def test_no_qemu() -> None:
    diagnosis = examine(host(program=None))
    assert states(diagnosis)["tdx-guest"] == "skipped"
    assert "QEMU 10.1" in found(diagnosis, "QEMU").next


@pytest.mark.parametrize("missing", ["/dev/sgx_enclave", "/dev/sgx_provision"])
def test_sgx(missing: str) -> None:
    diagnosis = examine(changed({missing: None}))
    assert diagnosis.verdict is Area.QGS
    assert found(diagnosis, "SGX").found.startswith(f"{missing} missing")
    states(diagnosis)


SOCKET = "/var/run/tdx-qgs/qgs.socket"


@pytest.mark.parametrize(
    ("unix", "vsock", "area", "text"),
    [
        (None, error(errno.ECONNRESET), Area.QGS, "Connection reset"),
        (None, TimeoutError("timed out"), Area.QGS, "timed out"),
        (error(errno.ECONNREFUSED), error(errno.ECONNRESET), Area.QGS, "refused, vsock port 4050"),
        (None, error(errno.EAFNOSUPPORT), Area.HYPERVISOR, "no vsock"),
        (None, error(errno.ENODEV), Area.HYPERVISOR, "no vsock"),
        (error(errno.EACCES), None, None, "vsock port 4050"),
        ("listens", error(errno.ECONNRESET), None, SOCKET),
    ],
)
def test_qgs(
    unix: OSError | str | None, vsock: OSError | None, area: Area | None, text: str
) -> None:
    system = host(vsock=vsock, unix=unix if isinstance(unix, OSError) else None)
    diagnosis = examine(changed({SOCKET: None if unix is None else b""}, system))
    check = found(diagnosis, "QGS")
    assert text in check.found
    assert diagnosis.verdict is area
    if area is not None:
        hint = "systemctl start qgsd" if area is Area.QGS else "modprobe vhost_vsock"
        assert hint in check.next
    states(diagnosis)


@pytest.mark.parametrize(
    ("file", "status", "text"),
    [
        (None, "warn", "is missing"),
        (error(errno.EACCES), "fail", "Permission denied"),
        (b"{}", "fail", "names no PCCS"),
        (b"\xff" * 20_000, "fail", "names no PCCS"),
        (b"PCCS_URL=https://old.example/sgx/\nUSE_SECURE_CERT=FALSE", "ok", "old.example"),
    ],
)
def test_pccs_settings(file: bytes | OSError | None, status: str, text: str) -> None:
    diagnosis = examine(changed({QCNL: file}))
    assert states(diagnosis)["PCCS settings"] == status
    assert text in found(diagnosis, "PCCS settings").found
    assert diagnosis.verdict is (Area.COLLATERAL if status == "fail" else None)


def test_a_pccs_that_is_down() -> None:
    diagnosis = examine(host(date=error(errno.ECONNREFUSED)))
    assert diagnosis.verdict is Area.COLLATERAL
    assert found(diagnosis, "collateral").found.startswith("pccs.example:8081 does not answer")


@pytest.mark.parametrize(
    ("text", "url"),
    [
        ('{"pccs_url": "https://a/b"}', "https://a/b"),
        ('{ // "pccs_url": "https://no"\n "pccs_url": "https://a//b" /* * / **/ }', "https://a//b"),
        ('{"x": "/* \\" //", "pccs_url": "https://a"}', "https://a"),
        ("# comment\n PCCS_URL = https://a\n", "https://a"),
        ("#PCCS_URL=https://a", None),
        ('{"pccs_url": 1}', None),
        ('{"pccs_url": ""}', None),
        ("[]", None),
        ("[" * 9000, None),
        ('{"pccs_url": "' + "a" * 1025 + '"}', None),
        ("/*" * 8000, None),
    ],
)
def test_pccs_url(text: str, url: str | None) -> None:
    assert pccs_url(text.encode()) == url


@given(st.binary(max_size=200) | st.text('{}"\\/* \npcs_url:', max_size=60).map(str.encode))
def test_pccs_url_of_anything(raw: bytes) -> None:
    assert pccs_url(raw) is None or raw


@given(st.text(min_size=1, max_size=50))
def test_pccs_url_of_any_string(url: str) -> None:
    raw = json.dumps({"pccs_url": url}, ensure_ascii=True).encode()
    assert pccs_url(b"// head\n" + raw + b" /* tail */") == url


@pytest.mark.parametrize(
    ("files", "status", "text"),
    [
        ({"/dev/tpmrm0": None}, "ok", "none"),
        ({"/dev/tpmrm0": None, "/dev/tpm0": b""}, "ok", "/dev/tpm0"),
        ({"/sys/class/tpm/tpm0/tpm_version_major": b"1\n"}, "warn", "1.2"),
    ],
)
def test_tpm(files: Changes, status: str, text: str) -> None:
    diagnosis = examine(changed(files))
    assert states(diagnosis)["TPM"] == status
    assert text in found(diagnosis, "TPM").found
