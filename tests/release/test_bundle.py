"""Bundles: what goes in, what comes out, and everything that is not what the lock says."""

import hashlib
import json
import os
import string
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from release import bundle
from release.build.deb import Deb, Store
from release.build.lock import SOURCE_DATE_EPOCH, Lock
from release.bundle import INDEX, MAX_INDEX, SCHEMA, Bundle, Item, Kind
from release.errors import LockError, MirrorError, OutputRefused, ReleaseFormatError
from tests.release.build.support import TIMESTAMP, deb, refused, tree

WHEEL = "click-8.1.8-py3-none-any.whl"
PINS = {"click": ("8.1.8", frozenset({hashlib.sha256(b"wheel").hexdigest(), "0" * 64}))}
ALPHA, MKOSI = deb("alpha", "1:2"), deb("mkosi", data=b"mkosi")
TOOLS = (("mkosi", (MKOSI,)), ("tools", (ALPHA,)), ("test-firmware", (deb("shell", data=b"s"),)))
LOCKS = [
    Lock("sid", TIMESTAMP, SOURCE_DATE_EPOCH, TOOLS),
    Lock("debian-trixie", TIMESTAMP, SOURCE_DATE_EPOCH, (("server", (ALPHA,)),)),
]

ENDS = {Kind.DEB: "_1_all.deb", Kind.WHEEL: "-1-any.whl"}
items = st.builds(
    lambda kind, name, sha256, size: Item(kind, name + ENDS[kind], sha256, size),
    kind=st.sampled_from(Kind),
    name=st.text(string.ascii_lowercase + string.digits, min_size=2, max_size=20),
    sha256=st.text("0123456789abcdef", min_size=64, max_size=64),
    size=st.integers(1, bundle.MAX_SIZE),
)


@given(st.lists(items, max_size=6))
def test_round_trip(found: list[Item]) -> None:
    raw = bundle.dumps(found)
    assert bundle.loads(raw) == tuple(sorted(set(found)))
    assert bundle.dumps(bundle.loads(raw)) == raw


ITEM = Item(Kind.DEB, "alpha_1%3a2_amd64.deb", "0" * 64, 5)
DOCUMENT: dict[str, Any] = json.loads(bundle.dumps([ITEM]))


def encoded(document: object) -> bytes:
    return json.dumps(document, indent=1, sort_keys=True).encode() + b"\n"


@pytest.mark.parametrize(
    ("change", "rule"),
    [
        ({"name": "../alpha_1_all.deb"}, "bundle.name"),
        ({"name": "alpha/alpha_1_all.deb"}, "bundle.name"),
        ({"name": "alpha.whl"}, "bundle.name"),
        ({"name": 1}, "bundle.name"),
        ({"kind": "tar"}, "bundle.kind"),
        ({"kind": []}, "bundle.kind"),
        ({"sha256": "0" * 63}, "bundle.sha256"),
        ({"sha256": "A" * 64}, "bundle.sha256"),
        ({"size": 0}, "bundle.size"),
        ({"size": True}, "bundle.size"),
        ({"size": bundle.MAX_SIZE + 1}, "bundle.size"),
        ({"more": 1}, "bundle.fields"),
    ],
)
def test_malformed_items(change: dict[str, object], rule: str) -> None:
    raw = encoded(DOCUMENT | {"files": [DOCUMENT["files"][0] | change]})
    with refused(ReleaseFormatError, "", rule):
        bundle.loads(raw)


@pytest.mark.parametrize(
    ("raw", "rule"),
    [
        (b"", "bundle.json"),
        (b"[" * 100_000, "bundle.json"),
        (b"[]", "bundle.fields"),
        (b" " * (MAX_INDEX + 1), "bundle.size"),
        (encoded(DOCUMENT | {"schema": "zipnet.bundle/2"}), "bundle.schema"),
        (encoded(DOCUMENT | {"files": {}}), "bundle.files"),
        (encoded(DOCUMENT | {"files": DOCUMENT["files"] * 2}), "bundle.canonical"),
        (encoded(DOCUMENT) + b"\n", "bundle.canonical"),
    ],
)
def test_malformed_index(raw: bytes, rule: str) -> None:
    with refused(ReleaseFormatError, "", rule):
        bundle.loads(raw)


def fill(store: Store, *debs: tuple[Deb, bytes]) -> Store:
    for value, data in debs:
        store.path(value).parent.mkdir(parents=True, exist_ok=True)
        store.path(value).write_bytes(data)
    return store


@pytest.fixture
def made(tmp_path: Path) -> Path:
    store = fill(Store(tmp_path / "store"), (ALPHA, b"bytes"), (MKOSI, b"mkosi"))
    (tmp_path / WHEEL).write_bytes(b"wheel")
    folder = tmp_path / "kept" / "bundle"
    assert bundle.write(folder, LOCKS, store, [tmp_path / WHEEL]) == 15
    return folder


def place(folder: Path, data: bytes) -> Path:
    sha256 = hashlib.sha256(data).hexdigest()
    return folder / "sha256" / sha256[:2] / sha256


def test_write(made: Path) -> None:
    files = {path for path, data in tree(made).items() if data is not None}
    wanted = {str(place(made, d).relative_to(made)) for d in (b"bytes", b"mkosi", b"wheel")}
    # What is for tests only stays out, and what two locks name is there once.
    assert files == wanted | {INDEX}
    found = json.loads((made / INDEX).read_bytes())
    assert found["schema"] == SCHEMA
    names = [file["name"] for file in found["files"]]
    assert names == ["alpha_1%3a2_amd64.deb", "mkosi_1.0_amd64.deb", WHEEL]
    assert [p.name for p in made.parent.iterdir()] == ["bundle"]
    assert Bundle.open(made).items == bundle.loads((made / INDEX).read_bytes())


