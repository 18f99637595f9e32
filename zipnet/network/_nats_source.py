"""The messages of a stream in order: history, then what is new, whatever becomes of connections.

Both sources give each message once, in order, from a number on; whether something is missing
between two of them is for the reader to judge.
"""

from __future__ import annotations

import asyncio
import random
import secrets
from collections import deque
from collections.abc import Awaitable, Callable
from typing import Protocol

from zipnet.errors import EngineError, Unavailable
from zipnet.network._hub import OVERHEAD
from zipnet.network._nats_stream import (
    AGAIN,
    API,
    BATCH,
    BATCH_BYTES,
    CALL_SECONDS,
    NANOSECONDS,
    NO_STREAM,
    Refusal,
    Stored,
    Stream,
    administrate,
    delivered,
    encode,
    status,
    stored,
)
from zipnet.network._nats_wire import Raw, unavailable

HEARTBEAT = 1
# Heartbeats that may be missing before a consumer is given up.
SILENCE = 4.0
PULL_SECONDS = 30
FORGOTTEN_SECONDS = 60
# What may wait in a guest's memory; beyond, it is read again from the stream.
LIVE_BYTES = 16 << 20
# A guest looks for what it may have missed, if nothing comes.
LOOK_SECONDS = 15.0
# How long a replica may be behind what was announced.
BEHIND_SECONDS = 3.0


class Source(Protocol):
    """Messages with growing numbers."""

    async def next(self) -> Stored:
        """The next one. Raises Denied, Unavailable, and what its checks raise."""
        ...


class ConsumerSource:
    """By a consumer at the stream, for nodes that may have one.

    `begin` is awaited before each consumer is made, with the number after which it will begin,
    and returns that number or another. Messages are pulled, so that no more come than are wanted.
    """

    def __init__(self, stream: Stream, after: int, begin: Callable[[int], Awaitable[int]]) -> None:
        self._stream = stream
        self._after = after
        self._begin = begin
        self._inbox = stream.connection.inbox()
        self._leave: Callable[[], None] | None = None
        self._consumer = ""
        self._pulled = 0
        self._answers: deque[Raw] = deque()
        self._error: EngineError | None = None
        self._wake = asyncio.Event()

    async def next(self) -> Stored:
        """As `Source.next`."""
        while True:
            self._stream.connection.check()
            if self._error is not None:
                raise self._error
            try:
                raw = await self._answer()
            except Unavailable as error:
                self._consumer = ""
                if error.rule not in ("disconnected", "deadline"):
                    raise
                await asyncio.sleep(AGAIN)
                continue
            found = delivered(raw)
            if found is None:
                self._heed(status(raw), raw.headers.get("Description", ""))
                continue
            self._pulled -= 1
            if found.seq > self._after:
                self._after = found.seq
                return found

    def take(self, message: Raw) -> None:
        """As `Feed.take`."""
        self._answers.append(message)
        self._wake.set()

    def lost(self) -> None:
        """As `Feed.lost`."""
        # The consumer may be there still, but what it had sent is not.
        self._consumer = ""
        self._wake.set()

    def restored(self) -> None:
        """As `Feed.restored`."""

    def failed(self, error: EngineError) -> None:
        """As `Feed.failed`."""
        self._error = error
        self._wake.set()

    async def _answer(self) -> Raw:
        connection = self._stream.connection
        if self._leave is None:
            self._leave = await connection.subscribe(self._inbox, self, CALL_SECONDS)
        if self._answers:
            return self._answers.popleft()
        if not self._consumer:
            await self._create()
        if self._pulled <= 0:
            wanted = {
                "batch": BATCH,
                "max_bytes": BATCH_BYTES,
                "expires": PULL_SECONDS * NANOSECONDS,
                "idle_heartbeat": HEARTBEAT * NANOSECONDS,
            }
            subject = f"{API}.CONSUMER.MSG.NEXT.{self._stream.name}.{self._consumer}"
            async with connection.limit(CALL_SECONDS):
                await connection.publish(subject, encode(wanted), self._inbox)
            self._pulled = BATCH
        async with connection.limit(SILENCE):
            while not self._answers:
                if not self._consumer or self._error is not None:
                    raise unavailable("the connection was lost")
                self._wake.clear()
                await self._wake.wait()
        return self._answers.popleft()

    async def _create(self) -> None:
        self._after = await self._begin(self._after)
        name = secrets.token_hex(8)
        config = {
            "name": name,
            "deliver_policy": "by_start_sequence",
            "opt_start_seq": self._after + 1,
            "ack_policy": "none",
            "replay_policy": "instant",
            "mem_storage": True,
            "num_replicas": 1,
            "inactive_threshold": FORGOTTEN_SECONDS * NANOSECONDS,
        }
        stream = self._stream.name
        answer = await administrate(
            self._stream.connection,
            f"CONSUMER.CREATE.{stream}.{name}",
            {"stream_name": stream, "config": config, "action": "create"},
            CALL_SECONDS,
        )
        if isinstance(answer, Refusal):
            if answer.number == NO_STREAM:
                # Which the next `begin` finds out.
                raise unavailable("the stream is not there")
            self._stream.refuse(answer)
        self._answers.clear()
        self._consumer, self._pulled = name, 0

    def _heed(self, code: str, text: str) -> None:
        if code == "100":
            return
        self._pulled = 0
        # The pull has ended; but for these reasons the consumer is there no more, or elsewhere.
        if code not in ("404", "408") and not ("Batch" in text or "MaxBytes" in text):
            self._consumer = ""


