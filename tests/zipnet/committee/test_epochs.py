"""When epochs begin, and who is in them."""

from __future__ import annotations

import pytest

from tests.simulator.world import World
from tests.zipnet.committee.support import (
    bad,
    command,
    epoch_key,
    give_up,
    good,
    reach,
    replace_server,
    resume_node,
    started,
    state_of,
    suspend,
    user_id,
    voucher,
)
from zipnet.committee import bodies
from zipnet.committee.epochs import epoch_of_next_header
from zipnet.committee.state import WAIT_ROUNDS, Client, Phase, Server
from zipnet.config import ShuffleWindow


def run(world: World, rounds: int) -> list[int]:
    """The epochs of so many rounds."""
    return [world.round().record.header.epoch for _ in range(rounds)]


def proposed(world: World, at: int = 0) -> str:
    """What becomes of a proposal of the next round."""
    raw = command(world, world.sites[at], bodies.ProposeHeader(), state_of(world).next_round)
    return world.append(raw).rule


def advance(world: World, rounds: int) -> None:
    """So many rounds have passed in this epoch."""
    for site in world.sites:
        site.core.machine.state.next_round += rounds


def test_an_epoch_has_as_many_rounds_as_configured() -> None:
    world = started(epoch_rounds=3, messages_per_epoch=3)
    assert run(world, 8) == [1, 1, 1, 2, 2, 2, 3, 3]
    assert state_of(world).epoch.base_round == 7


def test_it_has_64_rounds_by_default() -> None:
    assert ShuffleWindow.interactive().epoch_rounds == 64
    world = started(epoch_rounds=64)
    world.round()
    world.post_keys()
    world.settle()
    state = state_of(world)
    advance(world, 62)
    assert state.next_round - state.epoch.base_round == 63
    assert not epoch_of_next_header(state)
    advance(world, 1)
    assert epoch_of_next_header(state)


def test_rounds_that_end_without_a_record_count_too() -> None:
    world = started(epoch_rounds=2, messages_per_epoch=2)
    for epoch in (1, 1, 2):
        current = reach(world, Phase.LIVE).state.current
        assert current is not None
        assert current.header.epoch == epoch
        give_up(world)


def test_everybodys_keys_move_on_when_an_epoch_opens() -> None:
    world = started()
    state = state_of(world)
    everybody: list[Server | Client] = [*state.servers.values(), *state.clients.values()]
    keys = {one.id: one.next_key for one in everybody}
    reach(world, Phase.PROPOSED)
    for one in everybody:
        assert one.member == keys[one.id]
        assert one.next_key is None
    assert (state.epoch.number, state.epoch.base_round) == (1, 1)


def newcomer(world: World) -> bytes:
    user = world.user()
    world.users.append(user)
    good(world.register(user))
    world.vouch(user)
    return user.core.id


def members(world: World) -> set[bytes]:
    current = state_of(world).current
    assert current is not None
    return {entry.key.member for entry in current.sheet.clients}


def test_joiners_wait_for_eight_rounds_at_most() -> None:
    world = started(epoch_rounds=64)
    world.round()
    joiner = newcomer(world)
    waiting = state_of(world).clients[joiner].waiting_since
    assert waiting == 2
    assert run(world, WAIT_ROUNDS) == [1] * WAIT_ROUNDS
    reach(world, Phase.PROPOSED)
    assert state_of(world).epoch.number == 2
    assert state_of(world).epoch.base_round == waiting + WAIT_ROUNDS
    assert joiner in members(world)


def test_a_joiner_that_is_refused_meanwhile_opens_no_epoch() -> None:
    world = started(epoch_rounds=64)
    world.round()
    joiner = newcomer(world)
    good(world.say(world.sites[1], bodies.Refuse(joiner, "tdx.debug")))
    assert set(run(world, WAIT_ROUNDS + 2)) == {1}


def test_a_joiner_whose_vouchers_end_meanwhile_opens_no_epoch() -> None:
    world = started(epoch_rounds=64)
    world.round()
    joiner = newcomer(world)
    end = state_of(world).time_ms // 1000 + 2
    word = bodies.Vouch((voucher(world, joiner, not_after=end),))
    good(world.say(world.sites[0], word))
    assert set(run(world, WAIT_ROUNDS + 2)) == {1}
    assert state_of(world).clients[joiner].waiting_since == 2


def test_a_joiner_is_in_sooner_if_rounds_cannot_go_on_without() -> None:
    world = started(clients=3, min_participants=3, epoch_rounds=64)
    world.round()
    joiner = newcomer(world)
    good(world.say(world.sites[0], bodies.Refuse(user_id(world), "x")))
    reach(world, Phase.PROPOSED)
    assert state_of(world).epoch.number == 2
    assert members(world) == {joiner, user_id(world, 1), user_id(world, 2)}


def test_no_header_opens_below_the_minimum() -> None:
    world = started(clients=2, min_participants=2, epoch_rounds=64)
    world.round()
    world.post_keys()
    good(world.say(world.sites[0], bodies.Refuse(user_id(world), "x")))
    assert proposed(world) == "propose.clients"
    # One that waits alone does not help, two together would.
    joiner = newcomer(world)
    assert state_of(world).clients[joiner].waiting_since == 2
    good(world.say(world.sites[0], bodies.Refuse(user_id(world, 1), "x")))
    assert proposed(world) == "propose.clients"


