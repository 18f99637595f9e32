"""The machine as a whole: the chain, duplicates, quota, machine time, the ring of refusals."""

from __future__ import annotations

from functools import cache

import pytest
from blake3 import blake3
from hypothesis import given
from hypothesis import strategies as st

from tests.simulator.world import START_MS, World
from tests.zipnet.committee.support import (
    bad,
    bare,
    command,
    forged,
    give_up,
    good,
    reach,
    resume_node,
    spare,
    started,
    state_of,
    suspend,
    world_of,
)
from zipnet.committee import bodies
from zipnet.committee.events import ServerSuspended, Verdict
from zipnet.committee.machine import HANDLERS, SIGNATURE, Machine
from zipnet.committee.state import LOG_WINDOW, MAX_LEAD_MS, REFUSED_RING, Phase, Status
from zipnet.errors import LogBroken
from zipnet.protocol.header import NO_HASH


def test_every_kind_has_a_handler() -> None:
    assert len(HANDLERS) == len(bodies.BODIES)


@pytest.mark.parametrize("offset", [-1, 0, 2])
def test_an_entry_that_is_not_the_next_one_stops_the_node(offset: int) -> None:
    machine = started().sites[0].core.machine
    before = machine.snapshot()
    with pytest.raises(LogBroken) as caught:
        machine.apply(machine.state.seq + offset, b"x")
    assert caught.value.rule == "log.gap"
    assert machine.snapshot() == before


def test_the_head_is_a_chain_over_all_entries_refused_ones_too() -> None:
    world = started()
    world.append(b"junk")
    world.append(world.log[0])
    head = NO_HASH
    for raw in world.log:
        head = blake3(head + raw).digest()
    assert state_of(world).head == head


def test_the_same_bytes_count_once_whether_applied_or_refused() -> None:
    world = started()
    applied = command(world, world.sites[0], bodies.Assign((world.tree,)))
    refused = command(world, world.sites[0], bodies.Assign(()))
    good(world.append(applied))
    bad(world.append(refused), "assign.empty")
    author = world.sites[0].identity.peer
    before = bare(world.sites[0].core.machine, author)
    used = state_of(world).servers[author].bytes_used
    for raw in (applied, refused, applied):
        again = world.append(raw)
        assert (again.verdict, again.rule, again.events) == (Verdict.DUPLICATE, "", ())
    assert bare(world.sites[0].core.machine, author) == before
    assert state_of(world).servers[author].bytes_used == used


def test_what_was_forgotten_is_refused_by_its_position() -> None:
    world = started()
    old = command(world, world.sites[0], bodies.Tick())
    good(world.append(old))
    for at in range(LOG_WINDOW - 2):
        world.log.append(b"%d" % at)
        world.sites[0].core.machine.apply(len(world.log), world.log[-1])
    machine = world.sites[0].core.machine
    seq = machine.state.seq
    assert machine.apply(seq + 1, old).verdict is Verdict.DUPLICATE
    assert machine.apply(seq + 2, old).verdict is Verdict.DUPLICATE
    assert machine.apply(seq + 3, old).rule == "command.position"


def test_a_command_may_be_tied_to_the_oldest_entry_of_the_window() -> None:
    world = started()
    for at in range(LOG_WINDOW + 5):
        world.append(b"%d" % at)
    key = world.sites[0].identity.signing
    bad(world.append(forged(world, key, bodies.Tick(), back=LOG_WINDOW - 1)), "command.position")
    good(world.append(forged(world, key, bodies.Tick(), back=LOG_WINDOW - 2)))


@pytest.mark.parametrize("back", [0, 1, 7])
def test_a_command_may_be_tied_to_any_recent_entry(back: int) -> None:
    world = started()
    good(world.append(forged(world, world.sites[0].identity.signing, bodies.Tick(), back=back)))


def test_a_server_that_has_seen_nothing_may_speak_while_the_log_is_short() -> None:
    world = started()
    raw = spare(world, 0).core
    state = state_of(world)
    assert raw.machine.state.seq == state.seq
    early = world_of()
    first = early.sites[0].core.command(bodies.Tick(), 0, START_MS)
    bad(early.append(first), "command.author")


def test_the_ring_of_refusals_says_who_and_why_and_is_bounded() -> None:
    world = started()
    author = world.sites[1].identity.peer
    bad(world.say(world.sites[1], bodies.Assign(())), "assign.empty")
    last = state_of(world).refused[-1]
    assert (last.seq, last.author, last.kind) == (state_of(world).seq, author, 19)
    for at in range(REFUSED_RING + 10):
        world.append(b"\0\2%d" % at)
    refused = state_of(world).refused
    assert len(refused) == REFUSED_RING
    assert {(one.author, one.kind, one.rule) for one in refused} == {
        (NO_HASH, 0, "command.truncated")
    }


def test_the_signature_of_replicas_binds_deployment_and_versions() -> None:
    world = started()
    material = b"\0\2\0\1" + world.instance.deployment_id
    expected = blake3(material, derive_key_context=SIGNATURE).digest()
    assert world.sites[0].core.machine.signature() == expected
    assert started(num_slots=4).sites[0].core.machine.signature() != expected


# Quota


