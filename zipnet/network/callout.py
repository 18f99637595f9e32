"""The question that a nats-server asks about each new connection, and the answer.

Request, response and the user token inside it are as in github.com/nats-io/jwt, version 2
(authorization_claims.go, user_claims.go). A connection shows a peer key as its nkey, a signature
of the server's nonce by that key, and as its token the base64 of a bundle.
"""

from __future__ import annotations

import base64
import binascii
from dataclasses import dataclass, field
from typing import Any

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from attestation.bundle import MAX_BUNDLE, Bundle
from zipnet.errors import Refused, WireFormatError
from zipnet.network.nkeys import NONCE, Kind, parse_public, sign_token, verify_token
from zipnet.network.rights import Rights

ASKED = "$SYS.REQ.USER.AUTH"
ANSWER_NS = 5_000_000_000
MAX_ERROR = 200
_MAX_TEXT = MAX_BUNDLE * 4 // 3 + 4


@dataclass(frozen=True, slots=True)
class ConnectRequest:
    """A connection that a server asks about; nothing of what the connection says is checked yet.

    `user` is the key (text) that the server made up for it, `server` its own, `cid` its number for
    the connection, `others` names credentials that no node of a deployment shows.
    """

    user: str
    server: str
    cid: int
    host: str
    nonce: str
    nkey: str
    signature: str
    token: str = field(repr=False)
    others: tuple[str, ...] = ()

    @classmethod
    def parse(cls, raw: bytes, server: str, issuer: str) -> ConnectRequest:
        """The request that this server (its key as text) signed, for the holder of this issuer.

        Raises WireFormatError, and Refused for one of another server or to another issuer.
        """
        claims = verify_token(raw, Kind.SERVER, server)
        if claims.get("sub") != issuer:
            raise Refused(
                "the server asks for another issuer",
                expected=issuer,
                got=ascii(claims.get("sub"))[:80],
                rule="request.issuer",
                hint="write its configuration anew, with the issuer of `zipnet nats-config keys`",
            )
        asked = _part(claims, "nats")
        if asked.get("type") != "authorization_request":
            raise _wrong("request.type", "authorization_request", asked.get("type"))
        client, options = _part(asked, "client_info"), _part(asked, "connect_opts")
        user, cid = _text(asked, "user_nkey"), client.get("id")
        parse_public(user, Kind.USER)
        if type(cid) is not int or not 0 < cid < 1 << 64:
            raise _wrong("request.id", "the number of a connection", cid)
        return cls(
            user=user,
            server=server,
            cid=cid,
            host=_text(client, "host"),
            nonce=_text(client, "nonce"),
            nkey=_text(options, "nkey"),
            signature=_text(options, "sig"),
            token=_text(options, "auth_token"),
            others=tuple(name for name in ("jwt", "user", "pass") if options.get(name)),
        )

    def bundle(self) -> Bundle | None:
        """What the connection shows, once it has proved that it holds that peer key.

        None for a guest, who shows nothing. Raises Refused, WireFormatError, TicketFormatError.
        """
        if self.others:
            raise Refused(
                "the connection shows credentials that are not used here",
                expected="an nkey and a ticket as token, or nothing",
                got=" and ".join(self.others),
                rule="credentials.kind",
            )
        if not self.nkey and not self.token:
            return None
        if not self.nkey or not self.token or not self.signature:
            raise Refused(
                "the connection shows only a part of what lets a client in",
                expected="an nkey, a signature of the nonce, and a ticket as token",
                got="no ticket" if not self.token else "no nkey" if not self.nkey else "unsigned",
                rule="credentials.incomplete",
                hint="a guest shows none of them; a member's nkey is in the configuration",
            )
        peer = parse_public(self.nkey, Kind.USER)
        self._check_possession(peer)
        bundle = Bundle.decode(_base64(self.token, "credentials.token"))
        if bundle.ticket.peer_id != peer:
            raise Refused(
                "the ticket is of another peer",
                expected=peer.hex(),
                got=bundle.ticket.peer_id.hex(),
                rule="credentials.peer",
                hint="connect with the key that the ticket names",
            )
        return bundle

    def _check_possession(self, peer: bytes) -> None:
        if not NONCE.fullmatch(self.nonce):
            raise _wrong("credentials.nonce", "8 to 64 of A-Z a-z 0-9 _ -", self.nonce)
        signature = _base64(self.signature, "credentials.signature")
        try:
            Ed25519PublicKey.from_public_bytes(peer).verify(signature, self.nonce.encode())
        except InvalidSignature:
            raise Refused(
                "the nonce is not signed by the nkey",
                expected=f"a signature by {peer.hex()}",
                rule="credentials.possession",
                hint="whoever shows a ticket must hold its key",
            ) from None


