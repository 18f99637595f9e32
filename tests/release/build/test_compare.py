"""The first difference of two builds: planted ones of every kind, and whose file it is."""

import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from release.build import cpio
from release.build.compare import (
    ONLY_FIRST,
    ONLY_SECOND,
    Comparison,
    Difference,
    require_identical,
)
from release.build.deb import Deb, Store, digest
from release.build.tools import Tree
from release.errors import BuildRefused, HostError, NotReproducible, ToolFailed
from release.origin import Origins
from tests.attestation.measure import synthetic
from tests.release.build.support import build_deb, described, needs, program, refused

MEMBERS = {
    "init": (0o100755, b"#!/bin/sh\n"),
    "usr": (0o40755, b""),
    "usr/lib": (0o40755, b""),
    "usr/lib/zipnet/lib/python3.13/site-packages/zipnet/cli.py": (0o100644, b"cli"),
    "usr/lib-extra": (0o100644, b"extra"),
    "usr/share/alpha": (0o100644, b"of alpha"),
    "usr/bin/beta": (0o100755, b"of beta"),
}
INITRD = cpio.write(MEMBERS)


@pytest.fixture(scope="module")
def comparison(tmp_path_factory: pytest.TempPathFactory) -> Comparison:
    """Two real packages, and a tree whose linker runs the host's zstd stand-in."""
    needs("dpkg-deb", "tar")
    folder = tmp_path_factory.mktemp("compare")
    tree = folder / "tools"
    program(tree / "usr/lib64", "ld-linux-x86-64.so.2", 'shift 2; exec "$@"')
    # "Compression" of these tests: a letter in front.
    program(
        tree / "usr/bin",
        "zstd",
        'c=$(head -c1); case $c in Z|Y) exec cat ;; *) echo "zstd: bad magic" >&2; exit 1 ;; esac',
    )
    store = Store(folder / "store")
    pool = folder / "pool"
    pool.mkdir()
    debs = [
        put(store, build_deb(pool, "alpha", "1:2.0", {"usr/share/alpha": b"x", "etc/alpha": b""})),
        put(store, build_deb(pool, "beta", "3", {"bin/beta": b"x", "lib/beta/one.py": b""})),
    ]
    return Comparison(Tree(tree), Origins(store, debs, folder / "sources"))


def put(store: Store, path: Path) -> Deb:
    _, value = described(path, f"pool/{path.name}")
    store.path(value).parent.mkdir(parents=True, exist_ok=True)
    path.rename(store.path(value))
    assert digest(store.path(value)) == value.sha256
    return value


def packed(archive: bytes) -> bytes:
    return b"Z" + archive


def image(archive: bytes = INITRD, **sections: bytes) -> bytes:
    changes = {f".{name}": content for name, content in sections.items()}
    return synthetic.uki({".initrd": packed(archive), **changes})


def test_identical(comparison: Comparison, tmp_path: Path) -> None:
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "zipnet-server.efi").write_bytes(image())
    assert comparison.folders(tmp_path / "one", tmp_path / "two") is None
    require_identical(None)


def write(folder: Path, files: dict[str, bytes]) -> Path:
    folder.mkdir()
    for name, data in files.items():
        (folder / name).write_bytes(data)
    return folder


FILES = {"mrtd.hex": b"00", "a.json": b"12345678", "zipnet-server.efi": image()}


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"mrtd.hex": b"01"}, "mrtd.hex: first at offset 1"),
        ({"a.json": b"1234567"}, "a.json: sizes 8 and 7"),
        ({"a.json": b"02345678", "mrtd.hex": b"11"}, "a.json: first at offset 0"),
        ({"more": b""}, "more: only in one of the builds"),
        # The UKI is looked at first: it is the cause of the others.
        (
            {"a.json": b"x", "zipnet-server.efi": image(cmdline=b"quiet")},
            "zipnet-server.efi: .cmdline: first at offset 0 (from the kernel command line of ",
        ),
    ],
)
def test_folders(
    comparison: Comparison, tmp_path: Path, change: dict[str, bytes], text: str
) -> None:
    one, two = write(tmp_path / "one", FILES), write(tmp_path / "two", FILES | change)
    for first, second in ((one, two), (two, one)):
        got = str(comparison.folders(first, second))
        assert got.startswith(text.replace("8 and 7", "7 and 8") if first is two else text)


