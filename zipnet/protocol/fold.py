"""The aggregator: folding envelopes at a leaf, and children's aggregates above (Algorithm 2).

Both kinds of node start from zero and add in place, so the first child is as any other, and only
`close` signs. What is refused leaves a fold as it was. Folds are of one round; the tags of rate
limiting (`TagSet`) are of one epoch.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from blake3 import blake3
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from zipnet.errors import Refused
from zipnet.protocol.aggregate import Aggregate
from zipnet.protocol.envelope import (
    CLIENT_AT,
    PAYLOAD_AT,
    RATE_TAG_AT,
    TRAILER_BYTES,
    Envelope,
    authenticate,
    common_prefix,
    envelope_bytes,
)
from zipnet.protocol.header import Header
from zipnet.protocol.roster import Roster, bitmap_bytes
from zipnet.protocol.tree import AggregatorTree

TAGS = "zipnet/tags/v2"
PayloadXor = Callable[[bytearray, bytes | memoryview], None]


def payload_xor() -> PayloadXor:
    """XOR of the second buffer into the first, of the same size: by numpy where there is one."""
    try:
        import numpy as np  # noqa: PLC0415
    except ImportError:
        return integer_xor

    def numpy_xor(total: bytearray, piece: bytes | memoryview) -> None:
        into = np.frombuffer(total, np.uint8)
        np.bitwise_xor(into, np.frombuffer(piece, np.uint8), out=into)

    return numpy_xor


def integer_xor(total: bytearray, piece: bytes | memoryview) -> None:
    """As `payload_xor`, with Python's integers: some 30 times slower than numpy."""
    mixed = int.from_bytes(total, "little") ^ int.from_bytes(piece, "little")
    total[:] = mixed.to_bytes(len(total), "little")


class TagSet:
    """The rate tags (16 bytes each) that a leaf has taken in one epoch, at most `limit`."""

    __slots__ = ("_limit", "_tags")

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._tags: set[bytes] = set()

    def __contains__(self, tag: object) -> bool:
        return tag in self._tags

    def __len__(self) -> int:
        return len(self._tags)

    def add(self, tag: bytes) -> None:
        """Take a tag for good. Raises Refused if it was taken before, or if the set is full."""
        if tag in self._tags:
            raise Refused(
                "the rate tag was used before",
                expected="one that this epoch has not seen",
                got=tag.hex(),
                rule="envelope.rate-tag",
                hint="the client has spent its messages of this epoch",
            )
        if len(self._tags) >= self._limit:
            raise Refused(
                "the leaf takes no more envelopes in this epoch",
                expected=f"at most {self._limit} rate tags",
                got="one more",
                rule="envelope.tags-full",
                hint="wait for the next epoch",
            )
        self._tags.add(tag)


@dataclass(slots=True)
class Total:
    """What one node has added up: the XOR of payloads, and the bitmap of their clients."""

    payload: bytearray
    bits: bytearray

    @classmethod
    def zero(cls, header: Header, clients: int) -> "Total":
        """Nothing yet."""
        return cls(bytearray(header.shape.payload_bytes), bytearray(bitmap_bytes(clients)))


def absorb_payload(total: Total, place: int, payload: memoryview, xor: PayloadXor) -> None:
    """Add one client's payload in place; time linear in its size, whatever the roster's."""
    xor(total.payload, payload)
    total.bits[place >> 3] |= 1 << (place & 7)