@dataclass(frozen=True, slots=True)
class Admitted:
    """What a connection may do, in which account, and until when (Unix seconds, 0 for no end)."""

    account: str
    name: str
    rights: Rights
    until: int = 0


def accept(request: ConnectRequest, admitted: Admitted, key: Ed25519PrivateKey, now: int) -> bytes:
    """The answer that lets a connection in, signed by the issuer `key` at `now` (Unix seconds)."""
    rights = admitted.rights
    allowed: dict[str, Any] = {
        "type": "user",
        "version": 2,
        "pub": {"allow": list(rights.publish)},
        "sub": {"allow": list(rights.subscribe)},
        "allowed_connection_types": ["STANDARD"],
        "subs": -1,
        "data": -1,
        "payload": -1,
    }
    if rights.answers:
        allowed["resp"] = {"max": rights.answers, "ttl": ANSWER_NS}
    claims: dict[str, Any] = {
        "sub": request.user,
        "aud": admitted.account,
        "name": admitted.name,
        "iat": now,
        "nats": allowed,
    }
    if admitted.until:
        claims["exp"] = admitted.until
    return _answer(request, {"jwt": sign_token(claims, Kind.ACCOUNT, key)}, key, now)


def refuse(request: ConnectRequest, reason: str, key: Ed25519PrivateKey, now: int) -> bytes:
    """The answer that turns a connection away; the server logs the reason, and tells nobody."""
    return _answer(request, {"error": reason[:MAX_ERROR]}, key, now)


def _answer(
    request: ConnectRequest, said: dict[str, str], key: Ed25519PrivateKey, now: int
) -> bytes:
    claims = {
        "sub": request.user,
        "aud": request.server,
        "iat": now,
        "nats": {"type": "authorization_response", "version": 2, **said},
    }
    return sign_token(claims, Kind.ACCOUNT, key).encode()


def _part(value: dict[str, Any], name: str) -> dict[str, Any]:
    found = value.get(name)
    if not isinstance(found, dict):
        raise _wrong("request.field", f"an object {name}", found)
    return found


def _text(value: dict[str, Any], name: str) -> str:
    """A text, empty if it is not there."""
    found = value.get(name, "")
    if not isinstance(found, str) or len(found) > _MAX_TEXT or not found.isascii():
        raise _wrong("request.text", f"{name} as ASCII of at most {_MAX_TEXT} characters", found)
    return found


def _base64(text: str, rule: str) -> bytes:
    """Bytes in base64 of either alphabet, with or without padding, as clients send both."""
    plain = text.rstrip("=").translate(str.maketrans("-_", "+/"))
    try:
        return base64.b64decode(plain + "=" * (-len(plain) % 4), validate=True)
    except binascii.Error:
        raise _wrong(rule, "base64", text) from None


def _wrong(rule: str, expected: str, got: object) -> WireFormatError:
    return WireFormatError(
        "what a connection shows, or its server says of it, is malformed",
        expected=expected,
        got=ascii(got)[:80],
        rule=rule,
    )