class PublicSource:
    """By direct requests and announcements, for whoever may use nothing else."""

    def __init__(self, stream: Stream, announced: str, after: int) -> None:
        self._stream = stream
        self._announced = announced
        self._after = after
        self._page: deque[Stored] = deque()
        self._live: deque[Stored] = deque()
        self._room = LIVE_BYTES
        self._target = 0
        self._look = True
        self._since: float | None = None
        self._leave: Callable[[], None] | None = None
        self._error: EngineError | None = None
        self._wake = asyncio.Event()

    async def next(self) -> Stored:
        """As `Source.next`."""
        if self._leave is None:
            self._leave = await self._stream.connection.subscribe(
                self._announced, self, CALL_SECONDS
            )
        while True:
            self._stream.connection.check()
            if self._error is not None:
                raise self._error
            found = self._ready()
            if found is not None:
                self._after, self._since = found.seq, None
                return found
            if self._look or self._target > self._after:
                await self._read()
            else:
                await self._wait()

    def take(self, message: Raw) -> None:
        """As `Feed.take`."""
        found = stored(message)
        if found is None:
            return
        cost = len(found.data) + OVERHEAD
        if cost <= self._room:
            self._room -= cost
            self._live.append(found)
        else:
            self._target = max(self._target, found.seq)
        self._wake.set()

    def lost(self) -> None:
        """As `Feed.lost`."""

    def restored(self) -> None:
        """As `Feed.restored`."""
        self._look = True
        self._wake.set()

    def failed(self, error: EngineError) -> None:
        """As `Feed.failed`."""
        self._error = error
        self._wake.set()

    def _ready(self) -> Stored | None:
        while self._page:
            found = self._page.popleft()
            if found.seq > self._after:
                return found
        while self._live and not self._look:
            found = self._live[0]
            if found.seq > self._after + 1:
                self._target = max(self._target, found.seq)
                return None
            self._live.popleft()
            self._room += len(found.data) + OVERHEAD
            if found.seq > self._after:
                return found
        return None

    async def _read(self) -> None:
        self._look = False
        try:
            self._page.extend(await self._stream.page(self._after))
        except BaseException:
            self._look = True
            raise
        if self._page:
            self._look = True
            return
        # Announced, but not there: the replica that answered is behind, or it was replaced.
        now = asyncio.get_running_loop().time()
        self._since = now if self._since is None else self._since
        if self._target > self._after:
            if now - self._since > BEHIND_SECONDS:
                there = any(one.seq == self._target for one in self._live)
                self._after, self._since = self._target - there, None
            await asyncio.sleep(AGAIN)

    async def _wait(self) -> None:
        self._wake.clear()
        try:
            async with asyncio.timeout(LOOK_SECONDS * random.uniform(0.8, 1.2)):  # noqa: S311
                await self._wake.wait()
        except TimeoutError:
            self._look = True
