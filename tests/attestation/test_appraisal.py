"""`Tdx`: TCB, identity of the TD, time. What code counts as accepted is in `test_tdx`."""

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from attestation.allowlist import Entry, TcbPolicy
from attestation.errors import TicketRejected
from attestation.tdx import Tdx
from attestation.ticket import Challenge, Fresh
from attestation.verify import TcbStatus
from tests.attestation.measure.support import refused
from tests.attestation.tickets import (
    ALLOW_LIST,
    BEACON,
    ENTRY,
    ISSUED,
    NOW,
    OTHER,
    PEER,
    TICKET,
    at,
    check,
    evidence,
    peer,
    quote,
)
from tests.attestation.tickets import (
    PRODUCTION as POLICY,
)

# TCB.


@pytest.mark.parametrize("status", list(TcbStatus))
def test_only_up_to_date_by_default(status: TcbStatus) -> None:
    if status == "UpToDate":
        check(tcb_status=status)
        return
    with refused(TicketRejected, "tcb-status"):
        check(tcb_status=status)


@pytest.mark.parametrize("status", [s for s in TcbStatus if s != "Revoked"])
def test_states_that_were_named(status: TcbStatus) -> None:
    policy = POLICY.tcb(status)
    check(policy, tcb_status=status)
    for other in set(TcbStatus) - {status}:
        with refused(TicketRejected, "tcb-status"):
            check(policy, tcb_status=other)
    check(policy.tcb("UpToDate"))


def test_dated_grace() -> None:
    policy = POLICY.tcb("OutOfDate", grace_until=at(ISSUED + 500))
    check(policy)
    verdict = check(policy, tcb_status=TcbStatus("OutOfDate"))
    assert (verdict.at, verdict.by) == (at(ISSUED + 500), "tcb-grace")
    with pytest.raises(TicketRejected, match="whose grace ended") as caught:
        check(policy, tcb_status=TcbStatus("OutOfDate"), context=peer(ISSUED + 500))
    assert caught.value.rule == "tcb-status"
    with refused(TicketRejected, "tcb-status"):
        check(policy, tcb_status=TcbStatus("ConfigurationNeeded"))


def test_evaluation_number() -> None:
    check(POLICY.min_tcb_evaluation(17))
    with refused(TicketRejected, "tcb-eval"):
        check(POLICY.min_tcb_evaluation(18))


def test_advisories() -> None:
    ids = ("INTEL-SA-00828", "INTEL-DOC-10000")
    found = check(advisory_ids=ids).claims
    assert found is not None
    assert found.advisory_ids == ids
    check(POLICY.allow_advisory(*ids), advisory_ids=ids)
    check(POLICY.allow_advisory(ids[0]).allow_advisory(ids[1]), advisory_ids=ids)
    check(POLICY.reject_advisory("INTEL-SA-00001"), advisory_ids=ids)
    for policy in (
        POLICY.allow_advisory(ids[0]),
        POLICY.reject_advisory("INTEL-SA-00001").reject_advisory(ids[1]),
        POLICY.allow_advisory(*ids).reject_advisory(ids[0]),
    ):
        with refused(TicketRejected, "advisory"):
            check(policy, advisory_ids=ids)
        check(policy)


# Identity.


@pytest.mark.parametrize(
    ("register", "rule"),
    [
        ("mr_config_id", "mr-config-id"),
        ("mr_owner", "mr-owner"),
        ("mr_owner_config", "mr-owner-config"),
    ],
)
def test_identity_registers(register: str, rule: str) -> None:
    for value in (OTHER, TICKET.config_digest + bytes(15) + b"\1"):
        with refused(TicketRejected, rule):
            check(registers={register: value})


def test_report_data_is_compared_to_the_last_byte() -> None:
    good = TICKET.report_data()
    for place in (0, 31, 32, 63):
        wrong = bytearray(good)
        wrong[place] ^= 1
        with refused(TicketRejected, "report-data"):
            check(registers={"report_data": bytes(wrong)})
    with refused(TicketRejected, "report-data"):
        POLICY.check(replace(TICKET, dh_pub=bytes(32)), evidence(), PEER)


