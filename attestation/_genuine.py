"""Whether collateral is genuine: its signatures and their signers, without a quote.

The verification of a quote repeats all of this. This is for whoever keeps collateral: nothing
forged may take the place of what is good.
"""

from datetime import datetime
from types import MappingProxyType
from typing import NoReturn

from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.ec import (
    ECDSA,
    SECP256R1,
    EllipticCurvePublicKey,
)
from cryptography.hazmat.primitives.asymmetric.utils import encode_dss_signature
from cryptography.hazmat.primitives.hashes import SHA256

from attestation.collateral_format import Certificate, Collateral, Crl, Parsed
from attestation.errors import CollateralRejected
from attestation.moments import utc

# Names of Intel, "SGX PCK Certificate and Certificate Revocation List Profile Specification" 1.5;
# the keys are the values of `ca` in a request for the PCK CRL (Intel PCS API version 4).
TCB_SIGNER = "Intel SGX TCB Signing"
PCK_ISSUERS = MappingProxyType(
    {"platform": "Intel SGX PCK Platform CA", "processor": "Intel SGX PCK Processor CA"}
)

# Keys and algorithms in certificates are read when they are used: any of these is a no.
_UNVERIFIABLE = (ValueError, TypeError, InvalidSignature, UnsupportedAlgorithm)


def check(collateral: Collateral, now: datetime, root_der: bytes) -> None:
    """Check that all of it is signed below this root, not revoked, and valid at `now`.

    Dates come last. Raises CollateralRejected, and PolicyError for a `now` without time zone.
    """
    now = utc(now)
    parsed = collateral.parsed
    for name, chain in parsed.issuers.items():
        if chain[-1].der != root_der:
            _refuse(
                "root-mismatch",
                f"{name} ends at another root",
                "the root of this verifier",
                _shown(chain[-1].common_name) or "a root without a name",
                "mock collateral is for a mock verifier only; a production verifier takes Intel's",
            )
    _check_roles(parsed)
    _check_signatures(collateral)
    for name, start, end in parsed.periods():
        expected = f"{name} from {start.isoformat()} to {end.isoformat()}"
        if now < start:
            _refuse(
                "collateral-not-yet-valid",
                "collateral is not valid yet",
                expected,
                now.isoformat(),
                "check the clock of this machine",
            )
        if now >= end:
            _refuse(
                "collateral-expired",
                "collateral is no longer valid",
                expected,
                now.isoformat(),
                "fetch the collateral for this platform again",
            )


def may_sign(chain: tuple[Certificate, ...]) -> bool:
    """Whether a chain is that of the only kind of key that may sign TCB info and QE identity."""
    leaf = chain[0]
    return len(chain) == 2 and leaf.common_name == TCB_SIGNER and not leaf.has_sgx_extension


def is_issued(certificate: Certificate, issuer: Certificate) -> bool:
    """Whether the issuer's key signed the certificate, which names it as its issuer."""
    try:
        certificate.x509.verify_directly_issued_by(issuer.x509)
    except _UNVERIFIABLE:
        return False
    return True


def is_signed(crl: Crl, issuer: Certificate) -> bool:
    """Whether the issuer's key signed the revocation list."""
    try:
        key = issuer.x509.public_key()
        return isinstance(key, EllipticCurvePublicKey) and crl.x509.is_signature_valid(key)
    except _UNVERIFIABLE:
        return False


def _check_roles(parsed: Parsed) -> None:
    for name, chain in list(parsed.issuers.items())[:2]:
        if not may_sign(chain):
            _refuse(
                "collateral-signer",
                f"{name} belongs to a key that may not sign collateral",
                f"{TCB_SIGNER!r}, issued by the root",
                _shown(chain[0].common_name),
            )
    ca, root = parsed.pck_crl_issuer[0], parsed.pck_crl_issuer[-1]
    if len(parsed.pck_crl_issuer) != 2 or ca.common_name not in PCK_ISSUERS.values():
        _refuse(
            "pck-crl-chain",
            "revocation list of PCK certificates comes with the chain of another authority",
            f"{' or '.join(map(repr, PCK_ISSUERS.values()))}, issued by the root",
            _shown(ca.common_name),
        )
    if parsed.pck_crl.issuer != ca.subject:
        _refuse(
            "pck-crl-issuer",
            "revocation list of PCK certificates is of another issuer than its chain",
            _shown(ca.common_name),
            "another issuer",
        )
    if parsed.root_crl.issuer != root.subject:
        _refuse(
            "root-crl-issuer",
            "revocation list of the root is not issued by the root",
            "the root as issuer",
            "another issuer",
        )


def _check_signatures(collateral: Collateral) -> None:
    parsed = collateral.parsed
    ca, root = parsed.pck_crl_issuer
    tcb_signer, qe_signer = parsed.tcb_info_issuer[0], parsed.qe_identity_issuer[0]
    for rule, good, what in (
        ("tcb-info-chain", is_issued(tcb_signer, root), "a signer of TCB info, of the root"),
        ("qe-identity-chain", is_issued(qe_signer, root), "a signer of QE identity, of the root"),
        ("pck-ca-chain", is_issued(ca, root), "a PCK authority of the root"),
        ("root-crl", is_signed(parsed.root_crl, root), "a revocation list signed by the root"),
        ("pck-crl", is_signed(parsed.pck_crl, ca), "a revocation list signed by its authority"),
    ):
        if not good:
            _refuse(rule, "collateral is not genuine", what, "another")
    # Not before: numbers in certificates of strangers can be such that asking for them fails.
    revoked = parsed.root_crl.revokes
    for rule, bad, what in (
        ("root-revoked", revoked(root), "root"),
        ("pck-ca-revoked", revoked(ca), "PCK authority"),
        ("tcb-info-signer-revoked", revoked(tcb_signer), "signer of TCB info"),
        ("qe-identity-signer-revoked", revoked(qe_signer), "signer of QE identity"),
    ):
        if bad:
            _refuse(rule, f"{what} is revoked", "one that is not on the list", "one that is")
    tcb_info = (collateral.tcb_info, collateral.tcb_info_signature)
    qe_identity = (collateral.qe_identity, collateral.qe_identity_signature)
    for rule, good, what in (
        ("tcb-info-signature", _verifies(tcb_signer, *tcb_info), "TCB info"),
        ("qe-identity-signature", _verifies(qe_signer, *qe_identity), "QE identity"),
    ):
        if not good:
            _refuse(rule, f"{what} is not what its signer signed", "the text signed", "another")


def _verifies(signer: Certificate, text: str, signature: bytes) -> bool:
    """ECDSA on P-256 with SHA-256; the signature is r and s, 32 bytes each, big-endian."""
    r, s = int.from_bytes(signature[:32], "big"), int.from_bytes(signature[32:], "big")
    try:
        key = signer.x509.public_key()
        if not isinstance(key, EllipticCurvePublicKey) or not isinstance(key.curve, SECP256R1):
            return False
        key.verify(encode_dss_signature(r, s), text.encode(), ECDSA(SHA256()))
    except _UNVERIFIABLE:
        return False
    return True


def _shown(name: str) -> str:
    """A name from outside, fit for a message."""
    return name[:64].encode("ascii", "backslashreplace").decode()


def _refuse(
    rule: str,
    message: str,
    expected: str,
    got: str,
    hint: str = "do not trust where this collateral comes from; fetch it from Intel",
) -> NoReturn:
    raise CollateralRejected(message, expected=expected, got=got, rule=rule, hint=hint)