def test_a_folder_in_place_of_a_file(comparison: Comparison, tmp_path: Path) -> None:
    one, two = write(tmp_path / "one", FILES), write(tmp_path / "two", {"a.json": b"12345678"})
    (two / "mrtd.hex").mkdir()
    (two / "zipnet-server.efi").write_bytes(image())
    assert "mrtd.hex: only in one" in str(comparison.folders(one, two))


@pytest.mark.parametrize(
    ("second", "inside", "aspect", "package"),
    [
        (image(linux=b"MZ kerneL"), ".linux", "first at offset 8", "the kernel package"),
        (image(osrel=b"ID=other\n"), ".osrel", "first at offset 3", "mkosi"),
        (
            image(cmdline=b"console=ttyS0 panic=-1 \n"),
            ".cmdline",
            "first at offset 22",
            "the kernel command line of mkosi.conf",
        ),
        (image(extra=b"more"), "", "the sections differ", "ukify"),
        (image() + b"x", "", "PE headers: sizes", "ukify"),
        (b"no PE at all", "", "not comparable inside: ", ""),
    ],
)
def test_ukis(
    comparison: Comparison, second: bytes, inside: str, aspect: str, package: str
) -> None:
    got = comparison.ukis("x.efi", image(), second)
    assert (got.output, got.inside, got.package) == ("x.efi", inside, package)
    assert got.aspect.startswith(aspect)


def changed(name: str, mode: int | None = None, data: bytes | None = None) -> bytes:
    old = MEMBERS[name]
    new = (old[0] if mode is None else mode, old[1] if data is None else data)
    return cpio.write(MEMBERS | {name: new})


def field_of(archive: bytes, name: str, index: int, value: int) -> bytes:
    """The archive with one header field of a member changed."""
    at = archive.index(name.encode() + b"\0") - cpio.HEADER + 6 + 8 * index
    return archive[:at] + b"%08X" % value + archive[at + 8 :]


UID, GID, NLINK, MTIME, RDEV = 2, 3, 4, 5, 10


@pytest.mark.parametrize(
    ("second", "inside", "aspect", "package"),
    [
        (
            changed("usr/share/alpha", data=b"of Alpha"),
            "usr/share/alpha",
            "content, first at offset 3",
            "the package alpha 1:2.0",
        ),
        (
            changed("usr/share/alpha", data=b"of alpha."),
            "usr/share/alpha",
            "content, sizes 8 and 9",
            "the package alpha 1:2.0",
        ),
        (changed("usr/bin/beta", 0o104755), "usr/bin/beta", "mode ", "the package beta 3"),
        (
            field_of(INITRD, "usr/share/alpha", MTIME, 1735689600),
            "usr/share/alpha",
            "mtime 0 and 1735689600",
            "the package alpha 1:2.0",
        ),
        (
            field_of(INITRD, "usr/bin/beta", UID, 7),
            "usr/bin/beta",
            "uid 0 and 7",
            "the package beta 3",
        ),
        (
            field_of(INITRD, "usr/bin/beta", GID, 7),
            "usr/bin/beta",
            "gid 0 and 7",
            "the package beta 3",
        ),
        (
            field_of(INITRD, "usr/bin/beta", NLINK, 2),
            "usr/bin/beta",
            "nlink 1 and 2",
            "the package beta 3",
        ),
        (
            field_of(INITRD, "init", RDEV, 5),
            "init",
            "device (0, 0) and (0, 5)",
            "no package: images/, a maintainer script or mkosi",
        ),
        (
            changed("usr/lib/zipnet/lib/python3.13/site-packages/zipnet/cli.py", data=b"CLI"),
            "usr/lib/zipnet/lib/python3.13/site-packages/zipnet/cli.py",
            "content, first at offset 0",
            "this repository: zipnet/cli.py",
        ),
    ],
)
def test_initrd_members(
    comparison: Comparison, second: bytes, inside: str, aspect: str, package: str
) -> None:
    got = comparison.ukis("x.efi", image(), image(second))
    assert (got.inside, got.package) == (inside, package)
    assert got.aspect.startswith(aspect)
    assert str(got).startswith(f"x.efi: {inside}: {aspect}")
    assert str(got).endswith(f" (from {package})")


