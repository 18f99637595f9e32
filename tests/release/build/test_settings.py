"""Where things lie, and which distribution is the host's."""

from pathlib import Path

import pytest

from release.build.settings import (
    DISTRIBUTIONS,
    SID_SETS,
    TRIXIE_SETS,
    Paths,
    Role,
    host_distribution,
)
from release.errors import BuildRefused, HostError
from tests.release.build.support import ROOT, refused
from zipnet import __version__, preflight


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ('PRETTY_NAME="Debian GNU/Linux 13"\nID=debian\n', "debian"),
        ("ID=ubuntu\nID_LIKE=debian\n", "ubuntu"),
        ('ID="ubuntu"\n', "ubuntu"),
        ('ID=linuxmint\nID_LIKE="ubuntu debian"\n', "ubuntu"),
        ("ID=raspbian\nID_LIKE=debian\n", "debian"),
    ],
)
def test_host_distribution(tmp_path: Path, text: str, name: str) -> None:
    (tmp_path / "os-release").write_text(text)
    assert host_distribution(tmp_path / "os-release") == DISTRIBUTIONS[name]


@pytest.mark.parametrize("text", ["ID=fedora\n", "", "nonsense\n", "ID=\nID_LIKE=\n"])
def test_other_hosts(tmp_path: Path, text: str) -> None:
    (tmp_path / "os-release").write_text(text)
    with refused(HostError, "is not one that images are built from") as caught:
        host_distribution(tmp_path / "os-release")
    assert caught[0].expected == "debian or ubuntu"
    assert "--distribution debian" in caught[0].hint


def test_no_os_release(tmp_path: Path) -> None:
    with refused(HostError, "cannot tell this host's distribution") as caught:
        host_distribution(tmp_path / "os-release")
    assert caught[0].exit_code == 3


def test_paths(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("ZIPNET_CACHE", raising=False)
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setenv("HOME", "/home/someone")
    assert Paths.of(tmp_path).cache == Path("/home/someone/.cache/zipnet")
    monkeypatch.setenv("XDG_CACHE_HOME", "/var/cache/user")
    assert Paths.of(tmp_path).cache == Path("/var/cache/user/zipnet")
    monkeypatch.setenv("ZIPNET_CACHE", "here")
    monkeypatch.chdir(tmp_path)
    assert Paths.of(tmp_path).cache == tmp_path / "here"
    assert Paths.of(tmp_path).locks == tmp_path / "images" / "locks"
    assert Paths.of(tmp_path).python_lock == tmp_path / "requirements.lock"


def test_version(tmp_path: Path) -> None:
    assert Paths(ROOT, tmp_path).version() == __version__
    (tmp_path / "zipnet").mkdir()
    (tmp_path / "zipnet" / "__init__.py").write_text("")
    with refused(BuildRefused, "zipnet/__init__.py names no version"):
        Paths(tmp_path, tmp_path).version()


def test_the_guest_and_the_builder_mean_the_same_roles() -> None:
    assert [str(role) for role in Role] == [str(role) for role in preflight.Role]


def test_package_sets_have_distinct_names() -> None:
    names = [group.name for group in (*TRIXIE_SETS, *SID_SETS)]
    assert len(names) == len(set(names))
    for group in (*TRIXIE_SETS, *SID_SETS):
        assert len(group.packages) == len(set(group.packages))
