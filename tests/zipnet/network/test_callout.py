"""What a server asks about a connection: how it is read, and how it is answered."""

from __future__ import annotations

import base64
from dataclasses import replace
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from attestation.bundle import Bundle
from attestation.errors import AttestationError
from tests.attestation.tickets import TICKET, bundle
from tests.zipnet.network.callouts import (
    ISSUER,
    NONCE,
    SERVER,
    SERVER_ID,
    USER,
    claims,
    credentials,
    request,
)
from zipnet.errors import ZipnetError
from zipnet.network.callout import Admitted, ConnectRequest, accept, refuse
from zipnet.network.nkeys import Kind, public_of, sign_token, verify_token
from zipnet.network.rights import Rights

KEY = Ed25519PrivateKey.from_private_bytes(b"\4" * 32)
OWN = public_of(Kind.ACCOUNT, KEY)


def holder() -> tuple[Ed25519PrivateKey, Bundle]:
    """A bundle and the key that it names."""
    ticket = replace(TICKET, peer_id=KEY.public_key().public_bytes_raw())
    return KEY, Bundle.sign(ticket, b"quote", KEY)


def rule(raw: bytes, *, server: str = SERVER_ID, issuer: str = ISSUER) -> str:
    with pytest.raises((ZipnetError, AttestationError)) as caught:
        ConnectRequest.parse(raw, server, issuer).bundle()
    return caught.value.rule


def test_a_guest_shows_nothing() -> None:
    found = ConnectRequest.parse(request(), SERVER_ID, ISSUER)
    assert (found.user, found.server, found.cid) == (USER, SERVER_ID, 7)
    assert found.bundle() is None


def test_a_client_shows_a_bundle_of_its_key() -> None:
    key, shown = holder()
    options = credentials(key, shown.encode())
    assert ConnectRequest.parse(request(options), SERVER_ID, ISSUER).bundle() == shown
    # Clients in Go write it without padding, and in the other alphabet.
    options["sig"] = base64.urlsafe_b64encode(key.sign(NONCE.encode())).decode().rstrip("=")
    assert ConnectRequest.parse(request(options), SERVER_ID, ISSUER).bundle() == shown


def test_rules_of_what_is_shown() -> None:
    key, shown = holder()
    good = credentials(key, shown.encode())
    other = Ed25519PrivateKey.generate()
    for changes, expected in (
        ({"jwt": "x"}, "credentials.kind"),
        ({"user": "x", "pass": "y"}, "credentials.kind"),
        ({"auth_token": ""}, "credentials.incomplete"),
        ({"nkey": ""}, "credentials.incomplete"),
        ({"sig": ""}, "credentials.incomplete"),
        ({"nkey": "x"}, "nkey.text"),
        ({"nkey": SERVER_ID}, "nkey.kind"),
        ({"sig": "!"}, "credentials.signature"),
        ({"sig": "AAAA"}, "credentials.possession"),
        # Who has heard ticket and signature of another nonce.
        (credentials(key, shown.encode(), "another-nonce"), "credentials.possession"),
        ({"auth_token": "?"}, "credentials.token"),
        ({"auth_token": "AAAA"}, "bundle.size"),
        (credentials(other, shown.encode()), "credentials.peer"),
        ({"auth_token": base64.b64encode(bundle().encode()).decode()}, "credentials.peer"),
    ):
        assert rule(request({**good, **changes})) == expected
    for nonce in ("short", "with/slash/in/it", "x" * 65, ""):
        options = credentials(key, shown.encode(), nonce)
        client = {"id": 7, "nonce": nonce}
        assert rule(request(options, client_info=client)) == "credentials.nonce"


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"type": "authorization_response"}, "request.type"),
        ({"client_info": None}, "request.field"),
        ({"connect_opts": []}, "request.field"),
        ({"user_nkey": "x"}, "nkey.text"),
        ({"user_nkey": SERVER_ID}, "nkey.kind"),
        ({"client_info": {"id": 0}}, "request.id"),
        ({"client_info": {"id": True}}, "request.id"),
        ({"client_info": {"id": 1 << 64}}, "request.id"),
        ({"client_info": {"id": 7, "nonce": 7}}, "request.text"),
        ({"client_info": {"id": 7, "host": "ö"}}, "request.text"),
        ({"connect_opts": {"auth_token": "A" * 30_000}}, "request.text"),
    ],
)
def test_rules_of_requests(changes: dict[str, Any], expected: str) -> None:
    assert rule(request(**changes)) == expected


def test_only_requests_of_the_own_server_to_the_own_issuer() -> None:
    other = public_of(Kind.SERVER, KEY)
    assert rule(request(), server=other) == "token.issuer"
    assert rule(request(), issuer=OWN) == "request.issuer"
    stated = {**claims(), "nats": 1}
    assert rule(sign_token(stated, Kind.SERVER, SERVER).encode()) == "request.field"
    # What its own key has not signed.
    forged = sign_token(claims(), Kind.SERVER, KEY)
    assert rule(forged.encode()) == "token.issuer"


def test_answers_are_what_a_server_takes() -> None:
    asked = ConnectRequest.parse(request(), SERVER_ID, ISSUER)
    rights = Rights(("a.*",), ("b.>",), answers=2)
    raw = accept(asked, Admitted("EDGE", "me", rights, 123), KEY, 100)
    answer = verify_token(raw, Kind.ACCOUNT, OWN)
    assert (answer["sub"], answer["aud"], answer["iat"]) == (USER, SERVER_ID, 100)
    assert answer["nats"]["type"] == "authorization_response"
    user = verify_token(answer["nats"]["jwt"].encode(), Kind.ACCOUNT, OWN)
    assert (user["sub"], user["aud"], user["name"], user["exp"]) == (USER, "EDGE", "me", 123)
    allowed = user["nats"]
    assert (allowed["pub"], allowed["sub"]) == ({"allow": ["a.*"]}, {"allow": ["b.>"]})
    assert allowed["resp"] == {"max": 2, "ttl": 5_000_000_000}
    endless = accept(asked, Admitted("EDGE", "me", Rights((), ())), KEY, 100)
    said = verify_token(endless, Kind.ACCOUNT, OWN)["nats"]["jwt"]
    user = verify_token(said.encode(), Kind.ACCOUNT, OWN)
    assert "exp" not in user
    assert "resp" not in user["nats"]


def test_a_refusal_says_why_and_grants_nothing() -> None:
    asked = ConnectRequest.parse(request(), SERVER_ID, ISSUER)
    answer = verify_token(refuse(asked, "mrtd: " + "x" * 500, KEY, 100), Kind.ACCOUNT, OWN)
    assert answer["nats"]["error"].startswith("mrtd: ")
    assert len(answer["nats"]["error"]) == 200
    assert "jwt" not in answer["nats"]


def test_the_token_is_in_no_repr() -> None:
    key, shown = holder()
    options = credentials(key, shown.encode())
    assert options["auth_token"] not in repr(
        ConnectRequest.parse(request(options), SERVER_ID, ISSUER)
    )
