"""Tickets and bundles: format, checks in their order, stacking, replay."""

import hashlib
import json
import struct
from dataclasses import replace
from datetime import UTC, datetime, tzinfo
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from hypothesis import given
from hypothesis import strategies as st

from attestation.bundle import MAX_BUNDLE, REPORT_DOMAIN
from attestation.errors import PolicyError, TicketFormatError, TicketRejected
from attestation.moments import moment, utc
from attestation.ticket import (
    AllOf,
    Beacons,
    Bundle,
    BundleValidator,
    Challenge,
    Expiry,
    Fresh,
    Peer,
    ReplayGuard,
    Role,
    Ticket,
    check_replay,
    check_times,
)
from tests.attestation.measure.support import refused
from tests.attestation.tickets import (
    BEACON,
    ISSUED,
    KEY,
    NOW,
    PEER,
    TICKET,
    at,
    bundle,
    claims,
    evidence,
    peer,
)

VECTORS: dict[str, Any] = json.loads(
    (Path(__file__).parents[1] / "vectors" / "attestation" / "tickets.json").read_text()
)
BIG = 1 << 64


@pytest.mark.parametrize("vector", VECTORS["good"])
def test_vectors(vector: dict[str, Any]) -> None:
    decoded = Bundle.decode(bytes.fromhex(vector["bundle"]))
    ticket = decoded.ticket
    shown = {name: getattr(ticket, name) for name in Ticket.__slots__}
    assert {n: v.hex() if isinstance(v, bytes) else v for n, v in shown.items()} == vector["fields"]
    assert ticket.encode().hex() == vector["ticket"]
    assert ticket.report_data().hex() == vector["report_data"]
    assert decoded.quote.hex() == vector["quote"]
    assert decoded.possessed()
    key = Ed25519PrivateKey.from_private_bytes(bytes.fromhex(vector["seed"]))
    assert Bundle.sign(ticket, decoded.quote, key).encode().hex() == vector["bundle"]


@pytest.mark.parametrize("vector", VECTORS["malformed"], ids=lambda vector: vector["name"])
def test_malformed_vectors(vector: dict[str, str]) -> None:
    with refused(TicketFormatError, vector["rule"]):
        Bundle.decode(bytes.fromhex(vector["bundle"]))


def test_offsets_of_the_format() -> None:
    raw = TICKET.encode()
    assert len(raw) == 251
    assert raw[:2] == b"\1\2"
    for offset, value in (
        (2, TICKET.deployment_id),
        (34, TICKET.instance_id),
        (66, TICKET.peer_id),
        (98, TICKET.dh_pub),
        (130, TICKET.policy_id),
        (162, TICKET.config_digest),
        (194, struct.pack(">QQQ", TICKET.boot_epoch, TICKET.issued_at, TICKET.not_after)),
        (218, b"\2" + TICKET.fresh),
    ):
        assert raw[offset : offset + len(value)] == value


def test_report_data_is_a_domain_separated_hash_over_everything() -> None:
    head = len(REPORT_DOMAIN).to_bytes(4, "big") + REPORT_DOMAIN + (251).to_bytes(4, "big")
    assert TICKET.report_data() == hashlib.sha512(head + TICKET.encode()).digest()
    seen = {TICKET.report_data()}
    for change in CHANGES.values():
        seen.add(replace(TICKET, **change).report_data())
    assert len(seen) == 1 + len(CHANGES)


OTHER = b"\xee" * 32
CHANGES: dict[str, dict[str, Any]] = {
    "role": {"role": Role.CLIENT},
    "deployment_id": {"deployment_id": OTHER},
    "instance_id": {"instance_id": OTHER},
    "peer_id": {"peer_id": OTHER},
    "dh_pub": {"dh_pub": OTHER},
    "policy_id": {"policy_id": OTHER},
    "config_digest": {"config_digest": OTHER},
    "boot_epoch": {"boot_epoch": 8},
    "issued_at": {"issued_at": ISSUED + 1},
    "not_after": {"not_after": ISSUED + 3_001},
    "fresh_kind": {"fresh_kind": Fresh.CHALLENGE},
    "fresh": {"fresh": OTHER},
}


def test_every_field_has_its_change() -> None:
    assert set(CHANGES) == set(Ticket.__slots__)


ids = st.binary(min_size=32, max_size=32)
counters = st.integers(0, BIG - 1)


