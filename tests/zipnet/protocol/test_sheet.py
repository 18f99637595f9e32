"""Sheets: what a client needs beside the header, with all signatures in it."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.zipnet.protocol.support import (
    INSTANCE,
    OTHER_INSTANCE,
    Node,
    h,
    header,
    node,
    nodes,
    refused,
)
from zipnet.errors import Refused, WireFormatError
from zipnet.ids import client_id, server_id
from zipnet.operators import Endorsement
from zipnet.protocol.header import Header
from zipnet.protocol.roster import (
    EPOCH_KEY,
    MAX_CLIENTS,
    MAX_RESUMES,
    MAX_SERVERS,
    EpochKey,
    Member,
    Resume,
    Roster,
)
from zipnet.protocol.seal import Seat
from zipnet.protocol.sheet import MAX_SHEET, ClientEntry, ServerEntry, Sheet

EPOCH = 3
IDS = st.binary(min_size=32, max_size=32)
NUMBERS = st.integers(0, 2**63 - 1)
SIGNATURES = st.binary(min_size=64, max_size=64)
KEYS = st.builds(EpochKey, IDS, NUMBERS, NUMBERS, IDS, SIGNATURES)
ENDORSEMENTS = st.builds(Endorsement, IDS, IDS, IDS, NUMBERS, SIGNATURES)
SERVERS = st.lists(st.builds(ServerEntry, ENDORSEMENTS, KEYS), max_size=3).map(tuple)
CLIENTS = st.lists(st.builds(ClientEntry, IDS, IDS, KEYS), max_size=4).map(tuple)
RESUMES = st.lists(st.builds(Resume, NUMBERS, IDS, IDS), max_size=3).map(tuple)
SHEETS = st.builds(Sheet, SERVERS, CLIENTS, RESUMES)


def key_of(one: Node, member: bytes, epoch: int = EPOCH) -> EpochKey:
    public = one.member.key
    body = EpochKey.body(member, epoch, 1, public)
    signature = INSTANCE.sign(one.signer, EPOCH_KEY, 0, body)
    return EpochKey(member, epoch, 1, public, signature)


def server(name: str) -> ServerEntry:
    one, operator = node(name), node(f"operator of {name}").signer
    endorsement = Endorsement.make(INSTANCE, operator, one.peer, one.dh_pub, 1)
    return ServerEntry(endorsement, key_of(one, server_id(one.dh_pub)))


def client(name: str) -> ClientEntry:
    one = node(name)
    return ClientEntry(one.peer, one.dh_pub, key_of(one, client_id(one.dh_pub)))


def sheet() -> Sheet:
    """Three servers, of which the last one in order rests, and four clients."""
    servers = sorted((server(f"s{at}") for at in range(3)), key=lambda one: one.key.member)
    clients = sorted((client(f"c{at}") for at in range(4)), key=lambda one: one.key.member)
    return Sheet(tuple(servers), tuple(clients), (Resume(6, h("node"), h("nonce")),))


def header_of(one: Sheet, servers: int = 2) -> Header:
    chosen = [entry.member for entry in one.servers[:servers]]
    return header(Roster.of((entry.member for entry in one.clients), chosen), epoch=EPOCH)


@given(SHEETS)
def test_each_sheet_reads_back(one: Sheet) -> None:
    raw = one.encode()
    assert Sheet.decode(raw) == one
    with refused(WireFormatError, "sheet.trailing"):
        Sheet.decode(raw + b"\0")


@given(SHEETS, st.data())
def test_nothing_may_be_missing(one: Sheet, data: st.DataObject) -> None:
    raw = one.encode()
    with refused(WireFormatError, "sheet.truncated"):
        Sheet.decode(raw[: data.draw(st.integers(0, len(raw) - 1))])


def test_the_layout_is_as_documented() -> None:
    one = sheet()
    sizes = [len(part.encode()) for part in (one.servers[0], one.clients[0], one.resumes[0])]
    assert sizes == [168 + 144, 32 + 32 + 144, 72]
    assert len(one.encode()) == 12 + 3 * sizes[0] + 4 * sizes[1] + sizes[2]
    most = MAX_SERVERS * sizes[0] + MAX_CLIENTS * sizes[1] + MAX_RESUMES * sizes[2] + 12
    assert most == MAX_SHEET


@pytest.mark.parametrize(
    ("before", "most"), [(b"", MAX_SERVERS), (bytes(4), MAX_CLIENTS), (bytes(8), MAX_RESUMES)]
)
def test_counts_are_bounded(before: bytes, most: int) -> None:
    with refused(WireFormatError, "sheet.count"):
        Sheet.decode(before + (most + 1).to_bytes(4, "big"))


def test_a_sheet_gives_the_roster_of_its_header() -> None:
    one = sheet()
    roster = one.roster(header_of(one))
    assert roster.clients == tuple(entry.member for entry in one.clients)
    assert roster.servers == tuple(entry.member for entry in one.servers[:2])


@pytest.mark.parametrize(
    "change",
    [
        lambda one: replace(one, clients=one.clients[1:]),
        lambda one: replace(one, servers=one.servers[1:]),
        lambda one: replace(one, clients=(client("other"),)),
        lambda one: replace(
            one,
            clients=(
                replace(one.clients[0], key=replace(one.clients[0].key, key=h("another"))),
                *one.clients[1:],
            ),
        ),
    ],
)
def test_another_sheet_is_not_that_of_the_header(change: object) -> None:
    one = sheet()
    other = change(one)  # type: ignore[operator]
    with refused(Refused, "sheet.roster"):
        other.roster(header_of(one))


def test_members_out_of_order_are_no_roster() -> None:
    one = sheet()
    other = replace(one, clients=one.clients[::-1])
    with refused(WireFormatError, "roster.order"):
        other.roster(header_of(one))


def test_a_server_of_the_epoch_that_rests_changes_no_roster() -> None:
    one = sheet()
    fewer = replace(one, servers=one.servers[:2])
    assert fewer.roster(header_of(one)) == one.roster(header_of(one))


def test_the_committee_has_all_servers_of_the_epoch_with_their_operators() -> None:
    one = sheet()
    operators, waived = (h("a"), h("b")), frozenset({h("b")})
    committee = one.committee(header_of(one), operators, waived)
    assert (committee.operators, committee.waived) == (operators, waived)
    assert committee.servers == {
        entry.key.member: Seat(entry.endorsement.operator, entry.endorsement.peer, entry.key.key)
        for entry in one.servers
    }


def wrong_servers() -> list[tuple[str, ServerEntry]]:
    good, other = server("s0"), server("s1")
    signer, new_epoch = node("s0"), key_of(node("s0"), good.key.member, EPOCH + 1)
    stolen = replace(good.key, key=other.key.key)
    return [
        ("sheet.key", replace(good, key=other.key)),
        ("sheet.key", replace(good, key=new_epoch)),
        ("signature", replace(good, key=stolen)),
        ("signature", replace(good, endorsement=replace(good.endorsement, serial=2))),
        ("signature", replace(good, endorsement=replace(good.endorsement, operator=h("x")))),
        ("signature", replace(good, endorsement=replace(good.endorsement, peer=signer.id))),
    ]


@pytest.mark.parametrize(("rule", "entry"), wrong_servers())
def test_servers_are_checked(rule: str, entry: ServerEntry) -> None:
    one = replace(sheet(), servers=(entry,))
    with refused(Refused, rule):
        one.committee(header_of(sheet()), (), frozenset())


def wrong_clients() -> list[tuple[str, ClientEntry]]:
    good, other = client("c0"), client("c1")
    new_epoch = key_of(node("c0"), good.key.member, EPOCH + 1)
    return [
        ("sheet.key", replace(good, key=other.key)),
        ("sheet.key", replace(good, dh_pub=other.dh_pub)),
        ("sheet.key", replace(good, key=new_epoch)),
        ("signature", replace(good, peer=other.peer)),
        ("signature", replace(good, key=replace(good.key, serial=2))),
        ("signature", replace(good, key=replace(good.key, key=h("another")))),
    ]


@pytest.mark.parametrize(("rule", "entry"), wrong_clients())
def test_clients_are_checked(rule: str, entry: ClientEntry) -> None:
    one = sheet()
    one.verify_clients(header_of(one))
    with refused(Refused, rule):
        replace(one, clients=(*one.clients, entry)).verify_clients(header_of(one))


def test_entries_are_good_in_one_generation() -> None:
    for entry in (server("s0"), client("c0")):
        entry.verify(INSTANCE, EPOCH)
        with refused(Refused, "signature"):
            entry.verify(OTHER_INSTANCE, EPOCH)


def test_members_are_as_in_rosters() -> None:
    for entry in (server("s0"), client("c0")):
        assert entry.member == Member(entry.key.member, entry.key.key)
    assert len(nodes("client", 3)) == 3
