import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from release.build import process
from release.build.settings import Role
from tests.release.build import world
from tests.release.build.support import Repository, needs


@pytest.fixture
def programs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder whose programs the builder finds before the host's."""
    folder = tmp_path / "programs"
    folder.mkdir()
    monkeypatch.setattr(process, "PATH", f"{folder}:{process.PATH}")
    return folder


@pytest.fixture
def no_programs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The only folder in which the builder finds programs; it is empty."""
    folder = tmp_path / "no-programs"
    folder.mkdir()
    monkeypatch.setattr(process, "PATH", str(folder))
    return folder


@pytest.fixture
def log(tmp_path: Path) -> Path:
    return tmp_path / "test.log"


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Repository]:
    """A signed Debian archive with a handful of packages in the suites that the builder reads."""
    needs("apt-get", "dpkg-deb", "gpg", "gpgconf")
    folder = tmp_path_factory.mktemp("archive")
    # gpg's socket has a path of at most 107 characters, so its home is near the root.
    made = Repository(folder, folder / "gpg", folder / "keyring.gpg")
    try:
        made.make_key()
        trixie = "trixie"
        made.add(trixie, "base-files", Essential="yes", files={"usr/share/base": b"base"})
        made.add(trixie, "alpha", "1:2.0~rc1+b3", Depends="beta (>= 1.0), gamma")
        made.add(trixie, "beta", files={"usr/share/beta": b"beta"})
        made.add(trixie, "broken", Depends="nowhere")
        made.add("trixie-security", "gamma", "1.5", archive="debian-security")
        made.add("trixie-updates", "delta", "4", Architecture="all")
        made.add("sid", "epsilon", "9.1")
        made.publish()
        yield made
    finally:
        made.close()


@pytest.fixture(scope="session")
def archive(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Repository]:
    """A signed archive that a whole build can be made of."""
    needs("apt-get", "dpkg-deb", "gpg", "gpgconf")
    folder = tmp_path_factory.mktemp("whole")
    made = Repository(folder, folder / "gpg", folder / "keyring.gpg")
    try:
        made.make_key()
        world.fill(made)
        yield made
    finally:
        made.close()


@pytest.fixture
def small(
    archive: Repository, programs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> world.World:
    """A checkout, a cache and an archive, all in small."""
    world.fake_apt(programs)
    return world.create(archive, tmp_path, monkeypatch)


@pytest.fixture(scope="session")
def warm(archive: Repository, tmp_path_factory: pytest.TempPathFactory) -> world.World:
    """A world after its locks were written: what `ready` copies."""
    folder = tmp_path_factory.mktemp("warm")
    with pytest.MonkeyPatch.context() as monkeypatch:
        made = world.create(archive, folder, monkeypatch)
        made.builder().lock(made.request(*Role))
    return made


@pytest.fixture
def ready(small: world.World, warm: world.World) -> world.World:
    """As `small`, with packages, trees and locks: `locked=True` builds need no apt."""
    for name in ("debs", "trees"):
        shutil.copytree(warm.paths.cache / name, small.paths.cache / name, symlinks=True)
    shutil.copytree(warm.paths.locks, small.paths.locks, dirs_exist_ok=True)
    return small
