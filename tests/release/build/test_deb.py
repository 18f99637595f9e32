"""Package records, and the store: where files come from, and that only the right bytes get in."""

import functools
import threading
from collections.abc import Iterator
from dataclasses import asdict, replace
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from release.build import deb as deb_module
from release.build.deb import Deb, Store, digest
from release.build.mirror import Mirrors
from release.errors import HostError, LockError, MirrorError
from tests.release.build.support import TIMESTAMP, deb, needs, program, refused, tree, vectors

GOOD = asdict(deb())


@pytest.mark.parametrize(
    "case", vectors("packages.json")["refused"], ids=lambda case: str(case["what"])
)
def test_malformed_record(case: dict[str, Any]) -> None:
    record: Any = case.get("record", GOOD | case.get("change", {}))
    if "without" in case:
        record = {name: value for name, value in GOOD.items() if name != case["without"]}
    with refused(LockError, case["words"]) as caught:
        Deb.parse(record)
    assert len(str(caught[0])) < 1000


@pytest.mark.parametrize(
    "change", vectors("packages.json")["accepted"], ids=lambda change: str(change)[:40]
)
def test_good_record(change: dict[str, Any]) -> None:
    assert asdict(Deb.parse(GOOD | change)) == GOOD | change


def test_deeply_nested_record() -> None:
    record: object = []
    for _ in range(100_000):
        record = [record]
    with refused(LockError, "a package record has other fields"):
        Deb.parse(record)
    del record


def test_file_name() -> None:
    assert deb(version="1:2.0~rc1+b3").file == "alpha_1%3a2.0~rc1+b3_amd64.deb"


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "store")


def put(store: Store, value: Deb, data: bytes) -> Path:
    path = store.path(value)
    path.parent.mkdir(parents=True)
    path.write_bytes(data)
    return path


def test_missing(store: Store) -> None:
    one, two, three = deb("one", data=b"1"), deb("two", data=b"2"), deb("three", data=b"3")
    put(store, two, b"2")
    put(store, three, b"cut off")
    assert store.missing([one, two, three]) == [one, three]


def test_pool(store: Store, tmp_path: Path) -> None:
    one, two = deb("one", "1:1", data=b"1"), deb("two", data=b"2")
    put(store, one, b"1")
    put(store, two, b"2")
    store.pool([one, two], tmp_path / "pool")
    assert tree(tmp_path / "pool") == {"one_1%3a1_amd64.deb": b"1", "two_1.0_amd64.deb": b"2"}


