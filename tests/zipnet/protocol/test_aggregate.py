"""Aggregates: layout, signature, what fits a round."""

from dataclasses import replace
from typing import Any

import pytest
from blake3 import blake3
from hypothesis import given
from hypothesis import strategies as st

from tests.zipnet.protocol.support import (
    INSTANCE,
    OTHER_INSTANCE,
    ROUND,
    SHAPE,
    h,
    header,
    node,
    refused,
)
from zipnet.errors import Refused, WireFormatError
from zipnet.protocol.aggregate import Aggregate
from zipnet.protocol.roster import MAX_CLIENTS, bitmap
from zipnet.protocol.shape import Shape

ROOT = node("aggregator 0")
PAYLOAD = bytes(i & 0xFF for i in range(SHAPE.payload_bytes))
ONE = Aggregate.sign(header(), ROOT.signer, 11, bitmap([0, 9], 11), h("tags"), PAYLOAD)


def test_offsets_of_the_format() -> None:
    raw = ONE.encode()
    for offset, value in (
        (0, b"\0\2"),
        (2, INSTANCE.deployment_id),
        (34, INSTANCE.generation),
        (66, ROUND.to_bytes(8, "big")),
        (74, header().id),
        (106, ROOT.peer),
        (138, b"\0\0\0\x0b"),
        (142, b"\1\2"),
        (144, h("tags")),
        (176, PAYLOAD),
        (176 + SHAPE.payload_bytes, ONE.signature),
    ):
        assert raw[offset : offset + len(value)] == value
    assert len(raw) == 176 + SHAPE.payload_bytes + 64
    digest = blake3(raw[:-64], derive_key_context="zipnet/aggregate/v2").digest()
    assert digest == ONE.digest
    statement = INSTANCE.statement(b"zipnet/sig/aggregate/v2", ROUND, digest)
    ROOT.signer.public_key().verify(ONE.signature, statement)


@given(st.integers(0, 40), st.data())
def test_round_trip(clients: int, data: st.DataObject) -> None:
    chosen = data.draw(st.sets(st.integers(0, 39))) & set(range(clients))
    one = replace(ONE, clients=clients, participants=bitmap(chosen, clients))
    assert Aggregate.decode(one.encode(), SHAPE) == one
    assert one.count() == len(chosen)
    with refused(WireFormatError, "aggregate.trailing"):
        Aggregate.decode(one.encode() + b"\0", SHAPE)
    with refused(WireFormatError, "aggregate.truncated"):
        Aggregate.decode(one.encode()[:-1], SHAPE)


@pytest.mark.parametrize(
    ("offset", "new", "rule"),
    [
        (0, b"\0\1", "aggregate.wire-version"),
        (66, b"\x80", "aggregate.number"),
        (138, (MAX_CLIENTS + 1).to_bytes(4, "big"), "aggregate.clients"),
        (138, (17).to_bytes(4, "big"), "aggregate.truncated"),
        (138, (8).to_bytes(4, "big"), "aggregate.trailing"),
        (142, b"\1\x0a", "bitmap"),
    ],
)
def test_malformed(offset: int, new: bytes, rule: str) -> None:
    raw = ONE.encode()
    with refused(WireFormatError, rule):
        Aggregate.decode(raw[:offset] + new + raw[offset + len(new) :], SHAPE)


def test_sizes_are_those_of_the_shape() -> None:
    for shape, rule in ((Shape(4, 25, 16), "truncated"), (Shape(4, 23, 16), "trailing")):
        with refused(WireFormatError, f"aggregate.{rule}"):
            Aggregate.decode(ONE.encode(), shape)
    with refused(WireFormatError, "aggregate.size"):
        Aggregate.decode(bytes(200_000), SHAPE)


def test_the_signature_covers_everything() -> None:
    ONE.verify()
    for change in (
        {"instance": OTHER_INSTANCE},
        {"round": ROUND + 1},
        {"header_id": h("other")},
        {"aggregator": node("aggregator 1").peer},
        {"clients": 12},
        {"participants": bitmap([0], 11)},
        {"tags_hash": h("other")},
        {"payload": bytes(SHAPE.payload_bytes)},
        {"signature": bytes(64)},
    ):
        changes: dict[str, Any] = change
        with refused(Refused, "signature"):
            replace(ONE, **changes).verify()


def test_what_fits_a_round() -> None:
    ONE.check_round(header(), 11)
    for change, rule in (
        ({"instance": OTHER_INSTANCE}, "instance"),
        ({"round": ROUND + 1}, "round"),
        ({"header_id": h("other")}, "header"),
        ({"clients": 12}, "roster"),
        ({"payload": PAYLOAD[1:]}, "size"),
    ):
        changes: dict[str, Any] = change
        with refused(Refused, f"aggregate.{rule}"):
            replace(ONE, **changes).check_round(header(), 11)
