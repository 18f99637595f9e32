"""Quotes of an emulated guest, from the service that takes the place of TDX on its host.

The way there is a port of a virtio serial device (Documentation/ABI/testing/sysfs-class-virtio-
ports, drivers/char/virtio_console.c); `mock_td_host` is the other end. On the wire everything is
u32 big-endian length ‖ body. A request's body is MAGIC ‖ nonce ‖ report data, an answer's body
nonce ‖ 0 ‖ quote, or nonce ‖ 1 ‖ text that says why there is none.

The port outlives the programs that use it: what an earlier one left unread, or half written, must
not be taken for ours. So a request comes after IDLE bytes, which complete any broken one, and an
answer is found by its nonce.

Such quotes prove nothing to anyone who doesn't trust the host. No production image holds this.
"""

import errno
import os
import secrets
import select
import struct
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from attestation.errors import ProviderAbsent, ProviderFailed

PORT_NAME = "org.zipnet.mock-td"
MAGIC = b"mock-td\1"
NONCE_SIZE = 16
REPORT_DATA_SIZE = 64
LEAD = struct.pack(">I", len(MAGIC) + NONCE_SIZE + REPORT_DATA_SIZE) + MAGIC
REQUEST_SIZE = len(LEAD) + NONCE_SIZE + REPORT_DATA_SIZE
IDLE = bytes(REQUEST_SIZE)
QUOTED, REFUSED = 0, 1
# A quote of the mock has 5 kB.
MAX_ANSWER = 64 << 10
MAX_TEXT = 1000
PATIENCE_SECONDS = 30.0
RETRY_SECONDS = 0.1

_LENGTH = 4
_RUN_QEMU = "on the host: start the guest with `run-qemu --emulate --mock-td SOCKET`"


def find_port(root: Path = Path("/")) -> Path | None:
    """The device of the port below `root`, or None where the machine has no such port."""
    for folder in sorted((root / "sys/class/virtio-ports").glob("*")):
        try:
            with (folder / "name").open("rb") as file:
                name = file.read(len(PORT_NAME) + 2)
        except OSError:
            continue  # a port without a name, or one that just went away
        if name.rstrip(b"\n") == PORT_NAME.encode():
            return root / "dev" / folder.name
    return None


def answer(received: bytes, nonce: bytes) -> tuple[int, bytes] | None:
    """Status and content of the answer with this nonce; None as long as it is not complete.

    Whatever stands before it is skipped. Raises ProviderFailed (`mock-td.answer`).
    """
    found = received.find(nonce)
    if found < 0:
        return None
    size = int.from_bytes(received[max(0, found - _LENGTH) : found], "big")
    if found < _LENGTH or not NONCE_SIZE < size <= MAX_ANSWER:
        raise _no_answer(f"{size} bytes")
    body = received[found : found + size]
    if len(body) < size:
        return None
    status = body[NONCE_SIZE]
    if status not in (QUOTED, REFUSED):
        raise _no_answer(f"status {status}")
    return status, body[NONCE_SIZE + 1 :]


