"""A real software TPM: swtpm on two neighbouring ports of this machine, its state in a folder."""

from __future__ import annotations

import contextlib
import shutil
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from attestation.seal.tpm2_device import Device, Tpm

START_SECONDS = 20
HEADER = 10  # tag, size, code
LOCAL = "127.0.0.1"


def missing() -> str | None:
    """Why there can be no software TPM here."""
    if shutil.which("swtpm") is None:
        return "there is no swtpm (the tox environment `tpm` has one)"
    try:
        import tpm2_pytss  # noqa: F401, PLC0415
    except (ImportError, NotImplementedError) as error:
        return f"there is no tpm2-pytss (the tox environment `tpm` has it): {error}"
    return None


def listeners() -> tuple[socket.socket, socket.socket]:
    """Two listening sockets on ports n and n + 1: swtpm's convention for commands and control."""
    while True:
        first = socket.create_server((LOCAL, 0))
        port = first.getsockname()[1]
        try:
            return first, socket.create_server((LOCAL, port + 1))
        except (OSError, OverflowError):
            first.close()


@dataclass
class Swtpm:
    """A machine with this TPM, on while `powered` runs."""

    folder: Path
    port: int = 0
    process: subprocess.Popen[bytes] | None = None

    @contextmanager
    def powered(self) -> Iterator[Swtpm]:
        (self.folder / "state").mkdir(parents=True)
        try:
            self._on()
            yield self
        finally:
            self._off()

    @property
    def tcti(self) -> str:
        return f"swtpm:host={LOCAL},port={self.port}"

    @property
    def device(self) -> Device:
        return self

    def connect(self) -> AbstractContextManager[Tpm]:
        """As `Device.connect`: a TPM that was restarted has other ports."""
        from attestation.seal._esys import Esys  # noqa: PLC0415

        return Esys(self.tcti).connect()

    def _on(self) -> None:
        until = time.monotonic() + START_SECONDS
        while not self._started():
            # The ports were free a moment ago; another program may have been faster.
            assert time.monotonic() < until, (self.folder / "log").read_text("utf-8", "replace")

    def _started(self) -> bool:
        pair = listeners()
        self.port = pair[0].getsockname()[1]
        for each in pair:
            each.close()
        command = ["swtpm", "socket", "--tpm2", "--tpmstate", f"dir={self.folder / 'state'}"]
        command += ["--server", f"type=tcp,port={self.port}"]
        command += ["--ctrl", f"type=tcp,port={self.port + 1}"]
        command += ["--flags", "not-need-init,startup-clear"]
        with (self.folder / "log").open("ab") as log:
            self.process = subprocess.Popen(command, stdout=log, stderr=log)
        while self.process.poll() is None:
            try:
                # It opens the port for commands last.
                socket.create_connection((LOCAL, self.port), 1).close()
            except OSError:
                time.sleep(0.02)
            else:
                return True
        return False

    def _off(self) -> None:
        if self.process is not None:
            # A power cut: what was counted must have been kept by then.
            self.process.kill()
            self.process.wait()
            self.process = None

    def restart(self) -> None:
        self._off()
        self._on()

    @contextmanager
    def raw(self) -> Iterator[Any]:
        """The TPM as anyone who can open its device sees it."""
        from tpm2_pytss import ESAPI  # noqa: PLC0415

        with ESAPI(self.tcti) as context:
            yield context

    def extend(self, pcr: int) -> None:
        from tpm2_pytss import ESYS_TR  # noqa: PLC0415

        with self.raw() as context:
            context.pcr_event(ESYS_TR.PCR0 + pcr, b"something else was started")

    def clear(self) -> None:
        from tpm2_pytss import ESYS_TR  # noqa: PLC0415

        with self.raw() as context:
            context.clear(ESYS_TR.LOCKOUT)

    def undefine(self, index: int) -> None:
        with self.raw() as context:
            context.nv_undefine_space(context.tr_from_tpmpublic(index))

    def occupy(self, index: int) -> None:
        import tpm2_pytss as tss  # noqa: PLC0415

        public = tss.TPMS_NV_PUBLIC(
            nvIndex=index,
            nameAlg=tss.TPM2_ALG.SHA256,
            attributes=tss.TPMA_NV.OWNERWRITE | tss.TPMA_NV.OWNERREAD | tss.TPMA_NV.AUTHREAD,
            dataSize=8,
        )
        with self.raw() as context:
            context.nv_define_space(b"", tss.TPM2B_NV_PUBLIC(nvPublic=public))

    def saved(self) -> Callable[[], None]:
        kept = self.folder / "kept"
        self._off()
        shutil.copytree(self.folder / "state", kept)
        self._on()

        def restore() -> None:
            self._off()
            shutil.rmtree(self.folder / "state")
            kept.rename(self.folder / "state")
            self._on()

        return restore

    def loaded(self) -> int:
        import tpm2_pytss as tss  # noqa: PLC0415

        count = 0
        with self.raw() as context:
            for first in (tss.TPM2_HC.TRANSIENT_FIRST, 0x02000000, 0x03000000):
                _, found = context.get_capability(tss.TPM2_CAP.HANDLES, first, 254)
                count += len(found.data.handles)
        return count


