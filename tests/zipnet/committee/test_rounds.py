"""Rounds: the header, its life, and every way in which it ends."""

from __future__ import annotations

from dataclasses import replace

import pytest

from tests.simulator.world import World
from tests.zipnet.committee.support import (
    bad,
    command,
    forged,
    give_up,
    good,
    pass_time,
    reach,
    resume_node,
    started,
    state_of,
    step,
    suspend,
    world_of,
)
from zipnet.committee import bodies
from zipnet.committee.events import (
    HeaderLive,
    HeaderProposed,
    RoundEnded,
    RoundFinal,
    ServerSuspended,
)
from zipnet.committee.state import OUTCOME_RING, Ending, Phase, Round, Status
from zipnet.protocol.header import NO_HASH
from zipnet.protocol.roster import resumes_hash
from zipnet.protocol.tree import AggregatorTree


def current(world: World) -> Round:
    found = state_of(world).current
    assert found is not None
    return found


def propose(world: World, at: int = 0) -> Round:
    state = state_of(world)
    good(world.append(command(world, world.sites[at], bodies.ProposeHeader(), state.next_round)))
    return current(world)


def test_the_header_follows_from_the_state_just_before() -> None:
    world = started()
    for expected in range(1, 4):
        if expected > 1:
            world.round()
            world.now_ms += 1_000
            world.post_keys()
            for site in world.sites:
                good(world.say(site, bodies.Tick()))
        state = state_of(world)
        seq, head, time = state.seq, state.head, state.time_ms
        previous, schedule = state.previous_record, state.schedule_hash
        raw = command(world, world.sites[1], bodies.ProposeHeader(), state.next_round)
        applied = good(world.append(raw))
        header = current(world).header
        assert applied.events == (HeaderProposed(header),)
        assert (header.log_seq, header.log_head) == (seq, head)
        assert (header.round, header.epoch, header.base_round) == (2 * expected - 1, 1, 1)
        assert (header.time_ms, header.instance) == (time, world.instance)
        assert (header.previous_record, header.schedule_hash) == (previous, schedule)
        assert header.tree_hash == world.tree.hash()
        assert header.resumes_hash == resumes_hash(state.epoch.resumes)
        assert header.servers == tuple(sorted(site.core.id for site in world.sites))
        assert header.shape == world.rules.shape
        assert state.allow_list is not None
        assert (header.list_number, header.list_hash) == (1, state.allow_list.digest)
        give_up_unsigned(world)
    assert state_of(world).next_round == 6


def give_up_unsigned(world: World) -> None:
    """Sign and then give up, so that nobody is suspended."""
    world.settle()
    give_up(world)


def test_the_proposer_does_not_matter() -> None:
    headers = set()
    for at in range(3):
        world = started()
        headers.add(propose(world, at).header.id)
    assert len(headers) == 1


def test_a_first_header_may_name_the_beginning_of_the_log() -> None:
    world = started()
    machine = world.sites[0].core.machine
    machine.state.ring.clear()
    machine.state.seq, machine.state.head = 0, NO_HASH
    raw = world.sites[0].core.command(bodies.ProposeHeader(), 1, world.now_ms)
    assert machine.apply(1, raw).rule == ""
    header = current(world).header
    assert (header.log_seq, header.log_head) == (0, NO_HASH)


def test_a_round_is_live_with_the_last_signature_and_final_with_the_last() -> None:
    world = reach(started(), Phase.PROPOSED)
    peers = {site.core.id: site.identity.peer for site in world.sites}
    header = current(world).header
    while current(world).phase is Phase.PROPOSED:
        assert len(current(world).header_signatures) < 3
        events = good(step(world)).events
    assert len(current(world).header_signatures) == 3
    assert isinstance(events[0], HeaderLive)
    assert events[0].header.header == header
    events[0].header.verify(peers)
    reach(world, Phase.SIGNING)
    there = current(world)
    assert (there.aggregate, there.partials) == (b"", {})
    while state_of(world).current is not None:
        assert len(there.record_signatures) < 3
        events = good(step(world)).events
    assert isinstance(events[0], RoundFinal)
    record = events[0].record
    record.verify(peers)
    state = state_of(world)
    assert state.last_record == record
    assert state.previous_record == record.record.hash
    assert state.schedule_hash == record.record.schedule_hash()
    assert state.outcomes[-1].ending is Ending.FINAL
    assert list(state.beacons) == [record.record.hash]


