"""What tests of the protocol share: members, rosters, headers and trees, always the same."""

import hashlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

from zipnet.errors import ZipnetError
from zipnet.protocol.header import NO_HASH, Header, SignedHeader
from zipnet.protocol.instance import Instance
from zipnet.protocol.record import Record, SignedRecord
from zipnet.protocol.roster import Member, Resume, Roster, bitmap, resumes_hash
from zipnet.protocol.shape import Shape
from zipnet.protocol.tree import Aggregator, AggregatorTree


def h(text: str) -> bytes:
    """32 bytes that follow from `text`."""
    return hashlib.sha256(text.encode()).digest()


INSTANCE = Instance(h("deployment"), h("generation"))
OTHER_INSTANCE = Instance(h("deployment"), h("next generation"))
SHAPE = Shape(num_slots=4, slot_bytes=24, num_sched_slots=16)
ROUND = 7


@contextmanager
def refused(kind: type[ZipnetError], rule: str) -> Iterator[None]:
    """The block must raise exactly this kind of error, by this rule, and say what was expected."""
    with pytest.raises(ZipnetError) as caught:
        yield
    assert (type(caught.value), caught.value.rule) == (kind, rule)
    assert caught.value.expected


@dataclass(frozen=True, slots=True)
class Node:
    """A member with all of its secrets. `id` stands in for one made from the identity key."""

    name: str
    id: bytes
    signer: Ed25519PrivateKey
    identity: X25519PrivateKey
    epoch: X25519PrivateKey

    @property
    def peer(self) -> bytes:
        return self.signer.public_key().public_bytes_raw()

    @property
    def dh_pub(self) -> bytes:
        return self.identity.public_key().public_bytes_raw()

    @property
    def member(self) -> Member:
        return Member(self.id, self.epoch.public_key().public_bytes_raw())


@cache
def node(name: str) -> Node:
    return Node(
        name,
        h(f"{name} id"),
        Ed25519PrivateKey.from_private_bytes(h(f"{name} peer")),
        X25519PrivateKey.from_private_bytes(h(f"{name} identity")),
        X25519PrivateKey.from_private_bytes(h(f"{name} epoch")),
    )


def nodes(kind: str, count: int) -> list[Node]:
    """So many nodes of a kind, in the order of their ids, which is that of a roster."""
    return sorted((node(f"{kind} {i}") for i in range(count)), key=lambda n: n.id)


def roster(clients: int = 5, servers: int = 2) -> Roster:
    return Roster.of(
        (n.member for n in nodes("client", clients)), (n.member for n in nodes("server", servers))
    )


def tree(*parents: int) -> AggregatorTree:
    """The root, then a node for each of `parents`."""
    return AggregatorTree(
        tuple(
            Aggregator(node(f"aggregator {i}").peer, node(f"aggregator {i}").dh_pub, parent)
            for i, parent in enumerate((0, *parents))
        )
    )


def header(
    members: Roster | None = None,
    *,
    instance: Instance = INSTANCE,
    round_number: int = ROUND,
    epoch: int = 3,
    shape: Shape = SHAPE,
    schedule_hash: bytes = NO_HASH,
    previous_record: bytes = NO_HASH,
    list_number: int = 1,
    aggregators: AggregatorTree | None = None,
    base_round: int = 5,
    resumes: Sequence[Resume] = (),
) -> Header:
    members = members or roster()
    return Header(
        instance=instance,
        round=round_number,
        epoch=epoch,
        shape=shape,
        servers=tuple(member.id for member in members.servers),
        roster_hash=members.hash(),
        schedule_hash=schedule_hash,
        previous_record=previous_record,
        log_seq=100,
        log_head=h("log head"),
        list_number=list_number,
        list_hash=h("list"),
        tree_hash=(aggregators or tree()).hash(),
        base_round=base_round,
        resumes_hash=resumes_hash(resumes),
        time_ms=1_800_000_000_000,
    )


def server_of(server_id: bytes) -> Node:
    """The server of `nodes` with this id."""
    return next(n for n in nodes("server", 64) if n.id == server_id)


def signed(one: Header) -> SignedHeader:
    """The header with the signatures of all of its servers."""
    return SignedHeader(one, tuple(one.sign(server_of(s).signer) for s in one.servers))


def peers(one: Header) -> dict[bytes, bytes]:
    """Server ids to Ed25519 keys."""
    return {server: server_of(server).peer for server in one.servers}


def record(
    one: Header | None = None, payload: bytes | None = None, present: Sequence[int] = (0, 2)
) -> Record:
    """A record over 5 clients."""
    one = one or header()
    return Record(
        header=one,
        clients=5,
        participants=bitmap(present, 5),
        aggregate=h("aggregate"),
        commitments=tuple(h(f"commitment {i}") for i in range(len(one.servers))),
        payload=bytes(one.shape.payload_bytes) if payload is None else payload,
    )


def signed_record(one: Record | None = None) -> SignedRecord:
    """The record with the signatures of all servers of its header."""
    one = one or record()
    return SignedRecord(one, tuple(one.sign(server_of(s).signer) for s in one.header.servers))