@pytest.mark.parametrize("name", list(MEMBERS))
def test_missing_member(comparison: Comparison, name: str) -> None:
    less = cpio.write({n: v for n, v in MEMBERS.items() if n != name})
    for first, second, aspect in ((INITRD, less, ONLY_FIRST), (less, INITRD, ONLY_SECOND)):
        got = comparison.initrds("x.efi", packed(first), packed(second))
        assert (got.inside, got.aspect) == (name, aspect)
        assert got.package == comparison.origins.of(name)


def test_a_folder_more_is_named_before_its_parents_count(comparison: Comparison) -> None:
    """One more folder changes the number of links of the one that it is in."""
    more = field_of(cpio.write(MEMBERS | {"usr/lib/new": (0o40755, b"")}), "usr/lib", NLINK, 3)
    got = comparison.initrds("x.efi", packed(INITRD), packed(more))
    assert (got.inside, got.aspect) == ("usr/lib/new", ONLY_SECOND)
    only_count = field_of(INITRD, "usr/lib", NLINK, 3)
    got = comparison.initrds("x.efi", packed(INITRD), packed(only_count))
    assert (got.inside, got.aspect) == ("usr/lib", "nlink 1 and 3")


def test_another_order(comparison: Comparison) -> None:
    turned = cpio.write(dict(reversed(MEMBERS.items())))
    got = comparison.initrds("x.efi", packed(INITRD), packed(turned))
    assert got.inside in {"init", "usr/bin/beta"}
    assert got.aspect == "in another place of the archive"


def test_same_members_compressed_differently(comparison: Comparison) -> None:
    got = comparison.initrds("x.efi", b"Z" + INITRD, b"Y" + INITRD)
    assert (got.inside, got.package) == (".initrd", "zstd of the tools")
    assert "compressed differently" in got.aspect


def test_an_initrd_that_is_not_zstd(comparison: Comparison) -> None:
    with refused(ToolFailed, "zstd can't unpack an initrd") as caught:
        comparison.initrds("x.efi", b"XX", packed(INITRD))
    assert "zstd: bad magic" in caught[0].diagnostics()


def test_an_initrd_that_is_no_archive(comparison: Comparison) -> None:
    with refused(BuildRefused, "an initrd is not a newc cpio archive"):
        comparison.initrds("x.efi", packed(b"nothing"), packed(INITRD))


def test_without_zstd(comparison: Comparison, tmp_path: Path) -> None:
    bare = Comparison(Tree(tmp_path), comparison.origins)
    with refused(HostError, "has no usr/lib64/ld-linux-x86-64.so.2"):
        bare.initrds("x.efi", b"Z", b"Y")


def test_require_identical() -> None:
    with refused(
        NotReproducible, "got x.efi: usr/a: mtime 1 and 2 (from the package alpha 1)"
    ) as c:
        require_identical(Difference("x.efi", "usr/a", "mtime 1 and 2", "the package alpha 1"))
    assert c[0].exit_code == 2


def test_real_zstd(comparison: Comparison, tmp_path: Path) -> None:
    needs("zstd")
    program(tmp_path / "usr/lib64", "ld-linux-x86-64.so.2", 'shift 2; shift; exec zstd "$@"')
    program(tmp_path / "usr/bin", "zstd", "")

    def compress(level: int) -> Callable[[bytes], bytes]:
        def run(data: bytes) -> bytes:
            command = ["zstd", f"-{level}", "-c", "-q"]
            return subprocess.run(command, input=data, capture_output=True, check=True).stdout

        return run

    real = Comparison(Tree(tmp_path), comparison.origins)
    big = cpio.write(
        MEMBERS | {"usr/share/alpha": (0o100644, bytes(range(256)) * 400 + b"abc" * 99)}
    )
    fast, slow = compress(1)(big), compress(19)(big)
    assert fast != slow
    assert real.initrds("x.efi", fast, slow).inside == ".initrd"
    got = real.initrds("x.efi", fast, compress(1)(INITRD))
    assert (got.inside, got.package) == ("usr/share/alpha", "the package alpha 1:2.0")
