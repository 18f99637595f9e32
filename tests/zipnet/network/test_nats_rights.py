"""Guests, and nodes with few rights: what they read, what they may, and broken connections."""

import asyncio
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.zipnet.network.conformance import eventually, soon, take
from tests.zipnet.network.nats_bench import AGGREGATOR, CLIENT, Bench, on, with_few_rights
from tests.zipnet.network.nats_cluster import Cluster, Node
from tests.zipnet.network.nats_harness import NatsHarness, guarded, member_key, nkey
from zipnet.errors import (
    Denied,
    Lagged,
    Unavailable,
)
from zipnet.network import _nats_source, _nats_stream
from zipnet.network.base import Item


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    with Cluster(tmp_path_factory.mktemp("streams"), 1, with_few_rights) as running:
        yield running


def test_a_node_with_few_rights(cluster: Cluster) -> None:
    async def body(bench: Bench) -> None:
        table, log = await bench.network.table("public"), await bench.network.log("public")
        await log.append(b"x", key="k")
        few = await bench.connect(AGGREGATOR)
        receipts = await few.table("public")
        watch = table.watch()
        rev = await receipts.put("r", b"1", ttl=100)
        assert await take(watch, 1) == [Item("r", b"1", rev)]
        assert await take(receipts.watch(), 1) == [Item("r", b"1", rev)]
        newer = await receipts.put("r", b"2", expect=rev)
        assert await receipts.get("r") == Item("r", b"2", newer)
        await receipts.delete("r")
        assert await receipts.get("r") is None
        theirs = await few.log("public")
        assert await theirs.bounds() == (1, 1)
        assert [entry.data for entry in await take(theirs.read(), 1)] == [b"x"]
        with pytest.raises(Denied) as caught:
            await theirs.append(b"", key="l")
        assert caught.value.rule == "permits.publish"
        with pytest.raises(Denied):
            await theirs.trim(1)

    on(cluster, body)


def test_a_guest_is_kept_to_what_is_public(cluster: Cluster) -> None:
    async def body(bench: Bench) -> None:
        guest = await bench.connect()
        for opening in (guest.log("l"), guest.table("t"), guest.blobs("b")):
            with pytest.raises(Denied) as caught:
                await opening
            assert caught.value.rule == "guest.read"
        log = await guest.log("public")
        assert not log._stream.managed
        for call in (log.append(b"", key="k"), log.trim(0)):
            with pytest.raises(Denied) as caught:
                await call
            assert caught.value.rule == "guest.write"

    on(cluster, body)


def test_a_guest_reads_a_log_that_was_trimmed(cluster: Cluster) -> None:
    async def body(bench: Bench) -> None:
        log = await bench.network.log("public")
        for number in range(5):
            await log.append(b"", key=f"k{number}")
        theirs = await (await bench.connect()).log("public")
        early = theirs.read()
        assert [entry.seq for entry in await take(early, 2)] == [1, 2]
        await log.trim(3)
        assert await theirs.bounds() == (4, 5)
        reader = theirs.read()
        for _ in range(2):
            with pytest.raises(Lagged) as caught:
                await soon(anext(reader))
            assert (caught.value.rule, caught.value.missed) == ("log.trimmed", 3)

    on(cluster, body)


def test_a_guest_whose_connection_breaks_misses_nothing(cluster: Cluster) -> None:
    async def body(bench: Bench) -> None:
        log, table = await bench.network.log("public"), await bench.network.table("public")
        guest = await bench.connect()
        reader, watch = (await guest.log("public")).read(), (await guest.table("public")).watch()
        first, item = asyncio.ensure_future(anext(reader)), asyncio.ensure_future(anext(watch))
        for number in range(20):
            if number % 7 == 3:
                await bench.harness.cut(guest)
            await log.append(b"%d" % number, key=f"k{number}")
            await table.put(f"k{number}", b"")
        seqs = [(await soon(first)).seq]
        seqs += [entry.seq for entry in await take(reader, 19)]
        assert seqs == list(range(1, 21))
        keys = [(await soon(item)).key]
        keys += [one.key for one in await take(watch, 19)]
        assert keys == [f"k{number}" for number in range(20)]

    on(cluster, body)


