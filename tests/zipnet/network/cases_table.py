import asyncio

import pytest

from tests.zipnet.network.conformance import Bench, Suite, eventually, soon, take
from zipnet.errors import CallRejected, Conflict, TooLarge, Unavailable
from zipnet.network.base import Item, Table

TABLE = Suite()


async def tables(bench: Bench) -> tuple[Table, Table, Table]:
    name = bench.name()
    return await bench.a.table(name), await bench.b.table(name), await bench.c.table(name)


@TABLE.case("put and get")
async def put_get(bench: Bench) -> None:
    a, b, _ = await tables(bench)
    assert await b.get("k") is None
    rev = await a.put("k", b"one")
    assert rev > 0
    assert await b.get("k") == Item("k", b"one", rev)
    newer = await b.put("k", b"")
    assert newer > rev
    assert await a.get("k") == Item("k", b"", newer)


@TABLE.case("table cas")
async def cas(bench: Bench) -> None:
    a, b, _ = await tables(bench)
    old = await a.put("k", b"1", expect=0)
    rev = await b.put("k", b"2", expect=old)
    for call in (a.put("k", b"3", expect=old), a.delete("k", expect=old)):
        with pytest.raises(Conflict) as caught:
            await call
        assert caught.value.actual in (rev, None)
    assert await a.get("k") == Item("k", b"2", rev)
    with pytest.raises(Conflict):
        await a.put("none", b"", expect=rev)


@TABLE.case("table create-only")
async def create_only(bench: Bench) -> None:
    a, b, _ = await tables(bench)
    rev = await a.put("k", b"1", expect=0)
    with pytest.raises(Conflict):
        await b.put("k", b"2", expect=0)
    assert await b.get("k") == Item("k", b"1", rev)


@TABLE.case("table cas race")
async def cas_race(bench: Bench) -> None:
    handles = await tables(bench)
    rev = 0
    for _ in range(10):
        tries = [table.put("k", b"%d" % n, expect=rev) for n, table in enumerate(handles)]
        results = await asyncio.gather(*tries, return_exceptions=True)
        won = [n for n, result in enumerate(results) if not isinstance(result, Conflict)]
        assert len(won) == 1
        item = await handles[0].get("k")
        assert item is not None
        assert (item.value, item.rev) == (b"%d" % won[0], results[won[0]])
        rev = item.rev


@TABLE.case("retry of a successful cas put")
async def cas_retry(bench: Bench) -> None:
    a, _, _ = await tables(bench)
    rev = await a.put("k", b"1", expect=0)
    with pytest.raises(Conflict) as caught:
        await a.put("k", b"1", expect=0)
    assert caught.value.actual in (rev, None)
    assert await a.get("k") == Item("k", b"1", rev)


@TABLE.case("watch")
async def watch(bench: Bench) -> None:
    a, b, _ = await tables(bench)
    rev = await a.put("k", b"1")
    watch = b.watch()
    assert await take(watch, 1) == [Item("k", b"1", rev)]
    rev = await a.put("k", b"2")
    assert await take(watch, 1) == [Item("k", b"2", rev)]
    await a.delete("k")
    (gone,) = await take(watch, 1)
    assert (gone.key, gone.value) == ("k", None)
    assert gone.rev > rev


@TABLE.case("watch ends with the last value of each key")
async def watch_last(bench: Bench) -> None:
    a, b, _ = await tables(bench)
    watch = b.watch()
    waiting = asyncio.ensure_future(anext(watch))
    await asyncio.gather(*(a.put(f"k{n % 3}", b"%d" % n) for n in range(60)))
    last = await a.put("end", b"")
    item = await soon(waiting)
    seen = {item.key: item}
    while item.rev < last:
        newer = await soon(anext(watch))
        assert newer.rev > item.rev
        seen[newer.key] = item = newer
    assert seen == {key: await a.get(key) for key in ("k0", "k1", "k2", "end")}


@TABLE.case("watch begun during a put shows it once")
async def watch_once(bench: Bench) -> None:
    a, b, _ = await tables(bench)
    for number in range(20):
        putting = asyncio.ensure_future(a.put("k", b"%d" % number))
        watch = b.watch()
        first = asyncio.ensure_future(anext(watch))
        await putting
        end = await a.put("end", b"")
        revs = [(await soon(first)).rev]
        while revs[-1] < end:
            revs.append((await soon(anext(watch))).rev)
        assert revs == sorted(set(revs))


