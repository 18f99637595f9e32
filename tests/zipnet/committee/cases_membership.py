"""Commands about servers, operators and keys that are refused."""

from __future__ import annotations

from dataclasses import replace

from tests.simulator.world import World
from tests.zipnet.committee.support import (
    SMALL_ORDER,
    case,
    command,
    endorsement,
    epoch_key,
    forged,
    good,
    operators_document,
    replace_server,
    resume_node,
    spare,
    started,
    state_of,
    user_id,
)
from zipnet.committee import bodies
from zipnet.committee.state import MAX_OPERATOR_DOCUMENTS, RESUMES_PER_ROUND
from zipnet.ids import server_id
from zipnet.operators import Dismissal, Endorsement
from zipnet.protocol.roster import MAX_RESUMES, EpochKey, Resume
from zipnet.roles.identity import Identity


def join_body(
    world: World,
    signed: Endorsement,
    identity: Identity,
    epoch: int | None = None,
    serial: int | None = None,
) -> bodies.Join:
    member = server_id(signed.dh_pub)
    key = epoch_key(world, identity.signing, member, epoch=epoch, serial=serial)
    return bodies.Join(signed, key, world.draw(32))


def joins(
    world: World,
    signed: Endorsement,
    identity: Identity,
    epoch: int | None = None,
    serial: int | None = None,
) -> bytes:
    return forged(world, identity.signing, join_body(world, signed, identity, epoch, serial))


@case("signature")
def join_with_an_endorsement_that_nobody_signed(world: World) -> bytes:
    new = spare(world)
    signed = replace(endorsement(world, new), serial=99)
    return joins(world, signed, new.identity)


@case("join.author")
def join_for_another(world: World) -> bytes:
    new = spare(world)
    signed = endorsement(world, new, serial=9)
    body = join_body(world, signed, new.identity)
    return command(world, world.sites[0], body)


@case("join.operator")
def join_for_an_operator_of_nobody(world: World) -> bytes:
    new = spare(world)
    signed = endorsement(world, new, operator=world.signing(), serial=9)
    return joins(world, signed, new.identity)


@case("join.serial")
def join_with_an_older_endorsement(world: World) -> bytes:
    new = spare(world)
    return joins(world, endorsement(world, new, serial=1), new.identity)


@case("join.serial")
def join_of_another_server_with_the_same_serial(world: World) -> bytes:
    new = spare(world)
    return joins(world, endorsement(world, new), new.identity)


@case("join.serial")
def join_of_a_server_that_left(world: World) -> bytes:
    good(world.say(world.sites[2], bodies.Leave()))
    return joins(world, endorsement(world, world.sites[2]), world.sites[2].identity)


@case("join.serial")
def join_of_a_server_that_was_replaced_by_one_that_left(world: World) -> bytes:
    old = world.sites[2]
    signed = endorsement(world, old)
    good(world.say(replace_server(world), bodies.Leave()))
    return joins(world, signed, old.identity)


@case("join.serial")
def join_of_a_dismissed_server(world: World) -> bytes:
    site = world.sites[2]
    word = Dismissal.make(world.instance, site.operator, site.identity.peer, 9)
    good(world.say(world.sites[0], bodies.Leave(word)))
    return joins(world, endorsement(world, site, serial=9), site.identity)


@case("join.two-operators")
def join_for_two_operators(world: World) -> bytes:
    one = world.sites[0]
    signed = endorsement(world, one, operator=world.sites[1].operator, serial=9)
    return joins(world, signed, one.identity)


@case("dh-zero")
def join_with_an_identity_of_small_order(world: World) -> bytes:
    new = spare(world)
    signed = endorsement(world, new, serial=9, dh_pub=SMALL_ORDER)
    return joins(world, signed, new.identity)


@case("join.identity")
def join_with_the_identity_of_another_server(world: World) -> bytes:
    new = spare(world)
    taken = world.sites[0].identity.dh_pub
    return joins(world, endorsement(world, new, serial=9, dh_pub=taken), new.identity)


@case("epoch-key.member")
def join_with_a_key_of_another(world: World) -> bytes:
    new = spare(world)
    key = epoch_key(world, new.identity.signing, world.sites[0].core.id)
    body = bodies.Join(endorsement(world, new, serial=9), key, world.draw(32))
    return forged(world, new.identity.signing, body)


@case("epoch-key.epoch")
def join_with_a_key_for_this_epoch(world: World) -> bytes:
    new = spare(world)
    signed = endorsement(world, new, serial=9)
    return joins(world, signed, new.identity, epoch=state_of(world).epoch.number)


@case("epoch-key.serial")
def join_anew_with_an_old_key(world: World) -> bytes:
    one = world.sites[0]
    there = state_of(world).servers[one.identity.peer].next_key
    assert there is not None
    return joins(world, endorsement(world, one), one.identity, serial=there.serial)


@case("leave.operator")
def dismissal_of_a_server_of_another_operator(world: World) -> bytes:
    peer = world.sites[2].identity.peer
    word = Dismissal.make(world.instance, world.sites[1].operator, peer, 99)
    return command(world, world.sites[0], bodies.Leave(word))


@case("leave.operator")
def dismissal_of_nobody(world: World) -> bytes:
    word = Dismissal.make(world.instance, world.sites[1].operator, bytes(32), 99)
    return command(world, world.sites[0], bodies.Leave(word))


