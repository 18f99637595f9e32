"""Built images, shared by all tests of a run: each (role, flavour) is built once, at zstd -3."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from attestation.measure.pe import Pe
from release.build import cpio
from release.build.cpio import Entry
from release.build.emulator import Boot, Emulator
from release.build.mirror import choose
from release.build.settings import Paths, Role
from release.build.supply import Supply, base_firmware
from release.build.tools import Tree

ROOT = Path(__file__).resolve().parents[2]
QUICK = ("--compress-level", "3")
BUILD_LIMIT = 900


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if "tests/image/" in item.path.as_posix():
            item.add_marker(pytest.mark.image)


@dataclass(frozen=True, slots=True)
class Call:
    """A finished call of build.py."""

    status: int
    out: str
    err: str

    def json(self) -> Any:
        assert self.status == 0, self.err
        return json.loads(self.out)


def build(*arguments: str | Path, root: Path = ROOT, prefix: tuple[str, ...] = ()) -> Call:
    """Call build.py as a user does, in this environment's interpreter."""
    command = [*prefix, sys.executable, str(root / "build.py"), *map(str, arguments)]
    done = subprocess.run(
        command, capture_output=True, text=True, check=False, timeout=BUILD_LIMIT, cwd=root
    )
    sys.stderr.write(done.stderr)
    return Call(done.returncode, done.stdout, done.stderr)


@dataclass(frozen=True, slots=True)
class Image:
    """A built role."""

    role: Role
    folder: Path

    @property
    def uki(self) -> Path:
        return self.folder / f"zipnet-{self.role}.efi"

    @property
    def firmware(self) -> Path:
        return self.folder / f"zipnet-{self.role}.fd"

    @property
    def mr_td(self) -> str:
        return (self.folder / "mrtd.hex").read_text("ascii")


@dataclass(frozen=True, slots=True)
class Toolbox:
    """The builder's trees, and those that only tests use."""

    emulator: Emulator
    tools: Tree
    base: bytes
    ovmf: Tree
    supply: Supply

    @property
    def shell(self) -> Path:
        return self.ovmf.file("usr/share/efi-shell-x64/shellx64.efi")

    def run(self, *command: str | Path, env: dict[str, str] | None = None) -> None:
        """Run a program of the emulator tree."""
        program, *rest = command
        subprocess.run(
            [*self.emulator.tree.command(str(program)), *rest],
            check=True,
            capture_output=True,
            env=os.environ | (env or {}),
        )


def checkout(target: Path) -> Path:
    """A copy of what git would give, with the changes of this work tree."""
    done = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        check=True,
        capture_output=True,
    )
    for raw in done.stdout.split(b"\0"):
        source = ROOT / os.fsdecode(raw)
        if raw and source.exists():
            copy = target / os.fsdecode(raw)
            copy.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(source, copy, follow_symlinks=False)
    return target


@pytest.fixture(scope="session")
def images(tmp_path_factory: pytest.TempPathFactory) -> dict[Role, Image]:
    """All three production images, boot proof included; locks are made from what they used."""
    out = tmp_path_factory.mktemp("images") / "out"
    result = build("--role", "all", *QUICK, "--out", out, "--json").json()
    assert [entry["boot_proof"] for entry in result["images"]] == ["passed"] * len(Role)
    return {Role(e["role"]): Image(Role(e["role"]), Path(e["folder"])) for e in result["images"]}


@pytest.fixture(scope="session")
def server(images: dict[Role, Image]) -> Image:
    return images[Role.SERVER]


@pytest.fixture(scope="session")
def client(images: dict[Role, Image]) -> Image:
    return images[Role.CLIENT]


@pytest.fixture(scope="session")
def mock_server(tmp_path_factory: pytest.TempPathFactory, images: dict[Role, Image]) -> Image:
    out = tmp_path_factory.mktemp("mock") / "out"
    build("--role", "server", "--flavor", "mock", *QUICK, "--out", out, "--json").json()
    return Image(Role.SERVER, out / "server")


@pytest.fixture(scope="session")
def toolbox(images: dict[Role, Image], tmp_path_factory: pytest.TempPathFactory) -> Toolbox:
    """The trees that the images were just built with (no index is read again)."""
    paths = Paths.of(ROOT)
    supply = Supply(paths.cache, paths.locks, choose((), "debian", None), locked=False)
    log = tmp_path_factory.mktemp("toolbox") / "log"
    found = supply.tools(log, refresh=False)
    trees = {
        n: supply.tree(found, n, log) for n in ("emulator", "tools", "firmware", "test-firmware")
    }
    return Toolbox(
        emulator=Emulator(trees["emulator"]),
        tools=trees["tools"],
        base=base_firmware(trees["firmware"]),
        ovmf=trees["test-firmware"],
        supply=supply,
    )


def section(image: Image, name: str) -> bytes:
    """A section of an image's UKI."""
    loaded = Pe.parse(image.uki.read_bytes()).loaded(name)
    assert loaded is not None, name
    return bytes(loaded[0])


def unpacked(image: Image, toolbox: Toolbox) -> dict[str, Entry]:
    """The files of an image's initrd."""
    zstd = [str(part) for part in toolbox.tools.command("usr/bin/zstd")]
    done = subprocess.run(
        [*zstd, "-d", "-c", "-q"],
        input=section(image, ".initrd"),
        capture_output=True,
        check=True,
    )
    found = {entry.name: entry for entry in cpio.read(done.stdout)}
    assert len(found) > 500
    return found


@pytest.fixture(scope="session")
def members(images: dict[Role, Image], toolbox: Toolbox) -> dict[Role, dict[str, Entry]]:
    """The files of each production image."""
    return {role: unpacked(image, toolbox) for role, image in images.items()}


@pytest.fixture(scope="session")
def mock_members(mock_server: Image, toolbox: Toolbox) -> dict[str, Entry]:
    """The files of the mock server's image."""
    return unpacked(mock_server, toolbox)


def esp(toolbox: Toolbox, folder: Path, program: Path) -> Path:
    """A FAT disk with `program` as its default boot loader."""
    disk = folder / "esp.img"
    size = program.stat().st_size // (1 << 20) + 40
    with disk.open("wb") as file:
        file.truncate(size << 20)
    settings = {"MTOOLS_SKIP_CHECK": "1"}
    toolbox.run("usr/sbin/mkfs.fat", "-F", "32", disk)
    toolbox.run("usr/bin/mtools", "-c", "mmd", "-i", disk, "::EFI", "::EFI/BOOT", env=settings)
    toolbox.run(
        *("usr/bin/mtools", "-c", "mcopy", "-i", disk, program, "::EFI/BOOT/BOOTX64.EFI"),
        env=settings,
    )
    return disk


def transcript(boot: Boot) -> str:
    return "\n".join(boot.lines)


def said(boot: Boot, pattern: str) -> bool:
    return any(re.search(pattern, line) for line in boot.lines)
