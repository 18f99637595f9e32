"""The verifier on real quotes, on collateral of every wrong form, and against its own library."""

import base64
import hashlib
import json
import string
import time
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from hypothesis import given, settings
from hypothesis import strategies as st

from attestation import _dcap
from attestation.collateral_format import MAX_BYTES, Certificate, parse_chain
from attestation.errors import CollateralFormatError, PolicyError, QuoteFormatError, QuoteRejected
from attestation.providers.mock import MockTee, forged
from attestation.verify import INTEL_ROOT, Collateral, Evidence, TcbStatus, Verifier
from tests.attestation.measure.support import refused
from tests.attestation.mock_support import COLLATERAL, NOW, REPORT_DATA, SHAPES, TEE, VERIFIER

QUOTES = Path(__file__).parents[2].parent / "shared" / "quotes"
JULY = datetime(2025, 7, 1, tzinfo=UTC)

real = pytest.mark.skipif(not QUOTES.is_dir(), reason="no real quotes next to the checkout")


def quote(name: str) -> bytes:
    return (QUOTES / f"{name}.quote").read_bytes()


def collateral() -> Collateral:
    return Collateral.loads((QUOTES / "dcap-qvl-v4.collateral.json").read_bytes())


def test_the_root_is_intels() -> None:
    assert hashlib.sha256(INTEL_ROOT).hexdigest() == (
        "44a0196b2b99f889b8e149e95b807a350e7424964399e885a7cbb8ccfab674d3"
    )
    root = Certificate.parse(INTEL_ROOT)
    assert root.common_name == "Intel SGX Root CA"
    root.x509.verify_directly_issued_by(root.x509)


def test_there_is_no_other_root() -> None:
    with pytest.raises(TypeError):
        Verifier(TEE.root_der)  # type: ignore[call-arg]


@real
def test_a_real_quote_in_its_period() -> None:
    evidence = Verifier().verify(quote("dcap-qvl-v4"), collateral(), JULY)
    assert type(evidence) is Evidence
    claims = evidence.claims
    assert claims.quote.body.mr_td.hex().startswith("91eb2b44d141")
    assert claims.tcb_status is claims.platform_status is claims.qe_status is TcbStatus.UP_TO_DATE
    assert (claims.advisory_ids, claims.tcb_evaluation_number) == ((), 17)
    assert claims.tcb_date == datetime(2024, 3, 13, tzinfo=UTC)
    assert (claims.fmspc.hex(), claims.pce_id.hex()) == ("b0c06f000000", "0000")
    assert claims.ppid.hex() == "811dca2a26b952e85bb6448b097ba4fd"
    assert claims.platform_instance_id == bytes.fromhex("07828474603e7019dc930775ffe8cdd2")
    assert claims.valid_from == datetime(2025, 6, 19, 10, 32, 27, tzinfo=UTC)
    assert claims.valid_until == datetime(2025, 7, 19, 10, 0, 35, tzinfo=UTC)
    key = Certificate.parse(INTEL_ROOT).x509.public_key()
    point = key.public_bytes(Encoding.X962, PublicFormat.UncompressedPoint)
    spki = key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    assert claims.root_key_id in {hashlib.sha384(data).digest() for data in (point, spki)}
    assert claims.acpi == "unverified"


@real
def test_a_real_quote_around_its_period() -> None:
    verify, raw, documents = Verifier().verify, quote("dcap-qvl-v4"), collateral()
    start = datetime(2025, 6, 19, 10, 32, 27, tzinfo=UTC)
    end = datetime(2025, 7, 19, 10, 0, 35, tzinfo=UTC)
    moment = timedelta(microseconds=1)
    verify(raw, documents, start)
    verify(raw, documents, (end - moment).astimezone(timezone(timedelta(hours=9))))
    with refused(QuoteRejected, "collateral-not-yet-valid"):
        verify(raw, documents, start - moment)
    for late in end, datetime(2025, 8, 1, tzinfo=UTC):
        with refused(QuoteRejected, "collateral-expired"):
            verify(raw, documents, late)


