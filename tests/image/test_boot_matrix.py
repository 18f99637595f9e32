"""What a bound firmware starts and what it refuses, with built images in an emulated machine.

The numbers are those of the boot matrix in docs/formats.md. None of this is a TD: it shows the
firmware's Secure Boot policy at work, not TDX.
"""

from __future__ import annotations

import json
import re
import subprocess
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import pytest

from attestation.errors import FirmwareFormatError, FirmwareRejected
from attestation.measure import firmware
from attestation.measure.tdvf import SectionType, Tdvf
from release.build.deb import Deb
from release.build.emulator import NOTHING_TO_BOOT, Boot
from release.build.proof import announced, changed_in_one_byte, foreign_initrd
from release.build.settings import Role
from tests.image.conftest import Image, Toolbox, esp, said, transcript

LIMIT = 180
REFUSED_KERNEL = r"Secure boot image verification failed"
REFUSED_DISK = r"Access Denied"


@dataclass(frozen=True, slots=True)
class Case:
    """A row of the matrix. `refusal` is the firmware's own line, None if the image must start."""

    number: str
    firmware: Path
    arguments: Sequence[str | Path]
    starts: Role | None = None
    refusal: str = ""


@pytest.fixture(scope="module")
def matrix(
    images: dict[Role, Image], toolbox: Toolbox, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, tuple[Case, Future[Boot]]]:
    """Every boot of the matrix, begun two at a time; a test waits for its own."""
    work = tmp_path_factory.mktemp("matrix")
    server, client = images[Role.SERVER], images[Role.CLIENT]
    changed = work / "changed.efi"
    changed.write_bytes(changed_in_one_byte(server.uki.read_bytes()))
    initrd = work / "foreign.cpio"
    initrd.write_bytes(foreign_initrd())
    kernel = distribution_kernel(server, toolbox, work)

    def disk(name: str, program: Path) -> list[str | Path]:
        folder = work / name
        folder.mkdir()
        image = esp(toolbox, folder, program)
        drive = f"file={image},format=raw,if=none,id=d0,readonly=on"
        return ["-drive", drive, "-device", "virtio-blk-pci,drive=d0,bootindex=1"]

    # s1: one wrong byte in the checksum of the variable store's volume, and the changed image.
    broken = work / "broken.fd"
    broken.write_bytes(with_broken_store(server.firmware.read_bytes()))
    legacy = ["-fw_cfg", "name=opt/org.tianocore/EnableLegacyLoader,string=yes"]
    append = ["-append", "console=ttyS0 evil=1"]
    cases = [
        Case("m01", server.firmware, ["-kernel", server.uki], starts=Role.SERVER),
        Case("m02", server.firmware, ["-kernel", changed], refusal=REFUSED_KERNEL),
        Case("m03", server.firmware, ["-kernel", client.uki], refusal=REFUSED_KERNEL),
        Case("m04", server.firmware, disk("m04", server.uki), starts=Role.SERVER),
        Case("m05", server.firmware, disk("m05", client.uki), refusal=REFUSED_DISK),
        Case("m06", server.firmware, disk("m06", changed), refusal=REFUSED_DISK),
        Case("m07", client.firmware, ["-kernel", client.uki], starts=Role.CLIENT),
        Case("m08", server.firmware, ["-kernel", server.uki, *append], starts=Role.SERVER),
        Case(
            "m09",
            server.firmware,
            ["-kernel", kernel, "-initrd", initrd, *append],
            refusal=REFUSED_KERNEL,
        ),
        Case("m12", server.firmware, disk("m12", toolbox.shell), refusal=REFUSED_DISK),
        Case("m15", server.firmware, ["-kernel", changed, *legacy], refusal=REFUSED_KERNEL),
        Case("s1", broken, ["-kernel", changed], starts=Role.SERVER),
    ]

    def boot(case: Case) -> Boot:
        until = NOTHING_TO_BOOT if case.starts is None else re.compile(rf"^zipnet {case.starts}: ")
        return toolbox.emulator.boot(["-bios", case.firmware, *case.arguments], until, limit=LIMIT)

    with ThreadPoolExecutor(max_workers=2) as pool:
        return {case.number: (case, pool.submit(boot, case)) for case in cases}


