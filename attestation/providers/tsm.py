"""Quotes through configfs-tsm, the kernel's report interface (Linux >= 6.7).

One request is one folder below `/sys/kernel/config/tsm/report`: write `inblob`, read `outblob`,
remove the folder. Source: Documentation/ABI/testing/configfs-tsm-report, and for what that text
leaves out fs/configfs/file.c, drivers/virt/coco/guest/report.c, drivers/virt/coco/tdx-guest:

* `inblob` takes effect at close(), whose result is lost: only `generation` tells that it did.
* mkdir() ignores its mode; the folder is 0755 until chmod().
* Before the kernel looked at the status of GetQuote, a failed request, and one that got no answer
  in 30 seconds, both read as an empty `outblob`.
* One request at a time: the others wait in the kernel, for as long as a quote takes (seconds).
"""

import errno
import os
import re
import secrets
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from attestation.errors import ProviderAbsent, ProviderError, ProviderFailed, QuoteFormatError
from attestation.quote import MIN_BYTES, Quote

REPORTS = Path("/sys/kernel/config/tsm/report")
PROVIDER = "tdx_guest"
REPORT_DATA_SIZE = 64

# The largest buffer that any kernel gives GetQuote. `Quote.parse` is stricter.
MAX_OUTBLOB = 128 << 10
# The kernel looks for an answer once a second: asking more often gains nothing.
RETRY_SECONDS = 1.0
# For how long the kernel waits for an answer. When it gives up it seldom says ETIMEDOUT: its count
# is off by one, so the read ends empty (or with EIO where the kernel looks at the status).
KERNEL_TIMEOUT_SECONDS = 30.0
# Three times the kernel's own, and a bit.
PATIENCE_SECONDS = 100.0
# A new folder with a new name each time: a writer that follows through all of them is no accident.
MAX_RACES = 3

_MAX_TEXT = 4096
_GENERATION = re.compile(rb"([0-9]{1,20})\n?")


class Fs(Protocol):
    """The four operations on configfs that a request needs. They raise OSError as the kernel does.

    `name` is a folder below the reports, `attribute` a file in it.
    """

    def mkdir(self, name: str) -> None:
        """Make the folder, closed to other users."""
        ...

    def rmdir(self, name: str) -> None:
        """Remove the folder; its attributes are no obstacle."""
        ...

    def write(self, name: str, attribute: str, data: bytes) -> None:
        """Open, write everything at once, close."""
        ...

    def read(self, name: str, attribute: str, limit: int) -> bytes:
        """Open, read to the end but at most `limit` bytes, close."""
        ...


@dataclass(frozen=True, slots=True)
class RealFs:
    """The kernel's configfs."""

    reports: Path = REPORTS

    def mkdir(self, name: str) -> None:
        """As `Fs.mkdir`."""
        folder = self.reports / name
        folder.mkdir(mode=0o700)
        try:
            folder.chmod(0o700)
        except OSError:
            folder.rmdir()
            raise

    def rmdir(self, name: str) -> None:
        """As `Fs.rmdir`."""
        (self.reports / name).rmdir()

    def write(self, name: str, attribute: str, data: bytes) -> None:
        """As `Fs.write`, in one system call: each of several would be a request of its own."""
        # Neither O_TRUNC nor O_RDWR: `inblob` is write-only and has no size.
        file = os.open(self.reports / name / attribute, os.O_WRONLY | os.O_CLOEXEC)
        try:
            written = os.write(file, data)
        finally:
            os.close(file)
        if written != len(data):
            raise OSError(errno.EINVAL, f"{written} of {len(data)} bytes written")

    def read(self, name: str, attribute: str, limit: int) -> bytes:
        """As `Fs.read`."""
        with (self.reports / name / attribute).open("rb", buffering=0) as file:
            data = b""
            while len(data) < limit and (more := file.read(limit - len(data))):
                data += more
            return data


def _random_name() -> str:
    return f"attestation-{secrets.token_hex(16)}"


