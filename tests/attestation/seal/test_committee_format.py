"""The codecs of any-trust sealing: bytes of blobs, requests and answers."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF
from hypothesis import given
from hypothesis import strategies as st

from attestation.errors import SealFormatError
from attestation.seal.committee_format import (
    BLOB_MAGIC,
    MAX_BLOB,
    MAX_DATA,
    MAX_MEMBERS,
    MAX_NUMBER,
    NOTHING,
    RELEASED,
    TAG,
    Answer,
    Asked,
    Blob,
    Header,
    Op,
    Refusal,
    Released,
    Request,
    Seat,
)
from tests.attestation.measure.support import refused
from tests.attestation.seal.committee_simulator import Node, Simulator
from tests.attestation.tickets import DEPLOYMENT, bundle

ids = st.binary(min_size=32, max_size=32)
numbers = st.integers(0, MAX_NUMBER)
members = st.dictionaries(ids, ids, min_size=1, max_size=5).map(
    lambda found: tuple(sorted(found.items()))
)
headers = st.builds(Header, ids, ids, ids, numbers, st.integers(1, MAX_NUMBER), members)
blobs = st.builds(
    Blob, headers, st.binary(min_size=12, max_size=12), st.binary(min_size=TAG, max_size=200)
)
BLOB = Blob(
    Header(b"d" * 32, b"i" * 32, b"k" * 32, 4, 5, ((b"a" * 32, b"b" * 32),)),
    bytes(12),
    bytes(20),
)
REQUEST = Request(
    *(Op.OPEN, bytes(32), b"i" * 32, b"k" * 32, 3, 1, b"d" * 32),
    (Seat(b"a" * 32, b"n" * 32), Seat(b"b" * 32, b"m" * 32)),
)
rules = st.from_regex(r"\A[a-z][a-z0-9.-]{0,63}\Z")
texts = st.text(st.characters(min_codepoint=32, max_codepoint=126), max_size=300)


@st.composite
def requests(draw: st.DrawFn) -> Request:
    op = draw(st.sampled_from(Op))
    boots = st.integers(1, MAX_NUMBER) if op is Op.COMMIT else st.just(0)
    seats = tuple(Seat(m, nonce, draw(boots)) for m, nonce in draw(members))
    of = (0, NOTHING) if op is Op.CREATE else (draw(st.integers(1, MAX_NUMBER)), draw(ids))
    return Request(op, draw(ids), draw(ids), draw(ids), draw(numbers), *of, seats)


@given(blob=blobs)
def test_blobs_come_back(blob: Blob) -> None:
    raw = blob.encode()
    assert Blob.parse(raw) == blob
    assert blob.digest == hashlib.sha256(raw).digest()
    assert raw == blob.associated + blob.ciphertext


@given(request=requests())
def test_requests_come_back(request: Request) -> None:
    shown = bundle()
    raw = request.encode() + shown.encode()
    assert Asked.decode(raw) == Asked(request, shown, raw)


@given(first=requests(), second=requests())
def test_challenges_differ_as_requests_do(first: Request, second: Request) -> None:
    assert (first == second) == (first.challenge == second.challenge)


@given(version=numbers, digest=ids, boot=st.integers(1, MAX_NUMBER), contribution=ids)
def test_released_comes_back(version: int, digest: bytes, boot: int, contribution: bytes) -> None:
    released = Released(contribution, version, digest if version else NOTHING, boot)
    assert Released.decode(released.encode()) == released


@given(
    content=st.binary(min_size=128, max_size=128) | st.builds(Refusal, rules, texts),
    signature=st.binary(min_size=64, max_size=64),
)
def test_answers_come_back(content: bytes | Refusal, signature: bytes) -> None:
    answer = Answer(content, signature)
    assert Answer.decode(answer.encode()) == answer


@given(rule=st.text(), text=st.text())
def test_any_refusal_travels(rule: str, text: str) -> None:
    answer = Answer(Refusal.of(rule, text), bytes(64))
    assert Answer.decode(answer.encode()) == answer


@given(raw=st.binary(max_size=400))
def test_other_bytes_raise_their_error(raw: bytes) -> None:
    for read, rule in (
        (Blob.parse, "seal.damaged"),
        (Asked.decode, "seal.request"),
        (Answer.decode, "seal.answer"),
        (Released.decode, "seal.answer"),
    ):
        with pytest.raises(SealFormatError) as caught:
            read(raw)
        assert caught.value.rule == rule


@given(blob=blobs, data=st.data())
def test_a_blob_that_is_cut_or_longer(blob: Blob, data: st.DataObject) -> None:
    raw = blob.encode()
    with refused(SealFormatError, "seal.damaged"):
        Blob.parse(raw[: data.draw(st.integers(0, len(raw) - 1))])
    with refused(SealFormatError, "seal.damaged", "its end is wrong"):
        Blob.parse(raw + b"\0")


def many(count: int) -> tuple[tuple[bytes, bytes], ...]:
    return tuple((n.to_bytes(32, "big"), bytes(32)) for n in range(count))


def test_the_largest_blob_fits() -> None:
    header = replace(BLOB.header, members=many(MAX_MEMBERS))
    largest = Blob(header, bytes(12), bytes(MAX_DATA + TAG)).encode()
    assert len(largest) == MAX_BLOB < 32 << 10
    assert Blob.parse(largest).encode() == largest
    with refused(SealFormatError, "seal.damaged", "its size is wrong"):
        Blob.parse(bytes(MAX_BLOB + 1))


@pytest.mark.parametrize(
    ("changes", "where"),
    [
        ({"deployment": bytes(31)}, "field"),
        ({"instance": bytes(33)}, "field"),
        ({"key_id": b""}, "field"),
        ({"members": ((bytes(32), bytes(31)),)}, "field"),
        ({"members": ()}, "number of members"),
        ({"members": many(MAX_MEMBERS + 1)}, "number of members"),
        ({"members": many(2)[::-1]}, "order of members"),
        ({"members": many(1) * 2}, "order of members"),
        ({"version": 0}, "version"),
        ({"version": MAX_NUMBER + 1}, "number"),
        ({"list_number": -1}, "number"),
    ],
)
def test_headers_that_make_no_sense(changes: dict[str, Any], where: str) -> None:
    with refused(SealFormatError, "seal.damaged", f"its {where} is wrong"):
        replace(BLOB.header, **changes)


AT_COUNT = len(BLOB_MAGIC) + 3 * 32 + 16
AT_SIZE = AT_COUNT + 2 + 64 + 12


@pytest.mark.parametrize(
    ("at", "new", "where"),
    [
        (0, b"x", "start"),
        (15, b"2", "start"),
        (AT_COUNT, b"\0\0", "number of members"),
        (AT_COUNT, b"\0\x41", "number of members"),
        (AT_COUNT - 8, b"\xff", "number"),
        (AT_SIZE, b"\0\0\0\x0f", "size of a field"),
        (AT_SIZE, (MAX_DATA + TAG + 1).to_bytes(4, "big"), "size of a field"),
    ],
)
def test_blobs_that_make_no_sense(at: int, new: bytes, where: str) -> None:
    raw = BLOB.encode()
    with refused(SealFormatError, "seal.damaged", f"its {where} is wrong"):
        Blob.parse(raw[:at] + new + raw[at + len(new) :])


@pytest.mark.parametrize(
    ("changes", "where"),
    [
        ({"digest": bytes(31)}, "field"),
        ({"seats": (Seat(bytes(32), b"short"),)}, "field"),
        ({"seats": ()}, "number of members"),
        ({"seats": REQUEST.seats[::-1]}, "order of members"),
        ({"seats": REQUEST.seats[:1] * 2}, "order of members"),
        ({"version": 0}, "version"),
        ({"op": Op.CREATE}, "version"),
        ({"op": Op.CREATE, "version": 0}, "digest"),
        ({"op": Op.COMMIT}, "boot number"),
        ({"seats": (Seat(bytes(32), bytes(32), 1),)}, "boot number"),
        ({"seats": (Seat(bytes(32), bytes(32), MAX_NUMBER + 1),)}, "number"),
    ],
)
def test_requests_that_make_no_sense(changes: dict[str, Any], where: str) -> None:
    with refused(SealFormatError, "seal.request", f"its {where} is wrong"):
        replace(REQUEST, **changes)


@pytest.mark.parametrize("op", [0, 4, 255])
def test_an_operation_that_is_none(op: int) -> None:
    raw = REQUEST.encode() + bundle().encode()
    with refused(SealFormatError, "seal.request", "its operation is wrong"):
        Asked.decode(raw[:16] + bytes([op]) + raw[17:])


GOOD = Answer(Refusal("retired", "text"), bytes(64)).encode()


@pytest.mark.parametrize(
    ("change", "where"),
    [
        (lambda raw: b"x" + raw[1:], "start"),
        (lambda raw: raw[:19] + b"\2" + raw[20:], "status"),
        (lambda raw: raw[:19] + b"\0" + raw[20:], "box"),
        (lambda raw: raw[:20] + b"\xff\xff" + raw[22:], "size of a field"),
        (lambda raw: raw[:22] + b"\0" + raw[23:], "size of a field"),
        (lambda raw: raw.replace(b"retired", b"Retired"), "refusal"),
        (lambda raw: raw.replace(b"text", b"te\nt"), "refusal"),
        (lambda raw: raw.replace(b"\0\4text", b"\0\3text"), "end"),
        (lambda raw: raw + b"\0", "end"),
        (lambda raw: raw[:-1], "length"),
        (lambda raw: raw + bytes(500), "size"),
    ],
)
def test_answers_that_make_no_sense(change: Callable[[bytes], bytes], where: str) -> None:
    with refused(SealFormatError, "seal.answer", f"its {where} is wrong"):
        Answer.decode(change(GOOD))


@pytest.mark.parametrize(
    ("raw", "where"),
    [
        (Released(bytes(32), 0, b"d" * 32, 1).encode(), "digest"),
        (Released(bytes(32), 1, b"d" * 32, 0).encode(), "boot number"),
        (bytes(RELEASED - 1), "length"),
        (bytes(RELEASED + 1), "size"),
    ],
)
def test_what_is_in_no_box(raw: bytes, where: str) -> None:
    with refused(SealFormatError, "seal.answer", f"its {where} is wrong"):
        Released.decode(raw)


def expand(key: bytes, info: bytes) -> bytes:
    return HKDF(SHA256(), 32, None, info).derive(key)


def test_a_blob_by_hand() -> None:
    """The key schedule of docs/formats.md, written out a second time."""
    simulator = Simulator(2)
    node = Node(simulator)
    asyncio.run(node.boot().create(b"the data", 3))
    raw = node.disk.raw or b""
    domain, named = b"attestation/seal/committee/", raw[17 : 17 + 96] + (3).to_bytes(8, "big")
    assert raw[:17] == b"committee seal 1\n"
    assert raw[17 : 17 + 64] == DEPLOYMENT + node.instance
    assert raw[113:131] == (3).to_bytes(8, "big") + (1).to_bytes(8, "big") + b"\0\2"
    shares, at = b"", 131
    for member in simulator.ids:
        share = expand(simulator.roots[member], domain + b"contribution/v1\0" + named)
        commitment = domain + b"commitment/v1\0" + named + member + share
        assert raw[at : at + 64] == member + hashlib.sha256(commitment).digest()
        shares, at = shares + member + share, at + 64
    key = expand(shares, domain + b"key/v1\0" + named)
    key = expand(key, domain + b"version/v1\0" + (1).to_bytes(8, "big"))
    nonce, head = raw[at : at + 12], raw[: at + 16]
    assert ChaCha20Poly1305(key).decrypt(nonce, raw[at + 16 :], head) == b"the data"
