"""The machine itself, for the checks of the doctor: thin, bounded, and without a trace."""

import asyncio
import os
import platform
import shutil
import signal
import socket
import stat
import subprocess
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from pathlib import Path
from threading import Timer

import httpx

from attestation.providers import QuoteProvider
from attestation.providers.registers import Registers, read_registers
from attestation.providers.tsm import TsmProvider

# The kernel waits up to 30 seconds for one answer: the doctor gives it one chance.
PATIENCE_SECONDS = 10.0
RUN_SECONDS = 5.0
CONNECT_SECONDS = 3.0
HTTP_SECONDS = 8.0

_MAX_OUTPUT = 64 << 10
# VMADDR_CID_LOCAL of linux/vm_sockets.h: on a host the same service as CID 2, which QEMU names,
# but never the one of a machine below.
_CID_LOCAL = 1


def _provider() -> QuoteProvider:
    return TsmProvider(patience=PATIENCE_SECONDS)


@dataclass(frozen=True, slots=True)
class RealSystem:
    """This machine; see `attestation.doctor.System`."""

    provider: QuoteProvider = field(default_factory=_provider)

    def read(self, path: str, limit: int) -> bytes:
        """As `System.read`; a pipe or socket reads as nothing."""
        # Not blocking: what should be a file may be a pipe without a writer.
        handle = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        with open(handle, "rb", buffering=0) as file:  # noqa: PTH123  # of a handle
            data = b""
            while len(data) < limit and (more := file.read(limit - len(data))):
                data += more
            return data

    def exists(self, path: str) -> bool:
        """As `System.exists`."""
        return os.path.lexists(path)

    def open_device(self, path: str) -> None:
        """As `System.open_device`."""
        if not stat.S_ISCHR(Path(path).stat().st_mode):
            raise OSError(f"{path} is no character device")
        os.close(os.open(path, os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC))

    def release(self) -> str:
        """As `System.release`."""
        return platform.release()

    def quote(self, report_data: bytes) -> bytes:
        """As `System.quote`."""
        return self.provider.quote(report_data)

    def registers(self) -> Registers:
        """As `System.registers`."""
        return read_registers()

    def now(self) -> datetime:
        """As `System.now`."""
        return datetime.now(UTC)

    def built(self) -> datetime:
        """As `System.built`: the time of this file."""
        return datetime.fromtimestamp(Path(__file__).stat().st_mtime, UTC)

    def http_date(self, url: str) -> datetime:
        """As `System.http_date`."""
        try:
            return asyncio.run(asyncio.wait_for(_date(url), HTTP_SECONDS))
        except (TimeoutError, httpx.TimeoutException) as error:
            raise TimeoutError(f"no answer in {HTTP_SECONDS:g} seconds") from error
        except (httpx.HTTPError, httpx.InvalidURL, ValueError, OverflowError) as error:
            raise OSError(f"{error}" or type(error).__name__) from error

    def connect_vsock(self, port: int) -> None:
        """As `System.connect_vsock`."""
        self._connect(socket.AF_VSOCK, (_CID_LOCAL, port))

    def connect_unix(self, path: str) -> None:
        """As `System.connect_unix`."""
        self._connect(socket.AF_UNIX, path)

    def qemu(self) -> str | None:
        """As `System.qemu`."""
        return shutil.which(os.environ.get("QEMU") or "qemu-system-x86_64")

    def run(self, command: Sequence[str]) -> str:
        """As `System.run`."""
        with subprocess.Popen(
            list(command),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            env={"PATH": os.defpath, "LC_ALL": "C"},
            start_new_session=True,
        ) as process:
            # Started with the session as its group: what it started ends with it.
            timer = Timer(RUN_SECONDS, _kill, [process.pid])
            timer.start()
            try:
                assert process.stdout is not None
                output = process.stdout.read(_MAX_OUTPUT)
            finally:
                timer.cancel()
                _kill(process.pid)
        return output.decode("utf-8", "replace")

    def _connect(self, family: int, address: tuple[int, int] | str) -> None:
        with socket.socket(family, socket.SOCK_STREAM) as connection:
            connection.settimeout(CONNECT_SECONDS)
            connection.connect(address)


def _kill(group: int) -> None:
    with suppress(ProcessLookupError):
        os.killpg(group, signal.SIGKILL)


async def _date(url: str) -> datetime:
    # Without a right clock no certificate holds, and nothing but the clock is judged by the answer.
    async with httpx.AsyncClient(
        verify=False,  # noqa: S501  # see above
        trust_env=False,
        timeout=HTTP_SECONDS,
    ) as client:
        # A path or a password is nothing to show to who can't prove his name.
        origin = httpx.URL(url).copy_with(userinfo=b"", raw_path=b"/", fragment=None)
        answer = await client.head(origin)
    when = parsedate_to_datetime(answer.headers.get("Date", ""))
    return (when if when.tzinfo is not None else when.replace(tzinfo=UTC)).astimezone(UTC)
