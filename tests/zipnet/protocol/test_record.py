"""Records: layout, hash, chain, signatures of all servers."""

from dataclasses import replace
from typing import Any

import pytest
from blake3 import blake3
from hypothesis import given
from hypothesis import strategies as st

from tests.zipnet.protocol.support import (
    SHAPE,
    h,
    header,
    peers,
    record,
    refused,
    roster,
    server_of,
    signed_record,
)
from zipnet.errors import Refused, WireFormatError
from zipnet.protocol.record import MAX_RECORD, Record, SignedRecord
from zipnet.protocol.roster import MAX_CLIENTS, bitmap

PAYLOAD = bytes(i & 0xFF for i in range(SHAPE.payload_bytes))
ONE = record(payload=PAYLOAD)


def test_the_layout() -> None:
    raw = ONE.encode()
    parts = (
        ONE.header.encode(),
        b"\0\0\0\5",
        b"\5",
        h("aggregate"),
        h("commitment 0") + h("commitment 1"),
        PAYLOAD,
    )
    assert raw == b"".join(parts)
    assert ONE.hash == blake3(raw, derive_key_context="zipnet/record/v2").digest()


def test_the_two_vectors() -> None:
    assert ONE.messages == PAYLOAD[: 4 * 24]
    assert ONE.schedule == PAYLOAD[4 * 24 :]
    assert ONE.schedule_hash() == blake3(PAYLOAD[4 * 24 :]).digest()


@given(st.integers(0, 40), st.integers(1, 5), st.data())
def test_round_trip(clients: int, servers: int, data: st.DataObject) -> None:
    chosen = data.draw(st.sets(st.integers(0, 39))) & set(range(clients))
    bits = bitmap(chosen, clients)
    one = replace(record(header(roster(3, servers))), clients=clients, participants=bits)
    assert Record.decode(one.encode()) == one
    with refused(WireFormatError, "record.trailing"):
        Record.decode(one.encode() + b"\0")
    with refused(WireFormatError, "record.truncated"):
        Record.decode(one.encode()[:-1])
    sealed = signed_record(one)
    assert SignedRecord.decode(sealed.encode()) == sealed
    with refused(WireFormatError, "signed-record.trailing"):
        SignedRecord.decode(sealed.encode() + b"\0")
    with refused(WireFormatError, "signed-record.truncated"):
        SignedRecord.decode(sealed.encode()[:-1])


@pytest.mark.parametrize(
    ("new", "rule"),
    [
        ((MAX_CLIENTS + 1).to_bytes(4, "big"), "record.clients"),
        ((9).to_bytes(4, "big"), "record.truncated"),
        (bytes(4), "record.trailing"),
        ((2).to_bytes(4, "big"), "bitmap"),
    ],
)
def test_malformed(new: bytes, rule: str) -> None:
    at = len(ONE.header.encode())
    raw = ONE.encode()
    with refused(WireFormatError, rule):
        Record.decode(raw[:at] + new + raw[at + 4 :])


def test_records_are_bounded() -> None:
    with refused(WireFormatError, "record.size"):
        Record.decode(bytes(MAX_RECORD + 1))


@pytest.mark.parametrize(
    ("change", "rule"),
    [
        ({"commitments": (h("a"),)}, "record.commitments"),
        ({"commitments": (h("a"),) * 3}, "record.commitments"),
        ({"payload": PAYLOAD[1:]}, "record.payload"),
        ({"payload": PAYLOAD + b"\0"}, "record.payload"),
        ({"participants": b"\x20"}, "bitmap"),
        ({"participants": b"\0\0"}, "bitmap"),
    ],
)
def test_records_that_do_not_fit_their_header(change: dict[str, Any], rule: str) -> None:
    with refused(WireFormatError, rule):
        replace(ONE, **change)


def test_the_hash_binds_every_field() -> None:
    others = [
        replace(ONE, header=replace(ONE.header, time_ms=1)),
        replace(ONE, clients=6),
        replace(ONE, participants=bitmap([0], 5)),
        replace(ONE, aggregate=h("other")),
        replace(ONE, commitments=ONE.commitments[::-1]),
        replace(ONE, payload=bytes(SHAPE.payload_bytes)),
    ]
    assert len({one.hash for one in (ONE, *others)}) == 7


def test_records_form_a_chain() -> None:
    second = record(header(previous_record=ONE.hash, round_number=8))
    second.follows(ONE.hash)
    for wrong in (second.hash, bytes(32)):
        with refused(Refused, "record.previous"):
            second.follows(wrong)


def test_all_servers_sign() -> None:
    one = record(header(roster(5, 3)))
    good = signed_record(one)
    good.verify(peers(one.header))
    for count in (0, 1, 2, 4):
        with refused(Refused, "record.signatures"):
            SignedRecord(one, (good.signatures * 2)[:count]).verify(peers(one.header))
    known = peers(one.header)
    del known[one.header.servers[1]]
    with refused(Refused, "record.unknown-server"):
        good.verify(known)


@pytest.mark.parametrize("place", [0, 1, 2])
def test_regression_invalid_signature_never_counts(place: int) -> None:
    """k valid signatures and an invalid one are not k + 1."""
    one = record(header(roster(5, 3)))
    signer = server_of(one.header.servers[place]).signer
    good = signed_record(one).signatures
    for wrong in (
        bytes(64),
        good[(place + 1) % 3],
        one.header.sign(signer),
        replace(one, aggregate=h("other")).sign(signer),
        signer.sign(one.hash),
    ):
        signatures = (*good[:place], wrong, *good[place + 1 :])
        with refused(Refused, "signature"):
            SignedRecord(one, signatures).verify(peers(one.header))
