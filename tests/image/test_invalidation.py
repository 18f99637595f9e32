"""docs/what-changes-a-measurement.md, row by row: each change is made, and the registers seen.

An image is taken apart and put together again by the tools that built it, so a change costs no
build. What is not in an image is shown not to be among what mkosi reads.
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import stat
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from attestation.measure import authenticode, firmware, rtmr, tdvf
from attestation.measure.pe import Pe
from attestation.measure.rtmr import BootPath
from attestation.measure.tdvf import HostProfile
from release.build import cpio
from release.build.cpio import Entry
from release.build.lock import SOURCE_DATE_EPOCH
from release.build.mkosi import SYSTEM_PYTHON
from release.build.settings import Flavor, Role
from release.build.stage import stage
from release.build.wheels import Runtime
from tests.image.conftest import QUICK, ROOT, Image, Toolbox, checkout, section
from tests.image.tpm import boot_with_tpm, mapped, printed_log

DOCUMENT = ROOT / "docs" / "what-changes-a-measurement.md"
STUB = "usr/lib/systemd/boot/efi/linuxx64.efi.stub"
MTIME, MODE = 5, 1
# Whether MR_TD, RTMR1 and RTMR2 are others than before.
Moved = tuple[bool, bool, bool]
ALL, NONE = (True, True, True), (False, False, False)


def table() -> dict[str, Moved]:
    """The rows of the document."""
    found: dict[str, Moved] = {}
    for line in DOCUMENT.read_text("utf-8").splitlines():
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        if line.startswith("| ") and set(cells[1:4]) <= {"yes", "no"}:
            assert cells[0] not in found
            found[cells[0]] = (cells[1] == "yes", cells[2] == "yes", cells[3] == "yes")
    return found


TABLE = table()


@dataclass(frozen=True)
class Lab:
    """An image in parts, and the tools that put it together."""

    image: Image
    server: Image
    mock: Image
    toolbox: Toolbox
    work: Path
    archive: bytes

    def initrd(self, archive: bytes, level: int = int(QUICK[1])) -> bytes:
        """Packed as mkosi does."""
        zstd = [str(part) for part in self.toolbox.tools.command("usr/bin/zstd")]
        return subprocess.run(
            [*zstd, f"-{level}", "-T0", "-c", "-q"], input=archive, capture_output=True, check=True
        ).stdout

    def uki(self, stub: bytes | None = None, **changes: bytes) -> bytes:
        """The image with other sections, by ukify."""
        paths = {}
        for name in ("linux", "initrd", "cmdline", "osrel", "uname"):
            paths[name] = self.work / name
            paths[name].write_bytes(changes.get(name, section(self.image, f".{name}")))
        tools = self.toolbox.tools
        paths["stub"] = self.work / "stub"
        paths["stub"].write_bytes(tools.file(STUB).read_bytes() if stub is None else stub)
        out = self.work / "out.efi"
        command = [str(SYSTEM_PYTHON), str(tools.file("usr/bin/ukify")), "build", "--efi-arch=x64"]
        command += [f"--linux={paths['linux']}", f"--initrd={paths['initrd']}"]
        command += [f"--cmdline=@{paths['cmdline']}", f"--os-release=@{paths['osrel']}"]
        command += [f"--uname={paths['uname'].read_text('ascii')}", f"--stub={paths['stub']}"]
        subprocess.run(
            [*command, f"--output={out}"],
            env={
                "PATH": "/usr/bin:/bin",
                "PYTHONPATH": str(tools.folder / "usr/lib/python3/dist-packages"),
            },
            check=True,
            capture_output=True,
        )
        return out.read_bytes()

    def registers(
        self,
        uki: bytes,
        bound: bytes | None = None,
        profile: HostProfile = HostProfile.UPSTREAM,
        path: BootPath = BootPath.KERNEL,
    ) -> tuple[bytes, bytes, bytes]:
        fd = firmware.bind(self.toolbox.base, uki) if bound is None else bound
        mr_td = tdvf.mr_td(fd, profile.page_order)
        return mr_td, rtmr.rtmr1(uki, path), rtmr.rtmr2(uki)

    def before(self) -> tuple[bytes, bytes, bytes]:
        return self.registers(self.image.uki.read_bytes(), self.image.firmware.read_bytes())

    def moved(self, after: tuple[bytes, bytes, bytes]) -> Moved:
        one, two, three = (a != b for a, b in zip(self.before(), after, strict=True))
        return one, two, three

    def packed(self, archive: bytes) -> Moved:
        """What another root file system moves."""
        assert archive != self.archive
        list(cpio.read(archive))
        return self.moved(self.registers(self.uki(initrd=self.initrd(archive))))

    def staged(self, change: Callable[[Path], None], name: str) -> bool:
        """Whether a change of the checkout is among what mkosi reads."""
        digests = []
        for number, each in enumerate((lambda _root: None, change)):
            root = checkout(self.work / f"{name}-{number}")
            each(root)
            empty, folder = root / "no-runtime", root / "stage"
            empty.mkdir()
            stage(root, folder, Role.CLIENT, Flavor.PRODUCTION, Runtime(empty, ()))
            content = hashlib.sha256()
            for path in sorted(folder.rglob("*")):
                content.update(f"{path.relative_to(folder)} {path.stat().st_mode}\0".encode())
                content.update(path.read_bytes() if path.is_file() else b"")
            digests.append(content.digest())
            shutil.rmtree(root)
        return digests[0] != digests[1]

    def place(self, pattern: str) -> tuple[int, int, int]:
        """Of the first file with content whose name matches: offsets of header, data and end."""
        for at, begin, entry in placed(self.archive):
            if stat.S_ISREG(entry.mode) and entry.data and re.fullmatch(pattern, entry.name):
                return at, begin, begin + len(entry.data)
        raise AssertionError(f"no file is called {pattern}")

    def edited(self, pattern: str) -> bytes:
        """The archive with one byte of a file changed."""
        _, begin, _ = self.place(pattern)
        return flipped(self.archive, begin)

    def with_field(self, pattern: str, index: int, value: int) -> bytes:
        """The archive with a number in the header of a file changed."""
        at = self.place(pattern)[0] + 6 + 8 * index
        return self.archive[:at] + b"%08X" % value + self.archive[at + 8 :]


def placed(archive: bytes) -> Iterator[tuple[int, int, Entry]]:
    """Each member, with the offsets of its header and of its data."""
    at = 0
    for entry in cpio.read(archive):
        begin = aligned(at + cpio.HEADER + len(os.fsencode(entry.name)) + 1)
        assert archive[begin : begin + len(entry.data)] == entry.data
        yield at, begin, entry
        at = aligned(begin + len(entry.data))


def aligned(offset: int) -> int:
    return -(-offset // 4) * 4


def flipped(data: bytes, at: int) -> bytes:
    return data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :]


@pytest.fixture(scope="module")
def lab(
    client: Image,
    server: Image,
    mock_server: Image,
    toolbox: Toolbox,
    tmp_path_factory: pytest.TempPathFactory,
) -> Lab:
    zstd = [str(part) for part in toolbox.tools.command("usr/bin/zstd")]
    done = subprocess.run(
        [*zstd, "-d", "-c", "-q"],
        input=section(client, ".initrd"),
        capture_output=True,
        check=True,
    )
    work = tmp_path_factory.mktemp("lab")
    return Lab(client, server, mock_server, toolbox, work, done.stdout)


def python_line(lab: Lab) -> Moved:
    def change(root: Path) -> None:
        path = root / "zipnet" / "__init__.py"
        text = path.read_text("utf-8")
        path.write_text(re.sub(r'__version__ = "', '__version__ = "9', text, count=1), "utf-8")

    assert lab.staged(change, "python")
    return lab.packed(lab.edited(r".*/site-packages/zipnet/__init__\.py"))


def file_of_a_tree(lab: Lab) -> Moved:
    found = (ROOT / "images" / "base" / "tree").rglob("*")
    path = next(p for p in sorted(found) if p.is_file() and p.stat().st_size)
    inside = path.relative_to(ROOT / "images" / "base" / "tree").as_posix()

    def change(root: Path) -> None:
        copy = root / "images" / "base" / "tree" / inside
        copy.write_bytes(flipped(copy.read_bytes(), 0))

    assert lab.staged(change, "tree")
    return lab.packed(lab.edited(re.escape(inside)))


def package_version(lab: Lab) -> Moved:
    return lab.packed(lab.edited(r"usr/lib/x86_64-linux-gnu/libc\.so\.6"))


def kernel_module(lab: Lab) -> Moved:
    end = lab.archive.rindex(b"070701", 0, lab.archive.rindex(b"TRAILER!!!"))
    more = cpio.write({"usr/lib/modules/more.ko": (0o100644, b"module")})
    return lab.packed(lab.archive[:end] + more)


def mode_and_time(lab: Lab) -> Moved:
    name = r"usr/lib/x86_64-linux-gnu/libc\.so\.6"
    changed = lab.packed(lab.with_field(name, MTIME, 86400))
    assert lab.packed(lab.with_field(name, MODE, 0o100600)) == changed
    return changed


def source_epoch(lab: Lab) -> Moved:
    archive = bytearray(lab.archive)
    for at, _, entry in placed(lab.archive):
        if entry.mtime == SOURCE_DATE_EPOCH:
            archive[at + 46 : at + 54] = b"%08X" % 1704067200
    times = [entry.mtime for entry in cpio.read(bytes(archive))]
    assert times.count(1704067200) > 100
    assert SOURCE_DATE_EPOCH not in times
    return lab.packed(bytes(archive))


def zstd_level(lab: Lab) -> Moved:
    return lab.moved(lab.registers(lab.uki(initrd=lab.initrd(lab.archive, level=5))))


def other_section(name: str) -> Callable[[Lab], Moved]:
    def change(lab: Lab) -> Moved:
        content = section(lab.image, f".{name}")
        # Within the file's text or code: ukify reads headers, and drops blanks at the end.
        at = len(content) // 2
        return lab.moved(lab.registers(lab.uki(**{name: flipped(content, at)})))

    return change


def stub(lab: Lab) -> Moved:
    content = lab.toolbox.tools.file(STUB).read_bytes()
    text = next(s for s in Pe.parse(content).sections if s.name == ".text")
    return lab.moved(lab.registers(lab.uki(stub=flipped(content, text.raw_offset + 64))))


def images(one: str, other: str) -> Callable[[Lab], Moved]:
    def change(lab: Lab) -> Moved:
        first, second = (
            lab.registers(image.uki.read_bytes(), image.firmware.read_bytes())
            for image in (getattr(lab, one), getattr(lab, other))
        )
        a, b, c = (x != y for x, y in zip(first, second, strict=True))
        return a, b, c

    return change


def base_firmware(lab: Lab) -> Moved:
    # The last byte belongs to the reset vector, which a TD measures like all code.
    bound = lab.image.firmware.read_bytes()
    assert firmware.code_digest(flipped(bound, len(bound) - 1)) != firmware.code_digest(bound)
    return lab.moved(lab.registers(lab.image.uki.read_bytes(), flipped(bound, len(bound) - 1)))


def policy(lab: Lab) -> Moved:
    uki = lab.image.uki.read_bytes()
    both = [authenticode.digest(uki), authenticode.digest(lab.server.uki.read_bytes())]
    return lab.moved(lab.registers(uki, firmware.bind_digests(lab.toolbox.base, both)))


def host_profile(lab: Lab) -> Moved:
    profile = HostProfile.CANONICAL_24_04
    return lab.moved(lab.registers(lab.image.uki.read_bytes(), profile=profile))


def boot_path(lab: Lab) -> Moved:
    return lab.moved(lab.registers(lab.image.uki.read_bytes(), path=BootPath.ESP))


def beside(*changed: str) -> Callable[[Lab], Moved]:
    """Files that no image is made of."""

    def change(lab: Lab) -> Moved:
        def write(root: Path) -> None:
            for name in changed:
                path = root / name
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes((path.read_bytes() if path.exists() else b"") + b"\n# more\n")

        assert not lab.staged(write, Path(changed[0]).stem)
        return NONE

    return change


def hardware(_: Lab) -> Moved:
    """Shown by `test_hardware_does_not_show`; MR_TD is computed from the firmware file alone."""
    return NONE


ROWS: dict[str, Callable[[Lab], Moved]] = {
    "a line in `attestation/` or `zipnet/`, the version among them": python_line,
    "a file in `images/*/tree`": file_of_a_tree,
    "a package of the image in another version": package_version,
    "one more kernel module": kernel_module,
    "mode or time of a file in the image": mode_and_time,
    "source epoch of the lock": source_epoch,
    "zstd level": zstd_level,
    "the kernel": other_section("linux"),
    "the kernel command line": other_section("cmdline"),
    "`os-release`": other_section("osrel"),
    "systemd's stub": stub,
    "role": images("image", "server"),
    "flavour": images("server", "mock"),
    "base firmware": base_firmware,
    "which images the firmware's policy admits": policy,
    "host profile": host_profile,
    "boot path": boot_path,
    "memory size": hardware,
    "number of CPUs": hardware,
    "disks without a partition table": hardware,
    "network cards": hardware,
    "options of `run-qemu`, and the script itself": beside("release/build/templates/run-qemu.j2"),
    "documentation, tests, benchmarks": beside("README.md", "docs/a.md", "tests/a.py", "a/b.py"),
    "`release/`, `build.py` as far as they write the same": beside("release/bundle.py", "build.py"),
    "the key that signs a release": beside("release/keys.json", "release/9.9.9/manifest.json"),
    "the list of accepted measurements": beside("list.json", "release/list.json"),
}


def test_every_row_is_shown() -> None:
    assert set(TABLE) == set(ROWS)
    assert len(TABLE) == len(ROWS)


def test_an_unchanged_image_is_put_together_as_it_was(lab: Lab) -> None:
    """So what the rows show is what a build would show."""
    uki = lab.uki(initrd=lab.initrd(lab.archive))
    assert uki == lab.image.uki.read_bytes()
    assert firmware.bind(lab.toolbox.base, uki) == lab.image.firmware.read_bytes()


@pytest.mark.parametrize("row", ROWS)
def test_row(lab: Lab, row: str) -> None:
    assert ROWS[row](lab) == TABLE[row]


def test_hardware_does_not_show(
    mock_server: Image, toolbox: Toolbox, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """More memory and CPUs, a disk and two network cards: the events are the predicted ones."""
    for row in ("memory size", "number of CPUs", "disks without a partition table"):
        assert TABLE[row] == NONE
    work = Path(tmp_path_factory.mktemp("hw"))
    disk = work / "disk"
    with disk.open("wb") as file:
        file.truncate(64 << 20)
    boot = boot_with_tpm(
        toolbox,
        mock_server,
        work,
        *("-smp", "3"),
        *("-drive", f"if=none,id=d0,format=raw,file={disk}"),
        *("-device", "virtio-blk-pci,drive=d0,serial=zipnet-state"),
        *("-netdev", "user,id=n0", "-device", "virtio-net-pci,netdev=n0,romfile="),
        *("-netdev", "user,id=n1", "-device", "virtio-net-pci,netdev=n1,romfile="),
        memory_mib=3072,
    )
    log = printed_log(boot)
    uki = mock_server.uki.read_bytes()
    assert mapped(log, 2, 6) == [e.digest for e in rtmr.rtmr1_events(uki, BootPath.KERNEL)]
    assert mapped(log, 8, 15) == [e.digest for e in rtmr.rtmr2_events(uki)]
