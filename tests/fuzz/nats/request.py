"""Fuzz target: what a nats-server asks about a connection, and what the connection shows.

Whatever has a signature is the server's word for what a client sent: so data that is JSON is also
signed, and read again.
"""

import json

from attestation.errors import AttestationError
from tests.attestation.tickets import bundle, quote
from tests.zipnet.network.callouts import ISSUER, SERVER, SERVER_ID, claims, credentials, request
from zipnet.errors import ZipnetError
from zipnet.network.callout import ConnectRequest
from zipnet.network.nkeys import Kind, parse_public, sign_token


def seeds() -> list[bytes]:
    shown = credentials(SERVER, bundle(quote().canonical).encode())
    return [
        request(),
        request(shown),
        json.dumps(claims()).encode(),
        json.dumps(claims(shown)).encode(),
        json.dumps(claims({"user": "a", "pass": "b"})).encode(),
        SERVER_ID.encode(),
    ]


def fuzz_one(data: bytes) -> None:
    _read(data)
    try:
        parse_public(data.decode("ascii", "replace"), Kind.SERVER)
    except ZipnetError as error:
        error.diagnostics().encode()
    try:
        stated = json.loads(data)
    except (ValueError, RecursionError):
        return
    if isinstance(stated, dict):
        try:
            token = sign_token(stated, Kind.SERVER, SERVER)
        except (ValueError, RecursionError):
            return
        _read(token.encode())


def _read(raw: bytes) -> None:
    try:
        found = ConnectRequest.parse(raw, SERVER_ID, ISSUER)
        shown = found.bundle()
    except (AttestationError, ZipnetError) as error:
        error.diagnostics().encode()
        return
    assert found.server == SERVER_ID
    assert shown is None or found.nkey