@st.composite
def tickets(draw: st.DrawFn) -> Ticket:
    kind = draw(st.sampled_from(Fresh))
    issued_at = draw(st.integers(0, BIG - 2))
    return Ticket(
        role=draw(st.sampled_from(Role)),
        deployment_id=draw(ids),
        instance_id=draw(ids),
        peer_id=draw(ids),
        dh_pub=draw(ids),
        policy_id=draw(ids),
        config_digest=draw(ids),
        boot_epoch=draw(counters),
        issued_at=issued_at,
        not_after=draw(st.integers(issued_at + 1, BIG - 1)),
        fresh_kind=kind,
        fresh=bytes(32) if kind is Fresh.NONE else draw(ids),
    )


@given(tickets(), st.binary(min_size=64, max_size=64), st.binary(max_size=400))
def test_round_trip(ticket: Ticket, signature: bytes, quote: bytes) -> None:
    assert Ticket.decode(ticket.encode()) == ticket
    whole = Bundle(ticket, signature, quote)
    raw = whole.encode()
    assert len(raw) == 319 + len(quote)
    assert Bundle.decode(raw) == whole
    for wrong in (raw[:-1], raw + b"\0"):
        with pytest.raises(TicketFormatError):
            Bundle.decode(wrong)


@given(st.binary(min_size=251, max_size=251))
def test_a_ticket_has_one_encoding(raw: bytes) -> None:
    try:
        ticket = Ticket.decode(b"\1\2" + raw[2:])
    except TicketFormatError:
        return
    assert ticket.encode() == b"\1\2" + raw[2:]


def test_truncations_at_every_length() -> None:
    raw = bundle(b"quote").encode()
    for size in range(len(raw)):
        with pytest.raises(TicketFormatError) as caught:
            Bundle.decode(raw[:size])
        assert caught.value.rule == ("bundle.size" if size < 319 else "bundle.quote-size")


def test_every_flipped_byte_breaks_format_or_possession() -> None:
    raw = bundle(b"a quote").encode()
    assert Bundle.decode(raw).possessed()
    for place in range(len(raw)):
        changed = bytearray(raw)
        changed[place] ^= 1
        try:
            decoded = Bundle.decode(bytes(changed))
        except TicketFormatError:
            continue
        assert not decoded.possessed(), place


@pytest.mark.parametrize(
    ("change", "rule"),
    [
        ({"peer_id": b"short"}, "ticket.field"),
        ({"config_digest": "x" * 32}, "ticket.field"),
        ({"fresh": b""}, "ticket.field"),
        ({"boot_epoch": -1}, "ticket.field"),
        ({"not_after": BIG}, "ticket.field"),
        ({"issued_at": True}, "ticket.field"),
        ({"issued_at": TICKET.not_after}, "ticket.times"),
        ({"fresh_kind": Fresh.NONE}, "ticket.fresh"),
    ],
)
def test_values_without_an_encoding(change: dict[str, Any], rule: str) -> None:
    with refused(TicketFormatError, rule):
        replace(TICKET, **change)


def test_sizes() -> None:
    assert len(bundle(bytes(MAX_BUNDLE - 319)).encode()) == MAX_BUNDLE == 20_000
    with refused(TicketFormatError, "bundle.size"):
        bundle(bytes(MAX_BUNDLE - 318))
    with refused(TicketFormatError, "bundle.size"):
        Bundle.decode(bundle(bytes(MAX_BUNDLE - 319)).encode() + b"\0")
    with refused(TicketFormatError, "bundle.signature-size"):
        Bundle(TICKET, bytes(63), b"")
    with refused(TicketFormatError, "ticket.size"):
        Ticket.decode(bytes(250))


def test_only_its_peer_signs_a_ticket() -> None:
    with refused(TicketFormatError, "bundle.key"):
        Bundle.sign(replace(TICKET, peer_id=OTHER), b"", KEY)


# What a validator refuses, in the order of the checks: the ticket, the context, the rule. Each case
# also breaks something that is checked later.
LATE = {"last_seen": (9, 0)}
REFUSED: list[tuple[dict[str, Any], dict[str, Any], str]] = [
    ({"role": Role.CLIENT, "deployment_id": OTHER}, {}, "role"),
    ({"role": Role.SEALER}, {}, "role"),
    ({"deployment_id": OTHER, "policy_id": OTHER}, {}, "deployment"),
    ({"policy_id": OTHER}, {"peer_id": OTHER}, "policy-id"),
    ({}, {"peer_id": OTHER, "now": ISSUED - 61}, "peer"),
    ({}, {"now": ISSUED - 61}, "future"),
    ({"not_after": ISSUED + 100_000}, {"now": ISSUED + 3_661}, "stale"),
    ({"not_after": ISSUED + 86_401, "fresh": OTHER}, {}, "lifetime"),
    ({"fresh": OTHER}, {"now": ISSUED + 3_000}, "expired"),
    ({"fresh": OTHER}, LATE, "beacon"),
    ({"fresh_kind": Fresh.NONE, "fresh": bytes(32)}, {}, "beacon"),
    ({"fresh_kind": Fresh.CHALLENGE}, {}, "beacon"),
    ({}, {"freshness": Beacons(frozenset())}, "beacon"),
    ({}, {"freshness": Challenge(BEACON)}, "challenge"),
    (
        {"fresh_kind": Fresh.CHALLENGE, "fresh": OTHER},
        {"freshness": Challenge(BEACON)},
        "challenge",
    ),
    ({}, {"last_seen": (8, 0)}, "rollback"),
    ({}, {"last_seen": (7, ISSUED + 1)}, "rollback"),
]


