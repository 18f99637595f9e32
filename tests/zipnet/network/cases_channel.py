import asyncio
from collections.abc import AsyncIterator

import pytest
from blake3 import blake3

from tests.zipnet.network.conformance import PUBLIC_LOG, Bench, Suite, soon, take
from zipnet.errors import (
    BlobAltered,
    BlobMissing,
    CallRejected,
    Denied,
    Lagged,
    TooLarge,
    Unavailable,
)
from zipnet.network.base import Channel, Item, Message

CHANNEL = Suite()
BLOBS = Suite()
DENIED = Suite()

# A pattern, topics that it takes, topics that it does not.
WILDCARDS: tuple[tuple[str, list[str], list[str]], ...] = (
    ("a", ["a"], ["b", "a.a", "aa", "A"]),
    ("a.b", ["a.b"], ["a", "b", "a.b.c", "a.bb"]),
    ("*", ["a", "b"], ["a.b", "a.b.c"]),
    ("a.*", ["a.b", "a.c"], ["a", "a.b.c", "b.a"]),
    ("*.b", ["a.b", "b.b"], ["b", "a.c", "a.a.b"]),
    ("a.*.c", ["a.b.c", "a.c.c"], ["a.c", "a.b.b.c", "a.b.b"]),
    (">", ["a", "a.b", "a.b.c"], []),
    ("a.>", ["a.b", "a.b.c"], ["a", "b.a"]),
    ("*.>", ["a.b", "a.b.c"], ["a"]),
)


async def echo(listener: AsyncIterator[Message]) -> None:
    async for message in listener:
        assert message.reply is not None
        await message.reply(message.topic.encode() + b":" + message.data)


async def ask_known(channel: Channel, topic: str, timeout: float = 5.0) -> bytes:
    """As `ask`, for a listener of whom other nodes of a bus hear a moment after it listens."""
    while True:
        try:
            return await channel.ask(topic, b"", timeout=timeout)
        except Unavailable as error:
            if error.rule != "ask.nobody":
                raise
        await asyncio.sleep(0.01)


@CHANNEL.case("channel")
async def channel(bench: Bench) -> None:
    name = bench.name()
    a, b, c = (network.channel(name) for network in (bench.a, bench.b, bench.c))
    await a.send("nobody.yet", b"lost")
    async with b.listen(">") as first, c.listen("x.*") as second:
        await a.send("x.y", b"data")
        await a.send("z", b"")
        for got in await take(first, 1), await take(second, 1):
            assert [(message.topic, message.data) for message in got] == [("x.y", b"data")]
            assert got[0].reply is None
        assert [message.topic for message in await take(first, 1)] == ["z"]


@CHANNEL.case("channels are apart")
async def apart(bench: Bench) -> None:
    one, two = bench.a.channel(bench.name()), bench.a.channel(bench.name())
    async with bench.b.channel(bench.name()).listen(">"), two.listen(">") as listener:
        await one.send("t", b"one")
        await two.send("t", b"two")
        assert [message.data for message in await take(listener, 1)] == [b"two"]


@CHANNEL.case("in order")
async def in_order(bench: Bench) -> None:
    name = bench.name()
    async with bench.b.channel(name).listen("t") as listener:
        for number in range(200):
            await bench.a.channel(name).send("t", b"%d" % number)
        got = [message.data for message in await take(listener, 200)]
    assert got == [b"%d" % number for number in range(200)]


@CHANNEL.case("nothing after leaving")
async def left(bench: Bench) -> None:
    name = bench.name()
    async with bench.b.channel(name).listen("t") as listener:
        pass
    await bench.a.channel(name).send("t", b"")
    with pytest.raises(StopAsyncIteration):
        await soon(anext(listener))


@CHANNEL.case("ask/receipt")
async def ask(bench: Bench) -> None:
    name = bench.name()
    a, b = bench.a.channel(name), bench.b.channel(name)
    async with b.listen("q.*") as listener:
        task = asyncio.ensure_future(echo(listener))
        answers = await asyncio.gather(*(a.ask(f"q.{n}", b"%d" % n) for n in range(50)))
        assert answers == [b"q.%d:%d" % (n, n) for n in range(50)]
        task.cancel()


@CHANNEL.case("the first answer counts")
async def answers(bench: Bench) -> None:
    name = bench.name()
    async with bench.b.channel(name).listen("q") as listener:
        asking = asyncio.ensure_future(ask_known(bench.a.channel(name), "q"))
        (message,) = await take(listener, 1)
        assert message.reply is not None
        with pytest.raises(TooLarge):
            await message.reply(bytes(bench.b.max_message + 1))
        await message.reply(b"first")
        await message.reply(b"second")
        assert await soon(asking) == b"first"


