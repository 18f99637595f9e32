"""Channels within one event loop: who listens, and what waits for each."""

import asyncio
from collections import deque
from collections.abc import Callable
from types import TracebackType
from typing import Self

from zipnet.errors import Lagged, Unavailable
from zipnet.network.base import Message, matches

# What a waiting message costs beside its data, so that empty ones are bounded too.
OVERHEAD = 256


class Subscription:
    """A listener: from when its context is entered until it is left, or the handle is closed."""

    def __init__(
        self, hub: "Hub", channel: str, pattern: str, max_bytes: int, may: Callable[[], None]
    ) -> None:
        self._hub = hub
        self._may = may
        self._channel = channel
        self._pattern = pattern
        self._room = max_bytes
        # A number stands for so many messages that were lost at this place.
        self._waiting: deque[Message | int] = deque()
        self._news = asyncio.Event()
        self._closed = False
        self._left = False

    async def __aenter__(self) -> Self:
        self._may()
        self._hub.listeners.setdefault(self._channel, []).append(self)
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._left = True
        self._detach()

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Message:
        while not self._waiting:
            if self._left:
                raise StopAsyncIteration
            if self._closed:
                raise closed()
            self._news.clear()
            await self._news.wait()
        first = self._waiting.popleft()
        if isinstance(first, Message):
            self._room += len(first.data) + OVERHEAD
            return first
        raise Lagged(
            "messages were lost",
            missed=first,
            expected="a listener that takes them in time",
            got=f"{first} for which there was no room",
            rule="listen.overflow",
            hint="learn anew what the messages were about; ask for more room",
        )

    def close(self) -> None:
        """The handle was closed: nothing more comes."""
        self._closed = True
        self._detach()

    def wants(self, channel: str, topic: str) -> bool:
        """Whether a message is for this listener."""
        return channel == self._channel and matches(self._pattern, topic)

    def offer(self, message: Message) -> None:
        """Take a message, or count it as lost."""
        cost = len(message.data) + OVERHEAD
        if cost <= self._room:
            self._room -= cost
            self._waiting.append(message)
        elif self._waiting and isinstance(self._waiting[-1], int):
            self._waiting[-1] += 1
        else:
            self._waiting.append(1)
        self._news.set()

    def _detach(self) -> None:
        listeners = self._hub.listeners.get(self._channel, [])
        if self in listeners:
            listeners.remove(self)
        if not listeners:
            self._hub.listeners.pop(self._channel, None)
        if self._left:
            self._waiting.clear()
        self._news.set()


class Hub:
    """All listeners of an engine, by channel."""

    def __init__(self) -> None:
        self.listeners: dict[str, list[Subscription]] = {}

    def publish(self, channel: str, message: Message) -> int:
        """Hand to all who listen; how many do."""
        takers = [
            one for one in self.listeners.get(channel, ()) if one.wants(channel, message.topic)
        ]
        for one in takers:
            one.offer(message)
        return len(takers)


def closed() -> Unavailable:
    """What is raised once a handle was closed."""
    return Unavailable(
        "the connection to the engine was closed", rule="closed", hint="connect again"
    )