@real
@pytest.mark.parametrize("now", [JULY, NOW, datetime(2023, 7, 1, tzinfo=UTC)])
def test_quotes_that_no_collateral_makes_good(now: datetime) -> None:
    for documents in collateral(), COLLATERAL:
        with refused(QuoteRejected, "debug-td"):
            Verifier().verify(quote("trustee-debug-v4"), documents, now)
        with refused(QuoteFormatError, "trailing-bytes"):
            Verifier().verify(quote("go-tdx-guest-trailing-v4"), documents, now)


@real
def test_collateral_of_another_model() -> None:
    with refused(QuoteRejected, "fmspc-mismatch"):
        Verifier().verify(quote("gce-cos113-v4"), collateral(), JULY)


@real
def test_a_self_signed_forgery() -> None:
    """What a validator accepts that checks the signature but not who vouches for its key."""
    fake = forged(quote("dcap-qvl-v4"), b"any laptop", {"mr_td": b"\x42" * 48})
    with refused(QuoteRejected, "qe-report-hash"):
        Verifier().verify(fake, collateral(), JULY)


@pytest.mark.parametrize("shape", SHAPES)
def test_production_refuses_the_mock(shape: str) -> None:
    raw = TEE.quote(REPORT_DATA, **SHAPES[shape])
    with refused(QuoteRejected, "root-mismatch"):
        Verifier().verify(raw, COLLATERAL, NOW)


@real
def test_a_mock_quote_with_real_collateral_and_the_other_way_round() -> None:
    mock = TEE.quote(REPORT_DATA)
    with refused(QuoteRejected, "root-mismatch"):
        Verifier().verify(mock, collateral(), JULY)
    with refused(QuoteRejected, "root-mismatch"):
        Verifier().verify(quote("dcap-qvl-v4"), COLLATERAL, NOW)
    with refused(QuoteRejected, "root-mismatch"):
        VERIFIER.verify(quote("dcap-qvl-v4"), collateral(), JULY)
    # Even with Intel's root pasted below it.
    root = parse_chain(collateral().pck_crl_issuer_chain)[-1]
    pem = TEE.pki.chain(["pck", "pck-ca"]) + _pem(root)
    with refused(QuoteRejected, "pck-crl-issuer"):
        Verifier().verify(TEE.quote(REPORT_DATA, pem=pem.encode()), collateral(), JULY)


def _pem(certificate: Certificate) -> str:
    return certificate.x509.public_bytes(Encoding.PEM).decode()


@real
def test_a_certificate_issued_under_a_stolen_name() -> None:
    """Names as Intel's, its root below, keys of ours: only the signatures tell."""
    documents = collateral()
    ca, root = parse_chain(documents.pck_crl_issuer_chain)
    pem = TEE.pki.chain(["pck"]) + _pem(ca) + _pem(root)
    with refused(QuoteRejected, "pck-chain"):
        Verifier().verify(TEE.quote(REPORT_DATA, pem=pem.encode()), documents, JULY)


def test_every_flipped_byte_of_a_quote_changes_nothing_or_is_refused() -> None:
    raw = TEE.quote(REPORT_DATA)
    for at in range(0, len(raw), 7):
        changed = raw[:at] + bytes([raw[at] ^ 0x20]) + raw[at + 1 :]
        try:
            claims = VERIFIER.verify(changed, COLLATERAL, NOW).claims
        except (QuoteFormatError, QuoteRejected):
            continue
        pytest.fail(f"byte {at}: {claims}")


def test_every_truncation_is_refused() -> None:
    raw = TEE.quote(REPORT_DATA)
    for size in range(len(raw)):
        with pytest.raises(QuoteFormatError):
            VERIFIER.verify(raw[:size], COLLATERAL, NOW)


def test_time_needs_a_zone() -> None:
    with refused(PolicyError, "naive-time"):
        VERIFIER.verify(b"", COLLATERAL, NOW.replace(tzinfo=None))


