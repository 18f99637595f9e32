"""Whole rounds: what clients seal, aggregators fold and servers unblind is the XOR of messages."""

from dataclasses import dataclass
from functools import cache

from blake3 import blake3
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.zipnet.protocol.support import (
    INSTANCE,
    SHAPE,
    Node,
    h,
    header,
    node,
    nodes,
    roster,
    tree,
)
from zipnet.protocol.aggregate import Aggregate
from zipnet.protocol.envelope import leaf_keys
from zipnet.protocol.fold import LeafFold, TagSet, TierFold, check_aggregate, payload_xor
from zipnet.protocol.header import Header
from zipnet.protocol.pads import Pair, keystream_xor, pair_secret
from zipnet.protocol.precompute import RoundPads
from zipnet.protocol.roster import places
from zipnet.protocol.seal import seal
from zipnet.protocol.tree import AggregatorTree
from zipnet.protocol.unblind import check_reveal, commitment, finalize

XOR = payload_xor()
PADS = keystream_xor()


@cache
def exported(owner: Node, client: Node, server: Node) -> bytes:
    secret = pair_secret(INSTANCE.binding, owner.epoch, client.member, server.member, 5)
    return secret.export()


def pair(header_: Header, owner: Node, client: Node, server: Node) -> Pair:
    """The pair as one of its ends has it at the header's round."""
    result = Pair.restore(exported(owner, client, server))
    result.advance(header_.round, ())
    return result


@dataclass(frozen=True)
class Round:
    """Who is there, and what each says; the absent send nothing."""

    clients: list[Node]
    servers: list[Node]
    shape: AggregatorTree
    present: list[Node]
    # Aggregators that never answer: all below them is absent too.
    silent: frozenset[int]

    @property
    def header(self) -> Header:
        members = roster(len(self.clients), len(self.servers))
        return header(members, aggregators=self.shape)

    def content(self, client: Node) -> bytes:
        return blake3(h(f"content {client.name}")).digest(length=SHAPE.payload_bytes)

    def envelope(self, client: Node) -> bytes:
        leaf = node(f"aggregator {self.shape.leaf_for(client.id)}")
        one = self.header
        return seal(
            one,
            [pair(one, client, client, server) for server in self.servers],
            client.id,
            self.content(client),
            h(f"tag {client.name}")[:16],
            leaf_keys(client.identity, leaf.dh_pub, INSTANCE, client.id, leaf.dh_pub),
            client.signer,
            PADS,
        )

    def fold(self, place: int) -> Aggregate:
        """What the node at this place of the tree signs, with all that is below it."""
        own, one = node(f"aggregator {place}"), self.header
        members = roster(len(self.clients), len(self.servers))
        if place in self.shape.leaves:
            keys = {
                client.id: leaf_keys(
                    own.identity, client.dh_pub, INSTANCE, client.id, own.dh_pub
                ).mac
                for client in self.clients
            }
            leaf = LeafFold(one, members, self.shape, place, keys, TagSet(99), XOR)
            for client in self.present:
                if self.shape.leaf_for(client.id) == place:
                    leaf.absorb(self.envelope(client))
            return leaf.close(own.signer)
        tier = TierFold(one, members, self.shape, place, XOR)
        for child in self.shape.children(place):
            if child not in self.silent:
                tier.absorb(Aggregate.decode(self.fold(child).encode(), SHAPE))
        return tier.close(own.signer)

    def partials(self, aggregate: Aggregate) -> list[bytes]:
        result = []
        for server in self.servers:
            ends = [pair(self.header, server, client, server) for client in self.clients]
            pads = RoundPads.prepare(self.header, ends, PADS)
            result.append(pads.partial(aggregate.participants))
        return result


@st.composite
def rounds(draw: st.DrawFn) -> Round:
    clients = nodes("client", draw(st.integers(1, 9)))
    parents = [draw(st.integers(0, place)) for place in range(draw(st.integers(0, 5)))]
    present = [client for client in clients if draw(st.integers(0, 3))]
    silent = draw(st.frozensets(st.integers(1, 5), max_size=1))
    servers = nodes("server", draw(st.integers(1, 5)))
    return Round(clients, servers, tree(*parents), present, silent)


def xor(*parts: bytes) -> bytes:
    total = bytearray(SHAPE.payload_bytes)
    for part in parts:
        XOR(total, part)
    return bytes(total)


@settings(max_examples=60, deadline=None)
@given(rounds(), st.data())
def test_a_round_broadcasts_the_sum_of_its_messages(one: Round, data: st.DataObject) -> None:
    aggregate = one.fold(0)
    check_aggregate(aggregate, one.header, one.shape, len(one.clients), 0)
    taken = [one.clients[place] for place in places(aggregate.participants, len(one.clients))]
    assert set(map(id, taken)) <= set(map(id, one.present))
    if not one.silent & set(range(len(one.shape.nodes))):
        assert taken == one.present
    partials = one.partials(aggregate)
    for server, partial in zip(one.servers, partials, strict=True):
        fixed = INSTANCE, one.header.round, aggregate.digest, server.id, partial
        check_reveal(commitment(*fixed), *fixed, SHAPE)
    broadcast = finalize(aggregate.payload, partials)
    assert broadcast == xor(*map(one.content, taken))

    if not taken:
        return
    which = data.draw(st.integers(0, len(partials) - 1))
    # One server's pads are left in: nothing can be read.
    assert (
        finalize(aggregate.payload, [*partials[:which], *partials[which + 1 :], xor()]) != broadcast
    )
    damaged = bytearray(partials[which])
    damaged[data.draw(st.integers(0, len(damaged) - 1))] ^= data.draw(st.integers(1, 255))
    wrong = [*partials[:which], bytes(damaged), *partials[which + 1 :]]
    assert finalize(aggregate.payload, wrong) != broadcast


@settings(max_examples=15, deadline=None)
@given(rounds())
def test_pads_of_other_participants_do_not_unblind(one: Round) -> None:
    aggregate = one.fold(0)
    right = finalize(aggregate.payload, one.partials(aggregate))
    bits = bytearray(aggregate.participants)
    bits[0] ^= 1
    other = Aggregate.sign(
        one.header,
        node("aggregator 0").signer,
        len(one.clients),
        bytes(bits),
        aggregate.tags_hash,
        aggregate.payload,
    )
    assert finalize(aggregate.payload, one.partials(other)) != right
