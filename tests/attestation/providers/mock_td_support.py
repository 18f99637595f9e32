"""A program that the virtual TDX takes for QEMU: it relays between its standard streams and it."""

import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from attestation.measure import firmware
from attestation.providers.mock_td import LEAD, NONCE_SIZE
from tests.attestation.measure import synthetic

# Its first line makes the kernel start it as a dynamic loader starts a program.
RELAY = """#!{loader}
import os, socket, sys, threading
peer = socket.socket(socket.AF_UNIX)
peer.connect(os.environ["MOCK_TD"])
def inwards():
    while data := os.read(0, 4096):
        peer.sendall(data)
    peer.shutdown(socket.SHUT_RDWR)
threading.Thread(target=inwards, daemon=True).start()
while data := peer.recv(4096):
    os.write(1, data)
"""


def files(folder: Path, cmdline: bytes = b"quiet") -> tuple[Path, Path]:
    """A bound firmware and its image, in a new folder."""
    folder.mkdir()
    uki = synthetic.uki({".cmdline": cmdline})
    (folder / "x.efi").write_bytes(uki)
    (folder / "x.fd").write_bytes(firmware.bind(synthetic.Firmware().build(), uki))
    return folder / "x.fd", folder / "x.efi"


def options(fd: Path | str, uki: Path | str, config: bytes) -> list[str]:
    """What QEMU is started with."""
    chardev = f"socket,id=mock-td-{config.hex()},path=x"
    return ["-nodefaults", "-bios", str(fd), "-kernel", str(uki), "-chardev", chardev]


class Qemu:
    """The running program."""

    def __init__(self, process: "subprocess.Popen[bytes]") -> None:
        self.process = process

    def send(self, data: bytes) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(data)
        self.process.stdin.flush()

    def receive(self) -> tuple[bytes, int, bytes]:
        """The next answer: nonce, status, content."""
        assert self.process.stdout is not None
        read = self.process.stdout.read
        body = read(int.from_bytes(read(4), "big"))
        return body[:NONCE_SIZE], body[NONCE_SIZE], body[NONCE_SIZE + 1 :]

    def ask(self, nonce: bytes, report_data: bytes) -> tuple[bytes, int, bytes]:
        self.send(LEAD + nonce + report_data)
        return self.receive()


@contextmanager
def qemu(folder: Path, socket: Path, words: Sequence[str]) -> Iterator[Qemu]:
    """Start it in `folder`, connected to `socket`."""
    loader, program = folder / "ld-relay.so", folder / "qemu-system-x86_64"
    if not program.exists():
        loader.symlink_to(sys.executable)
        program.write_text(RELAY.format(loader=loader))
        program.chmod(0o755)
    process = subprocess.Popen(
        [program, *words],
        cwd=folder,
        env=os.environ | {"MOCK_TD": str(socket)},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    with process:
        try:
            yield Qemu(process)
        finally:
            process.kill()
