"""Headers: hash, id, encoding, signatures of all servers."""

from dataclasses import replace
from typing import Any

import pytest
from blake3 import blake3
from hypothesis import given
from hypothesis import strategies as st

from tests.zipnet.protocol.support import (
    INSTANCE,
    OTHER_INSTANCE,
    h,
    header,
    peers,
    refused,
    roster,
    server_of,
    signed,
)
from zipnet.errors import Refused, WireFormatError
from zipnet.protocol.header import Header, SignedHeader, header_hash
from zipnet.protocol.roster import MAX_SERVERS
from zipnet.protocol.shape import Shape

NUMBERS = st.integers(0, 2**63 - 1)
HASHES = st.binary(min_size=32, max_size=32)
IN_HASH: dict[str, Any] = {
    "instance": OTHER_INSTANCE,
    "round": 8,
    "epoch": 4,
    "shape": Shape(4, 25, 16),
    "servers": tuple(member.id for member in roster(5, 3).servers),
    "roster_hash": h("other"),
    "schedule_hash": h("other"),
}
IN_ID_ONLY: dict[str, Any] = {
    "previous_record": h("other"),
    "log_seq": 101,
    "log_head": h("other"),
    "list_number": 2,
    "list_hash": h("other"),
    "tree_hash": h("other"),
    "base_round": 4,
    "resumes_hash": h("other"),
    "time_ms": 1,
}


def test_the_known_answer_of_the_hash() -> None:
    server = bytes.fromhex("c8a7a3d06ab14749e1f3f9ea02bcecbd3a8fdc1ac582fef8cd9c603670b1225c")
    got = header_hash(
        binding=h("dep"),
        round_number=8,
        epoch=0,
        shape=Shape(64, 256, 256),
        servers=[server],
        roster_hash=h("roster"),
        schedule_hash=bytes(32),
    )
    assert got.hex() == "f073e945ae868a329e87cf15ece40e7ef586eb5d75aff3ea662d7be38a69c81e"


def test_the_id_is_as_documented() -> None:
    one = header()
    raw = b"".join(
        (
            one.hash,
            one.previous_record,
            one.log_seq.to_bytes(8, "big"),
            one.log_head,
            INSTANCE.generation,
            one.list_number.to_bytes(8, "big"),
            one.list_hash,
            one.tree_hash,
            one.base_round.to_bytes(8, "big"),
            one.resumes_hash,
            one.time_ms.to_bytes(8, "big"),
        )
    )
    assert one.id == blake3(raw, derive_key_context="zipnet/header-id/v2").digest()


def test_every_field_is_bound() -> None:
    one = header()
    names = set(Header.__slots__) - {"hash", "id"}
    assert names == IN_HASH.keys() | IN_ID_ONLY.keys()
    for name, value in (IN_HASH | IN_ID_ONLY).items():
        changed = replace(one, **{name: value})
        assert changed.id != one.id, name
        assert (changed.hash != one.hash) == (name in IN_HASH), name


@given(NUMBERS, NUMBERS, NUMBERS, NUMBERS, HASHES, HASHES, st.integers(1, 9))
def test_round_trip(
    epoch: int, log_seq: int, number: int, time: int, a: bytes, b: bytes, servers: int
) -> None:
    one = replace(
        header(roster(1, servers)),
        epoch=epoch,
        log_seq=log_seq,
        list_number=number,
        time_ms=time,
        schedule_hash=a,
        previous_record=b,
    )
    again = Header.decode(one.encode())
    assert again == one
    assert (again.hash, again.id) == (one.hash, one.id)
    with refused(WireFormatError, "header.trailing"):
        Header.decode(one.encode() + b"\0")
    with refused(WireFormatError, "header.truncated"):
        Header.decode(one.encode()[:-1])


def test_the_largest_header_fits() -> None:
    one = header(roster(1, MAX_SERVERS))
    assert Header.decode(one.encode()) == one
    assert SignedHeader.decode(signed(one).encode()) == signed(one)


@pytest.mark.parametrize(
    ("offset", "new", "rule"),
    [
        (0, b"\0\3", "header.wire-version"),
        (34, b"\x80", "header.number"),
        (50, bytes(4), "shape"),
        (70, b"\0\x41", "header.count"),
    ],
)
def test_malformed(offset: int, new: bytes, rule: str) -> None:
    raw = header().encode()
    with refused(WireFormatError, rule):
        Header.decode(raw[:offset] + new + raw[offset + len(new) :])


@pytest.mark.parametrize(
    ("change", "rule"),
    [
        ({"servers": ()}, "header.servers"),
        ({"servers": (h("a"), h("a"))}, "header.servers"),
        ({"servers": tuple(sorted((h("a"), h("b")), reverse=True))}, "header.servers"),
        ({"servers": tuple(bytes(31) + bytes([i]) for i in range(65))}, "header.servers"),
        ({"base_round": 0}, "header.base-round"),
        ({"base_round": 8}, "header.base-round"),
        ({"round": 0, "base_round": 0}, "header.base-round"),
    ],
)
def test_headers_that_cannot_be(change: dict[str, Any], rule: str) -> None:
    with refused(WireFormatError, rule):
        replace(header(), **change)


def test_all_servers_sign() -> None:
    one = header(roster(5, 3))
    good = signed(one)
    good.verify(peers(one))
    assert SignedHeader.decode(good.encode()) == good
    with refused(WireFormatError, "signed-header.truncated"):
        SignedHeader.decode(good.encode()[:-1])
    with refused(WireFormatError, "signed-header.trailing"):
        SignedHeader.decode(good.encode() + b"\0")
    for count in (0, 1, 2, 4):
        with refused(Refused, "header.signatures"):
            SignedHeader(one, (good.signatures * 2)[:count]).verify(peers(one))
    unknown = {server: peer for server, peer in peers(one).items() if server != one.servers[1]}
    with refused(Refused, "header.unknown-server"):
        good.verify(unknown)


@pytest.mark.parametrize("place", [0, 1, 2])
def test_regression_invalid_signature_never_counts(place: int) -> None:
    """k valid signatures and an invalid one are not k + 1."""
    one = header(roster(5, 3))
    good = signed(one).signatures
    other_round = replace(one, round=8)
    for wrong in (
        bytes(64),
        good[(place + 1) % 3],
        other_round.sign(server_of(one.servers[place]).signer),
        server_of(one.servers[place]).signer.sign(one.id),
    ):
        signatures = (*good[:place], wrong, *good[place + 1 :])
        with refused(Refused, "signature"):
            SignedHeader(one, signatures).verify(peers(one))
