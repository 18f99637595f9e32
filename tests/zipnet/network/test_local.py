"""The engine within one process: conformance, and what only it has."""

import asyncio
import contextlib
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Awaitable, Callable
from contextlib import closing
from pathlib import Path

import pytest

from tests.zipnet.network import conformance
from tests.zipnet.network.conformance import Case, eventually, soon, take
from tests.zipnet.network.local_harness import LocalHarness
from tests.zipnet.network.suites import CASES
from zipnet.errors import BlobMissing, EngineMisconfigured, LogBroken, Unavailable
from zipnet.network import _sql, _writer
from zipnet.network.local import LocalNetwork

ROOT = Path(__file__).resolve().parents[3]
# Folders and files that an engine holds open, as the kernel names them.
DESCRIPTORS = Path("/proc/self/fd")


def run(body: Callable[[], Awaitable[None]]) -> None:
    async def main() -> None:
        await body()

    asyncio.run(main())


@pytest.mark.parametrize("case", CASES, ids=str)
def test_conformance(case: Case, tmp_path: Path) -> None:
    conformance.run(case, LocalHarness(tmp_path / "engine"))


def test_names_of_cases_are_distinct() -> None:
    assert len({case.name for case in CASES}) == len(CASES)


def held(folder: Path) -> list[str]:
    links = []
    for descriptor in DESCRIPTORS.iterdir():
        with contextlib.suppress(OSError):
            links.append(str(descriptor.readlink()))
    return [link for link in links if str(folder) in link]


def test_close_leaves_nothing(tmp_path: Path) -> None:
    async def body() -> None:
        network = await LocalNetwork.open(tmp_path)
        other = await network.connect()
        log, blobs = await other.log("l"), await other.blobs("b")
        await log.append(b"", key="k")
        await blobs.put(b"data")
        reader = asyncio.ensure_future(anext(log.read(1)))
        await asyncio.sleep(0)
        assert held(tmp_path)
        await network.close()
        assert await log.append(b"", key="k2") == 2
        await reader
        await other.close()
        assert not held(tmp_path)
        assert asyncio.all_tasks() == {asyncio.current_task()}

    before = set(threading.enumerate())
    run(body)
    assert set(threading.enumerate()) == before


def test_close_carries_out_what_was_asked_for(tmp_path: Path) -> None:
    async def body() -> None:
        network = await LocalNetwork.open(tmp_path)
        log = await network.log("l")
        appends = [asyncio.ensure_future(log.append(b"", key=f"k{n}")) for n in range(100)]
        await asyncio.sleep(0)
        await network.close()
        for result in await asyncio.gather(*appends, return_exceptions=True):
            assert isinstance(result, Unavailable)
        again = await LocalNetwork.open(tmp_path)
        log = await again.log("l")
        assert await log.bounds() == (1, 100)
        assert [await log.append(b"", key=f"k{n}") for n in range(100)] == list(range(1, 101))
        await again.close()

    run(body)


def test_all_is_there_after_a_restart(tmp_path: Path) -> None:
    async def body() -> None:
        network = await LocalNetwork.open(tmp_path)
        log, table = await network.log("l"), await network.table("t")
        blobs = await network.blobs("b")
        for number in range(1, 4):
            assert await log.append(b"%d" % number, key=f"k{number}") == number
        await log.trim(1)
        rev = await table.put("k", b"v")
        digest = await blobs.put(b"data")
        (tmp_path / "blobs" / "b" / ".torn").write_bytes(b"")
        await network.close()
        network = await LocalNetwork.open(tmp_path)
        log, table = await network.log("l"), await network.table("t")
        blobs = await network.blobs("b")
        assert await log.bounds() == (2, 3)
        assert [entry.data for entry in await take(log.read(1), 2)] == [b"2", b"3"]
        item = await table.get("k")
        assert item is not None
        assert (item.value, item.rev) == (b"v", rev)
        assert await table.put("k2", b"") > rev
        assert await blobs.get(digest) == b"data"
        assert [file.name for file in (tmp_path / "blobs" / "b").iterdir()] == [digest.hex()]
        await network.close()

    run(body)


