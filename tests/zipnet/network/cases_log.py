import asyncio

import pytest

from tests.zipnet.network.conformance import PATIENCE, Bench, Suite, eventually, soon, take
from zipnet.errors import CallRejected, Conflict, Lagged, LogBroken, TooLarge, Unavailable
from zipnet.network.base import Entry, Log

LOG = Suite()


async def filled(log: Log, number: int) -> None:
    for at in range(1, number + 1):
        assert await log.append(b"%d" % at, key=f"k{at}") == at


async def stored(log: Log) -> list[Entry]:
    """All that a log holds."""
    first, last = await log.bounds()
    return await take(log.read(first - 1), last - first + 1)


@LOG.case("idempotent append")
async def idempotent_append(bench: Bench) -> None:
    name = bench.name()
    a, b = await bench.a.log(name), await bench.b.log(name)
    assert await a.append(b"one", key="k") == 1
    assert await b.append(b"other", key="k") == 1
    assert await stored(b) == [Entry(1, "k", b"one")]


@LOG.case("cas ok")
async def cas_ok(bench: Bench) -> None:
    log = await bench.a.log(bench.name())
    assert await log.append(b"", key="k1", expect=0) == 1
    assert await log.append(b"", key="k2", expect=1) == 2


@LOG.case("cas conflict")
async def cas_conflict(bench: Bench) -> None:
    log = await bench.a.log(bench.name())
    await filled(log, 2)
    for stale in (0, 1, 3):
        with pytest.raises(Conflict) as caught:
            await log.append(b"", key=f"stale{stale}", expect=stale)
        assert caught.value.actual in (2, None)
    assert await log.bounds() == (1, 2)


@LOG.case("cas race")
async def cas_race(bench: Bench) -> None:
    name = bench.name()
    logs = [await network.log(name) for network in (bench.a, bench.b, bench.c)]
    for tip in range(10):
        tries = [log.append(b"", key=f"{tip}-{at}", expect=tip) for at, log in enumerate(logs)]
        results = await asyncio.gather(*tries, return_exceptions=True)
        assert [r for r in results if not isinstance(r, Conflict)] == [tip + 1]


@LOG.case("retry of a successful cas append")
async def cas_retry(bench: Bench) -> None:
    name = bench.name()
    a, b = await bench.a.log(name), await bench.b.log(name)
    for log in (a, b, a):
        assert await log.append(b"x", key="k", expect=0) == 1
    assert await b.append(b"y", key="l", expect=1) == 2
    for log in (a, b):
        assert await log.append(b"x", key="k", expect=0) == 1
    assert await a.bounds() == (1, 2)


@LOG.case("same key from three handles at once")
async def same_key(bench: Bench) -> None:
    name = bench.name()
    logs = [await network.log(name) for network in (bench.a, bench.b, bench.c)]
    for tip in range(10):
        got = await asyncio.gather(*(log.append(b"x", key=f"k{tip}") for log in logs))
        assert got == [tip + 1] * 3
    assert len(await stored(logs[0])) == 10


@LOG.case("read all")
async def read_all(bench: Bench) -> None:
    name = bench.name()
    a, b = await bench.a.log(name), await bench.b.log(name)
    await filled(a, 3)
    assert await take(b.read(), 3) == [Entry(n, f"k{n}", b"%d" % n) for n in (1, 2, 3)]


@LOG.case("read after")
async def read_after(bench: Bench) -> None:
    log = await bench.a.log(bench.name())
    await filled(log, 2)
    assert [entry.seq for entry in await take(log.read(1), 1)] == [2]


@LOG.case("read goes on with what is new")
async def read_live(bench: Bench) -> None:
    name = bench.name()
    a, b = await bench.a.log(name), await bench.b.log(name)
    reader = b.read()
    waiting = asyncio.ensure_future(anext(reader))
    await filled(a, 1)
    assert (await soon(waiting)).seq == 1
    await asyncio.gather(*(a.append(b"", key=f"n{n}") for n in range(700)))
    assert [entry.seq for entry in await take(reader, 700)] == list(range(2, 702))
    waiting = asyncio.ensure_future(anext(reader))
    await asyncio.sleep(0)
    waiting.cancel()
    assert await a.append(b"", key="last") == 702
    assert (await soon(anext(reader))).seq == 702


