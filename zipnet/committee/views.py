"""What the state shows to those around the machine: pure functions of it."""

from __future__ import annotations

from enum import StrEnum

from zipnet.committee.epochs import epoch_of_next_header
from zipnet.committee.rounds import participants, signed_header
from zipnet.committee.state import (
    BEACONS,
    MAX_LEAD_MS,
    Phase,
    Round,
    Server,
    State,
    Status,
    may_resume,
)
from zipnet.errors import CommandRefused
from zipnet.protocol.header import NO_HASH, SignedHeader

# How far a server's clock may be off before it signs no headers.
MAX_OFFSET_MS = 120_000


class Duty(StrEnum):
    """What a server is to append now. The names are those of the commands."""

    RESUME = "resume"
    TICK = "tick"
    POST_KEY = "post-key"
    PROPOSE = "propose"
    SIGN_HEADER = "sign-header"
    COMMIT = "commit"
    REVEAL = "reveal"
    SIGN_RECORD = "sign-record"
    TIME_OUT = "time-out"
    SIGN_CHECKPOINT = "sign-checkpoint"


def live(state: State) -> SignedHeader | None:
    """The header under which clients may seal now."""
    current = state.current
    return signed_header(current) if current and current.phase is Phase.LIVE else None


def beacons(state: State) -> frozenset[bytes]:
    """The values (32 bytes) that show that a ticket is new.

    The one before the first record counts as long as it is as new as the oldest record may be.
    """
    found = set(state.beacons)
    if len(found) < BEACONS:
        found |= {state.first_beacon} - {NO_HASH}
    return frozenset(found)


def why_no_header(state: State) -> CommandRefused | None:
    """What stands in the way of the next round; None if a proposal would be accepted."""
    if state.current is not None or not state.trees or state.allow_list is None:
        return CommandRefused(
            "a round is in flight, or there is no list or no aggregator", rule="propose"
        )
    try:
        participants(state, opens=epoch_of_next_header(state))
    except CommandRefused as error:
        return error
    return None


def turn(state: State) -> bytes:
    """The id of the server whose turn it is to propose the next round."""
    active = state.active()
    return active[state.next_round % len(active)].id if active else NO_HASH


def clock_trouble(state: State, server: Server, clock_ms: int) -> str:
    """Why this server should sign no header because of its clock; empty if it may."""
    offset = clock_ms - state.time_ms
    ticked = server.clock_ms > clock_ms - MAX_LEAD_MS
    if offset < -MAX_OFFSET_MS or (offset > MAX_OFFSET_MS and ticked):
        return f"this clock is {offset / 1000:+.0f} s off machine time"
    return ""


def duties(state: State, peer: bytes, clock_ms: int) -> list[Duty]:
    """What the server with this peer key is to append, by its clock. In order of urgency."""
    server = state.servers.get(peer)
    if server is None:
        return []
    if server.status is Status.SUSPENDED:
        # While it could sign no header it would only hold up the others.
        silent = clock_trouble(state, server, clock_ms) or not may_resume(state, server)
        return [] if silent else [Duty.RESUME]
    ahead = clock_ms - state.time_ms > MAX_LEAD_MS
    if ahead:
        ticked = server.clock_ms > clock_ms - MAX_LEAD_MS
        return [] if ticked else [Duty.TICK]
    found = []
    pending = state.pending_checkpoint
    if pending and server.id in pending.servers and server.id not in dict(pending.signatures):
        found.append(Duty.SIGN_CHECKPOINT)
    if server.next_key is None:
        found.append(Duty.POST_KEY)
    if state.current is not None:
        found += _in_round(state, state.current, server, clock_ms)
    elif _may_propose(state, server, clock_ms) and why_no_header(state) is None:
        found.append(Duty.PROPOSE)
    return found


def _may_propose(state: State, server: Server, clock_ms: int) -> bool:
    """At its turn when the period is over; one half period later for each place behind it."""
    active = [other.id for other in state.active()]
    place = (active.index(server.id) - state.next_round) % len(active)
    period = state.rules.window.round_period_ms
    return clock_ms >= state.opened_ms + period + place * period // 2


def _in_round(state: State, current: Round, server: Server, clock_ms: int) -> list[Duty]:
    steps = {
        Phase.PROPOSED: (Duty.SIGN_HEADER, current.header_signatures),
        Phase.COMMITTING: (Duty.COMMIT, current.commitments),
        Phase.REVEALING: (Duty.REVEAL, current.partials),
        Phase.SIGNING: (Duty.SIGN_RECORD, current.record_signatures),
    }
    # While the round is live the servers wait for the aggregator.
    step, done = steps.get(current.phase, (None, {server.id: b""}))
    inside = server.id in current.header.servers
    answers = inside and server.resumed_round <= current.header.round
    late = clock_ms >= current.phase_since + state.rules.window.round_deadline_ms
    # Also of who has not done its step: it may have a reason of its own, as for not signing.
    vote = [Duty.TIME_OUT] if late and server.id not in current.votes else []
    if step is not None and answers and server.id not in done:
        unready = clock_ms < current.not_before or clock_trouble(state, server, clock_ms)
        return vote if step is Duty.SIGN_HEADER and unready else [step, *vote]
    return vote
