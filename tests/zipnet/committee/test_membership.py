"""Servers come, go, rest and return; operators change; keys are posted."""

from __future__ import annotations

import pytest

from tests.simulator.world import World
from tests.zipnet.committee.support import (
    bad,
    command,
    endorsement,
    epoch_key,
    give_up,
    good,
    operators_document,
    reach,
    replace_server,
    resume_node,
    spare,
    started,
    state_of,
    suspend,
    user_id,
    world_of,
)
from zipnet.committee import bodies
from zipnet.committee.events import ServerGone, ServerSuspended
from zipnet.committee.state import BEACONS, Phase, Server, Status
from zipnet.committee.views import beacons
from zipnet.operators import Dismissal, follow
from zipnet.protocol.header import NO_HASH


def server_of(world: World, at: int) -> Server:
    return state_of(world).servers[world.sites[at].identity.peer]


def test_a_server_joins_with_its_key_and_its_clock() -> None:
    world = world_of()
    world.sites[0].skew_ms = 7
    assert good(world.join(world.sites[0])).events == ()
    server = server_of(world, 0)
    assert server.id == world.sites[0].core.id
    assert server.status is Status.ACTIVE
    assert (server.clock_ms, server.resumed_round) == (world.now_ms + 7, 1)
    assert server.member is None
    assert server.next_key is not None
    assert server.next_key.epoch == 1


def test_an_operator_replaces_its_server_with_a_greater_serial() -> None:
    world = started()
    old = server_of(world, 2)
    old.bytes_used = 1000
    new = replace_server(world)
    state = state_of(world)
    assert old.peer not in state.servers
    assert len(state.servers) == 3
    assert new.applied[-1].events == (ServerGone(old.id),)
    # What the old one said of clients is gone, and counts on nobody else's account.
    assert all(old.id not in client.vouchers for client in state.clients.values())
    assert server_of(world, 2).bytes_used == 0
    bad(world.append(command(world, world.sites[0], bodies.ProposeHeader(), 1)), "propose.clients")


def test_a_server_joins_anew_without_becoming_another() -> None:
    world = started()
    site = world.sites[1]
    good(world.say(site, resume_node(world, site.identity, site.core.id, serial=5)))
    before = server_of(world, 1)
    applied = good(world.join(site))
    after = server_of(world, 1)
    assert applied.events == ()
    assert after is not before
    assert after.id == before.id
    assert after.resume_serial == 5
    assert after.bytes_used >= before.bytes_used
    assert after.member is None
    assert all(after.id in client.vouchers for client in state_of(world).clients.values())


def test_a_server_may_join_anew_with_the_endorsement_that_it_has() -> None:
    world = started()
    site = world.sites[1]
    site.serial -= 1
    good(world.join(site))


def test_a_server_may_take_another_identity_under_its_peer_key() -> None:
    world = started()
    site, other = world.sites[1], spare(world, 1)
    site.serial += 1
    signed = endorsement(world, site, dh_pub=other.identity.dh_pub)
    key = epoch_key(world, site.identity.signing, other.core.id)
    old = server_of(world, 1)
    used = old.bytes_used
    applied = good(world.say(site, bodies.Join(signed, key, bytes(32))))
    assert applied.events == (ServerGone(old.id),)
    assert server_of(world, 1).id == other.core.id
    assert server_of(world, 1).bytes_used > used


def test_a_suspended_server_may_join_anew() -> None:
    world = started()
    suspend(world)
    good(world.join(world.sites[2]))
    assert server_of(world, 2).status is Status.ACTIVE


def test_a_server_leaves_for_good() -> None:
    world = started()
    good(world.say(world.sites[1], bodies.Assign((world.tree,) * 2)))
    gone = world.sites[1].core.id
    assert gone in state_of(world).tree_votes
    applied = good(world.say(world.sites[1], bodies.Leave()))
    assert applied.events == (ServerGone(gone),)
    assert gone not in state_of(world).tree_votes
    assert len(state_of(world).servers) == 2
    bad(world.say(world.sites[1], bodies.Tick()), "command.author")


def test_an_operator_dismisses_its_server_through_any_other() -> None:
    world = started()
    target = world.sites[2]
    word = Dismissal.make(world.instance, target.operator, target.identity.peer, target.serial)
    applied = good(world.say(world.sites[0], bodies.Leave(word)))
    assert applied.events == (ServerGone(target.core.id),)
    assert target.identity.peer not in state_of(world).servers


def test_a_newer_endorsement_brings_a_server_back() -> None:
    world = started()
    target = world.sites[2]
    word = Dismissal.make(world.instance, target.operator, target.identity.peer, 9)
    good(world.say(world.sites[0], bodies.Leave(word)))
    assert state_of(world).serials == {word.operator: 9}
    target.serial = 9
    good(world.join(target))
    good(world.say(target, bodies.Leave()))
    assert state_of(world).serials == {word.operator: 10}


def test_a_server_rests_and_returns_by_its_resume() -> None:
    world = reach(started(), Phase.LIVE)
    site = world.sites[2]
    applied = good(world.say(site, bodies.Suspend()))
    assert applied.events == (ServerSuspended(site.core.id, "suspend.own"),)
    assert [server.id for server in state_of(world).active()] == sorted(
        world.sites[at].core.id for at in (0, 1)
    )
    # What keeps it ready is allowed, the rest is not.
    good(world.say(site, bodies.Tick()))
    key = epoch_key(world, site.identity.signing, site.core.id)
    good(world.say(site, bodies.EpochKeys((key,))))
    bad(world.say(site, bodies.Refuse(user_id(world), "x")), "command.suspended")
    body = resume_node(world, site.identity, site.core.id)
    assert good(world.say(site, body)).events == ()
    server = server_of(world, 2)
    assert server.status is Status.ACTIVE
    assert (server.last_resume, server.resume_serial) == (body.nonce, body.serial)
    assert server.resumed_round == 2
    resume = state_of(world).epoch.resumes[-1]
    assert (resume.round, resume.node, resume.nonce) == (2, site.core.id, body.nonce)


