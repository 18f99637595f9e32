"""Receipts: what their client reads, and what nobody else can."""

from typing import Any

import pytest
from blake3 import blake3
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey
from hypothesis import given
from hypothesis import strategies as st

from tests.zipnet.protocol.support import INSTANCE, OTHER_INSTANCE, h, node, nodes, refused
from zipnet.errors import Refused, WireFormatError
from zipnet.protocol.instance import Instance
from zipnet.protocol.receipts import (
    ENTRY,
    Receipt,
    Status,
    check_blob,
    find,
    join,
    open_receipt,
    receipt_tag,
    seal_receipt,
)

CLIENT, LEAF, KEY = node("client 0"), node("aggregator 0"), h("receipt key")
REFUSED = Receipt(Status.REFUSED, "envelope.mac")
RULES = st.text(st.characters(min_codepoint=32, max_codepoint=126), min_size=1, max_size=48)
receipts = st.sampled_from([Receipt(status) for status in list(Status)[:3]]) | st.builds(
    Receipt, st.just(Status.REFUSED), RULES
)


def sealed(
    receipt: Receipt = REFUSED, *, key: bytes = KEY, maker: str = "aggregator 0", client: str = ""
) -> bytes:
    whose = node(client) if client else CLIENT
    ephemeral = h(f"ephemeral {receipt} {key.hex()}")
    signer = node(maker).signer
    return seal_receipt(receipt, INSTANCE, 7, whose.id, whose.dh_pub, key, ephemeral, signer)


def opened(
    entry: bytes,
    *,
    instance: Instance = INSTANCE,
    number: int = 7,
    client: bytes = CLIENT.id,
    own: X25519PrivateKey = CLIENT.identity,
    maker: bytes = LEAF.peer,
) -> Receipt:
    return open_receipt(entry, instance, number, client, own, maker)


@given(receipts)
def test_clients_read_what_was_sealed(receipt: Receipt) -> None:
    entry = sealed(receipt)
    assert len(entry) == ENTRY == 177
    assert opened(entry) == receipt


@given(receipts)
def test_plaintexts_round_trip(receipt: Receipt) -> None:
    raw = receipt.encode()
    assert len(raw) == 49
    assert Receipt.decode(raw) == receipt


def test_what_is_no_receipt() -> None:
    for status, rule in (
        (Status.TAKEN, "x"),
        (Status.REFUSED, ""),
        (Status.REFUSED, "x" * 49),
        (Status.REFUSED, "x\n"),
        (Status.REFUSED, "\xe9"),
    ):
        with refused(WireFormatError, "receipt.rule"):
            Receipt(status, rule)
    for raw, wrong in (
        (b"\4" + bytes(48), "receipt.status"),
        (b"\1" + bytes(47), "receipt.truncated"),
        (b"\1" + bytes(49), "receipt.size"),
        (b"\3" + bytes(48), "receipt.rule"),
        (b"\1x" + bytes(47), "receipt.rule"),
        (b"\3x\0x" + bytes(45), "receipt.rule"),
        (b"\3\xff" + bytes(47), "receipt.rule"),
    ):
        with refused(WireFormatError, wrong):
            Receipt.decode(raw)


def test_tags() -> None:
    assert receipt_tag(KEY, 7) == blake3((7).to_bytes(8, "big"), key=KEY).digest()[:16]
    assert sealed().startswith(receipt_tag(KEY, 7))
    assert len({receipt_tag(key, n) for key in (KEY, h("other")) for n in range(8)}) == 16


def test_entries_of_others_do_not_open() -> None:
    entry = sealed()
    stranger = node("client 1")
    changes: list[dict[str, Any]] = [
        {"own": stranger.identity},
        {"client": stranger.id},
        {"number": 8},
        {"instance": OTHER_INSTANCE},
    ]
    for change in changes:
        with refused(Refused, "receipt.open"):
            opened(entry, **change)
    # Nor under the tag of another.
    with refused(Refused, "receipt.open"):
        opened(sealed(key=h("other key"))[:16] + entry[16:])


