"""What commands say: one form on the wire, with bounds."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.zipnet.committee.strategies import BODIES, KINDS, trees
from tests.zipnet.protocol.support import h, refused
from zipnet.committee import bodies
from zipnet.committee.bodies import BODIES as READERS
from zipnet.committee.bodies import Body
from zipnet.errors import WireFormatError
from zipnet.protocol.codec import Reader
from zipnet.protocol.roster import EpochKey
from zipnet.protocol.shape import MAX_PAYLOAD
from zipnet.protocol.tree import MAX_TREE_BYTES, AggregatorTree

KEY = EpochKey(h("id"), 1, 2, h("key"), bytes(64))
VOUCHER = bodies.Voucher(h("client"), h("registration"), 7, h("platform"))


def read(kind: int, raw: bytes) -> Body:
    reader = Reader(raw, "command", at_most=bodies.MAX_COMMAND)
    body = READERS[kind](reader)
    reader.done()
    return body


@given(BODIES)
def test_each_body_reads_back(body: Body) -> None:
    assert read(body.KIND, body.encode()) == body


@given(BODIES, st.data())
def test_nothing_may_be_missing_or_left_over(body: Body, data: st.DataObject) -> None:
    raw = body.encode()
    with refused(WireFormatError, "command.trailing"):
        read(body.KIND, raw + b"\0")
    if raw:
        with refused(WireFormatError, "command.truncated"):
            read(body.KIND, raw[: data.draw(st.integers(0, len(raw) - 1))])


@given(st.sampled_from(sorted(READERS)), st.binary(max_size=400))
def test_whatever_can_be_read_is_in_its_one_form(kind: int, raw: bytes) -> None:
    try:
        body = read(kind, raw)
    except WireFormatError:
        return
    assert body.encode() == raw


def test_every_kind_has_its_own_number_and_is_tested_here() -> None:
    assert sorted(READERS) == list(range(1, 24))
    assert {kind.KIND for kind in KINDS} == set(READERS)  # type: ignore[attr-defined]


def test_sizes_are_as_documented() -> None:
    assert len(VOUCHER.encode()) == 104
    assert len(bodies.Retire(h("a"), h("b"), bytes(64)).encode()) == 128
    assert len(bodies.SignHeader(h("a"), bytes(64)).encode()) == 96
    assert len(bodies.SignRecord(h("a"), bytes(64)).encode()) == 96
    assert len(bodies.Checkpoint(1, h("a"), h("b"), bytes(64)).encode()) == 136
    assert len(bodies.CommitPartial(h("a")).encode()) == 32


@pytest.mark.parametrize(
    ("kind", "head", "most"),
    [
        (bodies.ChangeOperators, 4, bodies.MAX_DOCUMENT),
        (bodies.Register, 2, bodies.MAX_BUNDLE),
        (bodies.Renew, 2, bodies.MAX_BUNDLE),
        (bodies.SubmitAggregate, 4, bodies.MAX_COMMAND),
        (bodies.RevealPartial, 4, MAX_PAYLOAD),
        (bodies.RotateAllowList, 4, bodies.MAX_DOCUMENT),
        (bodies.Recover, 4, bodies.MAX_DOCUMENT),
    ],
)
def test_lengths_are_bounded(kind: type[Body], head: int, most: int) -> None:
    with refused(WireFormatError, "command.length"):
        read(kind.KIND, (most + 1).to_bytes(head, "big"))
    with refused(WireFormatError, "command.truncated"):
        read(kind.KIND, most.to_bytes(head, "big"))


@pytest.mark.parametrize(
    ("kind", "head", "most"),
    [(bodies.EpochKeys, 2, bodies.MAX_BATCH), (bodies.Vouch, 2, bodies.MAX_BATCH),
     (bodies.Assign, 1, bodies.MAX_TREES)],
)  # fmt: skip
def test_counts_are_bounded(kind: type[Body], head: int, most: int) -> None:
    with refused(WireFormatError, "command.count"):
        read(kind.KIND, (most + 1).to_bytes(head, "big") + bytes(100))
    with refused(WireFormatError, "command.truncated"):
        read(kind.KIND, most.to_bytes(head, "big"))


def test_the_largest_batches_read_back() -> None:
    for body in (
        bodies.EpochKeys((KEY,) * bodies.MAX_BATCH),
        bodies.Vouch((VOUCHER,) * bodies.MAX_BATCH),
    ):
        assert read(body.KIND, body.encode()) == body


def test_a_tree_inside_of_a_vote_is_bounded_and_read_to_its_end() -> None:
    length = (MAX_TREE_BYTES + 1).to_bytes(4, "big")
    with refused(WireFormatError, "command.length"):
        read(bodies.Assign.KIND, b"\1" + length)
    with refused(WireFormatError, "tree.truncated"):
        read(bodies.Assign.KIND, b"\1" + bytes(4))


@given(trees())
def test_a_tree_with_something_behind_it_is_refused(tree: AggregatorTree) -> None:
    raw = tree.encode() + b"\0"
    with refused(WireFormatError, "tree.trailing"):
        read(bodies.Assign.KIND, b"\1" + len(raw).to_bytes(4, "big") + raw)


def test_reasons_are_short_and_printable() -> None:
    with refused(WireFormatError, "command.length"):
        read(bodies.Refuse.KIND, h("client") + b"\x41" + b"a" * 65)
    with refused(WireFormatError, "command.text"):
        read(bodies.Refuse.KIND, h("client") + b"\1\xff")


def test_a_flag_is_zero_or_one() -> None:
    with refused(WireFormatError, "command.flag"):
        read(bodies.Leave.KIND, b"\2")
