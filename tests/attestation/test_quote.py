"""Quotes: every field, every truncation, every byte, every length, and a second parser."""

import hashlib
import struct
from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path
from typing import Any

import dcap_qvl  # type: ignore[import-untyped]
import pytest
from hypothesis import given
from hypothesis import strategies as st

from attestation.errors import QuoteFormatError
from attestation.quote import MAX_BYTES, MIN_BYTES, Quote
from tests.attestation.measure.support import refused
from tests.attestation.quotes import DRAFTS, PEM, V4, V5_TD10, V5_TD15, Draft

REAL = Path(__file__).parents[2].parent / "shared" / "quotes"
real_quotes = pytest.mark.skipif(not REAL.is_dir(), reason="no real quotes beside the checkout")
each_draft = pytest.mark.parametrize("draft", DRAFTS.values(), ids=DRAFTS)

NUMBERS = {
    "version",
    "attestation_key_type",
    "tee_type",
    "qe_svn",
    "pce_svn",
    "qe_isv_prod_id",
    "qe_isv_svn",
    "pck_certification_type",
}
# What each field must be, and by which rule other values are refused.
FIXED = {
    "version": {"version", "body-type", "truncated"},  # 4 and 5 are one bit apart
    "attestation_key_type": {"key-type"},
    "tee_type": {"tee-type"},
    "qe_svn": {"header-reserved"},
    "pce_svn": {"header-reserved"},
    "qe_vendor_id": {"qe-vendor"},
    "body_type": {"body-type", "body-type-sgx", "body-type-td15-ex", "body-size"},
    "body_size": {"body-size"},
    "signature_length": {"truncated", "trailing-bytes"},
    "certification_type": {"certification-type"},
    "certification_length": {"certification-length"},
    "qe_reserved_1": {"qe-report-reserved"},
    "qe_reserved_2": {"qe-report-reserved"},
    "qe_reserved_3": {"qe-report-reserved"},
    "qe_reserved_4": {"qe-report-reserved"},
    "qe_authentication_length": {"qe-authentication-length", "pck-certification-type"},
    "pck_certification_type": {"pck-certification-type"},
    "pck_certification_length": {"pck-certification-length"},
}


def leaves(quote: Quote) -> dict[str, Any]:
    """The fields of a quote, named as in `Draft`."""
    found: dict[str, Any] = {}
    for field in fields(quote):
        value = getattr(quote, field.name)
        if field.name in {"header", "body"}:
            found |= {f.name: getattr(value, f.name) for f in fields(value)}
        elif field.name == "qe_report":
            found |= {f"qe_{f.name}": getattr(value, f.name) for f in fields(value)}
        elif field.name not in {"canonical", "signed_region"}:
            found[field.name] = value
    found["pck_certification_type"] = found.pop("certification_data_type")
    return found


def refusal(raw: bytes) -> str:
    """The rule that refuses these bytes."""
    with pytest.raises(QuoteFormatError) as caught:
        Quote.parse(raw)
    assert caught.value.hint
    return caught.value.rule


def expected(draft: Draft) -> dict[str, Any]:
    """The fields of a draft that a quote shows."""
    hidden = {"body_type", "body_size", "certification_type", "padding"}
    shown: dict[str, Any] = {
        name: int.from_bytes(value, "little") if name in NUMBERS else value
        for name, value in draft.parts().items()
        if name not in hidden and not name.endswith("_length") and "reserved" not in name
    }
    if draft.body_type != b"\3\0":
        shown |= {"tee_tcb_svn_2": None, "mr_service_td": None}
    return shown


@each_draft
def test_fields(draft: Draft) -> None:
    raw = draft.build()
    quote = Quote.parse(raw)
    assert leaves(quote) == expected(draft)
    assert quote.canonical == raw
    assert quote.body.rtmrs == (draft.rtmr0, draft.rtmr1, draft.rtmr2, draft.rtmr3)


@pytest.mark.parametrize(
    ("draft", "size"), [(V4, 632), (V5_TD10, 48 + 6 + 584), (V5_TD15, 48 + 6 + 648)], ids=DRAFTS
)
def test_signed_region_and_replay_key(draft: Draft, size: int) -> None:
    raw = draft.build()
    quote = Quote.parse(raw)
    assert quote.signed_region == raw[:size]
    assert quote.digest == hashlib.sha256(raw[:size]).digest()
    # Another signature over the same region is a replay; another report is none.
    assert Quote.parse(draft.with_(signature=bytes(64)).build()).digest == quote.digest
    assert Quote.parse(draft.with_(report_data=bytes(64)).build()).digest != quote.digest