def test_pool_on_another_file_system(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_links(*_: object) -> None:
        raise OSError(18, "Invalid cross-device link")

    monkeypatch.setattr("release.build.deb.os.link", no_links)
    put(store, deb(), b"bytes")
    store.pool([deb()], tmp_path / "pool")
    assert (tmp_path / "pool" / deb().file).read_bytes() == b"bytes"


def test_pool_refuses_changed_bytes(store: Store, tmp_path: Path) -> None:
    path = put(store, deb(), b"Bytes")
    assert store.missing([deb()]) == []  # the size is right
    with refused(LockError, "has changed", "exactly the bytes") as caught:
        store.pool([deb()], tmp_path / "pool")
    assert "run the build again" in caught[0].hint
    assert not path.exists()
    assert not (tmp_path / "pool" / deb().file).exists()


# From here on apt's own downloader is used.


@pytest.fixture
def places(tmp_path: Path) -> Iterator[tuple[Path, Mirrors, list[str]]]:
    """A web server with a mirror and a snapshot service, and the paths that it was asked for."""
    needs("apt-get")
    if not Path(deb_module.APT_HELPER).exists():
        pytest.skip(f"this host has no {deb_module.APT_HELPER}")
    folder = tmp_path / "web"
    folder.mkdir()
    asked: list[str] = []

    class Handler(SimpleHTTPRequestHandler):
        def log_request(self, *_: object) -> None:
            asked.append(self.path)

        def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 - the base class's
            pass

    handler = functools.partial(Handler, directory=str(folder))
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        base = f"http://127.0.0.1:{server.server_address[1]}"
        try:
            yield folder, Mirrors((("debian", f"{base}/debian"),), f"{base}/snapshot"), asked
        finally:
            server.shutdown()
            thread.join()


def serve(folder: Path, place: str, value: Deb, data: bytes) -> Path:
    path = folder / place / value.path
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
    return path


SNAPSHOT = f"snapshot/archive/debian/{TIMESTAMP}"


@pytest.fixture(autouse=True)
def direct(monkeypatch: pytest.MonkeyPatch) -> None:
    """No proxy between the tests and their own server, and no second try of what is not there."""
    for name in ("http_proxy", "HTTP_PROXY", "https_proxy", "HTTPS_PROXY"):
        monkeypatch.delenv(name, raising=False)
    options = ("-o", "Acquire::Retries=0", "-o", "Acquire::http::Proxy=DIRECT")
    monkeypatch.setattr(deb_module, "PLAIN_DOWNLOADS", (*deb_module.PLAIN_DOWNLOADS, *options))


def test_order_of_places(store: Store, places: tuple[Path, Mirrors, list[str]], log: Path) -> None:
    folder, mirrors, asked = places
    stored, here, old = (deb(n, data=n.encode()) for n in ("stored", "here", "older"))
    put(store, stored, b"stored")
    serve(folder, "debian", here, b"here")
    serve(folder, SNAPSHOT, old, b"older")
    got = store.fetch([stored, here, old, here], mirrors, TIMESTAMP, log)
    assert got == len(b"here") + len(b"older")
    assert store.missing([stored, here, old]) == []
    assert sorted(asked) == sorted(
        [f"/debian/{here.path}", f"/debian/{old.path}", f"/{SNAPSHOT}/{old.path}"]
    )
    assert [digest(store.path(d)) for d in (here, old)] == [here.sha256, old.sha256]
    # Nothing but the packages stays, and a second time nothing is asked for.
    assert all(p.suffix == ".deb" for p in store.folder.rglob("*") if p.is_file())
    asked.clear()
    assert store.fetch([stored, here, old], mirrors, TIMESTAMP, log) == 0
    assert asked == []


def test_other_bytes_on_the_mirror_right_ones_on_the_snapshot(
    store: Store, places: tuple[Path, Mirrors, list[str]], log: Path
) -> None:
    folder, mirrors, _ = places
    serve(folder, "debian", deb(), b"Bytes")
    serve(folder, SNAPSHOT, deb(), b"bytes")
    store.fetch([deb()], mirrors, TIMESTAMP, log)
    assert store.path(deb()).read_bytes() == b"bytes"


def test_nowhere(store: Store, places: tuple[Path, Mirrors, list[str]], log: Path) -> None:
    folder, mirrors, _ = places
    here, gone = deb("here", data=b"here"), deb("gone", "1:2.3", data=b"gone")
    longer = deb("longer", data=b"longer")
    serve(folder, "debian", here, b"here")
    serve(folder, "debian", longer, b"longer than that")
    with refused(MirrorError, "2 packages can't be had: gone 1:2.3, longer 1.0") as caught:
        store.fetch([here, gone, longer], mirrors, TIMESTAMP, log)
    assert "here" not in str(caught[0]).partition(":")[2].partition("expected")[0]
    assert "--snapshot URL" in caught[0].hint
    assert caught[0].exit_code == 3
    # What did arrive is kept for the next try; what did not leaves nothing.
    assert store.missing([here, gone, longer]) == [gone, longer]
    assert [p.name for p in store.folder.rglob("*") if p.is_file()] == [f"{here.sha256}.deb"]


def test_many_missing_are_not_all_named(store: Store, log: Path, tmp_path: Path) -> None:
    debs = [deb(f"p{n}", data=b"%d" % n) for n in range(20)]
    mirrors = Mirrors((("debian", (tmp_path / "empty").as_uri()),))
    with refused(MirrorError, "20 packages can't be had: p0 1.0, ") as caught:
        store.fetch(debs, mirrors, TIMESTAMP, log)
    assert "…" in caught[0].message
    assert "p19" not in caught[0].message


def test_file_mirror_is_copied_not_linked(store: Store, tmp_path: Path, log: Path) -> None:
    mirrors = Mirrors((("debian", (tmp_path / "web").as_uri()),))
    source = serve(tmp_path, "web", deb(), b"bytes")
    source.chmod(0o640)
    assert store.fetch([deb()], mirrors, TIMESTAMP, log) == 5
    assert store.path(deb()).is_file()
    assert not store.path(deb()).is_symlink()
    assert source.stat().st_mode & 0o777 == 0o640
    source.unlink()
    assert store.path(deb()).read_bytes() == b"bytes"


def test_batches(store: Store, tmp_path: Path, log: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(deb_module, "BATCH", 2)
    debs = [deb(f"p{n}", data=b"%d" % n) for n in range(5)]
    for n, value in enumerate(debs):
        serve(tmp_path, "web", value, b"%d" % n)
    mirrors = Mirrors((("debian", (tmp_path / "web").as_uri()),))
    assert store.fetch(debs, mirrors, TIMESTAMP, log) == 5
    assert store.missing(debs) == []


def test_no_downloader(store: Store, log: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(deb_module, "APT_HELPER", "/nowhere/apt-helper")
    with refused(HostError, "cannot start /nowhere/apt-helper"):
        store.fetch([deb()], Mirrors((("debian", "file:///nowhere"),)), TIMESTAMP, log)
    assert list(store.folder.iterdir()) == []


def test_full_disk_while_fetching(
    store: Store, tmp_path: Path, log: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = "E: Write error - write (28: No space left on device)"
    helper = program(tmp_path / "bin", "apt-helper", f"echo '{words}' >&2; exit 100")
    monkeypatch.setattr(deb_module, "APT_HELPER", str(helper))
    with refused(HostError, "the disk is full") as caught:
        store.fetch([deb()], Mirrors((("debian", "file:///nowhere"),)), TIMESTAMP, log)
    assert "ZIPNET_CACHE" in caught[0].hint
    assert list(store.folder.iterdir()) == []


def test_an_archive_without_a_mirror(store: Store, log: Path) -> None:
    value = replace(deb(), archive="ubuntu")
    with refused(MirrorError, "pass --mirror ubuntu=URL"):
        store.fetch([value], Mirrors(()), TIMESTAMP, log)
