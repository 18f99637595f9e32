"""AptRoot against a real apt and a signed archive of our own, by file:// URLs."""

from datetime import UTC, datetime
from pathlib import Path

import pytest

from release.build import apt
from release.build.apt import AptRoot
from release.build.deb import Deb
from release.build.mirror import Mirrors
from release.build.settings import DISTRIBUTIONS, SID, PackageSet
from release.errors import HostError, LockError, MirrorError
from tests.release.build.support import Repository, program, refused, tree

TRIXIE = DISTRIBUTIONS["debian"].archives


@pytest.fixture
def root(repository: Repository, tmp_path: Path) -> AptRoot:
    return AptRoot(tmp_path / "apt", TRIXIE, repository.mirrors, repository.keyring)


@pytest.fixture
def updated(root: AptRoot, log: Path) -> AptRoot:
    root.prepare()
    root.update(log)
    return root


def test_closure(updated: AptRoot, repository: Repository, log: Path) -> None:
    got = updated.resolve(PackageSet("set", ("alpha", "delta")), log)
    wanted = [repository.debs[n] for n in ("alpha", "beta", "delta", "gamma")]
    assert list(got) == wanted
    by_name = {d.name: d for d in got}
    assert by_name["alpha"].version == "1:2.0~rc1+b3"
    assert by_name["delta"].architecture == "all"
    assert by_name["gamma"].archive == "debian-security"
    assert by_name["beta"].archive == "debian"


def test_essential_packages_are_only_asked_for_by_an_essential_set(
    updated: AptRoot, repository: Repository, log: Path
) -> None:
    names = [d.name for d in updated.resolve(PackageSet("set", ("beta",), essential=True), log)]
    assert names == ["base-files", "beta"]


def test_without_closure(updated: AptRoot, repository: Repository, log: Path) -> None:
    got = updated.resolve(PackageSet("set", ("alpha", "broken"), closure=False), log)
    assert list(got) == [repository.debs["alpha"], repository.debs["broken"]]


@pytest.mark.parametrize(
    ("wanted", "words"),
    [
        (PackageSet("set", ("no-such-package",)), "Unable to locate package no-such-package"),
        (PackageSet("set", ("broken",)), "E: "),
        (PackageSet("set", ("no-such-package",), closure=False), "E: No packages found"),
    ],
)
def test_no_solution(updated: AptRoot, log: Path, wanted: PackageSet, words: str) -> None:
    with refused(MirrorError, "the package set 'set' has no solution") as caught:
        updated.resolve(wanted, log)
    assert words in caught[0].got
    assert str(log) in caught[0].hint


def test_half_of_a_set_without_closure(updated: AptRoot, log: Path) -> None:
    wanted = PackageSet("set", ("beta", "no-such-package"), closure=False)
    with refused(MirrorError, "'set'"):
        updated.resolve(wanted, log)


def test_release_date(updated: AptRoot) -> None:
    assert updated.released() == datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)


def test_no_release_before_update(root: AptRoot) -> None:
    with refused(MirrorError, "no package index has been fetched"):
        root.released()


def test_only_our_folder_is_written(
    root: AptRoot, repository: Repository, tmp_path: Path, log: Path
) -> None:
    before = tree(repository.folder)
    root.prepare()
    root.update(log)
    root.resolve(PackageSet("set", ("alpha",)), log)
    assert tree(repository.folder) == before
    assert {p.name for p in tmp_path.iterdir()} == {"apt", "test.log"}


def test_sid_has_a_root_of_its_own(repository: Repository, tmp_path: Path, log: Path) -> None:
    sid = AptRoot(tmp_path / "sid", (SID,), repository.mirrors, repository.keyring)
    sid.prepare()
    sid.update(log)
    assert sid.resolve(PackageSet("set", ("epsilon",)), log) == (repository.debs["epsilon"],)


def test_without_the_keyring(root: AptRoot, tmp_path: Path) -> None:
    bad = AptRoot(root.folder, root.archives, root.mirrors, tmp_path / "missing.gpg")
    with refused(HostError, "install the package debian-archive-keyring") as caught:
        bad.prepare()
    assert caught[0].exit_code == 3
    assert not root.folder.exists()


def test_foreign_signature(repository: Repository, root: AptRoot, tmp_path: Path) -> None:
    empty = tmp_path / "other.gpg"
    empty.write_bytes(b"")
    bad = AptRoot(root.folder, root.archives, root.mirrors, empty)
    bad.prepare()
    with refused(MirrorError, "the package indices can't be had", "good signature"):
        bad.update(tmp_path / "log")


