"""The client: what it checks of a header, what it seals."""

from dataclasses import replace
from typing import Any

import pytest

from tests.zipnet.protocol.support import (
    INSTANCE,
    OTHER_INSTANCE,
    ROUND,
    SHAPE,
    Node,
    h,
    header,
    node,
    nodes,
    refused,
    roster,
    signed,
    tree,
)
from zipnet.errors import Refused
from zipnet.protocol.envelope import Envelope, LeafKeys, audit, authenticate
from zipnet.protocol.header import Header, SignedHeader
from zipnet.protocol.pads import MAX_SKIP, Pair, keystream_xor, pair_secret
from zipnet.protocol.roster import Member, Resume, Roster
from zipnet.protocol.seal import Committee, Seat, check_header, seal
from zipnet.protocol.shape import Shape

CLIENT = nodes("client", 5)[2]
SERVERS = nodes("server", 3)
ROSTER = roster(5, 3)
LEAF = LeafKeys(h("mac"), h("receipt"))
CONTENT = bytes(i & 0xFF for i in range(SHAPE.payload_bytes))
RESUMES = (Resume(6, CLIENT.id, h("nonce")),)
TREE = tree(0, 0)
XOR = keystream_xor()


def operator(server: Node) -> bytes:
    return h(f"operator of {server.name}")


def seat(server: Node) -> Seat:
    return Seat(operator(server), server.peer, server.member.key)


COMMITTEE = Committee(
    tuple(map(operator, SERVERS)), frozenset(), {server.id: seat(server) for server in SERVERS}
)


def good(members: Roster = ROSTER, **changes: Any) -> Header:
    return header(members, aggregators=TREE, resumes=RESUMES, **changes)


def check(one: Header | SignedHeader, **changes: Any) -> None:
    arguments: dict[str, Any] = {
        "instance": INSTANCE,
        "shape": SHAPE,
        "committee": COMMITTEE,
        "roster": ROSTER,
        "resumes": RESUMES,
        "tree": TREE,
        "me": CLIENT.member,
        "min_participants": 5,
        "last_list_number": 1,
        "last_sealed_round": 6,
    }
    check_header(one if isinstance(one, SignedHeader) else signed(one), **arguments | changes)


def test_a_good_header() -> None:
    check(good())
    check(good(), last_sealed_round=0, min_participants=1, last_list_number=0)
    check(good(list_number=2))


@pytest.mark.parametrize(
    ("change", "rule"),
    [
        ({"instance": OTHER_INSTANCE}, "instance"),
        ({"shape": Shape(4, 25, 16)}, "shape"),
        ({"resumes": ()}, "resumes"),
        ({"resumes": (*RESUMES, *RESUMES)}, "resumes"),
        ({"tree": tree(0)}, "tree"),
        ({"last_list_number": 2}, "list"),
        ({"last_sealed_round": 7}, "round"),
        ({"last_sealed_round": 8}, "round"),
        ({"min_participants": 6}, "min-participants"),
        ({"me": node("other").member}, "absent"),
        ({"me": Member(CLIENT.id, h("old key"))}, "client-key"),
        ({"roster": roster(4, 3)}, "roster"),
    ],
)
def test_refusals(change: dict[str, Any], rule: str) -> None:
    with refused(Refused, f"header.{rule}"):
        check(good(), **change)


def test_far_rounds() -> None:
    base = MAX_SKIP + 6
    check(good(round_number=base))
    with refused(Refused, "header.max-skip"):
        check(good(round_number=base + 1))
    # Who was away for long comes back with the keys of a later epoch.
    far = 10 * MAX_SKIP
    check(good(round_number=far, base_round=far - MAX_SKIP))
    with refused(Refused, "header.max-skip"):
        check(good(round_number=far, base_round=far - MAX_SKIP - 1))


def test_all_servers_must_have_signed() -> None:
    one = good()
    signatures = signed(one).signatures
    with refused(Refused, "header.signatures"):
        check(SignedHeader(one, signatures[:2]))
    for wrong in ((bytes(64), *signatures[1:]), signatures[::-1]):
        with refused(Refused, "signature"):
            check(SignedHeader(one, wrong))
    with refused(Refused, "signature"):
        check(SignedHeader(good(round_number=8), signatures))


