"""Boots of an image's own kernel and initrd with a few files laid over them, on a plain VM.

An initrd can be several archives, unpacked in turn. So a test can put a witness beside what it
wants to know of, or in its place, without another build; the files below it are the built ones.
The image's firmware would refuse such an initrd, so it is not there.
"""

from __future__ import annotations

import json
import re
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from release.build import cpio
from release.build.emulator import Boot, watch
from release.build.process import started
from tests.image.conftest import Image, Toolbox, section, transcript

LIMIT = 180
UNITS = "usr/lib/systemd/system"
BESIDE, INSTEAD = "usr/lib/beside.py", "usr/lib/instead.py"
FACT = re.compile(r"^witness (\w+) (.*)")

Files = dict[str, tuple[int, bytes]]


def text(content: str) -> tuple[int, bytes]:
    """A file of an overlay."""
    return 0o100644, content.encode()


def link(target: str) -> tuple[int, bytes]:
    """A link of an overlay."""
    return 0o120777, target.encode()


def beside(source: str) -> Files:
    """A Python program that the system starts by itself, outside every sandbox, after networkd."""
    unit = f"""[Unit]
After=systemd-networkd.service
[Service]
Type=exec
ExecStart=/usr/bin/python3 -I /{BESIDE}
StandardOutput=tty
StandardError=tty
TTYPath=/dev/console
"""
    return {
        BESIDE: text(source),
        f"{UNITS}/witness.service": text(unit),
        f"{UNITS}/multi-user.target.wants": (0o040755, b""),
        f"{UNITS}/multi-user.target.wants/witness.service": link("../witness.service"),
    }


def instead(role: str, source: str) -> Files:
    """A Python program in the place of the role's own, in its sandbox."""
    folder = f"{UNITS}/zipnet-{role}@.service.d"
    change = f"[Service]\nExecStart=\nExecStart=/usr/lib/zipnet/bin/python3 -I /{INSTEAD}\n"
    return {
        INSTEAD: text(source),
        folder: (0o040755, b""),
        f"{folder}/witness.conf": text(change),
    }


def free_port() -> int:
    """A TCP port of this host that nothing listens at."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


@dataclass(slots=True)
class Guest:
    """A running guest: its serial port, and the host's port for each forwarded one of its own."""

    descriptor: int
    ports: dict[int, int]

    def until(self, pattern: str, limit: float = LIMIT) -> Boot:
        """Wait for a line; fails without it. What came with it is lost for the next call."""
        boot = watch(self.descriptor, re.compile(pattern), time.monotonic(), limit)
        assert boot.matched is not None, transcript(boot)
        return boot


@contextmanager
def running(
    toolbox: Toolbox,
    image: Image,
    work: Path,
    files: Files,
    *,
    forward: tuple[int, ...] = (),
    devices: tuple[str | Path, ...] = (),
) -> Iterator[Guest]:
    """Boot `image` with `files` laid over it; the guest ends with the context."""
    kernel, initrd = work / "kernel", work / "initrd"
    kernel.write_bytes(section(image, ".linux"))
    packed = section(image, ".initrd")
    # Archives begin at multiples of four bytes.
    initrd.write_bytes(packed + bytes(-len(packed) % 4) + cpio.write(files))
    line = section(image, ".cmdline").rstrip(b"\0\n").decode("ascii")
    ports = {port: free_port() for port in forward}
    network = "user,id=n" + "".join(f",hostfwd=tcp:127.0.0.1:{h}-:{g}" for g, h in ports.items())
    command: list[str | Path] = [
        *toolbox.emulator.command(),
        *("-machine", "q35", "-netdev", network, "-device", "virtio-net-pci,netdev=n,romfile="),
        *("-kernel", kernel, "-initrd", initrd, "-append", line, *devices),
    ]
    modules = toolbox.emulator.tree.folder / "usr/lib/x86_64-linux-gnu/qemu"
    with started(command, env={"QEMU_MODULE_DIR": str(modules)}) as process:
        assert process.stdout is not None
        yield Guest(process.stdout.fileno(), ports)


def facts(boot: Boot) -> dict[str, Any]:
    """What a witness said: lines of a name and JSON."""
    found = (FACT.match(line) for line in boot.lines)
    return {match[1]: json.loads(match[2]) for match in found if match}
