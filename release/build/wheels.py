"""The guest's Python dependencies: the lock's `runtime` group, installed offline for its Python."""

from __future__ import annotations

import os
import re
import shutil
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

from release.build import pythonlock
from release.build.deb import digest
from release.build.process import run
from release.build.settings import Distribution
from release.bundle import Bundle
from release.errors import HostError, LockError

# Raise it when runtimes are made in another way, so that old ones are not taken for new ones.
RECIPE = "2"
# How this user's pip reaches its index. What is installed is fixed by the lock's hashes.
PIP_NETWORK = (
    "PIP_CERT",
    "PIP_CONFIG_FILE",
    "PIP_EXTRA_INDEX_URL",
    "PIP_INDEX_URL",
    "PIP_PROXY",
    "PIP_TRUSTED_HOST",
    "REQUESTS_CA_BUNDLE",
)


@dataclass(frozen=True, slots=True)
class Wheel:
    """One installed wheel."""

    name: str
    version: str
    sha256: str
    file: str


@dataclass(frozen=True, slots=True)
class Runtime:
    """A site-packages folder for an image, and what is in it."""

    site_packages: Path
    wheels: tuple[Wheel, ...]

    def files(self) -> tuple[Path, ...]:
        """The wheels themselves."""
        return tuple(self.site_packages.parent / "wheels" / wheel.file for wheel in self.wheels)


def install(
    lock: Path,
    distribution: Distribution,
    cache: Path,
    log: Path,
    bundle: Bundle | None = None,
) -> Runtime:
    """Download (once) and unpack the locked wheels for the distribution's Python.

    With a `bundle`, they are taken from it and no index is asked. Raises ToolFailed or HostError if
    a wheel can't be had, LockError for bytes that are not locked.
    """
    requirements = pythonlock.read(lock)["runtime"]
    pins = pythonlock.pins(requirements)
    key = pythonlock.key(requirements, distribution.name, distribution.python, RECIPE)
    target = cache / f"runtime-{key}"
    if not target.is_dir():
        cache.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=cache, prefix=".runtime-") as scratch:
            shelf = None
            if bundle is not None:
                shelf = Path(scratch) / "shelf"
                bundle.wheels(pins, shelf)
            _build(Path(scratch) / "new", requirements, distribution, log, shelf)
            try:
                (Path(scratch) / "new").rename(target)
            except OSError:
                # Another build finished the same folder first.
                if not target.is_dir():
                    raise
    wheels = []
    for path in sorted((target / "wheels").iterdir()):
        name, version = path.name.split("-")[:2]
        name = re.sub(r"[-_.]+", "-", name).lower()
        sha256 = digest(path)
        if name not in pins or sha256 not in pins[name][1]:
            raise LockError(
                f"the wheel {path.name} is not one of the lock",
                got=sha256,
                rule="an image installs only what requirements.lock names",
                hint=f"remove {target} and build again",
            )
        wheels.append(Wheel(name, version, sha256, path.name))
    if bundle is not None:
        bundle.require(wheel.file for wheel in wheels if not bundle.has(wheel.sha256))
    return Runtime(target / "site-packages", tuple(wheels))


def _build(
    folder: Path, requirements: str, distribution: Distribution, log: Path, shelf: Path | None
) -> None:
    wheels, site = folder / "wheels", folder / "site-packages"
    wheels.mkdir(parents=True)
    listed = folder / "requirements.txt"
    listed.write_text(requirements, "ascii")
    major, minor = distribution.glibc
    tags = ["--only-binary=:all:", "--implementation=cp", f"--python-version={distribution.python}"]
    tags += [f"--platform=manylinux_{major}_{n}_x86_64" for n in range(minor, 16, -1)]
    tags += ["--platform=manylinux2014_x86_64", "--platform=any"]
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--quiet"]
    locked = ["--require-hashes", "--no-deps", *tags, "-r", str(listed)]
    source = ["--no-index", "--find-links", str(shelf)] if shelf is not None else []
    run(
        [*pip, "download", "--dest", wheels, *source, *locked],
        log=log,
        env={name: os.environ[name] for name in PIP_NETWORK if name in os.environ},
        hint="check the network and the package index that pip is configured for",
    )
    offline: list[str | Path] = [
        "--isolated",
        "install",
        "--no-index",
        "--find-links",
        wheels,
        "--no-compile",
    ]
    run([*pip, *offline, "--target", site, *locked], log=log)
    _drop_scripts(site)
    if not any(site.iterdir()):
        raise HostError("pip installed nothing", rule="the runtime group is not empty")


def _drop_scripts(site: Path) -> None:
    """Remove console scripts: their first line is the path of the interpreter that ran pip.

    So are their hashes in the wheels' lists of files, which would carry that path into an image.
    """
    shutil.rmtree(site / "bin", ignore_errors=True)
    for record in site.glob("*.dist-info/RECORD"):
        lines = record.read_bytes().splitlines(keepends=True)
        record.write_bytes(b"".join(line for line in lines if not line.startswith(b"../../bin/")))
