"""A machine that a test describes, for the doctor to look at."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta

from attestation.doctor import Area, Check, Diagnosis, Status, System
from attestation.doctor_trust import Trust
from attestation.errors import ProviderAbsent, ProviderError
from attestation.measure.eventlog import EventLog, LogEvent
from attestation.measure.eventlog_events import EV_SEPARATOR
from attestation.providers.registers import Registers
from attestation.providers.tsm import REPORTS, TsmProvider
from attestation.verify import Collateral
from tests.attestation.mock_support import TEE, VERIFIER
from tests.attestation.providers.fake_tsm import FakeTsm

NOW = datetime(2026, 1, 1, tzinfo=UTC)
DAY = timedelta(days=1)
CCEL = "/sys/firmware/acpi/tables/data/CCEL"
URL = "https://user:secret@pccs.example:8081/sgx/certification/v4/"
GOOD = TEE.collateral(issued=NOW - 5 * DAY, expires=NOW + 25 * DAY)


def cpuinfo(*flags: str, vendor: str = "GenuineIntel") -> bytes:
    return f"processor\t: 0\nvendor_id\t: {vendor}\nflags\t\t: fpu {' '.join(flags)}\n".encode()


def event(register: int, data: bytes = bytes(4)) -> LogEvent:
    return LogEvent(0, register, EV_SEPARATOR, hashlib.sha384(data).digest(), data)


# What a boot leaves in each register that a log covers.
LOG = EventLog(tuple(replace(event(n + 1), number=n) for n in range(3)))
BODY: dict[str, bytes | int] = {f"rtmr{n}": LOG.rtmr(n) for n in range(3)}
REGISTERS = Registers(
    mr_td=hashlib.sha384(b"mock-tdx/mr_td/" + TEE.seed).digest(),
    mr_config_id=bytes(48),
    mr_owner=bytes(48),
    mr_owner_config=bytes(48),
    rtmr0=LOG.rtmr(0),
    rtmr1=LOG.rtmr(1),
    rtmr2=LOG.rtmr(2),
    rtmr3=bytes(48),
)
ABSENT = ProviderAbsent("no registers", rule="registers.absent", hint="Linux 6.16")


def good_quote(report_data: bytes) -> bytes:
    return TEE.quote(report_data, body=BODY)


@dataclass
class FakeSystem:
    """Files and devices by path (an OSError instead of what opening it gives), and the rest."""

    files: dict[str, bytes | OSError] = field(default_factory=dict)
    kernel: str = "6.18.0"
    tsm: FakeTsm = field(default_factory=lambda: FakeTsm(quote=good_quote))
    seen: Registers | ProviderError = REGISTERS
    time: datetime = NOW
    written: datetime = NOW - 300 * DAY
    date: datetime | OSError | None = None
    asked: list[str] = field(default_factory=list)
    vsock: OSError | None = None
    unix: OSError | None = None
    program: str | None = "/usr/bin/qemu-system-x86_64"
    outputs: dict[str, str | OSError] = field(default_factory=dict)

    def _file(self, path: str) -> bytes:
        if path not in self.files:
            raise FileNotFoundError(2, "No such file or directory")
        found = self.files[path]
        if isinstance(found, OSError):
            raise found
        return found

    def read(self, path: str, limit: int) -> bytes:
        return self._file(path)[:limit]

    def exists(self, path: str) -> bool:
        return path in self.files

    def open_device(self, path: str) -> None:
        self._file(path)

    def release(self) -> str:
        return self.kernel

    def quote(self, report_data: bytes) -> bytes:
        clock = self.tsm.clock
        asked = TsmProvider(self.tsm, clock=clock, sleep=clock.sleep, patience=10)
        return asked.quote(report_data)

    def registers(self) -> Registers:
        if isinstance(self.seen, ProviderError):
            raise self.seen
        return self.seen

    def now(self) -> datetime:
        return self.time

    def built(self) -> datetime:
        return self.written

    def http_date(self, url: str) -> datetime:
        self.asked.append(url)
        if isinstance(self.date, OSError):
            raise self.date
        return self.time if self.date is None else self.date

    def connect_vsock(self, port: int) -> None:
        assert port == 4050
        if self.vsock is not None:
            raise self.vsock

    def connect_unix(self, path: str) -> None:
        assert path == "/var/run/tdx-qgs/qgs.socket"
        if self.unix is not None:
            raise self.unix

    def qemu(self) -> str | None:
        return self.program

    def run(self, command: Sequence[str]) -> str:
        found = self.outputs.get(" ".join(command[1:]), "")
        if isinstance(found, OSError):
            raise found
        return found


def guest(**changes: object) -> FakeSystem:
    """A TD in which everything is as it should be."""
    files: dict[str, bytes | OSError] = {
        "/proc/cpuinfo": cpuinfo("hypervisor", "tdx_guest"),
        "/proc/self/mounts": b"configfs /sys/kernel/config configfs rw 0 0\n",
        str(REPORTS): b"",
        CCEL: LOG.dumps(),
    }
    made: System = FakeSystem(files)
    assert isinstance(made, FakeSystem)
    return replace(made, **changes)  # type: ignore[arg-type]  # of this class


def host(**changes: object) -> FakeSystem:
    """A TDX host in which everything is as it should be."""
    files: dict[str, bytes | OSError] = {
        "/proc/cpuinfo": cpuinfo("vmx"),
        "/sys/module/kvm_intel/parameters/tdx": b"Y\n",
        "/dev/kvm": b"",
        "/dev/sgx_enclave": b"",
        "/dev/sgx_provision": b"",
        "/dev/tpmrm0": b"",
        "/sys/class/tpm/tpm0/tpm_version_major": b"2\n",
        "/etc/sgx_default_qcnl.conf": f'{{ // settings\n "pccs_url": "{URL}" }}'.encode(),
    }
    outputs: dict[str, str | OSError] = {
        "--version": "QEMU emulator version 10.1.0 (Debian 1:10.1.0+ds-5)\n",
        "-object tdx-guest,help": "tdx-guest options:\n  quote-generation-socket=<SocketAddress>\n",
    }
    return replace(FakeSystem(files, outputs=outputs), **changes)  # type: ignore[arg-type]


def trust(
    collateral: Collateral | None = GOOD, *, service: str | None = None, bundle: bool = False
) -> Trust:
    """Mock collateral, from a service or a file, and the mock verifier."""

    def fetch(_: bytes) -> Collateral:
        assert collateral is not None
        return collateral

    return Trust(
        check=VERIFIER.check_collateral,
        verify=lambda raw, documents, now: VERIFIER.verify(raw, documents, now).claims,
        bundle=collateral if bundle else None,
        fetch=None if bundle or collateral is None else fetch,
        service=service,
    )


def found(diagnosis: Diagnosis, name: str) -> Check:
    (check,) = [check for check in diagnosis.checks if check.name == name]
    return check


def states(diagnosis: Diagnosis) -> dict[str, str]:
    """The status of each check, and the rules of a good diagnosis."""
    for check in diagnosis.checks:
        assert check.found, check
        assert bool(check.next) == (check.status in {Status.WARN, Status.FAIL}), check
        assert isinstance(check.area, Area)
    names = [check.name for check in diagnosis.checks]
    assert len(set(names)) == len(names)
    return {check.name: check.status for check in diagnosis.checks}