@dataclass(frozen=True, slots=True)
class MockTdProvider:
    """Quotes about the emulated guest that this process runs in, through `port` (`find_port`).

    It keeps no state: threads may share it. The kernel lets one at a time have the port; the
    others wait their turn.
    """

    port: Path
    patience: float = PATIENCE_SECONDS
    clock: Callable[[], float] = time.monotonic
    sleep: Callable[[float], None] = time.sleep
    draw: Callable[[int], bytes] = secrets.token_bytes

    def quote(self, report_data: bytes) -> bytes:
        """A quote that carries these 64 bytes, at the latest after `patience` seconds.

        Raises ProviderAbsent (`mock-td.no-port`); ProviderFailed with the rule `mock-td.busy`,
        `mock-td.port`, `mock-td.no-answer`, `mock-td.answer`, `mock-td.refused` or
        `mock-td.report-data-size`.
        """
        if len(report_data) != REPORT_DATA_SIZE:
            raise ProviderFailed(
                "report data has the wrong size",
                expected=f"{REPORT_DATA_SIZE} bytes",
                got=f"{len(report_data)} bytes",
                rule="mock-td.report-data-size",
                hint="hash what the quote shall vouch for, for example with SHA-512",
            )
        deadline = self.clock() + self.patience
        nonce = self.draw(NONCE_SIZE)
        with self._opened(deadline) as port:
            unsent = IDLE + LEAD + nonce + report_data
            while unsent:
                self._wait(port, select.POLLOUT, deadline)
                unsent = unsent[_write(port, unsent) :]
            status, content = self._answer(port, nonce, deadline)
        if status == REFUSED:
            raise ProviderFailed(
                "the host gives this guest no quote",
                got=_printable(content),
                rule="mock-td.refused",
                hint="start the guest as run-qemu does; the log of `attestation mock-td` says more",
            )
        return content

    @contextmanager
    def _opened(self, deadline: float) -> Iterator[int]:
        while True:
            try:
                port = os.open(self.port, os.O_RDWR | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC)
                break
            except OSError as error:
                if error.errno != errno.EBUSY or self.clock() > deadline:
                    raise _unopened(self.port, error) from error
            self.sleep(RETRY_SECONDS)
        try:
            yield port
        except OSError as error:
            raise ProviderFailed(
                f"{self.port} failed: {error.strerror}",
                rule="mock-td.port",
                hint="look in the kernel log",
            ) from error
        finally:
            os.close(port)

    def _wait(self, port: int, event: int, deadline: float) -> None:
        """Until the port can be read or written."""
        poll = select.poll()
        poll.register(port, event)
        while (left := deadline - self.clock()) > 0:
            ready = poll.poll(left * 1000)
            if any(events & event for _, events in ready):
                return
            if ready:
                # The host is not connected, which passes if the guest has only just started.
                self.sleep(RETRY_SECONDS)
        raise ProviderFailed(
            f"the host did not answer within {self.patience:g} seconds",
            rule="mock-td.no-answer",
            hint="on the host: `attestation mock-td` must run for as long as the guest does",
        )

    def _answer(self, port: int, nonce: bytes, deadline: float) -> tuple[int, bytes]:
        received = b""
        while (found := answer(received, nonce)) is None:
            if nonce not in received:
                # What may be the beginning of our answer is all that is kept.
                received = received[-(_LENGTH + NONCE_SIZE - 1) :]
            self._wait(port, select.POLLIN, deadline)
            more = _read(port)
            if not more:
                self.sleep(RETRY_SECONDS)
            received += more
        return found


def _write(port: int, data: bytes) -> int:
    try:
        return os.write(port, data)
    except (BlockingIOError, InterruptedError):
        return 0


def _read(port: int) -> bytes:
    """What there is; nothing where the host is not connected."""
    try:
        return os.read(port, MAX_ANSWER)
    except (BlockingIOError, InterruptedError):
        return b""


def _unopened(port: Path, error: OSError) -> ProviderAbsent | ProviderFailed:
    if error.errno in (errno.ENOENT, errno.ENXIO, errno.ENODEV):
        return ProviderAbsent(
            f"there is no port {port}",
            expected=f"a virtio serial port named {PORT_NAME}",
            rule="mock-td.no-port",
            hint=_RUN_QEMU,
        )
    if error.errno == errno.EBUSY:
        return ProviderFailed(
            f"another program holds {port}",
            rule="mock-td.busy",
            hint="end it: one program at a time can ask for quotes",
        )
    return ProviderFailed(
        f"can't open {port}: {error.strerror}",
        rule="mock-td.port",
        hint="check that this process may read and write it",
    )


def _no_answer(got: str) -> ProviderFailed:
    return ProviderFailed(
        "the host's answer is none",
        expected=f"a status and at most {MAX_ANSWER} bytes",
        got=got,
        rule="mock-td.answer",
        hint="use `attestation mock-td` of the release that the image is of",
    )


def _printable(text: bytes) -> str:
    shown = text[:MAX_TEXT].decode("utf-8", "replace")
    return "".join(char if char.isprintable() else "?" for char in shown)
