"""Clients register, are vouched for or refused, and go; who is in the roster."""

from __future__ import annotations

from dataclasses import replace

import pytest

from attestation.bundle import Bundle
from tests.simulator.world import User, World
from tests.zipnet.committee.support import (
    bad,
    command,
    epoch_key,
    give_up,
    good,
    pass_time,
    reach,
    resume_node,
    started,
    state_of,
    suspend,
    user_id,
    voucher,
)
from zipnet.committee import bodies
from zipnet.committee.clients import registration_digest
from zipnet.committee.state import PENDING_ROUNDS, Client, Phase, Voucher


def client_of(world: World, at: int = 0) -> Client:
    return state_of(world).clients[user_id(world, at)]


def roster(world: World) -> list[bytes]:
    """Who is in the next header."""
    current = reach(world, Phase.PROPOSED).state.current
    assert current is not None
    return [entry.key.member for entry in current.sheet.clients]


def test_a_registration_is_entered_unvouched() -> None:
    world = started()
    user = world.user()
    key = user.core.epoch_key(1, world.now_ms)
    body = bodies.Register(user.bundle, key)
    assert good(world.say(world.sites[1], body)).events == ()
    client = state_of(world).clients[user.core.id]
    assert client == Client(
        user.core.id,
        user.identity.peer,
        user.identity.dh_pub,
        registration_digest(body),
        world.sites[1].core.id,
        1,
        next_key=key,
    )
    assert user.core.id not in roster(world)


def test_a_client_that_registers_anew_starts_anew() -> None:
    world = reach(started(), Phase.LIVE)
    user = world.users[0]
    good(world.say(world.sites[0], resume_node(world, user.identity, user.core.id, serial=5)))
    before = client_of(world)
    good(world.register(user))
    after = client_of(world)
    assert after.registration != before.registration
    assert (after.member, after.vouchers, after.registered_round) == (None, {}, 2)
    assert (after.resume_serial, after.resumes) == (5, 1)


def test_a_client_that_renews_stays_in() -> None:
    world = reach(started(), Phase.LIVE)
    user = world.users[0]
    before = client_of(world)
    before = replace(before, vouchers=dict(before.vouchers))
    for _ in range(2):
        give_up(reach(world, Phase.LIVE))
    ticket = replace(Bundle.decode(user.bundle).ticket, issued_at=1)
    renewed = bodies.Renew(Bundle.sign(ticket, b"", user.identity.signing).encode())
    good(world.say(world.sites[1], renewed))
    after = client_of(world)
    assert after.registration == registration_digest(renewed) != before.registration
    assert after.member == before.member
    assert after.vouchers == before.vouchers
    assert after.carrier == world.sites[1].core.id
    assert user.core.id in roster(world)
    # A server that does not take the new ticket takes the client out.
    good(world.say(world.sites[1], bodies.Refuse(user.core.id, "mrtd")))
    give_up(world)
    assert user.core.id not in roster(world)


def test_vouched_by_all_servers_of_the_header_is_in() -> None:
    world = started()
    user = world.user()
    world.users.append(user)
    good(world.register(user))
    for site in world.sites[:2]:
        world.vouch(user, [site])
        assert client_of(world, 3).waiting_since == 0
    world.vouch(user, world.sites[2:])
    assert client_of(world, 3).waiting_since == 1
    assert user.core.id in roster(world)


def test_suspended_servers_need_not_vouch() -> None:
    world = started(min_servers=2)
    user = world.user()
    world.users.append(user)
    good(world.register(user))
    world.vouch(user, world.sites[:2])
    suspend(world)
    assert user.core.id in roster(world)


def test_a_refusal_takes_a_client_out_with_the_next_header() -> None:
    world = reach(started(), Phase.LIVE)
    good(world.say(world.sites[1], bodies.Refuse(user_id(world), "tdx.debug")))
    server = world.sites[1].core.id
    assert client_of(world).refusals == {server: "tdx.debug"}
    assert server not in client_of(world).vouchers
    give_up(world)
    assert user_id(world) not in roster(world)
    # A later word of the same server is for it again, and takes the refusal back.
    good(world.say(world.sites[1], bodies.Vouch((voucher(world, user_id(world)),))))
    assert client_of(world).refusals == {}
    give_up(world)
    assert user_id(world) in roster(world)


def test_vouchers_end_by_machine_time() -> None:
    world = started()
    end = world.now_ms // 1000 + 30
    for site in world.sites:
        good(world.say(site, bodies.Vouch((voucher(world, user_id(world), not_after=end),))))
    assert user_id(world) in roster(world)
    # The clocks of a minority do not end them.
    world.now_ms += 40_000
    good(world.say(world.sites[0], bodies.Tick()))
    give_up(world)
    assert state_of(world).time_ms // 1000 >= end
    assert user_id(world) not in roster(world)


