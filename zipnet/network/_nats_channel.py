"""A channel over core subjects."""

from __future__ import annotations

import asyncio
import re
from collections import deque
from collections.abc import Callable
from functools import partial
from types import TracebackType
from typing import Self

from zipnet.errors import EngineError, Lagged, Unavailable
from zipnet.network._hub import OVERHEAD
from zipnet.network._nats_connection import Connection
from zipnet.network._nats_stream import CALL_SECONDS, NO_RESPONDERS
from zipnet.network._nats_wire import Raw
from zipnet.network.base import (
    LISTEN_BYTES,
    Message,
    Reply,
    check_number,
    check_pattern,
    check_size,
    check_topic,
)

# Whoever asks chooses where the answer goes, and it goes with the rights of who answers: nowhere
# but to an inbox. The second form is the engine's own, between accounts.
_INBOX = re.compile(r"(_INBOX|_R_)(\.[A-Za-z0-9_-]+)+")


class NatsChannel:
    """A `Channel`. `ours` gives the connection to send over; `theirs` is the one to listen on."""

    def __init__(self, prefix: str, ours: Callable[[], Connection], theirs: Connection) -> None:
        self._prefix = prefix
        self._ours = ours
        self._theirs = theirs

    async def send(self, topic: str, data: bytes) -> None:
        """As `Channel.send`."""
        connection = self._ours()
        check_topic(topic)
        check_size(data, connection.max_message)
        await connection.send(self._prefix + topic, bytes(data), CALL_SECONDS)

    async def ask(self, topic: str, data: bytes, timeout: float = 5.0) -> bytes:
        """As `Channel.ask`."""
        connection = self._ours()
        check_topic(topic)
        check_size(data, connection.max_message)
        raw = await connection.request(self._prefix + topic, bytes(data), timeout)
        if raw.headers.get("Status") == NO_RESPONDERS:
            raise Unavailable(
                "nobody listens",
                expected=f"an answer about {topic}",
                rule="ask.nobody",
                hint="try again later",
            )
        return raw.data

    def listen(self, pattern: str, *, max_bytes: int = LISTEN_BYTES) -> Listener:
        """As `Channel.listen`."""
        check_pattern(pattern)
        check_number(max_bytes, "listen.max-bytes", 1)
        return Listener(self._theirs, self._prefix, pattern, max_bytes)


class Listener:
    """Who listens, from when its context is entered until it is left, or the network is closed."""

    def __init__(self, connection: Connection, prefix: str, pattern: str, max_bytes: int) -> None:
        self._connection = connection
        self._prefix = prefix
        self._pattern = pattern
        self._room = max_bytes
        # A number stands for so many messages that were lost at this place, 0 for an unknown one.
        self._waiting: deque[Message | int] = deque()
        self._news = asyncio.Event()
        self._deaf = False
        self._left = False
        self._error: EngineError | None = None
        self._leave: Callable[[], None] | None = None

    async def __aenter__(self) -> Self:
        self._leave = await self._connection.subscribe(
            self._prefix + self._pattern, self, CALL_SECONDS
        )
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._left = True
        self._waiting.clear()
        if self._leave is not None:
            self._leave()
        self._news.set()

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Message:
        # That something was lost is told when nothing more is, or the next would be lost too.
        while not self._waiting or (self._deaf and len(self._waiting) == 1):
            if self._left:
                raise StopAsyncIteration
            if self._error is not None:
                raise self._error
            self._news.clear()
            await self._news.wait()
        first = self._waiting.popleft()
        if isinstance(first, Message):
            self._room += len(first.data) + OVERHEAD
            return first
        raise Lagged(
            "messages were lost",
            missed=first or None,
            expected="a listener that takes them in time, and a connection that holds",
            got=f"{first} for which there was no room" if first else "another connection",
            rule="listen.overflow" if first else "listen.reconnect",
            hint="learn anew what the messages were about; ask for more room",
        )

    def take(self, message: Raw) -> None:
        """As `Feed.take`."""
        cost = len(message.data) + OVERHEAD
        if cost <= self._room:
            self._room -= cost
            topic = message.subject.removeprefix(self._prefix)
            self._waiting.append(Message(topic, message.data, self._reply(message.reply)))
        else:
            last = self._waiting[-1] if self._waiting else None
            if isinstance(last, int):
                self._waiting[-1] = last + 1 if last else 0
            else:
                self._waiting.append(1)
        self._news.set()

    def lost(self) -> None:
        """As `Feed.lost`."""
        self._deaf = True
        self._waiting.append(0)

    def restored(self) -> None:
        """As `Feed.restored`."""
        self._deaf = False
        self._news.set()

    def failed(self, error: EngineError) -> None:
        """As `Feed.failed`."""
        self._error = error
        self._news.set()

    def _reply(self, inbox: str) -> Reply | None:
        return partial(reply, self._connection, inbox) if _INBOX.fullmatch(inbox) else None


async def reply(connection: Connection, inbox: str, data: bytes) -> None:
    """Answer, as `Message.reply`."""
    check_size(data, connection.max_message)
    async with connection.limit(CALL_SECONDS):
        await connection.publish(inbox, bytes(data))