def test_records_chain_over_rounds_that_failed() -> None:
    world = started()
    previous = NO_HASH
    for at in range(5):
        if at % 2:
            reach(world, Phase.LIVE)
            give_up(world)
        record = world.round().record
        record.follows(previous)
        previous = record.hash


# Time-outs

LATE = {
    Phase.PROPOSED: (Ending.UNSIGNED, "timeout.proposed"),
    Phase.COMMITTING: (Ending.EXPOSED, "timeout.committing"),
    Phase.REVEALING: (Ending.EXPOSED, "timeout.revealing"),
    Phase.SIGNING: (Ending.EXPOSED, "timeout.signing"),
}


@pytest.mark.parametrize("phase", LATE)
def test_a_server_that_is_late_is_named_and_suspended(phase: Phase) -> None:
    ending, rule = LATE[phase]
    world = started()
    world.round()
    reach(world, phase)
    late = world.sites[2]
    # The others do what they are to do, and then give the round up.
    world.sites.remove(late)
    world.now_ms += 1_000
    world.settle()
    assert current(world).phase is phase
    assert state_of(world).schedule_hash != NO_HASH or phase is Phase.PROPOSED
    applied = give_up(world)[-1]
    state = state_of(world)
    outcome = state.outcomes[-1]
    assert (outcome.round, outcome.ending, outcome.missing) == (2, ending, (late.core.id,))
    assert applied.events == (RoundEnded(outcome), ServerSuspended(late.core.id, rule))
    assert state.servers[late.identity.peer].status is Status.SUSPENDED
    assert len(state.active()) == 2
    assert state.schedule_hash == NO_HASH
    assert state.tree_at == 0
    assert len(world.records) == 1
    assert state.previous_record == world.records[0].record.hash


def test_an_aggregator_that_is_late_is_followed_by_the_next_tree() -> None:
    world = started()
    world.round()
    other = AggregatorTree((replace(world.tree.nodes[0], dh_pub=bytes(31) + b"\1"),))
    for site in world.sites:
        good(world.say(site, bodies.Assign((world.tree, other))))
    trees = []
    for _ in range(3):
        reach(world, Phase.LIVE)
        trees.append(current(world).tree)
        votes = give_up(world)
        outcome = state_of(world).outcomes[-1]
        assert (outcome.ending, outcome.missing) == (Ending.NO_AGGREGATE, ())
        assert votes[-1].events == (RoundEnded(outcome),)
        assert len(state_of(world).active()) == 3
        assert state_of(world).schedule_hash == NO_HASH
    assert trees == [world.tree, other, world.tree]


def test_a_round_goes_on_after_a_time_out() -> None:
    world = started()
    reach(world, Phase.LIVE)
    give_up(world)
    record = world.round().record
    assert record.header.round == 2
    assert record.header.schedule_hash == NO_HASH


def test_a_majority_decides_and_each_server_has_one_vote() -> None:
    world = reach(started(servers=4), Phase.LIVE)
    pass_time(world, 5_001)
    body = bodies.TimeoutRound(Phase.LIVE)
    for _ in range(3):
        good(world.say(world.sites[0], body, 1))
        world.now_ms += 1
    assert current(world).votes == {world.sites[0].core.id}
    good(world.say(world.sites[1], body, 1))
    assert state_of(world).current is not None
    good(world.say(world.sites[2], body, 1))
    assert state_of(world).current is None


