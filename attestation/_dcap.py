"""The one place that calls dcap-qvl, and what its messages mean.

dcap-qvl reports every refusal as a ValueError with a chain of messages. The table below maps what
version 0.7 says to rules that do not change with it; what it does not know becomes rule `dcap`.
For a broken certificate chain the message does not say which of the three chains it is: that is
found by looking again, and only then.
"""

import json
from itertools import pairwise
from typing import Any, NoReturn

import dcap_qvl  # type: ignore[import-untyped]

from attestation._genuine import is_issued, is_signed
from attestation.collateral_format import Certificate, Collateral, Parsed
from attestation.errors import QuoteRejected

_MAX_SHOWN = 400

_FETCH = "fetch the collateral for this platform again"
_FORGED = "do not trust where this quote comes from: no platform makes such quotes"
_UPDATE = "update microcode, BIOS and TDX module of the host, then ask for a new quote"
_REPLACE = "retire this platform, or register it again for a new PCK certificate"

# Of each rule what was expected, and what to do.
_RULES = {
    "collateral-content": ("documents as Intel specifies them", _FETCH),
    "tcb-info-signature": ("TCB info as its signer signed it", _FETCH),
    "qe-identity-signature": ("QE identity as its signer signed it", _FETCH),
    "qe-report-signature": ("a QE report signed with the key of the PCK certificate", _FORGED),
    "qe-report-hash": ("a QE report that vouches for the attestation key", _FORGED),
    "qe-authentication": ("32 bytes of QE authentication data", _FORGED),
    "quote-signature": ("header and report signed with the attestation key", _FORGED),
    "fmspc-mismatch": ("collateral for the model of this platform", _FETCH),
    "tcb-revoked": ("a TCB that Intel did not revoke", _REPLACE),
    "qe-identity": ("Intel's quoting enclave for TDX, at a known level", _UPDATE),
    "tdx-module": ("a TDX module of Intel, at a known level", _UPDATE),
    "tcb-level": ("a platform at one of the levels in TCB info", _UPDATE),
    "pck-certificate": ("a PCK certificate in Intel's form", _FORGED),
    "pck-chain": ("a PCK certificate issued by the authority above it, up to the root", _FORGED),
    "tcb-info-chain": ("a signer of TCB info issued by the root", _FETCH),
    "qe-identity-chain": ("a signer of QE identity issued by the root", _FETCH),
    "root-crl": ("a revocation list signed by the root", _FETCH),
    "pck-crl": ("a revocation list signed by the authority of the PCK certificate", _FETCH),
    "root-revoked": ("a root that is not revoked", _FETCH),
    "pck-ca-revoked": ("an authority that is not revoked", _REPLACE),
    "pck-revoked": ("a PCK certificate that is not revoked", _REPLACE),
    "tcb-signer-revoked": ("a signer of collateral that is not revoked", _FETCH),
    "certificate-chain": ("certificates that may be used for this", _FORGED),
    "dcap": ("a quote that dcap-qvl accepts", "read the reason; this version has no rule for it"),
}
# The most specific comes first: dcap-qvl appends causes to what it was doing.
_MESSAGES = (
    ("Signature is invalid for tcb_info", "tcb-info-signature"),
    ("Signature is invalid for qe_identity", "qe-identity-signature"),
    ("Signature is invalid for qe_report", "qe-report-signature"),
    ("QE report hash mismatch", "qe-report-hash"),
    ("Invalid QE auth data length", "qe-authentication"),
    ("ISV enclave report signature is invalid", "quote-signature"),
    ("Fmspc mismatch", "fmspc-mismatch"),
    ("Revoked", "tcb-revoked"),
    ("Failed to parse PCK certificate", "pck-certificate"),
    ("Failed to decode TcbInfo", "collateral-content"),
    ("Failed to decode QeIdentity", "collateral-content"),
    ("root CA CRL", "root-crl"),
    ("QE report validation failed", "qe-identity"),
    ("QE MRSIGNER mismatch", "qe-identity"),
    ("QE ISVPRODID mismatch", "qe-identity"),
    ("QE MISCSELECT mismatch", "qe-identity"),
    ("QE ISVSVN", "qe-identity"),
    ("No TCB levels found in QE Identity", "qe-identity"),
    ("TDX module", "tdx-module"),
    ("No matching TCB level", "tcb-level"),
    ("Failed to evaluate the current TDX TCB", "tcb-level"),
)


