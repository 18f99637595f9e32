"""What an appliance costs before it works: `python -m benchmarks.appliance`.

One mock image, booted in emulation by the firmware that is bound to it, with the mock TEE of this
host, until it waits for its operator. The same kernel, command line and firmware with an initrd
of one static program, which says a line and waits, is what that time is compared with: both boots
have the firmware's work and the kernel's in them.
"""

from __future__ import annotations

import re
import struct
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import click
from rich.console import Console

from attestation.measure import firmware
from attestation.measure.pe import Pe
from benchmarks._figures import Figure, in_turns, ratio, show
from release.build import cpio
from release.build.emulator import Boot, Emulator
from release.build.mirror import choose
from release.build.process import started
from release.build.settings import Paths, Role
from release.build.supply import Supply, base_firmware
from release.build.tools import Tree

ROOT = Path(__file__).resolve().parents[1]
ROLE = Role.SERVER
MIB = 1 << 20
BOOT_LIMIT = 180
EMPTY_SAYS = b"empty init\n"
WAITS = re.compile(r"waits for its operator")
MEMORY = re.compile(r"^ +memory +(\d+) of \d+ MiB used")
# At zstd -3; releases are smaller, and `benchmarks.image` limits those.
UKI_LIMIT = 60
# Emulated; 5 on two cores.
READY_LIMIT = 8
MEMORY_LIMIT = 2.5


def empty_init() -> bytes:
    """A static x86-64 program that writes EMPTY_SAYS to its console and then waits for ever.

    An ELF header, one program header and the code (System V ABI, AMD64 supplement; syscalls 1 and
    34 of Linux are write and pause). No file of any package is in it.
    """
    header, base = 64 + 56, 0x400000
    code = (
        b"\xb8\x01\x00\x00\x00"  # mov eax, 1
        b"\xbf\x01\x00\x00\x00"  # mov edi, 1
        b"\x48\x8d\x35\x10\x00\x00\x00"  # lea rsi, [rip + 16]: what follows the code
        b"\xba"
        + struct.pack("<I", len(EMPTY_SAYS))  # mov edx, length
        + b"\x0f\x05"  # syscall
        b"\xb8\x22\x00\x00\x00"  # mov eax, 34
        b"\x0f\x05"  # syscall
        b"\xeb\xf7"  # jmp to the last mov
    )
    content = code + EMPTY_SAYS
    size = header + len(content)
    elf = struct.pack(
        "<16sHHIQQQIHHHHHH",
        b"\x7fELF\x02\x01\x01",
        *(2, 62, 1, base + header, 64, 0, 0),
        *(64, 56, 1, 0, 0, 0),
    )
    segment = struct.pack("<IIQQQQQQ", 1, 5, 0, base, base, size, size, 0x1000)
    return elf + segment + content