@given(st.integers(0, ENTRY - 1), st.integers(1, 255))
def test_damaged_entries_do_not_open(at: int, change: int) -> None:
    entry = bytearray(sealed())
    entry[at] ^= change
    # The top bit of an X25519 key is not used for the secret, but it is in the key of the seal.
    with refused(Refused, "receipt.open"):
        opened(bytes(entry))


def test_receipts_are_signed_by_their_maker() -> None:
    with refused(Refused, "signature"):
        opened(sealed(maker="aggregator 1"))
    assert opened(sealed(maker="aggregator 1"), maker=node("aggregator 1").peer) == REFUSED


def test_keys_that_give_no_secret() -> None:
    with refused(Refused, "dh-zero"):
        seal_receipt(REFUSED, INSTANCE, 7, CLIENT.id, bytes(32), KEY, h("e"), LEAF.signer)
    entry = sealed()
    with refused(Refused, "dh-zero"):
        opened(entry[:16] + bytes(32) + entry[48:])


def test_sizes_of_entries() -> None:
    entry = sealed()
    with refused(WireFormatError, "receipt-entry.truncated"):
        opened(entry[:-1])
    with refused(WireFormatError, "receipt-entry.size"):
        opened(entry + b"\0")


ROSTER = nodes("client", 20)
KEYS = {one.name: h(f"receipt key of {one.name}") for one in ROSTER}


def blob_of(statuses: dict[str, Receipt]) -> bytes:
    return join(
        sealed(statuses.get(one.name, Receipt(Status.ABSENT)), key=KEYS[one.name], client=one.name)
        for one in ROSTER
    )


def test_every_client_finds_its_own() -> None:
    blob = blob_of({"client 3": REFUSED, "client 5": Receipt(Status.TAKEN)})
    check_blob(blob, len(ROSTER))
    for one in ROSTER:
        entry = find(blob, receipt_tag(KEYS[one.name], 7))
        assert entry is not None
        receipt = opened(entry, client=one.id, own=one.identity)
        expected = {"client 3": Status.REFUSED, "client 5": Status.TAKEN}
        assert receipt.status is expected.get(one.name, Status.ABSENT)
    for absent in (bytes(16), b"\xff" * 16, receipt_tag(h("no one"), 7)):
        assert find(blob, absent) is None
    assert find(b"", bytes(16)) is None


def test_a_blob_tells_nobody_what_became_of_an_envelope() -> None:
    quiet, loud = blob_of({}), blob_of({one.name: REFUSED for one in ROSTER})
    assert len(quiet) == len(loud) == len(ROSTER) * ENTRY
    assert [quiet[i : i + 16] for i in range(0, len(quiet), ENTRY)] == [
        loud[i : i + 16] for i in range(0, len(loud), ENTRY)
    ]


def test_blobs_of_leaves_join_to_one() -> None:
    blob = blob_of({})
    entries = [blob[i : i + ENTRY] for i in range(0, len(blob), ENTRY)]
    assert join(reversed(entries)) == blob
    assert join([]) == b""


def test_malformed_blobs() -> None:
    blob = blob_of({})
    for raw, clients, wrong in (
        (blob, 21, "truncated"),
        (blob, 19, "size"),
        (blob[:-1], 20, "truncated"),
        (blob[ENTRY:] + blob[:ENTRY], 20, "order"),
        (blob[:ENTRY] * 20, 20, "order"),
    ):
        with refused(WireFormatError, f"receipts.{wrong}"):
            check_blob(raw, clients)
    with refused(WireFormatError, "receipts.order"):
        join([sealed(), sealed(Receipt(Status.LATE))])
    with refused(WireFormatError, "receipts.truncated"):
        join([sealed()[:-1]])


@pytest.mark.parametrize("status", [Status.ABSENT, Status.TAKEN, Status.LATE])
def test_rules_are_for_refusals(status: Status) -> None:
    assert opened(sealed(Receipt(status))) == Receipt(status, "")
