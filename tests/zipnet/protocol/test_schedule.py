"""Reservations, ranks and back-off; deliveries against simulated figures."""

import math
import random
from collections import Counter
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.zipnet.protocol.delivery import combined, footprints, hashed, shape_of
from tests.zipnet.protocol.support import SHAPE, header
from zipnet.protocol import schedule
from zipnet.protocol.schedule import Draw, Reservation, coin, rank, reserve, uniform, write
from zipnet.protocol.shape import Shape

shapes = st.builds(
    lambda slots, more: Shape(slots, 17, slots + more), st.integers(1, 40), st.integers(0, 200)
)


def replay(*parts: bytes) -> Draw:
    """Draws that give these bytes, each of exactly the size that is asked for."""
    left = list(parts)

    def draw(size: int) -> bytes:
        part = left.pop(0)
        assert len(part) == size
        return part

    return draw


@given(shapes, st.randoms(use_true_random=False))
def test_regression_a_footprint_is_never_zero(shape: Shape, source: random.Random) -> None:
    made = reserve(shape, source.randbytes)
    assert 1 <= made.footprint <= 0xFFFF
    assert 0 <= made.slot < shape.num_sched_slots
    assert schedule.nonzero(write(made, shape), shape) == 1


def test_footprints_reach_both_ends_and_nothing_beyond() -> None:
    # 16 entries take 4 bits; the footprint is drawn from 0 to 65534, and 65535 is drawn again.
    assert reserve(SHAPE, replay(b"\xf0", b"\0\0")) == Reservation(15, 1)
    assert reserve(SHAPE, replay(b"\0", b"\xff\xff", b"\xff\xfe")) == Reservation(0, 0xFFFF)


def test_regression_the_width_on_the_wire_is_that_of_the_header() -> None:
    shape = header().shape
    vector = write(Reservation(3, 0x1234), shape)
    assert len(vector) == shape.schedule_bytes == shape.num_sched_slots * shape.sched_bytes
    assert vector[3 * shape.sched_bytes : 4 * shape.sched_bytes] == b"\x12\x34"
    assert vector.count(0) == len(vector) - 2
    assert write(None, shape) == bytes(shape.schedule_bytes)


def test_regression_two_rounds_of_a_client_have_nothing_in_common() -> None:
    # No argument of `reserve` names a client or a key: all that it returns is drawn afresh.
    draw = random.Random(1).randbytes
    shape = shape_of(64)
    made = [reserve(shape, draw) for _ in range(500)]
    assert len(set(made)) == len(made)
    same = sum(a.slot == b.slot for a, b in pairwise(made))
    assert same < 10, "of 499 pairs 2 are expected to share an entry"


def test_regression_a_rank_as_great_as_the_number_of_slots_is_refused() -> None:
    shape = Shape(num_slots=4, slot_bytes=24, num_sched_slots=16)
    made = [Reservation(slot, 7 + slot) for slot in range(2, 8)]
    vector = combined(made, shape)
    assert [rank(one, vector, shape) for one in made] == [0, 1, 2, 3, None, None]


def test_rank_counts_entries_in_order_and_skips_empty_ones() -> None:
    shape = SHAPE
    vector = combined([Reservation(0, 1), Reservation(5, 256), Reservation(15, 0xFFFF)], shape)
    assert rank(Reservation(15, 0xFFFF), vector, shape) == 2
    assert rank(Reservation(5, 256), vector, shape) == 1
    # Not there, or changed.
    assert rank(Reservation(4, 256), vector, shape) is None
    assert rank(Reservation(5, 257), vector, shape) is None


@given(shapes, st.data())
def test_every_slot_has_at_most_one_owner(shape: Shape, data: st.DataObject) -> None:
    places = data.draw(st.sets(st.integers(0, shape.num_sched_slots - 1), max_size=60))
    made = [Reservation(place, data.draw(st.integers(1, 0xFFFF))) for place in places]
    ranks = [rank(one, combined(made, shape), shape) for one in made]
    owned = sorted(place for place in ranks if place is not None)
    assert owned == list(range(min(len(made), shape.num_slots)))


