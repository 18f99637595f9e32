"""Fuzz target: files of collateral, bundles or not, and the signatures of what they hold."""

from attestation.collateral_cache import Bundle, read_collateral
from attestation.errors import AttestationError
from tests.attestation.mock_support import COLLATERAL, NOW, TEE, VERIFIER


def seeds() -> list[bytes]:
    revoked = TEE.collateral(revoked=["tcb-signer"])
    return [Bundle.of(COLLATERAL).dumps(), Bundle.of(revoked).dumps(), COLLATERAL.dumps()]


def fuzz_one(data: bytes) -> None:
    try:
        bundle = Bundle.of(read_collateral(data))
        again = Bundle.loads(bundle.dumps())
        VERIFIER.check_collateral(bundle.collateral, NOW)
    except AttestationError as error:
        error.diagnostics().encode()
        return
    assert again == bundle
    assert bundle.is_valid(NOW)
    bundle.check_follows(bundle)