@dataclass(frozen=True, slots=True)
class TsmProvider:
    """Quotes about the TD that this process runs in.

    It keeps no state: threads may share it. A quote takes about a second, and the kernel makes one
    at a time, so quote per ticket, not per connection, and outside the event loop.
    """

    fs: Fs = field(default_factory=RealFs)
    clock: Callable[[], float] = time.monotonic
    sleep: Callable[[float], None] = time.sleep
    new_name: Callable[[], str] = _random_name
    patience: float = PATIENCE_SECONDS

    def quote(self, report_data: bytes) -> bytes:
        """A quote that carries these 64 bytes, without the zero bytes that may follow it.

        What passes by itself (a request in flight, a signal, no answer) is tried again for
        `patience` seconds, a race for the folder up to MAX_RACES times.

        Raises ProviderAbsent, ProviderFailed; `rule` names what went wrong.
        """
        if len(report_data) != REPORT_DATA_SIZE:
            raise ProviderFailed(
                "report data has the wrong size",
                expected=f"{REPORT_DATA_SIZE} bytes",
                got=f"{len(report_data)} bytes",
                rule="tsm.report-data-size",
                hint="hash what the quote shall vouch for, for example with SHA-512",
            )
        deadline = self.clock() + self.patience
        races = 0
        while True:
            try:
                return self._attempt(report_data)
            except ProviderFailed as error:
                races += error.rule in _RACES
                if error.rule not in _PASSING | _RACES or races == MAX_RACES:
                    raise
                if self.clock() + RETRY_SECONDS > deadline:
                    raise ProviderFailed(
                        f"{error.message}, and still after {self.patience:g} seconds",
                        expected=error.expected,
                        got=error.got,
                        rule=error.rule,
                        hint=error.hint,
                    ) from error
            self.sleep(RETRY_SECONDS)

    def _attempt(self, report_data: bytes) -> bytes:
        with self._folder() as name:
            self._check_provider(name)
            before = self._generation(name)
            with _explained("write"):
                self.fs.write(name, "inblob", report_data)
            if self._generation(name) == before:
                raise ProviderFailed(
                    "the kernel did not take the report data",
                    expected=f"generation {before + 1}",
                    got=f"generation {before}",
                    rule="tsm.write-lost",
                    hint="look in the kernel log; restart the guest if it happens again",
                )
            blob, failure = self._outblob(name)
            # Before a failure is believed: another's write can be its cause.
            after = self._generation(name)
            if after != before + 1:
                raise ProviderFailed(
                    "another program wrote to the folder of this request",
                    expected=f"generation {before + 1}",
                    got=f"generation {after}",
                    rule="tsm.generation-race",
                    hint=f"find the program that writes to folders of others in {REPORTS}",
                ) from failure
            if failure is not None:
                raise failure
        return _checked(blob, report_data)

    def _outblob(self, name: str) -> tuple[bytes, ProviderError | None]:
        """The content of `outblob`, or why there is none."""
        started = self.clock()
        blob, failure = b"", None
        try:
            with _explained("read"):
                blob = self.fs.read(name, "outblob", MAX_OUTBLOB + 1)
        except ProviderError as error:
            failure = error
        nothing = not blob if failure is None else failure.rule == _HYPERCALL.rule
        if nothing and self.clock() - started >= KERNEL_TIMEOUT_SECONDS:
            failure = _NO_ANSWER.failure("nothing from read")
        return blob, failure

    @contextmanager
    def _folder(self) -> Iterator[str]:
        """A new folder, which is gone afterwards, whatever happens."""
        name = self.new_name()
        with _explained("mkdir"):
            self.fs.mkdir(name)
        try:
            yield name
        except BaseException as error:
            # The first error is the one to know.
            try:
                self.fs.rmdir(name)
            except OSError as second:
                error.add_note(f"could not remove the folder {name}: {second}")
            raise
        with _explained("rmdir"):
            self.fs.rmdir(name)

    def _check_provider(self, name: str) -> None:
        got = self._text(name, "provider")
        if got != PROVIDER.encode() + b"\n":
            raise ProviderAbsent(
                "the kernel's report provider is not that of TDX",
                expected=PROVIDER,
                got=_shown(got),
                rule="tsm.other-provider",
                hint="run this in an Intel TDX guest; other kinds of guest are not supported",
            )

    def _generation(self, name: str) -> int:
        text = self._text(name, "generation")
        match = _GENERATION.fullmatch(text)
        if match is None:
            raise ProviderFailed(
                "the generation of a report is not a number",
                expected="decimal digits",
                got=_shown(text),
                rule="tsm.generation-format",
                hint=f"check that {REPORTS} is the kernel's own configfs",
            )
        return int(match[1])

    def _text(self, name: str, attribute: str) -> bytes:
        with _explained("read"):
            return self.fs.read(name, attribute, _MAX_TEXT)


def _checked(blob: bytes, report_data: bytes) -> bytes:
    """The quote in an `outblob`."""
    if len(blob) > MAX_OUTBLOB:
        raise ProviderFailed(
            "the quote is larger than any quote",
            expected=f"at most {MAX_OUTBLOB} bytes",
            rule="tsm.oversized",
            hint="update the quoting service of the host",
        )
    # The buffer starts out as zeros: those alone are an answer that was never written.
    if len(blob.rstrip(b"\0")) < MIN_BYTES:
        raise ProviderFailed(
            "the kernel gave an empty or incomplete quote: the host made none",
            expected=f"at least {MIN_BYTES} bytes",
            got=f"{len(blob)} bytes" + (" of zeros" if blob and not any(blob) else ""),
            rule="tsm.empty-quote",
            hint=(
                "on the host: start QEMU with quote-generation-socket in its tdx-guest object, "
                "use a quoting service (QGS) of DCAP 1.21 or later, and look in its log: "
                "it may have failed, or not answered within 30 seconds"
            ),
        )
    try:
        quote = Quote.parse(blob)
    except QuoteFormatError as error:
        raise ProviderFailed(
            "what the host returned is no TDX quote",
            expected="a quote of version 4 or 5",
            got=f"{len(blob)} bytes that break {error.rule} ({error})",
            rule="tsm.no-quote",
            hint="check that the host runs Intel's quoting service with the ECDSA quoting enclave",
        ) from error
    if quote.body.report_data != report_data:
        raise ProviderFailed(
            "the quote is about other report data",
            expected=report_data.hex(),
            got=quote.body.report_data.hex(),
            rule="tsm.report-data",
            hint="the host returned another request's quote; restart its quoting service",
        )
    return quote.canonical