@given(st.integers(1, 0xFFFF), st.integers(1, 0xFFFF))
def test_two_in_one_entry_always_see_it(first: int, second: int) -> None:
    made = [Reservation(3, first), Reservation(3, second)]
    assert {rank(one, combined(made, SHAPE), SHAPE) for one in made} == {None}


@pytest.mark.parametrize("below", [1, 2, 3, 5, 256, 257, 65_535])
def test_uniform(below: int) -> None:
    draw = random.Random(below).randbytes
    counts = Counter(uniform(below, draw) for _ in range(4000))
    assert max(counts) < below
    if below <= 5:
        assert all(abs(counts[i] - 4000 / below) < 200 for i in range(below))


def test_coin() -> None:
    most, least = b"\xff" * 8, bytes(8)
    assert coin(1.0, replay(most))
    assert not coin(0.0, replay(least))
    assert coin(0.5, replay(b"\x7f" + b"\xff" * 7))
    assert not coin(0.5, replay(b"\x80" + bytes(7)))
    draw = random.Random(0).randbytes
    assert abs(sum(coin(0.3, draw) for _ in range(10_000)) - 3000) < 150


def test_attempts_are_estimated_from_what_is_taken() -> None:
    for made in (1, 16, 64, 200, 600):
        taken = 256 * (1 - (1 - 1 / 256) ** made)
        estimate = -256 * math.log(1 - taken / 256)
        assert abs(estimate / made - 1) < 0.01
        assert abs(schedule.attempts(round(taken), 256) / made - 1) < 0.06
    assert schedule.attempts(0, 256) == 0
    assert schedule.attempts(255, 256) < schedule.attempts(256, 256) < math.inf


def test_reserving_is_rarer_in_a_crowd() -> None:
    shape = shape_of(64)
    probability = schedule.reserve_probability
    assert probability(shape, 0, None) == probability(shape, 70, None) == 1
    assert probability(shape, 704, None) == pytest.approx(0.1)
    # A fuller vector than the crowd explains counts, an emptier one does not.
    full = b"\0\1" * 256
    assert 0 < probability(shape, 1, full) < 0.05
    assert probability(shape, 704, bytes(512)) == pytest.approx(0.1)


# Rows of the table of deliveries, each with as many rounds as 2 % needs.
@pytest.mark.parametrize(
    ("clients", "slots", "rounds", "expected"),
    [
        (8, 64, 800, 7.78),
        (32, 64, 400, 28.3),
        (64, 64, 300, 50.0),
        (128, 64, 200, 49.3),
        (256, 64, 200, 37.2),
        (1000, 1000, 3, 778),
    ],
)
def test_deliveries(clients: int, slots: int, rounds: int, expected: float) -> None:
    assert footprints(clients, shape_of(slots), rounds, 1) == pytest.approx(expected, rel=0.02)


@pytest.mark.parametrize(("clients", "expected"), [(128, 52.8), (256, 52.1), (1000, 52.1)])
def test_deliveries_with_back_off(clients: int, expected: float) -> None:
    found = footprints(clients, shape_of(64), 300, 1, back_off=True)
    assert found == pytest.approx(expected, rel=0.02)


@pytest.mark.parametrize(
    ("clients", "slots", "rounds", "expected"),
    [
        (8, 64, 2000, 7.14),
        (32, 64, 2000, 19.6),
        (64, 64, 1000, 23.7),
        (128, 64, 1000, 17.3),
        (256, 64, 3000, 4.6),
        (1000, 1000, 50, 368),
    ],
)
def test_regression_hashed_slots_deliver_less(
    clients: int, slots: int, rounds: int, expected: float
) -> None:
    found = hashed(clients, slots, rounds, 1)
    assert found == pytest.approx(expected, rel=0.02)
    if clients <= 256:
        assert found < footprints(clients, shape_of(slots), 50, 1)
