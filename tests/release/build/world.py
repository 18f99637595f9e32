"""A whole build in small: packages of a signed archive, among them a mkosi and a QEMU of ours."""

import io
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
from rich.console import Console

from release.build import supply, wheels
from release.build.console import Steps
from release.build.pipeline import Builder, Request
from release.build.settings import (
    DISTRIBUTIONS,
    Distribution,
    Flavor,
    PackageSet,
    Paths,
    Role,
)
from release.build.supply import Supply
from tests.attestation.measure import synthetic
from tests.release.build.support import Repository, program

# Plays mkosi: takes an image that lies beside it. $STAGE/images/fail makes it fail.
MKOSI = """\
import json, sys
from pathlib import Path
here, arguments = Path(__file__).parent, sys.argv[1:]
value = lambda name: arguments[arguments.index(name) + 1]
stage, role = Path(value("--directory")), value("--profile")
if (stage / "images/fail").exists():
    print((stage / "images/fail").read_text())
    sys.exit(1)
print("a line of mkosi")
if arguments[-1] == "build":
    pool = sorted(p.name for p in Path(value("--package-directory")).iterdir())
    assert any(name.startswith("systemd_") for name in pool), pool
    out = Path(value("--output-directory"))
    content = (here / f"{role}.efi").read_bytes()
    (out / f"zipnet-{role}.efi").write_bytes(content)
    (out / f"zipnet-{role}.vmlinuz").write_bytes(b"MZ kernel")
    (out / f"zipnet-{role}.manifest").write_text("{}")
elif arguments[-2:] == ["--json", "summary"]:
    more = stage / "images/packages"
    names = more.read_text().split() if more.exists() else ["systemd"]
    print(json.dumps({"Images": [{"Packages": names}]}))
else:
    print(f"summary of {role}")
"""
LINKER = '#!/bin/sh\nshift 2; exec "$@"\n'
# Plays QEMU with a firmware that admits images whose command line is quiet.
QEMU = """\
#!/bin/sh
kernel= initrd=
while [ $# -gt 0 ]; do
    case $1 in -kernel) kernel=$2; shift ;; -initrd) initrd=$2; shift ;; esac
    shift
done
if grep -q quiet "$kernel" && [ -z "$initrd" ]; then
    for role in server aggregator client; do
        grep -q "role=$role" "$kernel" && echo "zipnet $role 0.1.0: preflight"
    done
else
    echo "OVMF: Secure boot image verification failed."
    echo "BdsDxe: No bootable option or device was found."
fi
exec sleep 1000
"""


def uki(role: Role) -> bytes:
    return synthetic.uki({".cmdline": f"console=ttyS0 quiet role={role}".encode()})


def fill(made: Repository) -> None:
    """Put everything that a build needs into an archive."""
    linker = {"usr/lib64/ld-linux-x86-64.so.2": LINKER.encode()}
    made.add("trixie", "base-files", Essential="yes", files={"etc/issue": b""})
    made.add("trixie", "systemd", "257.8-1", Depends="libsystemd", files={"usr/lib/s": b"s"})
    made.add("trixie", "libsystemd", "257.8-1")
    made.add("trixie", "python3", "3.13.5-1")
    made.add("trixie", "fake-tools", "2.0", files=linker, executable=True)
    made.add("trixie-updates", "tzdata")
    made.add("trixie-security", "openssl", "3.5", archive="debian-security")
    inside = "usr/lib/python3/dist-packages/mkosi"
    images = {f"{inside}/{role}.efi": uki(role) for role in Role}
    made.add(
        "sid",
        "mkosi",
        "27.1-1",
        files={f"{inside}/__init__.py": b"", f"{inside}/__main__.py": MKOSI.encode(), **images},
    )
    firmware = synthetic.Firmware().build()
    made.add(
        "sid", "ovmf-inteltdx", "2026.08-1", files={"usr/share/ovmf/OVMF.inteltdx.ms.fd": firmware}
    )
    qemu = {**linker, "usr/bin/qemu-system-x86_64": QEMU.encode()}
    made.add("sid", "qemu-system-x86", "1:10.2-1", files=qemu, executable=True)
    made.publish()


SETS = {
    "TRIXIE_SETS": (PackageSet("tools", ("fake-tools",), essential=True),),
    "SID_SETS": (
        PackageSet("mkosi", ("mkosi",), closure=False),
        PackageSet("firmware", ("ovmf-inteltdx",), closure=False),
        PackageSet("emulator", ("qemu-system-x86",)),
    ),
}
VERSION = "0.7.1"
REQUIREMENTS = f"""\
# group: runtime
click==8.1.8 --hash=sha256:{"d0" * 32}
# group: build
# group: dev
"""


@dataclass
class World:
    """A checkout, a cache and an archive."""

    repository: Repository
    paths: Paths
    distribution: Distribution
    out: Path

    @property
    def apt(self) -> list[str]:
        """The options that name the archive."""
        return [f"--mirror={name}={url}" for name, url in self.repository.mirrors.bases]

    def supply(self, *, locked: bool = False) -> Supply:
        return Supply(self.paths.cache, self.paths.locks, self.repository.mirrors, locked)

    def builder(self, *, locked: bool = False) -> Builder:
        console = Console(file=io.StringIO(), width=200, color_system=None, soft_wrap=True)
        steps = Steps(console, self.paths.cache / "logs" / "one")
        return Builder(self.paths, self.supply(locked=locked), steps)

    def request(self, *roles: Role) -> Request:
        return Request(roles or (Role.SERVER,), self.distribution, Flavor.PRODUCTION, self.out)

    def left(self) -> list[str]:
        """What lies in the folder for half-done things."""
        work = self.paths.cache / "work"
        return [p.name for p in work.iterdir()] if work.exists() else []


def said(builder: Builder) -> str:
    file = builder.steps.console.file
    assert isinstance(file, io.StringIO)
    return file.getvalue()


def create(repository: Repository, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> World:
    """A checkout with an empty cache in `tmp_path`."""
    debian = replace(DISTRIBUTIONS["debian"], keyring=str(repository.keyring))
    monkeypatch.setitem(DISTRIBUTIONS, "debian", debian)
    monkeypatch.setattr(supply, "DEBIAN_KEYRING", str(repository.keyring))
    for name, sets in SETS.items():
        monkeypatch.setattr(supply, name, sets)

    def no_pip(folder: Path, *_: object) -> None:
        (folder / "wheels").mkdir(parents=True)
        (folder / "site-packages" / "click").mkdir(parents=True)

    monkeypatch.setattr(wheels, "_build", no_pip)
    root = tmp_path / "root"
    for name in ("images/locks", "mkosi.conf.d", "attestation", "zipnet", "release"):
        (root / name).mkdir(parents=True)
    for name in ("mkosi.conf", "zipnet/__init__.py", "build.py", "pyproject.toml"):
        (root / name).touch()
    (root / "zipnet/__init__.py").write_text(f'__version__ = "{VERSION}"\n')
    (root / "requirements.lock").write_text(REQUIREMENTS)
    cache = tmp_path / "cache"
    cache.mkdir()
    return World(repository, Paths(root, cache), debian, tmp_path / "out")


def fake_apt(programs: Path) -> None:
    """The host's apt knows no archive; everything else goes to the real one, without retries."""
    script = """
case "$*" in "update --print-uris "*) exit 0 ;; esac
exec /usr/bin/apt-get "$@" -o Acquire::Retries=0"""
    program(programs, "apt-get", script)
