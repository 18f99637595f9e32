"""Collateral without a quote: each thing that can be wrong with it, and its rule."""

import base64
from dataclasses import replace
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding

from attestation.collateral_format import Collateral
from attestation.errors import CollateralRejected, PolicyError
from attestation.providers.mock import MockTee
from attestation.providers.mock_pki import SPECS, Spec
from attestation.verify import Verifier
from tests.attestation.collateral.support import DAY, MONTH, OTHER, START, TEE, VERIFIER, issued
from tests.attestation.measure.support import refused

QUOTES = Path(__file__).parents[3].parent / "shared" / "quotes"
SECOND = timedelta(seconds=1)
GOOD = issued()
SIGNER = SPECS["tcb-signer"]
# Another key with the same role, so that one of the two documents can be signed by it.
SECOND_SIGNER = MockTee(TEE.seed, certificates={"second": SIGNER})
FOREIGN = OTHER.collateral(issued=START, expires=START + MONTH)


def with_certificates(**certificates: Spec) -> MockTee:
    return MockTee(TEE.seed, certificates=certificates)


def check(collateral: Collateral, now: datetime = START) -> None:
    VERIFIER.check_collateral(collateral, now)


def test_what_is_genuine() -> None:
    check(GOOD)
    check(GOOD, START + MONTH - SECOND)
    check(SECOND_SIGNER.collateral(qe_identity_signer=["second", "root"]))


def test_a_moment_needs_a_zone() -> None:
    for verifier in (VERIFIER, Verifier()):
        with refused(PolicyError, "naive-time"):
            verifier.check_collateral(GOOD, START.replace(tzinfo=None))


def test_mock_collateral_is_nothing_to_the_production_verifier() -> None:
    with refused(CollateralRejected, "root-mismatch"):
        Verifier().check_collateral(GOOD, START)


@pytest.mark.parametrize(
    ("moment", "rule"),
    [
        (START - SECOND, "collateral-not-yet-valid"),
        (START + MONTH, "collateral-expired"),
        (START + 400 * MONTH, "collateral-expired"),
    ],
)
def test_dates(moment: datetime, rule: str) -> None:
    with refused(CollateralRejected, rule):
        check(GOOD, moment)


@pytest.mark.parametrize("part", ["tcb_info", "qe_identity", "root_ca_crl", "pck_crl"])
def test_each_part_has_its_dates(part: str) -> None:
    for dates, rule in (
        ((START + DAY, START + MONTH), "collateral-not-yet-valid"),
        ((START - MONTH, START), "collateral-expired"),
    ):
        with refused(CollateralRejected, rule) as _:
            check(issued(dates={part: dates}))


def test_certificates_have_dates_too() -> None:
    old = with_certificates(**{"tcb-signer": replace(SIGNER, not_after=START)})
    with refused(CollateralRejected, "collateral-expired"):
        check(old.collateral())


def test_what_is_forged_is_not_called_old() -> None:
    forged = replace(GOOD, tcb_info_signature=bytes(64))
    with refused(CollateralRejected, "tcb-info-signature"):
        check(forged, START + 2 * MONTH)


def foreign(**members: Any) -> Collateral:
    return replace(GOOD, **members)


def signed_by(name: str, chain: list[str]) -> Collateral:
    knobs: dict[str, Any] = {f"{name}_signer": chain}
    return TEE.collateral(**knobs)


def swapped(name: str) -> str | bytes:
    value: str | bytes = getattr(FOREIGN, name)
    return value


@pytest.mark.parametrize(
    ("collateral", "rule"),
    [
        *(
            pytest.param(foreign(**{name: swapped(name)}), "root-mismatch", id=f"foreign {name}")
            for name in (
                "tcb_info_issuer_chain",
                "qe_identity_issuer_chain",
                "pck_crl_issuer_chain",
            )
        ),
        *(
            pytest.param(signed_by(name, chain), "collateral-signer", id=why)
            for name in ("tcb_info", "qe_identity")
            for chain, why in (
                (["pck", "pck-ca", "root"], f"{name} by an opened platform"),
                (["pck-ca", "root"], f"{name} by the PCK authority"),
                (["root", "root"], f"{name} by the root"),
            )
        ),
        pytest.param(
            with_certificates(
                **{"tcb-signer": replace(SIGNER, extension=TEE.pki.specs["pck"].extension)}
            ).collateral(),
            "collateral-signer",
            id="signer with an SGX extension",
        ),
        pytest.param(
            foreign(pck_crl_issuer_chain=TEE.pki.chain(["pck", "pck-ca", "root"])),
            "pck-crl-chain",
            id="list under a PCK certificate",
        ),
        pytest.param(
            with_certificates(leaf=replace(SPECS["pck-ca"], issuer="pck-ca")).collateral(
                pck_crl_issuer_chain=TEE.pki.chain(["pck-ca", "pck-ca", "root"])
            ),
            "pck-crl-chain",
            id="list under a chain of three",
        ),
        pytest.param(
            foreign(pck_crl_issuer_chain=TEE.pki.chain(["tcb-signer", "root"])),
            "pck-crl-chain",
            id="list under the TCB signer",
        ),
        pytest.param(foreign(pck_crl=GOOD.root_ca_crl), "pck-crl-issuer", id="lists swapped, PCK"),
        pytest.param(foreign(root_ca_crl=GOOD.pck_crl), "root-crl-issuer", id="lists swapped"),
        pytest.param(foreign(pck_crl=FOREIGN.pck_crl), "pck-crl", id="foreign list of PCK"),
        pytest.param(foreign(root_ca_crl=FOREIGN.root_ca_crl), "root-crl", id="foreign root list"),
        pytest.param(
            TEE.collateral(revoked=["tcb-signer"]), "tcb-info-signer-revoked", id="signer revoked"
        ),
        pytest.param(
            SECOND_SIGNER.collateral(revoked=["second"], qe_identity_signer=["second", "root"]),
            "qe-identity-signer-revoked",
            id="second signer revoked",
        ),
        pytest.param(TEE.collateral(revoked=["pck-ca"]), "pck-ca-revoked", id="authority revoked"),
        pytest.param(TEE.collateral(revoked=["root"]), "root-revoked", id="root revoked"),
        pytest.param(
            foreign(tcb_info=GOOD.tcb_info.replace("UpToDate", "OutOfDate")),
            "tcb-info-signature",
            id="TCB info tampered",
        ),
        pytest.param(
            foreign(tcb_info=GOOD.tcb_info + " "), "tcb-info-signature", id="a space more"
        ),
        pytest.param(
            foreign(qe_identity=GOOD.qe_identity.replace("UpToDate", "OutOfDate")),
            "qe-identity-signature",
            id="QE identity tampered",
        ),
        pytest.param(
            foreign(tcb_info_signature=GOOD.qe_identity_signature),
            "tcb-info-signature",
            id="signatures swapped",
        ),
        pytest.param(
            foreign(qe_identity_signature=FOREIGN.qe_identity_signature),
            "qe-identity-signature",
            id="foreign signature",
        ),
    ],
)
def test_forgeries(collateral: Collateral, rule: str) -> None:
    with refused(CollateralRejected, rule):
        check(collateral)


