"""Fuzz target: aggregates, and the parent that takes them."""

from tests.zipnet.protocol.support import SHAPE, h, header, node, roster, tree
from zipnet.errors import ZipnetError
from zipnet.protocol.aggregate import Aggregate
from zipnet.protocol.fold import TierFold, check_aggregate, payload_xor
from zipnet.protocol.roster import bitmap

ROSTER, TREE = roster(), tree(0)
HEADER = header(ROSTER, aggregators=TREE)
ROOT, CHILD = (node(f"aggregator {place}").signer for place in range(2))
PAYLOAD = bytes(SHAPE.payload_bytes)
GOOD = [
    Aggregate.sign(HEADER, key, 5, bitmap([0, 3], 5), h("tags"), PAYLOAD).encode()
    for key in (ROOT, CHILD)
]
XOR = payload_xor()


def seeds() -> list[bytes]:
    return GOOD


def fuzz_one(data: bytes) -> None:
    try:
        aggregate = Aggregate.decode(data, SHAPE)
    except ZipnetError as error:
        error.diagnostics().encode()
        return
    assert aggregate.encode() == data
    try:
        check_aggregate(aggregate, HEADER, TREE, 5, 2)
    except ZipnetError as error:
        error.diagnostics().encode()
    else:
        assert data == GOOD[0]
    try:
        TierFold(HEADER, ROSTER, TREE, 0, XOR).absorb(aggregate)
    except ZipnetError as error:
        error.diagnostics().encode()
    else:
        assert data == GOOD[1]
