"""Package locks: round trip, every malformed field, differences, and the locks of this version."""

import json
import string
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from release.build.deb import Deb
from release.build.lock import LIMIT, SCHEMA, SOURCE_DATE_EPOCH, Lock, differences, record
from release.build.settings import DISTRIBUTIONS, SID_SETS, TRIXIE_SETS, Role
from release.errors import LockError
from tests.release.build.support import ROOT, deb, refused, vectors

LOCK = Lock(
    release="debian-trixie",
    timestamp="20260102T030405Z",
    source_date_epoch=SOURCE_DATE_EPOCH,
    sets=(("server", (deb("alpha"), deb("beta", "1:2"))), ("client", (deb("alpha"),))),
)
DOCUMENT: dict[str, Any] = json.loads(LOCK.dumps())
LOCKS = sorted((ROOT / "images" / "locks").glob("*.lock"))

ALPHABET = string.ascii_lowercase + string.digits
debs = st.builds(
    deb,
    name=st.text(ALPHABET, min_size=2, max_size=20),
    version=st.text(ALPHABET + ".+:~-", min_size=1, max_size=20),
    data=st.binary(min_size=1, max_size=8),
    architecture=st.sampled_from(["all", "amd64"]),
    archive=st.sampled_from(["debian", "debian-security", "ubuntu"]),
    path=st.text(ALPHABET + "._+~%-", min_size=1, max_size=30).map(lambda t: f"pool/{t}.deb"),
)
sets = st.dictionaries(
    st.from_regex(r"[a-z][a-z0-9-]{0,20}", fullmatch=True),
    st.lists(debs, min_size=1, max_size=6, unique_by=lambda d: (d.name, d.architecture)),
    min_size=1,
    max_size=4,
)
locks = st.builds(
    Lock,
    release=st.from_regex(r"[a-z]{2,20}(-[a-z]{2,20})?", fullmatch=True),
    timestamp=st.datetimes().map(lambda t: f"{t.year:04}{t:%m%dT%H%M%SZ}"),
    source_date_epoch=st.integers(1, (1 << 32) - 1),
    sets=sets.map(lambda s: tuple((name, tuple(sorted(items))) for name, items in s.items())),
)


@given(locks)
def test_round_trip(lock: Lock) -> None:
    raw = lock.dumps()
    assert Lock.loads(raw) == lock
    assert Lock.loads(raw).dumps() == raw
    raw.decode("ascii")


def test_one_package_a_line() -> None:
    lines = LOCK.dumps().decode().splitlines()
    assert sum('"sha256"' in line for line in lines) == 3
    assert all(line.count('"sha256"') <= 1 for line in lines)
    shuffled = replace(LOCK, sets=(("server", LOCK.sets[0][1][::-1]), LOCK.sets[1]))
    assert shuffled.dumps() == LOCK.dumps()


@pytest.mark.parametrize("case", vectors("locks.json")["refused"], ids=lambda c: str(c["what"]))
def test_malformed(case: dict[str, Any]) -> None:
    document = DOCUMENT | case.get("change", {})
    if "without" in case:
        del document[case["without"]]
    raw = case["raw"].encode() if "raw" in case else json.dumps(document).encode()
    with refused(LockError, case["words"]) as caught:
        Lock.loads(raw)
    assert len(str(caught[0])) < 1000
    assert caught[0].exit_code == 2


@pytest.mark.parametrize(
    ("raw", "words"),
    [
        (b" " * LIMIT + b"{}", "a lock is too large"),
        (b"[" * 100_000, "a lock is not JSON"),
        (b'{"schema": ' + b"9" * 5000 + b"}", "a lock is not JSON"),
        (b"\xff\xfe{}", "a lock is not JSON"),
        (LOCK.dumps().replace(b"alpha", "älpha".encode()), "a lock is not JSON"),
        (LOCK.dumps()[:-10], "a lock is not JSON"),
        (LOCK.dumps() + b"{}", "a lock is not JSON"),
        (LOCK.dumps().replace(b'"release"', b'"schema": "x", "release"'), "a field stands twice"),
        (LOCK.dumps().replace(b'"client"', b'"server"'), "a field stands twice"),
        (LOCK.dumps().replace(b'"beta"', b'"alpha"'), "the package set 'server' names a package"),
        (LOCK.dumps().replace(b'"name": "beta", ', b""), "a package record has other fields"),
    ],
    ids=str,
)
def test_malformed_bytes(raw: bytes, words: str) -> None:
    with refused(LockError, words):
        Lock.loads(raw)


