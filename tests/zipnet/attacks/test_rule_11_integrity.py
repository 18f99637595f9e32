"""Pads carry no integrity: whoever adds something to a sum changes it, and only tags show it."""

import pytest

from tests.simulator.attacker import (
    aggregate_of,
    roster_ids,
    seal_anything,
    sign_sum,
    xor,
)
from tests.simulator.world import World
from tests.zipnet.attacks.support import SECRET, about_to_speak, kinds, messages
from zipnet.protocol.aggregate import Aggregate
from zipnet.protocol.slots import Kind


@pytest.mark.parametrize("bit", [0, 3, 100, 127, 128, 200])
def test_a_flipped_bit_shows_in_the_tag_only(bit: int) -> None:
    world = World(60).start()
    about_to_speak(world, world.users[0])
    world.seal()
    header, shape = world.current.header, world.current.header.shape
    honest = Aggregate.decode(aggregate_of(world, roster_ids(world)), shape)
    slot = world.users[0].core.speaker.in_flight[-1].slot
    mask = bytearray(shape.payload_bytes)
    mask[slot * shape.slot_bytes + bit // 8] = 1 << bit % 8
    tampered = sign_sum(world, honest.participants, xor(honest.payload, bytes(mask)))
    # Nothing before the slots are read can tell: the round is final with all signatures.
    assert not world.submit(tampered.encode()).rule
    world.settle()
    record = world.records[-1]
    assert record.record.header == header
    at = slot * shape.slot_bytes
    read = record.record.messages[at : at + shape.datum_bytes]
    # Without the tag the altered message would be the message.
    assert (read == SECRET) == (bit >= 8 * shape.datum_bytes)
    assert xor(read, SECRET) == bytes(mask)[at : at + shape.datum_bytes]
    # With it the slot is garbled, and the author knows that it did not land.
    assert kinds(record)[slot] is Kind.GARBLED
    assert SECRET not in messages(record)
    assert [fate.value for _, fate in world.users[0].fates] == ["collided"]


def test_a_client_that_jams() -> None:
    """It writes garbage over others' slots. That is visible; who did it is not (no blame yet)."""
    world = World(61).start()
    about_to_speak(world, world.users[0])
    jammer = world.users[3]
    shape = world.current.header.shape
    garbage = world.draw(shape.message_bytes) + bytes(shape.schedule_bytes)
    bad = seal_anything(world, jammer, garbage, world.draw(16))
    world.seal()
    world.envelopes[jammer.id] = bad
    # The leaf can't see it: the payload is as random as all others, MAC and signature are right.
    world.submit(world.fold())
    world.settle()
    record = world.records[-1]
    assert set(kinds(record)) == {Kind.GARBLED}
    assert [fate.value for _, fate in world.users[0].fates] == ["collided"]
    # The round before and the one after are not touched, and no pad was used twice for it.
    jammer.gone = True
    about_to_speak(world, world.users[1], b"as if nothing...")
    world.seal()
    world.submit(world.fold())
    world.settle()
    assert b"as if nothing..." in messages(world.records[-1])


def test_a_jammed_schedule_gives_away_no_slot_twice() -> None:
    """Garbage in the scheduling vector costs slots; nobody takes another's for its own."""
    world = World(62).start()
    for user in world.users[:3]:
        user.core.submit(SECRET)
    jammer = world.users[3]
    world.round()
    for _ in range(6):
        world.open()
        shape = world.current.header.shape
        noise = bytes(shape.message_bytes) + world.draw(shape.schedule_bytes)
        bad = seal_anything(world, jammer, noise, world.draw(16))
        world.seal()
        world.envelopes[jammer.id] = bad
        world.submit(world.fold())
        world.settle()
        assert Kind.GARBLED not in kinds(world.records[-1])


def test_a_message_moved_to_another_slot_or_round_is_garbled() -> None:
    """The tag is bound to both, so a message can't be replayed by shifting sums."""
    world = World(63).start()
    about_to_speak(world, world.users[0])
    world.seal()
    shape = world.current.header.shape
    slot = world.users[0].core.speaker.in_flight[-1].slot
    content = world.users[0].core.speaker.in_flight[-1].content
    other = (slot + 1) % shape.num_slots
    mask = bytearray(shape.payload_bytes)
    for at in (slot, other):
        mask[at * shape.slot_bytes : (at + 1) * shape.slot_bytes] = content
    honest = Aggregate.decode(aggregate_of(world, roster_ids(world)), shape)
    moved = sign_sum(world, honest.participants, xor(honest.payload, bytes(mask)))
    world.submit(moved.encode())
    world.settle()
    record = world.records[-1]
    assert kinds(record)[slot] is Kind.EMPTY
    assert kinds(record)[other] is Kind.GARBLED
    assert messages(record) == []