def test_claims_as_json() -> None:
    documents = TEE.collateral(
        platform_status="SWHardeningNeeded", advisories=["INTEL-SA-2", "INTEL-SA-1"]
    )
    claims = VERIFIER.verify(TEE.quote(REPORT_DATA), documents, NOW).claims
    shown = json.loads(json.dumps(claims.to_json()))
    assert shown["tcb_status"] == shown["platform_status"] == "SWHardeningNeeded"
    assert shown["qe_status"] == "UpToDate"
    assert shown["advisory_ids"] == ["INTEL-SA-1", "INTEL-SA-2"]
    assert shown["valid_from"] == "2025-01-01T00:00:00Z"
    assert shown["quote"]["report_data"] == REPORT_DATA.hex()
    assert shown["quote"]["mr_service_td"] is None
    assert shown["acpi"] == "unverified"


@pytest.mark.parametrize(
    ("platform", "module", "qe", "merged"),
    [
        ("SWHardeningNeeded", "UpToDate", "UpToDate", "SWHardeningNeeded"),
        ("OutOfDate", "UpToDate", "UpToDate", "OutOfDate"),
        ("UpToDate", "OutOfDate", "UpToDate", "OutOfDate"),
        ("UpToDate", "UpToDate", "OutOfDate", "OutOfDate"),
        ("ConfigurationNeeded", "OutOfDate", "UpToDate", "OutOfDateConfigurationNeeded"),
        (
            "ConfigurationAndSWHardeningNeeded",
            "UpToDate",
            "UpToDate",
            "ConfigurationAndSWHardeningNeeded",
        ),
    ],
)
def test_states_are_reported_not_judged(platform: str, module: str, qe: str, merged: str) -> None:
    documents = TEE.collateral(platform_status=platform, module_status=module, qe_status=qe)
    claims = VERIFIER.verify(TEE.quote(REPORT_DATA), documents, NOW).claims
    assert claims.tcb_status == merged
    assert claims.qe_status == qe


def test_the_lower_evaluation_number_counts() -> None:
    documents = TEE.collateral(qe_identity={"tcbEvaluationDataNumber": 16})
    claims = VERIFIER.verify(TEE.quote(REPORT_DATA), documents, NOW).claims
    assert claims.tcb_evaluation_number == 16


# What dcap-qvl may do in another version.


def test_an_unknown_message_of_dcap(monkeypatch: pytest.MonkeyPatch) -> None:
    class Failing:
        def __init__(self, root: bytes) -> None:
            pass

        def verify_with_policy(self, *_: object) -> None:
            raise ValueError("Verification failed: the \u263e is full" + "!" * 5000)

    monkeypatch.setattr("dcap_qvl.QuoteVerifier", Failing)
    with refused(QuoteRejected, "dcap") as _:
        VERIFIER.verify(TEE.quote(REPORT_DATA), COLLATERAL, NOW)
    with pytest.raises(QuoteRejected) as caught:
        VERIFIER.verify(TEE.quote(REPORT_DATA), COLLATERAL, NOW)
    assert caught.value.got.startswith("the \\u263e is full!!")
    assert len(caught.value.got) == 400


def test_a_certificate_that_only_dcap_can_not_read() -> None:
    """One byte of its signature algorithm: no rule of ours, so the refusal must come from dcap."""
    raw = TEE.quote(REPORT_DATA)
    der = TEE.pki.certificate("pck")
    oid = bytes.fromhex("06082a8648ce3d040302")
    broken = der[: der.rindex(oid)] + oid[:-1] + b"\x04" + der[der.rindex(oid) + len(oid) :]
    pem = _armored(broken) + TEE.pki.chain(["pck-ca", "root"])
    with refused(QuoteRejected, "pck-certificate"):
        VERIFIER.verify(TEE.quote(REPORT_DATA, pem=pem.encode()), COLLATERAL, NOW)
    VERIFIER.verify(raw, COLLATERAL, NOW)


def _armored(der: bytes) -> str:
    text = base64.b64encode(der).decode()
    lines = "".join(text[at : at + 64] + "\n" for at in range(0, len(text), 64))
    return f"-----BEGIN CERTIFICATE-----\n{lines}-----END CERTIFICATE-----\n"


