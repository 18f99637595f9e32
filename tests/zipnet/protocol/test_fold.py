"""The aggregator: what leaves and parents take, what they refuse, what they sign."""

import builtins
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import reduce
from typing import Any

import pytest
from blake3 import blake3
from hypothesis import given
from hypothesis import strategies as st

from tests.zipnet.protocol.support import (
    INSTANCE,
    OTHER_INSTANCE,
    SHAPE,
    Node,
    h,
    header,
    node,
    nodes,
    refused,
    roster,
    tree,
)
from zipnet.errors import Refused, WireFormatError, ZipnetError
from zipnet.protocol.aggregate import Aggregate
from zipnet.protocol.envelope import seal_envelope
from zipnet.protocol.fold import (
    LeafFold,
    PayloadXor,
    TagSet,
    TierFold,
    Total,
    absorb_payload,
    check_aggregate,
    integer_xor,
    payload_xor,
)
from zipnet.protocol.header import Header
from zipnet.protocol.roster import Member, Roster, bitmap, places
from zipnet.protocol.shape import Shape

#     0
#   1   2
#      3 4
TREE = tree(0, 0, 2, 2)
CLIENTS = nodes("client", 20)
ROSTER = roster(20, 2)
HEADER = header(ROSTER, aggregators=TREE)
MAC_KEYS = {client.id: h(f"mac {client.name}") for client in CLIENTS}
XORS = pytest.mark.parametrize("xor", [payload_xor(), integer_xor], ids=["chosen", "integer"])


def clients_of(leaf: int) -> list[Node]:
    return [client for client in CLIENTS if TREE.leaf_for(client.id) == leaf]


def payload(client: Node, salt: str = "") -> bytes:
    return blake3(h(client.name + salt)).digest(length=SHAPE.payload_bytes)


def envelope(
    client: Node, one: Header = HEADER, *, salt: str = "", tag: str = "", key: bytes | None = None
) -> bytes:
    rate_tag = h(f"tag {tag or client.name}")[:16]
    mac_key = MAC_KEYS.get(client.id, bytes(32)) if key is None else key
    body = payload(client, salt).ljust(one.shape.payload_bytes)[: one.shape.payload_bytes]
    return seal_envelope(one, client.id, rate_tag, body, mac_key, client.signer)


def aggregator(place: int) -> Node:
    return node(f"aggregator {place}")


def leaf_fold(
    place: int = 1, *, tags: TagSet | None = None, xor: PayloadXor | None = None
) -> LeafFold:
    tags = TagSet(1000) if tags is None else tags
    return LeafFold(HEADER, ROSTER, TREE, place, MAC_KEYS, tags, xor or payload_xor())


def leaf_sum(place: int, clients: Sequence[Node]) -> Aggregate:
    fold = leaf_fold(place)
    for client in clients:
        fold.absorb(envelope(client))
    return fold.close(aggregator(place).signer)


def tier_fold(place: int = 0, xor: PayloadXor | None = None) -> TierFold:
    return TierFold(HEADER, ROSTER, TREE, place, xor or payload_xor())


def claim(place: int, clients: Sequence[Node], salt: str = "", one: Header = HEADER) -> Aggregate:
    """What a faulty or hostile child signs, whoever its clients are."""
    bits = bitmap([CLIENTS.index(client) for client in clients], len(CLIENTS))
    body = xor_all([payload(client, salt) for client in clients])
    return Aggregate.sign(one, aggregator(place).signer, len(CLIENTS), bits, h(f"tags{salt}"), body)


def xor_all(parts: Sequence[bytes]) -> bytes:
    def xor(a: bytes, b: bytes) -> bytes:
        return bytes(x ^ y for x, y in zip(a, b, strict=True))

    return reduce(xor, parts, bytes(SHAPE.payload_bytes))


def members(aggregate: Aggregate) -> list[Node]:
    return [CLIENTS[place] for place in places(aggregate.participants, aggregate.clients)]


@given(st.binary(max_size=200).flatmap(lambda a: st.tuples(st.just(a), st.binary(max_size=200))))
def test_both_xors_agree(case: tuple[bytes, bytes]) -> None:
    size = min(map(len, case))
    a, b = case[0][:size], case[1][:size]
    expected = bytes(x ^ y for x, y in zip(a, b, strict=True))
    for xor in (payload_xor(), integer_xor):
        total = bytearray(a)
        xor(total, memoryview(b + b"more")[:size])
        assert total == expected


