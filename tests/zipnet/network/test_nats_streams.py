"""Streams that are not as they must be, and answers that get lost."""

import asyncio
import json
import secrets
from collections.abc import Awaitable, Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from tests.zipnet.network.conformance import soon, take
from tests.zipnet.network.nats_bench import Bench, on, with_few_rights
from tests.zipnet.network.nats_cluster import Cluster, Node, plain
from tests.zipnet.network.nats_harness import member_key
from zipnet.errors import (
    BlobAltered,
    BlobMissing,
    Conflict,
    EngineError,
    EngineMisconfigured,
    Lagged,
    LogBroken,
    TooLarge,
    Unavailable,
)
from zipnet.network import _nats_blobs, _nats_stream
from zipnet.network._nats_log import _Reader
from zipnet.network._nats_stream import Refusal, State, Stored, Stream
from zipnet.network._nats_wire import Raw
from zipnet.network.base import Item
from zipnet.network.nats import NatsNetwork


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    with Cluster(tmp_path_factory.mktemp("streams"), 1, with_few_rights) as running:
        yield running


@pytest.mark.parametrize(
    "other",
    [
        {"max_msgs": 1000},
        {"subjects": ["foreign.>"]},
        {"allow_direct": False},
        {"deny_delete": False},
        {"duplicate_window": 10**9},
        {"storage": "memory"},
        {"retention": "workqueue"},
        {"republish": {"src": ">", "dest": "all.>"}},
    ],
    ids=str,
)
def test_a_stream_with_other_settings_is_refused(
    cluster: Cluster, other: dict[str, object]
) -> None:
    async def body(bench: Bench) -> None:
        name = f"{bench.token}_L_log"
        wanted = _nats_stream._settings(name, {"subjects": [f"{bench.token}.log.log"]}, 1)
        made = json.dumps({**wanted, **other}).encode()
        before = await bench.harness.administrate(f"STREAM.CREATE.{name}", made)
        with pytest.raises(EngineMisconfigured) as caught:
            await bench.network.log("log")
        assert caught.value.rule == "nats.stream"
        assert str(next(iter(other))) in caught.value.expected + caught.value.got
        after = await bench.harness.administrate(f"STREAM.INFO.{name}")
        assert after["config"] == before["config"]

    on(cluster, body)


def test_more_replicas_than_nodes(cluster: Cluster) -> None:
    async def body(bench: Bench) -> None:
        network = await bench.connect(member_key(), replicas=3)
        with pytest.raises(EngineMisconfigured) as caught:
            await network.log("log")
        assert caught.value.rule == "nats.replicas"

    on(cluster, body)


def test_public_on_one_side_only(cluster: Cluster) -> None:
    async def body(bench: Bench) -> None:
        await bench.network.log("public")
        other = await bench.connect(member_key(), public=frozenset())
        with pytest.raises(EngineMisconfigured) as caught:
            await other.log("public")
        assert caught.value.rule == "nats.stream"
        assert "republish" in caught.value.got

    on(cluster, body)


def test_a_server_without_jetstream(tmp_path: Path) -> None:
    def bare(node: Node) -> str:
        return "\n".join(line for line in plain(node).splitlines() if "jetstream" not in line)

    async def body(urls: list[str]) -> None:
        with pytest.raises(EngineMisconfigured) as caught:
            await NatsNetwork.connect(urls, token="0" * 16, public=frozenset(), key=member_key())
        assert caught.value.rule == "nats.jetstream"

    with Cluster(tmp_path, configure=bare) as running:
        asyncio.run(body(running.urls))


def test_a_log_that_is_made_anew(cluster: Cluster) -> None:
    async def body(bench: Bench) -> None:
        log = await bench.network.log("log")
        for number in range(3):
            await log.append(b"", key=f"k{number}")
        reader = log.read()
        await take(reader, 3)
        waiting = asyncio.ensure_future(anext(reader))
        await asyncio.sleep(0)
        # The servers' clocks tell such logs apart to the nanosecond.
        await bench.harness.delete_log("log")
        again = await (await bench.connect(member_key(1))).log("log")
        for number in range(9):
            await again.append(b"forged", key=f"f{number}")
        for call in (waiting, anext(reader)):
            with pytest.raises(LogBroken) as caught:
                await soon(call)
            assert caught.value.rule in ("log.replaced", "log.missing")

    on(cluster, body)


def test_a_log_that_is_gone(cluster: Cluster) -> None:
    async def body(bench: Bench) -> None:
        log = await bench.network.log("log")
        assert await log.append(b"", key="k") == 1
        await bench.harness.delete_log("log")
        for call in (log.bounds(), log.trim(1), log.append(b"", key="l"), anext(log.read())):
            with pytest.raises(LogBroken) as caught:
                await soon(call)
            assert caught.value.rule == "log.missing"
        with pytest.raises(Unavailable):
            await log.append(b"", key="l", deadline=0.05)
        # Nothing of this has made it again.
        names = (await bench.harness.administrate("STREAM.NAMES"))["streams"] or []
        assert f"{bench.token}_L_log" not in names  # type: ignore[operator]

    on(cluster, body)


