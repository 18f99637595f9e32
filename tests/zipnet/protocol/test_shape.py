"""The sizes of a round."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.zipnet.protocol.support import refused
from zipnet.errors import WireFormatError
from zipnet.protocol.codec import Reader
from zipnet.protocol.shape import MAX_PAYLOAD, MAX_SLOTS, Shape


def test_sizes() -> None:
    shape = Shape(num_slots=64, slot_bytes=256, num_sched_slots=256)
    assert (shape.message_bytes, shape.schedule_bytes) == (16_384, 512)
    assert (shape.payload_bytes, shape.datum_bytes) == (16_896, 240)


@given(st.integers(1, 100), st.integers(17, 1000), st.integers(0, 500))
def test_round_trip(slots: int, size: int, more: int) -> None:
    shape = Shape(slots, size, slots + more)
    reader = Reader(shape.encode(), "shape", at_most=20)
    assert Shape.read(reader) == shape
    reader.done()


@pytest.mark.parametrize(
    "change",
    [
        {"num_slots": 0, "num_sched_slots": 0},
        {"num_slots": -1},
        {"num_sched_slots": 3},
        {"num_sched_slots": MAX_SLOTS + 1},
        {"slot_bytes": 16},
        {"slot_bytes": MAX_PAYLOAD},
        {"sched_bytes": 1},
        {"sched_bytes": 4},
        {"tag_len": 0},
        {"tag_len": 15},
    ],
)
def test_sizes_that_no_round_has(change: dict[str, Any]) -> None:
    good = {"num_slots": 4, "slot_bytes": 24, "num_sched_slots": 16}
    Shape(**good)
    with refused(WireFormatError, "shape"):
        Shape(**(good | change))


def test_the_largest_payload() -> None:
    Shape(1, MAX_PAYLOAD - 2, 1)
    with refused(WireFormatError, "shape"):
        Shape(1, MAX_PAYLOAD - 1, 1)