@CHANNEL.case("ask nobody")
async def ask_nobody(bench: Bench) -> None:
    with pytest.raises(Unavailable):
        await soon(bench.a.channel(bench.name()).ask("q", b""))


@CHANNEL.case("ask without an answer")
async def no_answer(bench: Bench) -> None:
    name = bench.name()
    async with bench.b.channel(name).listen("q") as listener:
        with pytest.raises(Unavailable):
            await soon(ask_known(bench.a.channel(name), "q", timeout=0.2))
        (message,) = await take(listener, 1)
        assert message.reply is not None
        await message.reply(b"late")


@CHANNEL.case("wildcard rules")
async def wildcards(bench: Bench) -> None:
    sender = bench.a.channel(name := bench.name())
    for pattern, good, bad in WILDCARDS:
        async with bench.b.channel(name).listen(pattern) as listener:
            for topic in bad + good:
                await sender.send(topic, b"")
            assert [message.topic for message in await take(listener, len(good))] == good


async def flooded(bench: Bench, name: str, listener: AsyncIterator[Message]) -> Channel:
    """Send more than there is room for; the listener must tell, in its place and once."""
    sender = bench.a.channel(name)
    for number in range(20):
        await sender.send("t", b"%02d" % number + bytes(498))
    # Behind all of them, whichever way they take.
    await soon(sender.ask("sync", b""))
    before: list[bytes] = []

    async def drain() -> None:
        while True:
            before.append((await soon(anext(listener))).data[:2])

    with pytest.raises(Lagged) as caught:
        await drain()
    assert caught.value.missed in (20 - len(before), None)
    assert before == [b"%02d" % number for number in range(len(before))]
    assert len(before) <= 4
    return sender


@CHANNEL.case("overflow is loud")
async def overflow(bench: Bench) -> None:
    channel = bench.b.channel(name := bench.name())
    async with channel.listen("sync") as other, channel.listen("t", max_bytes=2000) as listener:
        task = asyncio.ensure_future(echo(other))
        await flooded(bench, name, listener)
        task.cancel()


@CHANNEL.case("go on after Lagged")
async def go_on(bench: Bench) -> None:
    channel = bench.b.channel(name := bench.name())
    async with channel.listen("sync") as other, channel.listen("t", max_bytes=2000) as listener:
        task = asyncio.ensure_future(echo(other))
        for _ in range(3):
            sender = await flooded(bench, name, listener)
            waiting = asyncio.ensure_future(anext(listener))
            await sender.send("t", b"after")
            assert (await soon(waiting)).data == b"after"
        task.cancel()


@CHANNEL.case("reconnect is loud", needs="cut")
async def reconnect(bench: Bench) -> None:
    name = bench.name()
    async with bench.b.channel(name).listen("t") as listener:
        await bench.harness.cut(bench.b)
        with pytest.raises(Lagged):
            await soon(anext(listener))
        await bench.a.channel(name).send("t", b"after")
        assert [message.data for message in await take(listener, 1)] == [b"after"]


@CHANNEL.case("messages too large, exactly max_message")
async def sizes(bench: Bench) -> None:
    name = bench.name()
    a, b = bench.a.channel(name), bench.b.channel(name)
    for call in (
        a.send("t", bytes(bench.a.max_message + 1)),
        a.ask("t", bytes(bench.a.max_message + 1)),
    ):
        with pytest.raises(TooLarge):
            await call
    topic, data = "t" * 256, b"\xff" * bench.a.max_message
    async with b.listen(">") as listener:
        await a.send(topic, data)
        (message,) = await take(listener, 1)
    assert (message.topic, message.data) == (topic, data)


@CHANNEL.case("topics and patterns that are none")
async def topics(bench: Bench) -> None:
    channel = bench.a.channel(bench.name())
    none = ("", ".", "a.", ".a", "a..b", "a b", "a/b", "a\n", "ä", "x" * 257)
    for topic in (*none, "*", ">", "a.*"):
        for call in (channel.send(topic, b""), channel.ask(topic, b"")):
            with pytest.raises(CallRejected) as caught:
                await call
            assert caught.value.rule == "topic"
    for pattern in (*none, ">.a", "a.>.b", "a*", "*a", "a>", "**", "a.**"):
        with pytest.raises(CallRejected) as caught:
            channel.listen(pattern)
        assert caught.value.rule == "pattern"
    with pytest.raises(CallRejected):
        channel.listen("a", max_bytes=0)
    with pytest.raises(CallRejected):
        bench.a.channel("a.b")


