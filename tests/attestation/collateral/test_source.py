"""The client: four requests, raw bytes, and each fault of a service under its own rule."""

import asyncio
import json
import re
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, replace
from typing import Any

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st

from attestation.collateral_cache import Ca, Platform
from attestation.collateral_format import Collateral
from attestation.collateral_source import (
    INTEL,
    MAX_ANSWER,
    MAX_RETRY_AFTER_SECONDS,
    Pcs,
    SourceBusy,
    signed_member,
)
from attestation.errors import (
    AttestationError,
    CollateralFormatError,
    CollateralRejected,
    CollateralUnavailable,
    PolicyError,
    QuoteFormatError,
    QuoteRejected,
)
from attestation.providers.mock_server import Answer, Fault, Item, MockPccs, signed
from tests.attestation.collateral.support import (
    BASE,
    PLATFORM,
    QUOTE,
    TEE,
    issued,
    item_of,
    pcs,
    transport,
)
from tests.attestation.measure.support import refused

GOOD = issued()
INFO = signed("tcbInfo", GOOD.tcb_info, GOOD.tcb_info_signature)


@pytest.fixture(scope="module")
def right() -> Callable[[str], Answer]:
    """The answers of a service without faults."""
    with MockPccs(GOOD) as server:
        return server.answer


def fetch(source: Pcs, platform: Platform = PLATFORM) -> Collateral:
    return asyncio.run(source.fetch(platform))


def faulty(right: Callable[[str], Answer], item: Item, fault: Fault) -> Pcs:
    def answer(target: str) -> Answer:
        given = right(target)
        return fault.spoil(given) if item_of(target) is item else given

    return pcs(answer)


def test_four_requests_and_untouched_bytes(right: Callable[[str], Answer]) -> None:
    asked: list[str] = []

    def answer(target: str) -> Answer:
        asked.append(target)
        return right(target)

    assert fetch(pcs(answer)) == GOOD
    assert asked == [
        "/sgx/certification/v4/pckcrl?ca=platform&encoding=der",
        "/tdx/certification/v4/tcb?fmspc=50806F000000&update=standard",
        "/tdx/certification/v4/qe/identity?update=standard",
        "/sgx/certification/v4/rootcacrl",
    ]
    asked.clear()
    fetch(pcs(answer, base=f"{BASE}/", update="early"))
    assert sum("update=early" in target for target in asked) == 2


def test_the_list_of_the_root_from_intel(right: Callable[[str], Answer]) -> None:
    urls: list[str] = []

    def handle(request: httpx.Request) -> httpx.Response:
        urls.append(str(request.url))
        if request.url.path == "/IntelSGXRootCA.der":
            return httpx.Response(200, content=GOOD.root_ca_crl)
        given = right(request.url.raw_path.decode())
        return httpx.Response(given.status, content=given.body, headers=dict(given.headers))

    assert fetch(Pcs(transport=httpx.MockTransport(handle))) == GOOD
    assert [url.startswith(f"{INTEL}/") for url in urls] == [True, True, True, False]
    assert urls[3].startswith("https://certificates.trustedservices.intel.com/")


def test_the_older_name_of_a_header(right: Callable[[str], Answer]) -> None:
    new, old = "TCB-Info-Issuer-Chain", "SGX-TCB-Info-Issuer-Chain"
    chain = right(f"{Item.TCB_INFO}?fmspc=50806f000000").headers[new]
    fault = Fault(headers={new: None, old: chain})
    assert fetch(faulty(right, Item.TCB_INFO, fault)) == GOOD


@dataclass(frozen=True)
class Case:
    name: str
    rule: str
    fault: Fault
    kind: type[AttestationError] = CollateralFormatError
    item: Item = Item.TCB_INFO


def status(number: int, rule: str, kind: type[AttestationError], item: Item) -> Case:
    return Case(f"status {number} {item.name}", rule, Fault(status=number), kind, item)


def body(name: str, rule: str, content: bytes, item: Item = Item.TCB_INFO) -> Case:
    return Case(name, rule, Fault(body=content), item=item)


