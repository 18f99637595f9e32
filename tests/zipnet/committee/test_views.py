"""What the machine shows to those around it."""

from __future__ import annotations

import pytest

from tests.simulator.world import World
from tests.zipnet.committee.support import (
    give_up,
    good,
    pass_time,
    reach,
    replace_server,
    resume_node,
    started,
    state_of,
    suspend,
    world_of,
)
from zipnet.committee import bodies
from zipnet.committee.state import MAX_LEAD_MS, RESUMES_PER_ROUND, Phase, SignedCheckpoint
from zipnet.committee.views import (
    MAX_OFFSET_MS,
    Duty,
    clock_trouble,
    duties,
    live,
    turn,
    why_no_header,
)
from zipnet.protocol.header import NO_HASH


def due(world: World, at: int = 0, skew: int = 0) -> list[Duty]:
    site = world.sites[at]
    return duties(state_of(world), site.identity.peer, world.now_ms + skew)


@pytest.mark.parametrize("phase", list(Phase))
def test_a_header_is_live_in_one_phase_only(phase: Phase) -> None:
    world = reach(started(), phase)
    header = live(state_of(world))
    assert (header is not None) is (phase is Phase.LIVE)
    if header:
        header.verify({site.core.id: site.identity.peer for site in world.sites})


def test_without_a_round_nothing_is_live() -> None:
    assert live(state_of(started())) is None


def test_it_says_what_stands_in_the_way_of_a_header() -> None:
    world = started(clients=1)
    error = why_no_header(state_of(world))
    assert error is not None
    assert error.rule == "propose.clients"
    assert why_no_header(state_of(started())) is None
    for busy in (reach(started(), Phase.LIVE), world_of()):
        error = why_no_header(state_of(busy))
        assert error is not None
        assert error.rule == "propose"


def test_servers_take_turns() -> None:
    world = started()
    ids = sorted(site.core.id for site in world.sites)
    assert turn(state_of(world)) == ids[1]
    world.round()
    assert turn(state_of(world)) == ids[2]
    for at in range(3):
        suspend(world, at)
    assert turn(state_of(world)) == NO_HASH


def test_the_later_in_turn_propose_half_a_period_later_each() -> None:
    world = started()
    state = state_of(world)
    order = [server.id for server in state.active()]
    period = world.config.window.round_period_ms
    first = state.opened_ms + period
    for place in range(3):
        server = order[(state.next_round + place) % 3]
        site = next(site for site in world.sites if site.core.id == server)
        begin = first + place * period // 2
        assert Duty.PROPOSE not in duties(state, site.identity.peer, begin - 1)
        assert Duty.PROPOSE in duties(state, site.identity.peer, begin)


def test_a_stranger_has_no_duties() -> None:
    assert duties(state_of(started()), bytes(32), 0) == []


def test_a_suspended_server_is_to_resume() -> None:
    world = started()
    suspend(world)
    assert due(world, 2) == [Duty.RESUME]


def test_a_server_that_has_resumed_too_often_waits_for_the_next_header() -> None:
    world = started()
    suspend(world)
    server = state_of(world).servers[world.sites[2].identity.peer]
    server.resumes = RESUMES_PER_ROUND - 1
    assert due(world, 2) == [Duty.RESUME]
    server.resumes = RESUMES_PER_ROUND
    assert due(world, 2) == []


def test_a_server_whose_clock_is_ahead_ticks_once() -> None:
    world = started()
    assert due(world, skew=MAX_LEAD_MS) != [Duty.TICK]
    assert due(world, skew=MAX_LEAD_MS + 1) == [Duty.TICK]
    world.sites[0].skew_ms = 10**6
    good(world.say(world.sites[0], bodies.Tick()))
    assert due(world, skew=10**6) == []
    assert due(world, skew=10**6 + MAX_LEAD_MS) == [Duty.TICK]


def test_duties_in_a_round() -> None:
    world = started()
    for phase, duty in (
        (Phase.PROPOSED, Duty.SIGN_HEADER),
        (Phase.COMMITTING, Duty.COMMIT),
        (Phase.REVEALING, Duty.REVEAL),
        (Phase.SIGNING, Duty.SIGN_RECORD),
    ):
        reach(world, phase)
        pass_time(world, 1_000)
        assert duty in due(world)
    # Whoever has done it waits.
    reach(started(), Phase.LIVE)
    assert Duty.SIGN_HEADER not in due(reach(started(), Phase.LIVE))


