"""QEMU without KVM, watched line by line on its serial port, and stopped at the line that decides.

Emulation only: hardware virtualization would be faster but is missing or broken on rented
machines, and a TD can't be emulated at all. What runs here is the firmware's boot policy and the
guest, not TDX.
"""

from __future__ import annotations

import os
import re
import select
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from release.build.process import started
from release.build.tools import Tree

# Terminal control: CSI, OSC and DCS sequences, and escapes of one or more characters (ECMA-48).
ESCAPES = re.compile(
    rb"\x1b\[[0-?]*[ -/]*[@-~]|\x1b[\]P][^\x07\x1b]*(?:\x07|\x1b\\)|\x1b[ -/]*[0-~]"
)
LINE_LIMIT = 4096
TRANSCRIPT_LIMIT = 4 << 20
READ = 1 << 16
POLL = 0.5

# What the firmware prints when its Secure Boot policy turns an image away (edk2:
# OvmfPkg/Library/X86QemuLoadImageLib, MdeModulePkg/Library/UefiBootManagerLib).
REFUSED = re.compile(
    r"Secure boot image verification failed|rejected probably by Secure Boot|: Access Denied"
)
# The boot manager has tried everything (MdeModulePkg/Universal/BdsDxe).
NOTHING_TO_BOOT = re.compile(r"BdsDxe: No bootable option or device was found")
# Anything that only a running kernel, or the system it starts, prints.
KERNEL = re.compile(
    r"Linux version \d|^\[ *\d+\.\d{6}\]|EFI stub|Run /init|systemd\[1\]|^zipnet \w+ \d"
    r"|Kernel panic"
)


@dataclass(frozen=True, slots=True)
class Boot:
    """One boot: what the serial port said, in order, and how it came to an end.

    `matched` is the line that `until` waited for, None if the time or the guest ended first.
    """

    lines: tuple[str, ...]
    matched: str | None
    seconds: float

    @property
    def refused(self) -> bool:
        """The firmware said that it refuses, then found nothing else, and no kernel ever spoke."""
        return (
            any(REFUSED.search(line) for line in self.lines)
            and any(NOTHING_TO_BOOT.search(line) for line in self.lines)
            and not self.kernel_ran
        )

    @property
    def kernel_ran(self) -> bool:
        """A line that only a running kernel prints was seen."""
        return any(KERNEL.search(line) for line in self.lines)

    def tail(self, count: int = 15) -> tuple[str, ...]:
        """The last lines that are not empty."""
        return tuple(line for line in self.lines if line.strip())[-count:]


@dataclass(frozen=True, slots=True)
class Emulator:
    """QEMU of an emulator tree."""

    tree: Tree

    def command(self, memory_mib: int = 1024, cpus: int = 1) -> list[str | Path]:
        """The part of the command line that every boot shares: machine, serial port, no network."""
        data = self.tree.folder / "usr/share"
        return [
            *self.tree.command("usr/bin/qemu-system-x86_64"),
            "-L",
            data / "qemu",
            "-L",
            data / "seabios",
            "-L",
            self.tree.folder / "usr/lib/ipxe/qemu",
            "-nodefaults",
            "-display",
            "none",
            "-monitor",
            "none",
            "-no-reboot",
            "-serial",
            "stdio",
            "-accel",
            "tcg",
            "-cpu",
            "max",
            "-smp",
            str(cpus),
            "-m",
            str(memory_mib),
        ]

    def boot(
        self,
        arguments: Sequence[str | Path],
        until: re.Pattern[str],
        *,
        limit: float = 120,
        machine: str = "q35",
        memory_mib: int = 1024,
        env: dict[str, str] | None = None,
        stop: threading.Event | None = None,
    ) -> Boot:
        """Start QEMU; `watch` says when it is stopped."""
        command = [*self.command(memory_mib), "-machine", machine, *arguments]
        # QEMU's own modules lie in the tree as well.
        modules = self.tree.folder / "usr/lib/x86_64-linux-gnu/qemu"
        begin = time.monotonic()
        with started(command, env={"QEMU_MODULE_DIR": str(modules)} | (env or {})) as process:
            assert process.stdout is not None
            return watch(process.stdout.fileno(), until, begin, limit, stop)


def watch(
    descriptor: int,
    until: re.Pattern[str],
    begin: float,
    limit: float,
    stop: threading.Event | None = None,
) -> Boot:
    """Read a serial port until a line matches, it closes, or `limit` seconds from `begin` pass.

    `stop` ends it from another thread.
    """
    lines: list[str] = []
    pending = b""
    total = 0
    while (left := begin + limit - time.monotonic()) > 0 and total < TRANSCRIPT_LIMIT:
        if stop is not None and stop.is_set():
            break
        if not select.select([descriptor], [], [], min(left, POLL))[0]:
            continue
        chunk = os.read(descriptor, READ)
        total += len(chunk)
        # A prompt has no line end, so the unfinished line is looked at too.
        *whole, pending = (pending + chunk).split(b"\n")
        pending = pending[-LINE_LIMIT:]
        for raw in whole:
            lines.append(_clean(raw))
            if until.search(lines[-1]):
                return Boot(tuple(lines), lines[-1], time.monotonic() - begin)
        if pending and until.search(_clean(pending)):
            lines.append(_clean(pending))
            return Boot(tuple(lines), lines[-1], time.monotonic() - begin)
        if not chunk:
            break
    if pending:
        lines.append(_clean(pending))
    return Boot(tuple(lines), None, time.monotonic() - begin)


def _clean(raw: bytes) -> str:
    text = ESCAPES.sub(b"", raw[:LINE_LIMIT]).decode("utf-8", "replace")
    return "".join(c if c.isprintable() or c == "\t" else "" for c in text)