@pytest.mark.parametrize(
    ("rule", "change"),
    [
        ("parser-mismatch", lambda c: c["report"]["TD10"].update(mr_td="00" * 48)),
        ("parser-mismatch", lambda c: c["report"]["TD10"].pop("rt_mr3")),
        ("parser-mismatch", lambda c: c["platform"]["pck"].update(fmspc=[9] * 6)),
        ("tcb-revoked", lambda c: c["qe"]["tcb_level"].update(tcbStatus="Revoked")),
        ("tcb-status", lambda c: c["tcb"].update(status="Whatever")),
    ],
)
def test_what_dcap_must_not_say(
    monkeypatch: pytest.MonkeyPatch, rule: str, change: Callable[[dict[str, Any]], None]
) -> None:
    original = _dcap.verify

    def verify(*arguments: Any) -> dict[str, Any]:
        content = original(*arguments)
        change(content)
        return content

    monkeypatch.setattr(_dcap, "verify", verify)
    with refused(QuoteRejected, rule):
        VERIFIER.verify(TEE.quote(REPORT_DATA), COLLATERAL, NOW)


# The form of collateral.

DOCUMENT: dict[str, str] = json.loads(COLLATERAL.dumps())


def changed(**members: object) -> bytes:
    return json.dumps({**DOCUMENT, **members}).encode()


def certificate_of(size: int) -> str:
    line = "A" * 64 + "\n"
    return f"-----BEGIN CERTIFICATE-----\n{line * (size // 48)}-----END CERTIFICATE-----\n"


def pem(text: str) -> str:
    return text.replace("MII", "MI!", 1)


def spare_bits() -> str:
    """A certificate in a base64 text that decodes to the right bytes but is not canonical."""
    tees = (MockTee(bytes([n])) for n in range(100))
    text = next(t for tee in tees if "=" in (t := tee.pki.chain(["tcb-signer"])))
    last = text.index("=") - 1
    letters = string.ascii_uppercase + string.ascii_lowercase + string.digits + "+/"
    return text[:last] + letters[letters.index(text[last]) + 1] + text[last + 1 :]