def test_load(tmp_path: Path) -> None:
    path = tmp_path / "debian-trixie.lock"
    path.write_bytes(LOCK.dumps())
    assert Lock.load(path) == LOCK
    path.write_bytes(bytes(LIMIT + 1))
    with refused(LockError, "a lock is too large"):
        Lock.load(path)


def test_load_what_is_not_there(tmp_path: Path) -> None:
    with refused(LockError, "there is no lock tools.lock", "--locked builds exactly") as caught:
        Lock.load(tmp_path / "tools.lock")
    assert "No such file" in caught[0].got
    assert "build without --locked" in caught[0].hint
    (tmp_path / "folder.lock").mkdir()
    with refused(LockError, "there is no lock folder.lock"):
        Lock.load(tmp_path / "folder.lock")


def test_packages() -> None:
    assert LOCK.packages("client") == (deb("alpha"),)
    with refused(LockError, "the lock of debian-trixie has no package set 'gateway'") as caught:
        LOCK.packages("gateway")
    assert caught[0].expected == "server, client"


def test_record_has_sorted_fields() -> None:
    assert list(record(deb())) == sorted(Deb.__slots__)


@pytest.mark.parametrize(
    ("locked", "current", "lines"),
    [
        ([], [], []),
        ([deb()], [deb()], []),
        ([], [deb()], ["+ alpha 1.0"]),
        ([deb()], [], ["- alpha 1.0"]),
        ([deb()], [deb(version="1.1")], ["~ alpha 1.0 -> 1.1"]),
        ([deb()], [deb(data=b"x")], ["! alpha 1.0 has other bytes than the locked ones"]),
        ([deb()], [deb(path="pool/elsewhere.deb")], []),
        (
            [deb("z"), deb("b"), deb("c")],
            [deb("c", "2"), deb("z", data=b"1"), deb("a")],
            ["+ a 1.0", "- b 1.0", "~ c 1.0 -> 2", "! z 1.0 has other bytes than the locked ones"],
        ),
    ],
)
def test_differences(locked: list[Deb], current: list[Deb], lines: list[str]) -> None:
    assert differences(locked, current) == lines


@given(st.lists(debs, unique_by=lambda d: d.name), st.lists(debs, unique_by=lambda d: d.name))
def test_differences_are_empty_only_for_the_same_bytes(one: list[Deb], two: list[Deb]) -> None:
    same = {(d.name, d.version, d.sha256) for d in one} == {
        (d.name, d.version, d.sha256) for d in two
    }
    assert (differences(one, two) == []) == same
    assert len(differences(one, two)) == len(differences(two, one))


@pytest.mark.skipif(not LOCKS, reason="images/locks/ holds no lock")
@pytest.mark.parametrize("path", LOCKS, ids=lambda p: p.name)
def test_locks_of_this_version(path: Path) -> None:
    lock = Lock.load(path)
    assert lock.dumps() == path.read_bytes()
    assert lock.source_date_epoch == SOURCE_DATE_EPOCH
    names = {name for name, _ in lock.sets}
    if path.name == "tools.lock":
        assert lock.release == "sid"
        assert names == {group.name for group in (*TRIXIE_SETS, *SID_SETS)}
        for group in (*TRIXIE_SETS, *SID_SETS):
            assert set(group.packages) <= {d.name for d in lock.packages(group.name)}
    else:
        assert path.stem == lock.release
        assert lock.release in {f"{d.name}-{d.release}" for d in DISTRIBUTIONS.values()}
        assert names == {str(role) for role in Role}


def test_schema_is_named() -> None:
    assert DOCUMENT["schema"] == SCHEMA
