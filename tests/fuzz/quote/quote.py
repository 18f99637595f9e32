"""Fuzz target: quotes. What both parsers take, they must read alike."""

import dcap_qvl  # type: ignore[import-untyped]

from attestation.errors import QuoteFormatError
from attestation.quote import Quote
from tests.attestation.quotes import DRAFTS, V4


def seeds() -> list[bytes]:
    return [
        *(draft.build() for draft in DRAFTS.values()),
        V4.with_(padding=bytes(70)).build(),
        V4.with_(qe_authentication_data=b"", pck_certificate_chain=b"").build(),
    ]


def fuzz_one(data: bytes) -> None:
    try:
        quote = Quote.parse(data)
    except QuoteFormatError as error:
        error.diagnostics().encode()
        return
    assert quote.canonical.ljust(len(data), b"\0") == data
    assert quote.canonical.startswith(quote.signed_region)
    assert Quote.parse(quote.canonical) == quote
    try:
        other = dcap_qvl.parse_quote(data)
    except ValueError:
        return
    assert other.header.user_data == quote.header.user_data
    assert other.report.mr_td == quote.body.mr_td
    assert other.report.report_data == quote.body.report_data
    assert getattr(other.report, "mr_service_td", None) == quote.body.mr_service_td
    assert other.cert_chain_pem_bytes() == quote.pck_certificate_chain.rstrip(b"\0")