def _exactly(source: socket.socket, count: int) -> bytes:
    data = b""
    while len(data) < count:
        more = source.recv(count - len(data))
        if not more:
            raise ConnectionError
        data += more
    return data


def _message(source: socket.socket) -> bytes:
    header = _exactly(source, HEADER)
    return header + _exactly(source, int.from_bytes(header[2:6], "big") - HEADER)


def _unaltered(_command: bytes, answer: bytes) -> bytes:
    return answer


@dataclass
class Bus:
    """Somebody between a machine and its TPM, who notes every byte, and alters what he likes."""

    tpm: Swtpm
    alter: Callable[[bytes, bytes], bytes] = _unaltered
    port: int = 0
    exchanges: list[tuple[bytes, bytes]] = field(default_factory=list)
    _threads: list[threading.Thread] = field(default_factory=list)
    _sockets: list[socket.socket] = field(default_factory=list)

    @property
    def tcti(self) -> str:
        return f"swtpm:host={LOCAL},port={self.port}"

    @property
    def seen(self) -> bytes:
        """All commands and answers."""
        return b"".join(command + answer for command, answer in self.exchanges)

    @contextmanager
    def tapped(self) -> Iterator[Bus]:
        commands, control = listeners()
        self.port = commands.getsockname()[1]
        try:
            self._serve(commands, self.tpm.port, self._relay)
            self._serve(control, self.tpm.port + 1, self._pump)
            yield self
        finally:
            for each in (commands, control, *self._sockets):
                with contextlib.suppress(OSError):
                    each.shutdown(socket.SHUT_RDWR)
                each.close()
            for thread in self._threads:
                thread.join(10)
                assert not thread.is_alive()

    def _serve(
        self,
        listener: socket.socket,
        port: int,
        handle: Callable[[socket.socket, socket.socket], None],
    ) -> None:
        def accept() -> None:
            with contextlib.suppress(OSError):
                while True:
                    near, _ = listener.accept()
                    far = socket.create_connection((LOCAL, port))
                    self._sockets += [near, far]
                    self._start(partial(self._until_closed, handle, near, far))

        self._start(accept)

    def _start(self, target: Callable[[], None]) -> None:
        thread = threading.Thread(target=target)
        self._threads.append(thread)
        thread.start()

    def _until_closed(
        self,
        handle: Callable[[socket.socket, socket.socket], None],
        near: socket.socket,
        far: socket.socket,
    ) -> None:
        with near, far, contextlib.suppress(OSError):
            handle(near, far)

    def _relay(self, near: socket.socket, far: socket.socket) -> None:
        while True:
            command = _message(near)
            far.sendall(command)
            answer = _message(far)
            self.exchanges.append((command, answer))
            near.sendall(self.alter(command, answer))

    def _pump(self, near: socket.socket, far: socket.socket) -> None:
        def back() -> None:
            with contextlib.suppress(OSError):
                while data := far.recv(4096):
                    near.sendall(data)

        self._start(back)
        while data := near.recv(4096):
            far.sendall(data)
        far.shutdown(socket.SHUT_WR)
