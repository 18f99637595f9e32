"""An archive in a stream: a blob is cut into chunks, each the last message of a subject of its own.

The first chunk says how many there are and how long the blob is, and is stored last: once it is
there, all are. Others than members can read it, which a store of objects would not let them.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from functools import partial
from typing import TypeVar

from blake3 import blake3

from zipnet.errors import BlobAltered, BlobMissing, EngineError, LogBroken, TooLarge
from zipnet.network._nats_stream import AGAIN, CALL_SECONDS, Refusal, Stored, Stream
from zipnet.network.base import check_digest

T = TypeVar("T")

CHUNK_BYTES = 128 << 10
MAX_BYTES = 256 << 20
SIZE = "Zipnet-Size"
# Chunks on their way at a time.
WINDOW = 8
# The slowest store that is waited for, in bytes a second.
SLOWEST = 1 << 20
# How long a replica may be behind the one that has the first chunk.
BEHIND_SECONDS = 2.0


class NatsBlobs:
    """A `Blobs`; the subject of a chunk is `prefix`, the digest and the chunk's number."""

    def __init__(self, stream: Stream, prefix: str, guest: Callable[[], None]) -> None:
        self._stream = stream
        self._prefix = prefix
        self._check_member = guest

    async def put(self, data: bytes) -> bytes:
        """As `Blobs.put`. Raises TooLarge for more than MAX_BYTES."""
        self._check_member()
        data = bytes(data)
        if len(data) > MAX_BYTES:
            raise TooLarge(
                "the blob is too large",
                expected=f"at most {MAX_BYTES} bytes",
                got=str(len(data)),
                rule="blob.size",
                hint="store it in parts",
            )
        digest = blake3(data).digest()
        if await self._there(digest, data):
            return digest
        headers = {SIZE: str(len(data))}
        async with self._stream.connection.limit(2 * CALL_SECONDS + len(data) / SLOWEST):
            await _windowed(
                [
                    partial(self._store, digest, at, _chunk(data, at), {})
                    for at in range(1, _chunks(len(data)))
                ]
            )
            await self._store(digest, 0, _chunk(data, 0), headers)
        return digest

    async def get(self, digest: bytes) -> bytes:
        """As `Blobs.get`."""
        digest = check_digest(digest)
        first = await self._first(digest)
        if first is None:
            raise _missing(digest)
        size = first.headers.get(SIZE, "")
        if not (size.isascii() and size.isdigit() and len(size) <= 10 and int(size) <= MAX_BYTES):
            raise _altered(digest, f"a size of {size[:20]!a}")
        async with self._stream.connection.limit(2 * CALL_SECONDS + int(size) / SLOWEST):
            rest = await _windowed(
                [partial(self._fetch, digest, at) for at in range(1, _chunks(int(size)))]
            )
        data = b"".join([first.data, *rest])
        if len(data) != int(size) or blake3(data).digest() != digest:
            raise _altered(digest, f"{len(data)} bytes of another digest")
        return data

    async def _there(self, digest: bytes, data: bytes) -> bool:
        try:
            return await self.get(digest) == data
        except (BlobMissing, BlobAltered):
            return False

    async def _first(self, digest: bytes) -> Stored | None:
        subject = self._subject(digest, 0)
        found = await self._stream.direct(subject)
        # Another replica may have it already.
        if found is None and self._stream.managed:
            found = await self._leader(subject)
        elif found is None:
            await asyncio.sleep(4 * AGAIN)
            found = await self._stream.direct(subject)
        return found

    async def _fetch(self, digest: bytes, at: int) -> bytes:
        subject = self._subject(digest, at)
        loop = asyncio.get_running_loop()
        end = loop.time() + BEHIND_SECONDS
        while True:
            found = await self._stream.direct(subject)
            if found is None and self._stream.managed:
                found = await self._leader(subject)
            if found is not None:
                if len(found.data) > CHUNK_BYTES:
                    raise _altered(digest, f"a chunk of {len(found.data)} bytes")
                return found.data
            if loop.time() > end:
                raise _missing(digest)
            await asyncio.sleep(AGAIN)

    async def _leader(self, subject: str) -> Stored | None:
        try:
            return await self._stream.get({"last_by_subj": subject})
        except LogBroken:
            return None

    async def _store(self, digest: bytes, at: int, chunk: bytes, headers: dict[str, str]) -> None:
        subject = self._subject(digest, at)
        while True:
            answer = await self._stream.publish(subject, chunk, headers)
            if isinstance(answer, int):
                return
            if isinstance(answer, Refusal) and not answer.transient:
                raise EngineError(
                    "the engine does not take the blob",
                    got=ascii(f"{answer.number}: {answer.text[:200]}"),
                    rule="blob.refused",
                    hint="see the log of the node",
                )
            await asyncio.sleep(AGAIN)

    def _subject(self, digest: bytes, at: int) -> str:
        return f"{self._prefix}{digest.hex()}.{at}"


async def _windowed(calls: Sequence[Callable[[], Awaitable[T]]]) -> list[T]:
    """All results in order, a few at a time."""
    found: list[T] = []
    for begin in range(0, len(calls), WINDOW):
        found += await asyncio.gather(*(call() for call in calls[begin : begin + WINDOW]))
    return found


def _chunks(size: int) -> int:
    return max(1, -(-size // CHUNK_BYTES))


def _chunk(data: bytes, at: int) -> bytes:
    return data[at * CHUNK_BYTES : (at + 1) * CHUNK_BYTES]


def _missing(digest: bytes) -> BlobMissing:
    return BlobMissing(
        "nobody has this blob",
        expected=digest.hex(),
        rule="blob.missing",
        hint="ask another node for it, or wait until it was stored",
    )


def _altered(digest: bytes, got: str) -> BlobAltered:
    return BlobAltered(
        "the blob was altered",
        expected=digest.hex(),
        got=got,
        rule="blob.altered",
        hint="whoever has the blob can store it again",
    )