def distribution_kernel(image: Image, toolbox: Toolbox, work: Path) -> Path:
    """The kernel as the distribution signed it, from the package that the image was made of."""
    packages = json.loads((image.folder / "packages.json").read_bytes())["packages"]
    (record,) = (p for p in packages if re.match(r"linux-image-\d", p["name"]))
    deb = toolbox.supply.store.path(Deb.parse(record))
    subprocess.run(["dpkg-deb", "--extract", deb, work / "kernel"], check=True)
    (kernel,) = (work / "kernel" / "boot").glob("vmlinuz-*")
    return kernel


@pytest.mark.parametrize("number", ["m01", "m04", "m07", "m08"])
def test_starts(matrix: dict[str, tuple[Case, Future[Boot]]], number: str) -> None:
    case, future = matrix[number]
    boot = future.result()
    assert case.starts is not None
    assert boot.matched, transcript(boot)
    assert said(boot, announced(case.starts).pattern), transcript(boot)
    assert said(boot, r"secure boot +on"), transcript(boot)
    assert said(boot, r"lockdown +(integrity|confidentiality)"), transcript(boot)


@pytest.mark.parametrize("number", ["m02", "m03", "m05", "m06", "m09", "m12", "m15"])
def test_refuses(matrix: dict[str, tuple[Case, Future[Boot]]], number: str) -> None:
    case, future = matrix[number]
    boot = future.result()
    assert boot.matched, f"a timeout is no refusal\n{transcript(boot)}"
    assert said(boot, case.refusal), transcript(boot)
    assert boot.refused, transcript(boot)
    assert not boot.kernel_ran, transcript(boot)


def with_broken_store(fd: bytes) -> bytes:
    """The firmware with a wrong header checksum of its variable store's volume."""
    (cfv,) = Tdvf.parse(fd).of_type(SectionType.CFV)
    # Offset of the 16-bit checksum in EFI_FIRMWARE_VOLUME_HEADER (PI 1.8, volume 3, 3.2.1).
    at = cfv.data_offset + 50
    return fd[:at] + bytes([fd[at] ^ 1]) + fd[at + 1 :]


def test_s1_a_malformed_store_fails_open_so_none_is_ever_emitted(
    matrix: dict[str, tuple[Case, Future[Boot]]], server: Image, toolbox: Toolbox
) -> None:
    case, future = matrix["s1"]
    boot = future.result()
    # The reason for the rule: the firmware drops a store it finds malformed and starts anything.
    assert boot.matched, transcript(boot)
    assert said(boot, r"secure boot +off"), transcript(boot)
    with pytest.raises((FirmwareFormatError, FirmwareRejected)) as refusal:
        firmware.check_bound(case.firmware.read_bytes(), server.uki.read_bytes())
    assert "checksum" in refusal.value.diagnostics()
    with pytest.raises((FirmwareFormatError, FirmwareRejected)) as refusal:
        firmware.bind(with_broken_store(toolbox.base), server.uki.read_bytes())
    assert "checksum" in refusal.value.diagnostics()


def test_m11_no_initrd_beside_a_uki(server: Image, toolbox: Toolbox, tmp_path: Path) -> None:
    initrd = tmp_path / "foreign.cpio"
    initrd.write_bytes(foreign_initrd())
    arguments: list[str | Path] = [
        "-bios",
        server.firmware,
        "-kernel",
        server.uki,
        "-initrd",
        initrd,
    ]
    boot = toolbox.emulator.boot(arguments, re.compile("too old to load a ram disk"), limit=60)
    assert boot.matched, transcript(boot)
    assert not boot.kernel_ran