@pytest.mark.parametrize(
    ("member", "name", "rule"),
    [
        ("tcb_info_issuer_chain", "tcb-signer", "tcb-info-chain"),
        ("qe_identity_issuer_chain", "tcb-signer", "qe-identity-chain"),
        ("pck_crl_issuer_chain", "pck-ca", "pck-ca-chain"),
    ],
)
def test_certificates_of_others_below_the_root(member: str, name: str, rule: str) -> None:
    chain = OTHER.pki.chain([name]) + TEE.pki.chain(["root"])
    with refused(CollateralRejected, rule):
        check(foreign(**{member: chain}))


# In a certificate: "an elliptic curve key, on P-256".
KEY_TYPE = bytes.fromhex("2a8648ce3d020106082a8648ce3d030107")


@pytest.mark.parametrize(
    ("member", "name", "rule"),
    [
        ("tcb_info_issuer_chain", "tcb-signer", "tcb-info-chain"),
        ("pck_crl_issuer_chain", "pck-ca", "pck-ca-chain"),
    ],
)
@pytest.mark.parametrize("at", [6, 16, 20])
def test_keys_that_can_not_be_read(member: str, name: str, rule: str, at: int) -> None:
    """Of another type, on another curve, and no point on it."""
    der = bytearray(TEE.pki.certificate(name))
    der[der.index(KEY_TYPE) + at] ^= 1
    body = base64.b64encode(der).decode()
    pem = "\n".join(body[n : n + 64] for n in range(0, len(body), 64))
    chain = f"-----BEGIN CERTIFICATE-----\n{pem}\n-----END CERTIFICATE-----\n"
    with refused(CollateralRejected, rule):
        check(foreign(**{member: chain + TEE.pki.chain(["root"])}))


def test_a_signer_with_another_kind_of_key() -> None:
    signer = x509.load_der_x509_certificate(TEE.pki.certificate("tcb-signer"))
    other = (
        x509.CertificateBuilder()
        .subject_name(signer.subject)
        .issuer_name(signer.issuer)
        .public_key(ec.generate_private_key(ec.SECP384R1()).public_key())
        .serial_number(7)
        .not_valid_before(START)
        .not_valid_after(START + MONTH)
        .sign(TEE.pki.key("root"), hashes.SHA256())
    )
    chain = other.public_bytes(Encoding.PEM).decode() + TEE.pki.chain(["root"])
    with refused(CollateralRejected, "tcb-info-signature"):
        check(foreign(tcb_info_issuer_chain=chain))


@pytest.mark.skipif(not QUOTES.is_dir(), reason="no real quotes next to the checkout")
def test_real_collateral_in_its_window() -> None:
    real = Collateral.loads((QUOTES / "dcap-qvl-v4.collateral.json").read_bytes())
    start = datetime.fromisoformat("2025-06-19T10:32:27Z")
    end = datetime.fromisoformat("2025-07-19T10:00:35Z")
    for moment in (start, end - SECOND):
        Verifier().check_collateral(real, moment)
    for moment, rule in (
        (start - SECOND, "collateral-not-yet-valid"),
        (end, "collateral-expired"),
    ):
        with refused(CollateralRejected, rule):
            Verifier().check_collateral(real, moment)
    with refused(CollateralRejected, "root-mismatch"):
        VERIFIER.check_collateral(real, start)
    tampered = replace(real, tcb_info=real.tcb_info.replace("OutOfDate", "UpToDate", 1))
    with refused(CollateralRejected, "tcb-info-signature"):
        Verifier().check_collateral(tampered, start)
