"""An observer of 200 rounds, also one that drops clients, can't tell talkers from cover.

Three deployments, 200 rounds each, for every question. The suite as a whole raises a false alarm
with a probability of 0.1 % per seed; the seeds are fixed. The one thing that it is not shown is
whether a slot of a broadcast holds a message or a dummy: who drops a client can count messages, and
the documentation of `protocol.speaker` says so.
"""

from collections import Counter

import pytest

from tests.zipnet.observer import wire
from tests.zipnet.observer.distinguish import found, judge
from tests.zipnet.observer.wire import CLIENTS, ROUNDS, Leak, Run, plant, watch
from zipnet.protocol.slots import Kind, read_slots

SEEDS = (1, 2, 3)


def kinds(run: Run) -> Counter[Kind]:
    return Counter(
        slot.kind
        for seen in run.rounds
        for slot in read_slots(seen.record.payload, seen.record.header)
    )


@pytest.mark.parametrize("drop", [False, True], ids=["listening", "dropping"])
def test_talkers_and_cover_are_alike(drop: bool) -> None:
    runs = [watch(seed, drop=drop) for seed in SEEDS]
    assert all(len(run.rounds) == ROUNDS for run in runs)
    # There was something to find: both kinds of slots were seen, and clients were dropped.
    for run in runs:
        count = kinds(run)
        assert min(count[Kind.MESSAGE], count[Kind.DUMMY]) > ROUNDS / 2
        assert {seen.dropped is not None for seen in run.rounds} == {drop}
    verdicts = judge(runs)
    assert {one.of for one in verdicts} == {len(SEEDS) * CLIENTS * 12}
    assert not found(verdicts), verdicts


@pytest.mark.parametrize(
    ("leak", "family"),
    [
        (wire.marks_a_byte, "rate tag, by bit"),
        (wire.cover_skips, "participation"),
        (wire.talkers_reserve, "what is missing"),
        (wire.cover_leaves_empty, "what is missing"),
    ],
)
def test_planted_leaks_are_found(leak: Leak, family: str, monkeypatch: pytest.MonkeyPatch) -> None:
    plant(monkeypatch, leak)
    verdicts = judge([watch(seed) for seed in SEEDS])
    assert family in found(verdicts), verdicts


@pytest.mark.parametrize("drop", [False, True], ids=["listening", "dropping"])
def test_a_town_of_talkers_looks_like_a_silent_one(drop: bool) -> None:
    talk = watch(7, drop=drop, rounds=40, talk=lambda _: True)
    cover = watch(7, drop=drop, rounds=40, talk=lambda _: False)
    for mine, quiet in zip(talk.rounds, cover.rounds, strict=True):
        assert list(mine.envelopes) == list(quiet.envelopes)
        assert {len(envelope) for envelope in mine.envelopes.values()} == {
            len(envelope) for envelope in quiet.envelopes.values()
        }
        # Among it the number, the order and the sizes of all draws.
        assert mine.work == quiet.work
        assert mine.record.participants == quiet.record.participants
        at = mine.record.header.shape.message_bytes
        assert mine.record.payload[at:] == quiet.record.payload[at:]
        assert (mine.taken, mine.ranks, mine.empty) == (quiet.taken, quiet.ranks, quiet.empty)
    assert kinds(talk)[Kind.MESSAGE] > 40
    assert kinds(cover)[Kind.DUMMY] > 40
    assert not kinds(cover)[Kind.MESSAGE]
