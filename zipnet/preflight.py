"""What an appliance can see of itself at boot: TEE, boot policy, measured registers, listeners.

Everything is read below one root folder, so that a test can hand in a file tree. Paths and formats:
Linux Documentation/ABI/testing/configfs-tsm, sysfs-class-tpm, sysfs-devices-virtual-misc-tdx_guest,
and proc(5) for /proc/net.
"""

from __future__ import annotations

import base64
import re
from collections.abc import Iterator
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

TDX_DEVICE = "dev/tdx_guest"
TSM_REPORT = "sys/kernel/config/tsm/report"
RTMR_FOLDER = "sys/devices/virtual/misc/tdx_guest/measurements"
PCR_FOLDER = "sys/class/tpm/tpm0"
SECURE_BOOT = "sys/firmware/efi/efivars/SecureBoot-8be4df61-93ca-11d2-aa0d-00e098032b8c"
LOCKDOWN = "sys/kernel/security/lockdown"
FLAVOR = "usr/lib/zipnet/flavor"
ROLE = "usr/lib/zipnet/role"
MOCK = "mock"
EVENT_LOG = "sys/kernel/security/tpm0/binary_bios_measurements"
TCP_LISTEN = "0A"
# A register file is at most 96 hex digits and a newline, /proc/net/tcp one line of 150 a socket.
MAX_READ = 1 << 20
_LINE = 120


class Role(StrEnum):
    """A part that a machine plays; each has an image of its own."""

    SERVER = "server"
    AGGREGATOR = "aggregator"
    CLIENT = "client"

    @property
    def attested(self) -> bool:
        """Whether peers demand a quote of this role (docs: design, committee admission)."""
        return self is not Role.AGGREGATOR


@dataclass(frozen=True, slots=True)
class Preflight:
    """One look at the machine. `None` says that the source could not be read."""

    flavor: str
    tdx_device: bool
    tsm_report: bool
    secure_boot: bool | None
    lockdown: str | None
    registers: tuple[tuple[str, str], ...]
    listeners: tuple[str, ...]
    uptime_s: float | None
    memory_mib: tuple[int, int] | None

    @property
    def tdx(self) -> bool:
        """Whether this machine can ask for a TDX quote."""
        return self.tdx_device and self.tsm_report


def _read(path: Path) -> bytes | None:
    try:
        with path.open("rb") as file:
            return file.read(MAX_READ)
    except OSError:
        return None


def _text(path: Path) -> str | None:
    raw = _read(path)
    return None if raw is None else raw.decode("ascii", "replace").strip()


def _registers(root: Path) -> tuple[tuple[str, str], ...]:
    found: list[tuple[str, str]] = []
    rtmrs = root / RTMR_FOLDER
    for name in ("mrtd", "rtmr0", "rtmr1", "rtmr2", "rtmr3"):
        for path in (rtmrs / name, rtmrs / f"{name}:sha384"):
            raw = _read(path)
            if raw is not None:
                found.append((name, raw.hex()))
    for bank in ("sha384", "sha256"):
        for index in range(16):
            value = _text(root / PCR_FOLDER / f"pcr-{bank}" / str(index))
            # All zero: this firmware and kernel measured nothing into it.
            if value is not None and value.strip("0"):
                good = re.fullmatch("[0-9A-Fa-f]{1,128}", value)
                found.append((f"pcr{index}:{bank}", value.lower() if good else "unreadable"))
    return tuple(found)


def _listeners(root: Path) -> tuple[str, ...]:
    """Listening TCP and bound UDP ports, as in `tcp6/4222`. A DHCP client shows as `udp/68`."""
    found: set[str] = set()
    for name in ("tcp", "tcp6", "udp", "udp6"):
        for line in (_text(root / "proc/net" / name) or "").splitlines()[1:]:
            field = line.split()
            if len(field) < 4 or (name.startswith("tcp") and field[3] != TCP_LISTEN):
                continue
            port = field[1].rpartition(":")[2]
            try:
                found.add(f"{name}/{int(port, 16)}")
            except ValueError:
                found.add(f"{name}/unreadable")
    return tuple(sorted(found))


def _memory(root: Path) -> tuple[int, int] | None:
    fields = {}
    for line in (_text(root / "proc/meminfo") or "").splitlines():
        name, _, rest = line.partition(":")
        amount = rest.split()
        if amount and len(amount[0]) < 20 and amount[0].isdecimal():
            fields[name] = int(amount[0]) // 1024
    if "MemTotal" not in fields or "MemAvailable" not in fields:
        return None
    return fields["MemTotal"] - fields["MemAvailable"], fields["MemTotal"]


def role_of(root: Path = Path("/")) -> Role | None:
    """The role that this appliance was built for; None where this is none."""
    name = _text(root / ROLE)
    return next((role for role in Role if role == name), None)


def lines(role: Role, version: str, seen: Preflight) -> list[str]:
    """What people are shown of a look, aligned, one fact a line."""
    facts = [
        ("flavor", seen.flavor),
        ("tdx guest", "yes" if seen.tdx_device else "no"),
        ("configfs-tsm", "present" if seen.tsm_report else "absent"),
        ("secure boot", {True: "on", False: "off", None: "unknown"}[seen.secure_boot]),
        ("lockdown", seen.lockdown or "unknown"),
        ("listening", ", ".join(seen.listeners) or "nothing"),
    ]
    if seen.memory_mib is not None:
        facts.append(("memory", f"{seen.memory_mib[0]} of {seen.memory_mib[1]} MiB used"))
    if seen.uptime_s is not None:
        facts.append(("time", f"{seen.uptime_s:.1f} s since the kernel started"))
    facts += seen.registers or (("registers", "none visible"),)
    return [f"zipnet {role} {version}: preflight"] + [
        f"  {name:<14} {value}" for name, value in facts
    ]


def event_log_lines(root: Path = Path("/")) -> Iterator[str]:
    """The event log in base64, for the console of a test image: predictions are checked with it."""
    encoded = base64.b64encode(event_log(root)).decode()
    for begin in range(0, len(encoded), _LINE):
        yield f"zipnet-event-log {encoded[begin : begin + _LINE]}"
    yield f"zipnet-event-log end of {EVENT_LOG}"


def event_log(root: Path = Path("/")) -> bytes:
    """The firmware's event log as the kernel has it (TCG PC Client Platform Firmware Profile)."""
    return _read(root / EVENT_LOG) or b""


def look(root: Path = Path("/")) -> Preflight:
    """Read everything once. Never raises: what can't be read is reported as such."""
    variable = _read(root / SECURE_BOOT)
    uptime = (_text(root / "proc/uptime") or "").split()
    # The kernel lists all levels and puts the one in force in brackets.
    chosen = re.search(r"\[(\w+)\]", _text(root / LOCKDOWN) or "")
    return Preflight(
        flavor=_text(root / FLAVOR) or "none (not an appliance)",
        tdx_device=(root / TDX_DEVICE).exists(),
        tsm_report=(root / TSM_REPORT).is_dir(),
        # efivarfs puts four bytes of attributes before the value (UEFI 2.10, section 3.3).
        secure_boot=None if variable is None or len(variable) != 5 else variable[4] == 1,
        lockdown=chosen[1] if chosen else None,
        registers=_registers(root),
        listeners=_listeners(root),
        uptime_s=float(uptime[0]) if uptime and uptime[0].replace(".", "", 1).isdigit() else None,
        memory_mib=_memory(root),
    )
