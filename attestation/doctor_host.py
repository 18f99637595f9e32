"""Checks below the guests: KVM, QEMU, SGX, the quoting service and what it asks for certificates.

A TDX host asks with the SGX of its own processor, so a TDX host is never a virtual machine.
"""

import errno
import json
import re
from collections.abc import Iterator
from dataclasses import replace

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
    readable,
    reason,
)
from attestation.doctor_trust import Trust, host_of
from attestation.doctor_trust import examine as examine_trust

KVM_TDX = "/sys/module/kvm_intel/parameters/tdx"
QGS_PORT = 4050
QGS_SOCKET = "/var/run/tdx-qgs/qgs.socket"
QCNL = "/etc/sgx_default_qcnl.conf"

_MAX_QCNL = 16 << 10
_VERSION = re.compile(r"QEMU emulator version ([0-9]{1,4}\.[0-9]{1,4}(?:\.[0-9]{1,4})?)")
# Strings first: a URL has slashes of its own.
_COMMENT = re.compile(r'"(?:[^"\\\n]|\\.)*"|//[^\n]*|/\*[^*]*(?:\*(?!/)[^*]*)*\*/')
_LEGACY = re.compile(r"^[ \t]*PCCS_URL[ \t]*=[ \t]*(\S{1,1024})", re.MULTILINE)
_START_QGS = (
    "`systemctl start qgsd`, and look in its log; for vsock it needs `port = 4050` in "
    "/etc/qgs.conf, and QEMU the same in quote-generation-socket"
)


def examine(system: System, trust: Trust, *, ask: bool = True) -> Iterator[Check]:
    """All checks of a host, one by one; with `ask` also of the PCCS in its settings."""
    virtual = "hypervisor" in cpu_field(system, "flags")
    tdx = _tdx(system, virtual=virtual)
    yield tdx
    yield _kernel(system, tdx)
    yield _kvm(system)
    yield from _qemu(system)
    yield _sgx(system)
    yield _qgs(system, virtual=virtual)
    check, url = _pccs(system)
    yield check
    yield from examine_trust(system, replace(trust, service=url) if ask else trust, None)
    yield _tpm(system, virtual=virtual)


def _hypervisor(name: str, status: Status, found: str, hint: str = "") -> Check:
    return Check(Area.HYPERVISOR, name, status, found, hint)


def _tdx(system: System, *, virtual: bool) -> Check:
    name = "TDX"
    offered = readable(system, KVM_TDX, 16).strip()
    if offered in {"Y", "1"}:
        return _hypervisor(name, Status.OK, "KVM offers TDX")
    if virtual:
        return _hypervisor(
            name,
            Status.FAIL,
            "no TDX: this is a virtual machine, and no TD",
            "run this in a TD (Linux with CONFIG_INTEL_TDX_GUEST), or on a bare host with TDX",
        )
    vendor = " ".join(sorted(cpu_field(system, "vendor_id"))) or "unknown"
    if vendor != "GenuineIntel":
        return _hypervisor(
            name, Status.FAIL, f"no TDX: the processor is of {vendor}", "use an Intel host"
        )
    if offered:
        return _hypervisor(
            name,
            Status.FAIL,
            f"no TDX: {KVM_TDX} is {offered}",
            "switch on TME-MT, TDX, the SEAM loader and SGX in the BIOS, boot with kvm_intel.tdx=1 "
            "and look for virt/tdx in the kernel log",
        )
    return _hypervisor(
        name,
        Status.FAIL,
        f"no TDX: {KVM_TDX} is missing",
        "run Linux 6.16 or later with CONFIG_KVM_INTEL_TDX, and `modprobe kvm_intel tdx=1`",
    )


def _kernel(system: System, tdx: Check) -> Check:
    release = system.release()
    if at_least(release, 6, 16):
        return _hypervisor("kernel", Status.OK, release)
    if tdx.status is Status.OK:
        return _hypervisor(
            "kernel",
            Status.WARN,
            f"{release}: a vendor's TDX, not that of Linux 6.16",
            "accept measurements of its host profile: it may add pages in another order, which "
            "gives another MR_TD",
        )
    return _hypervisor("kernel", Status.FAIL, release, "run Linux 6.16 or later: its KVM has TDX")


def _kvm(system: System) -> Check:
    device = "/dev/kvm"
    try:
        system.open_device(device)
    except OSError as error:
        hint = "`modprobe kvm_intel`, with virtualization switched on in the BIOS"
        if error.errno in {errno.EACCES, errno.EPERM}:
            hint = "run as a member of the group kvm"
        return _hypervisor("KVM", Status.FAIL, f"{device}: {reason(error)}", hint)
    return _hypervisor("KVM", Status.OK, f"{device} opens")


