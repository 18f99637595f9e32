"""`Tdx`: what a policy may be, which code it accepts, and how it gets its evidence."""

from collections.abc import Callable
from dataclasses import replace
from datetime import datetime
from typing import Any

import pytest

from attestation import tdx
from attestation.allowlist import AllowList, Entry, TcbPolicy
from attestation.errors import PolicyError, QuoteFormatError, QuoteRejected, TicketRejected
from attestation.measure.record import Binding, BootProof, Measurement, Measurements
from attestation.measure.rtmr import BootPath
from attestation.measure.tdvf import HostProfile
from attestation.tdx import Tdx, UnsafeFirmwareOnly
from attestation.ticket import AllOf, BundleValidator, Role
from attestation.verify import Claims, Evidence, TcbStatus
from tests.attestation.measure.support import refused
from tests.attestation.tickets import (
    ALLOW_LIST,
    ENTRY,
    ISSUED,
    NOW,
    OTHER,
    PEER,
    TICKET,
    at,
    bundle,
    check,
    claims,
    evidence,
    peer,
    quote,
)
from tests.attestation.tickets import (
    PRODUCTION as POLICY,
)


def test_a_good_quote() -> None:
    proof = evidence()
    verdict = POLICY.check(TICKET, proof, PEER)
    assert (verdict.at, verdict.by) == (at(ISSUED + 2_000), "collateral")
    assert verdict.evidence is proof
    assert verdict.measurement == ENTRY
    assert verdict.claims == proof.claims
    assert proof.claims.acpi == "unverified"


def test_every_method_returns_a_new_policy() -> None:
    empty = Tdx()
    changed: list[Tdx] = [
        empty.require_mrtd(ENTRY),
        empty.require_own(quote()),
        empty.require_rtmr(0, OTHER),
        empty.profiles("canonical-24.04"),
        empty.boot_paths("esp"),
        empty.tcb("OutOfDate"),
        empty.min_tcb_evaluation(1),
        empty.allow_advisory("INTEL-SA-00001"),
        empty.reject_advisory("INTEL-SA-00001"),
        empty.not_before(at(1)),
        empty.max_age(hours=1),
        empty.max_lifetime(hours=1),
        empty.require_mrconfigid(OTHER),
        empty.require_mrseam(OTHER),
        empty.require_platform(bytes(16)),
    ]
    assert empty == Tdx()
    assert len({empty, *changed}) == 1 + len(changed)


# Policies that make no sense.


@pytest.mark.parametrize("bare", [ENTRY.mr_td, ENTRY.mr_td.hex(), bytearray(48)])
def test_a_bare_mrtd_is_refused(bare: Any) -> None:
    with pytest.raises(PolicyError, match="names a firmware") as caught:
        Tdx().require_mrtd(bare)
    assert caught.value.rule == "bare-mrtd"
    assert "UnsafeFirmwareOnly" in caught.value.hint


@pytest.mark.parametrize("wrong", [None, [], [ENTRY], {"mr_td": OTHER}, 7])
def test_other_types_are_refused(wrong: Any) -> None:
    with refused(PolicyError, "measurement-type"):
        Tdx().require_mrtd(wrong)


