"""Everything that goes over the bus, as its owner could write it down: who sealed what, and when.

A pad that is used twice shows here: one client, one round, two envelopes that differ.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterable
from types import TracebackType
from typing import Self

import nats
from nats.aio.client import Client
from nats.aio.msg import Msg

from zipnet.errors import WireFormatError
from zipnet.protocol.envelope import Envelope
from zipnet.protocol.shape import Shape


class Wiretap:
    """Listens to a bus that lets everybody in, from when its context is entered.

    `known` are clients that whoever listens knows by other means.
    """

    def __init__(self, urls: Iterable[str], shape: Shape) -> None:
        self._urls, self._shape = list(urls), shape
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._client: Client | None = None
        self._sealed: dict[tuple[bytes, int], set[bytes]] = {}
        self.known: frozenset[bytes] = frozenset()

    def __enter__(self) -> Self:
        self._thread.start()
        asyncio.run_coroutine_threadsafe(self._listen(), self._loop).result(30)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self._client is not None:
            asyncio.run_coroutine_threadsafe(self._client.close(), self._loop).result(30)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(30)
        self._loop.close()

    async def _listen(self) -> None:
        self._client = await nats.connect(self._urls)
        await self._client.subscribe(">", cb=self._hear)

    async def _hear(self, message: Msg) -> None:
        try:
            envelope = Envelope.decode(message.data, self._shape)
        except WireFormatError:
            return
        self._sealed.setdefault((envelope.client, envelope.round), set()).add(envelope.payload)

    def sealed(self) -> set[tuple[bytes, int]]:
        """Which clients have sealed in which rounds."""
        return set(self._sealed)

    def clients(self) -> frozenset[bytes]:
        """Who has sealed at all."""
        return frozenset(one for one, _ in self.sealed())

    def reused(self) -> int:
        """How often a client sealed one round twice. AssertionError if nobody has sealed."""
        assert self._sealed, "no envelope went over the bus"
        return sum(len(payloads) > 1 for payloads in self._sealed.values())
