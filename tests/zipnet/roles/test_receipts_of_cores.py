"""Receipts from a leaf to its clients: one for each, and about what that client itself has sent."""

from dataclasses import replace

from tests.simulator.attacker import authentic
from tests.simulator.nodes import User
from tests.simulator.world import World
from tests.zipnet.attacks.support import SECRET, refused
from zipnet.errors import Refused
from zipnet.protocol.header import NO_HASH
from zipnet.protocol.receipts import Receipt, Status, join


def ready() -> World:
    world = World(40, clients=5).start()
    world.round()
    world.open()
    world.seal()
    world.begin_folds()
    return world


def told(world: World, user: User) -> Receipt | None:
    receipts = world.folds[0].receipts()
    assert receipts is not None
    blob = join(receipts.seal(place, world.draw) for place in range(len(receipts.due)))
    number, leaf = world.current.header.round, world.tree.nodes[0]
    return user.core.receipt(blob, number, leaf, len(receipts.due))


def test_every_client_hears_of_its_own_envelope() -> None:
    world = ready()
    leaf, header = world.folds[0], world.current.header
    taken, twice, silent, late, other = world.users
    leaf.absorb(world.envelopes[taken.id])
    leaf.absorb(world.envelopes[twice.id])
    again = authentic(world, twice, header, bytes(header.shape.payload_bytes), b"t" * 16)
    with refused(Refused, "envelope.double-seal"):
        leaf.absorb(again)
    elsewhere = authentic(
        world, other, replace(header, time_ms=1), bytes(header.shape.payload_bytes)
    )
    with refused(Refused, "envelope.header"):
        leaf.absorb(elsewhere)
    leaf.close()
    with refused(Refused, "envelope.late"):
        leaf.absorb(world.envelopes[late.id])
    found = [told(world, user) for user in (taken, twice, silent, late, other)]
    assert found == [
        Receipt(Status.TAKEN),
        Receipt(Status.TAKEN),
        Receipt(Status.ABSENT),
        Receipt(Status.LATE),
        Receipt(Status.REFUSED, "envelope.header"),
    ]
    # Who is in no roster of the leaf finds nothing.
    assert told(world, world.user()) is None


def test_nobody_writes_into_the_receipt_of_another() -> None:
    world = ready()
    leaf, header, victim = world.folds[0], world.current.header, world.users[0]
    forged = bytearray(
        authentic(world, victim, replace(header, time_ms=1), bytes(header.shape.payload_bytes))
    )
    forged[-100] ^= 1
    with refused(Refused, "envelope.header"):
        leaf.absorb(bytes(forged))
    flipped = bytearray(world.envelopes[victim.id])
    flipped[-100] ^= 1
    with refused(Refused, "envelope.mac"):
        leaf.absorb(bytes(flipped))
    assert told(world, victim) == Receipt(Status.ABSENT)
    leaf.absorb(world.envelopes[victim.id])
    assert told(world, victim) == Receipt(Status.TAKEN)


def test_lost_envelopes_may_be_anybodys() -> None:
    world = ready()
    leaf = world.folds[0]
    leaf.absorb(world.envelopes[world.users[0].id])
    leaf.lose()
    assert told(world, world.users[0]) == Receipt(Status.TAKEN)
    assert told(world, world.users[1]) == Receipt(Status.LATE)
    # What is lost between two rounds counts for the next one.
    leaf.close()
    leaf.lose()
    world.begin_folds()
    assert told(world, world.users[1]) == Receipt(Status.LATE)
    world.begin_folds()
    assert told(world, world.users[1]) == Receipt(Status.ABSENT)


def test_a_node_that_is_no_leaf_has_no_receipts() -> None:
    world = World(41, tree=(0, 0)).start()
    assert world.folds[0].receipts() is None
    world.open()
    world.begin_folds()
    assert world.folds[0].receipts() is None
    assert world.folds[1].receipts() is not None


def test_a_message_that_still_waits_can_be_withdrawn() -> None:
    world = World(42).start()
    core = world.users[0].core
    number = core.submit(SECRET)
    assert core.withdraw(number)
    assert not core.withdraw(number)
    assert core.submit(SECRET) != number
    assert NO_HASH not in {one.datum for one in core.speaker.queue}
