"""Evidence of a running node: the ticket, its judgement, and fetching it."""

import asyncio
import hashlib
from collections.abc import AsyncIterator, Callable
from dataclasses import replace
from datetime import datetime
from typing import Any

import httpx
import pytest

from attestation.bundle import MAX_BUNDLE
from attestation.errors import (
    AttestationError,
    EvidenceUnavailable,
    PolicyError,
    TicketFormatError,
    TicketRejected,
)
from attestation.evidence import POLICY_ID, check_evidence, evidence_ticket, fetch
from attestation.tdx import Tdx
from attestation.ticket import Bundle, BundleValidator, Expiry, Fresh, Role, TicketValidator
from attestation.verify import Collateral
from tests.attestation.measure.support import refused
from tests.attestation.provision_support import CHALLENGE, CODE, COLLATERAL, NOW, STACK, Provider
from tests.attestation.tickets import BEACON, DEPLOYMENT, ENTRY, ISSUED, KEY, PEER_ID, TICKET, at

OTHER = b"\xee" * 32
URL = "http://node:9464"


def shown(challenge: bytes = CHALLENGE, *, body: Any = None, **changes: Any) -> bytes:
    """What a node answers; `changes` are of its ticket, `body` of its quote."""
    fields = {name: getattr(TICKET, name) for name in ("instance_id", "dh_pub", "config_digest")}
    made = evidence_ticket(
        role=Role.SERVER,
        deployment_id=DEPLOYMENT,
        peer_id=PEER_ID,
        boot_epoch=7,
        challenge=challenge,
        now=ISSUED,
        **fields,
    )
    ticket = replace(made, **changes)
    launched = {"mr_config_id": TICKET.config_digest + bytes(16)}
    provider = Provider(body={**launched, **(body or {})})
    return Bundle.sign(ticket, provider.quote(ticket.report_data()), KEY).encode()


def check(
    raw: bytes,
    *,
    challenge: bytes = CHALLENGE,
    role: Role = Role.SERVER,
    deployment_id: bytes | None = DEPLOYMENT,
    validator: TicketValidator = STACK,
    collateral: Collateral | None = COLLATERAL,
    now: datetime = NOW,
) -> Expiry:
    return check_evidence(
        raw,
        challenge=challenge,
        role=role,
        deployment_id=deployment_id,
        validator=validator,
        collateral=collateral,
        now=now,
    )


def test_the_ticket() -> None:
    ticket = Bundle.decode(shown()).ticket
    domain = b"attestation/evidence/v1"
    parts = b"".join(len(p).to_bytes(4, "big") + p for p in (domain, CHALLENGE))
    assert ticket.fresh == hashlib.sha256(parts).digest()
    assert ticket.fresh_kind is Fresh.CHALLENGE
    assert ticket.policy_id == hashlib.sha256(b"attestation/evidence/policy/v1").digest()
    assert (ticket.issued_at, ticket.not_after) == (ISSUED, ISSUED + 600)
    for name in ("role", "deployment_id", "instance_id", "peer_id", "dh_pub", "config_digest"):
        assert getattr(ticket, name) == getattr(TICKET, name)
    assert ticket.boot_epoch == 7


def test_good_evidence() -> None:
    for deployment in (DEPLOYMENT, None):
        verdict = check(shown(), deployment_id=deployment)
        assert verdict.measurement == ENTRY
        assert verdict.at == at(ISSUED + 600)
    assert check(shown(), validator=BundleValidator(), collateral=None).by == "ticket"


REFUSED: list[tuple[dict[str, Any], dict[str, Any], str]] = [
    ({"challenge": OTHER}, {}, "challenge"),
    ({"fresh_kind": Fresh.BEACON}, {}, "challenge"),
    ({"fresh": CHALLENGE}, {}, "challenge"),
    ({"fresh": BEACON}, {}, "challenge"),
    ({"policy_id": TICKET.policy_id}, {}, "policy-id"),
    ({"role": Role.CLIENT}, {}, "role"),
    ({"role": Role.CLIENT}, {"role": Role.CLIENT}, "image-role"),
    ({"deployment_id": OTHER}, {}, "deployment"),
    ({"config_digest": OTHER}, {}, "mr-config-id"),
    ({"body": {"mr_td": b"\xee" * 48}}, {}, "mrtd"),
    ({"body": {"td_attributes": 1 << 28 | 1}}, {}, "debug-td"),
    ({}, {"validator": Tdx().require_mrtd(ENTRY)}, "root-mismatch"),
    # However little the caller demands of the code, the ticket answers his challenge.
    ({}, {"challenge": OTHER, "validator": CODE}, "challenge"),
    ({}, {"collateral": None}, "collateral"),
    ({}, {"now": at(ISSUED + 600)}, "expired"),
]