@TABLE.case("watch a prefix")
async def watch_prefix(bench: Bench) -> None:
    a, b, _ = await tables(bench)
    await a.put("x/1", b"")
    await a.put("y/1", b"")
    watch = b.watch("y/")
    assert [item.key for item in await take(watch, 1)] == ["y/1"]
    await a.put("x/2", b"")
    await a.put("y/2", b"")
    assert [item.key for item in await take(watch, 1)] == ["y/2"]


@TABLE.case("tombstones absent from a new watch")
async def no_tombstones(bench: Bench) -> None:
    a, b, _ = await tables(bench)
    await a.put("gone", b"")
    await a.delete("gone")
    await a.put("there", b"")
    watch = b.watch()
    assert [item.key for item in await take(watch, 1)] == ["there"]
    await a.put("new", b"")
    assert [item.key for item in await take(watch, 1)] == ["new"]


@TABLE.case("get deleted")
async def deleted(bench: Bench) -> None:
    a, b, _ = await tables(bench)
    await a.delete("k")
    await a.delete("k", expect=0)
    rev = await a.put("k", b"1")
    await b.delete("k", expect=rev)
    assert await a.get("k") is None
    with pytest.raises(Conflict):
        await a.delete("k", expect=rev)


@TABLE.case("recreate after delete")
async def recreate(bench: Bench) -> None:
    a, b, _ = await tables(bench)
    rev = await a.put("k", b"1", expect=0)
    await a.delete("k")
    assert await b.put("k", b"2", expect=0) > rev


@TABLE.case("lease expires")
async def lease(bench: Bench) -> None:
    a, b, _ = await tables(bench)
    rev = await a.put("lease", b"a", expect=0, ttl=1)
    with pytest.raises(Conflict):
        await b.put("lease", b"b", expect=0, ttl=1)

    async def taken() -> bool:
        try:
            return await b.put("lease", b"b", expect=0) > rev
        except Conflict:
            return False

    begin = asyncio.get_running_loop().time()
    await eventually(taken)
    assert asyncio.get_running_loop().time() - begin > 0.5
    item = await a.get("lease")
    assert item is not None
    assert item.value == b"b"


@TABLE.case("watch sees a lease expire")
async def watch_lease(bench: Bench) -> None:
    a, b, _ = await tables(bench)
    watch = b.watch()
    rev = await a.put("lease", b"", ttl=1)
    assert await take(watch, 1) == [Item("lease", b"", rev)]
    (gone,) = await take(watch, 1)
    assert (gone.key, gone.value) == ("lease", None)
    assert gone.rev > rev
    assert await a.get("lease") is None


@TABLE.case("a put ends an earlier time to live")
async def renewed(bench: Bench) -> None:
    a, b, _ = await tables(bench)
    await a.put("kept", b"", ttl=1)
    rev = await b.put("kept", b"new")
    await a.put("marker", b"", ttl=2)

    async def gone() -> bool:
        return await a.get("marker") is None

    await eventually(gone)
    assert await a.get("kept") == Item("kept", b"new", rev)


@TABLE.case("tables are apart")
async def apart(bench: Bench) -> None:
    a, _, _ = await tables(bench)
    other = await bench.a.table(bench.name())
    await a.put("k", b"")
    assert await other.get("k") is None


@TABLE.case("values too large, exactly max_message")
async def sizes(bench: Bench) -> None:
    a, b, _ = await tables(bench)
    with pytest.raises(TooLarge):
        await a.put("k", bytes(bench.a.max_message + 1))
    data = b"\xff" * bench.a.max_message
    rev = await a.put("k" * 256, data)
    assert await b.get("k" * 256) == Item("k" * 256, data, rev)


@TABLE.case("table keys that are none")
async def keys(bench: Bench) -> None:
    a, _, _ = await tables(bench)
    for key in ("", ".a", "a.", "a..b", "a b", "*", ">", "a\n", "x" * 257):
        for call in (a.get(key), a.put(key, b""), a.delete(key)):
            with pytest.raises(CallRejected) as caught:
                await call
            assert caught.value.rule == "table-key"
    with pytest.raises(CallRejected):
        a.watch("a*")
    for ttl in (0, -1):
        with pytest.raises(CallRejected):
            await a.put("k", b"", ttl=ttl)
    with pytest.raises(CallRejected):
        await bench.a.table("a.b")
    assert await a.put("Az/09_=.-", b"") > 0


@TABLE.case("a closed handle's table")
async def closed_handle(bench: Bench) -> None:
    a, b, _ = await tables(bench)
    waiting = asyncio.ensure_future(anext(a.watch()))
    await asyncio.sleep(0)
    await bench.a.close()
    with pytest.raises(Unavailable):
        await soon(waiting)
    with pytest.raises(Unavailable):
        await a.get("k")
    assert await b.get("k") is None
