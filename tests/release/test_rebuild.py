"""The second build of a release: what it is started with, and what a difference says."""

import hashlib
import subprocess
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest

from attestation.measure import firmware
from attestation.measure.record import BootProof, measure_image
from release import rebuild as module
from release.build import cpio, outputs
from release.build.deb import Deb
from release.build.packages import Packages
from release.build.settings import Flavor, Role
from release.build.tools import Tree
from release.build.wheels import Wheel
from release.collect import collect, upstream
from release.errors import BuildRefused, HostError, ReleaseRejected, ToolFailed
from release.manifest import Locked, Locks, Manifest
from release.rebuild import Difference, compare, export, rebuild, require_identical
from tests.attestation.measure import synthetic
from tests.release.build.support import deb, needs, program, refused

CLIENT = Role.CLIENT
PACKAGES = Packages(
    role=CLIENT,
    flavor=Flavor.PRODUCTION,
    distribution="debian",
    release="trixie",
    source_date_epoch=1735689600,
    compress_level=3,
    packages=(deb("alpha"), deb("beta")),
    wheels=(Wheel("click", "8.1.8", "0" * 64, "click-8.1.8-py3-none-any.whl"),),
    builder=(("firmware", (deb("ovmf-inteltdx"),)), ("tools", (deb("zstd"),))),
)
MEMBERS = {
    "usr": (0o40755, b""),
    "usr/lib/zipnet/lib/python3.13/site-packages/zipnet/cli.py": (0o100644, b"cli"),
    "usr/share/alpha": (0o100644, b"of alpha"),
}
LOCK_FILES = {
    "images/locks/debian-trixie.lock": b"images",
    "images/locks/tools.lock": b"tools",
    "requirements.lock": b"python",
}
EFI, FD = "zipnet-client.efi", "zipnet-client.fd"


def uki(members: dict[str, tuple[int, bytes]] | None = None, **sections: bytes) -> bytes:
    # "Compression" of these tests: a letter in front.
    initrd = b"Z" + cpio.write(MEMBERS if members is None else members)
    return synthetic.uki(
        {".initrd": initrd, **{f".{name}": content for name, content in sections.items()}}
    )


BASE = synthetic.Firmware().build()


def build(
    folder: Path, image: bytes, packages: Packages = PACKAGES, base: bytes = BASE, end: bytes = b""
) -> Path:
    """What a build leaves, at `folder/client`."""
    out = folder / "client"
    out.mkdir(parents=True)
    bound = firmware.bind(base, image)
    (out / EFI).write_bytes(image)
    (out / FD).write_bytes(bound)
    found = measure_image("client", bound, image, is_dev=False, boot_proof=BootProof.PASSED)
    files = {
        "packages.json": packages.dumps(),
        "sbom.cdx.json": hashlib.sha256(image).hexdigest().encode(),
        "run-qemu": b"#!/bin/sh\n" + end,
    }
    outputs.write(out, files, found, upstream(found).hex())
    return folder


def manifest_of(folder: Path) -> Manifest:
    digests = {name: hashlib.sha256(data).hexdigest() for name, data in LOCK_FILES.items()}
    locks = (Locked(Path(name).name, sha256) for name, sha256 in digests.items())
    return Manifest(
        version="0.1.0",
        commit="0" * 40,
        source_date_epoch=PACKAGES.source_date_epoch,
        distribution=("debian", "trixie"),
        locks=Locks(*locks),
        tools=(("zstd", "1.5"),),
        compress_level=3,
        roles=(collect(folder / "client", CLIENT, 3).entry,),
    )


@dataclass(frozen=True)
class Released:
    """The artefacts of a release, its manifest, and a checkout."""

    folder: Path
    manifest: Manifest
    checkout: Path

    def compare(self, rebuilt: Path, reference: Path | None = None) -> list[Difference]:
        return compare(self.manifest, rebuilt, reference, sources=self.checkout)


