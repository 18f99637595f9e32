"""Envelopes: layout, MAC, signature, the keys that a client and its leaf share."""

from dataclasses import replace

import pytest
from blake3 import blake3
from hypothesis import given
from hypothesis import strategies as st

from tests.zipnet.protocol.support import (
    INSTANCE,
    OTHER_INSTANCE,
    ROUND,
    SHAPE,
    h,
    header,
    node,
    nodes,
    refused,
)
from zipnet.errors import Refused, WireFormatError
from zipnet.protocol.envelope import (
    Envelope,
    audit,
    authenticate,
    envelope_bytes,
    leaf_keys,
    seal_envelope,
)
from zipnet.protocol.shape import Shape

CLIENT = nodes("client", 5)[0]
LEAF = node("aggregator 0")
HEADER = header()
KEYS = leaf_keys(CLIENT.identity, LEAF.dh_pub, INSTANCE, CLIENT.id, LEAF.dh_pub)
PAYLOAD = bytes(i & 0xFF for i in range(SHAPE.payload_bytes))
RAW = seal_envelope(HEADER, CLIENT.id, h("tag")[:16], PAYLOAD, KEYS.mac, CLIENT.signer)


def test_offsets_of_the_format() -> None:
    assert len(RAW) == envelope_bytes(SHAPE) == 154 + SHAPE.payload_bytes + 96
    digest = blake3(RAW[:-96], derive_key_context="zipnet/envelope/v2").digest()
    for offset, value in (
        (0, b"\0\2"),
        (2, INSTANCE.deployment_id),
        (34, INSTANCE.generation),
        (66, ROUND.to_bytes(8, "big")),
        (74, HEADER.id),
        (106, CLIENT.id),
        (138, h("tag")[:16]),
        (154, PAYLOAD),
        (154 + SHAPE.payload_bytes, blake3(RAW[:-96], key=KEYS.mac).digest()),
    ):
        assert RAW[offset : offset + len(value)] == value
    statement = INSTANCE.statement(b"zipnet/sig/envelope/v2", ROUND, digest)
    CLIENT.signer.public_key().verify(RAW[-64:], statement)


@given(st.integers(0, 2**63 - 1), st.binary(min_size=48, max_size=48), st.binary(max_size=99))
def test_round_trip(round_number: int, ids: bytes, more: bytes) -> None:
    payload = more.ljust(SHAPE.payload_bytes, b"\1")
    fields = INSTANCE, round_number, h("header"), ids[:32], ids[32:], payload
    one = Envelope(*fields, h("mac"), h("a") + h("b"))
    assert Envelope.decode(one.encode(), SHAPE) == one


def test_what_is_no_envelope() -> None:
    assert Envelope.decode(RAW, SHAPE).encode() == RAW
    for raw in (b"", RAW[:-1], RAW + b"\0"):
        with refused(WireFormatError, "envelope.size"):
            Envelope.decode(raw, SHAPE)
    with refused(WireFormatError, "envelope.size"):
        Envelope.decode(RAW, Shape(4, 25, 16))
    with refused(WireFormatError, "envelope.wire-version"):
        Envelope.decode(b"\0\1" + RAW[2:], SHAPE)
    with refused(WireFormatError, "envelope.number"):
        Envelope.decode(RAW[:66] + b"\xff" + RAW[67:], SHAPE)


def test_both_ends_have_the_same_keys() -> None:
    assert leaf_keys(LEAF.identity, CLIENT.dh_pub, INSTANCE, CLIENT.id, LEAF.dh_pub) == KEYS
    secret = CLIENT.identity.exchange(LEAF.identity.public_key())
    ids = INSTANCE.deployment_id + INSTANCE.generation + CLIENT.id + LEAF.dh_pub
    for use, key in (("mac", KEYS.mac), ("receipt", KEYS.receipt)):
        assert blake3(secret + ids, derive_key_context=f"zipnet/leaf/{use}/v2").digest() == key


def test_every_input_makes_other_keys() -> None:
    other = node("aggregator 1")
    keys = [
        KEYS,
        leaf_keys(CLIENT.identity, other.dh_pub, INSTANCE, CLIENT.id, other.dh_pub),
        leaf_keys(CLIENT.identity, LEAF.dh_pub, OTHER_INSTANCE, CLIENT.id, LEAF.dh_pub),
        leaf_keys(CLIENT.identity, LEAF.dh_pub, INSTANCE, h("other"), LEAF.dh_pub),
        leaf_keys(CLIENT.identity, LEAF.dh_pub, INSTANCE, CLIENT.id, other.dh_pub),
    ]
    assert len({key for pair in keys for key in (pair.mac, pair.receipt)}) == 2 * len(keys)


@pytest.mark.parametrize("key", [bytes(32), b"\1" + bytes(31), b"\xec" + b"\xff" * 30 + b"\x7f"])
def test_keys_of_small_order_are_refused(key: bytes) -> None:
    with refused(Refused, "dh-zero"):
        leaf_keys(LEAF.identity, key, INSTANCE, CLIENT.id, LEAF.dh_pub)


def test_secrets_are_not_shown() -> None:
    shown = repr(KEYS) + repr(Envelope.decode(RAW, SHAPE))
    for secret in (KEYS.mac, KEYS.receipt, RAW[138:154], PAYLOAD):
        assert repr(secret) not in shown
        assert secret.hex() not in shown
    # The MAC that would have been right is for nobody to see.
    with pytest.raises(Refused) as caught:
        authenticate(RAW, bytes(32))
    assert blake3(RAW[:-96], key=bytes(32)).hexdigest() not in caught.value.diagnostics()


def test_the_mac_covers_everything_before_it() -> None:
    assert authenticate(RAW, KEYS.mac) == Envelope.decode(RAW, SHAPE).mac
    with refused(Refused, "envelope.mac"):
        authenticate(RAW, KEYS.receipt)
    for at in range(len(RAW) - 64):
        changed = bytearray(RAW)
        changed[at] ^= 1
        with refused(Refused, "envelope.mac"):
            authenticate(bytes(changed), KEYS.mac)


def test_the_signature_gives_blame() -> None:
    one = Envelope.decode(RAW, SHAPE)
    audit(one, CLIENT.peer)
    # The MAC convinces the leaf only, so it may be anything.
    audit(replace(one, mac=bytes(32)), CLIENT.peer)
    for wrong in (
        replace(one, instance=OTHER_INSTANCE),
        replace(one, round=ROUND + 1),
        replace(one, header_id=h("other")),
        replace(one, client=h("other")),
        replace(one, rate_tag=bytes(16)),
        replace(one, payload=bytes(SHAPE.payload_bytes)),
        replace(one, signature=bytes(64)),
    ):
        with refused(Refused, "signature"):
            audit(wrong, CLIENT.peer)
    with refused(Refused, "signature"):
        audit(one, LEAF.peer)