NOT_BYTES: Any = "e" * 48
NONSENSE: list[tuple[Callable[[Tdx], Any], str]] = [
    (lambda t: t.require_rtmr(4, OTHER), "rtmr-index"),
    (lambda t: t.require_rtmr(-1, OTHER), "rtmr-index"),
    (lambda t: t.require_rtmr(1), "policy.rtmr1"),
    (lambda t: t.require_rtmr(1, b"short"), "register"),
    (lambda t: t.require_rtmr(1, NOT_BYTES), "register"),
    (lambda t: t.profiles(), "policy.profiles"),
    (lambda t: t.profiles("any"), "policy.hostprofile"),
    (lambda t: t.boot_paths(), "policy.boot-paths"),
    (lambda t: t.boot_paths("pxe"), "policy.bootpath"),
    (lambda t: t.tcb(), "policy.tcb"),
    (lambda t: t.tcb("Uptodate"), "tcb-unknown-state"),
    (lambda t: t.tcb("UpToDate", ""), "tcb-unknown-state"),
    (lambda t: t.tcb("Revoked"), "tcb-revoked"),
    (lambda t: t.tcb("Revoked", grace_until=at(NOW)), "tcb-revoked"),
    (lambda t: t.tcb("UpToDate", grace_until=at(NOW)), "tcb-state-twice"),
    (
        lambda t: t.tcb("OutOfDate", grace_until=at(NOW)).tcb("OutOfDate", grace_until=at(1)),
        "tcb-state-twice",
    ),
    (lambda t: t.tcb("OutOfDate", grace_until=datetime(2027, 1, 1)), "naive-time"),  # noqa: DTZ001
    (lambda t: t.min_tcb_evaluation(0), "policy.min-tcb-evaluation"),
    (lambda t: t.allow_advisory(), "policy.allow-advisory"),
    (lambda t: t.reject_advisory(), "policy.reject-advisory"),
    (lambda t: t.not_before(datetime(2027, 1, 1)), "naive-time"),  # noqa: DTZ001
    (lambda t: t.max_age(), "policy.max-age"),
    (lambda t: t.max_age(hours=-1), "policy.max-age"),
    (lambda t: t.max_lifetime(), "policy.max-lifetime"),
    (lambda t: t.require_mrconfigid(), "policy.mrconfigid"),
    (lambda t: t.require_mrconfigid(bytes(16)), "register"),
    (lambda t: t.require_mrseam(), "policy.mrseam"),
    (lambda t: t.require_mrseam(bytes(47)), "register"),
    (lambda t: t.require_platform(), "policy.require-platform"),
    (lambda t: t.require_platform(bytes(15)), "policy.require-platform"),
    (lambda _: UnsafeFirmwareOnly(bytes(47)), "register"),
]


@pytest.mark.parametrize(("make", "rule"), NONSENSE)
def test_nonsense(make: Callable[[Tdx], Any], rule: str) -> None:
    with refused(PolicyError, rule):
        make(Tdx())


@pytest.mark.parametrize(
    "policy",
    [
        Tdx(),
        Tdx().tcb("UpToDate").require_rtmr(1, ENTRY.rtmr1),
        Tdx().require_mrtd(replace(ENTRY, is_dev=True)),
        Tdx().require_mrtd(replace(ENTRY, boot_proof=BootProof.SKIPPED)),
        Tdx().require_mrtd(replace(ENTRY, binding=Binding.PROCESS)),
        Tdx().require_mrtd(replace(ENTRY, host_profile=HostProfile.CANONICAL_24_04)),
        Tdx().require_mrtd(replace(ENTRY, boot_path=BootPath.ESP)),
    ],
)
def test_a_policy_that_no_measurement_can_pass(policy: Tdx) -> None:
    with refused(PolicyError, "no-measurement"):
        check(policy)
    # Before anything is read, and even if there is no collateral.
    with refused(PolicyError, "no-measurement"):
        policy.validate(bundle(), PEER)


def test_a_list_of_another_deployment() -> None:
    policy = POLICY.require_mrtd(replace(ALLOW_LIST, deployment_id=b"\x99" * 32))
    with refused(PolicyError, "list-deployment"):
        check(policy)


# Measurements.

DEV = replace(ENTRY, mr_td=b"\xd0" * 48, is_dev=True)
UNPROVED = replace(ENTRY, mr_td=b"\xd1" * 48, boot_proof=BootProof.SKIPPED)
PROCESS = replace(ENTRY, mr_td=b"\xd2" * 48, binding=Binding.PROCESS)
CANONICAL = replace(ENTRY, mr_td=b"\xd3" * 48, host_profile=HostProfile.CANONICAL_24_04)
ESP = replace(ENTRY, rtmr1=b"\xd4" * 48, boot_path=BootPath.ESP)
CLIENT = replace(ENTRY, mr_td=b"\xd5" * 48, rtmr2=b"\xd6" * 48, role="client")
PINNED = replace(ENTRY, rtmr0=b"\xd7" * 48)
ALL = Measurements((ENTRY, DEV, UNPROVED, PROCESS, CANONICAL, ESP, CLIENT))


def registers(of: Measurement) -> dict[str, bytes]:
    return {"mr_td": of.mr_td, "rtmr1": of.rtmr1, "rtmr2": of.rtmr2}