@pytest.mark.parametrize(("ticket", "context", "rule"), REFUSED)
def test_refusals(ticket: dict[str, Any], context: dict[str, Any], rule: str) -> None:
    with refused(TicketRejected, rule):
        BundleValidator().validate(bundle(**ticket), peer(**context))


def test_refusals_say_what_to_do() -> None:
    for ticket, context, _ in REFUSED:
        with pytest.raises(TicketRejected) as caught:
            BundleValidator().validate(bundle(**ticket), peer(**context))
        error = caught.value
        assert error.expected
        assert error.got
        assert error.hint


def test_proof_of_possession() -> None:
    good = bundle(b"quote")
    for wrong in (
        replace(good, quote=b"other"),
        replace(good, ticket=replace(TICKET, dh_pub=OTHER)),
        replace(good, signature=bytes(64)),
        # Signed by another: what relays and thieves of quotes have.
        replace(good, signature=Ed25519PrivateKey.generate().sign(b"")),
    ):
        with refused(TicketRejected, "pop"):
            BundleValidator().validate(wrong, peer())
    # Possession comes before roll-back.
    with refused(TicketRejected, "pop"):
        BundleValidator().validate(replace(good, quote=b""), peer(last_seen=(8, 0)))


def test_verdicts() -> None:
    validator = BundleValidator()
    assert validator.validate(bundle(), peer()) == Expiry(at(ISSUED + 3_000), "ticket")
    long = bundle(not_after=ISSUED + 86_400)
    assert validator.validate(long, peer()) == Expiry(at(ISSUED + 3_661), "age")
    challenged = bundle(fresh_kind=Fresh.CHALLENGE)
    validator.validate(challenged, peer(freshness=Challenge(BEACON)))
    for seen in ((7, ISSUED), (7, ISSUED - 1), (6, BIG)):
        validator.validate(bundle(), peer(last_seen=seen))


@pytest.mark.parametrize(
    ("now", "passes"),
    [
        (ISSUED - 61, False),
        (ISSUED - 60, True),
        (ISSUED + 2_999, True),
        (ISSUED + 3_000, False),
    ],
)
def test_edges(now: int, passes: bool) -> None:
    if passes:
        BundleValidator().validate(bundle(), peer(now))
    else:
        with pytest.raises(TicketRejected):
            BundleValidator().validate(bundle(), peer(now))


def test_lifetime_edge_and_sub_seconds() -> None:
    edge = bundle(not_after=ISSUED + 86_400)
    almost = replace(PEER, now=at(ISSUED + 3_660).replace(microsecond=999_999))
    assert BundleValidator().validate(edge, almost).at > almost.now
    with refused(TicketRejected, "lifetime"):
        BundleValidator().validate(bundle(not_after=ISSUED + 86_401), peer())


@given(tickets(), st.integers(0, 4_000_000_000), st.none() | st.integers(1, 100_000))
def test_a_verdict_holds_until_its_expiry_and_not_beyond(
    ticket: Ticket, now: int, max_age: int | None
) -> None:
    near = replace(ticket, issued_at=now, not_after=now + 1 + ticket.not_after % 100_000)
    expiry = check_times(near, now, max_age, None)
    end = int(expiry.at.timestamp())
    assert end > now
    check_times(near, end - 1, max_age, None)
    with refused(TicketRejected, "expired" if expiry.by == "ticket" else "stale"):
        check_times(near, end, max_age, None)


def test_the_end_of_time() -> None:
    forever = replace(TICKET, not_after=BIG - 1)
    assert check_times(forever, NOW, None, None).at.year == 9999
    assert moment(0) == datetime(1970, 1, 1, tzinfo=UTC)


