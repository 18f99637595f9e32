"""`build.py doctor`: what this host lacks for a build, and the next step for each."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

from release.build import mirror, process
from release.build.deb import APT_HELPER
from release.build.process import run
from release.build.settings import DEBIAN_KEYRING, Distribution, Paths
from release.errors import ReleaseError

PROGRAMS = ("apt-get", "apt-cache", "apt-config", "dpkg-deb", "tar", "python3")
# A first build keeps 1.5 GiB of trees, packages and caches, and needs 1 GiB while it runs.
NEEDED = 3 << 30


class Status(StrEnum):
    """`bad` stops a build; `note` does not."""

    OK = "ok"
    NOTE = "note"
    BAD = "bad"


@dataclass(frozen=True, slots=True)
class Finding:
    """One check: what was looked at, how it is, and what to do about it."""

    check: str
    status: Status
    detail: str
    hint: str = ""


def examine(
    paths: Paths, distribution: Distribution, options: tuple[str, ...]
) -> Iterator[Finding]:
    """All checks, in the order in which a build would hit them."""
    yield _version()
    yield _programs()
    yield _keyring(Path("/") / DEBIAN_KEYRING)
    yield _namespaces()
    yield _disk(paths.cache)
    yield from _mirrors(distribution, options)
    yield _tdx()


def _version() -> Finding:
    version = ".".join(map(str, sys.version_info[:3]))
    good = sys.version_info >= (3, 11)
    return Finding(
        "python", Status.OK if good else Status.BAD, version, "" if good else "use 3.11 or newer"
    )


def _programs() -> Finding:
    missing = [name for name in PROGRAMS if shutil.which(name, path=process.PATH) is None]
    if not Path(APT_HELPER).exists():
        missing.append(APT_HELPER)
    if missing:
        return Finding(
            "programs", Status.BAD, f"missing: {', '.join(missing)}", "build on Debian or Ubuntu"
        )
    return Finding("programs", Status.OK, ", ".join(PROGRAMS))


def _keyring(path: Path) -> Finding:
    if path.is_file():
        return Finding("keyring", Status.OK, str(path))
    return Finding("keyring", Status.BAD, f"{path} is missing", "install debian-archive-keyring")


def _namespaces() -> Finding:
    name = "user namespaces"
    if os.geteuid() == 0:
        command = ["unshare", "--mount", "--pid", "--fork", "true"]
    else:
        command = ["unshare", "--user", "--map-root-user", "--mount", "true"]
    try:
        run(command)
    except ReleaseError as error:
        return Finding(
            name,
            Status.BAD,
            str(error),
            "run as root, or allow them (sysctl kernel.unprivileged_userns_clone=1, "
            "kernel.apparmor_restrict_unprivileged_userns=0)",
        )
    return Finding(name, Status.OK, "root" if os.geteuid() == 0 else "unprivileged")


def _disk(cache: Path) -> Finding:
    place = next(p for p in (cache, *cache.parents) if p.exists())
    free = shutil.disk_usage(place).free
    text = f"{free / (1 << 30):.1f} GiB free for {cache}"
    if free < NEEDED:
        return Finding("disk", Status.BAD, text, "free some space, or point ZIPNET_CACHE elsewhere")
    return Finding("disk", Status.OK, text)


def _mirrors(distribution: Distribution, options: tuple[str, ...]) -> Iterator[Finding]:
    names = ["debian", *(a.name for a in distribution.archives if a.name != "debian")]
    try:
        chosen = mirror.choose(options, distribution.archives[0].name, None)
    except ReleaseError as error:
        yield Finding("mirrors", Status.BAD, str(error), error.hint)
        return
    for name in names:
        try:
            yield Finding(f"mirror {name}", Status.OK, chosen.base(name))
        except ReleaseError as error:
            yield Finding(f"mirror {name}", Status.BAD, str(error), error.hint)


def _tdx() -> Finding:
    name = "tdx host"
    parameter = Path("/sys/module/kvm_intel/parameters/tdx")
    try:
        offered = parameter.read_text("ascii").strip() == "Y"
    except (OSError, UnicodeDecodeError):
        offered = False
    if offered:
        return Finding(name, Status.OK, "KVM offers TDX; `run-qemu --tdx` probes the rest")
    return Finding(
        name, Status.NOTE, "KVM offers no TDX: images build here and run emulated, not as a TD"
    )