@LOG.case("readers see one order")
async def one_order(bench: Bench) -> None:
    name = bench.name()
    logs = [await network.log(name) for network in (bench.a, bench.b, bench.c)]
    readers = [asyncio.ensure_future(take(log.read(), 60)) for log in logs]
    appends = [logs[n % 3].append(b"%d" % n, key=f"k{n}") for n in range(60)]
    numbers = await asyncio.gather(*appends)
    lists = await asyncio.gather(*readers)
    assert lists[0] == lists[1] == lists[2]
    assert [lists[0][seq - 1].key for seq in numbers] == [f"k{n}" for n in range(60)]


@LOG.case("bounds")
async def bounds(bench: Bench) -> None:
    name = bench.name()
    a, b = await bench.a.log(name), await bench.b.log(name)
    assert await a.bounds() == (1, 0)
    await filled(a, 2)
    assert await b.bounds() == (1, 2)


@LOG.case("logs are apart")
async def apart(bench: Bench) -> None:
    one, two = await bench.a.log(bench.name()), await bench.a.log(bench.name())
    await filled(one, 2)
    await filled(two, 1)
    assert await stored(two) == [Entry(1, "k1", b"1")]


@LOG.case("too large")
async def too_large(bench: Bench) -> None:
    log = await bench.a.log(bench.name())
    for more in (1, 5000):
        with pytest.raises(TooLarge):
            await log.append(bytes(bench.a.max_message + more), key="k")
    assert await log.bounds() == (1, 0)


@LOG.case("exactly max_message with a long key")
async def largest(bench: Bench) -> None:
    name = bench.name()
    a, b = await bench.a.log(name), await bench.b.log(name)
    data, key = b"\xff" * bench.a.max_message, "k" * 128
    assert await a.append(data, key=key, expect=0) == 1
    assert await stored(b) == [Entry(1, key, data)]


@LOG.case("empty data")
async def empty(bench: Bench) -> None:
    log = await bench.a.log(bench.name())
    await log.append(b"", key="k")
    assert await stored(log) == [Entry(1, "k", b"")]


@LOG.case("trim(0) drops nothing")
async def trim_nothing(bench: Bench) -> None:
    log = await bench.a.log(bench.name())
    await log.trim(0)
    assert await log.bounds() == (1, 0)
    await filled(log, 3)
    await log.trim(0)
    assert await log.bounds() == (1, 3)
    assert len(await stored(log)) == 3


@LOG.case("trim past the end drops nothing")
async def trim_past(bench: Bench) -> None:
    log = await bench.a.log(bench.name())
    await log.trim(1)
    await filled(log, 3)
    for upto in (4, 500, 1 << 70):
        await log.trim(upto)
    assert await log.bounds() == (1, 3)
    assert await log.append(b"", key="next") == 4


@LOG.case("trim")
async def trim(bench: Bench) -> None:
    name = bench.name()
    a, b = await bench.a.log(name), await bench.b.log(name)
    await filled(a, 4)
    for upto, first in ((1, 2), (3, 4), (2, 4), (4, 5), (4, 5)):
        await b.trim(upto)
        assert await a.bounds() == (first, 4)
    assert await a.append(b"5", key="k5", expect=4) == 5
    assert await stored(b) == [Entry(5, "k5", b"5")]


@LOG.case("a key is known after trim")
async def key_after_trim(bench: Bench) -> None:
    log = await bench.a.log(bench.name())
    await filled(log, 3)
    await log.trim(3)
    assert await log.append(b"2", key="k2") == 2
    assert await log.bounds() == (4, 3)


@LOG.case("read below first")
async def below_first(bench: Bench) -> None:
    log = await bench.a.log(bench.name())
    await filled(log, 5)
    early = log.read()
    assert (await soon(anext(early))).seq == 1
    for upto in (3, 5):
        await log.trim(upto)
        for after in (0, upto - 1):
            reader = log.read(after)
            for _ in range(2):
                with pytest.raises(Lagged) as caught:
                    await soon(anext(reader))
                assert caught.value.missed in (upto - after, None)
    waiting = asyncio.ensure_future(anext(log.read(5)))
    await log.append(b"", key="k6")
    assert (await soon(waiting)).seq == 6


