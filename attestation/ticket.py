"""Tickets: who may come in, and how the opinions about that stack.

    AllOf(BundleValidator(), Tdx().require_mrtd(measurements))

The format is in `attestation.bundle`. Validators have neither clock nor memory: `Peer` brings all.

The clock of a TD belongs to its host, which can date tickets as it likes and make them in advance.
Only a challenge, or a beacon that nobody could have known earlier, shows that a ticket is new.
"""

from collections.abc import Container
from dataclasses import dataclass, field, replace
from datetime import datetime
from typing import Protocol

from attestation.bundle import Bundle, Fresh, Role, Ticket
from attestation.errors import PolicyError, TicketRejected
from attestation.measure.record import Measurement
from attestation.moments import moment, unix, utc
from attestation.verify import Claims, Collateral

__all__ = [
    "AllOf",
    "Beacons",
    "Bundle",
    "BundleValidator",
    "Challenge",
    "Expiry",
    "Fresh",
    "Peer",
    "ReplayGuard",
    "Role",
    "Ticket",
    "TicketValidator",
    "Verified",
    "check_replay",
    "check_times",
]

# How far the clock of a peer may run ahead of ours, in seconds.
SKEW = 60


@dataclass(frozen=True, slots=True)
class Challenge:
    """The validating side has sent these 32 random bytes, and takes no beacon instead."""

    value: bytes


@dataclass(frozen=True, slots=True)
class Beacons:
    """The values, 32 bytes each, that are recent enough; whoever keeps them drops old ones."""

    values: frozenset[bytes]


@dataclass(frozen=True, slots=True)
class Peer:
    """All that the validating side brings along; validators have neither clock nor memory.

    `peer_id` is the key by which the peer was met, `now` aware (machine time, where there is such),
    `seen` the digests of quotes that were already used with a challenge (a `ReplayGuard`),
    `last_seen` the newest (boot_epoch, issued_at) accepted for this instance and role,
    `collateral` that of the peer's platform. Raises PolicyError for values that accept nothing.
    """

    peer_id: bytes
    deployment_id: bytes
    policy_ids: frozenset[bytes]
    roles: frozenset[Role]
    now: datetime
    freshness: Challenge | Beacons
    collateral: Collateral | None = field(default=None, repr=False)
    last_seen: tuple[int, int] | None = None
    seen: Container[bytes] = field(default=frozenset(), repr=False)

    def __post_init__(self) -> None:
        utc(self.now)
        for name in ("policy_ids", "roles"):
            if not getattr(self, name):
                raise PolicyError(
                    f"no ticket can pass: {name} is empty",
                    expected="one or more",
                    got="none",
                    rule="peer",
                )

    @property
    def seconds(self) -> int:
        """`now` in whole Unix seconds, rounded down."""
        return unix(self.now)


class Verified(Protocol):
    """Evidence of some anchor, for `TdxPolicy.check`."""

    @property
    def claims(self) -> Claims:
        """What the quote claims, as it was verified."""


@dataclass(frozen=True, slots=True)
class Expiry:
    """The verdict holds before `at`; `by` names what ends then.

    If a quote was appraised: its evidence, its claims as the policy sees them, and the entry that
    its measurements matched, if they matched one.
    """

    at: datetime
    by: str
    evidence: Verified | None = None
    claims: Claims | None = None
    measurement: Measurement | None = None


class TicketValidator(Protocol):
    """One opinion about tickets. The same arguments give the same verdict."""

    def validate(self, bundle: Bundle, peer: Peer) -> Expiry:
        """Until when the bundle is good.

        Raises TicketRejected, and PolicyError for a policy that accepts everything or nothing.
        """