class LeafFold:
    """One round at a leaf. `mac_keys` are those of `envelope.leaf_keys` by client id.

    Raises Refused for a roster or tree that is not the header's, or a node that is no leaf.
    """

    __slots__ = (
        "_header",
        "_mac_keys",
        "_macs",
        "_node",
        "_places",
        "_prefix",
        "_result",
        "_roster",
        "_round_tags",
        "_size",
        "_tags",
        "_total",
        "_tree",
        "_xor",
    )

    def __init__(
        self,
        header: Header,
        roster: Roster,
        tree: AggregatorTree,
        node: int,
        mac_keys: Mapping[bytes, bytes],
        tags: TagSet,
        xor: PayloadXor,
    ) -> None:
        _check_node(header, roster, tree, node, leaf=True)
        self._header = header
        self._roster = roster
        self._tree = tree
        self._node = node
        self._mac_keys = mac_keys
        self._tags = tags
        self._xor = xor
        self._places = {
            client.id: place
            for place, client in enumerate(roster.clients)
            if tree.leaf_for(client.id) == node
        }
        self._prefix = common_prefix(header)
        self._size = envelope_bytes(header.shape)
        self._total = Total.zero(header, len(roster.clients))
        self._macs: dict[int, bytes] = {}
        self._round_tags: list[bytes] = []
        self._result: Aggregate | None = None

    @property
    def closed(self) -> bool:
        """Whether the sum is signed, and nothing more is taken."""
        return self._result is not None

    @property
    def complete(self) -> bool:
        """Whether every client of this leaf is in."""
        return len(self._macs) == len(self._places)

    def admit(self, raw: bytes) -> tuple[int, bytes]:
        """The place in the roster, and the MAC key, of the client that an envelope names.

        Checks all that needs no cryptography. Raises WireFormatError or Refused.
        """
        if len(raw) != self._size or not raw.startswith(self._prefix):
            raise _misdirected(Envelope.decode(raw, self._header.shape), self._header)
        client = raw[CLIENT_AT:RATE_TAG_AT]
        place = self._places.get(client)
        if place is None:
            raise self._stranger(client)
        key = self._mac_keys.get(client)
        if key is None:
            raise Refused(
                "the leaf has no key of this client yet",
                expected="a client whose identity key the leaf has seen",
                got=client.hex(),
                rule="envelope.no-key",
                hint="let the leaf catch up with the registry",
            )
        return place, key

    def absorb(self, raw: bytes) -> None:
        """Add one encoded envelope. The same one again changes nothing, even after `close`.

        Time is linear in the payload, whatever the number of clients. Raises WireFormatError or
        Refused, with the rules `envelope.*`.
        """
        place, key = self.admit(raw)
        self._take(place, authenticate(raw, key), raw)

    def _take(self, place: int, mac: bytes, raw: bytes) -> None:
        """What `absorb` does after the MAC: apart, so that a benchmark can tell what that costs."""
        known = self._macs.get(place)
        if known == mac:
            return
        if known is not None:
            raise Refused(
                "the client has sealed this round twice",
                expected=f"the envelope with MAC {known.hex()}",
                got=mac.hex(),
                rule="envelope.double-seal",
                hint="two copies of the client run, or an old state of it",
            )
        if self._result is not None:
            raise _late("envelope")
        tag = raw[RATE_TAG_AT:PAYLOAD_AT]
        self._tags.add(tag)
        self._round_tags.append(tag)
        self._macs[place] = mac
        absorb_payload(self._total, place, memoryview(raw)[PAYLOAD_AT:-TRAILER_BYTES], self._xor)

    def close(self, key: Ed25519PrivateKey) -> Aggregate:
        """The sum, signed by this node's peer key; nothing more is taken. The same every time.

        Raises Refused for another key.
        """
        if self._result is None:
            peer = self._tree.nodes[self._node].peer
            tags_hash = _tags_hash(self._round_tags)
            self._result = _sign(self._header, self._roster, self._total, tags_hash, peer, key)
        return self._result

    def _stranger(self, client: bytes) -> Refused:
        if all(client != member.id for member in self._roster.clients):
            return Refused(
                "the client is not in the roster of this round",
                expected="a client of the epoch",
                got=client.hex(),
                rule="envelope.unknown-client",
                hint="a client that has just registered takes part from the next epoch on",
            )
        return Refused(
            "the client belongs to another leaf",
            expected=f"an envelope at node {self._tree.leaf_for(client)}",
            got=f"one at node {self._node}",
            rule="envelope.not-assigned",
            hint="submit to the leaf that the tree in the header gives",
        )


class TierFold:
    """One round at a node with children, the root among them.

    Raises Refused for a roster or tree that is not the header's, or a node that is a leaf.
    """

    __slots__ = (
        "_allowed",
        "_digests",
        "_header",
        "_node",
        "_result",
        "_roster",
        "_tags",
        "_total",
        "_tree",
        "_xor",
    )

    def __init__(
        self, header: Header, roster: Roster, tree: AggregatorTree, node: int, xor: PayloadXor
    ) -> None:
        _check_node(header, roster, tree, node, leaf=False)
        self._header = header
        self._roster = roster
        self._tree = tree
        self._node = node
        self._xor = xor
        self._allowed = {
            tree.nodes[child].peer: int.from_bytes(below, "big")
            for child, below in tree.clients_below(tree.children(node), roster).items()
        }
        self._total = Total.zero(header, len(roster.clients))
        self._digests: dict[bytes, bytes] = {}
        self._tags: list[bytes] = []
        self._result: Aggregate | None = None

    @property
    def closed(self) -> bool:
        """Whether the sum is signed, and nothing more is taken."""
        return self._result is not None

    @property
    def complete(self) -> bool:
        """Whether every child is in."""
        return len(self._digests) == len(self._allowed)

    def absorb(self, aggregate: Aggregate) -> None:
        """Add what a child has folded. The same again changes nothing, even after `close`.

        Raises Refused, with the rules `aggregate.*` and `signature`.
        """
        aggregate.check_round(self._header, len(self._roster.clients))
        child = aggregate.aggregator
        allowed = self._allowed.get(child)
        if allowed is None:
            raise Refused(
                "the aggregate is not from a child of this node",
                expected=f"one of the {len(self._allowed)} children of node {self._node}",
                got=child.hex(),
                rule="aggregate.child",
                hint="the tree in the header says who submits to whom",
            )
        aggregate.verify()
        known = self._digests.get(child)
        if known == aggregate.digest:
            return
        if known is not None:
            raise Refused(
                "the child has closed this round twice",
                expected=f"the aggregate {known.hex()}",
                got=aggregate.digest.hex(),
                rule="aggregate.again",
                hint="two copies of the aggregator run with one key",
            )
        if self._result is not None:
            raise _late("aggregate")
        bits = int.from_bytes(aggregate.participants, "big")
        before = int.from_bytes(self._total.bits, "big")
        if twice := bits & before:
            raise Refused(
                "clients would be in the sum twice, and so cancel",
                expected="clients that no other child has sent",
                got=f"{twice.bit_count()} clients of another child",
                rule="aggregate.overlap",
                hint="the child folds envelopes of clients that are not its own",
            )
        if foreign := bits & ~allowed:
            raise Refused(
                "the child has folded envelopes of clients that are not its own",
                expected="clients that the tree assigns below this child",
                got=f"{foreign.bit_count()} others",
                rule="aggregate.foreign-client",
                hint="the child works with another tree",
            )
        self._digests[child] = aggregate.digest
        self._tags.append(child + aggregate.tags_hash)
        self._total.bits[:] = (before | bits).to_bytes(len(self._total.bits), "big")
        self._xor(self._total.payload, aggregate.payload)

    def close(self, key: Ed25519PrivateKey) -> Aggregate:
        """As `LeafFold.close`."""
        if self._result is None:
            peer = self._tree.nodes[self._node].peer
            tags_hash = _tags_hash(self._tags)
            self._result = _sign(self._header, self._roster, self._total, tags_hash, peer, key)
        return self._result


