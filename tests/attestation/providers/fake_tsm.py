"""configfs-tsm of a TDX guest, behind the same seam as the kernel's.

Written from drivers/virt/coco/guest/report.c (generations, caching), tdx-guest.c (one buffer, that
the host owns until it answers; the loop that waits 30 seconds) and fs/configfs/file.c (what is
written takes effect at close(), whose error nobody sees).
"""

import errno
import os
from collections.abc import Callable
from dataclasses import dataclass, field
from enum import Enum, auto
from typing import NoReturn

from attestation.providers.tsm import Fs, TsmProvider
from tests.attestation.quotes import V4


class Host(Enum):
    """What the host does with one GetQuote request."""

    ANSWERS = auto()
    REFUSES_CALL = auto()  # the hypercall returns an error
    REFUSES_QUOTE = auto()  # the call is accepted; the status says later that there is no quote
    SILENT = auto()  # no answer, and the buffer stays with the host for `held` more requests
    LAST_MOMENT = auto()  # answers at the last look: the one case in which the loop says ETIMEDOUT
    SIGNAL = auto()  # a signal comes while the kernel waits; the buffer stays with the host


@dataclass
class Clock:
    """Time that passes only where a test says so."""

    now: float = 1000.0
    sleeps: list[float] = field(default_factory=list)

    def __call__(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.sleeps.append(seconds)
        self.now += seconds


@dataclass
class Report:
    """One folder."""

    inblob: bytes = b""
    outblob: bytes | None = None
    write_generation: int = 0
    read_generation: int = 0


def quote_of(report_data: bytes) -> bytes:
    return V4.with_(report_data=report_data).build()


@dataclass
class FakeTsm:
    """The kernel, and the host behind it.

    `host` says what the next requests meet; after them it answers. `hooks` run before the next
    calls of an operation ("mkdir", "read outblob", ...) and may fail; they get the folder's name.
    """

    configfs: bool = True
    provider: str | None = "tdx_guest"
    checks_status: bool = False
    buffer: int = 8192 - 24
    quote: Callable[[bytes], bytes] = quote_of
    host: list[Host] = field(default_factory=list)
    held: int = 1
    lost_commits: int = 0
    hooks: dict[str, list["Hook"]] = field(default_factory=dict)
    clock: Clock = field(default_factory=Clock)
    reports: dict[str, Report] = field(default_factory=dict)
    log: list[str] = field(default_factory=list)
    names: list[str] = field(default_factory=list)
    in_flight: int = 0

    def mkdir(self, name: str) -> None:
        self._enter("mkdir", name)
        if not self.configfs:
            fail(errno.ENOENT)
        if self.provider is None:
            fail(errno.ENXIO)
        if name in self.reports:
            fail(errno.EEXIST)
        self.names.append(name)
        self.reports[name] = Report()

    def rmdir(self, name: str) -> None:
        self._enter("rmdir", name)
        self._report(name)
        del self.reports[name]

    def write(self, name: str, attribute: str, data: bytes) -> None:
        self._enter(f"write {attribute}", name)
        self._report(name)
        if attribute != "inblob":
            fail(errno.EACCES)
        if len(data) > 64:
            fail(errno.EFBIG)
        if self.lost_commits:
            self.lost_commits -= 1
            return
        self.commit(name, data)

    def commit(self, name: str, data: bytes) -> None:
        """What close() does."""
        report = self._report(name)
        report.write_generation += 1
        report.inblob = data

    def read(self, name: str, attribute: str, limit: int) -> bytes:
        self._enter(f"read {attribute}", name)
        report = self._report(name)
        if attribute == "inblob":
            fail(errno.EACCES)
        # privlevel, service_provider, auxblob, ... are invisible in a TDX guest.
        if attribute not in {"outblob", "generation", "provider"}:
            fail(errno.ENOENT)
        if attribute == "outblob":
            return self._outblob(report)[:limit]
        if attribute == "generation":
            return f"{report.write_generation}\n".encode()[:limit]
        if self.provider is None:
            fail(errno.ENXIO)
        return f"{self.provider}\n".encode()[:limit]

    def _outblob(self, report: Report) -> bytes:
        if not report.inblob:
            fail(errno.EINVAL)
        if report.outblob is None or report.read_generation != report.write_generation:
            if self.provider is None:
                fail(errno.ENXIO)
            report.outblob = None
            report.outblob = self._get_quote(report.inblob)
            report.read_generation = report.write_generation
        return report.outblob

    def _get_quote(self, report_data: bytes) -> bytes:
        if self.in_flight:
            self.in_flight -= 1
            fail(errno.EBUSY)
        if len(report_data) != 64:
            fail(errno.EINVAL)
        what = self.host.pop(0) if self.host else Host.ANSWERS
        self.clock.now += 30 if what in {Host.SILENT, Host.LAST_MOMENT} else 1
        if what in {Host.SILENT, Host.SIGNAL}:
            self.in_flight = self.held
        if what is Host.REFUSES_CALL:
            fail(errno.EIO)
        if what is Host.LAST_MOMENT:
            fail(errno.ETIMEDOUT)
        if what is Host.SIGNAL:
            fail(errno.EINTR)
        if what in {Host.REFUSES_QUOTE, Host.SILENT}:
            if self.checks_status:
                fail(errno.EIO)
            return b""
        answer = self.quote(report_data)
        if len(answer) > self.buffer:
            fail(errno.EFBIG)
        return answer

    def _enter(self, operation: str, name: str) -> None:
        self.log.append(operation)
        if self.hooks.get(operation):
            self.hooks[operation].pop(0)(self, name)

    def _report(self, name: str) -> Report:
        if name not in self.reports:
            fail(errno.ENOENT)
        return self.reports[name]


def provider(fake: FakeTsm) -> TsmProvider:
    """The provider under test on this kernel, with its time."""
    fs: Fs = fake
    return TsmProvider(fs=fs, clock=fake.clock, sleep=fake.clock.sleep)


Hook = Callable[[FakeTsm, str], None]


def fail(number: int) -> NoReturn:
    raise OSError(number, os.strerror(number))


def failing(number: int) -> Hook:
    """A hook that fails."""

    def hook(_: FakeTsm, __: str) -> None:
        fail(number)

    return hook


def writing(data: bytes) -> Hook:
    """A hook in which another program writes report data to the folder."""

    def hook(fake: FakeTsm, name: str) -> None:
        fake.commit(name, data)

    return hook


def unloading(fake: FakeTsm, _: str) -> None:
    """A hook in which the module goes away."""
    fake.provider = None


def removing(fake: FakeTsm, name: str) -> None:
    """A hook in which another program removes the folder."""
    del fake.reports[name]


def passing(_: FakeTsm, __: str) -> None:
    """A hook that does nothing."""
