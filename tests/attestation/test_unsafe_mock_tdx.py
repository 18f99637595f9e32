"""The whole stack over a software TDX, and the wall between the two anchors."""

import subprocess
import sys
from dataclasses import replace
from typing import Any

import pytest

from attestation.errors import PolicyError, TicketRejected
from attestation.measure.record import Binding, BootProof, Measurement
from attestation.providers.mock import MockEvidence, MockTee, MockVerifier, forged
from attestation.tdx import Tdx
from attestation.ticket import AllOf, Bundle, BundleValidator, Peer, ReplayGuard, Ticket
from attestation.unsafe_mock_tdx import UnsafeMockTdx
from tests.attestation.measure.support import refused
from tests.attestation.tickets import (
    ALLOW_LIST,
    ENTRY,
    ISSUED,
    KEY,
    PEER,
    TICKET,
    at,
    claims,
    evidence,
)

TEE = MockTee(b"tests of unsafe_mock_tdx")
MOCK = UnsafeMockTdx(verifier=MockVerifier(TEE.root_der))
POLICY = MOCK.require_mrtd(ENTRY)
BODY = {
    "mr_td": ENTRY.mr_td,
    "rtmr1": ENTRY.rtmr1,
    "rtmr2": ENTRY.rtmr2,
    "rtmr3": bytes(48),
    "mr_config_id": TICKET.config_digest + bytes(16),
}


@pytest.fixture(scope="module")
def context() -> Peer:
    return replace(PEER, collateral=TEE.collateral())


def shown(ticket: Ticket = TICKET, *, tee: MockTee = TEE, **knobs: Any) -> Bundle:
    quote = tee.quote(ticket.report_data(), body={**BODY, **knobs.pop("body", {})}, **knobs)
    return Bundle.sign(ticket, quote, KEY)


@pytest.mark.parametrize(
    "knobs",
    [{}, {"version": 5}, {"version": 5, "td15": True}, {"padding": 3_000}],
    ids=["v4", "v5", "v5-td15", "padded"],
)
def test_a_ticket_from_end_to_end(context: Peer, knobs: dict[str, Any]) -> None:
    received = Bundle.decode(shown(**knobs).encode())
    stack = AllOf(BundleValidator(), MOCK.require_mrtd(ALLOW_LIST))
    verdict = stack.validate(received, context)
    assert (verdict.at, verdict.by) == (at(ISSUED + 900), "retire-after")
    assert isinstance(verdict.evidence, MockEvidence)
    assert verdict.measurement == ENTRY
    assert verdict.claims is not None
    guard = ReplayGuard()
    guard.add(verdict.claims.quote.digest, verdict, context.now)
    assert verdict.claims.quote.digest in guard


def test_quotes_that_are_not_genuine(context: Peer) -> None:
    good = shown()
    forgery = forged(good.quote, b"a laptop", {"mr_td": ENTRY.mr_td})
    for quote in (forgery, b"", b"\0" * 5_000, good.quote[:-1], good.quote + b"\1"):
        with pytest.raises(TicketRejected) as caught:
            POLICY.validate(Bundle.sign(TICKET, quote, KEY), context)
        assert caught.value.rule
        assert caught.value.__cause__ is not None


def test_a_quote_under_another_mock_root(context: Peer) -> None:
    stranger = MockTee(b"another seed")
    for collateral in (context.collateral, stranger.collateral()):
        with refused(TicketRejected, "root-mismatch"):
            POLICY.validate(shown(tee=stranger), replace(context, collateral=collateral))


def test_production_refuses_the_mock(context: Peer) -> None:
    production = Tdx().require_mrtd(ENTRY)
    with refused(TicketRejected, "root-mismatch"):
        production.validate(shown(), context)
    mock = MOCK.verifier.verify(shown().quote, TEE.collateral(), PEER.now)
    with refused(TicketRejected, "mock"):
        production.check(TICKET, mock, PEER)
    POLICY.check(TICKET, mock, PEER)


def test_a_mock_deployment_refuses_other_evidence() -> None:
    with refused(TicketRejected, "not-mock"):
        POLICY.check(TICKET, evidence(), PEER)

    class Likeness(MockEvidence):
        pass

    with refused(TicketRejected, "not-mock"):
        POLICY.check(TICKET, Likeness(claims()), PEER)


@pytest.mark.parametrize(
    "entry",
    [
        replace(ENTRY, is_dev=True),
        replace(ENTRY, boot_proof=BootProof.SKIPPED),
        replace(ENTRY, binding=Binding.PROCESS),
    ],
)
def test_a_mock_deployment_takes_what_production_does_not(
    context: Peer, entry: Measurement
) -> None:
    assert MOCK.require_mrtd(entry).validate(shown(), context).measurement == entry
    with refused(PolicyError, "no-measurement"):
        Tdx().require_mrtd(entry).validate(shown(), context)


def test_the_mock_still_needs_measurements(context: Peer) -> None:
    with refused(PolicyError, "no-measurement"):
        MOCK.validate(shown(), context)
    with refused(TicketRejected, "mrtd"):
        POLICY.validate(shown(body={"mr_td": bytes(48)}), context)


def test_a_platform_that_is_out_of_date(context: Peer) -> None:
    late = replace(
        context,
        collateral=TEE.collateral(platform_status="OutOfDate", advisories=["INTEL-SA-00828"]),
    )
    with refused(TicketRejected, "tcb-status"):
        POLICY.validate(shown(), late)
    graced = POLICY.tcb("OutOfDate", grace_until=at(ISSUED + 500))
    verdict = graced.validate(shown(), late)
    assert (verdict.at, verdict.by) == (at(ISSUED + 500), "tcb-grace")
    with refused(TicketRejected, "advisory"):
        graced.reject_advisory("INTEL-SA-00828").validate(shown(), late)


def test_the_production_policy_does_not_load_the_mock() -> None:
    program = (
        "import sys, attestation.tdx, attestation.allowlist, attestation.ticket;"
        "sys.exit(any('mock' in name for name in sys.modules if name.startswith('attestation')))"
    )
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0
