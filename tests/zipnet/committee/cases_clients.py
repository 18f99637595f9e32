"""Commands about clients that are refused."""

from __future__ import annotations

from dataclasses import replace

from attestation.bundle import Bundle, Role
from tests.simulator.world import User, World
from tests.zipnet.committee.support import (
    SMALL_ORDER,
    case,
    command,
    epoch_key,
    good,
    started,
    state_of,
    user_id,
    voucher,
)
from zipnet.committee import bodies
from zipnet.committee.state import MAX_VOUCH_S
from zipnet.ids import client_id
from zipnet.protocol.roster import EpochKey


def registers(world: World, bundle: bytes, key: EpochKey) -> bytes:
    return command(world, world.sites[0], bodies.Register(bundle, key))


def bundle_of(world: World, user: User, **changes: object) -> bytes:
    """The client's bundle with its ticket changed, signed as it must be."""
    ticket = replace(Bundle.decode(user.bundle).ticket, **changes)  # type: ignore[arg-type]
    return Bundle.sign(ticket, b"", user.identity.signing).encode()


def key_of(
    world: World, user: User, epoch: int | None = None, serial: int | None = None
) -> EpochKey:
    return epoch_key(world, user.identity.signing, user.core.id, epoch=epoch, serial=serial)


@case("bundle.size")
def bundle_that_is_none(world: World) -> bytes:
    return registers(world, b"", key_of(world, world.users[0]))


def renews(world: World, user: User, bundle: bytes) -> bytes:
    return command(world, world.sites[0], bodies.Renew(bundle))


@case("renew.soon")
def renewal_of_a_client_that_has_just_registered(world: World) -> bytes:
    user = world.users[0]
    return renews(world, user, user.bundle)


@case("client.unknown")
def renewal_of_a_stranger(world: World) -> bytes:
    user = world.user()
    return renews(world, user, user.bundle)


@case("register.peer")
def renewal_by_another_peer(world: World) -> bytes:
    user, other = world.users[0], world.users[1]
    ticket = replace(Bundle.decode(user.bundle).ticket, peer_id=other.identity.peer)
    return renews(world, user, Bundle.sign(ticket, b"", other.identity.signing).encode())


@case("register.pop")
def renewal_with_a_copied_ticket(world: World) -> bytes:
    user = world.users[0]
    ticket = Bundle.decode(user.bundle).ticket
    stolen = replace(Bundle.sign(ticket, b"", user.identity.signing), signature=bytes(64))
    return renews(world, user, stolen.encode())


@case("register.role")
def registration_of_a_server(world: World) -> bytes:
    user = world.user()
    return registers(world, bundle_of(world, user, role=Role.SERVER), key_of(world, user))


@case("register.deployment")
def registration_for_another_deployment(world: World) -> bytes:
    user = world.user()
    return registers(world, bundle_of(world, user, deployment_id=bytes(32)), key_of(world, user))


@case("register.pop")
def registration_of_a_copied_ticket(world: World) -> bytes:
    user = world.user()
    bundle = replace(Bundle.decode(user.bundle), signature=bytes(64)).encode()
    return registers(world, bundle, key_of(world, user))


@case("dh-zero")
def registration_with_an_identity_of_small_order(world: World) -> bytes:
    user = world.user()
    key = epoch_key(world, user.identity.signing, client_id(SMALL_ORDER))
    return registers(world, bundle_of(world, user, dh_pub=SMALL_ORDER), key)


@case("register.peer")
def registration_of_the_identity_of_another(world: World) -> bytes:
    user, other = world.user(), world.users[0]
    bundle = bundle_of(world, user, dh_pub=other.identity.dh_pub)
    return registers(world, bundle, epoch_key(world, user.identity.signing, other.core.id))


@case("epoch-key.member")
def registration_with_the_key_of_another(world: World) -> bytes:
    user = world.user()
    return registers(world, user.bundle, key_of(world, world.users[0]))


@case("epoch-key.epoch")
def registration_with_a_key_for_this_epoch(world: World) -> bytes:
    user = world.user()
    return registers(world, user.bundle, key_of(world, user, epoch=0))


@case("epoch-key.serial")
def registration_anew_with_an_old_key(world: World) -> bytes:
    user = world.users[0]
    return registers(world, user.bundle, key_of(world, user, serial=1))


@case("register.full", world=lambda: started(clients=4, max_clients=4))
def registration_where_all_is_taken(world: World) -> bytes:
    user = world.user()
    return registers(world, user.bundle, key_of(world, user))


def crowded() -> World:
    """Half of the room is taken, and the first server's share of the rest as well."""
    world = started(clients=6, max_clients=12)
    good(world.register(world.user()))
    good(world.register(world.user()))
    return world


@case("register.full", world=crowded)
def registration_beyond_the_share_of_a_carrier(world: World) -> bytes:
    user = world.user()
    return registers(world, user.bundle, key_of(world, user))


def vouches(world: World, *vouchers: bodies.Voucher) -> bytes:
    return command(world, world.sites[0], bodies.Vouch(vouchers))


@case("client.unknown")
def word_for_nobody(world: World) -> bytes:
    good_one = voucher(world, user_id(world))
    return vouches(world, good_one, replace(good_one, client=bytes(32)))


@case("vouch.registration")
def word_for_an_older_registration(world: World) -> bytes:
    good_one = voucher(world, user_id(world, 1))
    return vouches(world, good_one, voucher(world, user_id(world), registration=bytes(32)))


@case("vouch.expiry")
def word_that_has_ended(world: World) -> bytes:
    return vouches(world, voucher(world, user_id(world), not_after=world.now_ms // 1000))


@case("vouch.expiry")
def word_for_ever(world: World) -> bytes:
    end = world.now_ms // 1000 + MAX_VOUCH_S + 1
    return vouches(world, voucher(world, user_id(world), not_after=end))


@case("vouch.batch")
def word_for_no_one(world: World) -> bytes:
    return vouches(world)


@case("vouch.batch")
def word_twice(world: World) -> bytes:
    return vouches(world, *[voucher(world, user_id(world))] * 2)


@case("client.unknown")
def refusal_of_nobody(world: World) -> bytes:
    return command(world, world.sites[0], bodies.Refuse(bytes(32), "tdx.debug"))


@case("refuse.rule")
def refusal_without_a_reason(world: World) -> bytes:
    return command(world, world.sites[0], bodies.Refuse(user_id(world), ""))


def retires(world: World, registration: bytes, signer: User) -> bytes:
    body = user_id(world) + registration
    signature = world.instance.sign(signer.identity.signing, bodies.RETIRE, 0, body)
    retire = bodies.Retire(user_id(world), registration, signature)
    return command(world, world.sites[0], retire)


@case("retire.registration")
def retirement_of_an_older_registration(world: World) -> bytes:
    return retires(world, bytes(32), world.users[0])


@case("signature")
def retirement_of_another(world: World) -> bytes:
    registration = state_of(world).clients[user_id(world)].registration
    return retires(world, registration, world.users[1])


@case("client.unknown")
def retirement_of_nobody(world: World) -> bytes:
    retire = bodies.Retire(bytes(32), bytes(32), bytes(64))
    return command(world, world.sites[0], retire)
