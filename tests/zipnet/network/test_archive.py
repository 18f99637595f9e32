"""Old broadcasts: nothing leaves the log before the archive has it, and nobody is misled by it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, replace
from functools import cache

import pytest
from blake3 import blake3
from hypothesis import given
from hypothesis import strategies as st

from tests.zipnet.protocol.support import header, peers, record, refused, signed_record
from zipnet.errors import BlobAltered, BlobMissing, Conflict, Lagged, Refused, WireFormatError
from zipnet.network.archive import (
    NEWEST,
    SEGMENT,
    Archive,
    Place,
    decode_segment,
    encode_segment,
)
from zipnet.network.base import Blobs, Entry, Log, Table
from zipnet.network.local import LocalNetwork
from zipnet.network.places import Places
from zipnet.protocol.record import SignedRecord

KEEP, PART = 16, 8
PEERS = peers(header())


@cache
def signed(number: int) -> SignedRecord:
    """The record of a round."""
    return signed_record(record(replace(header(), round=number, base_round=1)))


@dataclass
class Bench:
    """An archive of few records, and what it lies on."""

    network: LocalNetwork
    log: Log
    table: Table
    blobs: Blobs

    def archive(self, **parts: object) -> Archive:
        chosen = {"log": self.log, "table": self.table, "blobs": self.blobs, **parts}
        return Archive(**chosen, keep=KEEP, segment=PART)  # type: ignore[arg-type]

    async def publish(self, *rounds: int) -> None:
        calls = [self.append(signed(number).encode()) for number in rounds]
        await asyncio.gather(*calls)

    async def append(self, raw: bytes) -> None:
        await self.log.append(raw, key=blake3(raw).hexdigest())

    async def place(self, key: str) -> Place:
        item = await self.table.get(key)
        assert item is not None
        assert item.value is not None
        return Place.decode(item.value)

    async def newest(self) -> str:
        item = await self.table.get(NEWEST)
        assert item is not None
        assert item.value is not None
        return item.value.decode()

    async def put(self, key: str, place: Place) -> None:
        await self.table.put(key, place.encode())


def run(body: Callable[[Bench], Awaitable[None]]) -> None:
    async def whole() -> None:
        network = await LocalNetwork.open()
        try:
            bench = Bench(
                network, await network.log("b"), await network.table("b"), await network.blobs("b")
            )
            await asyncio.wait_for(body(bench), 20)
        finally:
            await network.close()

    asyncio.run(whole())


@given(st.lists(st.integers(1, 9), max_size=5))
def test_segments_round_trip(rounds: list[int]) -> None:
    records = [signed(number) for number in rounds]
    raw = encode_segment([one.encode() for one in records])
    assert list(decode_segment(raw)) == records
    with refused(WireFormatError, "archive-segment.trailing"):
        decode_segment(raw + b"\0")
    with pytest.raises(WireFormatError):
        decode_segment(raw[:-1])


def test_a_segment_has_so_many_records() -> None:
    head = encode_segment([])[:-4]
    with refused(WireFormatError, "archive-segment.count"):
        decode_segment(head + (SEGMENT + 1).to_bytes(4, "big"))
    with refused(WireFormatError, "archive-segment.version"):
        decode_segment(head.replace(b"1", b"2") + bytes(4))


@given(
    st.binary(min_size=32, max_size=32),
    st.integers(0, (1 << 32) - 1),
    st.integers(0, (1 << 63) - 1),
    st.integers(0, (1 << 63) - 1),
    st.sampled_from(["", "1-8", f"{'9' * 19}-{'9' * 19}"]),
)
def test_places_round_trip(digest: bytes, count: int, first: int, last: int, key: str) -> None:
    place = Place(digest, count, first, last, key)
    raw = place.encode()
    assert Place.decode(raw) == place
    for bad in (raw[:-1], raw + b"\0"):
        with pytest.raises(WireFormatError):
            Place.decode(bad)


def test_a_short_log_stays_as_it_is() -> None:
    async def body(bench: Bench) -> None:
        await bench.publish(*range(1, KEEP + 1))
        await bench.archive().tidy()
        assert await bench.log.bounds() == (1, KEEP)
        assert await bench.table.get(NEWEST) is None
        assert await bench.archive().get(3, PEERS) == signed(3)
        assert await bench.archive().newest() == KEEP

    run(body)


def test_what_is_over_goes_into_segments() -> None:
    async def body(bench: Bench) -> None:
        rounds = [number for number in range(1, 41) if number % 5]  # every fifth had no record
        await bench.publish(*rounds)
        archive = bench.archive()
        await archive.tidy()
        assert await bench.log.bounds() == (17, 32)
        assert await bench.newest() == "11-19"
        assert (await bench.place("11-19")).previous == "1-9"
        place = await bench.place("1-9")
        assert place == Place(place.digest, 8, 1, 8, "")
        raw = encode_segment([signed(number).encode() for number in rounds[:8]])
        assert await bench.blobs.get(place.digest) == raw
        for number in rounds:
            assert await archive.get(number, PEERS) == signed(number), number
        for number in (5, 20, 41, 10**30):
            with refused(Refused, "archive.round"):
                await archive.get(number)
        with pytest.raises(Refused, match="rounds 1 to 39"):
            await archive.get(41)
        assert await archive.newest() == 39

    run(body)


def test_nothing_there() -> None:
    async def body(bench: Bench) -> None:
        with pytest.raises(Refused, match="no rounds yet"):
            await bench.archive().get(1)
        assert await bench.archive().newest() == 0

    run(body)


def test_three_servers_at_once() -> None:
    async def body(bench: Bench) -> None:
        await bench.publish(*range(1, 101))
        for _ in range(12):
            await asyncio.gather(*(bench.archive().tidy() for _ in range(3)))
        first, last = await bench.log.bounds()
        assert (last, first % PART) == (100, 1)
        assert last - first < KEEP
        for number in range(1, 101):
            assert await bench.archive().get(number, PEERS) == signed(number)
        # One chain of segments, without a gap.
        key, end = await bench.newest(), first
        while key:
            place = await bench.place(key)
            assert place.last == end - 1
            key, end = place.previous, place.first
        assert end == 1

    run(body)


@pytest.mark.parametrize("calls", range(1, 8))
def test_a_server_that_ends_at_any_step(calls: int) -> None:
    """Whoever comes next finds it half done, and goes on from there."""

    async def body(bench: Bench) -> None:
        await bench.publish(*range(1, 33))
        left = [calls]

        class Dying:
            def __init__(self, real: object) -> None:
                self._real = real

            def __getattr__(self, name: str) -> object:
                if left[0] == 0:
                    raise asyncio.CancelledError
                left[0] -= 1
                return getattr(self._real, name)

        parts = {"log": bench.log, "table": bench.table, "blobs": bench.blobs}
        dying = bench.archive(**{name: Dying(real) for name, real in parts.items()})
        with pytest.raises(asyncio.CancelledError):
            await dying.tidy()
        for number in (1, 8, 9, 32):
            assert await bench.archive().get(number, PEERS) == signed(number)
        await bench.archive().tidy()
        first, _ = await bench.log.bounds()
        assert first == 17
        for number in range(1, 33):
            assert await bench.archive().get(number, PEERS) == signed(number)

    run(body)


def test_a_reader_whom_the_trim_overtakes() -> None:
    async def body(bench: Bench) -> None:
        await bench.publish(*range(1, 33))
        done = [False]

        class Slow:
            """A log that is tidied while somebody reads it."""

            bounds = bench.log.bounds

            async def read(self, after: int = 0) -> AsyncIterator[Entry]:
                if not done[0]:
                    done[0] = True
                    await bench.archive().tidy()
                async for entry in bench.log.read(after=after):
                    yield entry

        assert await bench.archive(log=Slow()).get(3, PEERS) == signed(3)
        assert done[0]

    run(body)


def test_what_others_append_is_not_archived() -> None:
    async def body(bench: Bench) -> None:
        for number in range(1, 17):
            await bench.append(b"junk %d" % number)
        await bench.publish(*range(1, 17))
        await bench.archive().tidy()
        assert await bench.log.bounds() == (17, 32)
        assert await bench.table.get(NEWEST) is None
        await bench.publish(*range(17, 40))
        await bench.archive().tidy()
        for number in range(1, 40):
            assert await bench.archive().get(number, PEERS) == signed(number)

    run(body)


def forged(number: int) -> bytes:
    """A record that no server signed."""
    one = signed(number)
    altered = replace(one.record, aggregate=bytes(32))
    return SignedRecord(altered, one.signatures).encode()


def test_a_forged_record_hides_no_good_one() -> None:
    async def body(bench: Bench) -> None:
        for number in range(1, 33):
            await bench.append(forged(number))
            await bench.publish(number)
        await bench.archive().tidy()
        for number in range(1, 33):
            assert await bench.archive().get(number, PEERS) == signed(number)
        await bench.append(forged(50))
        with pytest.raises(Refused) as caught:
            await bench.archive().get(50, PEERS)
        assert caught.value.rule == "signature"

    run(body)


async def hostile(bench: Bench) -> Place:
    """An archive with two segments; the place of the older one."""
    await bench.publish(*range(1, 33))
    await bench.archive().tidy()
    return await bench.place("1-8")


def test_an_altered_blob() -> None:
    async def body(bench: Bench) -> None:
        place = await hostile(bench)
        engine = bench.network._handle.engine
        files = [one for one in (engine.folder / "blobs").rglob("*") if one.is_file()]
        (file,) = [one for one in files if blake3(one.read_bytes()).digest() == place.digest]
        file.write_bytes(file.read_bytes()[:-1] + b"x")
        with pytest.raises(BlobAltered):
            await bench.archive().get(3)
        file.unlink()
        with pytest.raises(BlobMissing):
            await bench.archive().get(3)
        assert await bench.archive().get(9, PEERS) == signed(9)

    run(body)


@pytest.mark.parametrize(
    ("change", "rule"),
    [
        ({"count": 9}, "archive.segment"),
        ({"digest": "other"}, "archive.segment"),
        ({"digest": "junk"}, "archive-segment.version"),
        ({"previous": "8-1"}, "archive.index"),
        ({"previous": "1-8; drop"}, "archive.index"),
        ({"previous": "01-8"}, "archive.index"),
        ({"previous": "1-8"}, "archive.index"),
        ({"previous": "2-9"}, "archive.index"),
        ({"first": 9, "last": 8}, "archive.index"),
        ({"last": 9}, "archive.index"),
    ],
)
def test_a_wrong_index(change: dict[str, object], rule: str) -> None:
    async def body(bench: Bench) -> None:
        place = await hostile(bench)
        chosen = dict(change)
        if "digest" in chosen:
            other = await bench.place("9-16")
            junk = await bench.blobs.put(b"junk of some length")
            chosen["digest"] = other.digest if chosen["digest"] == "other" else junk
        await bench.put("1-8", replace(place, **chosen))  # type: ignore[arg-type]
        # Only who looks further back than the segment meets a lie about what is before it.
        number = 99 if "previous" in chosen else 3
        with pytest.raises((Refused, WireFormatError)) as caught:
            await bench.archive().get(number)
        assert caught.value.rule == rule
        # What does not need the lie is read all the same.
        assert await bench.archive().get(12, PEERS) == signed(12)

    run(body)


@pytest.mark.parametrize("value", [b"", b"\xff\xfe", b"1-9", b"newest", b"9-16 "])
def test_a_wrong_newest(value: bytes) -> None:
    async def body(bench: Bench) -> None:
        await hostile(bench)
        await bench.table.put(NEWEST, value)
        if value:
            with refused(Refused, "archive.index"):
                await bench.archive().get(3)
        else:
            with refused(Refused, "archive.round"):
                await bench.archive().get(3)

    run(body)


def test_a_server_loses_nothing_to_a_wrong_index() -> None:
    """Who has written there first does not make a server trim what it has not archived."""

    async def body(bench: Bench) -> None:
        await bench.publish(*range(1, 33))
        lie = Place(bytes(32), 8, 1, 8, "")
        await bench.put("1-8", lie)
        with refused(Refused, "archive.index"):
            await bench.archive().tidy()
        assert await bench.log.bounds() == (1, 32)
        await bench.table.put(NEWEST, b"1-32")
        await bench.put("1-32", Place(bytes(32), 32, 1, 32, ""))
        with refused(Refused, "archive.index"):
            await bench.archive().tidy()
        assert await bench.log.bounds() == (1, 32)
        await bench.table.delete(NEWEST)
        await bench.table.delete("1-8")
        await bench.archive().tidy()
        assert await bench.log.bounds() == (17, 32)

    run(body)


def test_where_a_deployment_keeps_it() -> None:
    async def body(bench: Bench) -> None:
        deployment = bytes(32)
        archive = await Archive.open(bench.network, deployment)
        log = await bench.network.log(Places.of(deployment).broadcasts)
        raw = signed(1).encode()
        await log.append(raw, key=blake3(raw).hexdigest())
        assert await archive.get(1) == signed(1)

    run(body)


def test_a_table_that_is_never_as_it_was() -> None:
    """Whoever loses a race for the index leaves the log to the others."""

    async def body(bench: Bench) -> None:
        await bench.publish(*range(1, 33))

        class Lost:
            get = bench.table.get

            async def put(self, key: str, value: bytes, *, expect: int) -> int:
                if key == NEWEST:
                    raise Conflict("there is another", actual=7, rule="expect")
                return await bench.table.put(key, value, expect=expect)

        await bench.archive(table=Lost()).tidy()
        assert await bench.log.bounds() == (1, 32)

        class Trimmed:
            bounds = bench.log.bounds

            def read(self, **_: int) -> AsyncIterator[Entry]:
                raise Lagged("trimmed", missed=None, rule="log.trimmed")

        await bench.archive(log=Trimmed()).tidy()
        assert await bench.log.bounds() == (1, 32)

    run(body)