@pytest.mark.parametrize(
    ("changed", "rule", "hint"),
    [
        ({"mr_td": OTHER, "rtmr2": OTHER}, "mrtd", "no accepted image"),
        ({"mr_td": OTHER}, "mrtd", "the same image on another firmware"),
        ({"rtmr1": OTHER}, "rtmr1", "boot path"),
        ({"rtmr2": OTHER}, "rtmr2", "another image"),
        ({"rtmr3": OTHER}, "rtmr3", "RTMR3"),
        (registers(DEV), "dev-image", "production"),
        (registers(UNPROVED), "boot-proof", "boot proof"),
        (registers(PROCESS), "process", "mock"),
        (registers(CANONICAL), "host-profile", '.profiles("canonical-24.04")'),
        (registers(ESP), "boot-path", '.boot_paths("esp")'),
        (registers(CLIENT), "image-role", "role"),
    ],
)
def test_measurements_that_differ(changed: dict[str, bytes], rule: str, hint: str) -> None:
    policy = Tdx().require_mrtd(ALL)
    assert check(policy).measurement == ENTRY
    with pytest.raises(TicketRejected) as caught:
        check(policy, registers=changed)
    error = caught.value
    assert error.rule == rule
    assert hint in error.hint
    assert error.expected
    assert error.got


def test_the_refusal_names_a_few_of_many() -> None:
    many = [replace(ENTRY, mr_td=bytes([i]) * 48) for i in range(5)]
    with pytest.raises(TicketRejected, match="or 2 more") as caught:
        check(Tdx().require_mrtd(Measurements(tuple(many))), registers={"mr_td": OTHER})
    assert caught.value.rule == "mrtd"
    policy = POLICY.require_rtmr(0, *(bytes([i]) * 48 for i in range(5)))
    with pytest.raises(TicketRejected, match="or 2 more"):
        check(policy, registers={"rtmr0": OTHER})


def test_the_refusal_names_what_was_recognised() -> None:
    policy = Tdx().require_mrtd(ALL)
    for found, name in (
        (DEV, r"the development image for server \(upstream, kernel\)"),
        (CLIENT, r"the image for client \(upstream, kernel\)"),
    ):
        with pytest.raises(TicketRejected, match=name) as caught:
            check(policy, registers={**registers(found), "rtmr1": OTHER})
        assert caught.value.rule == "rtmr1"


def test_two_calls_accept_both() -> None:
    second = replace(ENTRY, mr_td=OTHER)
    policy = POLICY.require_mrtd(second)
    assert check(policy).measurement == ENTRY
    assert check(policy, registers=registers(second)).measurement == second
    with refused(TicketRejected, "mrtd"):
        check(registers=registers(second))


def test_triples_do_not_mix() -> None:
    second = replace(ENTRY, mr_td=b"\1" * 48, rtmr1=b"\2" * 48, rtmr2=b"\3" * 48)
    policy = POLICY.require_mrtd(second)
    mixed = {**registers(ENTRY), "rtmr1": second.rtmr1, "rtmr2": second.rtmr2}
    with refused(TicketRejected, "rtmr1"):
        check(policy, registers=mixed)


def test_profiles_and_boot_paths_widen() -> None:
    policy = Tdx().require_mrtd(ALL).profiles("canonical-24.04").boot_paths("esp")
    for found in (ENTRY, CANONICAL, ESP):
        assert check(policy, registers=registers(found)).measurement == found


def test_roles() -> None:
    policy = Tdx().require_mrtd(ALL)
    client = replace(TICKET, role=Role.CLIENT)
    assert check(policy, ticket=client, registers=registers(CLIENT)).measurement == CLIENT
    with refused(TicketRejected, "image-role"):
        check(policy, ticket=client)
    # Whoever asks for a sealing key runs one of the listed images.
    sealer = replace(TICKET, role=Role.SEALER)
    assert check(policy, ticket=sealer, registers=registers(CLIENT)).measurement == CLIENT


def test_firmware_only() -> None:
    policy = Tdx().require_mrtd(UnsafeFirmwareOnly(ENTRY.mr_td))
    verdict = check(policy, registers={"rtmr1": OTHER, "rtmr2": OTHER})
    assert verdict.measurement is None
    for changed, rule in (({"mr_td": OTHER}, "mrtd"), ({"rtmr3": OTHER}, "rtmr3")):
        with refused(TicketRejected, rule):
            check(policy, registers=changed)


