"""An aggregator without its shell: envelopes or children's aggregates in, one aggregate out."""

from __future__ import annotations

from zipnet.errors import Refused
from zipnet.protocol.aggregate import Aggregate
from zipnet.protocol.envelope import leaf_keys
from zipnet.protocol.fold import LeafFold, PayloadXor, TagSet, TierFold
from zipnet.protocol.header import SignedHeader
from zipnet.protocol.sheet import Sheet
from zipnet.protocol.tree import AggregatorTree
from zipnet.roles.identity import Identity


class AggregatorCore:
    """One node of the tree. It holds nothing that could harm anybody's anonymity."""

    __slots__ = ("_epoch", "_fold", "_identity", "_mac_keys", "_tag_limit", "_tags", "_xor", "leaf")

    def __init__(self, identity: Identity, xor: PayloadXor, tag_limit: int) -> None:
        self._identity = identity
        self._xor = xor
        self._tag_limit = tag_limit
        self._tags = TagSet(tag_limit)
        self._epoch = 0
        self._mac_keys: dict[tuple[bytes, bytes], bytes] = {}
        self._fold: LeafFold | TierFold | None = None
        self.leaf = False

    def begin(self, live: SignedHeader, sheet: Sheet, tree: AggregatorTree) -> None:
        """Fold the round of this header from now on. Raises Refused.

        Whether servers really signed it is no concern of an aggregator: clients don't seal others.
        """
        header = live.header
        peer = self._identity.peer
        node = next((at for at, one in enumerate(tree.nodes) if one.peer == peer), None)
        if node is None:
            raise Refused(
                "this aggregator has no place in the tree of the round",
                expected=f"one of {len(tree.nodes)} nodes",
                got=peer.hex(),
                rule="tree.place",
                hint="let the servers assign it",
            )
        if header.epoch != self._epoch:
            self._epoch, self._tags = header.epoch, TagSet(self._tag_limit)
        roster = sheet.roster(header)
        self.leaf = node in tree.leaves
        if not self.leaf:
            self._fold = TierFold(header, roster, tree, node, self._xor)
            return
        keys = {}
        for entry in sheet.clients:
            client = entry.key.member
            if tree.leaf_for(client) == node:
                known = header.instance.generation, client
                if known not in self._mac_keys:
                    self._mac_keys[known] = leaf_keys(
                        self._identity.dh,
                        entry.dh_pub,
                        header.instance,
                        client,
                        self._identity.dh_pub,
                    ).mac
                keys[client] = self._mac_keys[known]
        self._fold = LeafFold(header, roster, tree, node, keys, self._tags, self._xor)

    def absorb(self, envelope: bytes) -> None:
        """Add a client's envelope. Raises WireFormatError and Refused: the reason to answer."""
        if not isinstance(self._fold, LeafFold):
            raise _no_round("a leaf with a round in flight")
        self._fold.absorb(envelope)

    def absorb_child(self, aggregate: Aggregate) -> None:
        """Add what a child has folded. Raises Refused."""
        if not isinstance(self._fold, TierFold):
            raise _no_round("a parent with a round in flight")
        self._fold.absorb(aggregate)

    def close(self) -> Aggregate:
        """The sum, signed. Raises Refused if there is no round."""
        if self._fold is None:
            raise _no_round("a round in flight")
        return self._fold.close(self._identity.signing)


def _no_round(expected: str) -> Refused:
    return Refused(
        "this aggregator does not fold that now",
        expected=expected,
        got="none",
        rule="envelope.round",
        hint="wait for the next live header",
    )