def verify(
    quote: bytes,
    pck_chain: tuple[Certificate, ...],
    collateral: Collateral,
    now: int,
    root_der: bytes,
) -> dict[str, Any]:
    """The claims of dcap-qvl (version 1) on canonical quote bytes at a Unix time in seconds.

    Raises QuoteRejected.

    Policy `claims_only`: the cryptography, the dates, the TCB evaluation; any status but Revoked.
    """
    # Nine arguments: a tenth, in JSON, would replace the certificate chain of the quote.
    arguments = dcap_qvl.QuoteCollateralV3(
        pck_crl_issuer_chain=collateral.pck_crl_issuer_chain,
        root_ca_crl=collateral.root_ca_crl,
        pck_crl=collateral.pck_crl,
        tcb_info_issuer_chain=collateral.tcb_info_issuer_chain,
        tcb_info=collateral.tcb_info,
        tcb_info_signature=collateral.tcb_info_signature,
        qe_identity_issuer_chain=collateral.qe_identity_issuer_chain,
        qe_identity=collateral.qe_identity,
        qe_identity_signature=collateral.qe_identity_signature,
    )
    policy = dcap_qvl.QuotePolicy.claims_only(now)
    try:
        verifier = dcap_qvl.QuoteVerifier(root_der)
        claims = verifier.verify_with_policy(quote, arguments, now, policy)
    except ValueError as error:
        _refuse(str(error), pck_chain, collateral)
    content: dict[str, Any] = json.loads(claims.to_json())
    return content


def platform(quote: bytes) -> tuple[bytes, str]:
    """The FMSPC (6 bytes) in the PCK certificate of a quote, and which authority issued it.

    Nothing of it is verified. Raises QuoteRejected (rule `pck-certificate`).
    """
    try:
        parsed = dcap_qvl.parse_quote(quote)
        return bytes.fromhex(parsed.fmspc()), parsed.ca()
    except ValueError as error:
        expected, hint = _RULES["pck-certificate"]
        raise QuoteRejected(
            "quote does not say what platform it is of",
            expected=expected,
            got=_shown(str(error)),
            rule="pck-certificate",
            hint=hint,
        ) from error


def _refuse(message: str, pck_chain: tuple[Certificate, ...], collateral: Collateral) -> NoReturn:
    rule = _rule(message, pck_chain, collateral)
    expected, hint = _RULES[rule]
    raise QuoteRejected(
        "quote is refused by the DCAP verification",
        expected=expected,
        got=_shown(message.removeprefix("Verification failed: ")),
        rule=rule,
        hint=hint,
    )


def _rule(message: str, pck_chain: tuple[Certificate, ...], collateral: Collateral) -> str:
    if "certificate chain" in message or "CertRevoked" in message:
        return _chain_rule(pck_chain, collateral.parsed)
    return next((rule for text, rule in _MESSAGES if text in message), "dcap")


def _chain_rule(pck: tuple[Certificate, ...], parsed: Parsed) -> str:
    """What is wrong with the certificates. Failing to find it out is no pass."""
    root, ca = pck[-1], pck[1]
    for rule, chain in (
        ("pck-chain", pck),
        ("tcb-info-chain", parsed.tcb_info_issuer),
        ("qe-identity-chain", parsed.qe_identity_issuer),
    ):
        if not all(is_issued(*pair) for pair in pairwise(chain)):
            return rule
    for rule, crl, issuer in (
        ("root-crl", parsed.root_crl, root),
        ("pck-crl", parsed.pck_crl, ca),
    ):
        if not is_signed(crl, issuer):
            return rule
    for rule, crl, certificate in (
        ("root-revoked", parsed.root_crl, root),
        ("pck-ca-revoked", parsed.root_crl, ca),
        ("pck-revoked", parsed.pck_crl, pck[0]),
        ("tcb-signer-revoked", parsed.root_crl, parsed.tcb_info_issuer[0]),
        ("tcb-signer-revoked", parsed.root_crl, parsed.qe_identity_issuer[0]),
    ):
        if crl.revokes(certificate):
            return rule
    return "certificate-chain"


def _shown(message: str) -> str:
    return message.encode("ascii", "backslashreplace").decode()[:_MAX_SHOWN]
