"""Fuzz target: offers of guests, as the operator's tool judges them."""

from attestation.errors import AttestationError
from attestation.provision import Offer
from attestation.ticket import Role
from tests.attestation.provision_support import CHALLENGE, accepted, guest

GOOD = guest().offer(CHALLENGE)


def seeds() -> list[bytes]:
    return [GOOD, guest(role=Role.CLIENT, boot="other").offer(CHALLENGE)]


def fuzz_one(data: bytes) -> None:
    try:
        offer = Offer.decode(data)
        assert offer.raw == data == offer.box_pub + offer.bundle.encode()
        accepted(data)
    except AttestationError as error:
        error.diagnostics().encode()
        return
    assert data == GOOD
