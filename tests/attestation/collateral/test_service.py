"""The service: who waits for whom, what replaces what, and what a restart finds."""

import asyncio
import logging
from dataclasses import replace
from datetime import datetime, timedelta
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from attestation.collateral import State, exposition
from attestation.collateral_cache import Bundle, Ca, DiskCache, Platform
from attestation.collateral_format import Collateral
from attestation.collateral_source import SourceBusy
from attestation.errors import (
    AttestationError,
    CollateralFormatError,
    CollateralRejected,
    CollateralUnavailable,
    FileUnreadable,
    PolicyError,
    QuoteFormatError,
)
from attestation.providers.mock import MockTee
from attestation.providers.mock_server import Answer, MockPccs
from attestation.verify import Verifier
from tests.attestation.collateral.support import (
    DAY,
    MONTH,
    OTHER,
    PLATFORM,
    QUOTE,
    START,
    TEE,
    VERIFIER,
    World,
    issued,
    pcs,
)
from tests.attestation.measure.support import refused

MINUTE = timedelta(minutes=1)
HOUR = timedelta(hours=1)
DOWN = CollateralUnavailable("down", rule="source.unreachable", hint="look")


@pytest.fixture
def world() -> World:
    return World()


@pytest.fixture
def cache(tmp_path: Path) -> DiskCache:
    return DiskCache.open(tmp_path / "cache")


class Fixed:
    """A source with one answer."""

    def __init__(self, answer: Collateral) -> None:
        self.answer = answer

    async def fetch(self, platform: Platform) -> Collateral:
        assert platform == PLATFORM
        return self.answer


def test_fifty_at_once_are_four_requests(world: World) -> None:
    with MockPccs(issued()) as server:
        asked: list[str] = []

        async def answer(target: str) -> Answer:
            asked.append(target)
            await asyncio.sleep(0)
            return server.answer(target)

        service = world.service(source=pcs(answer))

        async def all_at_once() -> list[Collateral]:
            return await asyncio.gather(*(service.get(QUOTE) for _ in range(50)))

        results = asyncio.run(all_at_once())
    assert len(asked) == 4
    assert all(result == issued() for result in results)
    evidence = VERIFIER.verify(QUOTE, results[49], world.now)
    assert evidence.claims.fmspc == PLATFORM.fmspc


def test_fifty_at_once_at_a_service_that_is_down(world: World) -> None:
    world.outage = lambda: DOWN
    service = world.service()

    async def all_at_once() -> list[Collateral | BaseException]:
        waiting = (service.get(QUOTE) for _ in range(50))
        return await asyncio.gather(*waiting, return_exceptions=True)

    results = asyncio.run(all_at_once())
    rules = [result.rule for result in results if isinstance(result, CollateralUnavailable)]
    assert rules == ["source.unreachable"] + ["collateral.not-fetched"] * 49
    assert len(world.fetches) == 1


def test_who_is_cancelled_does_not_cancel_the_others(world: World) -> None:
    service = world.service()

    async def one_of_two() -> Collateral:
        first, second = (asyncio.create_task(service.get(QUOTE)) for _ in range(2))
        await asyncio.sleep(0)
        first.cancel()
        return await second

    assert asyncio.run(one_of_two()) == issued()


def test_current_does_not_wait(world: World) -> None:
    service = world.service()
    with refused(CollateralUnavailable, "collateral.not-fetched"):
        service.current(QUOTE)
    assert world.fetches == []
    world.run(service, START + MINUTE)  # it was asked for, so the loop fetches it
    assert service.current(QUOTE) == issued()
    assert len(world.fetches) == 1
    world.now = START + MONTH
    with refused(CollateralUnavailable, "collateral.not-fetched"):
        service.current(QUOTE)


def test_models_that_are_not_allowed(world: World) -> None:
    service = world.service(fmspcs=frozenset({bytes(6)}))
    with refused(CollateralRejected, "fmspc"):
        service.current(QUOTE)
    with refused(CollateralRejected, "fmspc"):
        asyncio.run(service.get(QUOTE))
    with refused(QuoteFormatError, "size"):
        asyncio.run(service.get(b""))
    assert (world.fetches, service.states()) == ([], ())
    with refused(PolicyError, "fmspcs"):
        world.service(fmspcs=frozenset())
    with refused(PolicyError, "fmspc-size"):
        world.service(fmspcs=frozenset({b"12345"}))