def test_own() -> None:
    policy = Tdx().require_own(quote(rtmr0=b"\1" * 48))
    assert check(policy).measurement is None
    for name, rule in (("mr_td", "mrtd"), ("rtmr1", "rtmr1"), ("rtmr2", "rtmr2")):
        with refused(TicketRejected, rule):
            check(policy, registers={name: OTHER})
    assert check(Tdx().require_own(ENTRY)).measurement == ENTRY


@pytest.mark.parametrize("index", range(4))
def test_require_rtmr(index: int) -> None:
    name = f"rtmr{index}"
    policy = Tdx().require_mrtd(UnsafeFirmwareOnly(ENTRY.mr_td)).require_rtmr(index, OTHER)
    policy = policy.require_rtmr(index, b"\x77" * 48)
    for value in (OTHER, b"\x77" * 48):
        check(policy, registers={name: value})
    with refused(TicketRejected, name):
        check(policy, registers={name: bytes(48)})


def test_acpi_is_verified_only_where_rtmr0_is_pinned() -> None:
    def acpi(policy: Tdx, **changed: bytes) -> str:
        found = check(policy, registers=changed, acpi="verified").claims
        assert found is not None
        return found.acpi

    pinned = PINNED.rtmr0
    assert pinned is not None
    assert acpi(POLICY) == "unverified"
    assert acpi(Tdx().require_mrtd(PINNED), rtmr0=pinned) == "verified"
    assert acpi(POLICY.require_rtmr(0, pinned), rtmr0=pinned) == "verified"
    assert acpi(POLICY.require_rtmr(1, ENTRY.rtmr1)) == "unverified"
    with refused(TicketRejected, "rtmr0"):
        check(Tdx().require_mrtd(PINNED))
    # An entry without the pin admits what the other doesn't, and says so.
    for both in (
        Tdx().require_mrtd(PINNED).require_mrtd(ENTRY),
        Tdx().require_mrtd(ENTRY).require_mrtd(PINNED),
    ):
        assert acpi(both) == "unverified"
        assert acpi(both, rtmr0=pinned) == "verified"


# Lists.


def test_windows_of_a_list() -> None:
    policy = Tdx().require_mrtd(ALLOW_LIST)
    verdict = check(policy)
    assert (verdict.at, verdict.by) == (at(ISSUED + 900), "retire-after")
    check(policy, context=peer(ISSUED + 899))
    with refused(TicketRejected, "retired"):
        check(policy, context=peer(ISSUED + 900))
    early = replace(TICKET, issued_at=ISSUED - 600)
    check(policy, ticket=early, context=peer(ISSUED - 500))
    with refused(TicketRejected, "not-yet-valid"):
        check(policy, ticket=early, context=peer(ISSUED - 501))


def test_overlapping_lists_take_the_longer_window() -> None:
    longer = replace(ALLOW_LIST, number=4, entries=(Entry(ENTRY, 0, ISSUED + 1_000),))
    for policy in (
        Tdx().require_mrtd(ALLOW_LIST).require_mrtd(longer),
        Tdx().require_mrtd(longer).require_mrtd(ALLOW_LIST),
    ):
        assert check(policy).at == at(ISSUED + 1_000)
        assert check(policy, context=peer(ISSUED + 950)).measurement == ENTRY


