"""Rosters, bitmaps, epoch keys, Resumes."""

from dataclasses import replace

import pytest
from blake3 import blake3
from hypothesis import given
from hypothesis import strategies as st

from tests.zipnet.protocol.support import INSTANCE, OTHER_INSTANCE, h, node, refused, roster
from zipnet.errors import Refused, WireFormatError
from zipnet.protocol.codec import Reader
from zipnet.protocol.pads import check_point
from zipnet.protocol.roster import (
    EPOCH_KEY,
    EpochKey,
    Member,
    Resume,
    Roster,
    bitmap,
    bitmap_bytes,
    check_bitmap,
    places,
    resumes_hash,
)


def test_the_hash_is_as_documented() -> None:
    members = roster(3, 2)
    raw = b"".join(
        len(group).to_bytes(4, "big") + b"".join(m.id + m.key for m in group)
        for group in (members.clients, members.servers)
    )
    assert members.hash() == blake3(raw, derive_key_context="zipnet/roster/v2").digest()


@given(st.permutations(roster(5, 0).clients), st.permutations(roster(0, 4).servers))
def test_the_order_of_arrival_is_nothing(clients: list[Member], servers: list[Member]) -> None:
    assert Roster.of(clients, servers) == roster(5, 4)


def test_the_hash_tells_rosters_apart() -> None:
    members = roster(3, 2)
    first, *rest = members.clients
    hashes = {
        members.hash(),
        roster(2, 2).hash(),
        roster(3, 1).hash(),
        replace(members, clients=(replace(first, key=h("other")), *rest)).hash(),
        # The same members, one of them as a server.
        Roster.of(rest, (first, *members.servers)).hash(),
    }
    assert len(hashes) == 5


def test_order_and_repetition_are_refused() -> None:
    a, b = Member(bytes(32), h("a")), Member(b"\1" * 32, h("b"))
    Roster((a, b), (a, b))
    for wrong in ((b, a), (a, a), (a, replace(a, key=h("other")))):
        with refused(WireFormatError, "roster.order"):
            Roster(wrong, ())
        with refused(WireFormatError, "roster.order"):
            Roster((), wrong)


def test_places_follow_ids() -> None:
    members = roster(9, 1)
    assert members.index() == {m.id: i for i, m in enumerate(members.clients)}


@given(st.integers(0, 70).flatmap(lambda n: st.tuples(st.just(n), st.sets(st.integers(0, 69)))))
def test_bitmaps(case: tuple[int, set[int]]) -> None:
    clients, chosen = case[0], {place for place in case[1] if place < case[0]}
    bits = bitmap(chosen, clients)
    assert len(bits) == bitmap_bytes(clients) == -(-clients // 8)
    assert places(bits, clients) == sorted(chosen)
    # What another language reads: one little-endian number.
    assert int.from_bytes(bits, "little") == sum(1 << place for place in chosen)


def test_the_order_of_bits_is_fixed() -> None:
    assert bitmap([0], 9) == b"\x01\x00"
    assert bitmap([7, 8], 9) == b"\x80\x01"


@pytest.mark.parametrize(
    ("bits", "clients"),
    [(b"", 1), (b"\0", 0), (b"\0\0", 8), (b"\0", 9), (b"\2", 1), (b"\x80", 7), (b"\0\x10", 12)],
)
def test_bitmaps_of_another_roster_or_with_padding(bits: bytes, clients: int) -> None:
    with refused(WireFormatError, "bitmap"):
        check_bitmap(bits, clients)
    with refused(WireFormatError, "bitmap"):
        places(bits, clients)


@pytest.mark.parametrize("place", [-1, 5, 8])
def test_places_beyond_the_roster(place: int) -> None:
    with refused(Refused, "bitmap.place"):
        bitmap([place], 5)


def epoch_key(serial: int = 4) -> EpochKey:
    body = EpochKey.body(h("id"), 3, serial, h("key"))
    signature = INSTANCE.sign(node("one").signer, EPOCH_KEY, 0, body)
    return EpochKey(h("id"), 3, serial, h("key"), signature)


def test_epoch_keys() -> None:
    key = epoch_key()
    key.verify(INSTANCE, node("one").peer)
    raw = key.encode()
    assert len(raw) == 144
    reader = Reader(raw, "epoch-key", at_most=144)
    assert EpochKey.read(reader) == key
    reader.done()
    for wrong in (
        replace(key, member=h("other")),
        replace(key, epoch=4),
        replace(key, serial=5),
        replace(key, key=h("other")),
    ):
        with refused(Refused, "signature"):
            wrong.verify(INSTANCE, node("one").peer)
    with refused(Refused, "signature"):
        key.verify(INSTANCE, node("other").peer)
    with refused(Refused, "signature"):
        key.verify(OTHER_INSTANCE, node("one").peer)


@given(st.integers(0, 2**63 - 1), st.binary(min_size=32, max_size=32))
def test_resumes(round_number: int, nonce: bytes) -> None:
    resume = Resume(round_number, h("node"), nonce)
    raw = resume.encode()
    assert len(raw) == 72
    reader = Reader(raw, "resume", at_most=72)
    assert Resume.read(reader) == resume
    reader.done()


def test_the_order_of_resumes_matters() -> None:
    a, b = Resume(1, h("a"), h("x")), Resume(1, h("b"), h("y"))
    raw = (2).to_bytes(4, "big") + a.encode() + b.encode()
    assert resumes_hash([a, b]) == blake3(raw, derive_key_context="zipnet/resumes/v2").digest()
    assert len({resumes_hash(each) for each in ([], [a], [b], [a, b], [b, a])}) == 5


@pytest.mark.parametrize("key", [bytes(32), b"\1" + bytes(31), b"\xec" + b"\xff" * 30 + b"\x7f"])
def test_points_of_small_order(key: bytes) -> None:
    check_point(node("one").dh_pub)
    with refused(Refused, "dh-zero"):
        check_point(key)