@pytest.mark.parametrize(("node", "auditor", "rule"), REFUSED)
def test_refusals(node: dict[str, Any], auditor: dict[str, Any], rule: str) -> None:
    with refused(TicketRejected, rule):
        check(shown(**node), **auditor)


def test_bytes_that_are_no_evidence() -> None:
    raw = shown()
    for wrong, rule in (
        (b"", "bundle.size"),
        (raw[:-1], "bundle.quote-size"),
        (b"<html>".ljust(400), "ticket.version"),
    ):
        with refused(TicketFormatError, rule):
            check(wrong)


def test_evidence_lets_nobody_in() -> None:
    """A node that answers whoever asks must not sign what another service takes."""
    assert TICKET.policy_id != POLICY_ID
    ticket = Bundle.decode(shown(challenge=BEACON)).ticket
    assert ticket.fresh != BEACON


# Fetching.


def answering(answer: Callable[[httpx.Request], httpx.Response], url: str = URL) -> bytes:
    return asyncio.run(fetch(url, CHALLENGE, 5.0, transport=httpx.MockTransport(answer)))


@pytest.mark.parametrize("url", [URL, URL + "/", "https://node:9464", "http://[::1]:9464/below/"])
def test_fetching(url: str) -> None:
    def answer(request: httpx.Request) -> httpx.Response:
        assert str(request.url) == f"{url.rstrip('/')}/evidence/{CHALLENGE.hex()}"
        assert request.method == "GET"
        return httpx.Response(200, stream=httpx.ByteStream(bytes(MAX_BUNDLE)))

    assert answering(answer, url) == bytes(MAX_BUNDLE)


def failing(error: Exception) -> Callable[[httpx.Request], httpx.Response]:
    def answer(_request: httpx.Request) -> httpx.Response:
        raise error

    return answer


@pytest.mark.parametrize(
    ("answer", "kind", "rule"),
    [
        (lambda _: httpx.Response(404), EvidenceUnavailable, "evidence.status"),
        (lambda _: httpx.Response(503), EvidenceUnavailable, "evidence.status"),
        (
            lambda _: httpx.Response(302, headers={"location": "http://other/"}),
            EvidenceUnavailable,
            "evidence.status",
        ),
        (
            lambda _: httpx.Response(200, stream=httpx.ByteStream(bytes(MAX_BUNDLE + 1))),
            TicketFormatError,
            "bundle.size",
        ),
        (failing(httpx.ConnectError("no")), EvidenceUnavailable, "evidence.unreachable"),
        (failing(httpx.ReadTimeout("")), EvidenceUnavailable, "evidence.unreachable"),
        (failing(httpx.RemoteProtocolError("no")), EvidenceUnavailable, "evidence.unreachable"),
    ],
)
def test_nodes_that_give_none(
    answer: Callable[[httpx.Request], httpx.Response], kind: type[AttestationError], rule: str
) -> None:
    with refused(kind, rule):
        answering(answer)


def test_an_answer_without_an_end() -> None:
    sent = 0

    async def endless() -> AsyncIterator[bytes]:
        nonlocal sent
        while True:
            sent += 1000
            yield bytes(1000)

    with refused(TicketFormatError, "bundle.size"):
        answering(lambda _: httpx.Response(200, content=endless()))
    assert sent <= MAX_BUNDLE + 1000


def test_an_answer_that_drips() -> None:
    async def drip() -> AsyncIterator[bytes]:
        while True:
            yield b"."
            await asyncio.sleep(0.01)

    transport = httpx.MockTransport(lambda _: httpx.Response(200, content=drip()))
    with refused(EvidenceUnavailable, "evidence.unreachable"):
        asyncio.run(fetch(URL, CHALLENGE, 0.05, transport=transport))


@pytest.mark.parametrize(
    "url",
    [
        "",
        "node:9464",
        "ftp://node",
        "http://",
        "http://operator:password@node",
        "http://node/?x",
        "http://node/#x",
        "http://node:port",
    ],
)
def test_addresses_that_are_none(url: str) -> None:
    with refused(PolicyError, "evidence.url"):
        answering(failing(AssertionError("asked")), url)


def test_no_proxy_of_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever it says, the node itself is asked: here one where nobody listens."""
    for name in ("http_proxy", "HTTP_PROXY", "ALL_PROXY"):
        monkeypatch.setenv(name, "not a proxy")
    with refused(EvidenceUnavailable, "evidence.unreachable"):
        asyncio.run(fetch("http://127.0.0.1:1", CHALLENGE, 5.0))