@LOG.case("read beyond the end is loud")
async def beyond(bench: Bench) -> None:
    log = await bench.a.log(bench.name())
    await filled(log, 2)
    for after in (3, 1 << 70):
        reader = log.read(after)
        for _ in range(2):
            with pytest.raises(LogBroken):
                await soon(anext(reader))


@LOG.case("a cancelled append is kept or not, never twice")
async def cancelled(bench: Bench) -> None:
    name = bench.name()
    a, b = await bench.a.log(name), await bench.b.log(name)
    for number in range(10):
        task = asyncio.ensure_future(a.append(b"x", key=f"k{number}"))
        for _ in range(number % 5):
            await asyncio.sleep(0)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        assert await b.append(b"x", key=f"k{number}") == number + 1
    assert [entry.key for entry in await stored(b)] == [f"k{n}" for n in range(10)]


@LOG.case("no answer before the deadline")
async def deadline(bench: Bench) -> None:
    log = await bench.a.log(bench.name())
    with pytest.raises(Unavailable):
        await log.append(b"x", key="k", deadline=0.0)
    assert await log.append(b"x", key="k") == 1


@LOG.case("names and keys that are none")
async def names(bench: Bench) -> None:
    for name in ("", "a.b", "a b", "a/b", "*", "ä", "a\n", "x" * 65):
        with pytest.raises(CallRejected) as caught:
            await bench.a.log(name)
        assert caught.value.rule == "name"
    log = await bench.a.log(bench.name())
    for key in ("", "a b", "a/b", "a\r\nb", "é", "x" * 129):
        with pytest.raises(CallRejected) as caught:
            await log.append(b"", key=key)
        assert caught.value.rule == "log-key"
    with pytest.raises(CallRejected):
        await log.append(b"", key="k", expect=-1)
    with pytest.raises(CallRejected):
        log.read(-1)
    assert await log.append(b"", key="Az09._-") == 1


@LOG.case("a closed handle")
async def closed_handle(bench: Bench) -> None:
    name = bench.name()
    a, b = await bench.a.log(name), await bench.b.log(name)
    waiting = asyncio.ensure_future(anext(a.read()))
    await asyncio.sleep(0)
    await bench.a.close()
    await bench.a.close()
    with pytest.raises(Unavailable):
        await soon(waiting)
    for call in (a.append(b"", key="k"), a.bounds(), a.trim(1), bench.a.log(name)):
        with pytest.raises(Unavailable):
            await soon(call)
    assert await b.append(b"", key="k") == 1


@LOG.case("engine killed inside append", needs="kill")
async def killed(bench: Bench) -> None:
    name = bench.name()
    keys = [f"k{n}" for n in range(40)]
    log = await bench.a.log(name)
    tasks = [asyncio.ensure_future(log.append(b"x", key=key)) for key in keys]
    await asyncio.sleep(0)
    await bench.harness.kill()
    outcomes = await asyncio.gather(*tasks, return_exceptions=True)
    assert all(isinstance(outcome, int | Unavailable) for outcome in outcomes)
    await bench.harness.revive()
    log = await (await bench.d()).log(name)
    again = [await log.append(b"x", key=key, deadline=3 * PATIENCE) for key in keys]
    assert sorted(again) == list(range(1, 41))
    assert all(new == old for new, old in zip(again, outcomes, strict=True) if type(old) is int)
    assert [entry.seq for entry in await stored(log)] == list(range(1, 41))


@LOG.case("log deleted behind our back", needs="delete-log")
async def deleted(bench: Bench) -> None:
    name = bench.name()
    log = await bench.a.log(name)
    await filled(log, 3)
    reader = log.read()
    await take(reader, 3)
    waiting = asyncio.ensure_future(anext(reader))
    await asyncio.sleep(0)
    await bench.harness.delete_log(name)
    with pytest.raises(LogBroken):
        await soon(waiting)
    with pytest.raises(LogBroken):
        await soon(anext(reader))

    async def loud() -> bool:
        try:
            await log.append(b"", key="new")
        except LogBroken:
            return True
        return False

    await eventually(loud)
