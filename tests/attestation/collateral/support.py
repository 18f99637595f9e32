"""A mock service under httpx, and small pieces that the tests of this folder share."""

import asyncio
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime, timedelta
from typing import Any

import httpx

from attestation.collateral import CollateralService
from attestation.collateral_cache import Ca, DiskCache, Platform
from attestation.collateral_format import Collateral
from attestation.collateral_source import Pcs
from attestation.providers.mock import MockTee, MockVerifier
from attestation.providers.mock_server import Answer, Item

TEE = MockTee(b"collateral")
OTHER = MockTee(b"somebody else")
VERIFIER = MockVerifier(TEE.root_der)
QUOTE = TEE.quote(bytes(64))
START = datetime(2026, 1, 1, tzinfo=UTC)
DAY = timedelta(days=1)
MONTH = 30 * DAY
PLATFORM = Platform(bytes.fromhex("50806f000000"), Ca.PLATFORM)
FMSPCS = frozenset({PLATFORM.fmspc})
BASE = "https://pccs.example"


def issued(at: datetime = START, **knobs: Any) -> Collateral:
    """What Intel would issue at a moment: valid for thirty days."""
    return TEE.collateral(issued=at, expires=at + MONTH, **knobs)


def transport(answer: Callable[[str], Answer | Awaitable[Answer]]) -> httpx.MockTransport:
    """A network that ends at this function of path and query."""

    async def handle(request: httpx.Request) -> httpx.Response:
        given = answer(request.url.raw_path.decode())
        given = given if isinstance(given, Answer) else await given
        stream = httpx.ByteStream(given.body)
        return httpx.Response(given.status, stream=stream, headers=dict(given.headers))

    return httpx.MockTransport(handle)


def pcs(answer: Callable[[str], Answer | Awaitable[Answer]], **fields: Any) -> Pcs:
    return Pcs(**{"base": BASE, "transport": transport(answer), **fields})


def item_of(target: str) -> Item:
    return Item(target.partition("?")[0])


class World:
    """A clock that only `sleep` moves, and a service whose collateral is made anew each day.

    `outage` replaces the answer of a fetch; `evaluation` and `delay` can be changed meanwhile.
    """

    def __init__(self, now: datetime = START) -> None:
        self.now = now
        self.end = now
        self.outage: Callable[[], Exception | None] = lambda: None
        self.evaluation: Callable[[], int] = lambda: 17
        self.issued_at: Callable[[], datetime] = self.midnight
        self.fetches: list[datetime] = []

    def midnight(self) -> datetime:
        return self.now.replace(hour=0, minute=0, second=0, microsecond=0)

    async def fetch(self, platform: Platform) -> Collateral:
        assert platform == PLATFORM
        self.fetches.append(self.now)
        await asyncio.sleep(0)
        if (failure := self.outage()) is not None:
            raise failure
        return issued(self.issued_at(), evaluation_number=self.evaluation())

    async def sleep(self, seconds: float) -> None:
        self.now += timedelta(seconds=seconds)
        if self.now >= self.end:
            raise asyncio.CancelledError

    def service(self, cache: DiskCache | None = None, **fields: Any) -> CollateralService:
        made = {"source": self, "verifier": VERIFIER, "cache": cache, "fmspcs": FMSPCS, **fields}
        return CollateralService(**made, clock=lambda: self.now, sleep=self.sleep)

    def run(self, service: CollateralService, until: datetime) -> None:
        """The refresh loop, up to a moment."""
        self.end = until

        async def loop() -> None:
            try:
                await service.run()
            except asyncio.CancelledError:
                return

        asyncio.run(loop())
