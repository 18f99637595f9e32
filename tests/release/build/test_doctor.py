"""What the doctor finds, and that it agrees with what a build would hit."""

import shutil
from collections import namedtuple
from pathlib import Path

import pytest

from release.build import doctor, mirror
from release.build.doctor import Finding, Status, examine
from release.build.mirror import Mirrors
from release.build.settings import DISTRIBUTIONS, Paths
from tests.release.build.support import program

DEBIAN = DISTRIBUTIONS["debian"]
Usage = namedtuple("Usage", "total used free")  # noqa: PYI024 - what shutil returns


@pytest.fixture
def paths(tmp_path: Path) -> Paths:
    return Paths(tmp_path / "root", tmp_path / "not" / "yet" / "there")


@pytest.fixture
def healthy(programs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A host that has everything."""
    for name in (*doctor.PROGRAMS, "unshare"):
        program(programs, name, "exit 0")
    uri = "'http://deb.example/debian/dists/trixie/InRelease' x 0"
    program(programs, "apt-get", f'echo "{uri}"')
    keyring = tmp_path / "keyring.gpg"
    keyring.touch()
    monkeypatch.setattr(doctor, "APT_HELPER", str(program(programs, "apt-helper", "")))
    monkeypatch.setattr(doctor, "DEBIAN_KEYRING", str(keyring))
    monkeypatch.setattr(shutil, "disk_usage", lambda _: Usage(1 << 40, 0, 1 << 40))
    return programs


def findings(paths: Paths, *options: str) -> dict[str, Finding]:
    return {f.check: f for f in examine(paths, DEBIAN, options)}


def test_a_healthy_host(healthy: Path, paths: Paths) -> None:
    found = findings(paths)
    assert list(found) == [
        "python",
        "programs",
        "keyring",
        "user namespaces",
        "disk",
        "mirror debian",
        "mirror debian-security",
        "tdx host",
    ]
    assert not [f for f in found.values() if f.status is Status.BAD]
    assert found["mirror debian"].detail == "http://deb.example/debian"
    assert found["mirror debian-security"].detail == "http://deb.example/debian-security"
    assert not paths.cache.exists()


def test_ubuntu_needs_both_archives(healthy: Path, paths: Paths) -> None:
    found = {f.check: f for f in examine(paths, DISTRIBUTIONS["ubuntu"], ())}
    assert found["mirror debian"].status is Status.OK
    assert found["mirror ubuntu"].status is Status.BAD
    assert found["mirror ubuntu"].hint == "pass --mirror ubuntu=URL"


def test_missing_programs(no_programs: Path, paths: Paths) -> None:
    # What counts is where a build looks, not the caller's PATH.
    found = findings(paths, "http://mirror.example/debian")
    assert found["programs"].status is Status.BAD
    assert "missing: apt-get, apt-cache, " in found["programs"].detail
    assert "build on Debian or Ubuntu" in found["programs"].hint
    assert found["user namespaces"].status is Status.BAD
    assert "cannot start unshare" in found["user namespaces"].detail
    assert found["mirrors"].status is Status.BAD
    assert "cannot start apt-get" in found["mirrors"].detail


def test_no_downloader(healthy: Path, paths: Paths, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "APT_HELPER", "/nowhere/apt-helper")
    assert findings(paths)["programs"].detail == "missing: /nowhere/apt-helper"


def test_no_keyring(healthy: Path, paths: Paths, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "DEBIAN_KEYRING", "nowhere/keyring.gpg")
    found = findings(paths)["keyring"]
    assert (found.status, found.detail) == (Status.BAD, "/nowhere/keyring.gpg is missing")
    assert found.hint == "install debian-archive-keyring"


@pytest.mark.parametrize("uid", [0, 1000])
def test_no_namespaces(
    healthy: Path, paths: Paths, monkeypatch: pytest.MonkeyPatch, uid: int
) -> None:
    monkeypatch.setattr("release.build.doctor.os.geteuid", lambda: uid)
    program(
        healthy,
        "unshare",
        'echo "$@" >&2; echo "unshare: unshare failed: Operation not permitted" >&2; exit 1',
    )
    found = findings(paths)["user namespaces"]
    assert found.status is Status.BAD
    assert "unprivileged_userns" in found.hint
    program(healthy, "unshare", f'case "$*" in *--user*) exit {int(uid == 0)} ;; esac')
    found = findings(paths)["user namespaces"]
    assert (found.status, found.detail) == (Status.OK, "unprivileged" if uid else "root")


def test_full_disk(healthy: Path, paths: Paths, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Path] = []

    def usage(path: Path) -> Usage:
        asked.append(path)
        return Usage(1 << 40, 0, doctor.NEEDED - 1)

    monkeypatch.setattr(shutil, "disk_usage", usage)
    found = findings(paths)["disk"]
    assert found.status is Status.BAD
    assert f"GiB free for {paths.cache}" in found.detail
    assert "ZIPNET_CACHE" in found.hint
    assert asked == [paths.cache.parents[2]]


def test_bad_mirror_option(healthy: Path, paths: Paths) -> None:
    found = findings(paths, "gopher://mirror.example")
    assert found["mirrors"].status is Status.BAD
    assert "a mirror's address can't be used" in found["mirrors"].detail
    assert found["mirrors"].hint


def test_no_mirror_known(healthy: Path, paths: Paths, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mirror, "choose", lambda *_: Mirrors(()))
    found = findings(paths)
    assert found["mirror debian"].status is Status.BAD
    assert found["mirror debian"].hint == "pass --mirror debian=URL"


def test_old_python(healthy: Path, paths: Paths, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("release.build.doctor.sys.version_info", (3, 10, 2))
    found = findings(paths)["python"]
    assert (found.status, found.detail, found.hint) == (Status.BAD, "3.10.2", "use 3.11 or newer")


def test_tdx_is_a_note(healthy: Path, paths: Paths) -> None:
    assert findings(paths)["tdx host"].status in {Status.OK, Status.NOTE}