def test_the_choice_of_xor(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("numpy")
    assert payload_xor() is not integer_xor
    original = builtins.__import__

    def without_numpy(name: str, *rest: Any, **more: Any) -> Any:
        if name == "numpy":
            raise ImportError(name)
        return original(name, *rest, **more)

    monkeypatch.setattr(builtins, "__import__", without_numpy)
    assert payload_xor() is integer_xor


@XORS
def test_a_leaf_adds_up(xor: PayloadXor) -> None:
    fold = leaf_fold(xor=xor)
    mine = clients_of(1)
    assert len(mine) > 2
    for client in mine[1:]:
        fold.absorb(envelope(client))
    result = fold.close(aggregator(1).signer)
    result.verify()
    assert members(result) == mine[1:]
    assert result.payload == xor_all([payload(client) for client in mine[1:]])
    tags = b"".join(sorted(h(f"tag {client.name}")[:16] for client in mine[1:]))
    assert result.tags_hash == blake3(tags, derive_key_context="zipnet/tags/v2").digest()


def test_an_empty_leaf_closes_too() -> None:
    result = leaf_fold().close(aggregator(1).signer)
    result.verify()
    assert (result.count(), result.payload) == (0, bytes(SHAPE.payload_bytes))
    fold = tier_fold()
    fold.absorb(result)
    assert fold.close(aggregator(0).signer).count() == 0


@XORS
def test_a_parent_adds_up(xor: PayloadXor) -> None:
    sums = {place: leaf_sum(place, clients_of(place)) for place in (1, 3, 4)}
    inner = tier_fold(2, xor)
    inner.absorb(sums[4])
    inner.absorb(sums[3])
    middle = inner.close(aggregator(2).signer)
    root = tier_fold(0, xor)
    root.absorb(sums[1])
    root.absorb(middle)
    result = root.close(aggregator(0).signer)
    assert members(result) == CLIENTS
    assert result.payload == xor_all([payload(client) for client in CLIENTS])
    tags = sorted((aggregator(1).peer + sums[1].tags_hash, aggregator(2).peer + middle.tags_hash))
    expected = blake3(b"".join(tags), derive_key_context="zipnet/tags/v2").digest()
    assert result.tags_hash == expected
    check_aggregate(result, HEADER, TREE, 20, 20)


def test_regression_first_and_second_child_take_the_same_path() -> None:
    """The signature covers what is in the sum, after one child as after two."""
    one, two = clients_of(1)[:2]
    for clients in ([one], [one, two]):
        result = leaf_sum(1, clients)
        result.verify()
        assert Aggregate.decode(result.encode(), SHAPE) == result
        assert members(result) == clients
    first, second = leaf_sum(3, clients_of(3)), leaf_sum(4, clients_of(4))
    for children in ([first], [second], [first, second]):
        fold = tier_fold(2)
        for child in children:
            fold.absorb(child)
        result = fold.close(aggregator(2).signer)
        result.verify()
        assert result.aggregator == aggregator(2).peer
        assert result.payload == xor_all([child.payload for child in children])
        assert result.count() == sum(child.count() for child in children)


def test_the_order_of_arrival_is_nothing() -> None:
    mine = clients_of(1)
    assert leaf_sum(1, mine) == leaf_sum(1, mine[::-1])


STRANGER = node("stranger")
FIRST, SECOND, *_ = clients_of(1)
ELSEWHERE = clients_of(3)[0]
OTHER_DEPLOYMENT = replace(INSTANCE, deployment_id=h("other deployment"))
BAD_ENVELOPES: list[tuple[str, type[ZipnetError], bytes]] = [
    ("size", WireFormatError, b""),
    ("size", WireFormatError, envelope(FIRST)[:-1]),
    ("size", WireFormatError, envelope(FIRST, replace(HEADER, shape=Shape(4, 25, 16)))),
    ("wire-version", WireFormatError, b"\0\1" + envelope(FIRST)[2:]),
    ("deployment", Refused, envelope(FIRST, replace(HEADER, instance=OTHER_DEPLOYMENT))),
    ("generation", Refused, envelope(FIRST, replace(HEADER, instance=OTHER_INSTANCE))),
    ("round", Refused, envelope(FIRST, replace(HEADER, round=8))),
    ("header", Refused, envelope(FIRST, replace(HEADER, time_ms=1))),
    ("unknown-client", Refused, envelope(STRANGER)),
    ("not-assigned", Refused, envelope(ELSEWHERE)),
    ("mac", Refused, envelope(FIRST, key=bytes(32))),
    ("mac", Refused, envelope(FIRST, key=MAC_KEYS[SECOND.id])),
    ("double-seal", Refused, envelope(SECOND, salt="again")),
    ("double-seal", Refused, envelope(SECOND, tag="another")),
    ("rate-tag", Refused, envelope(FIRST, tag=SECOND.name)),
]


@pytest.mark.parametrize(("rule", "kind", "raw"), BAD_ENVELOPES)
def test_what_a_leaf_refuses(rule: str, kind: type[ZipnetError], raw: bytes) -> None:
    tags = TagSet(1000)
    fold = leaf_fold(tags=tags)
    fold.absorb(envelope(SECOND))
    with refused(kind, f"envelope.{rule}"):
        fold.absorb(raw)
    assert len(tags) == 1
    assert fold.close(aggregator(1).signer) == leaf_sum(1, [SECOND])


def test_regression_envelope_replayed_into_another_round() -> None:
    raw = envelope(FIRST)
    later = header(ROSTER, aggregators=TREE, round_number=8)
    fold = LeafFold(later, ROSTER, TREE, 1, MAC_KEYS, TagSet(9), payload_xor())
    with refused(Refused, "envelope.round"):
        fold.absorb(raw)
    # With the round's bytes put in, the MAC says that they were another's.
    forged = envelope(FIRST, later)[:106] + raw[106:]
    with refused(Refused, "envelope.mac"):
        fold.absorb(forged)


@given(st.lists(st.sampled_from([*range(len(BAD_ENVELOPES)), -1, -1, -2, -2, -3]), max_size=12))
def test_refusals_leave_a_leaf_unchanged(script: list[int]) -> None:
    others = clients_of(1)[2:]
    tags, taken = TagSet(1000), [SECOND]
    fold = leaf_fold(tags=tags)
    fold.absorb(envelope(SECOND))
    for step in script:
        if step == -1 and others:
            taken.append(others.pop())
            fold.absorb(envelope(taken[-1]))
        elif step == -2:
            fold.absorb(envelope(taken[-1]))
        elif step == -3:
            flipped = bytearray(envelope(FIRST))
            flipped[len(script) * 13 % (len(flipped) - 64)] ^= 1
            with pytest.raises(ZipnetError):
                fold.absorb(bytes(flipped))
        elif step >= 0:
            rule, kind, raw = BAD_ENVELOPES[step]
            with refused(kind, f"envelope.{rule}"):
                fold.absorb(raw)
    assert len(tags) == len(taken)
    assert fold.close(aggregator(1).signer) == leaf_sum(1, taken)


@given(st.binary(max_size=700), st.sampled_from([0, 2, 66, 106, 138, 154]))
def test_a_leaf_takes_no_arbitrary_bytes(raw: bytes, good: int) -> None:
    fold = leaf_fold()
    whole = envelope(FIRST)
    for attempt in (raw, (whole[:good] + raw).ljust(len(whole), b"\0")[: len(whole)]):
        with pytest.raises(ZipnetError):
            fold.absorb(attempt)
    assert fold.close(aggregator(1).signer).count() == 0


def test_an_identical_envelope_is_taken_once() -> None:
    fold = leaf_fold()
    for _ in range(3):
        fold.absorb(envelope(FIRST))
    result = fold.close(aggregator(1).signer)
    assert result == leaf_sum(1, [FIRST])
    # A retry whose first answer was lost.
    fold.absorb(envelope(FIRST))
    assert fold.close(aggregator(1).signer) is result


def test_late_envelopes() -> None:
    tags = TagSet(9)
    fold = leaf_fold(tags=tags)
    result = fold.close(aggregator(1).signer)
    with refused(Refused, "envelope.late"):
        fold.absorb(envelope(FIRST))
    assert fold.close(aggregator(1).signer) is result
    assert len(tags) == 0


def test_a_client_whose_key_the_leaf_lacks() -> None:
    keys = {client: key for client, key in MAC_KEYS.items() if client != FIRST.id}
    fold = LeafFold(HEADER, ROSTER, TREE, 1, keys, TagSet(9), payload_xor())
    with refused(Refused, "envelope.no-key"):
        fold.absorb(envelope(FIRST))


def test_rate_tags_hold_for_the_epoch() -> None:
    tags = TagSet(2)
    leaf_fold(tags=tags).absorb(envelope(FIRST))
    later = header(ROSTER, aggregators=TREE, round_number=8)
    fold = LeafFold(later, ROSTER, TREE, 1, MAC_KEYS, tags, payload_xor())
    with refused(Refused, "envelope.rate-tag"):
        fold.absorb(envelope(FIRST, later))
    fold.absorb(envelope(FIRST, later, tag="second"))
    assert h("tag second")[:16] in tags
    with refused(Refused, "envelope.tags-full"):
        fold.absorb(envelope(SECOND, later))
    assert fold.close(aggregator(1).signer).count() == 1


def without_key() -> Aggregate:
    return replace(claim(1, [FIRST]), signature=bytes(64))


BAD_AGGREGATES: list[tuple[str, Callable[[], Aggregate]]] = [
    ("aggregate.instance", lambda: claim(1, [FIRST], one=replace(HEADER, instance=OTHER_INSTANCE))),
    ("aggregate.round", lambda: claim(1, [FIRST], one=replace(HEADER, round=8))),
    ("aggregate.header", lambda: claim(1, [FIRST], one=replace(HEADER, time_ms=1))),
    ("aggregate.roster", lambda: replace(claim(1, []), clients=21)),
    ("aggregate.size", lambda: replace(claim(1, []), payload=b"")),
    # The root itself, a grandchild, and who is in no tree.
    ("aggregate.child", lambda: claim(0, [FIRST])),
    ("aggregate.child", lambda: claim(3, clients_of(3))),
    ("aggregate.child", lambda: claim(9, [FIRST])),
    ("signature", without_key),
    ("signature", lambda: replace(claim(1, [FIRST]), participants=bytes(3))),
    ("aggregate.again", lambda: claim(2, [])),
    ("aggregate.again", lambda: claim(2, clients_of(3), "other")),
    ("aggregate.overlap", lambda: claim(1, [FIRST, ELSEWHERE])),
    ("aggregate.foreign-client", lambda: claim(1, [FIRST, clients_of(4)[0]])),
]


@pytest.mark.parametrize(("rule", "make"), BAD_AGGREGATES)
def test_what_a_parent_refuses(rule: str, make: Callable[[], Aggregate]) -> None:
    fold, same = tier_fold(), tier_fold()
    for each in (fold, same):
        each.absorb(claim(2, clients_of(3)))
    with refused(Refused, rule):
        fold.absorb(make())
    for each in (fold, same):
        each.absorb(claim(1, [FIRST]))
    assert fold.close(aggregator(0).signer) == same.close(aggregator(0).signer)


@given(st.lists(st.integers(0, len(BAD_AGGREGATES)), max_size=8))
def test_refusals_leave_a_parent_unchanged(script: list[int]) -> None:
    child = claim(2, clients_of(3))
    fold, same = tier_fold(), tier_fold()
    for each in (fold, same):
        each.absorb(child)
    for step in script:
        if step == len(BAD_AGGREGATES):
            fold.absorb(child)
            continue
        rule, make = BAD_AGGREGATES[step]
        with refused(Refused, rule):
            fold.absorb(make())
    assert fold.close(aggregator(0).signer) == same.close(aggregator(0).signer)


def test_a_client_through_two_leaves_is_refused() -> None:
    """It would cancel itself and leave its pads in the broadcast."""
    sums = [claim(3, clients_of(3)), claim(4, [*clients_of(4), ELSEWHERE])]
    fold = tier_fold(2)
    fold.absorb(sums[0])
    with refused(Refused, "aggregate.overlap"):
        fold.absorb(sums[1])
    fold = tier_fold(2)
    with refused(Refused, "aggregate.foreign-client"):
        fold.absorb(sums[1])
    fold.absorb(sums[0])
    assert members(fold.close(aggregator(2).signer)) == clients_of(3)


def test_late_aggregates() -> None:
    fold = tier_fold()
    child = claim(1, [FIRST])
    fold.absorb(child)
    result = fold.close(aggregator(0).signer)
    fold.absorb(child)
    with refused(Refused, "aggregate.late"):
        fold.absorb(claim(2, []))
    assert fold.close(aggregator(0).signer) is result


def test_only_the_node_of_the_tree_signs() -> None:
    for fold in (leaf_fold(), tier_fold()):
        with refused(Refused, "fold.key"):
            fold.close(aggregator(4).signer)


def test_folds_that_cannot_be() -> None:
    xor = payload_xor()
    for place in (0, 2, 5, -1):
        with refused(Refused, "fold.node"):
            LeafFold(HEADER, ROSTER, TREE, place, MAC_KEYS, TagSet(9), xor)
    for place in (1, 3, 5, -1):
        with refused(Refused, "fold.node"):
            TierFold(HEADER, ROSTER, TREE, place, xor)
    with refused(Refused, "fold.roster"):
        LeafFold(HEADER, roster(19, 2), TREE, 1, MAC_KEYS, TagSet(9), xor)
    with refused(Refused, "fold.tree"):
        TierFold(HEADER, ROSTER, tree(0, 0), 0, xor)


def test_what_servers_check_of_the_sum() -> None:
    good = claim(0, CLIENTS[:3])
    check_aggregate(good, HEADER, TREE, 20, 3)
    with refused(Refused, "aggregate.min-participants"):
        check_aggregate(good, HEADER, TREE, 20, 4)
    with refused(Refused, "aggregate.root"):
        check_aggregate(claim(1, CLIENTS[:3]), HEADER, TREE, 20, 3)
    with refused(Refused, "aggregate.roster"):
        check_aggregate(good, HEADER, TREE, 19, 3)
    with refused(Refused, "aggregate.header"):
        check_aggregate(good, replace(HEADER, time_ms=1), TREE, 20, 3)
    with refused(Refused, "aggregate.round"):
        check_aggregate(good, replace(HEADER, round=8), TREE, 20, 3)
    with refused(Refused, "aggregate.instance"):
        check_aggregate(good, replace(HEADER, instance=OTHER_INSTANCE), TREE, 20, 3)
    with refused(Refused, "aggregate.size"):
        check_aggregate(replace(good, payload=b""), HEADER, TREE, 20, 3)
    with refused(Refused, "signature"):
        check_aggregate(replace(good, tags_hash=h("other")), HEADER, TREE, 20, 3)
    with refused(Refused, "fold.tree"):
        check_aggregate(good, HEADER, tree(0, 0), 20, 3)


def test_a_payload_is_added_in_place() -> None:
    total = Total.zero(HEADER, 20)
    into = total.payload
    absorb_payload(total, 9, memoryview(payload(FIRST)), payload_xor())
    assert total.payload == payload(FIRST)
    assert total.bits == b"\0\2\0"
    assert total.payload is into


def test_regression_time_per_envelope_does_not_grow_with_the_roster() -> None:
    """Interleaved, the median of several runs: 4000 clients within 1.5 times that of 1000."""
    signer, alone = node("one").signer, tree()
    shape = Shape(16, 64, 64)
    cases = []
    for count in (1000, 4000):
        some = [Member(h(f"id {i}"), h(f"key {i}")) for i in range(count)]
        everybody = Roster.of(some, ROSTER.servers)
        one = header(everybody, shape=shape, aggregators=alone)
        keys = {member.id: member.key for member in some}
        body = bytes(shape.payload_bytes)
        raws = [seal_envelope(one, m.id, m.key[:16], body, m.key, signer) for m in some]
        cases.append((one, everybody, keys, raws))

    def seconds(case: tuple[Header, Roster, dict[bytes, bytes], list[bytes]]) -> float:
        one, everybody, keys, raws = case
        fold = LeafFold(one, everybody, alone, 0, keys, TagSet(5000), payload_xor())
        begin = time.perf_counter()
        for raw in raws:
            fold.absorb(raw)
        return (time.perf_counter() - begin) / len(raws)

    runs = [[seconds(case) for case in cases] for _ in range(7)]
    assert statistics.median(large / small for small, large in runs) < 1.5