@pytest.mark.parametrize(
    ("answer", "rule"),
    [
        (OTHER.collateral(), "root-mismatch"),
        (replace(issued(), tcb_info_signature=bytes(64)), "tcb-info-signature"),
        (issued(revoked=["tcb-signer"]), "tcb-info-signer-revoked"),
        (issued(tcb_info={"fmspc": "00806F050000"}), "collateral.fmspc"),
        (issued(START - MONTH), "collateral-expired"),
        (issued(START + DAY), "collateral-not-yet-valid"),
    ],
)
def test_a_source_is_not_trusted(
    world: World, cache: DiskCache, answer: Collateral, rule: str
) -> None:
    service = world.service(cache, source=Fixed(answer))
    with refused(CollateralRejected, rule):
        asyncio.run(service.get(QUOTE))
    assert list(cache.folder.iterdir()) == []
    assert [state.failure for state in service.states()] == [rule]


def test_the_production_verifier_takes_none_of_it(world: World) -> None:
    service = world.service(verifier=Verifier())
    with refused(CollateralRejected, "root-mismatch"):
        asyncio.run(service.get(QUOTE))


@pytest.mark.parametrize(
    ("worse", "rule"),
    [
        (issued(START + DAY, evaluation_number=16), "collateral.rollback"),
        (
            issued(START + DAY, dates={"pck_crl": (START - DAY, START + 2 * MONTH)}),
            "collateral.older",
        ),
        (replace(issued(START + DAY), qe_identity_signature=bytes(64)), "qe-identity-signature"),
        (CollateralFormatError("no", rule="source.json"), "source.json"),
    ],
)
def test_good_data_is_not_replaced(
    world: World,
    cache: DiskCache,
    caplog: pytest.LogCaptureFixture,
    worse: Collateral | AttestationError,
    rule: str,
) -> None:
    service = world.service(cache)
    asyncio.run(service.get(QUOTE))
    on_disk = cache.load(PLATFORM)

    class Worse:
        async def fetch(self, platform: Platform) -> Collateral:
            assert platform == PLATFORM
            if isinstance(worse, AttestationError):
                raise worse
            return worse

    again = world.service(cache, source=Worse())
    world.now = START + 2 * DAY
    world.run(again, world.now + HOUR)
    assert again.current(QUOTE) == issued()
    assert again.states()[0].failure == rule
    assert f"refresh failed by rule {rule}, 28.0 days left" in caplog.text
    assert cache.load(PLATFORM) == on_disk
    world.now = START + MONTH  # and when that has expired, nothing older takes its place
    with pytest.raises(AttestationError) as caught:
        asyncio.run(again.get(QUOTE))
    assert caught.value.rule == rule


def test_a_restart(world: World, cache: DiskCache) -> None:
    asyncio.run(world.service(cache).get(QUOTE))
    world.outage = lambda: DOWN
    world.now = START + 10 * DAY
    service = world.service(cache)
    assert service.current(QUOTE) == issued()
    world.run(service, world.now + 2 * HOUR)
    assert service.states()[0].failure == "source.unreachable"
    assert service.current(QUOTE) == issued()


def test_the_floor_survives_a_restart_and_expiry(world: World, cache: DiskCache) -> None:
    world.evaluation = lambda: 18
    asyncio.run(world.service(cache).get(QUOTE))
    world.now = START + 2 * MONTH
    world.evaluation = lambda: 17
    service = world.service(cache)
    assert service.states()[0].seconds_left == -(MONTH.total_seconds())
    with refused(CollateralUnavailable, "collateral.not-fetched"):
        service.current(QUOTE)
    with refused(CollateralRejected, "collateral.rollback"):
        asyncio.run(service.get(QUOTE))


@pytest.mark.parametrize(
    "content",
    [
        b"junk",
        Bundle.of(issued()).dumps()[:-20],
        Bundle.of(OTHER.collateral()).dumps(),
        Bundle.of(issued(evaluation_number=99, tcb_info_signature=bytes(64))).dumps(),
        Bundle.of(issued(dates={"pck_crl": (START - MONTH, START)})).dumps(),
        b" " * (3 << 20),
    ],
    ids=["junk", "cut", "foreign", "forged", "never valid", "too large"],
)
def test_damage_is_set_aside(
    world: World, cache: DiskCache, caplog: pytest.LogCaptureFixture, content: bytes
) -> None:
    path = cache.folder / "50806f000000-platform.json"
    path.write_bytes(content)
    service = world.service(cache)
    assert service.states() == ()
    assert not path.exists()
    assert path.with_name(f"{path.name}.damaged").read_bytes() == content
    assert "collateral for 50806f000000/platform is damaged" in caplog.text
    assert asyncio.run(service.get(QUOTE)) == issued()
    assert cache.load(PLATFORM) == Bundle.of(issued())


