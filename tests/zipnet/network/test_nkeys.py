"""Keys and tokens of NATS as text."""

from __future__ import annotations

import base64
import json
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from hypothesis import given
from hypothesis import strategies as st

from zipnet.errors import WireFormatError, ZipnetError
from zipnet.network.nkeys import (
    MAX_TOKEN,
    Kind,
    parse_public,
    public_of,
    public_text,
    sign_token,
    verify_token,
)

KEY = Ed25519PrivateKey.from_private_bytes(bytes(range(32)))
ISSUER = public_of(Kind.ACCOUNT, KEY)
KINDS = st.sampled_from(Kind)


def rule(text: str, kind: Kind = Kind.USER) -> str:
    with pytest.raises(WireFormatError) as caught:
        parse_public(text, kind)
    return caught.value.rule


def refusal(raw: bytes, issuer: str = ISSUER) -> str:
    with pytest.raises(ZipnetError) as caught:
        verify_token(raw, Kind.ACCOUNT, issuer)
    return caught.value.rule


def part(value: object) -> bytes:
    raw = value if isinstance(value, bytes) else json.dumps(value).encode()
    return base64.urlsafe_b64encode(raw).rstrip(b"=")


def signed(claims: object, header: object = None, key: Ed25519PrivateKey = KEY) -> bytes:
    head = {"typ": "JWT", "alg": "ed25519-nkey"} if header is None else header
    text = part(head) + b"." + part(claims)
    return text + b"." + part(key.sign(text))


def test_the_key_pair_of_the_nats_documentation() -> None:
    seed = "SUACSSL3UAHUDXKFSNVUZRF5UHPMWZ6BFDTJ7M6USDXIEDNPPQYYYCU3VY"
    raw = base64.b32decode(seed + "=" * (-len(seed) % 8))[2:34]
    public = "UDXU4RCSJNZOIQHZNWXHXORDPRTGNJAHAHFRGZNEEJCPQTT2M7NLCNF4"
    key = Ed25519PrivateKey.from_private_bytes(raw)
    assert public_of(Kind.USER, key) == public
    assert parse_public(public, Kind.USER) == key.public_key().public_bytes_raw()


@given(KINDS, st.binary(min_size=32, max_size=32))
def test_keys_come_back_and_show_their_kind(kind: Kind, raw: bytes) -> None:
    text = public_text(kind, raw)
    assert text[0] == dict(zip(Kind, "ANUX", strict=True))[kind]
    assert parse_public(text, kind) == raw
    for other in set(Kind) - {kind}:
        assert rule(text, other) == "nkey.kind"


@given(st.binary(min_size=32, max_size=32), st.integers(0, 55), st.sampled_from("ABYZ27"))
def test_a_changed_letter_is_noticed(raw: bytes, at: int, letter: str) -> None:
    text = public_text(Kind.USER, raw)
    changed = text[:at] + letter + text[at + 1 :]
    if changed != text:
        assert rule(changed) == "nkey.checksum"


@pytest.mark.parametrize("text", ["", "U" * 55, "U" * 57, "u" * 56, "U" * 55 + "1", "U" * 55 + "="])
def test_other_text(text: str) -> None:
    assert rule(text) == "nkey.text"


def test_tokens_come_back() -> None:
    token = sign_token({"sub": "x", "nats": {"version": 2}}, Kind.ACCOUNT, KEY).encode()
    claims = verify_token(token, Kind.ACCOUNT, ISSUER)
    assert claims.pop("jti")
    assert claims == {"sub": "x", "nats": {"version": 2}, "iss": ISSUER}


@given(st.data())
def test_altered_tokens_are_refused(data: st.DataObject) -> None:
    token = bytearray(sign_token({"sub": "x"}, Kind.ACCOUNT, KEY).encode())
    at = data.draw(st.integers(0, len(token) - 1))
    before = token[at]
    token[at] = data.draw(st.integers(0, 255).filter(lambda byte: byte != before))
    assert refusal(bytes(token)).startswith("token.")


@pytest.mark.parametrize(
    ("raw", "expected"),
    [
        (b"a" * (MAX_TOKEN + 1), "token.size"),
        (b"a.b", "token.parts"),
        (b"a.b.c.d", "token.parts"),
        (b"a..c", "token.parts"),
        (b"a.b!.c", "token.parts"),
        (b"a.\xff.c", "token.parts"),
        (b"a.b.c", "token.base64"),
        (signed({"iss": ISSUER})[:-1] + b"_", "token.base64"),
        (signed({"iss": ISSUER}, {"typ": "JWT", "alg": "none"}), "token.header"),
        (signed({"iss": ISSUER}, {"typ": "JWT", "alg": "ed25519-nkey", "kid": 1}), "token.header"),
        (signed(b"{"), "token.json"),
        (signed(b"\xff"), "token.json"),
        (signed(b'{"iss":1,"iss":2}'), "token.json"),
        (signed(b'{"iss":NaN}'), "token.json"),
        (signed(b"[" * 40_000), "token.json"),
        (signed([]), "token.object"),
        (signed({}), "token.issuer"),
        (signed({"iss": public_text(Kind.ACCOUNT, bytes(32))}), "token.issuer"),
        (signed({"iss": ISSUER}, key=Ed25519PrivateKey.generate()), "token.signature"),
    ],
)
def test_rules_of_tokens(raw: bytes, expected: str) -> None:
    assert refusal(raw) == expected


def test_an_issuer_of_another_kind() -> None:
    user = public_of(Kind.USER, KEY)
    assert refusal(signed({"iss": user}), user) == "nkey.kind"


@given(st.binary(max_size=200))
def test_any_bytes(raw: bytes) -> None:
    assert refusal(raw).startswith("token.")


@given(st.dictionaries(st.text(max_size=5), st.integers() | st.text(max_size=5), max_size=4))
def test_any_claims(claims: dict[str, Any]) -> None:
    claims.pop("iss", None), claims.pop("jti", None)
    token = sign_token(claims, Kind.ACCOUNT, KEY).encode()
    assert claims.items() <= verify_token(token, Kind.ACCOUNT, ISSUER).items()
