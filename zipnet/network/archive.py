r"""Old broadcasts: segments of the log in blobs, so that the log itself stays short.

    segment = "zipnet archive 1\n" (17) ‖ u32 count ‖ (u32 length ‖ signed record) for each
    table   "<first round>-<last round>" -> digest of the segment (32) ‖ u32 count ‖
                u64 first and u64 last number in the log ‖ the key of the segment before, with a
                length byte
            "newest" -> the key of the newest segment

A segment follows from the log alone, so all servers make the same one, and whoever comes second
finds it done. Nothing leaves the log before it is in a segment, and that in the index.
"""

from __future__ import annotations

import re
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass

from blake3 import blake3

from zipnet.errors import Conflict, Lagged, Refused, WireFormatError, ZipnetError
from zipnet.network.base import Blobs, Entry, Log, Network, Table
from zipnet.network.places import Places
from zipnet.protocol.codec import Reader, sized, text
from zipnet.protocol.record import MAX_SIGNED_RECORD, SignedRecord

VERSION = b"zipnet archive 1\n"
NEWEST = "newest"
KEEP = 1024
SEGMENT = 256
# A segment ends early where it would be larger: it is made, and read, in memory.
SEGMENT_BYTES = 64 << 20
MAX_SEGMENT = len(VERSION) + 4 + SEGMENT_BYTES + SEGMENT * 4 + MAX_SIGNED_RECORD

_KEY = re.compile(r"([1-9][0-9]{0,18})-([1-9][0-9]{0,18})")


@dataclass(frozen=True, slots=True)
class Place:
    """Where a segment lies: its blob, how many records it has, and which entries it replaces."""

    digest: bytes
    count: int
    first: int
    last: int
    previous: str

    def encode(self) -> bytes:
        """As at the top of this module."""
        numbers = self.first.to_bytes(8, "big") + self.last.to_bytes(8, "big")
        return self.digest + self.count.to_bytes(4, "big") + numbers + text(self.previous)

    @classmethod
    def decode(cls, raw: bytes) -> Place:
        """All of `raw`. Raises WireFormatError."""
        reader = Reader(raw, "archive-place", at_most=128)
        result = cls(reader.take(32), reader.u32(), reader.u64(), reader.u64(), reader.text(39))
        reader.done()
        return result


def encode_segment(records: list[bytes]) -> bytes:
    """A segment of these encoded records."""
    count = len(records).to_bytes(4, "big")
    return b"".join((VERSION, count, *(sized(one, 4) for one in records)))


def decode_segment(raw: bytes) -> tuple[SignedRecord, ...]:
    """The records of a segment, no signature checked. Raises WireFormatError."""
    reader = Reader(raw, "archive-segment", at_most=MAX_SEGMENT)
    reader.expect("version", VERSION)
    records = reader.many(4, SEGMENT, lambda r: SignedRecord.decode(r.sized(4, MAX_SIGNED_RECORD)))
    reader.done()
    return records


