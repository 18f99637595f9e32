"""Requests of a nats-server about a connection, as a server would sign them."""

from __future__ import annotations

import base64
from typing import Any

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from zipnet.network.nkeys import Kind, public_of, public_text, sign_token

SERVER = Ed25519PrivateKey.from_private_bytes(b"\1" * 32)
SERVER_ID = public_of(Kind.SERVER, SERVER)
ISSUER = public_text(Kind.ACCOUNT, b"\2" * 32)
USER = public_text(Kind.USER, b"\3" * 32)
NONCE = "c2FtcGxlX25vbmNl"


def credentials(key: Ed25519PrivateKey, bundle: bytes, nonce: str = NONCE) -> dict[str, str]:
    """What a client shows."""
    return {
        "nkey": public_of(Kind.USER, key),
        "sig": base64.b64encode(key.sign(nonce.encode())).decode(),
        "auth_token": base64.b64encode(bundle).decode(),
    }


def claims(options: dict[str, Any] | None = None, **changes: Any) -> dict[str, Any]:
    """As nats-server 2.15 writes them; `changes` replace fields of the part `nats`."""
    return {
        "aud": "nats-authorization-request",
        "exp": 1_800_000_002,
        "iat": 1_800_000_000,
        "sub": ISSUER,
        "nats": {
            "type": "authorization_request",
            "version": 2,
            "server_id": {"name": "alpha", "host": "127.0.0.1", "id": SERVER_ID},
            "user_nkey": USER,
            "client_info": {"host": "127.0.0.1", "id": 7, "kind": "Client", "nonce": NONCE},
            "connect_opts": {"lang": "python3", "protocol": 1, **(options or {})},
            **changes,
        },
    }


def request(options: dict[str, Any] | None = None, **changes: Any) -> bytes:
    """Signed by the server."""
    return sign_token(claims(options, **changes), Kind.SERVER, SERVER).encode()