@pytest.fixture
def released(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Released:
    tree = tmp_path / "tools"
    program(tree / "usr/lib64", "ld-linux-x86-64.so.2", 'shift 2; exec "$@"')
    program(tree / "usr/bin", "zstd", "head -c1 > /dev/null; exec cat")

    def unpack(name: str, debs: Sequence[Deb], *_: object) -> Tree:
        assert (name, tuple(debs)) == ("tools", PACKAGES.set_of("tools"))
        return Tree(tree)

    monkeypatch.setattr(module, "unpack", unpack)
    monkeypatch.setenv("ZIPNET_CACHE", str(tmp_path / "cache"))
    folder = build(tmp_path / "artifacts", uki())
    return Released(folder, manifest_of(folder), tmp_path / "checkout")


def test_identical(released: Released, tmp_path: Path) -> None:
    again = build(tmp_path / "again", uki())
    assert released.compare(again) == []
    assert released.compare(again, released.folder) == []
    require_identical([])


SITE = "usr/lib/zipnet/lib/python3.13/site-packages"
EPOCH = "source epoch 1735689600 and 1704067200"


@pytest.mark.parametrize(
    ("image", "packages", "inside", "origin", "detail"),
    [
        (
            uki(MEMBERS | {f"{SITE}/zipnet/cli.py": (0o100644, b"clI")}),
            PACKAGES,
            f"{SITE}/zipnet/cli.py",
            "this repository: zipnet/cli.py",
            "content, first at offset 2",
        ),
        (
            uki(MEMBERS | {"usr/lib/modules/6/kernel/loop.ko.xz": (0o100644, b"")}),
            PACKAGES,
            "usr/lib/modules/6/kernel/loop.ko.xz",
            "no package: images/, a maintainer script or mkosi",
            "only in the rebuilt image",
        ),
        (
            uki({name: value for name, value in MEMBERS.items() if name != "usr/share/alpha"}),
            PACKAGES,
            "usr/share/alpha",
            "no package: images/, a maintainer script or mkosi",
            "missing from the rebuilt image",
        ),
        (
            uki(MEMBERS | {"usr/lib/modules/6/modules.dep": (0o100644, b"")}),
            PACKAGES,
            "usr/lib/modules/6/modules.dep",
            "depmod in images/base/finalize.sh, over the kernel modules that the image has",
            "only in the rebuilt image",
        ),
        (
            uki(cmdline=b"console=ttyS1\0"),
            PACKAGES,
            ".cmdline",
            "the kernel command line of mkosi.conf",
            "first at offset ",
        ),
        (
            uki(linux=b"MZ other"),
            replace(PACKAGES, packages=(deb("alpha", "1.1"), deb("beta"))),
            ".linux",
            "the kernel package",
            "first at offset 3; packages.json: package ~ alpha 1.0 -> 1.1",
        ),
    ],
)
def test_the_first_difference_in_an_image(
    released: Released,
    tmp_path: Path,
    image: bytes,
    packages: Packages,
    inside: str,
    origin: str,
    detail: str,
) -> None:
    again = build(tmp_path / "again", image, packages)
    found = released.compare(again, released.folder)
    first = found[0]
    assert (first.role, first.file, first.path_in_image) == ("client", EFI, inside)
    assert first.origin == origin
    assert first.detail.startswith(detail)
    assert str(first) == f"client: {EFI}: {inside}: {first.detail} (from {origin})"
    # All else follows from it, and says so.
    assert found[1] == Difference(
        "client", FD, None, f"firmware policy, which names the hash of {EFI}", "another policy"
    )
    rest = {d.file: d.origin for d in found[2:]}
    assert rest["mrtd.hex"] == f"{EFI} and {FD}"
    assert ("packages.json" in rest) is (packages != PACKAGES)
    with refused(ReleaseRejected, f"got {first}; and ", "rebuild.identical"):
        require_identical(found)


def test_another_source_epoch(released: Released, tmp_path: Path) -> None:
    raw = cpio.write(MEMBERS)
    at = raw.index(b"usr/share/alpha\0") - cpio.HEADER + 6 + 8 * 5
    image = synthetic.uki({".initrd": b"Z" + raw[:at] + b"%08X" % 1704067200 + raw[at + 8 :]})
    again = build(tmp_path / "again", image, replace(PACKAGES, source_date_epoch=1704067200))
    found = released.compare(again, released.folder)
    assert found[0].path_in_image == "usr/share/alpha"
    assert found[0].origin == f"{EPOCH}, by step mkosi"
    assert [d.origin for d in found if d.file == "packages.json"] == [EPOCH]


@pytest.mark.parametrize(
    ("packages", "origin"),
    [
        (replace(PACKAGES, source_date_epoch=1704067200), EPOCH),
        (replace(PACKAGES, compress_level=4), "zstd level 3 and 4"),
        (replace(PACKAGES, packages=(deb("beta"),)), "package - alpha 1.0"),
        (replace(PACKAGES, wheels=()), "wheel click 8.1.8"),
        (
            replace(PACKAGES, builder=(PACKAGES.builder[0], ("tools", (deb("zstd", "2"),)))),
            "builder's tools ~ zstd 1.0 -> 2",
        ),
    ],
)
def test_without_the_image_the_inputs_are_named(
    released: Released, tmp_path: Path, packages: Packages, origin: str
) -> None:
    """The folder of a release has packages.json, which is enough to tell this much."""
    published = tmp_path / "release"
    (published / "client").mkdir(parents=True)
    name = "packages.json"
    (published / "client" / name).write_bytes((released.folder / "client" / name).read_bytes())
    again = build(tmp_path / "again", uki(linux=b"MZ other"), packages)
    found = compare(released.manifest, again, None, published=published, sources=released.checkout)
    assert (found[0].file, found[0].path_in_image, found[0].origin) == (EFI, None, origin)
    assert "--artifacts" in found[0].detail


def test_without_anything_the_registers_tell_a_little(released: Released, tmp_path: Path) -> None:
    again = build(tmp_path / "again", uki(linux=b"MZ other"))
    assert released.compare(again)[0].origin == "a section: RTMR2 differs"
    stub = build(tmp_path / "stub", uki() + bytes(8))
    assert "stub or ukify" in released.compare(stub)[0].origin


def test_a_reference_that_is_not_the_releases_is_not_looked_at(
    released: Released, tmp_path: Path
) -> None:
    other = build(tmp_path / "other", uki(cmdline=b"quiet\0"))
    again = build(tmp_path / "again", uki(linux=b"MZ other"))
    assert released.compare(again, other)[0].path_in_image is None
    # Artefacts of one role may also lie in a folder of their own.
    assert released.compare(again, released.folder / "client")[0].path_in_image == ".linux"


def test_firmware_alone(released: Released, tmp_path: Path) -> None:
    code = bytearray(BASE)
    code[-1] ^= 1  # of the reset vector
    again = build(tmp_path / "again", uki(), base=bytes(code))
    found = released.compare(again, released.folder)
    assert found[0].file == FD
    assert EFI not in {d.file for d in found}
    assert released.compare(again)[0].origin == "firmware policy"


def test_run_qemu_alone(released: Released, tmp_path: Path) -> None:
    again = build(tmp_path / "again", uki(), end=b"echo more\n")
    found = {d.file: d.origin for d in released.compare(again, released.folder)}
    assert found == {
        "run-qemu": "the builder of the commit",
        "sha256sums.txt": "the builder of the commit",
    }


def test_missing_and_extra_files(released: Released, tmp_path: Path) -> None:
    again = build(tmp_path / "again", uki())
    (again / "client" / "run-qemu").unlink()
    (again / "client" / "more").touch()
    assert [(d.file, d.detail) for d in released.compare(again)] == [
        ("more", "only the rebuilt folder has it"),
        ("run-qemu", "was not rebuilt"),
    ]
    assert len(released.compare(tmp_path / "nowhere")) == len(outputs.names(CLIENT))


def git(folder: Path, *arguments: str) -> str:
    who = ("-c", "user.name=Test", "-c", "user.email=test@example.org")
    command = ["git", "-C", str(folder), *who, *arguments]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    return done.stdout.strip()


@pytest.fixture
def checkout(tmp_path: Path) -> tuple[Path, str]:
    """A repository with one commit, and changes after it that no rebuild may see."""
    needs("git", "tar")
    root = tmp_path / "repository"
    for name, data in (LOCK_FILES | {"build.py": b"of the commit"}).items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(data)
    git(root, "init", "--quiet")
    git(root, "add", "--all")
    git(root, "commit", "--quiet", "--message", "one")
    (root / "build.py").write_bytes(b"changed")
    (root / "more").touch()
    return root, git(root, "rev-parse", "HEAD")


def test_export(checkout: tuple[Path, str], tmp_path: Path) -> None:
    root, commit = checkout
    folder = tmp_path / "scratch" / "it is here"
    export(root, commit, folder)
    found = {str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file()}
    assert found == {"build.py", *LOCK_FILES}
    assert (folder / "build.py").read_bytes() == b"of the commit"
    assert [p.name for p in folder.parent.iterdir()] == ["it is here"]
    with refused(HostError, "is not in ") as caught:
        export(root, "1" * 40, tmp_path / "other" / "folder")
    assert "git fetch" in caught[0].hint


class Started:
    """Stands for the builder of the commit."""

    def __init__(self) -> None:
        self.command: list[str] = []
        self.env: dict[str, str] = {}
        self.files: set[str] = set()

    def __call__(self, command: list[str], env: dict[str, str], folder: Path, *_: Any) -> None:
        self.command, self.env = command, env
        self.files = {p.name for p in folder.iterdir()}
        assert env["PYTHONPATH"] == str(folder)


@pytest.fixture
def builder(monkeypatch: pytest.MonkeyPatch) -> Started:
    started = Started()
    monkeypatch.setattr(module, "_build", started)
    return started


def test_rebuild(
    released: Released,
    checkout: tuple[Path, str],
    builder: Started,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("PIP_INDEX_URL", "https://index.example/simple")
    monkeypatch.setenv("PYTHONHOME", "/elsewhere")
    said: list[str] = []
    root, commit = checkout
    out, manifest = tmp_path / "out", replace(released.manifest, commit=commit)
    assert rebuild(manifest, root, out, None, said.append) == out
    assert builder.files == {"build.py", "images", "requirements.lock"}
    assert {"--locked", "--vary", "--role=client", "--compress-level=3"} <= set(builder.command)
    assert f"--out={out}" in builder.command
    assert "--distribution=debian" in builder.command
    assert not any(word.startswith("--bundle") for word in builder.command)
    # Unlike the first build, and as this user's builds are set up.
    assert builder.env["TZ"] == "Pacific/Kiritimati"
    assert builder.env["PIP_INDEX_URL"] == "https://index.example/simple"
    assert builder.env["ZIPNET_CACHE"] == str(tmp_path / "cache")
    assert "PYTHONHOME" not in builder.env
    assert said == [f"building client from {commit}"]
    rebuild(manifest, root, out, tmp_path / "bundle", said.append)
    assert f"--bundle={tmp_path / 'bundle'}" in builder.command
    assert "PIP_INDEX_URL" not in builder.env


@pytest.mark.parametrize("name", ["images", "tools", "python"])
def test_other_locks(
    released: Released, checkout: tuple[Path, str], builder: Started, tmp_path: Path, name: str
) -> None:
    root, commit = checkout
    locks = released.manifest.locks
    for sha256, file in (("1" * 64, None), (None, "other.lock")):
        old = getattr(locks, name)
        new = Locked(file or old.file, sha256 or old.sha256)
        changed = replace(released.manifest, commit=commit, locks=replace(locks, **{name: new}))
        with refused(ReleaseRejected, "of the commit is not the release's", "rebuild.lock"):
            rebuild(changed, root, tmp_path / "out", None, print)
    assert builder.command == []


@pytest.mark.parametrize(
    ("status", "kind", "words"),
    [
        (0, None, ""),
        (2, BuildRefused, "Error: no such package"),
        (3, ToolFailed, "the builder ended with status 3"),
    ],
)
def test_the_builders_end(
    tmp_path: Path, status: int, kind: type[BuildRefused | ToolFailed] | None, words: str
) -> None:
    said: list[str] = []
    script = f"umask; echo; echo 'Error: no such package' >&2; exit {status}"
    with refused(kind, words) if kind else nullcontext():
        module._build(["/bin/sh", "-c", script], {}, tmp_path, said.append)
    assert said == ["0077", "Error: no such package"]
