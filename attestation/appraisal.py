"""Genuine claims against a policy: the checks behind `attestation.tdx`, in their order.

What is genuine was decided before; here is what counts as ours.
"""

from dataclasses import dataclass, replace

from attestation import acceptance
from attestation.acceptance import Accepted, Scope
from attestation.allowlist import TcbPolicy
from attestation.errors import PolicyError, TicketRejected
from attestation.measure.rtmr import BootPath
from attestation.measure.tdvf import HostProfile
from attestation.moments import moment
from attestation.quote import TdReport
from attestation.ticket import Expiry, Peer, Ticket, check_replay, check_times
from attestation.verify import Claims, TcbStatus

_ZEROS = bytes(48)


@dataclass(frozen=True, slots=True)
class Settings:
    """What a policy was told. Times are Unix seconds, durations seconds, None is no demand."""

    accepted: tuple[Accepted, ...] = ()
    deployments: frozenset[bytes] = frozenset()
    profiles: frozenset[HostProfile] = frozenset({HostProfile.UPSTREAM})
    boot_paths: frozenset[BootPath] = frozenset({BootPath.KERNEL})
    rtmrs: tuple[frozenset[bytes] | None, ...] = (None, None, None, None)
    statuses: frozenset[TcbStatus] | None = None
    grace: tuple[tuple[TcbStatus, int], ...] = ()
    min_evaluation_number: int = 0
    not_before: int = 0
    max_age: int | None = None
    max_lifetime: int | None = None
    allowed_advisories: frozenset[str] | None = None
    rejected_advisories: frozenset[str] = frozenset()
    mr_config_ids: frozenset[bytes] | None = None
    mr_seams: frozenset[bytes] | None = None
    platforms: frozenset[bytes] | None = None

    @property
    def tcb(self) -> TcbPolicy | None:
        """What was said about TCB states, if anything. Raises PolicyError if it makes no sense."""
        if self.statuses is None and not self.grace:
            return None
        return TcbPolicy(self.statuses or TcbPolicy().accepted, self.grace)

    def scope(self, *, mock: bool) -> Scope:
        """Which entries count."""
        return Scope(self.profiles, self.boot_paths, mock)


def check_settings(settings: Settings, scope: Scope, peer: Peer) -> None:
    """Refuse a policy that accepts nothing, or another deployment's list. Raises PolicyError."""
    if not acceptance.usable(settings.accepted, scope):
        raise PolicyError(
            "the policy accepts no measurement",
            expected="one or more usable entries: production image, boot proof passed, profile"
            f" {' or '.join(sorted(scope.profiles))}, path {' or '.join(sorted(scope.boot_paths))}",
            got=f"{len(settings.accepted)} entries, none of them usable",
            rule="no-measurement",
            hint="Tdx().require_mrtd(Measurements.load(path of measurements.json))",
        )
    foreign = settings.deployments - {peer.deployment_id}
    if foreign:
        raise PolicyError(
            "the policy holds an allow-list of another deployment",
            expected=peer.deployment_id.hex(),
            got=", ".join(sorted(value.hex() for value in foreign)),
            rule="list-deployment",
            hint="take the list that the operators of this deployment signed",
        )


def appraise(
    settings: Settings, scope: Scope, ticket: Ticket, claims: Claims, peer: Peer
) -> Expiry:
    """The verdict, with the claims and the entry that matched. Raises TicketRejected."""
    body, now = claims.quote.body, peer.seconds
    by_time = _check_times(settings, ticket, claims, peer)
    if body.report_data != ticket.report_data():
        raise TicketRejected(
            "the quote is not for this ticket",
            expected=f"report_data {ticket.report_data().hex()}",
            got=body.report_data.hex(),
            rule="report-data",
            hint="draw the quote over the report_data of exactly this ticket",
        )
    check_replay(ticket, claims.quote.digest, peer.seen)
    matches = acceptance.matching(settings.accepted, body, ticket.role, scope, now)
    _check_registers(settings, body)
    if claims.tcb_evaluation_number < settings.min_evaluation_number:
        raise _old_data(settings.min_evaluation_number, claims)
    accepted, by_policy = _best(settings.tcb, matches, claims, now)
    _check_advisories(settings, claims)
    _check_identity(settings, ticket, body)
    _check_platform(settings, claims)
    # Whatever else it matches, a report that matches a pinned entry has that RTMR0.
    pinned = settings.rtmrs[0] is not None or any(one.rtmr0 is not None for one in matches)
    return replace(
        min(by_time, by_policy, key=lambda end: end.at),
        claims=replace(claims, acpi="verified" if pinned else "unverified"),
        measurement=None if accepted.entry is None else accepted.entry.measurement,
    )


def _check_times(settings: Settings, ticket: Ticket, claims: Claims, peer: Peer) -> Expiry:
    end = check_times(ticket, peer.seconds, settings.max_age, settings.max_lifetime)
    if ticket.issued_at < settings.not_before:
        raise TicketRejected(
            "the ticket was issued before the policy begins",
            expected=f"issued at {settings.not_before} or later",
            got=str(ticket.issued_at),
            rule="not-before",
            hint="let the peer draw a new ticket",
        )
    if not claims.valid_from <= peer.now < claims.valid_until:
        raise TicketRejected(
            "the evidence was verified with collateral that is not in force now",
            expected=f"from {claims.valid_from.isoformat()} to {claims.valid_until.isoformat()}",
            got=peer.now.isoformat(),
            rule="collateral-window",
            hint="verify the quote again, with collateral of today",
        )
    return min(end, Expiry(claims.valid_until, "collateral"), key=lambda end: end.at)