@pytest.mark.parametrize(
    "limits", [{"max_age": 0}, {"max_lifetime": 0}, {"skew": -1}, {"max_age": -1}]
)
def test_limits_that_nothing_passes(limits: dict[str, int]) -> None:
    with refused(PolicyError, "limits"):
        BundleValidator(**limits)


def test_limits_can_be_changed() -> None:
    strict = BundleValidator(max_age=10, max_lifetime=3_000, skew=0)
    assert strict.validate(bundle(), peer(ISSUED + 10)).at == at(ISSUED + 11)
    for now, rule in ((ISSUED + 11, "stale"), (ISSUED - 1, "future")):
        with refused(TicketRejected, rule):
            strict.validate(bundle(), peer(now))
    with refused(TicketRejected, "lifetime"):
        strict.validate(bundle(not_after=ISSUED + 3_001), peer(ISSUED + 10))


@pytest.mark.parametrize(
    ("change", "rule"),
    [
        ({"policy_ids": frozenset()}, "peer"),
        ({"roles": frozenset()}, "peer"),
        ({"now": datetime(2027, 1, 1)}, "naive-time"),  # noqa: DTZ001
    ],
)
def test_contexts_that_nothing_passes(change: dict[str, Any], rule: str) -> None:
    with refused(PolicyError, rule):
        replace(PEER, **change)


class Nowhere(tzinfo):
    """A time zone that names none."""

    def utcoffset(self, _when: datetime | None) -> None:
        return None

    def dst(self, _when: datetime | None) -> None:
        return None

    def tzname(self, _when: datetime | None) -> None:
        return None


def test_time_zones() -> None:
    with refused(PolicyError, "naive-time"):
        utc(datetime(2027, 1, 1, tzinfo=Nowhere()))
    assert utc(datetime.fromisoformat("2027-01-01T02:00:00+02:00")) == datetime(
        2027, 1, 1, tzinfo=UTC
    )


class Fixed:
    """A validator with one verdict."""

    def __init__(self, verdict: Expiry | TicketRejected) -> None:
        self.verdict = verdict
        self.asked = 0

    def validate(self, _bundle: Bundle, _peer: Peer) -> Expiry:
        self.asked += 1
        if isinstance(self.verdict, TicketRejected):
            raise self.verdict
        return self.verdict


def test_an_empty_stack_is_an_error() -> None:
    with refused(PolicyError, "empty-stack"):
        AllOf()


def test_the_earliest_expiry_wins_and_the_evidence_stays() -> None:
    proof = evidence()
    appraised = Expiry(at(NOW + 20), "collateral", proof, claims())
    stack = AllOf(Fixed(Expiry(at(NOW + 30), "a")), Fixed(appraised), Fixed(Expiry(at(NOW), "b")))
    assert stack.validate(bundle(), PEER) == replace(appraised, at=at(NOW), by="b")
    assert AllOf(stack).validate(bundle(), PEER).evidence is proof
    plain = AllOf(Fixed(Expiry(at(NOW + 30), "a")), Fixed(Expiry(at(NOW + 20), "b")))
    assert plain.validate(bundle(), PEER) == Expiry(at(NOW + 20), "b")


def test_all_must_accept_and_the_first_refusal_ends_it() -> None:
    last = Fixed(Expiry(at(NOW), "last"))
    stack = AllOf(Fixed(Expiry(at(NOW), "first")), Fixed(TicketRejected("no", rule="no")), last)
    with refused(TicketRejected, "no"):
        stack.validate(bundle(), PEER)
    assert last.asked == 0


def test_replay_guard() -> None:
    guard = ReplayGuard(capacity=2)
    guard.add(b"a", Expiry(at(NOW + 10), "x"), at(NOW))
    assert b"a" in guard
    assert b"b" not in guard
    with refused(TicketRejected, "replay"):
        guard.add(b"a", Expiry(at(NOW + 10), "x"), at(NOW))
    guard.add(b"b", Expiry(at(NOW + 20), "x"), at(NOW))
    # Full, and nothing has expired.
    with refused(TicketRejected, "replay-full"):
        guard.add(b"c", Expiry(at(NOW + 20), "x"), at(NOW + 9))
    # What has expired makes room; what has not is still known.
    guard.add(b"c", Expiry(at(NOW + 20), "x"), at(NOW + 10))
    assert (b"a" in guard, b"b" in guard, b"c" in guard) == (False, True, True)


def test_only_challenges_are_answered_once() -> None:
    challenged = replace(TICKET, fresh_kind=Fresh.CHALLENGE)
    check_replay(challenged, b"new", {b"seen"})
    check_replay(TICKET, b"seen", {b"seen"})
    with refused(TicketRejected, "replay"):
        check_replay(challenged, b"seen", {b"seen"})