def test_a_disk_that_fails_is_not_fatal(
    world: World,
    cache: DiskCache,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def fail(*arguments: Any) -> Any:
        raise FileUnreadable("broken", rule="file.write")

    monkeypatch.setattr(DiskCache, "store", fail)
    service = world.service(cache)
    assert asyncio.run(service.get(QUOTE)) == issued()
    assert "is not on disk: broken" in caplog.text
    (cache.folder / "50806f000000-platform.json").mkdir()
    assert world.service(cache).states() == ()
    assert "can't be read" in caplog.text
    (cache.folder / "50806f000000-platform.json").rmdir()
    (cache.folder / "50806f000000-platform.json").write_bytes(b"junk")
    monkeypatch.setattr(DiskCache, "set_aside", fail)
    assert world.service(cache).states() == ()
    assert "can't be set aside" in caplog.text


def test_back_off(world: World) -> None:
    world.outage = lambda: DOWN
    service = world.service()
    with refused(CollateralUnavailable, "collateral.not-fetched"):
        service.current(QUOTE)
    world.run(service, START + 5 * HOUR)
    gaps = [b - a for a, b in pairwise(world.fetches)]
    assert gaps == [MINUTE * n for n in (1, 2, 4, 8, 16, 32, 60, 60, 60)]
    before = len(world.fetches)
    with refused(CollateralUnavailable, "collateral.not-fetched") as _:
        asyncio.run(service.get(QUOTE))  # strangers' quotes don't make it ask more often
    assert len(world.fetches) == before
    world.outage = lambda: None
    world.run(service, world.now + HOUR)
    assert service.current(QUOTE) == issued(START)
    assert service.states()[0].failure is None


@pytest.mark.parametrize(
    ("error", "wait"),
    [
        (SourceBusy("/tcb", 503, 0), MINUTE),
        (SourceBusy("/tcb", 429, 20), MINUTE),
        (SourceBusy("/tcb", 429, 7200), 2 * HOUR),
        (CollateralRejected("gone", rule="source.retired"), DAY),
        (CollateralRejected("unknown", rule="source.unknown-fmspc"), MINUTE),
    ],
)
def test_when_the_service_says(world: World, error: AttestationError, wait: timedelta) -> None:
    world.outage = lambda: error
    service = world.service()
    with pytest.raises(CollateralUnavailable):
        service.current(QUOTE)
    world.run(service, START + wait + MINUTE)
    assert world.fetches == [START, START + wait]


def test_collateral_that_is_about_to_expire_is_not_fetched_in_a_loop(
    world: World, caplog: pytest.LogCaptureFixture
) -> None:
    world.issued_at = lambda: START - 28 * DAY
    service = world.service()
    asyncio.run(service.get(QUOTE))
    assert "collateral for 50806f000000/platform expires in 2.0 days" in caplog.text
    world.run(service, START + DAY)
    assert len(world.fetches) == 24


def test_a_naive_clock(world: World) -> None:
    world.now = datetime(2026, 1, 1)  # noqa: DTZ001
    with refused(PolicyError, "naive-time"):
        world.service().states()


def test_other_platforms_of_one_model(world: World) -> None:
    """Each has its own PCK certificate, all one set of collateral."""
    service = world.service()
    for number in range(3):
        quote = MockTee(TEE.seed, number).quote(bytes(64))
        collateral = asyncio.run(service.get(quote))
        VERIFIER.verify(quote, collateral, world.now)
    assert len(world.fetches) == 1


def test_log_levels(world: World, caplog: pytest.LogCaptureFixture) -> None:
    log = logging.getLogger("a name of the caller's")
    caplog.set_level(logging.INFO, log.name)
    asyncio.run(world.service(log=log).get(QUOTE))
    assert [(r.name, r.levelname) for r in caplog.records] == [(log.name, "INFO")]
    assert caplog.messages == ["collateral for 50806f000000/platform: refreshed, 30.0 days left"]


def test_exposition() -> None:
    states = (
        State(PLATFORM, START, 12.6, START, 17, None),
        State(replace(PLATFORM, ca=Ca.PROCESSOR), None, 0.0, None, None, "source.timeout"),
    )
    held = 'instance="a\\"b\\\\c\\nd",fmspc="50806f000000",ca="platform"'
    assert [
        line
        for line in exposition(states, instance='a"b\\c\nd').splitlines()
        if not line.startswith("# HELP ")
    ] == [
        "# TYPE attestation_collateral_seconds_left gauge",
        f"attestation_collateral_seconds_left{{{held}}} 13",
        f"attestation_collateral_seconds_left{{{held.replace('platform', 'processor')}}} 0",
        "# TYPE attestation_collateral_evaluation_number gauge",
        f"attestation_collateral_evaluation_number{{{held}}} 17",
    ]
    assert exposition(()).endswith("gauge\n")
