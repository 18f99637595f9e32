"""Fuzz target: aggregator trees."""

from tests.zipnet.protocol.support import h, roster, tree
from zipnet.errors import ZipnetError
from zipnet.protocol.tree import AggregatorTree

ROSTER = roster(5, 1)


def seeds() -> list[bytes]:
    return [tree(*parents).encode() for parents in ((), (0,), (0, 0), (0, 1, 1, 0))]


def fuzz_one(data: bytes) -> None:
    try:
        decoded = AggregatorTree.decode(data)
    except ZipnetError as error:
        error.diagnostics().encode()
        return
    assert decoded.encode() == data
    assert decoded.leaf_for(h("client")) in decoded.leaves
    assert decoded.subtree_clients(0, ROSTER) == b"\x1f"
