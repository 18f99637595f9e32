"""Fuzz target: collateral files, and verification with what they hold."""

from attestation.errors import AttestationError
from attestation.verify import Collateral
from tests.attestation.mock_support import COLLATERAL, NOW, REPORT_DATA, TEE, VERIFIER

QUOTE = TEE.quote(REPORT_DATA)


def seeds() -> list[bytes]:
    revoked = TEE.collateral(revoked=["pck", "tcb-signer"])
    return [COLLATERAL.dumps(), revoked.dumps()]


def fuzz_one(data: bytes) -> None:
    try:
        collateral = Collateral.loads(data)
        VERIFIER.verify(QUOTE, collateral, NOW)
    except AttestationError as error:
        error.diagnostics().encode()
        return
    assert Collateral.loads(collateral.dumps()) == collateral
