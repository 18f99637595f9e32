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
from release.errors import HostError, LockError

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


def install(lock: Path, distribution: Distribution, cache: Path, log: Path) -> Runtime:
    """Download (once) and unpack the locked wheels for the distribution's Python.

    Raises ToolFailed or HostError if a wheel can't be had, LockError for bytes that are not locked.
    """
    requirements = pythonlock.read(lock)["runtime"]
    target = (
        cache / f"runtime-{pythonlock.key(requirements, distribution.name, distribution.python)}"
    )
    if not target.is_dir():
        cache.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=cache, prefix=".runtime-") as scratch:
            _build(Path(scratch) / "new", requirements, distribution, log)
            try:
                (Path(scratch) / "new").rename(target)
            except OSError:
                # Another build finished the same folder first.
                if not target.is_dir():
                    raise
    pins = pythonlock.pins(requirements)
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
    return Runtime(target / "site-packages", tuple(wheels))


def _build(folder: Path, requirements: str, distribution: Distribution, log: Path) -> None:
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
    run(
        [*pip, "download", "--dest", wheels, *locked],
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
    # Console scripts carry this host's interpreter; caches carry its clock.
    shutil.rmtree(site / "bin", ignore_errors=True)
    if not any(site.iterdir()):
        raise HostError("pip installed nothing", rule="the runtime group is not empty")
