"""Fuzz target: what a guest writes to its serial port."""

import os
import time

from release.build import emulator, proof
from release.build.emulator import NOTHING_TO_BOOT, watch
from release.build.settings import Role

# A pipe holds this much without a reader.
ROOM = 1 << 15


def seeds() -> list[bytes]:
    refusal = b"OVMF: Secure boot image verification failed.\r\n"
    return [
        b"\x1b[2J\x1b[0m" + refusal + b"BdsDxe: No bootable option or device was found.\r\n",
        b"[    0.000000] Linux version 6.12\r\n\x1b]104\x07zipnet server 0.1.0: preflight",
    ]


def fuzz_one(data: bytes) -> None:
    data = data[:ROOM]
    for until in (proof.announced(Role.SERVER), NOTHING_TO_BOOT):
        reader, writer = os.pipe()
        try:
            os.write(writer, data)
            os.close(writer)
            boot = watch(reader, until, time.monotonic(), 60)
        finally:
            os.close(reader)
        for line in boot.lines:
            assert all(c.isprintable() or c == "\t" for c in line)
            assert len(line) <= emulator.LINE_LIMIT
        assert boot.matched is None or boot.matched == boot.lines[-1]
        assert len(boot.lines) <= data.count(b"\n") + 1
        if boot.refused:
            assert b"ecure" in data or b"Denied" in data
        "\n".join(boot.tail()).encode()