def test_write_over_something(made: Path, tmp_path: Path) -> None:
    before = tree(made)
    with refused(OutputRefused, "is there already"):
        bundle.write(made, LOCKS, Store(tmp_path / "store"), [])
    assert tree(made) == before
    (tmp_path / "empty").mkdir()
    assert bundle.write(tmp_path / "empty", LOCKS, Store(tmp_path / "store"), []) == 10


def test_write_without_a_package(tmp_path: Path) -> None:
    store = fill(Store(tmp_path / "store"), (MKOSI, b"mkosi"))
    with refused(MirrorError, "1 packages are not in the store: alpha_1%3a2_amd64.deb"):
        bundle.write(tmp_path / "bundle", LOCKS, store, [])
    assert not (tmp_path / "bundle").exists()


def test_write_of_a_store_that_changed(tmp_path: Path) -> None:
    store = fill(Store(tmp_path / "store"), (ALPHA, b"bYtes"), (MKOSI, b"mkosi"))
    with refused(LockError, "alpha_1%3a2_amd64.deb has other bytes than the locked ones"):
        bundle.write(tmp_path / "bundle", LOCKS, store, [])
    assert [p.name for p in tmp_path.iterdir()] == ["store"]


def test_debs(made: Path, tmp_path: Path) -> None:
    store, kept = Store(tmp_path / "fresh"), Bundle.open(made)
    assert kept.debs([ALPHA, MKOSI, ALPHA], store) == 10
    assert store.missing([ALPHA, MKOSI]) == []
    # A second time nothing is new; what lies in the store is replaced all the same.
    store.path(ALPHA).write_bytes(b"bYtes")
    assert kept.debs([ALPHA], store) == 0
    assert store.path(ALPHA).read_bytes() == b"bytes"


def test_a_package_that_the_bundle_lacks(made: Path, tmp_path: Path) -> None:
    store = fill(Store(tmp_path / "fresh"), (deb("gamma", data=b"gamma"), b"gamma"))
    # The store has it, but this is about the bundle.
    with refused(MirrorError, "lacks gamma_1.0_amd64.deb"):
        Bundle.open(made).debs([ALPHA, deb("gamma", data=b"gamma")], store)


def replaced(path: Path, data: bytes) -> None:
    path.write_bytes(data)


def linked(path: Path, data: bytes) -> None:
    path.with_suffix(".real").write_bytes(data)
    path.unlink()
    path.symlink_to(path.with_suffix(".real"))


def piped(path: Path, _data: bytes) -> None:
    path.unlink()
    os.mkfifo(path)


def gone(path: Path, _data: bytes) -> None:
    path.unlink()


@pytest.mark.parametrize(
    ("change", "data", "kind", "words"),
    [
        (replaced, b"bYtes", LockError, "has other bytes than the locked ones"),
        (replaced, b"bytes and more", LockError, "has other bytes than the locked ones"),
        (replaced, b"", LockError, "has other bytes than the locked ones"),
        (linked, b"bytes", MirrorError, "can't be read"),
        (piped, b"", LockError, "has other bytes than the locked ones"),
        (gone, b"", MirrorError, "alpha_1%3a2_amd64.deb can't be read"),
    ],
)
def test_bad_files(
    made: Path,
    tmp_path: Path,
    change: Callable[[Path, bytes], None],
    data: bytes,
    kind: type[LockError | MirrorError],
    words: str,
) -> None:
    change(place(made, b"bytes"), data)
    store = Store(tmp_path / "fresh")
    with refused(kind, words):
        Bundle.open(made).debs([ALPHA], store)
    assert store.missing([ALPHA]) == [ALPHA]
    assert list(store.folder.iterdir()) == []


def test_wheels(made: Path, tmp_path: Path) -> None:
    kept = Bundle.open(made)
    kept.wheels(PINS, tmp_path / "shelf")
    assert tree(tmp_path / "shelf") == {WHEEL: b"wheel"}
    with refused(MirrorError, "lacks rich 14.0"):
        kept.wheels(PINS | {"rich": ("14.0", frozenset({"1" * 64}))}, tmp_path / "shelf")
    place(made, b"wheel").write_bytes(b"wheeL")
    with refused(LockError, f"{WHEEL} has other bytes"):
        kept.wheels(PINS, tmp_path / "again")


def test_a_package_is_no_wheel(made: Path, tmp_path: Path) -> None:
    pins = {"alpha": ("1", frozenset({ALPHA.sha256}))}
    with refused(MirrorError, "lacks alpha 1"):
        Bundle.open(made).wheels(pins, tmp_path / "shelf")


def test_no_bundle(tmp_path: Path) -> None:
    with refused(MirrorError, "is no bundle"):
        Bundle.open(tmp_path)
    (tmp_path / INDEX).mkdir()
    with refused(MirrorError, "is no bundle"):
        Bundle.open(tmp_path)
    (tmp_path / INDEX).rmdir()
    (tmp_path / INDEX).write_bytes(b"{}")
    with refused(ReleaseFormatError, "", "bundle.fields"):
        Bundle.open(tmp_path)
