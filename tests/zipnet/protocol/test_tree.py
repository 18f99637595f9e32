"""The aggregator tree: what is one, who is below whom, which leaf a client has."""

from collections import Counter
from dataclasses import replace

import pytest
from blake3 import blake3
from hypothesis import given
from hypothesis import strategies as st

from tests.zipnet.protocol.support import h, refused, roster, tree
from zipnet.errors import WireFormatError
from zipnet.protocol.roster import Member, Roster, places
from zipnet.protocol.tree import MAX_NODES, Aggregator, AggregatorTree


def wide(count: int) -> AggregatorTree:
    return AggregatorTree(tuple(Aggregator(h(f"p{i}"), h(f"d{i}"), 0) for i in range(count)))


@st.composite
def trees(draw: st.DrawFn) -> AggregatorTree:
    parents = [draw(st.integers(0, place)) for place in range(draw(st.integers(0, 7)))]
    return tree(*parents)


def test_a_root_alone_is_a_leaf() -> None:
    assert tree().leaves == (0,)
    assert tree().children(0) == ()
    assert tree().leaf_for(h("x")) == 0


def test_who_is_below_whom() -> None:
    #        0
    #      1   2
    #     3 4   5
    shape = tree(0, 0, 1, 1, 2)
    assert [shape.children(i) for i in range(6)] == [(1, 2), (3, 4), (5,), (), (), ()]
    assert shape.leaves == (3, 4, 5)


@given(trees(), st.integers(0, 20))
def test_every_client_has_one_leaf_and_reaches_what_is_above(
    shape: AggregatorTree, count: int
) -> None:
    members = roster(count, 1)
    below = [set(places(shape.subtree_clients(i, members), count)) for i in range(len(shape.nodes))]
    assert below[0] == set(range(count))
    for place, client in enumerate(members.clients):
        leaf = shape.leaf_for(client.id)
        above = {0, leaf}
        at = leaf
        while at:
            above.add(at)
            at = shape.nodes[at].parent
        assert {i for i, clients in enumerate(below) if place in clients} == above
    for i in range(len(shape.nodes)):
        children = shape.children(i)
        # What a parent relies on: children split its clients among them.
        assert sum(len(below[child]) for child in children) == (len(below[i]) if children else 0)
        found = shape.clients_below(children, members)
        assert {c: set(places(bits, count)) for c, bits in found.items()} == {
            child: below[child] for child in children
        }


def test_the_leaf_follows_from_the_first_8_bytes_of_the_id() -> None:
    shape = wide(4)
    for number, leaf in ((0, 1), (1, 2), (2, 3), (3, 1), (2**64 - 1, 1 + (2**64 - 1) % 3)):
        assert shape.leaf_for(number.to_bytes(8, "big") + h("rest")[:24]) == leaf


def test_clients_spread() -> None:
    members = Roster.of((Member(h(str(i)), h("k")) for i in range(900)), ())
    counts = Counter(wide(4).leaf_for(client.id) for client in members.clients)
    assert min(counts.values()) > 240


@given(trees())
def test_round_trip(shape: AggregatorTree) -> None:
    raw = shape.encode()
    assert AggregatorTree.decode(raw) == shape
    assert shape.hash() == blake3(raw, derive_key_context="zipnet/aggregator-tree/v2").digest()
    with refused(WireFormatError, "tree.truncated"):
        AggregatorTree.decode(raw[:-1])
    with refused(WireFormatError, "tree.trailing"):
        AggregatorTree.decode(raw + b"\0")


def test_the_hash_tells_trees_apart() -> None:
    shapes = (tree(), tree(0), tree(0, 0), tree(0, 1), tree(0, 0, 0), tree(0, 0, 1))
    assert len({shape.hash() for shape in shapes}) == len(shapes)
    root = replace(tree().nodes[0], dh_pub=h("other"))
    assert AggregatorTree((root,)).hash() != tree().hash()


def test_what_is_no_tree() -> None:
    one, two, three = (Aggregator(h(f"p{i}"), h(f"d{i}"), 0) for i in range(3))
    AggregatorTree((one, two, replace(three, parent=1)))
    for nodes, rule in (
        ((), "size"),
        ((one, one), "peers"),
        ((one, replace(two, peer=one.peer)), "peers"),
        ((replace(one, parent=1), two), "parent"),
        ((one, replace(two, parent=1)), "parent"),
        ((one, replace(two, parent=2), three), "parent"),
        ((one, replace(two, parent=-1)), "parent"),
    ):
        with refused(WireFormatError, f"tree.{rule}"):
            AggregatorTree(nodes)


def test_the_largest_tree() -> None:
    largest = wide(MAX_NODES)
    assert AggregatorTree.decode(largest.encode()) == largest
    with refused(WireFormatError, "tree.size"):
        wide(MAX_NODES + 1)
    for raw, rule in (
        (b"\x04\x01", "count"),
        (largest.encode() + b"\0", "size"),
        (b"\0\0", "size"),
    ):
        with refused(WireFormatError, f"tree.{rule}"):
            AggregatorTree.decode(raw)


@pytest.mark.parametrize("raw", [b"", b"\0"])
def test_no_bytes(raw: bytes) -> None:
    with refused(WireFormatError, "tree.truncated"):
        AggregatorTree.decode(raw)