def test_a_server_without_a_key_in_this_epoch_opens_the_next() -> None:
    world = started(epoch_rounds=64)
    world.round()
    for site in world.sites[:2]:
        key = epoch_key(world, site.identity.signing, site.core.id)
        good(world.say(site, bodies.EpochKeys((key,))))
    world.post_keys()
    assert not epoch_of_next_header(state_of(world))
    replace_server(world)
    for user in world.users:
        world.vouch(user, world.sites[2:])
    assert proposed(world) == ""
    assert state_of(world).epoch.number == 2
    current = state_of(world).current
    assert current is not None
    assert world.sites[2].core.id in current.header.servers


def test_a_server_that_joined_waits_for_the_keys_of_the_others() -> None:
    world = started(epoch_rounds=64)
    reach(world, Phase.LIVE)
    give_up(world)
    for site in world.sites:
        for server in site.core.machine.state.servers.values():
            server.next_key = None
    good(world.join(world.sites[2]))
    assert proposed(world) == "propose.epoch"


def test_a_late_epoch_goes_on_without_keys_up_to_twice_its_length() -> None:
    world = reach(started(epoch_rounds=4, messages_per_epoch=4), Phase.LIVE)
    give_up(world)
    state = state_of(world)
    for site in world.sites:
        for server in site.core.machine.state.servers.values():
            server.next_key = None
    advance(world, 5)
    assert state.next_round - state.epoch.base_round == 6
    assert not epoch_of_next_header(state)
    advance(world, 1)
    assert not epoch_of_next_header(state)
    advance(world, 1)
    assert proposed(world) == "propose.epoch"
    # With the keys it opens at once.
    for site in world.sites:
        key = epoch_key(world, site.identity.signing, site.core.id)
        good(world.say(site, bodies.EpochKeys((key,))))
    world.post_keys()
    assert proposed(world) == ""
    assert state.epoch.number == 2


def test_a_suspended_server_with_a_key_is_in_the_epoch_and_returns_within_it() -> None:
    world = started(min_servers=2, epoch_rounds=64)
    suspend(world)
    good(world.append(command(world, world.sites[0], bodies.ProposeHeader(), 1)))
    state = state_of(world)
    current = state.current
    assert current is not None
    away = world.sites[2]
    assert away.core.id not in current.header.servers
    assert away.core.id in {entry.key.member for entry in current.sheet.servers}
    world.sites.remove(away)
    world.settle()
    give_up(world)
    world.sites.append(away)
    world.deliver(away)
    good(world.say(away, resume_node(world, away.identity, away.core.id)))
    assert proposed(world) == ""
    assert state.epoch.number == 1
    assert state.current is not None
    assert away.core.id in state.current.header.servers


def test_a_server_that_slept_through_an_epoch_returns_with_the_next() -> None:
    world = started(min_servers=2, epoch_rounds=64)
    away = world.sites[2]
    good(world.say(away, bodies.Suspend()))
    for site in world.sites:
        site.core.machine.state.servers[away.identity.peer].next_key = None
    good(world.append(command(world, world.sites[0], bodies.ProposeHeader(), 1)))
    server = state_of(world).servers[away.identity.peer]
    assert server.member is None
    world.sites.remove(away)
    world.settle()
    give_up(world)
    world.post_keys()
    world.sites.append(away)
    world.deliver(away)
    good(world.say(away, resume_node(world, away.identity, away.core.id)))
    # Without a key it is left out; nobody has to wait for it.
    assert proposed(world) == ""
    current = state_of(world).current
    assert current is not None
    assert away.core.id not in current.header.servers
    world.settle()
    give_up(world)
    key = epoch_key(world, away.identity.signing, away.core.id)
    good(world.say(away, bodies.EpochKeys((key,))))
    world.post_keys()
    assert proposed(world) == ""
    assert state_of(world).epoch.number == 2


def test_without_active_servers_no_epoch_opens() -> None:
    world = started(min_servers=1)
    for at in range(3):
        suspend(world, at)
    bad(
        world.append(command(world, world.sites[0], bodies.ProposeHeader(), 1)),
        "command.suspended",
    )


def test_resumes_of_past_rounds_are_left_behind() -> None:
    world = started(epoch_rounds=2, messages_per_epoch=2)
    user = world.users[0]
    reach(world, Phase.LIVE)
    good(world.say(world.sites[0], resume_node(world, user.identity, user.core.id, serial=1)))
    give_up(world)
    reach(world, Phase.LIVE)
    assert len(state_of(world).epoch.resumes) == 1
    late = resume_node(world, user.identity, user.core.id, serial=2)
    good(world.say(world.sites[0], late))
    give_up(world)
    reach(world, Phase.PROPOSED)
    assert state_of(world).epoch.number == 2
    # The one since the last header is mixed into the new secrets.
    assert [resume.nonce for resume in state_of(world).epoch.resumes] == [late.nonce]


@pytest.mark.parametrize("seed", range(3))
def test_header_and_sheet_agree_in_every_round(seed: int) -> None:
    world = started(seed=seed, epoch_rounds=2, messages_per_epoch=2)
    for _ in range(5):
        current = reach(world, Phase.PROPOSED).state.current
        assert current is not None
        roster = current.sheet.roster(current.header)
        assert len(roster.clients) == 3
        current.sheet.verify_clients(current.header)
        committee = current.sheet.committee(
            current.header, state_of(world).operators.keys, frozenset()
        )
        assert tuple(sorted(committee.servers)) == current.header.servers
        world.round()