def with_initrd(uki: bytes, initrd: bytes) -> bytes:
    """The UKI with another initrd, which must not be larger and is its last section."""
    parsed = Pe.parse(uki)
    last = max(parsed.sections, key=lambda s: s.raw_offset)
    if last.name != ".initrd" or len(initrd) > last.virtual_size:
        raise click.ClickException("the UKI doesn't end with an initrd that is large enough")
    (header,) = struct.unpack_from("<I", uki, 0x3C)
    # The optional header follows 24 bytes: section alignment, file alignment, size of the image.
    section_alignment, file_alignment = struct.unpack_from("<II", uki, header + 24 + 32)
    padded = initrd + bytes(-len(initrd) % file_alignment)
    changed = bytearray(uki[: last.raw_offset] + padded)
    # A section header: name, virtual size, address, raw size, raw offset.
    entry = struct.Struct("<8sIIII")
    place = uki.index(b".initrd\0", header)
    name, _, address, _, offset = entry.unpack_from(uki, place)
    entry.pack_into(changed, place, name, len(initrd), address, len(padded), offset)
    size = -(-(address + len(initrd)) // section_alignment) * section_alignment
    struct.pack_into("<I", changed, header + 24 + 56, size)
    return bytes(changed)


@dataclass(frozen=True, slots=True)
class Bench:
    """The files and programs of a run."""

    emulator: Emulator
    zstd: Tree
    base: bytes
    work: Path

    @property
    def image(self) -> Path:
        """The built appliance."""
        return self.work / "out" / ROLE / f"zipnet-{ROLE}.efi"

    def boot(self, uki: Path, until: re.Pattern[str], *devices: str | Path) -> Boot:
        """Boot a UKI by the firmware beside it, until a line. Raises ClickException without it."""
        bios = ("-bios", uki.with_suffix(".fd"), "-kernel", uki)
        done = self.emulator.boot([*bios, *devices], until, limit=BOOT_LIMIT)
        if done.matched is None:
            raise click.ClickException("\n".join(("a boot said:", *done.tail())))
        return done

    def empty(self) -> Path:
        """The same kernel with an empty init, and a firmware of its own."""
        path = self.work / "empty.efi"
        members = {"init": (0o100755, empty_init())}
        path.write_bytes(with_initrd(self.image.read_bytes(), cpio.write(members)))
        path.with_suffix(".fd").write_bytes(firmware.bind(self.base, path.read_bytes()))
        return path

    def unpacked(self) -> int:
        """How large the files of the image are, in bytes."""
        loaded = Pe.parse(self.image.read_bytes()).loaded(".initrd")
        assert loaded is not None
        command = [*map(str, self.zstd.command("usr/bin/zstd")), "-d", "-c", "-q"]
        done = subprocess.run(command, input=bytes(loaded[0]), capture_output=True, check=True)
        return len(done.stdout)


def prepared(work: Path) -> Bench:
    """Build the image, and take the programs that it was built with."""
    command = [sys.executable, str(ROOT / "build.py"), "--role", ROLE, "--flavor", "mock"]
    command += ["--compress-level", "3", "--skip-boot-proof", "--out", str(work / "out")]
    subprocess.run(command, check=True, capture_output=True, cwd=ROOT)
    paths = Paths.of(ROOT)
    supply = Supply(paths.cache, paths.locks, choose((), "debian", None), locked=False)
    log = work / "log"
    found = supply.tools(log, refresh=False)
    return Bench(
        Emulator(supply.tree(found, "emulator", log)),
        supply.tree(found, "tools", log),
        base_firmware(supply.tree(found, "firmware", log)),
        work,
    )


def figures(runs: int) -> Iterator[Figure]:
    """All figures, as they come."""
    with (
        tempfile.TemporaryDirectory(dir="/var/tmp", prefix="zipnet-bench-") as name,
        ExitStack() as end,
    ):
        bench = prepared(Path(name))
        size = bench.image.stat().st_size
        yield Figure("UKI of the mock server at zstd -3", size / MIB, "MiB", most=UKI_LIMIT)
        attestation = [sys.executable, "-m", "attestation"]
        tee, quotes = bench.work / "tee", bench.work / "quotes"
        subprocess.run([*attestation, "mock-pki", str(tee)], check=True, capture_output=True)
        service = [*attestation, "mock-td", "--tee", str(tee), "--socket", str(quotes)]
        process = end.enter_context(started(service, cwd=ROOT))
        assert process.stdout is not None
        process.stdout.readline()
        chardev = f"mock-td-{'0' * 96}"
        port = (
            *("-chardev", f"socket,id={chardev},path={quotes}", "-device", "virtio-serial-pci"),
            *("-device", f"virtserialport,chardev={chardev},name=org.zipnet.mock-td"),
        )
        used: list[int] = []

        def appliance() -> float:
            done = bench.boot(bench.image, WAITS, *port)
            used.extend(int(m[1]) for line in done.lines if (m := MEMORY.match(line)))
            return done.seconds

        says = re.compile(EMPTY_SAYS.decode().strip())
        empty = bench.empty()
        ready, bare = in_turns(runs, appliance, lambda: bench.boot(empty, says).seconds)
        yield Figure(
            "boot to ready / the same kernel with an empty init",
            ratio(ready, bare),
            "x",
            most=READY_LIMIT,
        )
        yield Figure("… boot to ready, firmware included", min(ready), "s")
        unpacked = bench.unpacked() / MIB
        yield Figure("the image, unpacked", unpacked, "MiB")
        yield Figure(
            "memory after boot / the image, unpacked", max(used) / unpacked, "x", most=MEMORY_LIMIT
        )


@click.command()
@click.option("--runs", default=3, show_default=True, help="Boots of each kind; medians count.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def main(runs: int, as_json: bool) -> None:
    """Measure an appliance's boot; exit 2 if a figure is over its limit."""
    console = Console(stderr=True)
    found = []
    with console.status("booting"):
        for figure in figures(runs):
            found.append(figure)
            console.print(f"{figure.name}: {figure.value:.4g} {figure.unit}", highlight=False)
    sys.exit(0 if show(found, as_json) else 2)


if __name__ == "__main__":
    main()
