"""Where attestation breaks: the vocabulary of `attestation doctor`.

Checks run in the order in which each rests on those before it: `doctor_guest` inside a TD,
`doctor_host` below it, `doctor_trust` for clock, collateral and platform. What rests on a check
that failed is `skipped`, so that the first failure is the cause, and its area the verdict.

Nothing is changed and nothing secret is read. All that touches the machine is behind `System`.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from typing import Protocol

from attestation.providers.registers import Registers

# Flags and vendor are the same for each processor: the first is enough, however many there are.
CPUINFO_BYTES = 32 << 10
TPMS = ("/dev/tpmrm0", "/dev/tpm0")
VTPM = "a host-run vTPM protects nothing here"

_RELEASE = re.compile(r"([0-9]{1,4})\.([0-9]{1,4})")


class Area(StrEnum):
    """Whose fault it is."""

    GUEST = "guest"
    HYPERVISOR = "hypervisor"
    QGS = "quoting service"
    CLOCK = "clock"
    COLLATERAL = "collateral"
    PLATFORM = "platform"
    TPM = "TPM"


class Status(StrEnum):
    """`fail` stops attestation, `warn` does not yet; `skipped` could not be looked at."""

    OK = "ok"
    WARN = "warn"
    FAIL = "fail"
    SKIPPED = "skipped"


@dataclass(frozen=True, slots=True)
class Check:
    """One check: what was found, and what to do next where it is not as it should be."""

    area: Area
    name: str
    status: Status
    found: str
    next: str = ""


@dataclass(frozen=True, slots=True)
class Diagnosis:
    """The checks in the order in which they rest on each other."""

    checks: tuple[Check, ...]

    @property
    def cause(self) -> Check | None:
        """The first failure, which explains those after it."""
        return next((check for check in self.checks if check.status is Status.FAIL), None)

    @property
    def verdict(self) -> Area | None:
        """The area of the cause; None if nothing failed."""
        return None if self.cause is None else self.cause.area


class System(Protocol):
    """The machine, as far as a check may look at it. Everything is bounded in time and size.

    What fails raises OSError as the kernel does, if nothing else is said.
    """

    def read(self, path: str, limit: int) -> bytes:
        """The first `limit` bytes of a file."""
        ...

    def exists(self, path: str) -> bool:
        """Whether there is something that this process can see."""
        ...

    def open_device(self, path: str) -> None:
        """Open a character device to read and write, and close it."""
        ...

    def release(self) -> str:
        """The release of the kernel, as of `uname -r`."""
        ...

    def quote(self, report_data: bytes) -> bytes:
        """A quote with these 64 bytes. Raises ProviderError."""
        ...

    def registers(self) -> Registers:
        """The registers of this TD as its kernel offers them. Raises ProviderError."""
        ...

    def now(self) -> datetime:
        """The clock of this machine, aware."""
        ...

    def built(self) -> datetime:
        """When this package was written to where it is: no right clock is earlier."""
        ...

    def http_date(self, url: str) -> datetime:
        """The Date of any answer of a web server, of whose certificate nothing is asked."""
        ...

    def connect_vsock(self, port: int) -> None:
        """Connect to this machine's own vsock port, and hang up."""
        ...

    def connect_unix(self, path: str) -> None:
        """Connect to a socket, and hang up."""
        ...

    def qemu(self) -> str | None:
        """Where QEMU for x86-64 is: $QEMU, or found in PATH."""
        ...

    def run(self, command: Sequence[str]) -> str:
        """What a program prints until it ends or its few seconds are over."""
        ...


def exempt(area: Area, name: str, needs: str) -> Check:
    """A check that rests on another which failed, or that was not asked for."""
    return Check(area, name, Status.SKIPPED, needs)


def at_least(release: str, major: int, minor: int) -> bool:
    """Whether a kernel release, or a version in other text, is this one or a later one."""
    match = _RELEASE.search(release)
    return match is not None and (int(match[1]), int(match[2])) >= (major, minor)


def readable(system: System, path: str, limit: int) -> str:
    """A text of the kernel, empty if it can't be read."""
    try:
        return system.read(path, limit).decode("ascii", "replace")
    except OSError:
        return ""


def cpu_field(system: System, name: str) -> frozenset[str]:
    """The words of a field of the first processor in /proc/cpuinfo."""
    for line in readable(system, "/proc/cpuinfo", CPUINFO_BYTES).splitlines():
        key, _, value = line.partition(":")
        if key.strip() == name:
            return frozenset(value.split())
    return frozenset()


def is_td(system: System) -> bool:
    """Whether this machine is a TD: its processor or its kernel's driver says so."""
    return "tdx_guest" in cpu_field(system, "flags") or any(
        system.exists(path) for path in ("/dev/tdx_guest", "/sys/module/tdx_guest")
    )


def reason(error: OSError) -> str:
    """What an error of the kernel or of a library says."""
    return error.strerror or str(error) or type(error).__name__