def test_exactly_one_server_of_each_operator() -> None:
    fewer = roster(5, 2)
    missing = next(operator(s) for s in SERVERS if s.member not in fewer.servers)
    with refused(Refused, "header.operator-missing"):
        check(good(fewer), roster=fewer)
    waiving = replace(COMMITTEE, waived=frozenset({missing}))
    check(good(fewer), roster=fewer, committee=waiving)
    # Waiving one operator waives no other, and forbids nobody.
    check(good(), committee=waiving)
    other = frozenset({next(o for o in COMMITTEE.operators if o != missing)})
    with refused(Refused, "header.operator-missing"):
        check(good(fewer), roster=fewer, committee=replace(COMMITTEE, waived=other))

    def seats(**changes: bytes) -> Committee:
        changed = replace(seat(SERVERS[0]), **changes)
        return replace(COMMITTEE, servers={**COMMITTEE.servers, SERVERS[0].id: changed})

    with refused(Refused, "header.operator"):
        check(good(), committee=seats(operator=h("stranger")))
    with refused(Refused, "header.operator-twice"):
        check(good(), committee=seats(operator=operator(SERVERS[1])))
    with refused(Refused, "header.server-key"):
        check(good(), committee=seats(member_key=h("other")))
    with refused(Refused, "signature"):
        check(good(), committee=seats(peer=node("other").peer))
    with refused(Refused, "header.operator-missing"):
        new = replace(COMMITTEE, operators=(*COMMITTEE.operators, h("new operator")))
        check(good(), committee=new)
    with refused(Refused, "header.unknown-server"):
        known = {server.id: seat(server) for server in SERVERS[1:]}
        check(good(), committee=replace(COMMITTEE, servers=known))


def test_the_servers_of_the_roster_are_those_of_the_header() -> None:
    other = roster(5, 2)
    one = replace(good(), roster_hash=other.hash())
    with refused(Refused, "header.roster-servers"):
        check(one, roster=other)


def pairs(own: str = "client") -> list[Pair]:
    """The client's pairs with the servers, made by one end or the other."""
    result = []
    for server in SERVERS:
        secret = CLIENT.epoch if own == "client" else server.epoch
        pair = pair_secret(INSTANCE.binding, secret, CLIENT.member, server.member, 5)
        pair.advance(ROUND, RESUMES)
        result.append(pair)
    return result


def sealed(some: list[Pair], one: Header | None = None, content: bytes = CONTENT) -> bytes:
    one = one or good()
    return seal(one, some, CLIENT.id, content, bytes(16), LEAF, CLIENT.signer, XOR)


def test_what_is_sealed_opens_with_the_servers_pads() -> None:
    raw = sealed(pairs())
    authenticate(raw, LEAF.mac)
    envelope = Envelope.decode(raw, SHAPE)
    audit(envelope, CLIENT.peer)
    assert (envelope.client, envelope.header_id) == (CLIENT.id, good().id)
    opened = bytearray(envelope.payload)
    for pair in pairs("server"):
        assert opened != CONTENT
        pair.keys(good()).apply(XOR, opened, SHAPE)
    assert opened == CONTENT


def test_regression_a_round_is_sealed_once() -> None:
    """A round opened again under its id would be a two-time pad."""
    some = pairs()
    sealed(some)
    assert [pair.round for pair in some] == [ROUND + 1] * 3
    for again in (good(), good(schedule_hash=h("other"))):
        with refused(Refused, "ratchet.backward"):
            sealed(some, again)


def test_another_header_of_the_round_has_other_pads() -> None:
    zero = bytes(SHAPE.payload_bytes)
    one, two, three = (
        Envelope.decode(sealed(pairs(), each, zero), SHAPE).payload
        for each in (good(), good(schedule_hash=h("other")), good(epoch=4))
    )
    for a, b in ((one, two), (one, three), (two, three)):
        equal = sum(x == y for x, y in zip(a, b, strict=True))
        assert equal < SHAPE.payload_bytes // 8


def test_cover_and_talk_have_one_size() -> None:
    assert len(sealed(pairs(), content=bytes(SHAPE.payload_bytes))) == len(sealed(pairs()))


def test_refused_seals_leave_the_pairs() -> None:
    some = pairs()
    one = good()
    mixed = [some[0], some[1], pairs()[2]]
    mixed[2].step()
    other = node("other").id
    for bad, arguments, rule in (
        (some[:2], {}, "seal.pairs"),
        (some[::-1], {}, "seal.pairs"),
        (some, {"client": other}, "seal.pairs"),
        (some, {"content": CONTENT[1:]}, "seal.content"),
        (some, {"rate_tag": bytes(15)}, "seal.rate-tag"),
        (some, {"header": good(round_number=8)}, "ratchet.behind"),
        (mixed, {}, "ratchet.backward"),
    ):
        call: dict[str, Any] = {
            "header": one,
            "client": CLIENT.id,
            "content": CONTENT,
            "rate_tag": bytes(16),
            "leaf": LEAF,
            "peer_key": CLIENT.signer,
            "xor": XOR,
        }
        with refused(Refused, rule):
            seal(pairs=bad, **call | arguments)
        assert [pair.export() for pair in some] == [pair.export() for pair in pairs()]