def test_the_votes_of_who_left_or_rests_do_not_count() -> None:
    world = reach(started(servers=5), Phase.LIVE)
    pass_time(world, 5_001)
    body = bodies.TimeoutRound(Phase.LIVE)
    good(world.say(world.sites[3], body, 1))
    good(world.say(world.sites[4], body, 1))
    suspend(world, 3)
    good(world.say(world.sites[4], bodies.Leave()))
    assert current(world).votes == set()
    good(world.say(world.sites[0], body, 1))
    assert state_of(world).current is not None
    good(world.say(world.sites[1], body, 1))
    assert state_of(world).current is None


def test_votes_count_for_one_phase() -> None:
    world = reach(started(), Phase.LIVE)
    pass_time(world, 5_001)
    good(world.say(world.sites[0], bodies.TimeoutRound(Phase.LIVE), 1))
    world.seal()
    good(world.submit(world.fold()))
    assert current(world).votes == set()
    assert current(world).phase_since == state_of(world).time_ms
    bad(world.say(world.sites[1], bodies.TimeoutRound(Phase.COMMITTING), 1), "timeout.early")


def test_a_suspended_server_returns_by_its_resume_and_rounds_go_on() -> None:
    world = started()
    world.round()
    reach(world, Phase.COMMITTING)
    late = world.sites.pop()
    world.settle()
    give_up(world)
    bad(
        world.append(command(world, world.sites[0], bodies.ProposeHeader(), 3)),
        "propose.servers",
    )
    world.sites.append(late)
    world.deliver(late)
    world.settle()  # it sends its Resume on its own
    assert len(state_of(world).active()) == 3
    record = world.round().record
    assert record.header.round == 3
    assert len(record.header.servers) == 3


def test_a_server_that_is_no_member_any_more_is_named_only() -> None:
    world = reach(started(), Phase.PROPOSED)
    gone = world.sites.pop()
    good(world.append(command(world, gone, bodies.Leave())))
    world.now_ms += 1_000
    world.settle()
    applied = give_up(world)[-1]
    outcome = state_of(world).outcomes[-1]
    assert outcome.missing == (gone.core.id,)
    assert applied.events == (RoundEnded(outcome),)


def test_a_server_that_resumed_within_a_round_is_missing_in_it() -> None:
    world = reach(started(), Phase.COMMITTING)
    site = world.sites[2]
    good(world.say(site, resume_node(world, site.identity, site.core.id)))
    pass_time(world, 5_001)
    body = bodies.TimeoutRound(Phase.COMMITTING)
    for at in (0, 1):
        good(world.say(world.sites[at], body, 1))
    assert site.core.id in state_of(world).outcomes[-1].missing


def test_outcomes_are_a_bounded_ring() -> None:
    world = reach(started(epoch_rounds=100), Phase.LIVE)
    give_up(world)
    for _ in range(3):
        reach(world, Phase.LIVE)
        give_up(world)
    assert [outcome.round for outcome in state_of(world).outcomes] == [1, 2, 3, 4]
    assert state_of(world).outcomes.maxlen == OUTCOME_RING


def test_what_arrives_after_the_end_is_refused() -> None:
    world = reach(started(), Phase.LIVE)
    world.seal()
    late = bodies.SubmitAggregate(world.fold())
    give_up(world)
    bad(world.say(world.sites[0], late, 1), "aggregate.round")
    reach(world, Phase.LIVE)
    bad(world.say(world.sites[0], late, 1), "aggregate.round")
    bad(world.say(world.sites[0], late, 2), "aggregate.round")


def test_the_first_of_two_aggregates_is_the_only_one() -> None:
    world = reach(started(), Phase.LIVE)
    world.seal()
    raw = world.fold()
    good(world.submit(raw))
    bad(world.say(world.sites[1], bodies.SubmitAggregate(raw), 1), "aggregate.phase")


def test_a_stranger_has_no_vote() -> None:
    world = reach(started(), Phase.LIVE)
    raw = forged(world, world_of(9).operators[0], bodies.TimeoutRound(Phase.LIVE), round_number=1)
    bad(world.append(raw), "command.author")
