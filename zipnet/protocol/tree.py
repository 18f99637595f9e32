"""The tree of aggregators that the servers assign, and which client submits to which leaf.

Node 0 is the root. Clients submit to leaves; every other node folds what its children send. A
client's leaf follows from its id alone, so it stays the same for as long as the tree does, and the
rate-limit tags of one client meet in one place.

    u16 count, then for each node: peer (32) ‖ dh_pub (32) ‖ u16 parent
"""

from collections.abc import Iterable
from dataclasses import dataclass, field

from blake3 import blake3

from zipnet.errors import WireFormatError
from zipnet.protocol.codec import Reader
from zipnet.protocol.roster import Roster, bitmap

TREE = "zipnet/aggregator-tree/v2"
MAX_NODES = 1024
NODE_BYTES = 66
MAX_TREE_BYTES = 2 + MAX_NODES * NODE_BYTES


@dataclass(frozen=True, slots=True)
class Aggregator:
    """A node: its Ed25519 key, its X25519 identity key, and its parent's place in the tree."""

    peer: bytes
    dh_pub: bytes
    parent: int

    def encode(self) -> bytes:
        """66 bytes."""
        return self.peer + self.dh_pub + self.parent.to_bytes(2, "big")

    @classmethod
    def read(cls, reader: Reader) -> "Aggregator":
        """The next 66 bytes. Raises WireFormatError."""
        return cls(reader.take(32), reader.take(32), reader.u16())


@dataclass(frozen=True, slots=True)
class AggregatorTree:
    """Nodes in an order in which parents come before their children.

    `leaves` are the places of those without children. Raises WireFormatError for what is no tree.
    """

    nodes: tuple[Aggregator, ...]
    leaves: tuple[int, ...] = field(init=False, repr=False)
    _children: tuple[tuple[int, ...], ...] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        if not 1 <= len(self.nodes) <= MAX_NODES:
            raise _wrong("size", f"1 to {MAX_NODES} nodes", str(len(self.nodes)))
        if len({node.peer for node in self.nodes}) != len(self.nodes):
            raise _wrong("peers", "each aggregator once", "one that occurs twice")
        children: list[list[int]] = [[] for _ in self.nodes]
        for place, node in enumerate(self.nodes):
            if not 0 <= node.parent < max(place, 1):
                before = f"a place before {place}, or 0 for the root itself"
                raise _wrong("parent", before, str(node.parent))
            if place:
                children[node.parent].append(place)
        object.__setattr__(self, "_children", tuple(map(tuple, children)))
        leaves = tuple(place for place, below in enumerate(children) if not below)
        object.__setattr__(self, "leaves", leaves)

    def children(self, place: int) -> tuple[int, ...]:
        """The places of a node's children, ascending; none for a leaf."""
        return self._children[place]

    def leaf_for(self, client_id: bytes) -> int:
        """The place of the leaf that a client submits to.

        The first 8 bytes of the id, modulo the number of leaves: ids are hashes, so clients spread.
        """
        return self.leaves[int.from_bytes(client_id[:8], "big") % len(self.leaves)]

    def subtree_clients(self, place: int, roster: Roster) -> bytes:
        """The bitmap of the clients whose envelopes can reach this node."""
        return self.clients_below((place,), roster)[place]

    def clients_below(self, roots: Iterable[int], roster: Roster) -> dict[int, bytes]:
        """The bitmap of `subtree_clients` for several nodes, none of them above another."""
        root_of = {root: root for root in roots}
        for place, node in enumerate(self.nodes):
            if place and place not in root_of and node.parent in root_of:
                root_of[place] = root_of[node.parent]
        found: dict[int, list[int]] = {root: [] for root in root_of.values()}
        for at, client in enumerate(roster.clients):
            root = root_of.get(self.leaf_for(client.id))
            if root is not None:
                found[root].append(at)
        return {root: bitmap(bits, len(roster.clients)) for root, bits in found.items()}

    def encode(self) -> bytes:
        """The count, then the nodes."""
        return len(self.nodes).to_bytes(2, "big") + b"".join(n.encode() for n in self.nodes)

    @classmethod
    def read(cls, reader: Reader) -> "AggregatorTree":
        """The next tree. Raises WireFormatError."""
        return cls(reader.many(2, MAX_NODES, Aggregator.read))

    @classmethod
    def decode(cls, raw: bytes) -> "AggregatorTree":
        """The tree in `raw`, all of it. Raises WireFormatError."""
        reader = Reader(raw, "tree", at_most=MAX_TREE_BYTES)
        result = cls.read(reader)
        reader.done()
        return result

    def hash(self) -> bytes:
        """BLAKE3.derive_key(TREE) of the encoding: what headers name."""
        return blake3(self.encode(), derive_key_context=TREE).digest()


def _wrong(rule: str, expected: str, got: str) -> WireFormatError:
    return WireFormatError(
        "these aggregators form no tree", expected=expected, got=got, rule=f"tree.{rule}"
    )
