"""Unpacked package sets: complete or absent, named by content, and pruned."""

import os
import subprocess
from pathlib import Path

import pytest

from release.build import tools
from release.build.deb import Deb, Store
from release.build.tools import Tree, prune, unpack
from release.errors import HostError, LockError, ToolFailed
from tests.release.build.support import build_deb, deb, described, needs, program, refused, tree


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "store")


def real(store: Store, tmp_path: Path, name: str, files: dict[str, bytes]) -> Deb:
    needs("dpkg-deb")
    (tmp_path / "pool").mkdir(exist_ok=True)
    path = build_deb(tmp_path / "pool", name, "1.0", files)
    _, value = described(path, f"pool/{path.name}")
    store.path(value).parent.mkdir(parents=True, exist_ok=True)
    path.rename(store.path(value))
    return value


def test_unpack(store: Store, tmp_path: Path, log: Path) -> None:
    debs = (
        real(store, tmp_path, "two", {"usr/two": b"2", "usr/both": b"two"}),
        real(store, tmp_path, "one", {"usr/one": b"1", "usr/both": b"one"}),
    )
    made = unpack("firmware", debs, store, tmp_path / "trees", log)
    assert made.folder.name == f"firmware-{tools.key(debs)}"
    assert tree(made.folder) == {
        "usr": None,
        # Packages are unpacked in the order of their names.
        "usr/both": b"two",
        "usr/one": b"1",
        "usr/two": b"2",
    }
    assert [p.name for p in (tmp_path / "trees").iterdir()] == [made.folder.name]
    assert made.folder.stat().st_mode & 0o777 == 0o755


def test_a_tree_that_is_there_is_taken(store: Store, tmp_path: Path, log: Path) -> None:
    debs = (real(store, tmp_path, "one", {"usr/one": b"1"}),)
    first = unpack("firmware", debs, store, tmp_path / "trees", log)
    store.path(debs[0]).unlink()
    assert unpack("firmware", debs[::-1], store, tmp_path / "trees", log) == first


def test_tools_tree_can_take_the_resolver_settings(store: Store, tmp_path: Path, log: Path) -> None:
    debs = (real(store, tmp_path, "one", {"etc/one": b"1"}),)
    made = unpack("tools", debs, store, tmp_path / "trees", log)
    assert made.file("etc/resolv.conf").read_bytes() == b""


def test_what_is_no_package(store: Store, tmp_path: Path, log: Path) -> None:
    needs("dpkg-deb")
    good, bad = real(store, tmp_path, "one", {"usr/one": b"1"}), deb("two", data=b"no package")
    store.path(bad).parent.mkdir(parents=True)
    store.path(bad).write_bytes(b"no package")
    with refused(ToolFailed, "dpkg-deb ended with status 2"):
        unpack("firmware", (good, bad), store, tmp_path / "trees", log)
    assert list((tmp_path / "trees").iterdir()) == []


def test_changed_package(store: Store, tmp_path: Path, log: Path) -> None:
    good = real(store, tmp_path, "one", {"usr/one": b"1"})
    store.path(good).write_bytes(store.path(good).read_bytes()[:-1] + b"x")
    with refused(LockError, "the stored file of one 1.0 has changed"):
        unpack("firmware", (good,), store, tmp_path / "trees", log)
    assert list((tmp_path / "trees").iterdir()) == []


def test_full_disk(
    store: Store, tmp_path: Path, log: Path, monkeypatch: pytest.MonkeyPatch, programs: Path
) -> None:
    good = real(store, tmp_path, "one", {"usr/one": b"1"})
    program(programs, "dpkg-deb", "echo 'tar: write: No space left on device'; exit 2")
    with refused(HostError, "the disk is full"):
        unpack("firmware", (good,), store, tmp_path / "trees", log)
    assert list((tmp_path / "trees").iterdir()) == []


def test_interrupted(
    store: Store, tmp_path: Path, log: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    good = real(store, tmp_path, "one", {"usr/one": b"1"})
    monkeypatch.setattr(tools, "run", interrupt)
    with pytest.raises(KeyboardInterrupt):
        unpack("firmware", (good,), store, tmp_path / "trees", log)
    assert list((tmp_path / "trees").iterdir()) == []


def test_another_build_was_faster(
    store: Store, tmp_path: Path, log: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    good = real(store, tmp_path, "one", {"usr/one": b"1"})
    target = tmp_path / "trees" / f"firmware-{tools.key((good,))}"

    def other(*_: object, **__: object) -> None:
        (target / "usr").mkdir(parents=True)

    monkeypatch.setattr(tools, "run", other)
    assert unpack("firmware", (good,), store, tmp_path / "trees", log) == Tree(target)
    assert [p.name for p in (tmp_path / "trees").iterdir()] == [target.name]


def test_key() -> None:
    one, two = deb("one", data=b"1"), deb("two", data=b"2")
    assert tools.key([one, two]) == tools.key([two, one])
    assert len({tools.key([one]), tools.key([two]), tools.key([one, two]), tools.key([])}) == 4


def test_key_depends_on_the_recipe(monkeypatch: pytest.MonkeyPatch) -> None:
    before = tools.key([deb()])
    monkeypatch.setattr(tools, "RECIPE", "other")
    assert tools.key([deb()]) != before


def test_missing_file(tmp_path: Path) -> None:
    (tmp_path / "usr").mkdir()
    for path in ("usr/share/ovmf/OVMF.inteltdx.ms.fd", "usr"):
        with refused(HostError, f"has no {path}") as caught:
            Tree(tmp_path).file(path)
        assert "--locked" in caught[0].hint


def test_command_runs_with_the_trees_own_linker(tmp_path: Path) -> None:
    linker = program(tmp_path / "usr/lib64", "ld-linux-x86-64.so.2", 'echo "$@"')
    tool = program(tmp_path / "usr/bin", "tool", "exit 1")
    command = [str(part) for part in Tree(tmp_path).command("usr/bin/tool")]
    assert command[0] == str(linker)
    done = subprocess.run([*command, "--flag"], capture_output=True, text=True, check=True)
    libraries = ":".join(str(tmp_path / path) for path in tools.LIBRARIES)
    assert done.stdout == f"--library-path {libraries} {tool} --flag\n"
    with refused(HostError, "has no usr/bin/other"):
        Tree(tmp_path).command("usr/bin/other")


def test_prune(tmp_path: Path) -> None:
    for kind in ("tools", "test-firmware"):
        for number in range(5):
            folder = tmp_path / f"{kind}-{number}"
            (folder / "usr").mkdir(parents=True)
            os.utime(folder, (number, number))
    (tmp_path / ".tools-scratch").mkdir()
    (tmp_path / "tools-file").touch()
    prune(tmp_path)
    names = {p.name for p in tmp_path.iterdir()}
    kept = {f"{kind}-{number}" for kind in ("tools", "test-firmware") for number in (2, 3, 4)}
    assert names == kept | {".tools-scratch", "tools-file"}


def test_prune_keeps_what_this_build_uses(store: Store, tmp_path: Path, log: Path) -> None:
    # As when --locked takes an older tree again after the mirror has moved on a few times.
    debs = (real(store, tmp_path, "one", {"usr/one": b"1"}),)
    trees = tmp_path / "trees"
    used = unpack("firmware", debs, store, trees, log)
    os.utime(used.folder, (1, 1))
    for number in range(4):
        (trees / f"firmware-{number}").mkdir()
        os.utime(trees / f"firmware-{number}", (100 + number, 100 + number))
    unpack("firmware", debs, store, trees, log)
    prune(trees)
    assert used.folder.is_dir()
    assert len(list(trees.iterdir())) == 3