def test_require_mrconfigid() -> None:
    digest = TICKET.config_digest
    for policy in (
        POLICY.require_mrconfigid(digest),
        POLICY.require_mrconfigid(digest + bytes(16)),
        POLICY.require_mrconfigid(OTHER).require_mrconfigid(digest),
    ):
        check(policy)
    with refused(TicketRejected, "mr-config-id"):
        check(POLICY.require_mrconfigid(OTHER))
    # It narrows: MRCONFIGID is still that of the ticket.
    with refused(TicketRejected, "mr-config-id"):
        check(POLICY.require_mrconfigid(OTHER), registers={"mr_config_id": OTHER})


def test_seam_and_platform() -> None:
    seam = quote().body.mr_seam
    check(POLICY.require_mrseam(OTHER).require_mrseam(seam))
    with refused(TicketRejected, "mr-seam"):
        check(POLICY.require_mrseam(OTHER))
    for found in (b"\x0a" * 16, b"\x0b" * 16):
        check(POLICY.require_platform(b"\x0c" * 16).require_platform(found))
    with refused(TicketRejected, "platform"):
        check(POLICY.require_platform(b"\x0c" * 16))
    with refused(TicketRejected, "platform"):
        check(POLICY.require_platform(b"\x0b" * 16), platform_instance_id=None)


# Time.


def test_ticket_times_count_here_too() -> None:
    for now, rule in ((ISSUED - 61, "future"), (ISSUED + 3_000, "expired")):
        with refused(TicketRejected, rule):
            check(context=peer(now), valid_until=at(ISSUED + 10_000))


def test_max_age_and_lifetime() -> None:
    policy = POLICY.max_age(seconds=100)
    verdict = check(policy, context=peer(ISSUED + 160))
    assert (verdict.at, verdict.by) == (at(ISSUED + 161), "age")
    with refused(TicketRejected, "stale"):
        check(policy, context=peer(ISSUED + 161))
    check(POLICY.max_lifetime(minutes=50))
    with refused(TicketRejected, "lifetime"):
        check(POLICY.max_lifetime(minutes=49, seconds=59))
    day = POLICY.max_age(days=1, hours=2, minutes=3, seconds=4).settings.max_age
    assert day == 86_400 + 7_200 + 180 + 4


def test_not_before() -> None:
    check(POLICY.not_before(at(ISSUED)))
    with refused(TicketRejected, "not-before"):
        check(POLICY.not_before(at(ISSUED + 1)))


def test_evidence_ends_with_its_collateral() -> None:
    check(context=peer(ISSUED + 1_999))
    with refused(TicketRejected, "collateral-window"):
        check(context=peer(ISSUED + 2_000))
    with refused(TicketRejected, "collateral-window"):
        check(valid_from=at(NOW + 1))
    check(valid_from=at(NOW))


def test_replay() -> None:
    challenged = replace(TICKET, fresh_kind=Fresh.CHALLENGE)
    context = peer(freshness=Challenge(BEACON))
    verdict = check(ticket=challenged, context=context)
    assert verdict.claims is not None
    digest = verdict.claims.quote.digest
    with refused(TicketRejected, "replay"):
        check(ticket=challenged, context=replace(context, seen={digest}))
    check(ticket=challenged, context=replace(context, seen={OTHER}))
    # A beacon's ticket may be shown to many, again and again.
    check(context=peer(seen={quote().digest}))


@given(
    st.integers(ISSUED + 101, ISSUED + 5_000),
    st.none() | st.integers(ISSUED + 101, ISSUED + 5_000),
    st.none() | st.integers(1, 5_000),
    st.none() | st.integers(ISSUED + 101, ISSUED + 5_000),
)
def test_a_verdict_holds_until_its_expiry_and_not_beyond(
    collateral: int, retire_after: int | None, max_age: int | None, grace: int | None
) -> None:
    policy = Tdx().require_mrtd(
        replace(
            ALLOW_LIST,
            entries=(Entry(ENTRY, 0, retire_after),),
            tcb=TcbPolicy(grace=() if grace is None else ((TcbStatus("OutOfDate"), grace),)),
        )
    )
    if max_age is not None:
        policy = policy.max_age(seconds=max_age + 100)
    proof = evidence(
        valid_until=at(collateral),
        tcb_status=TcbStatus("UpToDate" if grace is None else "OutOfDate"),
    )
    end = int(policy.check(TICKET, proof, PEER).at.timestamp())
    assert end > NOW
    assert policy.check(TICKET, proof, peer(end - 1)).at == at(end)
    with pytest.raises(TicketRejected):
        policy.check(TICKET, proof, peer(end))