def test_values_expire_while_nobody_runs(tmp_path: Path) -> None:
    async def body() -> None:
        network = await LocalNetwork.open(tmp_path)
        table = await network.table("t")
        rev = await table.put("k", b"", ttl=1000)
        await network.close()
        with closing(sqlite3.connect(tmp_path / "engine.sqlite")) as db, db:
            db.execute("update item set expiry = ?", (time.time() - 1,))
        network = await LocalNetwork.open(tmp_path)
        table = await network.table("t")
        assert await table.get("k") is None
        assert await table.put("k", b"", expect=0) > rev
        await network.close()

    run(body)


def test_a_temporary_folder_is_removed() -> None:
    async def body() -> None:
        network = await LocalNetwork.open()
        folder = network._handle.engine.folder
        digest = await (await network.blobs("b")).put(b"data")
        assert (folder / "blobs" / "b" / digest.hex()).exists()
        await network.close()
        assert not folder.exists()

    run(body)


def test_one_process_at_a_time(tmp_path: Path) -> None:
    program = """
import asyncio, sys
from pathlib import Path
from zipnet.errors import EngineMisconfigured
from zipnet.network.local import LocalNetwork

async def main():
    try:
        await LocalNetwork.open(Path(sys.argv[1]))
    except EngineMisconfigured as error:
        print(error.diagnostics())

asyncio.run(main())
"""

    async def body() -> None:
        network = await LocalNetwork.open(tmp_path)
        command = [sys.executable, "-c", program, str(tmp_path)]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
        assert "rule: folder-in-use" in done.stdout
        assert "NATS" in done.stdout
        with pytest.raises(EngineMisconfigured) as caught:
            await LocalNetwork.open(tmp_path)
        assert caught.value.rule == "folder-in-use"
        assert await (await network.log("l")).append(b"", key="k") == 1
        await network.close()

    run(body)


@pytest.mark.parametrize("case", ["file", "version", "garbage", "limit"])
def test_folders_that_are_none(case: str, tmp_path: Path) -> None:
    folder, limit = tmp_path / "engine", 1000
    wanted: tuple[type[Exception], str]
    if case == "file":
        folder.write_bytes(b"")
        wanted = EngineMisconfigured, "folder"
    elif case == "version":
        folder.mkdir()
        with closing(sqlite3.connect(folder / "engine.sqlite")) as db:
            db.execute("pragma user_version = 7")
        wanted = EngineMisconfigured, "store-version"
    elif case == "garbage":
        folder.mkdir()
        (folder / "engine.sqlite").write_bytes(b"garbage" * 1000)
        wanted = LogBroken, "log.damaged"
    else:
        limit = 0
        wanted = EngineMisconfigured, "max-message"

    async def body() -> None:
        for _ in range(2):
            with pytest.raises((EngineMisconfigured, LogBroken)) as caught:
                await LocalNetwork.open(folder, max_message=limit)
            assert (type(caught.value), caught.value.rule) == wanted
        assert not held(tmp_path)

    before = set(threading.enumerate())
    run(body)
    assert set(threading.enumerate()) == before


def test_removed_files_are_noticed(tmp_path: Path) -> None:
    async def body() -> None:
        network = await LocalNetwork.open(tmp_path)
        log, table = await network.log("l"), await network.table("t")
        await log.append(b"", key="k")
        waiting = [
            asyncio.ensure_future(anext(log.read(1))),
            asyncio.ensure_future(anext(table.watch())),
        ]
        await asyncio.sleep(0)
        (tmp_path / "engine.sqlite").unlink()
        for one in waiting:
            with pytest.raises(LogBroken) as caught:
                await soon(one)
            assert caught.value.rule == "log.file"
        for _ in range(2):
            with pytest.raises(LogBroken):
                await log.append(b"", key="k2")
        await network.close()

    run(body)


def test_a_gap_is_noticed(tmp_path: Path) -> None:
    async def body() -> None:
        network = await LocalNetwork.open(tmp_path)
        log = await network.log("l")
        for number in range(4):
            await log.append(b"", key=f"k{number}")
        await network.close()
        with closing(sqlite3.connect(tmp_path / "engine.sqlite")) as db, db:
            db.execute("delete from entry where seq = 3")
        network = await LocalNetwork.open(tmp_path)
        reader = (await network.log("l")).read()
        assert [entry.seq for entry in await take(reader, 2)] == [1, 2]
        for _ in range(2):
            with pytest.raises(LogBroken) as caught:
                await anext(reader)
            assert caught.value.rule == "log.gap"
        await network.close()

    run(body)


