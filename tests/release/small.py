"""A checkout and images in small, complete enough to make releases of."""

import functools
import json
import shutil
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from rich.console import Console

from attestation.errors import Explained
from attestation.measure import firmware
from attestation.measure.record import BootProof, Measurements, measure_image
from release import make
from release.build import outputs
from release.build.console import Steps
from release.build.deb import digest
from release.build.lock import SOURCE_DATE_EPOCH, Lock
from release.build.packages import Packages
from release.build.settings import Flavor, Paths, Role
from release.build.wheels import Wheel
from release.collect import upstream
from release.keys import Key
from release.verify_files import Opened
from tests.attestation.measure.synthetic import Firmware, uki
from tests.release.build.support import TIMESTAMP, deb

VERSION = "1.2.3"
NOW = datetime(2026, 5, 1, tzinfo=UTC)
KEY = Ed25519PrivateKey.from_private_bytes(b"k" * 32)
OTHER_KEY = Ed25519PrivateKey.from_private_bytes(b"o" * 32)
SIGNER = Key("given", KEY.public_key().public_bytes_raw())
TOOLS = {
    "mkosi": (deb("mkosi", "26-1", b"mkosi"),),
    "tools": (deb("systemd-ukify", "257.9-1", b"ukify"), deb("zstd", "1.5.7", b"zstd")),
    "firmware": (deb("ovmf-inteltdx", "2026.02-1", b"firmware"),),
    "emulator": (deb("qemu-system-x86", "1:11.0", b"emulator"),),
}
CONTENTS = (b"bytes", b"mkosi", b"ukify", b"zstd", b"firmware", b"emulator")
WHEEL = Wheel("click", "8.3.0", "c" * 64, "click-8.3.0-py3-none-any.whl")
REQUIREMENTS = f"""# group: runtime
click==8.3.0 \\
    --hash=sha256:{WHEEL.sha256}
# group: build
rich==14.0.0 --hash=sha256:{"d" * 64}
# group: dev
"""


@contextmanager
def refused(kind: type[Explained], rule: str, *words: str) -> Iterator[None]:
    """The block must raise exactly this kind of error by this rule, with these words in it."""
    with pytest.raises(Explained) as caught:
        yield
    assert (type(caught.value), caught.value.rule) == (kind, rule)
    text = caught.value.diagnostics()
    for word in words:
        assert word in text
    text.encode()


@functools.cache
def image(role: Role) -> bytes:
    return uki({".osrel": f"ID=zipnet\nVARIANT_ID={role}\n".encode()})


@functools.cache
def bound(role: Role) -> bytes:
    return firmware.bind(Firmware().build(), image(role))


@functools.cache
def measurements(
    role: Role, *, is_dev: bool = False, proof: BootProof = BootProof.PASSED
) -> Measurements:
    return measure_image(role, bound(role), image(role), is_dev=is_dev, boot_proof=proof)


def packages(role: Role, /, **changes: Any) -> Packages:
    made = Packages(
        role=role,
        flavor=Flavor.PRODUCTION,
        distribution="debian",
        release="trixie",
        source_date_epoch=SOURCE_DATE_EPOCH,
        compress_level=19,
        packages=(deb("base"), deb(f"only-{role}", data=role.encode())),
        wheels=(WHEEL,),
        builder=tuple(TOOLS.items()),
    )
    return replace(made, **changes)


def build(out: Path, role: Role, found: Measurements | None = None, /, **changes: Any) -> Path:
    """What `build.py` leaves in `out/ROLE`; `changes` are to packages.json."""
    folder = out / role
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    (folder / f"zipnet-{role}.efi").write_bytes(image(role))
    (folder / f"zipnet-{role}.fd").write_bytes(bound(role))
    files = {
        "packages.json": packages(role, **changes).dumps(),
        "sbom.cdx.json": b'{"bomFormat": "CycloneDX"}\n',
        "run-qemu": b"#!/bin/sh\n",
    }
    found = found or measurements(role)
    outputs.write(folder, files, found, upstream(found).hex())
    return folder


def resum(folder: Path) -> None:
    """Write sha256sums.txt anew, after a change."""
    (folder / outputs.SUMS).unlink()
    lines = [f"{digest(p)}  {p.name}\n" for p in sorted(folder.iterdir())]
    (folder / outputs.SUMS).write_text("".join(lines))


def git(root: Path, *arguments: str) -> str:
    command = ["git", "-C", str(root), "-c", "user.name=n", "-c", "user.email=e@localhost"]
    command += ["-c", "commit.gpgsign=false"]
    done = subprocess.run([*command, *arguments], check=True, capture_output=True, text=True)
    return done.stdout.strip()


def commit(root: Path) -> str:
    git(root, "add", "--all")
    git(root, "commit", "--quiet", "--message", "all")
    return git(root, "rev-parse", "HEAD")


@dataclass(frozen=True, slots=True)
class World:
    """A checkout with committed locks, and beside it the builds of all roles."""

    paths: Paths
    out: Path
    to: Path

    @classmethod
    def create(cls, folder: Path) -> "World":
        paths = Paths(folder / "checkout", folder / "cache")
        world = cls(paths, folder / "out", folder / "released")
        (paths.root / "zipnet").mkdir(parents=True)
        world.set_version(VERSION)
        paths.locks.mkdir(parents=True)
        sets = tuple((str(role), packages(role).packages) for role in Role)
        for name, content in (("debian-trixie", sets), ("tools", tuple(TOOLS.items()))):
            lock = Lock(name, TIMESTAMP, SOURCE_DATE_EPOCH, content)
            (paths.locks / f"{name}.lock").write_bytes(lock.dumps())
        paths.python_lock.write_text(REQUIREMENTS)
        git(paths.root, "init", "--quiet")
        commit(paths.root)
        for role in Role:
            build(world.out, role)
        return world

    def set_version(self, version: str) -> None:
        (self.paths.root / "zipnet/__init__.py").write_text(f'__version__ = "{version}"\n')

    def request(self, **changes: Any) -> make.Request:
        values: dict[str, Any] = {
            "version": VERSION,
            "out": self.out,
            "to": self.to,
            "key": KEY,
            "signer": SIGNER,
        }
        return make.Request(**(values | changes))

    def make(self, **changes: Any) -> Opened:
        console = Console(stderr=True, quiet=True)
        steps = Steps(console, self.paths.cache / "logs")
        return make.make(self.paths, self.request(**changes), steps)


def altered(manifest: bytes, change: Callable[[dict[str, Any]], object]) -> bytes:
    """The manifest with a change to its decoded JSON, canonical again."""
    document = json.loads(manifest)
    change(document)
    return json.dumps(document, indent=2, sort_keys=True).encode() + b"\n"
