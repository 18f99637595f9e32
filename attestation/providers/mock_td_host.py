"""The host's end of the virtual TDX: measures what an emulator was started with, and quotes it.

QEMU connects when it starts, before it boots. Who it is comes from the kernel (SO_PEERCRED), what
it was started with from /proc; a guest has no say in either. It is measured then, from the files
themselves, and once: what happens to them later is not what the guest runs.
"""

import os
import socket
import struct
from collections import OrderedDict
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from socketserver import BaseRequestHandler, ThreadingUnixStreamServer
from threading import BoundedSemaphore, Lock, Thread
from types import TracebackType
from typing import Any, Self

from attestation.errors import AttestationError, FileUnreadable
from attestation.files import read_file
from attestation.providers.mock import MockQuoteService, MockTee
from attestation.providers.mock_td import (
    LEAD,
    MAX_TEXT,
    NONCE_SIZE,
    QUOTED,
    REFUSED,
    REQUEST_SIZE,
)
from attestation.providers.mock_td_launch import Launch, shown
from attestation.quote import Quote

MAX_GUESTS = 64
MAX_CACHED = 16
MAX_FIRMWARE = 64 << 20
MAX_UKI = 1 << 30


@dataclass(frozen=True, slots=True)
class Guest:
    """An emulated guest: how it was launched, and the service that quotes it."""

    launch: Launch
    service: MockQuoteService

    def __str__(self) -> str:
        body = Quote.parse(self.service.quote(bytes(64))).body
        return (
            f"firmware {shown(self.launch.firmware)}, image {shown(self.launch.uki)}, "
            f"mr_td {body.mr_td.hex()}, mrconfigid {body.mr_config_id.hex()}"
        )


class Measurer:
    """Measures guests: those of the same files and MRCONFIGID once."""

    def __init__(self, tee: MockTee) -> None:
        self._tee = tee
        self._lock = Lock()
        self._known: OrderedDict[object, MockQuoteService] = OrderedDict()

    def guest(self, launch: Launch) -> Guest:
        """Measure it. Raises FileError, and as `MockQuoteService` does."""
        key = (_identity(launch.firmware), _identity(launch.uki), launch.mr_config_id)
        with self._lock:
            service = self._known.pop(key, None) or MockQuoteService(
                self._tee,
                read_file(launch.firmware, MAX_FIRMWARE),
                read_file(launch.uki, MAX_UKI),
                mr_config_id=launch.mr_config_id,
            )
            self._known[key] = service
            if len(self._known) > MAX_CACHED:
                self._known.popitem(last=False)
        return Guest(launch, service)


class MockTdHost:
    """Serves guests at a unix socket; a context manager, or `serve`.

    `said` gets a line for each guest that connects, from a thread of its own. Only this user can
    connect. Raises FileUnreadable (`listen`) if it can't listen there.
    """

    def __init__(self, tee: MockTee, path: Path, said: Callable[[str], None]) -> None:
        self.measurer = Measurer(tee)
        self.said = said
        self._path = path
        self._thread: Thread | None = None
        _remove_stale(path)
        mask = os.umask(0o177)
        try:
            self._server = _Server(self, path)
        except OSError as error:
            raise FileUnreadable(
                f"can't listen at {path}: {error.strerror or error}",
                rule="listen",
                hint="give a short path, in a folder of yours, at which there is nothing yet",
            ) from error
        finally:
            os.umask(mask)

    def serve(self) -> None:
        """Serve in this thread until KeyboardInterrupt; then remove the socket."""
        try:
            self._server.serve_forever()
        finally:
            self.close()

    def close(self) -> None:
        """Stop listening, and remove the socket."""
        self._server.server_close()
        self._path.unlink(missing_ok=True)

    def __enter__(self) -> Self:
        self._thread = Thread(target=self._server.serve_forever, args=(0.05,))
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._server.shutdown()
        self.close()
        if self._thread is not None:
            self._thread.join()


def take(received: bytearray) -> tuple[bytes, bytes] | None:
    """Nonce and report data of the first request, which is removed with all before it.

    None as long as there is no whole request.
    """
    start = received.find(LEAD)
    if start < 0:
        # What may be the beginning of a request stays.
        del received[: max(0, len(received) - len(LEAD) + 1)]
        return None
    del received[:start]
    if len(received) < REQUEST_SIZE:
        return None
    body = bytes(received[len(LEAD) : REQUEST_SIZE])
    del received[:REQUEST_SIZE]
    return body[:NONCE_SIZE], body[NONCE_SIZE:]


def frame(nonce: bytes, status: int, content: bytes) -> bytes:
    """An answer as it travels."""
    body = nonce + bytes([status]) + content
    return struct.pack(">I", len(body)) + body


class _Server(ThreadingUnixStreamServer):
    daemon_threads = True
    request_queue_size = MAX_GUESTS

    def __init__(self, host: MockTdHost, path: Path) -> None:
        self.host = host
        self._free = BoundedSemaphore(MAX_GUESTS)
        super().__init__(str(path), _Handler)

    def process_request(self, request: Any, client_address: Any) -> None:
        if self._free.acquire(blocking=False):
            super().process_request(request, client_address)
        else:
            self.host.said(f"one guest too many: there are {MAX_GUESTS}")
            self.shutdown_request(request)

    def process_request_thread(self, request: socket.socket | Any, client_address: Any) -> None:
        try:
            super().process_request_thread(request, client_address)
        finally:
            self._free.release()


class _Handler(BaseRequestHandler):
    server: _Server

    def handle(self) -> None:
        peer: socket.socket = self.request
        reply = self._reply(peer)
        received = bytearray()
        # A guest may be switched off at any time.
        with suppress(ConnectionError):
            while data := peer.recv(4096):
                received += data
                while (request := take(received)) is not None:
                    nonce, report_data = request
                    peer.sendall(frame(nonce, *reply(report_data)))

    def _reply(self, peer: socket.socket) -> Callable[[bytes], tuple[int, bytes]]:
        """What answers this guest's report data: a quote, or why there is none."""
        host = self.server.host
        credentials = peer.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12)
        pid = int(struct.unpack("3i", credentials)[0])
        try:
            guest = host.measurer.guest(Launch.of(pid))
        except AttestationError as error:
            why = f"{error.rule}: {error}"
            host.said(f"guest {pid}: refused: {shown(why)}")
            refusal = REFUSED, why.encode(errors="replace")[:MAX_TEXT]
            return lambda _: refusal
        host.said(f"guest {pid}: {guest}")
        return lambda report_data: (QUOTED, guest.service.quote(report_data))


def _identity(path: Path) -> tuple[int, int, int, int]:
    try:
        found = path.stat()
    except OSError as error:
        raise FileUnreadable(
            f"can't read {path}: {error.strerror}",
            rule="file.read",
            hint="check the path and its permissions",
        ) from error
    return found.st_dev, found.st_ino, found.st_mtime_ns, found.st_size


def _remove_stale(path: Path) -> None:
    """Remove a socket that nobody listens at, as a crash leaves it behind."""
    with socket.socket(socket.AF_UNIX) as probe, suppress(OSError):
        try:
            probe.connect(str(path))
        except ConnectionRefusedError:
            # A file that is no socket refuses as well.
            if path.is_socket():
                path.unlink()