def test_a_failed_commit_is_rolled_back_and_the_engine_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trouble = [sqlite3.OperationalError("disk full"), RuntimeError("a bug")]
    insert = _sql.append

    def append(tx: _sql.Transaction, log: str, data: bytes, key: str, expect: int | None) -> int:
        seq = insert(tx, log, data, key, expect)
        if key == "bad":
            raise trouble.pop()
        return seq

    monkeypatch.setattr(_sql, "append", append)

    async def body() -> None:
        network = await LocalNetwork.open(tmp_path)
        log = await network.log("l")
        for _ in range(2):
            with pytest.raises(Unavailable) as caught:
                await log.append(b"", key="bad")
            assert caught.value.rule == "commit"
        assert await log.append(b"", key="good") == 1
        assert [entry.key for entry in await take(log.read(), 1)] == ["good"]
        await network.close()

    run(body)


def test_a_failing_disk_stops_the_engine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def append(*_: object, **__: object) -> int:
        error = sqlite3.OperationalError("disk I/O error")
        error.sqlite_errorcode = sqlite3.SQLITE_IOERR_FSYNC
        raise error

    async def body() -> None:
        network = await LocalNetwork.open(tmp_path)
        log = await network.log("l")
        waiting = asyncio.ensure_future(anext(log.read()))
        await asyncio.sleep(0)
        with monkeypatch.context() as patch:
            patch.setattr(_sql, "append", append)
            with pytest.raises(Unavailable):
                await log.append(b"", key="k")
        with pytest.raises(Unavailable):
            await soon(waiting)
        with pytest.raises(Unavailable):
            await log.append(b"", key="k")
        with pytest.raises(Unavailable):
            await network.connect()
        await network.close()
        network = await LocalNetwork.open(tmp_path)
        assert await (await network.log("l")).append(b"", key="k") == 1
        await network.close()

    run(body)


def test_too_many_calls(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_writer, "MAX_WAITING", 0)

    async def body() -> None:
        network = await LocalNetwork.open(tmp_path)
        with pytest.raises(Unavailable) as caught:
            await network.log("l")
        assert caught.value.rule == "overload"
        await network.close()

    run(body)


def test_keys_are_forgotten_long_after_a_trim(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_sql, "DEDUP_SECONDS", -1)

    async def body() -> None:
        network = await LocalNetwork.open(tmp_path)
        log = await network.log("l")
        for number in range(1, 4):
            await log.append(b"", key=f"k{number}")
        await log.trim(2)
        assert await log.append(b"", key="k3") == 3
        assert await log.append(b"", key="k2") == 4
        await network.close()

    run(body)


def test_a_repeated_put_repairs_a_blob(tmp_path: Path) -> None:
    async def body() -> None:
        network = await LocalNetwork.open(tmp_path)
        blobs = await network.blobs("b")
        digest = await blobs.put(b"data")
        path = tmp_path / "blobs" / "b" / digest.hex()
        path.write_bytes(b"atad")
        await blobs.put(b"data")
        assert await blobs.get(digest) == b"data"
        path.unlink()
        with pytest.raises(BlobMissing):
            await blobs.get(digest)
        path.mkdir()
        with pytest.raises(Unavailable):
            await blobs.get(digest)
        with pytest.raises(Unavailable):
            await blobs.put(b"data")
        await network.close()

    run(body)


def test_an_abandoned_watch_is_forgotten(tmp_path: Path) -> None:
    async def body() -> None:
        network = await LocalNetwork.open(tmp_path)
        table = await network.table("t")
        watch = table.watch()
        await table.put("k", b"")
        await take(watch, 1)
        assert len(network._handle.engine.watchers) == 1
        del watch

        async def forgotten() -> bool:
            return not network._handle.engine.watchers

        await eventually(forgotten)
        await network.close()

    run(body)