@each_draft
def test_padding(draft: Draft) -> None:
    raw = draft.build()
    full = raw.ljust(MAX_BYTES, b"\0")
    assert Quote.parse(full) == Quote.parse(raw + b"\0") == Quote.parse(raw)
    with refused(QuoteFormatError, "size"):
        Quote.parse(full + b"\0")


@each_draft
@pytest.mark.parametrize("junk", [b"\1", b"\nextra", bytes(3000) + b"\1", b"\1" + bytes(3000)])
def test_trailing_bytes(draft: Draft, junk: bytes) -> None:
    with refused(QuoteFormatError, "trailing-bytes", str(len(draft.build()))):
        Quote.parse(draft.build() + junk)


@each_draft
def test_every_truncation(draft: Draft) -> None:
    raw = draft.build()
    for size in range(len(raw)):
        with refused(QuoteFormatError, "size" if size < MIN_BYTES else "truncated"):
            Quote.parse(raw[:size])


@each_draft
@pytest.mark.parametrize("mask", [0xFF, 0x01, 0x80])
def test_every_byte_flipped(draft: Draft, mask: int) -> None:
    raw = draft.build()
    before = leaves(Quote.parse(raw))
    at = 0
    for name, part in draft.parts().items():
        for index in range(at, at + len(part)):
            changed = bytearray(raw)
            changed[index] ^= mask
            if name in FIXED:
                assert refusal(bytes(changed)) in FIXED[name], (name, index)
                continue
            after = leaves(Quote.parse(bytes(changed)))
            assert {n for n in after if after[n] != before[n]} == {name}, (name, index)
        at += len(part)
    assert at == len(raw)


def u16(value: int) -> bytes:
    return struct.pack("<H", value)


def u32(value: int) -> bytes:
    return struct.pack("<I", value)


# Sizes within V4: everything after the signature data's length, and the content of the outer
# certification data.
INSIDE = len(V4.build()) - 636
OUTER = INSIDE - 134
ROOM = OUTER - 384 - 64 - 2 - 6

LIES = {
    # change: the rule that refuses it
    "version 3": ({"version": u16(3)}, "version"),
    "version 6": ({"version": u16(6)}, "version"),
    "SGX": ({"tee_type": u32(0)}, "tee-type"),
    "P-384": ({"attestation_key_type": u16(3)}, "key-type"),
    "other vendor": ({"qe_vendor_id": bytes(16)}, "qe-vendor"),
    "QE SVN": ({"qe_svn": u16(1)}, "header-reserved"),
    "PCE SVN": ({"pce_svn": u16(1)}, "header-reserved"),
    "signature data one short": ({"signature_length": u32(INSIDE - 1)}, "trailing-bytes"),
    "signature data one long": ({"signature_length": u32(INSIDE + 1)}, "truncated"),
    "signature data 4 GiB": ({"signature_length": u32(0xFFFF_FFFF)}, "truncated"),
    "signature data sign bit": ({"signature_length": u32(0x8000_0000)}, "truncated"),
    "signature data one long, padded": (
        {"signature_length": u32(INSIDE + 1), "padding": bytes(9)},
        "certification-length",
    ),
    "PCK chain in place of the QE report": ({"certification_type": u16(5)}, "certification-type"),
    "certification one short": ({"certification_length": u32(OUTER - 1)}, "certification-length"),
    "certification one long": ({"certification_length": u32(OUTER + 1)}, "certification-length"),
    "certification 4 GiB": ({"certification_length": u32(0xFFFF_FFFF)}, "certification-length"),
    "certification empty": ({"certification_length": u32(0)}, "certification-length"),
    "authentication over everything": (
        {"qe_authentication_length": u16(ROOM + 1)},
        "qe-authentication-length",
    ),
    "authentication 64 KiB": (
        {"qe_authentication_length": u16(0xFFFF)},
        "qe-authentication-length",
    ),
    "authentication shifted": ({"qe_authentication_length": u16(31)}, "pck-certification-type"),
    "authentication over the chain": (
        {"qe_authentication_length": u16(ROOM)},
        "pck-certification-type",
    ),
    "PPID in clear": ({"pck_certification_type": u16(1)}, "pck-certification-type"),
    "encrypted PPID": ({"pck_certification_type": u16(3)}, "pck-certification-type"),
    "PCK leaf only": ({"pck_certification_type": u16(4)}, "pck-certification-type"),
    "QE report in QE report": ({"pck_certification_type": u16(6)}, "pck-certification-type"),
    "chain one short": (
        {"pck_certification_length": u32(len(PEM) - 1)},
        "pck-certification-length",
    ),
    "chain one long": ({"pck_certification_length": u32(len(PEM) + 1)}, "pck-certification-length"),
    "chain 4 GiB": ({"pck_certification_length": u32(0xFFFF_FFFF)}, "pck-certification-length"),
}