def test_a_table_that_is_gone(cluster: Cluster) -> None:
    async def body(bench: Bench) -> None:
        table = await bench.network.table("t")
        await table.put("k", b"")
        await bench.harness.administrate(f"STREAM.DELETE.KV_{bench.token}_T_t")
        for call in (table.get("k"), table.put("k", b""), table.delete("k"), anext(table.watch())):
            with pytest.raises(Unavailable) as caught:
                await soon(call)
            assert caught.value.rule == "table.missing"

    on(cluster, body)


def test_a_watch_goes_on_with_a_table_that_was_made_anew(cluster: Cluster) -> None:
    async def body(bench: Bench) -> None:
        table = await bench.network.table("t")
        for number in range(5):
            await table.put("k", b"%d" % number)
        watch = table.watch()
        await take(watch, 1)
        await bench.harness.administrate(f"STREAM.DELETE.KV_{bench.token}_T_t")
        again = await (await bench.connect(member_key(1))).table("t")
        rev = await again.put("k", b"new")
        assert await take(watch, 1) == [Item("k", b"new", rev)]

    on(cluster, body)


@pytest.mark.parametrize("kind", ["append", "table", "blob"])
def test_an_engine_that_is_full(cluster: Cluster, kind: str) -> None:
    async def body(bench: Bench) -> None:
        log, table = await bench.network.log("x"), await bench.network.table("x")
        blobs = await bench.network.blobs("x")
        full = {"max_msgs": 1, "discard": "new"}
        for stream in (f"{bench.token}_L_x", f"KV_{bench.token}_T_x", f"{bench.token}_B_x"):
            await bench.update(stream, **full)
        await log.append(b"", key="k")
        await table.put("k", b"")
        await blobs.put(b"one")
        calls: dict[str, Callable[[], Awaitable[object]]] = {
            "append": partial(log.append, b"", key="l"),
            "table": partial(table.put, "l", b""),
            "blob": partial(blobs.put, b"two"),
        }
        with pytest.raises(EngineError) as caught:
            await calls[kind]()
        assert (type(caught.value), caught.value.rule) == (EngineError, f"{kind}.refused")

    on(cluster, body)


