"""The staging folder: only what may be in an image, with modes and times that are ours."""

import os
from pathlib import Path

import pytest

from release.build import stage as stage_module
from release.build.lock import SOURCE_DATE_EPOCH
from release.build.settings import Flavor, Role
from release.build.stage import stage
from release.build.wheels import Runtime
from tests.release.build.support import ROOT, tree

SITE = "runtime/lib/python/site-packages"


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A little checkout."""
    root = tmp_path / "root"
    files = {
        "mkosi.conf": "",
        "mkosi.conf.d/30-server.conf": "",
        "images/base/finalize.sh": "#!/bin/sh",
        "images/base/tree/usr/lib/unit.service": "",
        "images/locks/debian-trixie.lock": "",
        "attestation/__init__.py": "",
        "attestation/py.typed": "",
        "attestation/notes.txt": "",
        "attestation/providers/mock.py": "",
        "attestation/providers/tsm.py": "",
        "attestation/__pycache__/x.cpython-311.pyc": "",
        "zipnet/__init__.py": "",
        "zipnet/cli.py": "",
        "release/build/cli.py": "",
        "tests/test_x.py": "",
        "build.py": "",
        "README.md": "",
    }
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    (root / "images/base/finalize.sh").chmod(0o750)
    (root / "images/base/tree/etc").mkdir()
    (root / "images/base/tree/etc/masked.service").symlink_to("/dev/null")
    (root / "images/base/tree/etc/dangling").symlink_to("nowhere")
    return root


@pytest.fixture
def runtime(tmp_path: Path) -> Runtime:
    site = tmp_path / "site"
    (site / "click").mkdir(parents=True)
    (site / "click" / "__init__.py").write_text("click")
    return Runtime(site, ())


def test_what_is_staged(root: Path, runtime: Runtime, tmp_path: Path) -> None:
    folder = tmp_path / "deep" / "stage"
    stage(root, folder, Role.SERVER, Flavor.PRODUCTION, runtime)
    files = {name for name in tree(folder) if not (folder / name).is_dir()}
    assert files == {
        "mkosi.conf",
        "mkosi.conf.d/30-server.conf",
        "images/base/finalize.sh",
        "images/base/tree/usr/lib/unit.service",
        "images/base/tree/etc/masked.service",
        "images/base/tree/etc/dangling",
        f"{SITE}/click/__init__.py",
        f"{SITE}/attestation/__init__.py",
        f"{SITE}/attestation/py.typed",
        f"{SITE}/attestation/providers/tsm.py",
        f"{SITE}/zipnet/__init__.py",
        f"{SITE}/zipnet/cli.py",
        "runtime/flavor",
        "runtime/role",
    }
    assert (folder / "runtime/flavor").read_text() == "production\n"
    assert (folder / "runtime/role").read_text() == "server\n"


def test_mock(root: Path, runtime: Runtime, tmp_path: Path) -> None:
    folder = tmp_path / "stage"
    stage(root, folder, Role.CLIENT, Flavor.MOCK, runtime)
    assert (folder / SITE / "attestation/providers/mock.py").is_file()
    assert (folder / "runtime/flavor").read_text() == "mock\n"


def spoil(root: Path, folder_mode: int, file_mode: int, when: int) -> None:
    for path in sorted(root.rglob("*"), reverse=True):
        if not path.is_symlink():
            path.chmod(folder_mode if path.is_dir() else file_mode | path.stat().st_mode & 0o100)
        os.utime(path, (when, when), follow_symlinks=False)


def facts(folder: Path) -> dict[str, tuple[int, float]]:
    return {
        str(path.relative_to(folder)): (path.lstat().st_mode, path.lstat().st_mtime)
        for path in (folder, *folder.rglob("*"))
    }


def test_modes_and_times_do_not_depend_on_the_checkout(
    root: Path, runtime: Runtime, tmp_path: Path
) -> None:
    null = Path("/dev/null").stat().st_mode
    spoil(root, 0o700, 0o600, 1)
    previous = os.umask(0o077)
    try:
        stage(root, tmp_path / "one", Role.SERVER, Flavor.PRODUCTION, runtime)
        spoil(root, 0o777, 0o666, 2_000_000_000)
        os.umask(0)
        stage(root, tmp_path / "two", Role.SERVER, Flavor.PRODUCTION, runtime)
    finally:
        os.umask(previous)
    one, two = facts(tmp_path / "one"), facts(tmp_path / "two")
    assert one == two
    assert {mtime for _, mtime in one.values()} == {SOURCE_DATE_EPOCH}
    assert {mode & 0o7777 for mode, _ in one.values()} == {0o755, 0o644, 0o777}
    assert one["images/base/finalize.sh"][0] & 0o777 == 0o755
    # A mask is a link to a device of the host.
    assert Path("/dev/null").stat().st_mode == null


def test_staged_twice(root: Path, runtime: Runtime, tmp_path: Path) -> None:
    stage(root, tmp_path / "stage", Role.SERVER, Flavor.PRODUCTION, runtime)
    with pytest.raises(FileExistsError):
        stage(root, tmp_path / "stage", Role.SERVER, Flavor.PRODUCTION, runtime)


def test_the_real_checkout(runtime: Runtime, tmp_path: Path) -> None:
    folder = tmp_path / "stage"
    stage(ROOT, folder, Role.AGGREGATOR, Flavor.PRODUCTION, runtime)
    names = set(tree(folder))
    assert f"{SITE}/zipnet/preflight.py" in names
    assert not {n for n in names if n.startswith(("release", "tests", "docs", "out", "build.py"))}
    assert not {n for n in names if n.endswith((".pyc", ".lock"))}
    assert not {n for n in names if Path(n).name == "mock.py"}
    assert not {n for n in names if n.startswith(f"{SITE}/release")}


def test_a_drop_in_for_each_role_and_for_nothing_else() -> None:
    named = {p.stem.partition("-")[2] for p in (ROOT / "mkosi.conf.d").glob("30-*.conf")}
    assert named == {str(role) for role in Role}
    for role in Role:
        text = (ROOT / "mkosi.conf.d" / f"30-{role}.conf").read_text().splitlines()
        assert f"Profiles={role}" in text
        assert f"ImageId=zipnet-{role}" in text
        # One unit for all, under a name of the role's.
        unit = f"../base/appliance@.service:/usr/lib/systemd/system/zipnet-{role}@.service"
        assert unit in (ROOT / "images" / role / "mkosi.conf").read_text().split()
    assert (ROOT / "images/base/appliance@.service").is_file()


def test_inputs_exist() -> None:
    assert all((ROOT / name).exists() for name in (*stage_module.INPUTS, *stage_module.PACKAGES))