@pytest.mark.parametrize(("changes", "rule"), LIES.values(), ids=LIES)
@each_draft
def test_lies(draft: Draft, changes: dict[str, bytes], rule: str) -> None:
    with refused(QuoteFormatError, rule):
        Quote.parse(draft.with_(**changes).build())


def lie(name: str) -> bytes:
    return V4.with_(**LIES[name][0]).build()


def short_signature(inside: int) -> bytes:
    """Signature data that ends within its own fixed fields, or the QE's; lengths are true."""
    raw = bytearray(V4.build()[: 636 + inside].ljust(2000, b"\0"))
    struct.pack_into("<I", raw, 632, inside)
    if inside >= 134:
        struct.pack_into("<I", raw, 636 + 130, inside - 134)
    return bytes(raw)


def test_signature_data_too_short() -> None:
    for inside in range(590):
        rule = "signature-length" if inside < 134 else "certification-length"
        with refused(QuoteFormatError, rule):
            Quote.parse(short_signature(inside))


@pytest.mark.parametrize(
    ("draft", "kind", "size", "rule"),
    [
        (V5_TD10, 0, 584, "body-type"),
        (V5_TD10, 1, 384, "body-type-sgx"),
        (V5_TD10, 3, 584, "body-size"),
        (V5_TD15, 2, 648, "body-size"),
        (V5_TD15, 3, 647, "body-size"),
        (V5_TD15, 3, 0xFFFF_FFFF, "body-size"),
        (V5_TD15, 4, 648, "body-type-td15-ex"),
        (V5_TD15, 5, 648, "body-type"),
        (V5_TD15, 0xFFFF, 648, "body-type"),
        # The bodies of the other kind under an honest descriptor: what follows is read askew.
        (V5_TD15, 2, 584, "truncated"),
        (V5_TD10, 3, 648, "truncated"),
    ],
)
def test_bodies(draft: Draft, kind: int, size: int, rule: str) -> None:
    with refused(QuoteFormatError, rule):
        Quote.parse(draft.with_(body_type=u16(kind), body_size=u32(size)).build())


@pytest.mark.parametrize("data", [b"", b"\0", bytes(32), bytes(33), bytes(500)])
def test_authentication_data_of_any_length(data: bytes) -> None:
    quote = Quote.parse(V4.with_(qe_authentication_data=data).build())
    assert quote.qe_authentication_data == data
    assert quote.pck_certificate_chain == PEM


def test_limits() -> None:
    assert (MIN_BYTES, MAX_BYTES) == (633, 16_384)
    least = V4.with_(qe_authentication_data=b"", pck_certificate_chain=b"").build()
    assert len(least) == 636 + 134 + 456
    assert Quote.parse(least).canonical == least


RAW = V4.build()