def test_who_writes_too_much_is_suspended_and_named() -> None:
    world = started()
    site = world.sites[1]
    server = state_of(world).servers[site.identity.peer]
    quota = world.config.window.byte_quota
    big = bodies.SubmitAggregate(bytes(quota // 4))
    for _ in range(3):
        bad(world.say(site, big, 1), "aggregate.round")
    good(world.say(site, bodies.Assign((world.tree,))))
    assert server in state_of(world).active()
    applied = bad(world.say(site, big, 1), "command.quota")
    assert applied.events == (ServerSuspended(server.id, "command.quota"),)
    assert server.status is Status.SUSPENDED
    assert server.bytes_used > quota
    # Neither this server's vote nor its other words count from now on.
    assert server.id not in state_of(world).tree_votes
    again = bad(world.say(site, bodies.Assign((world.tree,))), "command.quota")
    assert again.events == ()
    assert len(world.snapshots()) == 1
    # It may still say what time it is, and come back; the count goes on.
    good(world.say(site, bodies.Tick()))
    good(world.say(site, resume_node(world, site.identity, site.core.id)))
    assert server in state_of(world).active()
    bad(world.say(site, bodies.Assign((world.tree,))), "command.quota")
    # Joining anew does not empty the account.
    good(world.join(site))
    bad(world.say(site, bodies.Assign((world.tree,))), "command.quota")


def test_the_count_begins_anew_with_a_header_and_with_a_rounds_time() -> None:
    world = started()
    reach(world, Phase.PROPOSED)
    used = [server.bytes_used for server in state_of(world).servers.values()]
    assert used == [0, 0, 0]
    reach(world, Phase.LIVE)
    good(world.say(world.sites[0], bodies.Assign((world.tree,))))
    assert state_of(world).servers[world.sites[0].identity.peer].bytes_used > 0
    give_up(world)
    world.pass_time(world.config.window.round_deadline_ms)
    # The first command after it counts already.
    raw = command(world, world.sites[0], bodies.Assign((world.tree,)))
    good(world.append(raw))
    assert state_of(world).servers[world.sites[0].identity.peer].bytes_used == len(raw)
    assert state_of(world).servers[world.sites[1].identity.peer].bytes_used == 0


def test_forged_commands_are_on_nobodys_account() -> None:
    world = started()
    author = world.sites[0].identity.peer
    used = state_of(world).servers[author].bytes_used
    world.append(command(world, world.sites[0], bodies.Tick())[:-64] + bytes(64))
    assert state_of(world).servers[author].bytes_used == used


# Machine time


def clocks(world: World, *skews: int) -> int:
    """Every server ticks by its clock; machine time after that, as an offset."""
    for site, skew in zip(world.sites, skews, strict=True):
        site.skew_ms = skew
        good(world.say(site, bodies.Tick()))
    return state_of(world).time_ms - world.now_ms


@pytest.mark.parametrize(
    ("skews", "median"),
    [
        ((5, 1, 9), 5),
        ((1, 2, 3, 4), 2),
        ((7,), 7),
        ((3, 8), 3),
        ((0, 10_000_000, 20_000_000), 10_000_000),
        ((-(10**9), 4, 10**9), 4),
    ],
)
def test_time_is_the_lower_median_of_the_latest_clocks(skews: tuple[int, ...], median: int) -> None:
    world = started(servers=len(skews))
    assert clocks(world, *skews) == median


def test_a_wrong_clock_at_the_beginning_decides_nothing_for_good() -> None:
    world = world_of()
    world.sites[0].skew_ms = 10**9
    good(world.join(world.sites[0]))
    assert state_of(world).time_ms == world.now_ms + 10**9
    good(world.join(world.sites[1]))
    good(world.join(world.sites[2]))
    assert state_of(world).time_ms == world.now_ms


def test_time_never_goes_back_once_there_was_a_round() -> None:
    world = reach(started(), Phase.LIVE)
    before = state_of(world).time_ms
    clocks(world, -60_000, -60_000, -60_000)
    assert state_of(world).time_ms == before


@cache
def ticking() -> World:
    return reach(started(), Phase.PROPOSED)


@given(st.lists(st.tuples(st.integers(0, 2), st.integers(-(10**6), 10**6)), max_size=12))
def test_time_is_monotone_whatever_the_clocks(ticks: list[tuple[int, int]]) -> None:
    world = ticking()
    last = state_of(world).time_ms
    for at, skew in ticks:
        world.sites[at].skew_ms = skew
        good(world.say(world.sites[at], bodies.Tick()))
        assert state_of(world).time_ms >= last
        last = state_of(world).time_ms


def test_a_clock_ahead_must_tick_first_and_one_server_moves_nothing() -> None:
    world = reach(started(), Phase.LIVE)
    site = world.sites[0]
    site.skew_ms = MAX_LEAD_MS + 1 + state_of(world).time_ms - world.now_ms
    vote = bodies.Assign((world.tree,))
    bad(world.say(site, vote), "command.clock")
    good(world.say(site, bodies.Tick()))
    bad(world.say(site, vote), "command.clock")
    site.skew_ms -= 1
    good(world.say(site, vote))


def test_a_majority_ahead_carries_the_time_with_it() -> None:
    world = reach(started(), Phase.LIVE)
    world.now_ms += 3_600_000
    good(world.say(world.sites[0], bodies.Tick()))
    bad(world.say(world.sites[0], bodies.Assign((world.tree,))), "command.clock")
    good(world.say(world.sites[1], bodies.Tick()))
    good(world.say(world.sites[0], bodies.Assign((world.tree,))))
    assert state_of(world).time_ms == world.now_ms


def test_the_clocks_of_suspended_servers_do_not_count() -> None:
    world = started()
    suspend(world, 0)
    assert clocks(world, -(10**9), 5, 9) == 5


def test_a_machine_without_servers_has_no_time_yet() -> None:
    world = world_of()
    machine = Machine.genesis(world.rules, world.instance)
    assert machine.state.time_ms == 0
    good(world.join(world.sites[0]))
    good(world.say(world.sites[0], bodies.Leave()))
    assert state_of(world).time_ms == world.now_ms