@CHANNEL.case("a closed handle's channel")
async def closed_handle(bench: Bench) -> None:
    name = bench.name()
    a, b = bench.a.channel(name), bench.b.channel(name)
    async with a.listen("mine") as mine, b.listen("theirs") as theirs:
        listening = asyncio.ensure_future(anext(mine))
        asking = asyncio.ensure_future(a.ask("theirs", b""))
        await take(theirs, 1)
        await bench.a.close()
        for waiting in (listening, asking):
            with pytest.raises(Unavailable):
                await soon(waiting)
        for call in (a.send("t", b""), a.ask("t", b"")):
            with pytest.raises(Unavailable):
                await soon(call)
        with pytest.raises(Unavailable):
            async with a.listen("t"):
                pass
        with pytest.raises(Unavailable):
            await soon(b.ask("mine", b"", timeout=0.2))


@BLOBS.case("blob > max_message")
async def big_blob(bench: Bench) -> None:
    name = bench.name()
    a, b = await bench.a.blobs(name), await bench.b.blobs(name)
    data = bytes(range(256)) * (3 << 12)
    assert len(data) == 3 << 20 > bench.a.max_message
    digest = await a.put(data)
    assert digest == blake3(data).digest()
    assert await b.get(digest) == data
    assert await b.put(data) == digest


@BLOBS.case("empty blob")
async def empty_blob(bench: Bench) -> None:
    blobs = await bench.a.blobs(bench.name())
    assert await blobs.get(await blobs.put(b"")) == b""


@BLOBS.case("blob missing")
async def missing(bench: Bench) -> None:
    one, two = await bench.a.blobs(bench.name()), await bench.a.blobs(bench.name())
    digest = await one.put(b"data")
    with pytest.raises(BlobMissing):
        await two.get(digest)
    for wrong in (b"", digest[:31], digest + b"\0"):
        with pytest.raises(CallRejected):
            await one.get(wrong)
    with pytest.raises(CallRejected):
        await bench.a.blobs("..")


@BLOBS.case("blob altered", needs="alter-blob")
async def altered(bench: Bench) -> None:
    name = bench.name()
    a, b = await bench.a.blobs(name), await bench.b.blobs(name)
    digest = await a.put(b"data")
    await bench.harness.alter_blob(name, digest)
    with pytest.raises(BlobAltered):
        await b.get(digest)


@DENIED.case("denied at connect", needs="deny")
async def denied_connect(bench: Bench) -> None:
    with pytest.raises(Denied):
        await soon(bench.harness.stranger())


@DENIED.case("a guest reads and is denied the rest", needs="deny")
async def denied_guest(bench: Bench) -> None:
    log = await bench.a.log(PUBLIC_LOG)
    await log.append(b"x", key=bench.name())
    _, last = await log.bounds()
    guest = await soon(bench.harness.guest())
    public, channel = await guest.log(PUBLIC_LOG), guest.channel(bench.name())
    for _ in range(2):
        for call in (
            public.append(b"", key=bench.name()),
            channel.send("t", b""),
            channel.ask("t", b""),
            channel.listen(">").__aenter__(),
        ):
            with pytest.raises(Denied):
                await soon(call)
        assert [entry.seq for entry in await take(public.read(last - 1), 1)] == [last]
    assert await log.bounds() == (1, last)


@DENIED.case("a guest reads public tables and blobs, and what is new", needs="deny")
async def public_reading(bench: Bench) -> None:
    table, blobs = await bench.a.table(PUBLIC_LOG), await bench.a.blobs(PUBLIC_LOG)
    log = await bench.a.log(PUBLIC_LOG)
    await table.put("gone", b"")
    await table.delete("gone")
    rev = await table.put("k", b"1")
    digest = await blobs.put(bytes(range(256)) * 2000)
    guest = await soon(bench.harness.guest())
    seen = await guest.table(PUBLIC_LOG)
    watch, reader = seen.watch(), (await guest.log(PUBLIC_LOG)).read((await log.bounds())[1])
    assert await take(watch, 1) == [Item("k", b"1", rev)]
    entry = asyncio.ensure_future(anext(reader))
    item = asyncio.ensure_future(anext(watch))
    seq = await log.append(b"new", key=bench.name())
    rev = await table.put("k", b"2")
    assert await soon(item) == Item("k", b"2", rev)
    assert (await soon(entry)).seq == seq
    more = [await log.append(b"%d" % n, key=bench.name()) for n in range(100)]
    assert [entry.seq for entry in await take(reader, 100)] == more
    await table.put("lease", b"", ttl=1)
    assert [one.value for one in await take(watch, 2)] == [b"", None]
    await table.delete("k")
    assert [(one.key, one.value) for one in await take(watch, 1)] == [("k", None)]
    assert await seen.get("k") is None
    assert len(await (await guest.blobs(PUBLIC_LOG)).get(digest)) == 512_000
    with pytest.raises(BlobMissing):
        await (await guest.blobs(PUBLIC_LOG)).get(bytes(32))
    for call in (seen.put("k", b""), seen.delete("k")):
        with pytest.raises(Denied):
            await soon(call)
    with pytest.raises(Denied):
        await (await guest.blobs(PUBLIC_LOG)).put(b"")
