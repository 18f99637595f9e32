"""Defects of the reference code that concern whole deployments: see `test_regression_table`."""

from tests.simulator.attacker import client_pads
from tests.simulator.world import World
from tests.zipnet.attacks.support import SECRET, about_to_speak, messages, needing, refused
from zipnet.committee import bodies
from zipnet.committee.clients import eligible
from zipnet.errors import Refused
from zipnet.protocol.pads import Pair
from zipnet.protocol.slots import Kind, read_slots


def test_regression_no_client_is_in_without_the_word_of_every_server() -> None:
    """A verification that is stubbed on one server opens no door: the others have to agree."""
    world = World(90, clients=3).start()
    world.round()
    user = world.user()
    world.users.append(user)
    world.register(user)
    for count in range(3):
        world.vouch(user, world.sites[:count])
        inside = eligible(world.state, world.state.active(), next_epoch=True)
        assert user.id not in {client.id for client in inside}
    world.vouch(user, world.sites[2:])
    inside = eligible(world.state, world.state.active(), next_epoch=True)
    assert user.id in {client.id for client in inside}


def test_regression_a_word_is_for_one_registration() -> None:
    """Who registers anew, with another ticket, is unvouched again."""
    world = World(91).start()
    user = world.users[0]
    old = world.state.clients[user.id].registration
    world.now_ms += 1
    user.bundle = world.bundle(user.identity)
    world.register(user)
    voucher = bodies.Voucher(user.id, old, world.now_ms // 1000 + 60, bytes(32))
    assert world.say(world.sites[0], bodies.Vouch((voucher,))).rule == "vouch.registration"
    assert world.state.clients[user.id].vouchers == {}


def test_regression_the_ratchet_knows_its_round() -> None:
    """State and pads are bound to the round: what is restored can't be taken for another's."""
    world = World(92).start()
    about_to_speak(world, world.users[0])
    user = world.users[0]
    header = world.current.header
    backup = user.backup()
    for pair in backup.open():
        assert Pair.restore(pair.export()).round == pair.round <= header.round
        with refused(Refused, "ratchet.behind"):
            pair.check_round(header.round + 1)
    world.seal_one(user)
    for pair in user.backup().open():
        assert pair.round == header.round + 1
        with refused(Refused, "ratchet.backward"):
            pair.keys(header)
    assert len({len(pad) for pad in client_pads(backup, header).values()}) == 1


def test_regression_one_crashed_server_does_not_halt_the_others_for_good() -> None:
    """Which rule of liveness holds is explicit: `min_servers`, and what clients waive."""
    world = World(93, clients=0, config=needing(2))
    gone = world.sites[1].operator.public_key().public_bytes_raw()
    world.users = [world.user(frozenset({gone})) for _ in range(3)]
    world.start()
    world.round()
    world.sites[1].down = True
    world.now_ms += 1_000
    while world.state.current is None:
        world.pass_time(500)
        world.settle()
    world.time_out()
    about_to_speak(world, world.users[0])
    world.seal()
    world.submit(world.fold())
    world.settle()
    assert SECRET in messages(world.records[-1])
    assert len(world.records[-1].record.header.servers) == 2


def test_regression_cover_looks_like_talk() -> None:
    """Every envelope has one size, and an owned slot is never left empty."""
    world = World(94, clients=6).start()
    for number in range(8):
        world.users[0].core.submit(bytes([number]) * 16)
        world.open()
        owners = [user for user in world.users if user.core.speaker.reservation is not None]
        world.seal()
        assert len({len(raw) for raw in world.envelopes.values()}) == 1
        assert len(world.envelopes) == 6
        world.submit(world.fold())
        world.settle()
        record = world.records[-1].record
        full = [slot for slot in read_slots(record.payload, record.header)
                if slot.kind is not Kind.EMPTY]  # fmt: skip
        assert len(full) <= len(owners)
        assert not [slot for slot in full if slot.kind is Kind.GARBLED]
    kinds = {slot.kind for slot in full}
    assert Kind.DUMMY in kinds
