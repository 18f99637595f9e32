"""Keys and tokens of NATS in their text form.

key    base32 (RFC 4648, without padding) of a prefix byte ‖ the public key (32) ‖ its checksum:
       CRC-16/XMODEM over what precedes it, little endian (github.com/nats-io/nkeys, strkey.go)
token  header.claims.signature, each base64url without padding; the signature (Ed25519) is over
       "header.claims", by the key that the claims name as `iss` (github.com/nats-io/jwt,
       version 2: algorithm "ed25519-nkey")
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import json
import re
from collections.abc import Mapping
from enum import IntEnum
from typing import Any, NoReturn

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from zipnet.errors import Refused, WireFormatError

MAX_TOKEN = 1 << 16
# What a peer key may sign for a server of the bus, which is not trusted: what that key signs
# elsewhere begins with a domain, and all domains have a slash.
NONCE = re.compile(r"[A-Za-z0-9_-]{8,64}")
_HEADER = {"typ": "JWT", "alg": "ed25519-nkey"}
_TEXT = re.compile(r"[A-Z2-7]{56}")
_PART = re.compile(r"[A-Za-z0-9_-]+")


class Kind(IntEnum):
    """What a key is for: the prefix byte, which shows as the first letter."""

    ACCOUNT = 0  # A
    SERVER = 13 << 3  # N
    USER = 20 << 3  # U
    CURVE = 23 << 3  # X: X25519, all others are Ed25519


def public_text(kind: Kind, raw: bytes) -> str:
    """A public key (32 bytes) as text."""
    body = bytes([kind]) + raw
    return base64.b32encode(body + binascii.crc_hqx(body, 0).to_bytes(2, "little")).decode()


def parse_public(text: str, kind: Kind) -> bytes:
    """The 32 bytes of a public key of this kind. Raises WireFormatError."""
    if not isinstance(text, str) or not _TEXT.fullmatch(text):
        _refuse("nkey.text", "56 of A-Z 2-7", _shown(text))
    raw = base64.b32decode(text)
    body, checksum = raw[:-2], raw[-2:]
    if binascii.crc_hqx(body, 0).to_bytes(2, "little") != checksum:
        _refuse("nkey.checksum", "the checksum of the rest", text[-4:], "it was mistyped")
    if body[0] != kind:
        letter = public_text(kind, bytes(32))[0]
        _refuse("nkey.kind", f"one of a {kind.name.lower()}, with {letter} first", text[0])
    return body[1:]


def public_of(kind: Kind, key: Ed25519PrivateKey) -> str:
    """The public half of a key as text."""
    return public_text(kind, key.public_key().public_bytes_raw())


def sign_token(claims: Mapping[str, Any], kind: Kind, key: Ed25519PrivateKey) -> str:
    """A token of these claims, with `iss` and `jti` added, signed by a key of this kind."""
    stated = {**claims, "iss": public_of(kind, key)}
    name = hashlib.sha256(_json(stated)).digest()
    stated["jti"] = base64.b32encode(name).decode().rstrip("=")
    signed = _encode(_json(_HEADER)) + b"." + _encode(_json(stated))
    return (signed + b"." + _encode(key.sign(signed))).decode()


def verify_token(raw: bytes, kind: Kind, issuer: str) -> dict[str, Any]:
    """The claims of a token that `issuer`, a key of this kind as text, has signed.

    Raises WireFormatError for what is no token, Refused for one of another issuer or altered.
    """
    if len(raw) > MAX_TOKEN:
        _refuse("token.size", f"at most {MAX_TOKEN} bytes", str(len(raw)))
    parts = raw.decode("ascii", "replace").split(".")
    if len(parts) != 3 or not all(map(_PART.fullmatch, parts)):
        _refuse("token.parts", "three parts in base64url", f"{len(parts)} parts")
    head, claims, signature = (_decode(part) for part in parts)
    if _object(head) != _HEADER:
        _refuse("token.header", "ed25519-nkey", _shown(head))
    stated = _object(claims)
    if stated.get("iss") != issuer:
        raise Refused(
            "the token is of another issuer",
            expected=issuer,
            got=_shown(stated.get("iss")),
            rule="token.issuer",
        )
    key = Ed25519PublicKey.from_public_bytes(parse_public(issuer, kind))
    try:
        key.verify(signature, raw[: raw.rindex(b".")])
    except InvalidSignature:
        raise Refused("the token is not signed by its issuer", rule="token.signature") from None
    return stated


def _json(value: object) -> bytes:
    return json.dumps(value, separators=(",", ":"), sort_keys=True).encode()


def _object(raw: bytes) -> dict[str, Any]:
    try:
        value = json.loads(raw.decode(), object_pairs_hook=_once, parse_constant=_no_number)
    except (ValueError, RecursionError) as error:
        _refuse("token.json", "JSON in UTF-8", ascii(str(error))[:80])
    if not isinstance(value, dict):
        _refuse("token.object", "an object", type(value).__name__)
    return value


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("a name occurs twice")
    return found


def _no_number(name: str) -> NoReturn:
    raise ValueError(f"{name} is no number")


def _encode(raw: bytes) -> bytes:
    return base64.urlsafe_b64encode(raw).rstrip(b"=")


def _decode(part: str) -> bytes:
    try:
        raw = base64.urlsafe_b64decode(part + "=" * (-len(part) % 4))
    except binascii.Error as error:
        _refuse("token.base64", "whole bytes", str(error))
    if _encode(raw).decode() != part:
        _refuse("token.base64", "unused bits that are zero", _shown(part[-4:]))
    return raw


def _refuse(rule: str, expected: str, got: str, hint: str = "") -> NoReturn:
    what = rule.partition(".")[0]
    raise WireFormatError(
        "this is no public key" if what == "nkey" else "this is no token of a NATS server",
        expected=expected,
        got=got,
        rule=rule,
        hint=hint,
    )


def _shown(value: object) -> str:
    return ascii(value)[:80]