def test_a_signature_that_apt_only_warns_of(root: AptRoot, programs: Path, log: Path) -> None:
    root.prepare()
    program(
        programs, "apt-get", "echo 'W: GPG error: http://m.example trixie InRelease: EXPKEYSIG'"
    )
    with refused(MirrorError, "a package index has no good signature", "a good signature") as c:
        root.update(log)
    assert "debian-archive-keyring" in c[0].hint


def test_no_such_mirror(root: AptRoot, tmp_path: Path, log: Path) -> None:
    nowhere = (tmp_path / "nowhere").as_uri()
    mirrors = Mirrors((("debian", nowhere), ("debian-security", nowhere)))
    bad = AptRoot(root.folder, root.archives, mirrors, root.keyring)
    bad.prepare()
    with refused(MirrorError, "check the network and the address given by --mirror") as caught:
        bad.update(log)
    assert caught[0].exit_code == 3
    assert str(log) in caught[0].hint
    assert "nowhere" in caught[0].got


def test_changed_index(repository: Repository, tmp_path: Path, log: Path) -> None:
    # The signature holds, the file that it vouches for has other bytes.
    index = repository.folder / "debian/dists/sid/main/binary-amd64/Packages"
    before = index.read_bytes()
    sid = AptRoot(tmp_path / "sid", (SID,), repository.mirrors, repository.keyring)
    sid.prepare()
    try:
        index.write_bytes(before.replace(b"9.1", b"9.2"))
        with refused(MirrorError, "the package indices can't be had"):
            sid.update(log)
    finally:
        index.write_bytes(before)


def test_an_archive_that_no_mirror_is_known_of(root: AptRoot) -> None:
    bad = AptRoot(root.folder, DISTRIBUTIONS["ubuntu"].archives, root.mirrors, root.keyring)
    with refused(MirrorError, "pass --mirror ubuntu=URL"):
        bad.prepare()


def test_network_settings_of_the_host_are_kept(root: AptRoot, programs: Path) -> None:
    program(
        programs,
        "apt-config",
        """cat <<'END'
Acquire "";
Acquire::http "";
Acquire::http::Proxy "http://proxy.example:3128";
Acquire::https::CaInfo "/etc/ca.pem";
Acquire::http::Proxy::mirror.example "DIRECT";
Acquire::Retries "1";
Acquire::http::Pipeline-Depth "0";
END""",
    )
    root.prepare()
    text = (root.folder / "apt.conf").read_text()
    assert 'Acquire::http::Proxy "http://proxy.example:3128";\n' in text
    assert 'Acquire::https::CaInfo "/etc/ca.pem";\n' in text
    assert 'Acquire::http::Proxy::mirror.example "DIRECT";\n' in text
    assert "Pipeline" not in text
    assert 'Acquire::Retries "1"' not in text


def test_two_descriptions_for_one_package(updated: AptRoot, programs: Path, log: Path) -> None:
    program(programs, "apt-cache", "exit 0")
    with refused(MirrorError, "apt described 0 of the 1 packages of 'set'"):
        updated.resolve(PackageSet("set", ("beta",)), log)


def test_a_description_that_is_none(updated: AptRoot, programs: Path, log: Path) -> None:
    program(programs, "apt-cache", "printf 'Package: beta\\nVersion: 1\\n\\n'")
    with refused(LockError, "a package record"):
        updated.resolve(PackageSet("set", ("beta",)), log)


def test_an_index_with_a_path_out_of_the_pool(root: AptRoot) -> None:
    lines = ["Package: beta", "Version: 1", "Architecture: amd64", "Size: 5", "SHA256: " + "0" * 64]
    with refused(LockError, "a package record's path is malformed"):
        root._records([*lines, "Filename: ../../etc/passwd.deb"])
    with refused(LockError, "a package's size is not a byte count"):
        root._records([*lines[:3], "Size: -5", lines[4], "Filename: pool/b/b.deb"])


def test_archive_of_a_path(root: AptRoot) -> None:
    assert root._archive("pool/updates/main/a/a.deb") == "debian-security"
    assert root._archive("pool/main/a/a.deb") == "debian"
    alone = AptRoot(root.folder, (SID,), root.mirrors, root.keyring)
    assert alone._archive("pool/updates/main/a/a.deb") == "debian"


def test_split() -> None:
    assert apt._split("a_1%3a2_amd64.deb") == ("a", "1:2")


def test_fields_cover_the_value() -> None:
    assert {*apt.FIELDS.values(), "archive"} == set(Deb.__slots__)
