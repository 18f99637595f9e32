"""The same log gives the same state on every machine, byte for byte."""

from __future__ import annotations

import random
from collections import Counter

import pytest

from tests.zipnet.committee.pool import pool
from zipnet.committee.machine import Machine

SEQUENCES = 1_000
BATCHES = 20


@pytest.mark.parametrize("batch", range(BATCHES))
def test_equal_logs_give_equal_states(batch: int) -> None:
    """In all 1,000 random logs; one machine starts again from its own snapshot on the way."""
    there = pool()
    for number in range(SEQUENCES // BATCHES):
        draw = random.Random(f"{batch} {number}")
        start = there.start(draw)
        machines = [Machine.restore(there.rules, start) for _ in range(3)]
        length = draw.randrange(20, 33)
        restart = draw.randrange(length)
        for place, raw in enumerate(there.entries(draw, machines[0], length)):
            seq = machines[0].state.seq + 1
            applied = [machine.apply(seq, raw) for machine in machines]
            assert applied[0] == applied[1] == applied[2]
            if place == restart:
                machines[2] = Machine.restore(there.rules, machines[2].snapshot())
        snapshots = {machine.snapshot() for machine in machines}
        assert len(snapshots) == 1
        assert Machine.restore(there.rules, machines[1].snapshot()).state == machines[0].state


def test_the_random_logs_are_worth_something() -> None:
    """Good commands of nearly all kinds, and refusals by many rules."""
    there = pool()
    applied: Counter[str] = Counter()
    rules: Counter[str] = Counter()
    for number in range(150):
        draw = random.Random(f"worth {number}")
        machine = Machine.restore(there.rules, there.start(draw))
        for raw in there.entries(draw, machine, 40):
            result = machine.apply(machine.state.seq + 1, raw)
            if result.rule:
                rules[result.rule] += 1
            else:
                applied[f"{result.verdict} {raw[2:3].hex()}"] += 1
    assert sum(applied.values()) > 600
    assert len(applied) > 15
    assert len(rules) > 25


@pytest.mark.parametrize("which", [0, 1])
@pytest.mark.parametrize("seed", range(8))
def test_a_snapshot_and_the_rest_of_the_log_are_the_whole_log(which: int, seed: int) -> None:
    there = pool()
    log = there.logs[which]
    cut = random.Random(seed).randrange(len(log))
    whole, part = there.genesis(), there.genesis()
    for seq, raw in enumerate(log[:cut], 1):
        assert whole.apply(seq, raw) == part.apply(seq, raw)
    part = Machine.restore(there.rules, part.snapshot())
    for seq, raw in enumerate(log[cut:], cut + 1):
        assert whole.apply(seq, raw) == part.apply(seq, raw)
        assert whole.state.head == part.state.head
    assert whole.snapshot() == part.snapshot()
    assert whole.state == part.state


def test_machines_with_other_logs_differ() -> None:
    """The chain's head alone tells them apart, if nothing else does."""
    there = pool()
    one, other = there.genesis(), there.genesis()
    one.apply(1, b"junk")
    other.apply(1, b"junk!")
    assert one.state.head != other.state.head
    assert one.snapshot() != other.snapshot()