@dataclass(frozen=True, slots=True, init=False)
class AllOf:
    """Accepts what all of its validators accept, asked in order; the earliest expiry wins.

    Raises PolicyError if there is none: an empty stack would accept everything.
    """

    validators: tuple[TicketValidator, ...]

    def __init__(self, *validators: TicketValidator) -> None:
        if not validators:
            raise PolicyError(
                "a stack without validators would accept every ticket",
                expected="one or more validators",
                rule="empty-stack",
                hint="AllOf(BundleValidator(), Tdx().require_mrtd(...))",
            )
        object.__setattr__(self, "validators", validators)

    def validate(self, bundle: Bundle, peer: Peer) -> Expiry:
        """As `TicketValidator.validate`."""
        verdicts = [validator.validate(bundle, peer) for validator in self.validators]
        first = min(verdicts, key=lambda verdict: verdict.at)
        appraised = next((verdict for verdict in verdicts if verdict.evidence is not None), first)
        return replace(appraised, at=first.at, by=first.by)


@dataclass(frozen=True, slots=True)
class BundleValidator:
    """All about a bundle but its quote. Limits are in seconds.

    In this order: role, deployment, policy, peer, times, freshness, possession, roll-back. On its
    own it accepts programs that run anywhere; stack it with `Tdx` where code matters.
    """

    max_age: int = 3_600
    max_lifetime: int = 86_400
    skew: int = SKEW

    def __post_init__(self) -> None:
        if self.max_age <= 0 or self.max_lifetime <= 0 or self.skew < 0:
            raise PolicyError(
                "no ticket can pass these limits",
                expected="max_age and max_lifetime above 0, skew not below",
                got=f"{self.max_age}, {self.max_lifetime}, {self.skew}",
                rule="limits",
            )

    def validate(self, bundle: Bundle, peer: Peer) -> Expiry:
        """As `TicketValidator.validate`."""
        ticket = bundle.ticket
        if ticket.role not in peer.roles:
            raise TicketRejected(
                "the ticket is for another role",
                expected=" or ".join(role.name.lower() for role in sorted(peer.roles)),
                got=ticket.role.name.lower(),
                rule="role",
                hint="connect with the role that this service takes",
            )
        _equal("deployment", peer.deployment_id, ticket.deployment_id)
        if ticket.policy_id not in peer.policy_ids:
            raise TicketRejected(
                "the ticket was made under another policy",
                expected=" or ".join(sorted(value.hex() for value in peer.policy_ids)),
                got=ticket.policy_id.hex(),
                rule="policy-id",
                hint="let the peer catch up with the policy in force and draw a new ticket",
            )
        _equal("peer", peer.peer_id, ticket.peer_id)
        end = check_times(ticket, peer.seconds, self.max_age, self.max_lifetime, self.skew)
        _check_freshness(ticket, peer.freshness)
        if not bundle.possessed():
            raise TicketRejected(
                "the bundle is not signed by the key of its ticket",
                expected=f"a signature by {ticket.peer_id.hex()}",
                got="a signature over something else, or by another key",
                rule="pop",
                hint="sign ticket and quote with the peer key; a relayed or altered bundle fails",
            )
        if peer.last_seen is not None and (ticket.boot_epoch, ticket.issued_at) < peer.last_seen:
            raise TicketRejected(
                "the ticket is older than one already seen of this instance",
                expected="boot_epoch {}, issued_at {} or later".format(*peer.last_seen),
                got=f"{ticket.boot_epoch}, {ticket.issued_at}",
                rule="rollback",
                hint="a clone or an old state of the node is running: stop it, or reboot the node",
            )
        return end


class ReplayGuard:
    """The quotes that were accepted with a challenge, while their tickets last: `Peer.seen`.

    Holds at most `capacity` digests and forgets only what has expired. Not thread-safe.
    """

    def __init__(self, capacity: int = 65_536) -> None:
        self._capacity = capacity
        self._until: dict[bytes, datetime] = {}

    def __contains__(self, digest: object) -> bool:
        return digest in self._until

    def add(self, digest: bytes, expiry: Expiry, now: datetime) -> None:
        """Remember a quote's `digest`. Raises TicketRejected if it is known, or if all is full."""
        if digest in self._until:
            raise _replayed(digest)
        if len(self._until) >= self._capacity:
            self._until = {known: end for known, end in self._until.items() if end > now}
        if len(self._until) >= self._capacity:
            raise TicketRejected(
                "too many quotes at a time",
                expected=f"at most {self._capacity}",
                got="one more",
                rule="replay-full",
                hint="try again when older tickets have expired",
            )
        self._until[digest] = expiry.at