def test_a_suspended_server_may_leave() -> None:
    world = started()
    suspend(world)
    good(world.say(world.sites[2], bodies.Leave()))
    assert len(state_of(world).servers) == 2


def test_a_client_resumes_through_any_server() -> None:
    world = started()
    body = resume_node(world, world.users[0].identity, user_id(world))
    good(world.say(world.sites[1], body))
    client = state_of(world).clients[user_id(world)]
    assert (client.last_resume, client.resume_serial, client.resumes) == (
        body.nonce, body.serial, 1,
    )  # fmt: skip
    reach(world, Phase.PROPOSED)
    assert client.resumes == 0


def test_resumes_are_kept_for_their_epoch_and_named_in_the_header() -> None:
    world = reach(started(), Phase.LIVE)
    for serial in (1, 2):
        user = world.users[0]
        good(world.say(world.sites[0], resume_node(world, user.identity, user.core.id,
                                                   serial=serial)))  # fmt: skip
    give_up(world)
    # Nothing opens an epoch here: both are in the sheet of the next round.
    current = reach(world, Phase.PROPOSED).state.current
    assert current is not None
    assert current.header.epoch == 1
    assert [resume.round for resume in current.sheet.resumes] == [2, 2]


# Operators


def test_operators_change_and_their_servers_with_them() -> None:
    world = started()
    good(world.say(world.sites[2], bodies.Assign((world.tree,) * 2)))
    document = operators_document(world, [0, 1])
    gone = world.sites[2].core.id
    applied = good(world.say(world.sites[0], bodies.ChangeOperators(document)))
    assert applied.events == (ServerGone(gone),)
    state = state_of(world)
    assert state.tree_votes == {}
    assert len(state.servers) == 2
    assert [each.name for each in state.operators.operators] == ["op0", "op1"]
    assert (state.operators.number, state.operators.k) == (1, 1)
    # The next document follows this one, and needs the signatures of those who are left.
    again = operators_document(world, [0], signers=[0, 1])
    good(world.say(world.sites[0], bodies.ChangeOperators(again)))
    assert state.operator_documents == [document, again]
    assert follow(world.config, state.operator_documents) == state.operators
    assert len(world.snapshots()) == 1  # whoever has gone may still follow the log
    bad(world.say(world.sites[2], bodies.Tick()), "command.author")


def test_an_operator_who_left_brings_no_server_back() -> None:
    world = started()
    good(world.say(world.sites[0], bodies.ChangeOperators(operators_document(world, [0, 1]))))
    bad(world.join(world.sites[2]), "join.operator")


def test_rounds_go_on_with_fewer_operators() -> None:
    world = started()
    good(world.say(world.sites[0], bodies.ChangeOperators(operators_document(world, [0, 1]))))
    world.sites.pop()
    record = world.round()
    assert len(record.record.header.servers) == 2


# Epoch keys


def test_a_newer_key_replaces_the_last() -> None:
    world = started()
    user, site = world.users[0], world.sites[0]
    before = state_of(world).clients[user.core.id].next_key
    first = epoch_key(world, user.identity.signing, user.core.id)
    server = epoch_key(world, site.identity.signing, site.core.id)
    good(world.say(world.sites[1], bodies.EpochKeys((first, server))))
    assert state_of(world).clients[user.core.id].next_key == first != before
    assert server_of(world, 0).next_key == server
    second = epoch_key(world, user.identity.signing, user.core.id, serial=first.serial + 1)
    good(world.say(world.sites[1], bodies.EpochKeys((second,))))
    assert state_of(world).clients[user.core.id].next_key == second


# The first beacon


def test_the_first_beacon_is_the_head_after_the_last_operators_server() -> None:
    world = world_of()
    for site in world.sites:
        assert beacons(state_of(world)) == frozenset()
        good(world.join(site))
    head = state_of(world).head
    assert state_of(world).first_beacon == head
    assert beacons(state_of(world)) == {head}
    good(world.join(world.sites[0]))
    assert beacons(state_of(world)) == {state_of(world).head}


def test_records_are_beacons_beside_the_first_until_there_are_enough() -> None:
    world = started()
    first = state_of(world).first_beacon
    assert first != NO_HASH
    one, two = world.round().record.hash, world.round().record.hash
    assert beacons(state_of(world)) == {first, one, two}
    good(world.join(world.sites[0]))
    assert state_of(world).first_beacon == first
    more = [bytes([at]) * 32 for at in range(1, BEACONS - 1)]
    state_of(world).beacons += more[1:]
    assert beacons(state_of(world)) == {first, one, two, *more[1:]}
    state_of(world).beacons.append(more[0])
    assert beacons(state_of(world)) == {one, two, *more}


def test_there_is_a_first_beacon_once_there_are_servers_enough_for_rounds() -> None:
    world = world_of(min_servers=2)
    good(world.join(world.sites[0]))
    assert beacons(state_of(world)) == frozenset()
    for site in world.sites[1:]:
        good(world.join(site))
        assert beacons(state_of(world)) == {state_of(world).head}


@pytest.mark.parametrize("missing", [0, 1, 2])
def test_there_is_no_beacon_while_an_operator_has_no_server(missing: int) -> None:
    world = world_of()
    for at, site in enumerate(world.sites):
        if at != missing:
            good(world.join(site))
    assert state_of(world).first_beacon == NO_HASH
