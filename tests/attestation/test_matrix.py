"""The failure matrix: one thing wrong, all else right, and the rule that has to fire for it.

`pytest -s` prints one line per knob and shape of quote.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from attestation.collateral_format import Collateral
from attestation.errors import (
    AttestationError,
    CollateralFormatError,
    QuoteFormatError,
    QuoteRejected,
)
from attestation.providers.mock import EXPIRES, ISSUED, MockTee, MockVerifier
from attestation.providers.mock_pki import SPECS, Spec, sgx_extension
from tests.attestation.mock_support import (
    COLLATERAL,
    NOW,
    OTHER,
    REPORT_DATA,
    SHAPES,
    TEE,
    VERIFIER,
)

SECOND = timedelta(seconds=1)
EXTENSION = sgx_extension(TEE.seed, 0)
PCK = replace(SPECS["pck"], extension=EXTENSION)
OLD = replace(PCK, extension=replace(EXTENSION, cpu_svn=bytes(16)))
# The object identifier of ECDSA with SHA-256.
ECDSA = bytes.fromhex("2a8648ce3d040302")
LINK = "-----END CERTIFICATE-----\n"


@dataclass(frozen=True)
class Knob:
    """`rule` must fire; knobs of the certificates, the quote (also as bytes), the collateral."""

    name: str
    rule: str
    kind: type[AttestationError] = QuoteRejected
    certificates: Mapping[str, Spec] = field(default_factory=dict)
    quote: Mapping[str, Any] = field(default_factory=dict)
    change: Callable[[bytes], bytes] = bytes
    collateral: Mapping[str, Any] = field(default_factory=dict)
    collateral_for: Callable[[], Collateral] | None = None
    now: datetime = NOW
    shapes: tuple[str, ...] = tuple(SHAPES)


def header(rule: str, **values: int | bytes) -> Knob:
    (name,) = values
    return Knob(f"header {name}", rule, QuoteFormatError, quote={"header": values})


def body(name: str, rule: str, **values: int | bytes) -> Knob:
    return Knob(name, rule, quote={"body": values})


def qe(name: str, rule: str, **values: int | bytes) -> Knob:
    return Knob(name, rule, quote={"qe_report": values})


def malformed(name: str, rule: str, change: Callable[[bytes], bytes]) -> Knob:
    return Knob(name, rule, QuoteFormatError, change=change)


def served(name: str, rule: str, **knobs: Any) -> Knob:
    return Knob(name, rule, collateral=knobs)


def no_collateral(name: str, rule: str, **knobs: Any) -> Knob:
    return Knob(name, rule, CollateralFormatError, collateral=knobs)


def swapped(name: str, rule: str, make: Callable[[], Collateral]) -> Knob:
    return Knob(name, rule, collateral_for=make)


def pck(name: str, rule: str, spec: Spec, **knobs: Any) -> Knob:
    return Knob(name, rule, certificates={"pck": spec}, **knobs)


def flip(at: int) -> Callable[[bytes], bytes]:
    def change(quote: bytes) -> bytes:
        index = at % len(quote)
        return quote[:index] + bytes([quote[index] ^ 1]) + quote[index + 1 :]

    return change


def signed_region(quote: bytes) -> int:
    return 632 if quote[0] == 4 else 54 + int.from_bytes(quote[50:54], "little")


def in_signature_data(at: int) -> Callable[[bytes], bytes]:
    """A flipped bit at this place of the signature data."""
    return lambda quote: flip(signed_region(quote) + 4 + at)(quote)


def module(**values: Any) -> dict[str, Any]:
    """TDX module identities with other values in the only one."""
    return {"tdxModuleIdentities": [{**_tcb_info()["tdxModuleIdentities"][0], **values}]}


def module_level(svn: int, status: str = "UpToDate") -> dict[str, Any]:
    return {"tcb": {"isvsvn": svn}, "tcbDate": "2025-01-01T00:00:00Z", "tcbStatus": status}


def levels(**tcb: Any) -> dict[str, Any]:
    level = _tcb_info()["tcbLevels"][0]
    return {"tcbLevels": [{**level, "tcb": {**level["tcb"], **tcb}}]}


def _tcb_info() -> dict[str, Any]:
    return COLLATERAL.parsed.tcb_info.content


def foreign(*members: str) -> Collateral:
    """The collateral with members from another PKI of the same shape."""
    other = OTHER.collateral()
    return replace(COLLATERAL, **{name: getattr(other, name) for name in members})


def foreign_leaf(member: str) -> Collateral:
    """The foreign signer below the right root certificate."""
    theirs = getattr(OTHER.collateral(), member).split(LINK)[0]
    ours = getattr(COLLATERAL, member).split(LINK)[1]
    return replace(COLLATERAL, **{member: theirs + LINK + ours + LINK})


def mixed_chain(*takes: MockTee) -> bytes:
    names = ("pck", "pck-ca", "root")
    chain = zip(takes, names, strict=True)
    return "".join(tee.pki.chain([name]) for tee, name in chain).encode()


V5 = ("v5 td1.0", "v5 td1.5")
KNOBS = (
    # Header and form.
    header("version", version=3),
    header("tee-type", tee_type=0),
    header("key-type", attestation_key_type=3),
    header("qe-vendor", qe_vendor_id=bytes(16)),
    header("header-reserved", qe_svn=1),
    header("header-reserved", pce_svn=1),
    malformed("empty", "size", lambda _: b""),
    malformed("one byte less", "truncated", lambda quote: quote[:-1]),
    malformed("half", "truncated", lambda quote: quote[: len(quote) // 2]),
    malformed("trailing byte", "trailing-bytes", lambda quote: quote + b"\1"),
    malformed("byte after padding", "trailing-bytes", lambda quote: quote + bytes(99) + b"\1"),
    malformed("too much padding", "size", lambda quote: quote + bytes(16_384)),
    Knob("outer type 5", "certification-type", QuoteFormatError, quote={"outer_type": 5}),
    Knob("inner type 4", "pck-certification-type", QuoteFormatError, quote={"inner_type": 4}),
    Knob("body type SGX", "body-type-sgx", QuoteFormatError, quote={"body_type": 1}, shapes=V5),
    Knob("body type 9", "body-type", QuoteFormatError, quote={"body_type": 9}, shapes=V5),
    Knob("body size", "body-size", QuoteFormatError, quote={"body_size": 600}, shapes=V5),
    # The TD.
    body("debug TD", "debug-td", td_attributes=1 << 28 | 1),
    body("profiled TD", "td-attributes", td_attributes=1 << 28 | 2),
    body("migratable TD", "td-attributes", td_attributes=1 << 28 | 1 << 29),
    body("PKS", "td-attributes", td_attributes=1 << 28 | 1 << 30),
    body("PERFMON", "td-attributes", td_attributes=1 << 28 | 1 << 63),
    body("reserved attribute", "td-attributes", td_attributes=1 << 28 | 1 << 40),
    body("no SEPT_VE_DISABLE", "sept-ve-disable", td_attributes=0),
    body("XFAM without SSE", "xfam", xfam=0x602E5),
    body("XFAM with bit 3", "xfam", xfam=0x602E7 | 1 << 3),
    body("XFAM with bit 40", "xfam", xfam=0x602E7 | 1 << 40),
    Knob(
        "service TD",
        "service-td",
        quote={"body": {"mr_service_td": b"\1" * 48}},
        shapes=("v5 td1.5",),
    ),
    Knob(
        "TDX module rolled back",
        "tcb-rollback",
        quote={"body": {"tee_tcb_svn_2": bytes([5, 1, 3]) + bytes(13)}},
        shapes=("v5 td1.5",),
    ),
    Knob(
        "TDX module updated below the TD",
        "td-relaunch",
        quote={"body": {"tee_tcb_svn": bytes([3, 1, 3]) + bytes(13)}},
        collateral={"tcb_info": module(tcbLevels=[module_level(4), module_level(2, "OutOfDate")])},
        shapes=("v5 td1.5",),
    ),
    Knob(
        "TDX components now too old",
        "tcb-level",
        quote={"body": {"tee_tcb_svn_2": bytes([6, 1, 1]) + bytes(13)}},
        shapes=("v5 td1.5",),
    ),
    body("TDX module signer", "tdx-module", mr_signer_seam=b"\1" * 48),
    body("TDX module attributes", "tdx-module", seam_attributes=1),
    body("TDX module too old", "tdx-module", tee_tcb_svn=bytes([3, 1, 3]) + bytes(13)),
    Knob(
        "TDX module unknown",
        "tdx-module",
        quote={"body": {"tee_tcb_svn": bytes([6, 9, 3]) + bytes(13)}},
        shapes=("v4", "v5 td1.0"),
    ),
    body("TDX components too old", "tcb-level", tee_tcb_svn=bytes([6, 1, 1]) + bytes(13)),
    # Signatures and what they bind.
    Knob("MR_TD after signing", "quote-signature", change=flip(200)),
    Knob("report data after signing", "quote-signature", change=flip(600)),
    Knob("user data after signing", "quote-signature", change=flip(30)),
    Knob("signature", "quote-signature", change=in_signature_data(1)),
    Knob("zero signature", "quote-signature", quote={"signature": bytes(64)}),
    Knob("r = s = 1", "quote-signature", quote={"signature": (bytes(31) + b"\1") * 2}),
    Knob("signed by another key", "quote-signature", quote={"signed_by": "other"}),
    Knob("attestation key", "qe-report-hash", change=in_signature_data(64)),
    Knob("own attestation key", "qe-report-hash", quote={"key": "o", "certified": "attestation"}),
    Knob("QE report after signing", "qe-report-signature", change=in_signature_data(134)),
    Knob("QE signature", "qe-report-signature", change=in_signature_data(134 + 384)),
    Knob("zero QE signature", "qe-report-signature", quote={"qe_signature": bytes(64)}),
    Knob("QE signed by own key", "qe-report-signature", quote={"qe_signed_by": "attestation"}),
    Knob("QE signed by the root", "qe-report-signature", quote={"qe_signed_by": "root"}),
    Knob("QE data after signing", "qe-report-hash", change=in_signature_data(134 + 450)),
    Knob("QE data of 31 bytes", "qe-authentication", quote={"qe_authentication": bytes(31)}),
    qe("QE report data", "qe-report-hash", report_data=bytes(64)),
    qe("QE of another signer", "qe-identity", mr_signer=bytes(32)),
    qe("QE with another product", "qe-identity", isv_prod_id=1),
    qe("QE too old", "qe-identity", isv_svn=3),
    qe("debug QE", "qe-identity", attributes=bytes([0x17]) + bytes(15)),
    qe("QE MISCSELECT", "qe-identity", misc_select=1),
    # The PCK chain.
    Knob("PCK chain empty", "pck-chain-length", quote={"pem": b""}),
    Knob("PCK chain not PEM", "pck-pem", quote={"pem": b"-----BEGIN CERT"}),
    Knob("PCK chain not ASCII", "pck-pem", quote={"pem": b"\xff"}),
    Knob("PCK chain leaf only", "pck-chain-length", quote={"chain": ("pck",)}),
    Knob("PCK chain without CA", "pck-chain-length", quote={"chain": ("pck", "root")}),
    Knob("PCK chain reversed", "root-mismatch", quote={"chain": ("root", "pck-ca", "pck")}),
    Knob("PCK chain twice", "pck-chain-length", quote={"chain": ("pck", "pck-ca", "root") * 2}),
    Knob("foreign PKI", "root-mismatch", quote={"pem": mixed_chain(OTHER, OTHER, OTHER)}),
    Knob("foreign CA", "pck-chain", quote={"pem": mixed_chain(TEE, OTHER, TEE)}),
    Knob("foreign PCK", "pck-chain", quote={"pem": mixed_chain(OTHER, TEE, TEE)}),
    Knob("foreign PCK and CA", "pck-chain", quote={"pem": mixed_chain(OTHER, OTHER, TEE)}),
    Knob(
        "certificate issued by a PCK",
        "pck-role",
        certificates={"evil": replace(PCK, issuer="pck")},
        quote={"chain": ("evil", "pck", "root"), "qe_signed_by": "evil"},
    ),
    Knob(
        "CA certificate issued by a PCK",
        "pck-chain",
        certificates={
            "ca": replace(SPECS["pck-ca"], issuer="pck"),
            "evil": replace(PCK, issuer="ca"),
        },
        quote={"chain": ("evil", "ca", "root"), "qe_signed_by": "evil"},
    ),
    pck("PCK without extension", "pck-role", SPECS["pck"]),
    pck("PCK of another name", "pck-role", replace(PCK, common_name="Intel SGX TCB Signing")),
    pck("PCK that issues", "certificate-chain", replace(PCK, path_length=0)),
    pck("PCK expired", "pck-expired", replace(PCK, not_after=NOW)),
    pck("PCK not yet valid", "pck-not-yet-valid", replace(PCK, not_before=NOW + SECOND)),
    pck("PCK of an old platform", "tcb-level", OLD, collateral_for=lambda: COLLATERAL),
    pck(
        "PCE too old",
        "tcb-level",
        replace(PCK, extension=replace(EXTENSION, pce_svn=10)),
    ),
    pck(
        "PCK of another model",
        "fmspc-mismatch",
        replace(PCK, extension=replace(EXTENSION, fmspc=bytes(6))),
        collateral_for=lambda: COLLATERAL,
    ),
    pck(
        "PCK of another PCE",
        "pce-id",
        replace(PCK, extension=replace(EXTENSION, pce_id=b"\1\0")),
        collateral_for=lambda: COLLATERAL,
    ),
    Knob(
        "TCB signer as PCK",
        "pck-role",
        quote={"chain": ("tcb-signer", "pck-ca", "root"), "qe_signed_by": "tcb-signer"},
    ),
    Knob(
        "PCK issued by the TCB signer",
        "pck-role",
        certificates={"evil": replace(PCK, issuer="tcb-signer")},
        quote={"chain": ("evil", "tcb-signer", "root"), "qe_signed_by": "evil"},
    ),
    Knob(
        "CA expired",
        "pck-expired",
        certificates={"pck-ca": replace(SPECS["pck-ca"], not_after=NOW)},
    ),
    Knob(
        "CA that may not issue",
        "certificate-chain",
        certificates={"pck-ca": replace(SPECS["pck-ca"], path_length=None)},
    ),
    # Revocation.
    served("PCK revoked", "pck-revoked", revoked=["pck"]),
    served("CA revoked", "pck-ca-revoked", revoked=["pck-ca"]),
    served("TCB signer revoked", "tcb-signer-revoked", revoked=["tcb-signer"]),
    served("root revoked", "root-revoked", revoked=["root"]),
    swapped(
        "CRLs swapped",
        "pck-crl-issuer",
        lambda: replace(COLLATERAL, root_ca_crl=COLLATERAL.pck_crl, pck_crl=COLLATERAL.root_ca_crl),
    ),
    swapped(
        "PCK CRL twice",
        "root-crl-issuer",
        lambda: replace(COLLATERAL, root_ca_crl=COLLATERAL.pck_crl),
    ),
    swapped(
        "root CRL twice",
        "pck-crl-issuer",
        lambda: replace(COLLATERAL, pck_crl=COLLATERAL.root_ca_crl),
    ),
    swapped(
        "CRL of an unknown algorithm",
        "root-crl",
        lambda: replace(
            COLLATERAL, root_ca_crl=COLLATERAL.root_ca_crl.replace(ECDSA, ECDSA[:-1] + b"\x7f")
        ),
    ),
    swapped("foreign PCK CRL", "pck-crl", lambda: foreign("pck_crl")),
    swapped("foreign root CRL", "root-crl", lambda: foreign("root_ca_crl")),
    # Who signs.
    swapped("foreign TCB chain", "root-mismatch", lambda: foreign("tcb_info_issuer_chain")),
    swapped("foreign QE chain", "root-mismatch", lambda: foreign("qe_identity_issuer_chain")),
    swapped("foreign CRL chain", "root-mismatch", lambda: foreign("pck_crl_issuer_chain")),
    swapped("foreign TCB signer", "tcb-info-chain", lambda: foreign_leaf("tcb_info_issuer_chain")),
    swapped(
        "foreign QE signer", "qe-identity-chain", lambda: foreign_leaf("qe_identity_issuer_chain")
    ),
    swapped("foreign TCB signature", "tcb-info-signature", lambda: foreign("tcb_info_signature")),
    swapped(
        "foreign QE signature", "qe-identity-signature", lambda: foreign("qe_identity_signature")
    ),
    served(
        "TCB info signed by a PCK", "collateral-signer", tcb_info_signer=("pck", "pck-ca", "root")
    ),
    served(
        "QE identity signed by a PCK",
        "collateral-signer",
        qe_identity_signer=("pck", "pck-ca", "root"),
    ),
    served("TCB info signed by the CA", "certificate-chain", tcb_info_signer=("pck-ca", "root")),
    Knob(
        "TCB info signed by a stranger of the root",
        "collateral-signer",
        certificates={"stranger": Spec("Intel SGX Something", "root")},
        collateral={"tcb_info_signer": ("stranger", "root")},
    ),
    *(
        Knob(
            f"{name} signed by a TCB signer below the CA",
            "collateral-signer",
            certificates={"lower": Spec("Intel SGX TCB Signing", "pck-ca")},
            collateral={f"{name}_signer": ("lower", "pck-ca", "root")},
        )
        for name in ("tcb_info", "qe_identity")
    ),
    Knob(
        "signer with an SGX extension",
        "collateral-signer",
        certificates={"tcb-signer": replace(SPECS["tcb-signer"], extension=EXTENSION)},
    ),
    # Dates.
    Knob("one second early", "collateral-not-yet-valid", now=ISSUED - SECOND),
    Knob("one microsecond early", "collateral-not-yet-valid", now=ISSUED - SECOND / 1_000_000),
    Knob("at the end", "collateral-expired", now=EXPIRES),
    Knob("one second late", "collateral-expired", now=EXPIRES + SECOND),
    Knob("long before", "pck-not-yet-valid", now=datetime(1960, 1, 1, tzinfo=UTC)),
    *(
        served(f"{part} {word}", rule, dates={part: period})
        for part in ("tcb_info", "qe_identity", "root_ca_crl", "pck_crl")
        for word, rule, period in (
            ("stale", "collateral-expired", (ISSUED, NOW)),
            ("of tomorrow", "collateral-not-yet-valid", (NOW + SECOND, EXPIRES)),
        )
    ),
    Knob(
        "TCB signer expired",
        "collateral-expired",
        certificates={"tcb-signer": replace(SPECS["tcb-signer"], not_after=NOW)},
    ),
    # What the documents say.
    served("platform revoked", "tcb-revoked", platform_status="Revoked"),
    served("TDX module revoked", "tcb-revoked", module_status="Revoked"),
    served("QE revoked", "tcb-revoked", qe_status="Revoked"),
    served("platform status unknown", "collateral-content", platform_status="Fine"),
    served("QE status unknown", "collateral-content", qe_status="Fine"),
    served("another model", "fmspc-mismatch", tcb_info={"fmspc": "000000000000"}),
    served("another PCE", "pce-id", tcb_info={"pceId": "0001"}),
    served("no levels", "collateral-content", tcb_info={"tcbLevels": None}),
    served("empty levels", "tcb-level", tcb_info={"tcbLevels": []}),
    served("no level low enough", "tcb-level", tcb_info=levels(pcesvn=12)),
    served("no module", "tdx-module", tcb_info={"tdxModule": None}),
    served("no module identities", "tdx-module", tcb_info={"tdxModuleIdentities": None}),
    served("another module", "tdx-module", tcb_info=module(id="TDX_02")),
    served("module of another signer", "tdx-module", tcb_info=module(mrsigner="01" * 48)),
    served("no QE levels", "collateral-content", qe_identity={"tcbLevels": None}),
    served("empty QE levels", "qe-identity", qe_identity={"tcbLevels": []}),
    no_collateral("SGX TCB info", "tcb-info-id", tcb_info={"id": "SGX"}),
    no_collateral("TCB info 2", "tcb-info-version", tcb_info={"version": 2}),
    no_collateral("TCB info true", "tcb-info-version", tcb_info={"version": True}),
    no_collateral("TCB info without number", "tcb-info-number", evaluation_number=-1),
    no_collateral("TCB info without model", "tcb-info-fields", tcb_info={"fmspc": None}),
    no_collateral("model too long", "tcb-info-fields", tcb_info={"fmspc": "00" * 7}),
    no_collateral("model of no digits", "tcb-info-fields", tcb_info={"fmspc": "g0" * 6}),
    no_collateral("TCB info without date", "date", tcb_info={"issueDate": None}),
    no_collateral("TCB info of no day", "date", tcb_info={"issueDate": "2025-02-30T00:00:00Z"}),
    no_collateral("QE identity of SGX", "qe-identity-id", qe_identity={"id": "QE"}),
    no_collateral("QE identity 1", "qe-identity-version", qe_identity={"version": 1}),
    no_collateral("TCB chain leaf only", "chain-length", tcb_info_signer=("tcb-signer",)),
    no_collateral("no TCB chain", "chain-length", tcb_info_issuer_chain=""),
    served("TCB chain reversed", "root-mismatch", tcb_info_signer=("root", "tcb-signer")),
    swapped(
        "space after TCB info",
        "tcb-info-signature",
        lambda: replace(COLLATERAL, tcb_info=COLLATERAL.tcb_info + " "),
    ),
    swapped(
        "tampered TCB info",
        "tcb-info-signature",
        lambda: replace(COLLATERAL, tcb_info=COLLATERAL.tcb_info.replace('"svn":3', '"svn":0')),
    ),
    swapped(
        "tampered QE identity",
        "qe-identity-signature",
        lambda: replace(
            COLLATERAL, qe_identity=COLLATERAL.qe_identity.replace('"isvsvn":4', '"isvsvn":1')
        ),
    ),
)
CASES = [(knob, shape) for knob in KNOBS for shape in knob.shapes]


def refusal(knob: Knob, shape: str) -> AttestationError:
    tee = replace(TEE, certificates=knob.certificates)
    quote = knob.change(tee.quote(REPORT_DATA, **SHAPES[shape], **knob.quote))
    with pytest.raises(AttestationError) as caught:
        check(tee, quote, knob)
    return caught.value


def check(tee: MockTee, quote: bytes, knob: Knob) -> None:
    make = knob.collateral_for or (lambda: tee.collateral(**knob.collateral))
    MockVerifier(tee.root_der).verify(quote, make(), knob.now)


@pytest.mark.parametrize(
    ("knob", "shape"), CASES, ids=[f"{knob.name}, {shape}" for knob, shape in CASES]
)
def test_each_knob_has_its_rule(knob: Knob, shape: str) -> None:
    error = refusal(knob, shape)
    print(f"{knob.name:<42} {shape:<9} {error.rule}")
    assert (error.rule, type(error)) == (knob.rule, knob.kind), error.diagnostics()
    assert error.hint
    assert error.expected
    assert error.got


def test_the_matrix_is_as_large_as_promised() -> None:
    for version in "4", "5":
        assert len({k.name for k, shape in CASES if shape.startswith(f"v{version}")}) >= 90
    assert len({knob.name for knob in KNOBS if knob.name[:6] != "header"}) == len(KNOBS) - 6


@pytest.mark.parametrize("shape", SHAPES)
def test_nothing_wrong_nothing_refused(shape: str) -> None:
    for padding in 0, 3065:
        quote = TEE.quote(REPORT_DATA, **SHAPES[shape], padding=padding)
        claims = VERIFIER.verify(quote, COLLATERAL, NOW).claims
        assert claims.quote.body.report_data == REPORT_DATA
    VERIFIER.verify(quote, COLLATERAL, ISSUED)
    VERIFIER.verify(quote, COLLATERAL, EXPIRES - SECOND / 1_000_000)