def check_replay(ticket: Ticket, digest: bytes, seen: Container[bytes]) -> None:
    """Refuse a second use of a quote in challenge mode. Raises TicketRejected."""
    if ticket.fresh_kind is Fresh.CHALLENGE and digest in seen:
        raise _replayed(digest)


def check_times(
    ticket: Ticket, now: int, max_age: int | None, max_lifetime: int | None, skew: int = SKEW
) -> Expiry:
    """When the ticket ends if it holds at `now`; all in seconds, None for no limit.

    Raises TicketRejected.
    """
    age, lifetime = now - ticket.issued_at, ticket.not_after - ticket.issued_at
    if age < -skew:
        raise TicketRejected(
            "the ticket is from the future",
            expected=f"issued at {now + skew} or earlier",
            got=str(ticket.issued_at),
            rule="future",
            hint="compare the clocks of both machines",
        )
    if max_age is not None and age > max_age + skew:
        raise TicketRejected(
            "the ticket is stale",
            expected=f"at most {max_age} s old (and {skew} s of skew)",
            got=f"{age} s",
            rule="stale",
            hint="let the peer draw a new ticket",
        )
    if max_lifetime is not None and lifetime > max_lifetime:
        raise TicketRejected(
            "the ticket claims too long a life",
            expected=f"at most {max_lifetime} s",
            got=f"{lifetime} s",
            rule="lifetime",
            hint="let the peer draw a ticket with an earlier not_after",
        )
    if now >= ticket.not_after:
        raise TicketRejected(
            "the ticket has expired",
            expected=f"not_after later than {now}",
            got=str(ticket.not_after),
            rule="expired",
            hint="let the peer draw a new ticket",
        )
    ends = [Expiry(moment(ticket.not_after), "ticket")]
    if max_age is not None:
        ends.append(Expiry(moment(ticket.issued_at + max_age + skew + 1), "age"))
    return min(ends, key=lambda end: end.at)


def _check_freshness(ticket: Ticket, wanted: Challenge | Beacons) -> None:
    if isinstance(wanted, Challenge):
        if ticket.fresh_kind is not Fresh.CHALLENGE or ticket.fresh != wanted.value:
            raise TicketRejected(
                "the ticket does not answer the challenge",
                expected=f"challenge {wanted.value.hex()}",
                got=f"{ticket.fresh_kind.name.lower()} {ticket.fresh.hex()}",
                rule="challenge",
                hint="draw a new ticket with the challenge of this connection",
            )
    elif ticket.fresh_kind is not Fresh.BEACON or ticket.fresh not in wanted.values:
        raise TicketRejected(
            "nothing shows that the ticket is new",
            expected=f"one of the {len(wanted.values)} recent beacons",
            got=f"{ticket.fresh_kind.name.lower()} {ticket.fresh.hex()}",
            rule="beacon",
            hint="draw a new ticket with a recent beacon",
        )


def _equal(what: str, expected: bytes, got: bytes) -> None:
    if expected != got:
        raise TicketRejected(
            f"the ticket is of another {what}",
            expected=expected.hex(),
            got=got.hex(),
            rule=what,
            hint=f"check which {what} the other side is configured for",
        )


def _replayed(digest: bytes) -> TicketRejected:
    return TicketRejected(
        "the quote has been used before",
        expected="a quote that no challenge was answered with",
        got=digest.hex(),
        rule="replay",
        hint="draw a new quote for each challenge",
    )