@pytest.mark.parametrize(
    ("mistaken", "wanted", "got", "hint"),
    [
        (b"", "633 to 16384 bytes", "0 bytes", "outblob"),
        (RAW[:900], f"at least {len(RAW)} bytes", "900 bytes", "outblob"),
        (RAW.hex().encode(), "4 or 5", str(0x3430), "hex"),
        (V4.with_(version=u16(3), tee_type=u32(0)).build(), "4 or 5", "3", "SGX"),
        (
            RAW + b"\0\0junk",
            "zero",
            f"6 bytes, the first that is not zero at {len(RAW) + 2}",
            "cut",
        ),
        (short_signature(9), "at least 134 bytes", "9 bytes", "damaged"),
        (short_signature(140), "at least 456 bytes", "6 bytes", "damaged"),
        (lie("certification one long"), f"{OUTER} bytes", f"{OUTER + 1} bytes", "damaged"),
        (lie("authentication 64 KiB"), f"at most {ROOM} bytes", "65535 bytes", "damaged"),
        (lie("PCK leaf only"), "type 5", "type 4", "PCCS"),
        (lie("chain one long"), f"{len(PEM)} bytes", f"{len(PEM) + 1} bytes", "damaged"),
        (V4.with_(qe_reserved_2=b"\1" + bytes(31)).build(), "zeros", "1 other bytes", "damaged"),
    ],
)
def test_what_errors_say(mistaken: bytes, wanted: str, got: str, hint: str) -> None:
    with pytest.raises(QuoteFormatError) as caught:
        Quote.parse(mistaken)
    assert wanted in caught.value.expected
    assert caught.value.got.startswith(got)
    assert hint in caught.value.hint


@given(st.binary(max_size=MAX_BYTES + 10))
def test_random_bytes(data: bytes) -> None:
    assert refusal(data) in {"size", "version"}


def same(mine: Quote, raw: bytes) -> None:
    """Both parsers see the same fields."""
    theirs = dcap_qvl.parse_quote(raw)
    header, report = theirs.header, theirs.report
    assert mine.header.version == header.version
    assert mine.header.attestation_key_type == header.attestation_key_type
    assert mine.header.tee_type == header.tee_type
    assert mine.header.qe_svn == header.qe_svn
    assert mine.header.pce_svn == header.pce_svn
    assert mine.header.qe_vendor_id == header.qe_vendor_id
    assert mine.header.user_data == header.user_data
    renamed = {f"rtmr{n}": f"rt_mr{n}" for n in range(4)} | {"tee_tcb_svn_2": "tee_tcb_svn2"}
    for field in fields(mine.body):
        other = getattr(report, renamed.get(field.name, field.name), None)
        assert getattr(mine.body, field.name) == other, field.name
    # It drops the NUL that ends the text.
    assert mine.pck_certificate_chain.rstrip(b"\0") == theirs.cert_chain_pem_bytes()


def drafts() -> Iterator[st.SearchStrategy[Draft]]:
    """Valid quotes: free fields drawn, lengths and constants true."""
    for draft in DRAFTS.values():
        free = {
            name: st.binary(min_size=len(part), max_size=len(part))
            for name, part in draft.parts().items()
            if name not in FIXED and part and name != "pck_certificate_chain"
        }
        free["pck_certificate_chain"] = st.sampled_from([PEM, PEM + b"\0", PEM * 3, b"no PEM"])
        free["padding"] = st.integers(0, 4000).map(bytes)
        yield st.builds(draft.with_, **free)


@given(draft=st.one_of(*drafts()))
def test_agrees_with_dcap_qvl(draft: Draft) -> None:
    quote = Quote.parse(draft.build())
    assert leaves(quote) == expected(draft)
    assert quote.canonical + draft.padding == draft.build()
    same(quote, draft.build())


@real_quotes
@pytest.mark.parametrize(
    ("name", "mr_td", "padding"),
    [
        ("dcap-qvl-v4.quote", "91eb2b44", 70),
        ("gce-cos113-v4.quote", "dae67181", 3065),
        ("trustee-debug-v4.quote", "705ee938", 0),
    ],
)
def test_real_quotes(name: str, mr_td: str, padding: int) -> None:
    raw = (REAL / name).read_bytes()
    quote = Quote.parse(raw)
    assert quote.body.mr_td.hex().startswith(mr_td)
    assert raw == quote.canonical + bytes(padding)
    assert quote.certification_data_type == 5
    assert quote.pck_certificate_chain.count(b"-----BEGIN CERTIFICATE-----") == 3
    # The QE vouches for the attestation key: an independent sign that the fields are cut right.
    vouched = hashlib.sha256(quote.attestation_key + quote.qe_authentication_data).digest()
    assert quote.qe_report.report_data == vouched + bytes(32)
    same(quote, raw)


@real_quotes
def test_real_quote_with_trailing_bytes() -> None:
    raw = (REAL / "go-tdx-guest-trailing-v4.quote").read_bytes()
    with refused(QuoteFormatError, "trailing-bytes", "4935"):
        Quote.parse(raw)
    assert Quote.parse(raw[:-39]).body.mr_td.hex().startswith("6363b804")
