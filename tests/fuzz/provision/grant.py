"""Fuzz target: grants, as a guest takes them for its only offer."""

import copy

from attestation.errors import AttestationError
from attestation.provision import Grant
from tests.attestation.provision_support import (
    CHALLENGE,
    COLLEAGUE,
    SECRET,
    STRANGER,
    granted,
    guest,
)

WAITING = guest()
OFFER = WAITING.offer(CHALLENGE)
GOOD = [granted(OFFER), granted(OFFER, COLLEAGUE, secret=b"")]


def seeds() -> list[bytes]:
    return [
        *GOOD,
        granted(OFFER, STRANGER),
        granted(OFFER, config=b"a deploymenT\n"),
        granted(OFFER, config=b""),
    ]


def fuzz_one(data: bytes) -> None:
    try:
        assert Grant.decode(data).encode() == data
        # A copy: a grant uses the offer up.
        given = copy.copy(WAITING).accept(data)
    except AttestationError as error:
        error.diagnostics().encode()
        return
    assert data in GOOD
    assert given.secret in {SECRET, b""}