CHAIN = DOCUMENT["tcb_info_issuer_chain"]
HUGE = "9" * 5000
FORMS: list[tuple[str, str, bytes]] = [
    ("too large", "size", b" " * (MAX_BYTES + 1)),
    ("empty", "json", b""),
    ("not UTF-8", "text", b"\xff\xfe"),
    ("UTF-8 but not ASCII", "text", '{"\u00e9": 1}'.encode()),
    ("not JSON", "json", b"{"),
    ("list", "json", b"[]"),
    ("number", "json", b"1"),
    ("NaN", "json", b'{"a": NaN}'),
    ("deep", "json", b'{"a":' + b"[" * 100_000),
    ("long integer", "json", b'{"a":' + HUGE.encode() + b"}"),
    ("same key twice", "duplicate-key", b'{"pck_crl": "", "pck_crl": ""}'),
    ("same key twice inside", "duplicate-key", b'{"a": {"b": 1, "b": 1}}'),
    ("no member", "fields", b"{}"),
    ("another member", "fields", changed(pck_certificate_chain=CHAIN)),
    ("number as text", "type", changed(tcb_info=1)),
    ("null", "type", changed(pck_crl=None)),
    ("hex of half a byte", "hex", changed(pck_crl="abc")),
    ("hex with spaces", "hex", changed(pck_crl="ab cd")),
    ("signature of 63 bytes", "size", changed(tcb_info_signature="00" * 63)),
    ("signature in DER", "size", changed(qe_identity_signature="00" * 70)),
    ("text of other characters", "text", changed(tcb_info="\u00e9")),
    ("lone surrogate", "text", changed(tcb_info="\ud800")),
    ("large document", "size", changed(tcb_info=" " * (256 * 1024 + 1))),
    ("large CRL", "size", changed(pck_crl="00" * (512 * 1024 + 1))),
    ("large chain", "size", changed(tcb_info_issuer_chain=CHAIN * 30)),
    ("large certificate", "certificate-size", changed(tcb_info_issuer_chain=certificate_of(4800))),
    ("certificate of zeros", "certificate", changed(pck_crl_issuer_chain=certificate_of(480) * 2)),
    ("four certificates", "chain-length", changed(tcb_info_issuer_chain=CHAIN * 2)),
    ("text before PEM", "pem", changed(tcb_info_issuer_chain="x" + CHAIN)),
    ("text after PEM", "pem", changed(tcb_info_issuer_chain=CHAIN + "x")),
    ("PEM of a key", "pem", changed(tcb_info_issuer_chain=CHAIN.replace("CERTIFICATE", "KEY"))),
    ("base64 with others", "pem", changed(tcb_info_issuer_chain=pem(CHAIN))),
    ("base64 of no length", "pem", changed(tcb_info_issuer_chain=CHAIN.replace("MII", "MI", 1))),
    ("base64 with spare bits", "pem", changed(tcb_info_issuer_chain=spare_bits())),
    ("base64 with a second end", "pem", changed(
        tcb_info_issuer_chain=CHAIN.replace("\n-----END", "\nAB==\n-----END"))),
    ("version as a fraction", "tcb-info-version", changed(
        tcb_info=DOCUMENT["tcb_info"].replace('"version":3', '"version":3.0', 1))),
    ("URL-encoded PEM", "pem", changed(tcb_info_issuer_chain=CHAIN.replace("\n", "%0A"))),
    ("CRL of zeros", "crl", changed(pck_crl="00" * 100)),
    ("CRL with a tail", "crl", changed(pck_crl=DOCUMENT["pck_crl"] + "00")),
    ("empty CRL", "crl", changed(root_ca_crl="")),
    ("TCB info not JSON", "json", changed(tcb_info="{")),
    ("TCB info repeats", "duplicate-key", changed(tcb_info='{"id":"TDX","id":"TDX"}')),
    ("TCB info with an object for a date", "date", changed(
        tcb_info=DOCUMENT["tcb_info"].replace('"2025-01-01T00:00:00Z"', "{}", 1))),
    ("TCB info a list", "json", changed(tcb_info="[]")),
    ("date of other digits", "date", changed(qe_identity=DOCUMENT["qe_identity"].replace(
        "2025-01", "\\u0662025-01"))),
    ("date with an offset", "date", changed(qe_identity=DOCUMENT["qe_identity"].replace(
        "00Z", "00+00:00", 1))),
    ("number of no size", "qe-identity-number", changed(qe_identity=DOCUMENT["qe_identity"].replace(
        ":17", ":1e3"))),
]  # fmt: skip


@pytest.mark.parametrize(("rule", "raw"), [f[1:] for f in FORMS], ids=[f[0] for f in FORMS])
def test_malformed_collateral(rule: str, raw: bytes) -> None:
    start = time.perf_counter()
    with refused(CollateralFormatError, rule):
        Collateral.loads(raw)
    assert time.perf_counter() - start < 2  # bounded, on a slow and busy machine


def test_collateral_goes_round() -> None:
    assert Collateral.loads(COLLATERAL.dumps()) == COLLATERAL
    crlf = replace(COLLATERAL, tcb_info_issuer_chain=CHAIN.replace("\n", "\r\n"))
    VERIFIER.verify(TEE.quote(REPORT_DATA), crlf, NOW)


def test_a_crl_that_never_expires() -> None:
    """DER without nextUpdate: optional in X.509, needed here."""
    der = COLLATERAL.root_ca_crl
    times = der.index(b"\x17\x0d")
    inner = der[7 : times + 15] + der[times + 30 : 7 + der[6]]
    rest = bytes([0x30, 0x81, len(inner)]) + inner + der[7 + der[6] :]
    patched = bytes([0x30, 0x81, len(rest)]) + rest
    with refused(CollateralFormatError, "crl", "never expires"):
        replace(COLLATERAL, root_ca_crl=patched)


@settings(max_examples=200, deadline=None)
@given(st.data())
def test_random_collateral(data: st.DataObject) -> None:
    raw = bytearray(COLLATERAL.dumps())
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(0, len(raw) - 1))
        raw[at : at + 1] = data.draw(st.binary(max_size=3))
    try:
        documents = Collateral.loads(bytes(raw))
        VERIFIER.verify(TEE.quote(REPORT_DATA), documents, NOW)
    except (CollateralFormatError, QuoteRejected) as error:
        error.diagnostics().encode()