def _check_registers(settings: Settings, body: TdReport) -> None:
    *others, last = settings.rtmrs
    for index, values in enumerate((*others, last or frozenset({_ZEROS}))):
        if values is not None and body.rtmrs[index] not in values:
            raise TicketRejected(
                f"RTMR{index} is not an accepted one",
                expected=_one_of(values),
                got=body.rtmrs[index].hex(),
                rule=f"rtmr{index}",
                hint="nothing may extend RTMR3 after boot"
                if index == 3
                else "compare the event log of the TD with that of an accepted one",
            )


def _best(
    own: TcbPolicy | None, matches: tuple[Accepted, ...], claims: Claims, now: int
) -> tuple[Accepted, Expiry]:
    """The match that holds longest, by its window and TCB policy."""
    found: list[tuple[Accepted, Expiry]] = []
    refusals: list[TicketRejected] = []
    for one in matches:
        policies = [policy for policy in (own, one.tcb) if policy is not None] or [TcbPolicy()]
        try:
            ends = [_tcb_end(policy, claims, now) for policy in policies]
        except TicketRejected as refusal:
            refusals.append(refusal)
            continue
        if one.entry is not None and one.entry.retire_after is not None:
            ends.append(Expiry(moment(one.entry.retire_after), "retire-after"))
        found.append((one, min(ends, key=lambda end: end.at)))
    if not found:
        raise refusals[0]
    return max(found, key=lambda pair: pair[1].at)


def _tcb_end(policy: TcbPolicy, claims: Claims, now: int) -> Expiry:
    if claims.tcb_evaluation_number < policy.min_evaluation_number:
        raise _old_data(policy.min_evaluation_number, claims)
    end = policy.end(claims.tcb_status, now)
    if end is not None:
        return Expiry(moment(end), "tcb-grace")
    over = dict(policy.grace).get(claims.tcb_status)
    raise TicketRejected(
        "the platform's TCB state is not accepted",
        expected=" or ".join(sorted(policy.accepted)),
        got=f"{claims.tcb_status}, by a TCB of {claims.tcb_date:%Y-%m-%d}"
        + (f", whose grace ended {moment(over).isoformat()}" if over is not None else ""),
        rule="tcb-status",
        hint="update the platform's firmware and microcode; until then accept the state by a"
        f' date: .tcb("{claims.tcb_status}", grace_until=...), or a list with such a grace',
    )


def _old_data(wanted: int, claims: Claims) -> TicketRejected:
    return TicketRejected(
        "the collateral judges by old TCB data",
        expected=f"evaluation number {wanted} or more",
        got=str(claims.tcb_evaluation_number),
        rule="tcb-eval",
        hint="fetch newer collateral",
    )


def _check_advisories(settings: Settings, claims: Claims) -> None:
    allowed = settings.allowed_advisories
    for advisory in claims.advisory_ids:
        if advisory in settings.rejected_advisories or (
            allowed is not None and advisory not in allowed
        ):
            raise TicketRejected(
                "the platform's TCB level has an advisory that is not accepted",
                expected="none" if allowed is None else f"only {', '.join(sorted(allowed))}",
                got=advisory,
                rule="advisory",
                hint="update the platform; advisories are at intel.com/security-center",
            )


def _check_identity(settings: Settings, ticket: Ticket, body: TdReport) -> None:
    padded = ticket.config_digest + bytes(16)
    checks = (
        ("mr-seam", settings.mr_seams, body.mr_seam, "let the host load an accepted TDX module"),
        (
            "mr-config-id",
            frozenset({padded}),
            body.mr_config_id,
            "launch the TD with the hash of the configuration that it is given as mrconfigid",
        ),
        (
            "mr-config-id",
            settings.mr_config_ids,
            body.mr_config_id,
            "launch the TD with an accepted configuration",
        ),
        ("mr-owner", frozenset({_ZEROS}), body.mr_owner, "launch the TD without mrowner"),
        (
            "mr-owner-config",
            frozenset({_ZEROS}),
            body.mr_owner_config,
            "launch the TD without mrownerconfig",
        ),
    )
    for rule, values, got, hint in checks:
        if values is not None and got not in values:
            raise TicketRejected(
                f"the TD's {rule.replace('-', '_')} is not an accepted one",
                expected=_one_of(values),
                got=got.hex(),
                rule=rule,
                hint=hint,
            )


def _check_platform(settings: Settings, claims: Claims) -> None:
    ids = settings.platforms
    if ids is not None and not ids & {claims.ppid, claims.platform_instance_id}:
        raise TicketRejected(
            "the TD runs on another platform",
            expected=_one_of(ids),
            got=claims.ppid.hex(),
            rule="platform",
            hint="the platform is pinned; if the machine was replaced, pin the new one",
        )


def _one_of(values: frozenset[bytes]) -> str:
    shown = sorted(value.hex() for value in values)
    return " or ".join(shown[:3]) + (f" or {len(shown) - 3} more" if len(shown) > 3 else "")