def check_aggregate(
    aggregate: Aggregate,
    header: Header,
    tree: AggregatorTree,
    clients: int,
    min_participants: int,
) -> None:
    """All that a server checks of the sum that it is to unblind; `clients` are in the roster.

    The minimum protects against isolating a client among few. Raises Refused.
    """
    if tree.hash() != header.tree_hash:
        raise _not_of_header("tree", header.tree_hash, tree.hash())
    aggregate.check_round(header, clients)
    if aggregate.aggregator != tree.nodes[0].peer:
        raise Refused(
            "the aggregate is not from the root",
            expected=tree.nodes[0].peer.hex(),
            got=aggregate.aggregator.hex(),
            rule="aggregate.root",
            hint="only the root of the tree in the header submits to the servers",
        )
    aggregate.verify()
    if aggregate.count() < min_participants:
        raise Refused(
            "too few clients are in the aggregate",
            expected=f"at least {min_participants}",
            got=str(aggregate.count()),
            rule="aggregate.min-participants",
            hint="wait for more clients, or see why their envelopes do not arrive",
        )


def _check_node(
    header: Header, roster: Roster, tree: AggregatorTree, node: int, *, leaf: bool
) -> None:
    if roster.hash() != header.roster_hash:
        raise _not_of_header("roster", header.roster_hash, roster.hash())
    if tree.hash() != header.tree_hash:
        raise _not_of_header("tree", header.tree_hash, tree.hash())
    if not 0 <= node < len(tree.nodes) or (node in tree.leaves) != leaf:
        raise Refused(
            "this fold is for another kind of node",
            expected="a leaf" if leaf else "a node with children",
            got=f"node {node} of {len(tree.nodes)}",
            rule="fold.node",
        )


def _not_of_header(what: str, expected: bytes, got: bytes) -> Refused:
    return Refused(
        f"the {what} is not the one that the header names",
        expected=expected.hex(),
        got=got.hex(),
        rule=f"fold.{what}",
        hint=f"fetch the {what} of this epoch",
    )


def _misdirected(envelope: Envelope, header: Header) -> Refused:
    """Why an envelope that is well-formed does not begin as those of this round."""
    own = header.instance
    rule, expected, got = next(
        (rule, expected, got)
        for rule, expected, got in (
            ("deployment", own.deployment_id.hex(), envelope.instance.deployment_id.hex()),
            ("generation", own.generation.hex(), envelope.instance.generation.hex()),
            ("round", str(header.round), str(envelope.round)),
            ("header", header.id.hex(), envelope.header_id.hex()),
        )
        if got != expected
    )
    return Refused(
        "the envelope is not for this round",
        expected=f"{rule} {expected}",
        got=got,
        rule=f"envelope.{rule}",
        hint="the client sealed under another header",
    )


def _late(what: str) -> Refused:
    return Refused(
        f"the {what} came after the deadline of this node",
        expected=f"an {what} before the sum is signed",
        got="one after",
        rule=f"{what}.late",
        hint="nothing to do: its clients count as absent in this round",
    )


def _tags_hash(parts: list[bytes]) -> bytes:
    """BLAKE3.derive_key(TAGS) of the parts, sorted: a leaf's rate tags, or (child, its hash)."""
    return blake3(b"".join(sorted(parts)), derive_key_context=TAGS).digest()


def _sign(
    header: Header,
    roster: Roster,
    total: Total,
    tags_hash: bytes,
    peer: bytes,
    key: Ed25519PrivateKey,
) -> Aggregate:
    if (own := key.public_key().public_bytes_raw()) != peer:
        raise Refused(
            "this key is not that of the node",
            expected=peer.hex(),
            got=own.hex(),
            rule="fold.key",
            hint="the tree names another aggregator at this place",
        )
    clients, bits = len(roster.clients), bytes(total.bits)
    return Aggregate.sign(header, key, clients, bits, tags_hash, bytes(total.payload))