def test_a_header_is_signed_not_before_its_time() -> None:
    world = started()
    world.round()
    good(world.append(world.sites[0].core.command(bodies.ProposeHeader(), 2, world.now_ms)))
    world.post_keys()
    current = state_of(world).current
    assert current is not None
    early = current.not_before - world.now_ms
    assert early > 0
    assert Duty.SIGN_HEADER not in due(world, skew=early - 1)
    assert Duty.SIGN_HEADER in due(world, skew=early)


@pytest.mark.parametrize("phase", list(Phase))
def test_a_round_that_is_late_is_given_up(phase: Phase) -> None:
    world = reach(started(), phase)
    current = state_of(world).current
    assert current is not None
    for site in world.sites:
        for step in (
            current.header_signatures, current.commitments, current.partials,
            current.record_signatures,
        ):  # fmt: skip
            step.setdefault(site.core.id, b"")
    deadline = current.phase_since + world.config.window.round_deadline_ms - world.now_ms
    assert Duty.TIME_OUT not in due(world, skew=deadline - 1)
    assert Duty.TIME_OUT in due(world, skew=deadline)
    current.votes.add(world.sites[0].core.id)
    assert Duty.TIME_OUT not in due(world, skew=deadline)
    assert Duty.TIME_OUT in due(world, 1, skew=deadline)


def test_who_is_not_in_the_round_or_restarted_only_gives_it_up() -> None:
    for newcomer in (True, False):
        world = reach(started(), Phase.COMMITTING)
        site = world.sites[2]
        if newcomer:
            replace_server(world)
        else:
            good(world.say(site, resume_node(world, site.identity, site.core.id)))
        assert Duty.COMMIT not in due(world, 2)
        assert Duty.TIME_OUT in due(world, 2, skew=world.config.window.round_deadline_ms)


def test_keys_and_checkpoints_are_due_as_long_as_they_are_missing() -> None:
    world = reach(started(), Phase.LIVE)
    state = state_of(world)
    server = state.servers[world.sites[0].identity.peer]
    server.next_key = None
    signature = (server.id, bytes(64))
    ids = tuple(one.id for one in state.active())
    state.pending_checkpoint = SignedCheckpoint(1, bytes(32), bytes(32), ids, ())
    assert due(world) == [Duty.SIGN_CHECKPOINT, Duty.POST_KEY]
    state.pending_checkpoint = SignedCheckpoint(1, bytes(32), bytes(32), ids, (signature,))
    assert due(world) == [Duty.POST_KEY]
    state.pending_checkpoint = SignedCheckpoint(1, bytes(32), bytes(32), ids[:0], ())
    assert due(world) == [Duty.POST_KEY]


def test_a_clock_far_off_signs_no_header_and_says_so() -> None:
    world = started()
    state = state_of(world)
    server = state.servers[world.sites[0].identity.peer]
    now = state.time_ms
    assert clock_trouble(state, server, now - MAX_OFFSET_MS) == ""
    assert "-120 s" in clock_trouble(state, server, now - MAX_OFFSET_MS - 1)
    # Ahead it first ticks: a majority may follow.
    assert clock_trouble(state, server, now + MAX_OFFSET_MS + 1) == ""
    server.clock_ms = now + MAX_OFFSET_MS + 1
    assert "+120 s" in clock_trouble(state, server, now + MAX_OFFSET_MS + 1)
    assert clock_trouble(state, server, now + MAX_OFFSET_MS) == ""


def test_a_server_with_a_slow_clock_does_not_sign() -> None:
    world = reach(started(), Phase.PROPOSED)
    pass_time(world, 1_000)
    assert Duty.SIGN_HEADER in due(world)
    assert Duty.SIGN_HEADER not in due(world, skew=-MAX_OFFSET_MS - 1)


def test_nothing_is_due_when_all_is_done() -> None:
    world = reach(started(), Phase.LIVE)
    world.settle()
    assert due(world) == []
    give_up(world)