def header(name: str, rule: str, value: str | None) -> Case:
    return Case(name, rule, Fault(headers={"TCB-Info-Issuer-Chain": value}))


CASES = [
    *(
        status(number, rule, kind, item)
        for item in Item
        for number, rule, kind in (
            (400, "source.status", CollateralUnavailable),
            (401, "source.status", CollateralUnavailable),
            (500, "source.status", CollateralUnavailable),
            (204, "source.status", CollateralUnavailable),
            (301, "source.redirect", CollateralUnavailable),
            (307, "source.redirect", CollateralUnavailable),
            (410, "source.retired", CollateralRejected),
            (429, "source.busy", SourceBusy),
            (503, "source.busy", SourceBusy),
        )
    ),
    status(404, "source.unknown-fmspc", CollateralRejected, Item.TCB_INFO),
    status(404, "source.status", CollateralUnavailable, Item.PCK_CRL),
    header("no header", "source.header", None),
    header("a header of something else", "pem", "hello"),
    header("a header that is no text", "source.header-text", "%ff%fe"),
    header("a header beyond ASCII", "text", "%c3%a4"),
    header("one certificate", "chain-length", TEE.pki.chain(["root"]).replace("\n", "%0A")),
    Case(
        "compressed", "source.encoding", Fault(headers={"Content-Encoding": "gzip"}, body=b"\x1f")
    ),
    body("too large", "source.size", b" " * (MAX_ANSWER + 1)),
    body("empty", "source.json", b""),
    body("truncated", "source.json", INFO[: len(INFO) // 2]),
    body("no JSON", "source.json", b"<html>"),
    body("a list", "source.json", b"[1, 2]"),
    body("an empty object", "source.json", b"{}"),
    body("one member", "source.json", f'{{"tcbInfo":{GOOD.tcb_info}}}'.encode()),
    body("three members", "source.json", INFO[:-1] + b',"more":1}'),
    body("deep", "source.json", b"{" + b'"a":[' + b"[" * 200_000),
    body("not ASCII", "source.text", b"\xff" + INFO),
    body("a number as name", "source.member-name", b'{1:{},"signature":""}'),
    body("other members", "source.members", INFO.replace(b'"tcbInfo"', b'"enclaveIdentity"')),
    body("a member twice", "source.duplicate-member", b'{"tcbInfo":{},"tcbInfo":{}}'),
    body("more after the end", "source.trailing", INFO + b"{}"),
    body("a short signature", "source.signature", INFO[:-4] + b'"}'),
    body(
        "a signature of something else",
        "source.signature",
        signed("tcbInfo", GOOD.tcb_info, b"").replace(b'""', b"null"),
    ),
    body("no object", "json", signed("tcbInfo", "[]", bytes(64))),
    body("a key twice within", "duplicate-key", signed("tcbInfo", '{"id":1,"id":1}', bytes(64))),
    body(
        "the document for SGX",
        "tcb-info-id",
        signed("tcbInfo", GOOD.tcb_info.replace('"TDX"', '"SGX"', 1), bytes(64)),
    ),
    body(
        "the QE of SGX",
        "qe-identity-id",
        signed("enclaveIdentity", GOOD.qe_identity.replace('"TD_QE"', '"QE"'), bytes(64)),
        Item.QE_IDENTITY,
    ),
    body("a list that is none", "crl", b"junk", Item.PCK_CRL),
    body("a root list that is not hex", "source.hex", GOOD.root_ca_crl, Item.ROOT_CRL),
    body("half a byte", "source.hex", GOOD.root_ca_crl.hex()[1:].encode(), Item.ROOT_CRL),
    Case(
        "another model",
        "collateral.fmspc",
        Fault(
            body=signed("tcbInfo", GOOD.tcb_info.replace("50806F000000", "00806F050000"), bytes(64))
        ),
        CollateralRejected,
    ),
    Case(
        "another authority",
        "collateral.ca",
        Fault(
            headers={
                "SGX-PCK-CRL-Issuer-Chain": TEE.pki.chain(["tcb-signer", "root"]).replace(
                    "\n", "%0A"
                )
            }
        ),
        CollateralRejected,
        Item.PCK_CRL,
    ),
]


@pytest.mark.parametrize("case", CASES, ids=[case.name for case in CASES])
def test_faults(right: Callable[[str], Answer], case: Case) -> None:
    with refused(case.kind, case.rule):
        fetch(faulty(right, case.item, case.fault))


@pytest.mark.parametrize("case", CASES, ids=[case.name for case in CASES])
def test_every_fault_names_the_next_step(right: Callable[[str], Answer], case: Case) -> None:
    with pytest.raises(AttestationError) as caught:
        fetch(faulty(right, case.item, case.fault))
    assert caught.value.hint
    if case.name.startswith("status"):
        assert f"GET {case.item}" in str(caught.value)


def test_documents_for_another_authority(right: Callable[[str], Answer]) -> None:
    asked = Platform(PLATFORM.fmspc, Ca.PROCESSOR)

    def answer(target: str) -> Answer:
        return right(target.replace("ca=processor", "ca=platform"))

    with refused(CollateralRejected, "collateral.ca"):
        fetch(pcs(answer), asked)


@pytest.mark.parametrize(
    ("error", "rule"),
    [
        (httpx.ConnectError("[Errno 111] refused"), "source.unreachable"),
        (httpx.ReadError(""), "source.unreachable"),
        (httpx.ConnectTimeout("slow"), "source.timeout"),
        (httpx.ReadTimeout("slow"), "source.timeout"),
        (httpx.RemoteProtocolError("peer closed connection"), "source.protocol"),
    ],
)
def test_faults_of_the_network(error: Exception, rule: str) -> None:
    def fail(request: httpx.Request) -> httpx.Response:
        raise error

    with refused(CollateralUnavailable, rule) as _:
        fetch(Pcs(BASE, transport=httpx.MockTransport(fail)))


class Dripping(httpx.AsyncByteStream):
    async def __aiter__(self) -> AsyncIterator[bytes]:
        while True:
            yield b" "
            await asyncio.sleep(0.01)


def test_an_answer_that_never_ends() -> None:
    drip = httpx.MockTransport(lambda _: httpx.Response(200, stream=Dripping()))
    with refused(CollateralUnavailable, "source.timeout"):
        fetch(Pcs(BASE, patience=0.05, transport=drip))


@pytest.mark.parametrize(
    ("headers", "seconds"),
    [
        ({}, 0),
        ({"Retry-After": "120"}, 120),
        ({"Retry-After": "999999999"}, MAX_RETRY_AFTER_SECONDS),
        ({"Retry-After": "9" * 5000}, 0),
        ({"Retry-After": "-5"}, 0),
        ({"Retry-After": "soon"}, 0),
        ({"Retry-After": "Thu, 01 Jan 2026 00:05:00 GMT"}, 0),
        (
            {
                "Retry-After": "Thu, 01 Jan 2026 00:05:00 GMT",
                "Date": "Thu, 01 Jan 2026 00:00:00 GMT",
            },
            300,
        ),
        (
            {
                "Retry-After": "Wed, 31 Dec 2025 23:00:00 GMT",
                "Date": "Thu, 01 Jan 2026 00:00:00 GMT",
            },
            0,
        ),
    ],
)
def test_retry_after(headers: dict[str, str], seconds: float) -> None:
    with pytest.raises(SourceBusy) as caught:
        fetch(pcs(lambda _: Answer(503, b"", headers)))
    assert caught.value.retry_after == seconds
    assert caught.value.exit_code == 3


@pytest.mark.parametrize(
    ("base", "rule"),
    [
        ("", "source.url"),
        ("pccs.example", "source.url"),
        ("ftp://pccs.example", "source.url"),
        ("https://", "source.url"),
        ("https://a\0b", "source.url"),
        ("https://[::1", "source.url"),
        ("https://user:secret@pccs.example", "source.url-parts"),
        ("https://pccs.example?a=b", "source.url-parts"),
        ("https://pccs.example#a", "source.url-parts"),
        ("http://pccs.example", "source.plain-http"),
        ("http://10.0.0.1:8081", "source.plain-http"),
        ("http://localhost.example", "source.plain-http"),
        ("http://127.0.0.1.example", "source.plain-http"),
    ],
)
def test_bases_that_are_refused(base: str, rule: str) -> None:
    with refused(PolicyError, rule) as _:
        Pcs(base)


@pytest.mark.parametrize(
    "base", ["http://localhost:8081", "http://127.0.0.1", "http://[::1]:8081", "https://[fd00::1]"]
)
def test_bases_that_are_taken(base: str) -> None:
    assert Pcs(base).base == base


def test_a_secret_in_the_url_is_not_shown() -> None:
    with pytest.raises(PolicyError) as caught:
        Pcs("https://user:secret@pccs.example")
    assert "secret" not in caught.value.diagnostics()


def test_the_environment_has_no_say(
    right: Callable[[str], Answer], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:1")
    monkeypatch.setenv("ALL_PROXY", "http://127.0.0.1:1")
    with MockPccs(GOOD) as server:
        assert fetch(Pcs(server.url)) == GOOD


def test_platforms_of_quotes() -> None:
    assert Platform.of_quote(QUOTE) == PLATFORM
    assert Platform.of_quote(QUOTE + bytes(100)) == PLATFORM
    assert str(PLATFORM) == "50806f000000/platform"
    assert Platform.of_collateral(GOOD) == PLATFORM
    with refused(QuoteFormatError, "size"):
        Platform.of_quote(b"")
    for knobs in ({"pem": b"x"}, {"chain": ("tcb-signer", "root")}):
        with refused(QuoteRejected, "pck-certificate"):
            Platform.of_quote(TEE.quote(bytes(64), **knobs))


# --- the signed member -------------------------------------------------------------------------

SPACES = st.text(" \t\r\n", max_size=3)
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(st.characters(codec="ascii"), max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner),
    max_leaves=8,
)


@given(
    content=st.dictionaries(st.text(max_size=4), VALUES, max_size=4),
    signature=st.binary(min_size=64, max_size=64),
    spaces=st.lists(SPACES, min_size=9, max_size=9),
    indent=st.none() | st.integers(0, 3),
    reverse=st.booleans(),
)
def test_the_text_is_kept_as_it_came(
    content: dict[str, Any], signature: bytes, spaces: list[str], indent: int | None, reverse: bool
) -> None:
    text = json.dumps(content, indent=indent)
    members = [('"tcbInfo"', text), ('"signature"', f'"{signature.hex()}"')]
    (a, x), (b, y) = members[::-1] if reverse else members
    raw = "".join(
        part
        for pair in zip(spaces, ["{", a, ":", x, ",", b, ":", y, "}"], strict=True)
        for part in pair
    )
    assert signed_member(raw.encode(), "tcbInfo") == (text, signature)


@given(
    st.binary(max_size=64) | st.text(re.sub(r"\s", "", '{}[]",: tcbInfosignature0'), max_size=80)
)
def test_hostile_bodies(raw: bytes | str) -> None:
    data = raw.encode() if isinstance(raw, str) else raw
    try:
        text, signature = signed_member(data, "tcbInfo")
    except CollateralFormatError as error:
        error.diagnostics().encode()
        return
    assert text.encode() in data
    assert len(signature) == 64


def test_a_document_with_its_members_in_another_order_is_another(
    right: Callable[[str], Answer],
) -> None:
    members = json.loads(GOOD.tcb_info)
    turned = json.dumps(dict(reversed(members.items())), separators=(",", ":"))
    fault = Fault(body=signed("tcbInfo", turned, GOOD.tcb_info_signature))
    fetched = fetch(faulty(right, Item.TCB_INFO, fault))
    assert fetched == replace(GOOD, tcb_info=turned)  # which is then not genuine


def test_the_transport_is_not_shown() -> None:
    assert "transport" not in repr(Pcs(BASE, transport=transport(lambda _: Answer(200))))