def test_a_guest_catches_up_with_what_it_had_no_room_for(
    cluster: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_nats_source, "LIVE_BYTES", 2000)
    monkeypatch.setattr(_nats_source, "BATCH", 7)
    monkeypatch.setattr(_nats_stream, "BATCH", 7)

    async def body(bench: Bench) -> None:
        log = await bench.network.log("public")
        reader = (await (await bench.connect()).log("public")).read()
        waiting = asyncio.ensure_future(anext(reader))
        await asyncio.sleep(0.1)
        for number in range(40):
            await log.append(bytes(300), key=f"k{number}")
        assert (await soon(waiting)).seq == 1
        assert [entry.seq for entry in await take(reader, 39)] == list(range(2, 41))
        await log.append(b"", key="last")
        assert (await soon(anext(reader))).seq == 41

    on(cluster, body)


def test_a_member_whose_connection_breaks_misses_nothing(cluster: Cluster) -> None:
    async def body(bench: Bench) -> None:
        log, table = await bench.network.log("l"), await bench.network.table("t")
        other = await bench.connect(member_key(1))
        reader, watch = (await other.log("l")).read(), (await other.table("t")).watch()
        first, item = asyncio.ensure_future(anext(reader)), asyncio.ensure_future(anext(watch))
        for number in range(20):
            if number % 7 == 3:
                await bench.harness.cut(other)
            await log.append(b"%d" % number, key=f"k{number}")
            await table.put(f"k{number}", b"")
        seqs = [(await soon(first)).seq, *(e.seq for e in await take(reader, 19))]
        assert seqs == list(range(1, 21))
        keys = [(await soon(item)).key, *(one.key for one in await take(watch, 19))]
        assert keys == [f"k{number}" for number in range(20)]

    on(cluster, body)


def test_presenting_a_ticket(cluster: Cluster) -> None:
    async def body(bench: Bench) -> None:
        channel = bench.network.channel("submit")
        client = await bench.connect(identity=CLIENT)
        theirs = client.channel("submit")
        async with channel.listen("t") as listener:
            with pytest.raises(Denied) as caught:
                await theirs.send("t", b"too soon")
            assert caught.value.rule == "permits.publish"
            for number in range(2):
                await client.present(b"bundle %d" % number)
                await theirs.send("t", b"%d" % number)
                assert [one.data for one in await take(listener, 1)] == [b"%d" % number]
            asking = asyncio.ensure_future(theirs.ask("t", b"?"))
            (message,) = await take(listener, 1)
            assert message.reply is not None
            await message.reply(b"!")
            assert await soon(asking) == b"!"
        stranger = await bench.connect(identity=member_key(99))
        with pytest.raises(Denied) as caught:
            await soon(stranger.present(b"bundle"))
        assert caught.value.rule == "admission"
        with pytest.raises(Denied):
            await stranger.channel("submit").send("t", b"")

    on(cluster, body)


def test_refused_when_it_comes_back(tmp_path: Path) -> None:
    """A node that is no longer admitted is told so, not left to wait."""

    def without(node: Node) -> str:
        return guarded(node).replace(nkey(member_key()), nkey(member_key(50)))

    async def body(cluster: Cluster) -> None:
        harness = NatsHarness(cluster)
        network = await harness.connect()
        table = await network.table("t")
        cluster.stop(0)
        cluster._configure = without
        await asyncio.to_thread(cluster.revive, 0)

        async def told() -> bool:
            try:
                await table.put("k", b"", deadline=0.5)
            except Denied as error:
                return error.rule == "admission"
            except Unavailable:
                return False
            return False

        await eventually(told)
        await network.close()

    with Cluster(tmp_path, configure=guarded) as cluster:
        asyncio.run(asyncio.wait_for(body(cluster), 60))