def _qemu(system: System) -> Iterator[Check]:
    install = "install QEMU 10.1 or later, or name it in $QEMU"
    program = system.qemu()
    if program is None:
        yield _hypervisor("QEMU", Status.FAIL, "no qemu-system-x86_64", install)
        yield exempt(Area.HYPERVISOR, "tdx-guest", "needs: QEMU")
        return
    try:
        version = _VERSION.search(system.run([program, "--version"]))
        offered = system.run([program, "-object", "tdx-guest,help"])
    except OSError as error:
        yield _hypervisor("QEMU", Status.FAIL, f"{program}: {reason(error)}", install)
        yield exempt(Area.HYPERVISOR, "tdx-guest", "needs: QEMU")
        return
    known = "quote-generation-socket" in offered
    if version is None:
        yield _hypervisor("QEMU", Status.FAIL, f"{program} does not say its version", install)
    elif at_least(version[1], 10, 1):
        yield _hypervisor("QEMU", Status.OK, f"{program} {version[1]}")
    else:
        yield _hypervisor(
            "QEMU",
            Status.WARN if known else Status.FAIL,
            f"{program} {version[1]}",
            f"{install}: TDX came with it"
            + ("; a vendor's build may make another MR_TD" if known else ""),
        )
    if known:
        yield _hypervisor("tdx-guest", Status.OK, "QEMU has it, with quote-generation-socket")
    else:
        yield _hypervisor("tdx-guest", Status.FAIL, "QEMU has no such object", install)


def _sgx(system: System) -> Check:
    devices = ("/dev/sgx_enclave", "/dev/sgx_provision")
    missing = [device for device in devices if not system.exists(device)]
    if missing:
        return Check(
            Area.QGS,
            "SGX",
            Status.FAIL,
            f"{' and '.join(missing)} missing: the quoting enclave can't run",
            "switch on SGX and its flexible launch control in the BIOS; the kernel needs "
            "CONFIG_X86_SGX",
        )
    return Check(Area.QGS, "SGX", Status.OK, " ".join(devices))


def _qgs(system: System, *, virtual: bool) -> Check:
    name = "QGS"
    found = []
    if system.exists(QGS_SOCKET):
        try:
            system.connect_unix(QGS_SOCKET)
        except OSError as error:
            found.append(f"{QGS_SOCKET}: {reason(error)}")
        else:
            return Check(Area.QGS, name, Status.OK, f"listens on {QGS_SOCKET}")
    if virtual:
        # Its vsock leads to the machine below, whose service is not this machine's.
        found.append("no quoting service in a virtual machine")
        return Check(Area.QGS, name, Status.FAIL, ", ".join(found), "run this on a bare host")
    try:
        system.connect_vsock(QGS_PORT)
    except OSError as error:
        found.append(f"vsock port {QGS_PORT}: {reason(error)}")
        if error.errno in {errno.EAFNOSUPPORT, errno.ENODEV, errno.EADDRNOTAVAIL}:
            return Check(
                Area.HYPERVISOR,
                name,
                Status.FAIL,
                f"{', '.join(found)}: this kernel has no vsock",
                "`modprobe vhost_vsock vsock_loopback`: QEMU reaches the quoting service by it",
            )
    else:
        return Check(Area.QGS, name, Status.OK, f"listens on vsock port {QGS_PORT}")
    return Check(Area.QGS, name, Status.FAIL, ", ".join(found), _START_QGS)


def _pccs(system: System) -> tuple[Check, str | None]:
    """What the quoting service is told about certificates, and the URL in it."""
    name = "PCCS settings"
    try:
        raw = system.read(QCNL, _MAX_QCNL + 1)
    except FileNotFoundError:
        return (
            Check(
                Area.COLLATERAL,
                name,
                Status.WARN,
                f"{QCNL} is missing",
                "install libsgx-dcap-default-qpl and name the PCCS there; if the quoting service "
                "runs in a container, look in the container",
            ),
            None,
        )
    except OSError as error:
        found = f"{QCNL}: {reason(error)}"
        hint = "make it readable for the user of the quoting service, and run this as root"
        return Check(Area.COLLATERAL, name, Status.FAIL, found, hint), None
    url = pccs_url(raw)
    if url is None:
        found = f"{QCNL} names no PCCS"
        hint = 'it is JSON with comments, and needs "pccs_url"'
        return Check(Area.COLLATERAL, name, Status.FAIL, found, hint), None
    return Check(Area.COLLATERAL, name, Status.OK, f"PCCS at {host_of(url)}"), url


def pccs_url(raw: bytes) -> str | None:
    """The URL of the PCCS in the settings of Intel's quote provider library, None if none is.

    JSON with comments, or lines of the older form PCCS_URL=...; at most 16 KiB.
    """
    if len(raw) > _MAX_QCNL:
        return None
    text = raw.decode("utf-8", "replace")
    bare = _COMMENT.sub(lambda match: match[0] if match[0].startswith('"') else " ", text)
    try:
        content = json.loads(bare)
    except (ValueError, RecursionError):
        match = _LEGACY.search(text)
        return None if match is None else match[1]
    url = content.get("pccs_url") if isinstance(content, dict) else None
    return url if isinstance(url, str) and 0 < len(url) <= 1024 else None


def _tpm(system: System, *, virtual: bool) -> Check:
    device = next((path for path in TPMS if system.exists(path)), None)
    if device is None:
        return Check(Area.TPM, "TPM", Status.OK, "none: nothing can be sealed with tpm2 here")
    if virtual:
        found = f"{device}: {VTPM}"
        hint = "its host can read its state and set it back: seal on a bare host"
        return Check(Area.TPM, "TPM", Status.WARN, found, hint)
    if readable(system, "/sys/class/tpm/tpm0/tpm_version_major", 4).strip() == "1":
        found = f"{device} is a TPM 1.2"
        return Check(Area.TPM, "TPM", Status.WARN, found, "sealing needs a TPM 2.0")
    return Check(Area.TPM, "TPM", Status.OK, f"{device}: programs on this bare host can seal")
