"""Lists of measurements and aggregator trees."""

from __future__ import annotations

from dataclasses import replace

import pytest

from attestation.allowlist import AllowList
from tests.simulator.world import World
from tests.zipnet.committee.support import (
    bad,
    give_up,
    good,
    operators_document,
    reach,
    started,
    state_of,
    suspend,
    world_of,
)
from zipnet.committee import bodies
from zipnet.committee.events import ListAccepted
from zipnet.committee.policy import accepted_list, due_list
from zipnet.committee.state import LIST_DELAY, Phase
from zipnet.config import Config
from zipnet.protocol.tree import Aggregator, AggregatorTree


def rotate(world: World, number: int, signers: list[int] | None = None) -> ListAccepted:
    raw = world.allow_list(number, signers)
    event = good(world.say(world.sites[0], bodies.RotateAllowList(raw))).events[0]
    assert isinstance(event, ListAccepted)
    return event


def test_the_first_list_is_in_force_at_once() -> None:
    world = world_of(clients=0)
    for site in world.sites:
        good(world.join(site))
    assert rotate(world, 7) == ListAccepted(7, 1)
    entry = due_list(state_of(world))
    assert entry is not None
    assert entry is state_of(world).allow_list
    assert accepted_list(entry).number == 7


def test_a_later_list_is_in_force_some_rounds_later() -> None:
    world = started()
    world.round()
    assert rotate(world, 2) == ListAccepted(2, 2 + LIST_DELAY)
    assert rotate(world, 5) == ListAccepted(5, 2 + LIST_DELAY)
    world.round()
    assert rotate(world, 6) == ListAccepted(6, 3 + LIST_DELAY)
    digests = {entry.number: entry.digest for entry in state_of(world).pending_lists}
    numbers = {}
    for _ in range(LIST_DELAY + 1):
        header = world.round().record.header
        numbers[header.round] = header.list_number
        if header.list_number != 1:
            assert header.list_hash == digests[header.list_number]
    # Of two that are due the newer one counts, and the older one is never in force.
    assert numbers == {3: 1, 4: 1, 5: 1, 6: 5, 7: 6}
    state = state_of(world)
    assert state.pending_lists == []
    assert state.allow_list is not None
    assert state.allow_list.number == 6


def test_rounds_without_a_record_count_for_the_delay() -> None:
    world = started()
    rotate(world, 2)
    for _ in range(LIST_DELAY):
        reach(world, Phase.LIVE)
        give_up(world)
    current = reach(world, Phase.PROPOSED).state.current
    assert current is not None
    assert current.header.list_number == 2


def test_as_many_operators_as_configured_must_sign() -> None:
    def two_of_three(config: Config) -> Config:
        return replace(config, k=2)

    world = World(3, servers=3, clients=0, config=two_of_three).start()
    rotate(world, 2, [0, 2])
    bad(world.say(world.sites[0], bodies.RotateAllowList(world.allow_list(3, [1]))), "signers")


def test_the_operators_in_force_sign_lists() -> None:
    world = started()
    good(world.say(world.sites[0], bodies.ChangeOperators(operators_document(world, [0, 1]))))
    raw = world.allow_list(2, [2])
    bad(world.say(world.sites[0], bodies.RotateAllowList(raw)), "signers")
    rotate(world, 2, [1])


def test_the_list_that_was_accepted_reads_back() -> None:
    entry = state_of(started()).allow_list
    assert entry is not None
    found = accepted_list(entry)
    assert isinstance(found, AllowList)
    assert (found.number, found.digest) == (entry.number, entry.digest)


# Trees


def test_an_assignment_within_a_round_is_not_skipped_when_the_round_fails() -> None:
    world = reach(started(), Phase.LIVE)
    for at in (0, 1):
        vote(world, at, 1, 2)
    give_up(world)
    assert state_of(world).tree_at == 0


def tree(seed: int) -> AggregatorTree:
    return AggregatorTree((Aggregator(bytes([seed]) * 32, bytes([seed]) * 32, 0),))


def vote(world: World, at: int, *seeds: int) -> None:
    body = bodies.Assign(tuple(map(tree, seeds)))
    assert good(world.say(world.sites[at], body)).events == ()
    world.now_ms += 1


@pytest.mark.parametrize(("servers", "needed"), [(1, 1), (2, 2), (3, 2), (4, 3), (5, 3)])
def test_a_majority_assigns(servers: int, needed: int) -> None:
    world = started(servers=servers)
    for site in world.sites:
        site.core.machine.state.tree_at = 0
    before = state_of(world).trees
    for at in range(needed - 1):
        vote(world, at, 1, 2)
        assert state_of(world).trees == before
    vote(world, needed - 1, 1, 2)
    assert state_of(world).trees == (tree(1), tree(2))
    assert state_of(world).tree_votes == {}


def test_votes_must_agree_and_may_change() -> None:
    world = started(servers=3)
    state = state_of(world)
    state_before = state.trees
    vote(world, 0, 1)
    vote(world, 0, 1)
    assert len(state.tree_votes) == 2  # with one of the last server, at the beginning
    vote(world, 1, 2)
    assert state.trees == state_before
    vote(world, 1, 1)
    assert state.trees == (tree(1),)


def test_the_vote_of_a_server_that_rests_is_forgotten() -> None:
    world = started(servers=5)
    vote(world, 0, 1)
    vote(world, 1, 1)
    suspend(world, 0)
    vote(world, 2, 1)  # four are left: three must agree
    assert state_of(world).trees != (tree(1),)
    vote(world, 3, 1)
    assert state_of(world).trees == (tree(1),)


def test_a_new_assignment_begins_with_its_first_tree() -> None:
    world = started()
    for at in (0, 1):
        vote(world, at, 1, 2)
    reach(world, Phase.LIVE)
    give_up(world)
    assert state_of(world).tree_at == 1
    for at in (0, 1):
        vote(world, at, 3, 4)
    assert state_of(world).tree_at == 0
    current = reach(world, Phase.PROPOSED).state.current
    assert current is not None
    assert current.tree == tree(3)
    assert current.header.tree_hash == tree(3).hash()
