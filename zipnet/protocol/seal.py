"""The client: what it checks of a header, and how it seals a round (Algorithm 1).

Both are pure. That a round is sealed once, and the ratchet's state written before the envelope
leaves, is for the client's guard to see to (`protocol.guards`).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from zipnet.errors import Refused
from zipnet.protocol.envelope import RATE_TAG_BYTES, LeafKeys, seal_envelope
from zipnet.protocol.header import Header, SignedHeader
from zipnet.protocol.instance import Instance
from zipnet.protocol.pads import MAX_SKIP, KeystreamXor, Pair
from zipnet.protocol.roster import Member, Resume, Roster, resumes_hash
from zipnet.protocol.shape import Shape
from zipnet.protocol.tree import AggregatorTree


@dataclass(frozen=True, slots=True)
class Seat:
    """A server that a client has checked: whose it is, its Ed25519 key, its X25519 epoch key.

    All are 32 bytes; `operator` is an Ed25519 key.
    """

    operator: bytes
    peer: bytes
    member_key: bytes


@dataclass(frozen=True, slots=True)
class Committee:
    """The operators in force, those of them that the client's own settings waive, the servers.

    `servers` maps ids to seats. A round may lack the servers of waived operators only.
    """

    operators: tuple[bytes, ...]
    waived: frozenset[bytes]
    servers: Mapping[bytes, Seat]


def check_header(
    signed: SignedHeader,
    *,
    instance: Instance,
    shape: Shape,
    committee: Committee,
    roster: Roster,
    resumes: Sequence[Resume],
    tree: AggregatorTree,
    me: Member,
    min_participants: int,
    last_list_number: int,
    last_sealed_round: int,
) -> None:
    """All that a client checks before it seals a round. Raises Refused, each check by its own rule.

    `instance`, `shape` and `min_participants` are those of the client's configuration, `me` its id
    and epoch key; `roster`, `resumes` and `tree` came with the header; `last_list_number` and
    `last_sealed_round` are the highest so far, 0 if there were none.
    """
    header = signed.header
    _equal("instance", instance.binding.hex(), header.instance.binding.hex())
    _check_servers(header, committee)
    signed.verify({server: seat.peer for server, seat in committee.servers.items()})
    _equal("shape", str(shape), str(header.shape))
    _equal("roster", header.roster_hash.hex(), roster.hash().hex())
    _check_roster(header, committee, roster, me, min_participants)
    _equal("resumes", header.resumes_hash.hex(), resumes_hash(resumes).hex())
    _equal("tree", header.tree_hash.hex(), tree.hash().hex())
    if header.list_number < last_list_number:
        raise Refused(
            "the header is under an older list of measurements than the last one",
            expected=f"number {last_list_number} or later",
            got=str(header.list_number),
            rule="header.list",
            hint="the log was cut back, or the header is an old one",
        )
    if header.round <= last_sealed_round:
        raise Refused(
            "this round or a later one was sealed already",
            expected=f"round {last_sealed_round + 1} or later",
            got=str(header.round),
            rule="header.round",
            hint="a round is sealed once; wait for the next",
        )
    # The ratchet of a pair starts at the base round, so a client may have been away for longer.
    furthest = max(last_sealed_round, header.base_round) + MAX_SKIP
    if header.round > furthest:
        raise Refused(
            "the round is too far ahead",
            expected=f"round {furthest} or earlier",
            got=str(header.round),
            rule="header.max-skip",
            hint="take a new epoch key if the round is right",
        )


def seal(
    header: Header,
    pairs: Sequence[Pair],
    client: bytes,
    content: bytes,
    rate_tag: bytes,
    leaf: LeafKeys,
    peer_key: Ed25519PrivateKey,
    xor: KeystreamXor,
) -> bytes:
    """The encoded envelope of the client with this id for a header that `check_header` accepts.

    `pairs` are its pairs with the header's servers, in their order and advanced to its round;
    `content` is the message vector followed by the scheduling vector. The pairs are stepped: they
    can't seal this round again. Raises Refused, and then leaves them as they were.
    """
    if [(pair.client, pair.server) for pair in pairs] != [(client, s) for s in header.servers]:
        raise Refused(
            "the pairs are not those of this client with the header's servers",
            expected=", ".join(server.hex()[:16] for server in header.servers),
            got=", ".join(pair.server.hex()[:16] for pair in pairs),
            rule="seal.pairs",
        )
    for what, size, got in (
        ("content", header.shape.payload_bytes, len(content)),
        ("rate-tag", RATE_TAG_BYTES, len(rate_tag)),
    ):
        if got != size:
            raise Refused(
                f"the {what} has the wrong size",
                expected=f"{size} bytes",
                got=str(got),
                rule=f"seal.{what}",
            )
    for pair in pairs:
        pair.check_round(header.round)
    payload = bytearray(content)
    for pair in pairs:
        pair.keys(header).apply(xor, payload, header.shape)
        pair.step()
    return seal_envelope(header, client, rate_tag, payload, leaf.mac, peer_key)


def _check_servers(header: Header, committee: Committee) -> None:
    """Exactly one server of each operator, but for the waived."""
    present: set[bytes] = set()
    for server in header.servers:
        seat = committee.servers.get(server)
        if seat is None:
            raise Refused(
                "the header names a server that is not known",
                expected=", ".join(sorted(known.hex()[:16] for known in committee.servers)),
                got=server.hex()[:16],
                rule="header.unknown-server",
                hint="fetch and check the registry of servers",
            )
        if seat.operator not in committee.operators:
            raise Refused(
                "the server is not of an operator in force",
                expected=", ".join(operator.hex()[:16] for operator in committee.operators),
                got=seat.operator.hex()[:16],
                rule="header.operator",
                hint="check the operators' documents since the configuration was made",
            )
        if seat.operator in present:
            raise Refused(
                "an operator has two servers in the header",
                expected="one server of each operator",
                got=f"two of {seat.operator.hex()[:16]}",
                rule="header.operator-twice",
            )
        present.add(seat.operator)
    missing = set(committee.operators) - present - committee.waived
    if missing:
        raise Refused(
            "the header lacks servers that this client insists on",
            expected="a server of each operator that is not waived",
            got="none of " + ", ".join(sorted(operator.hex()[:16] for operator in missing)),
            rule="header.operator-missing",
            hint="wait for its return, or waive it if the other operators are trusted enough",
        )


def _check_roster(
    header: Header, committee: Committee, roster: Roster, me: Member, min_participants: int
) -> None:
    _equal(
        "roster-servers",
        ", ".join(server.hex()[:16] for server in header.servers),
        ", ".join(member.id.hex()[:16] for member in roster.servers),
    )
    for member in roster.servers:
        _equal("server-key", committee.servers[member.id].member_key.hex(), member.key.hex())
    mine = next((member for member in roster.clients if member.id == me.id), None)
    if mine is None:
        raise Refused(
            "this client is not in the roster",
            expected=me.id.hex(),
            got=f"{len(roster.clients)} others",
            rule="header.absent",
            hint="who has just registered takes part from the next epoch on",
        )
    _equal("client-key", me.key.hex(), mine.key.hex())
    if len(roster.clients) < min_participants:
        raise Refused(
            "too few clients are in the roster to hide among",
            expected=f"at least {min_participants}",
            got=str(len(roster.clients)),
            rule="header.min-participants",
            hint="wait for more clients",
        )


def _equal(what: str, expected: str, got: str) -> None:
    if got != expected:
        raise Refused(
            f"the header does not fit: {what}",
            expected=expected,
            got=got,
            rule=f"header.{what}",
            hint="the header, or what came with it, is of another time or deployment",
        )
