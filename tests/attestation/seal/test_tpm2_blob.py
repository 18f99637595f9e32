"""The format of sealed data: canonical, bounded, and nothing of it believed."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from attestation.errors import SealFormatError
from attestation.seal.base import MAX_DATA
from attestation.seal.tpm2_blob import MAGIC, MAX_BLOB, MAX_PRIVATE, TAG, Blob, Header
from attestation.seal.tpm2_policy import PUBLIC_SIZE, Pcrs

KEY = bytes(32)
HEADER = Header(
    "node", 0x01500A01, 7, Pcrs.parse("sha256:7,11"), bytes(32), bytes(PUBLIC_SIZE), bytes(158)
)
GOOD = Blob.encrypt(HEADER, KEY, b"data").encode()
# Where fields begin.
NAME = len(MAGIC) + 2
SELECT = NAME + 4 + 4 + 8
PUBLIC = SELECT + 3 + 32
PRIVATE = PUBLIC + 2 + PUBLIC_SIZE
SIZE = PRIVATE + 2 + 158 + 12

headers = st.builds(
    Header,
    st.from_regex(r"[a-z][a-z0-9-]{0,31}", fullmatch=True),
    st.integers(0, 2**32 - 1),
    st.integers(0, 2**64 - 1),
    st.sets(st.integers(0, 23), min_size=1, max_size=8).map(
        lambda found: Pcrs.parse(f"sha256:{','.join(map(str, found))}")
    ),
    st.binary(min_size=32, max_size=32),
    st.binary(min_size=PUBLIC_SIZE, max_size=PUBLIC_SIZE),
    st.binary(min_size=1, max_size=MAX_PRIVATE),
)


@given(headers, st.binary(max_size=200), st.binary(min_size=32, max_size=32))
def test_round_trip(header: Header, data: bytes, key: bytes) -> None:
    blob = Blob.encrypt(header, key, data)
    raw = blob.encode()
    assert Blob.parse(raw) == blob
    assert Blob.parse(raw).decrypt(key) == data


def test_the_largest() -> None:
    header = Header("a" * 32, 0, 0, HEADER.pcrs, bytes(32), bytes(PUBLIC_SIZE), bytes(MAX_PRIVATE))
    raw = Blob.encrypt(header, KEY, bytes(MAX_DATA)).encode()
    assert len(raw) == MAX_BLOB
    assert Blob.parse(raw).decrypt(KEY) == bytes(MAX_DATA)


def put(at: int, new: bytes) -> bytes:
    return GOOD[:at] + new + GOOD[at + len(new) :]


@pytest.mark.parametrize(
    ("raw", "rule"),
    [
        (b"", "seal.cut"),
        (GOOD[: len(MAGIC)], "seal.cut"),
        (GOOD[:-1], "seal.cut"),
        (put(0, b"A"), "seal.version"),
        (put(len(MAGIC), b"\2"), "seal.version"),
        (put(NAME, b"N"), "seal.blob-name"),
        (put(NAME, b"\xff"), "seal.blob-name"),
        (put(NAME - 1, b"\0"), "seal.blob-name"),
        (put(NAME - 1, b"\x21"), "seal.blob-name"),
        (put(SELECT, bytes(3)), "seal.blob-pcrs"),
        (put(SELECT, b"\xff\x01\0"), "seal.blob-pcrs"),
        (put(PUBLIC, (PUBLIC_SIZE - 1).to_bytes(2, "big")), "seal.field-size"),
        (put(PUBLIC, (PUBLIC_SIZE + 1).to_bytes(2, "big")), "seal.field-size"),
        (put(PRIVATE, b"\0\0"), "seal.field-size"),
        (put(PRIVATE, (MAX_PRIVATE + 1).to_bytes(2, "big")), "seal.field-size"),
        (put(SIZE, (TAG - 1).to_bytes(4, "big")), "seal.field-size"),
        (put(SIZE, (MAX_DATA + TAG + 1).to_bytes(4, "big")), "seal.field-size"),
        (put(SIZE, (TAG + 5).to_bytes(4, "big")), "seal.cut"),
        (put(SIZE, (TAG + 3).to_bytes(4, "big")), "seal.trailing"),
        (GOOD + b"\0", "seal.trailing"),
        (bytes(MAX_BLOB + 1), "seal.blob-size"),
    ],
)
def test_refused(raw: bytes, rule: str) -> None:
    with pytest.raises(SealFormatError) as caught:
        Blob.parse(raw)
    assert caught.value.rule == rule
    assert caught.value.hint
    caught.value.diagnostics().encode("ascii")


def test_every_bit_counts() -> None:
    for at in range(len(GOOD)):
        raw = put(at, bytes([GOOD[at] ^ 1]))
        with pytest.raises(SealFormatError):
            Blob.parse(raw).decrypt(KEY)


@pytest.mark.parametrize("key", [bytes(31) + b"\1", bytes(31), b""])
def test_another_key(key: bytes) -> None:
    with pytest.raises(SealFormatError) as caught:
        Blob.parse(GOOD).decrypt(key)
    assert caught.value.rule == "seal.tag"


def test_the_same_data_never_looks_the_same() -> None:
    assert Blob.encrypt(HEADER, KEY, b"data").encode() != GOOD
