"""Commitments, reveals, the sum of all."""

from functools import reduce
from typing import Any

import pytest
from blake3 import blake3
from hypothesis import given
from hypothesis import strategies as st

from tests.zipnet.protocol.support import INSTANCE, OTHER_INSTANCE, SHAPE, h, refused
from zipnet.errors import Refused
from zipnet.protocol.shape import Shape
from zipnet.protocol.unblind import check_reveal, commitment, finalize

PARTIAL = bytes(i & 0xFF for i in range(SHAPE.payload_bytes))
ARGUMENTS: dict[str, Any] = {
    "instance": INSTANCE,
    "round_number": 7,
    "aggregate_digest": h("aggregate"),
    "server_id": h("server"),
    "partial": PARTIAL,
}
COMMITTED = commitment(**ARGUMENTS)
CHANGES: list[dict[str, Any]] = [
    {"instance": OTHER_INSTANCE},
    {"round_number": 8},
    {"aggregate_digest": h("other")},
    {"server_id": h("other")},
    {"partial": bytes(SHAPE.payload_bytes)},
]


def test_the_commitment_is_as_documented() -> None:
    raw = b"".join((INSTANCE.binding, (7).to_bytes(8, "big"), h("aggregate"), h("server"), PARTIAL))
    assert blake3(raw, derive_key_context="zipnet/partial/v2").digest() == COMMITTED


def test_only_what_was_committed_to_may_be_revealed() -> None:
    check_reveal(COMMITTED, **ARGUMENTS, shape=SHAPE)
    for change in CHANGES:
        with refused(Refused, "reveal.commitment"):
            check_reveal(COMMITTED, **ARGUMENTS | change, shape=SHAPE)
    with refused(Refused, "reveal.commitment"):
        check_reveal(COMMITTED[1:], **ARGUMENTS, shape=SHAPE)


@pytest.mark.parametrize("shape", [Shape(4, 25, 16), Shape(4, 23, 16)])
def test_a_partial_of_another_size(shape: Shape) -> None:
    # Even one that was committed to.
    with refused(Refused, "reveal.size"):
        check_reveal(COMMITTED, **ARGUMENTS, shape=shape)


@given(st.lists(st.binary(min_size=40, max_size=40), min_size=2, max_size=6))
def test_the_sum(parts: list[bytes]) -> None:
    def xor(a: bytes, b: bytes) -> bytes:
        return bytes(x ^ y for x, y in zip(a, b, strict=True))

    assert finalize(parts[0], parts[1:]) == reduce(xor, parts)
    assert finalize(parts[0], parts[:0:-1]) == reduce(xor, parts)


def test_what_cannot_be_summed() -> None:
    with refused(Refused, "finalize.partials"):
        finalize(PARTIAL, [])
    for wrong in (PARTIAL[1:], PARTIAL + b"\0", b""):
        with refused(Refused, "finalize.size"):
            finalize(PARTIAL, [PARTIAL, wrong])
