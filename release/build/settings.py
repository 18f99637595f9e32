"""What a build is made of: roles, distributions, package sets, and where things lie here."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

from release.errors import BuildRefused, HostError


class Role(StrEnum):
    """What an image is for; `images/ROLE/` and `mkosi.conf.d/30-ROLE.conf` say what is in it."""

    SERVER = "server"
    AGGREGATOR = "aggregator"
    CLIENT = "client"


class Flavor(StrEnum):
    """`production` is what operators run; `mock` is for emulation and CI and says so everywhere."""

    PRODUCTION = "production"
    MOCK = "mock"


@dataclass(frozen=True, slots=True)
class Archive:
    """A package archive: its name is the last part of a mirror's path, as mirrors lay them out."""

    name: str
    suites: tuple[str, ...]
    components: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Distribution:
    """A distribution and the one release of it that images are built from."""

    name: str
    release: str
    archives: tuple[Archive, ...]
    keyring: str
    python: str
    glibc: tuple[int, int]


# zstd level of an initrd: what releases have. Lower ones are for quick builds.
COMPRESS_LEVEL = 19
DEBIAN_KEYRING = "usr/share/keyrings/debian-archive-keyring.gpg"
DISTRIBUTIONS = {
    "debian": Distribution(
        name="debian",
        release="trixie",
        archives=(
            Archive("debian", ("trixie", "trixie-updates"), ("main",)),
            Archive("debian-security", ("trixie-security",), ("main",)),
        ),
        keyring=DEBIAN_KEYRING,
        python="3.13",
        glibc=(2, 41),
    ),
    "ubuntu": Distribution(
        name="ubuntu",
        release="noble",
        archives=(
            Archive("ubuntu", ("noble", "noble-updates", "noble-security"), ("main", "universe")),
        ),
        keyring="usr/share/keyrings/ubuntu-archive-keyring.gpg",
        python="3.12",
        glibc=(2, 39),
    ),
}
# Where the builder's own tools come from, whatever the image: mkosi, QEMU and the firmware are
# newer in sid than anywhere else, and what writes image bytes comes from a stable release.
SID = Archive("debian", ("sid",), ("main",))


@dataclass(frozen=True, slots=True)
class PackageSet:
    """A named closure of packages that is resolved, locked and unpacked as one."""

    name: str
    packages: tuple[str, ...]
    essential: bool = False
    closure: bool = True


TRIXIE_SETS = (
    # What mkosi starts in its sandbox, and the zstd and ukify that decide an image's bytes.
    PackageSet(
        "tools",
        (
            *("apt", "apt-utils", "ca-certificates", "cpio", "debian-archive-keyring", "kmod"),
            *("libfaketime", "mount", "python3", "python3-pefile", "systemd", "systemd-boot-efi"),
            *("systemd-ukify", "ubuntu-keyring", "xz-utils", "zstd"),
        ),
        essential=True,
    ),
)
# The sets that a build takes; others are for tests.
BUILDER_SETS = ("mkosi", "tools", "firmware", "emulator")
SID_SETS = (
    PackageSet("mkosi", ("mkosi",), closure=False),
    PackageSet("firmware", ("ovmf-inteltdx",), closure=False),
    PackageSet("emulator", ("dosfstools", "mtools", "qemu-system-x86", "swtpm", "swtpm-tools")),
    # For tests only: a firmware that knows a TPM, and an EFI shell that must be refused.
    PackageSet("test-firmware", ("efi-shell-x64", "ovmf-generic"), closure=False),
)


@dataclass(frozen=True, slots=True)
class Paths:
    """The checkout that is built and the cache beside it; nothing else on the host is written."""

    root: Path
    cache: Path

    @classmethod
    def of(cls, root: Path) -> Paths:
        """Take the cache from ZIPNET_CACHE, else from the user's cache folder."""
        chosen = os.environ.get("ZIPNET_CACHE")
        if chosen:
            return cls(root, Path(chosen).absolute())
        base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
        return cls(root, Path(base) / "zipnet")

    def version(self) -> str:
        """The version of what goes into images. Raises BuildRefused if the source names none."""
        source = (self.root / "zipnet" / "__init__.py").read_text("utf-8")
        match = re.search(r'^__version__ = "([0-9][0-9A-Za-z.+]*)"$', source, re.MULTILINE)
        if match is None:
            raise BuildRefused("zipnet/__init__.py names no version", rule="an image has a version")
        return match[1]

    @property
    def locks(self) -> Path:
        """The folder of the package locks."""
        return self.root / "images" / "locks"

    @property
    def python_lock(self) -> Path:
        """The lock of every Python dependency that installs anywhere."""
        return self.root / "requirements.lock"

    @property
    def tpm_lock(self) -> Path:
        """The lock of what is built against the host's libtss2."""
        return self.root / "requirements-tpm.lock"


def host_distribution(os_release: Path = Path("/etc/os-release")) -> Distribution:
    """The host's own distribution, as mkosi chooses it. Raises HostError for any other."""
    try:
        lines = os_release.read_text("utf-8").splitlines()
    except OSError as error:
        raise HostError(
            "cannot tell this host's distribution",
            got=f"{os_release}: {error.strerror}",
            rule="images are the host's distribution unless --distribution says otherwise",
            hint="pass --distribution debian or --distribution ubuntu",
        ) from error
    fields = dict(line.split("=", 1) for line in lines if "=" in line)
    names = [fields.get("ID", ""), *fields.get("ID_LIKE", "").strip('"').split()]
    for name in (part.strip('"') for part in names):
        if name in DISTRIBUTIONS:
            return DISTRIBUTIONS[name]
    raise HostError(
        "this host's distribution is not one that images are built from",
        expected=" or ".join(DISTRIBUTIONS),
        got=fields.get("ID", "nothing"),
        rule="images are the host's distribution unless --distribution says otherwise",
        hint="pass --distribution debian (and --mirror, if apt here lists no Debian archive)",
    )