def lossy(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Lose the first acknowledgement of each stored message; what was stored in spite of it."""
    publish, lost = Stream.publish, []

    async def losing(
        stream: Stream, subject: str, data: bytes, headers: dict[str, str]
    ) -> int | Refusal | None:
        answer = await publish(stream, subject, data, headers)
        if isinstance(answer, int) and headers.get("Nats-Msg-Id", subject) not in lost:
            lost.append(headers.get("Nats-Msg-Id", subject))
            return None
        return answer

    monkeypatch.setattr(Stream, "publish", losing)
    return lost


def test_lost_acknowledgements(cluster: Cluster, monkeypatch: pytest.MonkeyPatch) -> None:
    lost = lossy(monkeypatch)

    async def body(bench: Bench) -> None:
        log, table = await bench.network.log("l"), await bench.network.table("t")
        blobs = await bench.network.blobs("b")
        assert await log.append(b"", key="k1") == 1
        assert await log.append(b"", key="k2", expect=1) == 2
        with pytest.raises(Conflict):
            await log.append(b"", key="k3", expect=1)
        assert await log.bounds() == (1, 2)
        rev = await table.put("k", b"1", expect=0)
        newer = await table.put("k", b"2", expect=rev)
        assert await table.get("k") == Item("k", b"2", newer)
        await table.delete("k", expect=newer)
        assert await table.get("k") is None
        newest = await table.put("k", b"3", expect=0)
        assert await table.get("k") == Item("k", b"3", newest)
        data = bytes(300_000)
        assert await blobs.get(await blobs.put(data)) == data
        assert len(lost) == 9

    on(cluster, body)


def test_a_revision_of_a_deletion_is_no_value(cluster: Cluster) -> None:
    async def body(bench: Bench) -> None:
        table = await bench.network.table("t")
        watch = table.watch()
        await table.put("k", b"")
        await take(watch, 1)
        await table.delete("k")
        (gone,) = await take(watch, 1)
        for call in (table.put("k", b"", expect=gone.rev), table.delete("k", expect=gone.rev)):
            with pytest.raises(Conflict) as caught:
                await call
            assert caught.value.actual == 0

    on(cluster, body)


def test_blobs_with_chunks_missing_or_lies(
    cluster: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_nats_blobs, "BEHIND_SECONDS", 0.1)
    monkeypatch.setattr(_nats_blobs, "MAX_BYTES", 1 << 20)

    async def body(bench: Bench) -> None:
        blobs = await bench.network.blobs("b")
        data = bytes(range(256)) * 2000
        digest = await blobs.put(data)
        prefix, stream = f"{bench.token}.blob.b.{digest.hex()}", blobs._stream
        headers = {_nats_blobs.SIZE: str(len(data))}
        first = data[: _nats_blobs.CHUNK_BYTES]
        for size in ("", "x", "-1", "1" * 11, str((1 << 20) + 1), str(len(data) - 1), "1"):
            await stream.publish(f"{prefix}.0", first, {**headers, _nats_blobs.SIZE: size})
            with pytest.raises(BlobAltered) as caught:
                await blobs.get(digest)
            assert caught.value.rule == "blob.altered"
        # Whoever has it can store it again.
        assert await blobs.put(data) == digest
        assert await blobs.get(digest) == data
        await stream.publish(f"{prefix}.1", bytes(_nats_blobs.CHUNK_BYTES + 1), {})
        with pytest.raises(BlobAltered):
            await blobs.get(digest)
        more = {_nats_blobs.SIZE: str(5 * _nats_blobs.CHUNK_BYTES)}
        await blobs.put(data)
        await stream.publish(f"{prefix}.0", first, more)
        with pytest.raises(BlobMissing) as missing:
            await blobs.get(digest)
        assert missing.value.rule == "blob.missing"
        with pytest.raises(TooLarge) as large:
            await blobs.put(bytes((1 << 20) + 1))
        assert large.value.rule == "blob.size"
        guest = await (await bench.connect(public=frozenset("b"))).blobs("b")
        with pytest.raises(BlobMissing):
            await guest.get(digest)

    on(cluster, body)


class _Stored:
    """A stream of which entries are gone that should be there."""

    managed = True
    name = "log"

    def __init__(self, state: State) -> None:
        self._state = state
        self.connection = self

    def inbox(self) -> str:
        return ""

    async def get(self, _query: dict[str, Any]) -> Stored | None:
        return None

    async def state(self) -> State:
        return self._state


@pytest.mark.parametrize(
    ("first", "kind", "rule"), [(1, LogBroken, "log.gap"), (3, Lagged, "log.trimmed")]
)
def test_an_entry_that_does_not_come(first: int, kind: type[Exception], rule: str) -> None:
    stream: Any = _Stored(State(first, 5, ""))
    reader = _Reader(stream, "", 1)

    class Ahead:
        async def next(self) -> Stored:
            return Stored(3, "", {}, b"")

    reader._source = Ahead()

    async def body() -> None:
        for _ in range(2):
            with pytest.raises((LogBroken, Lagged)) as caught:
                await anext(reader)
            assert (type(caught.value), caught.value.rule) == (kind, rule)

    asyncio.run(body())


@pytest.mark.parametrize(
    "reply",
    [
        "",
        "$JS.ACK",
        "$JS.ACK.a.b.1.x.1.1.1",
        "$JS.ACK.a.b.1.2.1.1.1.1",
        "$JS.ACK.d.h.s.c.1.²." + "1." * 4,
        "_INBOX.a.b.c.d.e.f.g.h",
    ],
)
def test_what_no_consumer_delivers(reply: str) -> None:
    assert _nats_stream.delivered(Raw("s", reply, {}, b"")) is None


def test_what_a_consumer_delivers() -> None:
    for reply in ("$JS.ACK.s.c.1.42.7.1.0", "$JS.ACK._.h.s.c.1.42.7.1.0.x"):
        found = _nats_stream.delivered(Raw("s", reply, {"a": "b"}, b"d"))
        assert found == Stored(42, "s", {"a": "b"}, b"d")


@pytest.mark.parametrize("data", [b"", b"[]", b"1", b"\xff", b"[" * 100_000, b'"error"', b"{"])
def test_what_is_no_answer(data: bytes) -> None:
    assert _nats_stream.decode(data) is None


def test_answers_of_the_administration_that_are_none(cluster: Cluster) -> None:
    async def body(bench: Bench) -> None:
        stream = Stream(bench.network._connection, secrets.token_hex(4), managed=True)

        message = {"seq": "x"}

        async def call(verb: str, query: dict[str, Any], seconds: float = 1.0) -> dict[str, Any]:
            return {"message": message, "state": 7, "config": []}

        stream.call = call  # type: ignore[method-assign,assignment]
        for data in ("ä", "=", 7, ["x"]):
            message["data"] = data  # type: ignore[assignment]
            with pytest.raises(Unavailable) as caught:
                await stream.get({"seq": 1})
            assert caught.value.rule == "garbage"
        assert await stream.state() == State(1, 0, "")

    on(cluster, body)