def test_a_voucher_holds_up_to_its_very_end() -> None:
    world = started()
    now = state_of(world).time_ms // 1000
    for site in world.sites:
        for at in range(3):
            word = voucher(world, user_id(world, at), not_after=now + 1)
            good(world.say(site, bodies.Vouch((word,))))
    pass_time(world, 999)
    assert len(roster(world)) == 3
    world.settle()
    give_up(world)
    bad(world.append(command(world, world.sites[0], bodies.ProposeHeader(), 2)), "propose.clients")


def test_a_retired_client_is_gone() -> None:
    world = started()
    user, registration = world.users[0], client_of(world).registration
    statement = user.core.id + registration
    signature = world.instance.sign(user.identity.signing, bodies.RETIRE, 0, statement)
    body = bodies.Retire(user.core.id, registration, signature)
    assert good(world.say(world.sites[2], body)).events == ()
    assert user.core.id not in state_of(world).clients
    bad(world.say(world.sites[2], replace(body, signature=bytes(64))), "client.unknown")


def on_platform(world: World, user: User, platform: bytes, sites: range = range(3)) -> None:
    for at in sites:
        word = voucher(world, user.core.id, platform=platform)
        good(world.say(world.sites[at], bodies.Vouch((word,))))


def test_each_platform_has_a_limit() -> None:
    world = started(clients=6, max_clients_per_platform=2)
    for user in world.users[:4]:
        on_platform(world, user, b"\1" * 32)
    by_id = sorted(user.core.id for user in world.users[:4])
    rest = {user.core.id for user in world.users[4:]}  # whose platform nobody knows
    assert set(roster(world)) == {*by_id[:2], *rest}


def test_servers_must_agree_on_the_platform() -> None:
    world = started(clients=4, max_clients_per_platform=2)
    on_platform(world, world.users[0], b"\1" * 32, range(2))
    assert user_id(world) not in roster(world)


def test_without_a_limit_platforms_are_nothing() -> None:
    world = started(clients=4)
    for at, user in enumerate(world.users):
        on_platform(world, user, b"\1" * 32, range(at % 3))
    assert len(roster(world)) == 4


def skip_rounds(world: World, rounds: int) -> None:
    """So many rounds have passed, as far as registrations can tell."""
    for site in world.sites:
        site.core.machine.state.next_round += rounds
        site.core.machine.state.epoch.base_round += rounds


@pytest.mark.parametrize(("rounds", "kept"), [(PENDING_ROUNDS, True), (PENDING_ROUNDS + 1, False)])
def test_registrations_that_nobody_vouches_for_are_forgotten(rounds: int, kept: bool) -> None:
    world = started()
    user = world.user()
    good(world.register(user))
    skip_rounds(world, rounds)
    reach(world, Phase.PROPOSED)  # opens an epoch
    assert (user.core.id in state_of(world).clients) is kept
    assert {one.core.id for one in world.users} <= set(state_of(world).clients)


def test_one_voucher_keeps_a_registration() -> None:
    world = started()
    user = world.user()
    world.users.append(user)
    good(world.register(user))
    world.vouch(user, world.sites[:1])
    skip_rounds(world, 100)
    reach(world, Phase.PROPOSED)
    assert user.core.id in state_of(world).clients


def test_a_carrier_has_its_share_and_no_more_above_half_of_the_room() -> None:
    world = started(clients=0, max_clients=12, min_participants=1)
    users = [world.user() for _ in range(9)]
    for user in users[:6]:
        good(world.register(user))  # below half of the room nobody counts
    bad(world.register(users[6]), "register.full")
    # Two each are the share of the other carriers.
    for at, user in zip((1, 1, 2), users[6:9], strict=True):
        good(world.register(user, world.sites[at]))
    more = world.user()
    bad(world.register(more, world.sites[1]), "register.full")
    # Who is in already may register anew, however full it is.
    good(world.register(users[0]))
    # Vouched ones are on nobody's account.
    state = state_of(world)
    for site in world.sites:
        for client in site.core.machine.state.clients.values():
            client.vouchers[world.sites[0].core.id] = Voucher(bytes(32), state.time_ms, bytes(32))
    good(world.register(more, world.sites[1]))


def test_a_client_waits_from_when_it_could_take_part() -> None:
    world = reach(started(), Phase.LIVE)
    user = world.user()
    world.users.append(user)
    good(world.register(user))
    world.vouch(user)
    assert client_of(world, 3).waiting_since == 2
    key = epoch_key(world, user.identity.signing, user.core.id)
    good(world.say(world.sites[0], bodies.EpochKeys((key,))))
    assert client_of(world, 3).waiting_since == 2
    good(world.say(world.sites[0], bodies.Refuse(user.core.id, "x")))
    assert client_of(world, 3).waiting_since == 0
    # Members do not wait.
    world.vouch(world.users[0])
    assert client_of(world, 0).waiting_since == 0