@dataclass(frozen=True, slots=True)
class _Cause:
    """What an error of the kernel means."""

    rule: str
    message: str
    hint: str
    kind: type[ProviderError] = ProviderFailed

    def failure(self, got: str) -> ProviderError:
        return self.kind(self.message, got=got, rule=self.rule, hint=self.hint)


_PERMISSION = _Cause(
    "tsm.permission",
    "this process may not ask the kernel for quotes",
    f"run as root, with {REPORTS} writable (containers often hide it or mount it read-only)",
)
_HYPERCALL = _Cause(
    "tsm.hypercall",
    "the hypervisor or the quoting service of the host refused the request",
    "on the host: look in the logs of QEMU and of the quoting service (QGS), and check "
    "quote-generation-socket",
)
_NO_ANSWER = _Cause(
    "tsm.no-answer",
    f"the host did not answer within {KERNEL_TIMEOUT_SECONDS:g} seconds",
    "on the host: check that the quoting service (QGS) runs and reaches its certificate cache",
)
_CLEANUP = _Cause(
    "tsm.cleanup",
    "the folder of this request could not be removed",
    f"remove the folders attestation-* in {REPORTS}: each holds kernel memory",
)
_UNKNOWN = _Cause("tsm.kernel", "the kernel refused the request", "look in the kernel log")
# By the step that failed, then for all steps.
_CAUSES: dict[tuple[str, int], _Cause] = {
    ("mkdir", errno.ENOENT): _Cause(
        "tsm.no-configfs",
        "this machine has no configfs-tsm, so it is no TDX guest or its kernel is too old",
        "run this in a TDX guest with Linux 6.7 or later, configfs mounted on /sys/kernel/config "
        "and the module tdx_guest loaded",
        ProviderAbsent,
    ),
    ("mkdir", errno.ENXIO): _Cause(
        "tsm.no-provider",
        "the kernel has configfs-tsm, but nothing that makes quotes",
        "run this in a TDX guest, and load the module tdx_guest (modprobe tdx_guest)",
        ProviderAbsent,
    ),
    ("write", errno.EFBIG): _Cause(
        "tsm.report-data-refused",
        f"the kernel takes no {REPORT_DATA_SIZE} bytes of report data",
        "update the kernel of the guest",
    ),
}
_CAUSES_ANYWHERE: dict[int, _Cause] = {
    errno.EACCES: _PERMISSION,
    errno.EPERM: _PERMISSION,
    errno.EROFS: _PERMISSION,
    errno.ENOENT: _Cause(
        "tsm.folder-gone",
        "the folder of this request vanished",
        f"find the program that removes folders of others in {REPORTS}",
    ),
    errno.ENXIO: _Cause(
        "tsm.provider-gone",
        "the kernel's quote provider went away during the request",
        "load the module tdx_guest (modprobe tdx_guest), and see who unloaded it",
    ),
    errno.EINVAL: _Cause(
        "tsm.inblob",
        "the kernel found no valid report data in the request",
        f"TDX takes exactly {REPORT_DATA_SIZE} bytes in one write; look in the kernel log",
    ),
    errno.EIO: _HYPERCALL,
    errno.EFBIG: _Cause(
        "tsm.oversized",
        "the quote is larger than the kernel's buffer",
        "update the kernel of the guest: the certificates of this platform need a larger buffer",
    ),
    errno.EBUSY: _Cause(
        "tsm.busy",
        "an earlier request is still with the host",
        "on the host: check that the quoting service (QGS) answers, and restart it",
    ),
    errno.EINTR: _Cause(
        "tsm.interrupted",
        "signals interrupted the request",
        "find out who keeps signalling this process",
    ),
    errno.ETIMEDOUT: _NO_ANSWER,
}
_PASSING = frozenset({"tsm.busy", "tsm.interrupted", "tsm.no-answer"})
_RACES = frozenset({"tsm.generation-race", "tsm.write-lost"})


@contextmanager
def _explained(step: str) -> Iterator[None]:
    """Turn an OSError of this step into an error of ours."""
    try:
        yield
    except OSError as error:
        number = error.errno or 0
        cause = _CAUSES.get((step, number)) or _CAUSES_ANYWHERE.get(number, _UNKNOWN)
        if step == "rmdir" and number != errno.ENOENT:
            cause = _CLEANUP
        raise cause.failure(f"{errno.errorcode.get(number, error)} from {step}") from error


def _shown(text: bytes) -> str:
    """At most 80 bytes of an attribute, printable."""
    return ascii(text[:80].decode("latin-1").rstrip("\n"))