class Archive:
    """The broadcasts of a deployment, old and new.

    Over `keep` entries in the log, `tidy` moves the oldest `segment` of them (at most SEGMENT).
    """

    __slots__ = ("_blobs", "_keep", "_log", "_segment", "_table")

    def __init__(
        self, log: Log, table: Table, blobs: Blobs, *, keep: int = KEEP, segment: int = SEGMENT
    ) -> None:
        self._log = log
        self._table = table
        self._blobs = blobs
        self._keep = keep
        self._segment = min(segment, SEGMENT)

    @classmethod
    async def open(cls, network: Network, deployment_id: bytes) -> Archive:
        """That of a deployment on a network. Raises EngineError."""
        places = Places.of(deployment_id)
        return cls(
            await network.log(places.broadcasts),
            await network.table(places.broadcasts),
            await network.blobs(places.blobs),
        )

    async def get(
        self, round_number: int, peers: Mapping[bytes, bytes] | None = None
    ) -> SignedRecord:
        """The final record of a round; with `peers` (as `SignedRecord.verify`) a signed one.

        Without `peers` nothing says that servers made it. Raises Refused, with the rule
        `archive.round` if there is none, `archive.index` or `archive.segment` for an archive that
        contradicts itself; WireFormatError; BlobMissing, BlobAltered and other EngineErrors.
        """
        while True:
            rounds: list[int] = []
            last: Refused | None = None
            try:
                async for signed in self._candidates(round_number, rounds):
                    try:
                        if peers is not None:
                            signed.verify(peers)
                    except Refused as error:
                        last = error  # anybody on the bus may append: the good one may follow
                        continue
                    return signed
            except Lagged:
                continue  # trimmed meanwhile, so it is archived now
            raise last or _unknown(round_number, rounds)

    async def newest(self) -> int:
        """The round of the newest record that is archived or among the last in the log; 0: none."""
        found = 0
        async for key, _ in self._places():
            found = _rounds(key)[1]
            break
        first, last = await self._log.bounds()
        async for signed in self._logged(max(first, last - 7), last):
            found = max(found, signed.record.header.round)
        return found

    async def tidy(self) -> None:
        """Move what is over `keep` into segments. All servers may do so at once.

        Raises Refused (`archive.index`) if somebody has written another index, EngineError; then
        the log is as it was, and the next call goes on.
        """
        try:
            while True:
                first, last = await self._log.bounds()
                if last - first + 1 <= self._keep or not await self._move(first, last):
                    return
        except Lagged:
            return  # another server was faster

    async def _move(self, first: int, last: int) -> bool:
        """Archive the segment that begins at `first`; whether to go on."""
        entries = await self._oldest(first, min(last, first + self._segment - 1))
        end = entries[-1].seq
        records = [(entry.data, _record(entry)) for entry in entries]
        good = [(raw, one) for raw, one in records if one is not None]
        if good:
            raw = encode_segment([data for data, _ in good])
            rounds = [one.record.header.round for _, one in good]
            await self._blobs.put(raw)
            digest = blake3(raw).digest()
            key = f"{min(rounds)}-{max(rounds)}"
            if not await self._index(key, digest, len(good), first, end):
                return False
        await self._log.trim(end)
        return True

    async def _oldest(self, first: int, last: int) -> list[Entry]:
        entries: list[Entry] = []
        size = 0
        async for entry in self._log.read(after=first - 1):
            size += len(entry.data)
            if entries and size > SEGMENT_BYTES:
                break
            entries.append(entry)
            if entry.seq >= last:
                break
        return entries

    async def _index(self, key: str, digest: bytes, count: int, first: int, last: int) -> bool:
        """Put a segment into the index; whether it stands there as the newest now."""
        item = await self._table.get(NEWEST)
        before, rev = "", 0
        if item is not None and item.value is not None:
            before, rev = _ascii(item.value), item.rev
        previous = before
        if before == key:
            previous = (await self._place(key)).previous
        elif before and (await self._place(before)).last >= first:
            raise _bad_index(f"a newest segment that ends before entry {first}", before)
        place = Place(digest, count, first, last, previous)
        try:
            await self._table.put(key, place.encode(), expect=0)
        except Conflict:
            if (there := await self._place(key)) != place:
                raise _bad_index(f"{place} at {key}", str(there)) from None
        if before == key:
            return True
        try:
            await self._table.put(NEWEST, key.encode(), expect=rev)
        except Conflict:
            return False  # another server was faster: look again at the next call
        return True

    async def _candidates(self, number: int, rounds: list[int]) -> AsyncIterator[SignedRecord]:
        """Records of this round. `rounds` gets what marks the range that exists."""
        first, last = await self._log.bounds()
        async for key, place in self._places():
            low, high = _rounds(key)
            rounds += [low, high]
            if low <= number <= high:
                for signed in await self._read(key, place):
                    if signed.record.header.round == number:
                        yield signed
        async for signed in self._logged(first, last):
            rounds.append(signed.record.header.round)
            if rounds[-1] == number:
                yield signed

    async def _logged(self, first: int, last: int) -> AsyncIterator[SignedRecord]:
        if first > last:
            return
        async for entry in self._log.read(after=first - 1):
            signed = _record(entry)
            if signed is not None:
                yield signed
            if entry.seq >= last:
                return

    async def _places(self) -> AsyncIterator[tuple[str, Place]]:
        """The segments, newest first. Raises Refused."""
        item = await self._table.get(NEWEST)
        if item is None or item.value is None:
            return
        key, newer = _ascii(item.value), 1 << 63
        while key:
            place = await self._place(key)
            if not place.first <= place.last < newer:
                raise _bad_index(f"entries before {newer}", f"{place.first} to {place.last}")
            yield key, place
            key, newer = place.previous, place.first

    async def _place(self, key: str) -> Place:
        _rounds(key)
        item = await self._table.get(key)
        if item is None or item.value is None:
            raise _bad_index(f"a segment {key}", "none")
        try:
            return Place.decode(item.value)
        except WireFormatError as error:
            raise _bad_index(f"the place of segment {key}", str(error)) from error

    async def _read(self, key: str, place: Place) -> tuple[SignedRecord, ...]:
        """A segment's records. Raises Refused if it is not the one of its place."""
        records = decode_segment(await self._blobs.get(place.digest))
        rounds = [signed.record.header.round for signed in records]
        found = f"{min(rounds, default=0)}-{max(rounds, default=0)}"
        if (found, len(records)) != (key, place.count):
            raise Refused(
                "the segment of the archive is not the one of its index",
                expected=f"{place.count} records, {key}",
                got=f"{len(records)} records, {found}",
                rule="archive.segment",
                hint="somebody wrote into the index; the records that servers keep are not harmed",
            )
        return records


def _record(entry: Entry) -> SignedRecord | None:
    """The record in an entry; None for what somebody else has appended."""
    try:
        return SignedRecord.decode(entry.data)
    except ZipnetError:
        return None


def _rounds(key: str) -> tuple[int, int]:
    match = _KEY.fullmatch(key)
    low, high = (int(match[1]), int(match[2])) if match else (1, 0)
    if low > high:
        raise _bad_index("a key <first round>-<last round>", ascii(key[:80]))
    return low, high


def _ascii(raw: bytes) -> str:
    return raw.decode("ascii", "replace")


def _bad_index(expected: str, got: str) -> Refused:
    return Refused(
        "the index of the archive is wrong",
        expected=expected,
        got=got,
        rule="archive.index",
        hint="somebody wrote into the table; find who, and remove what he wrote",
    )


def _unknown(number: int, rounds: list[int]) -> Refused:
    there = f"rounds {min(rounds)} to {max(rounds)}" if rounds else "no rounds yet"
    return Refused(
        "there is no record of this round",
        expected=there,
        got=str(number),
        rule="archive.round",
        hint="a round without a record among those was given up; its messages are in none",
    )
