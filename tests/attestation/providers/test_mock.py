"""The software TDX itself: the same bytes every time, and registers that no guest can choose."""

import hashlib
import json
from dataclasses import replace
from pathlib import Path

import pytest
from cryptography import x509

from attestation.collateral_format import Certificate
from attestation.errors import AttestationError, CollateralFormatError, PolicyError, ProviderFailed
from attestation.measure import firmware, record, rtmr, tdvf
from attestation.measure.record import BootProof
from attestation.measure.rtmr import BootPath
from attestation.measure.tdvf import HostProfile
from attestation.providers import QuoteProvider
from attestation.providers.mock import MockEvidence, MockQuoteService, MockTee, MockVerifier
from attestation.quote import Quote
from attestation.verify import INTEL_ROOT, Evidence
from tests.attestation.measure import synthetic
from tests.attestation.measure.support import refused
from tests.attestation.mock_support import (
    COLLATERAL,
    NOW,
    OTHER,
    REPORT_DATA,
    SHAPES,
    TEE,
    VERIFIER,
)

VECTORS = json.loads(
    (Path(__file__).parents[2] / "vectors" / "attestation" / "mock.json").read_text()
)


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def test_everything_follows_from_the_seed() -> None:
    tee = MockTee(bytes.fromhex(VECTORS["seed"]))
    assert sha256(tee.root_der) == VECTORS["root"]
    assert sha256(tee.collateral().dumps()) == VECTORS["collateral"]
    for shape, digest in VECTORS["quotes"].items():
        assert sha256(tee.quote(bytes(64), **SHAPES[shape])) == digest
    other = MockTee(b"\0")
    assert other.root_der != tee.root_der


def test_evidence_is_of_another_type() -> None:
    evidence = VERIFIER.verify(TEE.quote(REPORT_DATA), COLLATERAL, NOW)
    assert type(evidence) is MockEvidence
    assert not isinstance(evidence, Evidence)


def test_platforms_of_one_seed() -> None:
    second = MockTee(TEE.seed, platform=1)
    assert second.root_der == TEE.root_der
    claims = [
        VERIFIER.verify(tee.quote(REPORT_DATA), COLLATERAL, NOW).claims for tee in (TEE, second)
    ]
    assert claims[0].ppid != claims[1].ppid
    assert claims[0].platform_instance_id != claims[1].platform_instance_id
    assert claims[0].root_key_id == claims[1].root_key_id


def test_another_seed_is_another_world() -> None:
    with pytest.raises(AttestationError) as caught:
        VERIFIER.verify(OTHER.quote(REPORT_DATA), OTHER.collateral(), NOW)
    assert caught.value.rule == "root-mismatch"


def test_roots_that_a_mock_verifier_does_not_take() -> None:
    with refused(PolicyError, "mock-root"):
        MockVerifier(INTEL_ROOT)
    with refused(CollateralFormatError, "certificate"):
        MockVerifier(b"")


@pytest.mark.parametrize("shape", SHAPES)
def test_registers_and_report_data(shape: str) -> None:
    body = {"mr_td": b"\1" * 48, "rtmr2": b"\2" * 48, "mr_config_id": b"\3" * 48}
    quote = Quote.parse(TEE.quote(REPORT_DATA, **SHAPES[shape], body=body))
    assert quote.body.report_data == REPORT_DATA
    assert {name: getattr(quote.body, name) for name in body} == body
    assert quote.body.rtmr3 == bytes(48)


def test_mistakes_in_a_test_are_errors() -> None:
    with refused(ProviderFailed, "mock.report-data-size"):
        TEE.quote(b"short")
    with pytest.raises(KeyError, match="mrtd"):
        TEE.quote(REPORT_DATA, body={"mrtd": bytes(48)})
    with pytest.raises(ValueError, match="mr_td takes 48 bytes, not 1"):
        TEE.quote(REPORT_DATA, body={"mr_td": b"1"})


def test_certificates_have_the_shape_of_intels() -> None:
    for name, path_length in {"root": 1, "pck-ca": 0, "tcb-signer": None, "pck": None}.items():
        certificate = Certificate.parse(TEE.pki.certificate(name))
        extensions = certificate.x509.extensions
        constraints = extensions.get_extension_for_class(x509.BasicConstraints)
        usage = extensions.get_extension_for_class(x509.KeyUsage)
        assert constraints.critical
        assert usage.critical
        assert (constraints.value.ca, constraints.value.path_length) == (
            path_length is not None,
            path_length,
        )
        assert usage.value.crl_sign is usage.value.key_cert_sign is constraints.value.ca
        assert certificate.has_sgx_extension == (name == "pck")
        assert "not Intel" in certificate.x509.subject.rfc4514_string()


def test_the_service_measures_what_was_started() -> None:
    uki = synthetic.uki()
    bound = firmware.bind(synthetic.Firmware().build(), uki)
    service: QuoteProvider = MockQuoteService(TEE, bound, uki, mr_config_id=b"\7" * 48)
    body = Quote.parse(service.quote(REPORT_DATA)).body
    entries = record.measure_image(
        "server", bound, uki, is_dev=True, boot_proof=BootProof.SKIPPED
    ).entries
    (entry,) = (
        e
        for e in entries
        if (e.host_profile, e.boot_path) == (HostProfile.UPSTREAM, BootPath.KERNEL)
    )
    assert (body.mr_td, body.rtmr1, body.rtmr2) == (entry.mr_td, entry.rtmr1, entry.rtmr2)
    assert (body.mr_config_id, body.report_data) == (b"\7" * 48, REPORT_DATA)
    VERIFIER.verify(service.quote(REPORT_DATA), COLLATERAL, NOW)
    other = MockQuoteService(
        TEE, bound, uki, host_profile=HostProfile.CANONICAL_24_04, boot_path=BootPath.ESP
    )
    body = Quote.parse(other.quote(REPORT_DATA)).body
    assert body.mr_td == tdvf.mr_td(bound, HostProfile.CANONICAL_24_04.page_order)
    assert body.rtmr1 == rtmr.rtmr1(uki, BootPath.ESP)


def test_a_tee_can_lose_its_extension() -> None:
    """Collateral is made all the same: the knob is about the quote."""
    pck = replace(TEE.pki.specs["pck"], extension=None)
    tee = replace(TEE, certificates={"pck": pck})
    assert tee.collateral().parsed.fmspc == COLLATERAL.parsed.fmspc


def test_nobody_sees_the_seed() -> None:
    seed = bytes(range(32))
    shown = repr(MockTee(seed))
    assert seed.hex() not in shown
    assert repr(seed) not in shown