def test_a_list_brings_its_tcb_policy() -> None:
    patched = replace(
        ALLOW_LIST,
        tcb=TcbPolicy(
            frozenset({TcbStatus("UpToDate"), TcbStatus("SWHardeningNeeded")}),
            ((TcbStatus("OutOfDate"), ISSUED + 500),),
            min_evaluation_number=17,
        ),
    )
    policy = Tdx().require_mrtd(patched)
    check(policy, tcb_status=TcbStatus("SWHardeningNeeded"))
    verdict = check(policy, tcb_status=TcbStatus("OutOfDate"))
    assert (verdict.at, verdict.by) == (at(ISSUED + 500), "tcb-grace")
    with refused(TicketRejected, "tcb-status"):
        check(policy, tcb_status=TcbStatus("OutOfDate"), context=peer(ISSUED + 500))
    with refused(TicketRejected, "tcb-eval"):
        check(policy, tcb_evaluation_number=16)
    # It does not reach beyond its entries, and what the operator says besides counts too.
    other = replace(ENTRY, mr_td=OTHER)
    with refused(TicketRejected, "tcb-status"):
        check(
            policy.require_mrtd(other),
            registers=registers(other),
            tcb_status=TcbStatus("SWHardeningNeeded"),
        )
    with refused(TicketRejected, "tcb-status"):
        check(policy.tcb("UpToDate"), tcb_status=TcbStatus("SWHardeningNeeded"))
    with refused(TicketRejected, "tcb-status"):
        check(Tdx().require_mrtd(ALLOW_LIST).tcb("OutOfDate"), tcb_status=TcbStatus("OutOfDate"))
    # Of two lists with the entry, the one that accepts the state counts.
    both = Tdx().require_mrtd(ALLOW_LIST).require_mrtd(patched)
    assert check(both, tcb_status=TcbStatus("OutOfDate")).by == "tcb-grace"


# Anchors.


class Likeness(Evidence):
    """Looks like evidence, and is not."""


class Stranger:
    def __init__(self, claims: Claims) -> None:
        self.claims = claims


@pytest.mark.parametrize("kind", [Likeness, Stranger])
def test_only_the_verifier_s_own_evidence(kind: Callable[[Claims], Any]) -> None:
    with refused(TicketRejected, "mock"):
        POLICY.check(TICKET, kind(claims()), PEER)


def test_no_collateral() -> None:
    with refused(TicketRejected, "collateral"):
        POLICY.validate(bundle(quote().canonical), PEER)


class FakeVerifier:
    """Stands in for `Verifier` where only the way to it and back is tested."""

    answer: Evidence | Exception

    def verify(self, raw: bytes, collateral: object, now: datetime) -> Evidence:
        assert (raw, collateral, now) == (quote().canonical, COLLATERAL, PEER.now)
        if isinstance(self.answer, Exception):
            raise self.answer
        return self.answer


COLLATERAL: Any = object()


@pytest.fixture
def verifier(monkeypatch: pytest.MonkeyPatch) -> type[FakeVerifier]:
    class Fake(FakeVerifier):
        pass

    monkeypatch.setattr(tdx, "Verifier", Fake)
    return Fake


def test_validate_verifies_and_checks(verifier: type[FakeVerifier]) -> None:
    stack = AllOf(BundleValidator(), Tdx().require_mrtd(ALLOW_LIST))
    shown, context = bundle(quote().canonical), replace(PEER, collateral=COLLATERAL)
    verifier.answer = evidence()
    verdict = stack.validate(shown, context)
    assert (verdict.at, verdict.by) == (at(ISSUED + 900), "retire-after")
    assert verdict.evidence is verifier.answer
    verifier.answer = evidence(tcb_status=TcbStatus("OutOfDate"))
    with refused(TicketRejected, "tcb-status"):
        stack.validate(shown, context)


@pytest.mark.parametrize("kind", [QuoteRejected, QuoteFormatError])
def test_the_verifier_s_refusal_keeps_its_rule(
    verifier: type[FakeVerifier], kind: type[QuoteRejected | QuoteFormatError]
) -> None:
    verifier.answer = kind("no", expected="e", got="g", rule="some-rule", hint="h")
    with pytest.raises(TicketRejected) as caught:
        POLICY.validate(bundle(quote().canonical), replace(PEER, collateral=COLLATERAL))
    error = caught.value
    assert (error.message, error.expected, error.got, error.rule, error.hint) == (
        "no",
        "e",
        "g",
        "some-rule",
        "h",
    )


def test_a_list_rotates_without_a_new_quote() -> None:
    first = Tdx().require_mrtd(ALLOW_LIST).check(TICKET, evidence(), PEER)
    assert first.evidence is not None
    rotated = AllowList(
        number=4,
        deployment_id=ALLOW_LIST.deployment_id,
        issued_at=ISSUED,
        entries=(Entry(replace(ENTRY, mr_td=OTHER)),),
        tcb=TcbPolicy(),
    )
    with refused(TicketRejected, "mrtd"):
        Tdx().require_mrtd(rotated).check(TICKET, first.evidence, PEER)
