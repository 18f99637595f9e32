"""An aggregator without its shell: envelopes or children's aggregates in, one aggregate out."""

from __future__ import annotations

from dataclasses import dataclass, field

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from zipnet.errors import Refused
from zipnet.protocol.aggregate import Aggregate
from zipnet.protocol.envelope import CLIENT_AT, RATE_TAG_AT, LeafKeys, authenticate, leaf_keys
from zipnet.protocol.fold import LeafFold, PayloadXor, TagSet, TierFold
from zipnet.protocol.header import Header, SignedHeader
from zipnet.protocol.receipts import MAX_RULE, Receipt, Status, seal_receipt
from zipnet.protocol.sheet import Sheet
from zipnet.protocol.tree import AggregatorTree
from zipnet.roles.identity import Draw, Identity

LATE = "envelope.late"
# What a fold refuses only after the MAC: who breaks these is the client that the envelope names.
PROVEN = frozenset({"envelope.double-seal", "envelope.rate-tag", "envelope.tags-full", LATE})


@dataclass(frozen=True, slots=True)
class Due:
    """A receipt to make: for whom, under which keys, and what it says."""

    client: bytes
    dh_pub: bytes
    key: bytes = field(repr=False)
    receipt: Receipt


@dataclass(frozen=True, slots=True)
class Receipts:
    """The receipts of a round at one leaf, one for every client of it, yet to be sealed."""

    header: Header
    node: int
    due: tuple[Due, ...]
    maker: Ed25519PrivateKey = field(repr=False)

    def seal(self, place: int, draw: Draw) -> bytes:
        """The entry at this place of `due`, under a key of its own."""
        one, header = self.due[place], self.header
        return seal_receipt(
            one.receipt,
            header.instance,
            header.round,
            one.client,
            one.dh_pub,
            one.key,
            draw(32),
            self.maker,
        )


class AggregatorCore:
    """One node of the tree. It holds nothing that could harm anybody's anonymity."""

    __slots__ = (
        "_clients",
        "_epoch",
        "_fold",
        "_header",
        "_identity",
        "_keys",
        "_lost",
        "_lost_early",
        "_node",
        "_rules",
        "_tag_limit",
        "_tags",
        "_taken",
        "_xor",
        "leaf",
    )

    def __init__(self, identity: Identity, xor: PayloadXor, tag_limit: int) -> None:
        self._identity = identity
        self._xor = xor
        self._tag_limit = tag_limit
        self._tags = TagSet(tag_limit)
        self._epoch = 0
        self._keys: dict[tuple[bytes, bytes], LeafKeys] = {}
        self._fold: LeafFold | TierFold | None = None
        self._header: Header | None = None
        self._node = 0
        # Of the leaf's clients in this round: identity key and keys; who is in; rules of the rest.
        self._clients: dict[bytes, tuple[bytes, LeafKeys]] = {}
        self._taken: set[bytes] = set()
        self._rules: dict[bytes, str] = {}
        self._lost = self._lost_early = False
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
        self._fold, self._header, self._node = None, header, node
        self._clients, self._taken, self._rules = {}, set(), {}
        self._lost, self._lost_early = self._lost_early, False
        self.leaf = node in tree.leaves
        if not self.leaf:
            self._fold = TierFold(header, roster, tree, node, self._xor)
            return
        for entry in sheet.clients:
            client = entry.key.member
            if tree.leaf_for(client) == node:
                known = header.instance.generation, client
                if known not in self._keys:
                    self._keys[known] = leaf_keys(
                        self._identity.dh,
                        entry.dh_pub,
                        header.instance,
                        client,
                        self._identity.dh_pub,
                    )
                self._clients[client] = entry.dh_pub, self._keys[known]
        keys = {client: both.mac for client, (_, both) in self._clients.items()}
        self._fold = LeafFold(header, roster, tree, node, keys, self._tags, self._xor)

    def absorb(self, envelope: bytes) -> None:
        """Add a client's envelope. Raises WireFormatError and Refused: the reason to answer."""
        if not isinstance(self._fold, LeafFold):
            raise _no_round("a leaf with a round in flight")
        client = bytes(envelope[CLIENT_AT:RATE_TAG_AT])
        try:
            self._fold.absorb(envelope)
        except Refused as error:
            if self._is_from(client, envelope, error.rule):
                self._rules.setdefault(client, error.rule)
            raise
        self._taken.add(client)

    def absorb_child(self, aggregate: Aggregate) -> None:
        """Add what a child has folded. Raises Refused."""
        if not isinstance(self._fold, TierFold):
            raise _no_round("a parent with a round in flight")
        self._fold.absorb(aggregate)

    def lose(self) -> None:
        """Envelopes were lost before they got here: whose, nobody knows."""
        if self._fold is None or self._fold.closed:
            self._lost_early = True
        else:
            self._lost = True

    def receipts(self) -> Receipts | None:
        """What to tell each client of this leaf about its envelope; None if this is no leaf.

        A client that this leaf has not heard of counts as late if any envelope was lost.
        """
        if not isinstance(self._fold, LeafFold) or self._header is None:
            return None
        due = tuple(
            Due(client, dh_pub, keys.receipt, self._receipt(client))
            for client, (dh_pub, keys) in self._clients.items()
        )
        return Receipts(self._header, self._node, due, self._identity.signing)

    def _receipt(self, client: bytes) -> Receipt:
        if client in self._taken:
            return Receipt(Status.TAKEN)
        rule = self._rules.get(client)
        if rule is None:
            return Receipt(Status.LATE if self._lost else Status.ABSENT)
        return Receipt(Status.LATE) if rule == LATE else Receipt(Status.REFUSED, rule[:MAX_RULE])

    def _is_from(self, client: bytes, envelope: bytes, rule: str) -> bool:
        """Whether a refused envelope is about this round and from the client that it names.

        Else anybody could write a refusal into another's receipt.
        """
        if rule in PROVEN:
            return True
        if rule != "envelope.header" or client not in self._clients:
            return False
        try:
            authenticate(envelope, self._clients[client][1].mac)
        except Refused:
            return False
        return True

    @property
    def complete(self) -> bool:
        """Whether nobody is left to wait for in this round."""
        return self._fold is None or self._fold.complete

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