@case("leave.serial")
def dismissal_that_is_too_old(world: World) -> bytes:
    site = world.sites[2]
    word = Dismissal.make(world.instance, site.operator, site.identity.peer, site.serial - 1)
    return command(world, world.sites[0], bodies.Leave(word))


@case("signature")
def dismissal_that_nobody_signed(world: World) -> bytes:
    site = world.sites[2]
    word = Dismissal.make(world.instance, site.operator, site.identity.peer, 9)
    return command(world, world.sites[0], bodies.Leave(replace(word, serial=99)))


@case("resume.unknown")
def resume_of_nobody(world: World) -> bytes:
    one = world.sites[0]
    return command(world, one, resume_node(world, one.identity, bytes(32)))


@case("resume.author")
def resume_for_another_server(world: World) -> bytes:
    one, other = world.sites[:2]
    return command(world, one, resume_node(world, other.identity, other.core.id))


@case("signature")
def resume_of_a_client_by_another_key(world: World) -> bytes:
    body = resume_node(world, world.users[1].identity, user_id(world))
    return command(world, world.sites[0], body)


def resumed() -> World:
    world = started()
    one = world.sites[0]
    good(world.say(one, resume_node(world, one.identity, one.core.id, serial=7)))
    return world


@case("resume.serial", world=resumed)
def resume_with_the_same_serial(world: World) -> bytes:
    one = world.sites[0]
    return command(world, one, resume_node(world, one.identity, one.core.id, serial=7))


@case("resume.quota")
def resume_too_often(world: World) -> bytes:
    one, user = world.sites[0], world.users[0].identity
    for serial in range(1, RESUMES_PER_ROUND + 1):
        good(world.say(one, resume_node(world, user, user_id(world), serial=serial)))
    return command(world, one, resume_node(world, user, user_id(world), serial=99))


@case("resume.quota")
def resume_in_a_full_epoch(world: World) -> bytes:
    full = [Resume(1, bytes(32), bytes(32))] * MAX_RESUMES
    for site in world.sites:
        site.core.machine.state.epoch.resumes[:] = full
    one = world.sites[0]
    return command(world, one, resume_node(world, one.identity, one.core.id))


@case("operators.documents")
def operators_change_too_often(world: World) -> bytes:
    document = operators_document(world, [0, 1])
    for site in world.sites:
        site.core.machine.state.operator_documents[:] = [document] * MAX_OPERATOR_DOCUMENTS
    return command(world, world.sites[0], bodies.ChangeOperators(document))


@case("signers")
def operators_without_all_signatures(world: World) -> bytes:
    document = operators_document(world, [0, 1], signers=[0, 1])
    return command(world, world.sites[0], bodies.ChangeOperators(document))


@case("deployment")
def operators_of_another_deployment(world: World) -> bytes:
    document = operators_document(world, [0, 1], deployment=bytes(32))
    return command(world, world.sites[0], bodies.ChangeOperators(document))


@case("number")
def operators_out_of_turn(world: World) -> bytes:
    later = replace(state_of(world).operators, number=1)
    document = operators_document(world, [0, 1], current=later)
    return command(world, world.sites[0], bodies.ChangeOperators(document))


@case("previous")
def operators_after_others(world: World) -> bytes:
    other = replace(state_of(world).operators, digest=bytes(32))
    document = operators_document(world, [0, 1], current=other)
    return command(world, world.sites[0], bodies.ChangeOperators(document))


@case("envelope.json")
def operators_that_are_no_envelope(world: World) -> bytes:
    return command(world, world.sites[0], bodies.ChangeOperators(b"{"))


def posts(world: World, *keys: EpochKey) -> bytes:
    return command(world, world.sites[0], bodies.EpochKeys(keys))


@case("epoch-key.unknown")
def key_of_nobody(world: World) -> bytes:
    return posts(world, epoch_key(world, world.users[0].identity.signing, bytes(32)))


@case("epoch-key.epoch")
def key_for_a_later_epoch(world: World) -> bytes:
    user = world.users[0]
    return posts(world, epoch_key(world, user.identity.signing, user.core.id, epoch=2))


@case("epoch-key.serial")
def key_that_is_not_newer(world: World) -> bytes:
    user = world.users[0]
    there = state_of(world).clients[user.core.id].next_key
    assert there is not None
    signer = user.identity.signing
    return posts(world, epoch_key(world, signer, user.core.id, serial=there.serial))


@case("dh-zero")
def key_of_small_order(world: World) -> bytes:
    user = world.users[0]
    return posts(world, epoch_key(world, user.identity.signing, user.core.id, key=SMALL_ORDER))


@case("signature")
def key_that_another_signed(world: World) -> bytes:
    user, other = world.users[:2]
    good_one = epoch_key(world, other.identity.signing, other.core.id)
    return posts(world, good_one, epoch_key(world, other.identity.signing, user.core.id))


@case("epoch-key.batch")
def no_keys(world: World) -> bytes:
    return posts(world)


@case("epoch-key.batch")
def two_keys_of_one_member(world: World) -> bytes:
    user = world.users[0]
    key = epoch_key(world, user.identity.signing, user.core.id)
    return posts(world, key, key)


@case("command.suspended")
def suspends_twice(world: World) -> bytes:
    good(world.say(world.sites[2], bodies.Suspend()))
    return command(world, world.sites[2], bodies.Suspend())
