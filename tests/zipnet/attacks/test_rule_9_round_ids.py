"""Every round id is used once: skipped ones step the ratchet, aborted ones are never re-opened.

And a round that was aborted after its aggregate was in the log counts as read.
"""

from tests.simulator.attacker import client_pads, seal_anything, server_pads, xor
from tests.simulator.world import World
from tests.zipnet.attacks.support import SECRET, about_to_speak, messages, refused
from zipnet.committee import bodies
from zipnet.committee.state import Ending
from zipnet.errors import GuardRefused, Refused
from zipnet.protocol import guards
from zipnet.protocol.aggregate import Aggregate
from zipnet.protocol.envelope import Envelope
from zipnet.protocol.unblind import finalize


def test_a_skipped_round_steps_both_sides() -> None:
    world = World(50).start()
    about_to_speak(world, world.users[0])
    before = {user.id: user.backup() for user in world.users}
    skipped = world.current.header
    # Some have sealed it, some have not: nobody sums it up.
    world.seal_one(world.users[0])
    assert world.time_out().ending is Ending.NO_AGGREGATE
    assert world.users[0].fates[-1][1].value == "unpublished"
    world.open()
    header = world.current.header
    assert header.round == skipped.round + 1
    for user in world.users:
        ours = client_pads(before[user.id], header)
        theirs = {site.id: server_pads(site, header)[user.id] for site in world.sites}
        assert ours == theirs
    world.seal()
    assert all(user.refusal == "" for user in world.users)
    world.submit(world.fold())
    world.settle()
    assert world.records[-1].record.header == header
    # Noise would show in the schedule: the next round's slots come out of it.
    about_to_speak(world, world.users[1], b"still in step :)")
    world.seal()
    world.submit(world.fold())
    world.settle()
    assert b"still in step :)" in messages(world.records[-1])


def test_regression_a_round_reopened_under_its_id_is_a_two_time_pad() -> None:
    """v1: `info` = round only. e1 xor e2 = m1 xor m2."""
    world = World(51).start()
    world.round()
    world.open()
    header, user = world.current.header, world.users[0]
    one, two = world.draw(header.shape.payload_bytes), world.draw(header.shape.payload_bytes)
    first = seal_anything(world, user, one)
    # The round is given up, and opened again under its id: same header hash, same pads.
    again = seal_anything(world, user, two)
    payloads = [Envelope.decode(raw, header.shape).payload for raw in (first, again)]
    assert xor(*payloads) == xor(one, two)

    world.seal()
    signed = [site.core.guard for site in world.sites]
    assert world.time_out().ending is Ending.NO_AGGREGATE
    world.open()
    assert world.current.header.round == header.round + 1
    for site, guard in zip(world.sites, signed, strict=True):
        assert guard.round == header.round
        with refused(GuardRefused, "signed"):
            guards.sign_header_once(site.core.guard, header.round, header.id, site.disk)
    world.seal()
    with refused(Refused, "header.round"):
        world.seal_one(user)
    world.submit(world.fold())
    world.settle()
    reopened = bodies.ProposeHeader()
    assert world.say(world.sites[0], reopened, header.round).rule == "propose.round"
    assert world.reused() == 0


def test_a_round_that_not_all_sign_has_no_pads_and_a_new_id() -> None:
    world = World(52).start()
    world.round()
    world.sites[1].down = True
    world.now_ms += 1_000
    while world.state.current is None:
        world.pass_time(500)
        world.settle()
    unsigned = world.current.header
    outcome = world.time_out()
    assert (outcome.round, outcome.ending) == (unsigned.round, Ending.UNSIGNED)
    assert outcome.missing == (world.sites[1].id,)
    world.sites[1].down = False
    world.deliver(world.sites[1])
    assert world.round().record.header.round > unsigned.round
    assert world.reused() == 0


def test_the_last_revealer_reads_the_message_of_an_aborted_round() -> None:
    """It reveals nothing, the round is aborted, and nobody else has the broadcast."""
    world = World(53).start()
    user = world.users[0]
    about_to_speak(world, user)
    world.seal()
    world.submit(world.fold())
    liar = world.sites[2]
    mine = server_pads(liar, world.current.header)
    while len(world.current.partials) < 2:
        ready = [site for site in world.sites[:2] if site.core.due(world.now_ms)]
        if ready:
            world.append(ready[0].core.due(world.now_ms)[0])
        else:
            world.append(liar.core.due(world.now_ms)[0])  # it commits, but reveals nothing
    current = world.current
    aggregate = Aggregate.decode(current.aggregate, current.header.shape)
    own = xor(*(mine[entry.key.member] for entry in current.sheet.clients))
    assert SECRET in finalize(aggregate.payload, [*current.partials.values(), own])
    liar.down = True
    outcome = world.time_out()
    assert (outcome.ending, outcome.missing) == (Ending.EXPOSED, (liar.id,))
    # Its author hears that, and nothing is sent again by itself: a second time in another round
    # would show the liar the author in the intersection of the two.
    assert [fate.value for _, fate in user.fates] == ["exposed"]
    assert not user.core.speaker.queue
    assert not user.core.speaker.in_flight
    liar.down = False
    world.deliver(liar)
    for _ in range(4):
        assert SECRET not in messages(world.round())
    assert [fate.value for _, fate in user.fates] == ["exposed"]


def test_after_an_abort_nobody_owns_a_slot() -> None:
    world = World(54).start()
    about_to_speak(world, world.users[0])
    world.seal()
    world.time_out()
    world.users[0].core.submit(SECRET)
    world.open()
    assert world.current.header.schedule_hash == bytes(32)
    world.seal()
    world.submit(world.fold())
    world.settle()
    assert not any(world.records[-1].record.messages)
