"""Sixty days of a service, with a clock that only the test moves and a source with bad days."""

import asyncio
import re
from datetime import datetime, timedelta
from itertools import pairwise
from pathlib import Path

import pytest

from attestation.collateral import CollateralService, exposition
from attestation.collateral_cache import DiskCache
from attestation.collateral_source import SourceBusy
from attestation.errors import CollateralRejected, CollateralUnavailable
from attestation.providers.mock_server import Answer, MockPccs
from tests.attestation.collateral.support import DAY, QUOTE, START, VERIFIER, World, issued, pcs
from tests.attestation.measure.support import refused

MINUTE = timedelta(minutes=1)
DOWN = CollateralUnavailable("can't be reached", rule="source.unreachable", hint="look")


def seconds_left(service: CollateralService) -> float:
    match = re.search(
        r'^attestation_collateral_seconds_left\{fmspc="50806f000000",ca="platform"\} (-?\d+)$',
        exposition(service.states()),
        re.MULTILINE,
    )
    assert match is not None
    return float(match[1])


def accepts(service: CollateralService, now: datetime) -> None:
    """A quote verifies with what the service has at hand."""
    VERIFIER.verify(QUOTE, service.current(QUOTE), now)


def test_sixty_days(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Up to day 20 all is well; down to day 35; then behind, until day 40; then well again."""
    caplog.set_level("INFO")
    world = World()
    world.outage = lambda: DOWN if 20 * DAY <= world.now - START < 35 * DAY else None
    world.evaluation = lambda: 16 if 35 * DAY <= world.now - START < 40 * DAY else 17
    service = world.service(DiskCache.open(tmp_path / "cache"))
    asyncio.run(service.get(QUOTE))
    for day in range(1, 61):
        world.run(service, START + day * DAY)
        accepts(service, world.now)
        assert seconds_left(service) > 0
        if day <= 20:
            assert seconds_left(service) >= 29 * DAY.total_seconds()
    assert not [record for record in caplog.records if record.levelname == "ERROR"]
    assert "by rule source.unreachable, 24.0 days left" in caplog.text
    rollbacks = [message for message in caplog.messages if "collateral.rollback" in message]
    assert rollbacks
    assert all("tcbEvaluationDataNumber 17 or higher, got 16" in text for text in rollbacks)
    assert service.states()[0].evaluation_number == 17
    assert service.states()[0].fetched_at is not None
    well = [when for when in world.fetches if not 20 * DAY <= when - START < 41 * DAY]
    assert all(b - a >= DAY for a, b in pairwise(well))


def test_expiry_is_announced(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """A source that is down for good from day 2: what was fetched on day 1 lasts to day 31."""
    world = World()
    world.outage = lambda: DOWN if world.now - START >= 2 * DAY else None
    service = world.service(DiskCache.open(tmp_path / "cache"))
    asyncio.run(service.get(QUOTE))
    world.run(service, START + 28 * DAY)
    assert seconds_left(service) == 3 * DAY.total_seconds()
    assert not [text for text in caplog.messages if "expires in" in text]
    assert "refresh failed by rule source.unreachable, 28.9 days left" in caplog.text
    caplog.clear()
    world.run(service, START + 31 * DAY)
    assert seconds_left(service) == 0
    warned = [text for text in caplog.messages if "expires in" in text]
    assert warned[0] == "collateral for 50806f000000/platform expires in 3.0 days"
    assert 71 <= len(warned) <= 73  # hourly: as often as it is tried
    with refused(CollateralUnavailable, "collateral.not-fetched"):
        service.current(QUOTE)
    caplog.clear()
    world.run(service, START + 31 * DAY + timedelta(hours=3))
    assert seconds_left(service) < 0
    errors = [record for record in caplog.records if record.levelname == "ERROR"]
    assert 2 <= len(errors) <= 4
    assert "collateral for 50806f000000/platform expired at 2026-02-01" in errors[0].getMessage()
    world.outage = lambda: None
    world.run(service, world.now + timedelta(hours=1))
    accepts(service, world.now)


def test_a_refresh_comes_three_days_before_expiry_at_the_latest() -> None:
    world = World()
    service = world.service()
    # Every attempt fails but those in the last three days.
    world.outage = lambda: DOWN if MINUTE <= world.now - START < 27 * DAY else None
    asyncio.run(service.get(QUOTE))
    world.run(service, START + 27 * DAY + timedelta(hours=2))
    assert seconds_left(service) > 29 * DAY.total_seconds()


def test_a_retired_evaluation_and_a_busy_service_pass() -> None:
    world = World()
    answers = iter(
        [
            None,
            CollateralRejected("gone", rule="source.retired"),
            SourceBusy("/tcb", 429, 5_000),
            DOWN,
        ]
    )
    world.outage = lambda: next(answers, None)
    service = world.service()
    asyncio.run(service.get(QUOTE))
    world.run(service, START + 5 * DAY)
    asked = [when - START for when in world.fetches]
    busy = timedelta(seconds=5_040)  # the next minute after 5 000 seconds
    last = 2 * DAY + busy
    assert asked[:5] == [0 * DAY, DAY, 2 * DAY, last, last + 4 * MINUTE]
    accepts(service, world.now)


def test_over_http() -> None:
    """The same loop over the real client, a day at a time."""
    world = World()
    with MockPccs(issued()) as server:

        def answer(target: str) -> Answer:
            return server.answer(target)

        service = world.service(source=pcs(answer))
        asyncio.run(service.get(QUOTE))
        for day in range(1, 6):
            server.collateral = issued(START + day * DAY)
            world.run(service, START + day * DAY + MINUTE)
            assert service.current(QUOTE) == server.collateral
        assert len(server.requests) == 24
