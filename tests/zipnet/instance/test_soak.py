"""Rounds without end; `benchmarks.instance --soak` does the same for longer."""

import asyncio

import pytest

from tests.zipnet.instance.soak import soak


@pytest.mark.slow
def test_three_hundred_clients_for_a_minute() -> None:
    window = {"round_period_ms": 3_000, "fold_deadline_ms": 2_500}
    found = asyncio.run(soak(60, 300, **window, num_slots=64, num_sched_slots=512))
    assert found.missed == 0
    assert found.rounds >= 10
    assert found.landed > 0
    assert found.growth < 0.1, found
