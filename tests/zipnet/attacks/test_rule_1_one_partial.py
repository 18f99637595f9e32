"""A server answers one aggregate a round: two partials, for P and P without x, give x's pad away.

And it answers before it has seen the others' partials.
"""

from dataclasses import dataclass, replace

import pytest

from tests.simulator.attacker import (
    aggregate_of,
    equivocations,
    partial,
    roster_ids,
    server_pads,
    sign_sum,
    without,
    xor,
)
from tests.simulator.nodes import Backup, Site
from tests.simulator.world import World
from tests.zipnet.attacks.support import SECRET, about_to_speak, kinds, messages, refused
from zipnet.committee import bodies
from zipnet.committee.commands import Command
from zipnet.committee.machine import Machine
from zipnet.committee.state import Ending, Phase
from zipnet.errors import GuardRefused
from zipnet.protocol import guards
from zipnet.protocol.aggregate import Aggregate
from zipnet.protocol.envelope import Envelope
from zipnet.protocol.guards import Answer, ServerGuard
from zipnet.protocol.unblind import commitment, finalize
from zipnet.roles.server_core import ServerCore


@dataclass
class Scene:
    """A round in which the first client speaks, sealed and not yet summed up in the log."""

    world: World
    victim: bytes
    envelope: Envelope
    honest: Site
    colluders: list[Site]
    pads: dict[bytes, dict[bytes, bytes]]
    backup: Backup
    everyone: list[bytes]
    whole: bytes  # the aggregate of all
    fewer: bytes  # the aggregate of all but the victim


@pytest.fixture
def scene() -> Scene:
    world = World(1, servers=3, clients=4).start()
    about_to_speak(world, world.users[0])
    world.seal()
    victim, everyone = world.users[0].id, roster_ids(world)
    resumes = world.current.sheet.resumes
    return Scene(
        world,
        victim,
        Envelope.decode(world.envelopes[victim], world.current.header.shape),
        world.sites[0],
        world.sites[1:],
        {site.id: server_pads(site, world.current.header, resumes) for site in world.sites},
        world.sites[0].backup(),
        everyone,
        aggregate_of(world, everyone),
        aggregate_of(world, [client for client in everyone if client != victim]),
    )


def unmasked(scene: Scene, difference: bytes) -> bytes:
    """The victim's content, by its envelope, the colluders' own pads and the honest one's."""
    own = (scene.pads[site.id][scene.victim] for site in scene.colluders)
    return xor(scene.envelope.payload, difference, *own)


def test_two_partials_uncover_a_client(scene: Scene) -> None:
    shape = scene.world.current.header.shape
    pads = scene.pads[scene.honest.id]
    others = [client for client in scene.everyone if client != scene.victim]
    first, second = partial(pads, scene.everyone, shape), partial(pads, others, shape)
    assert SECRET in unmasked(scene, xor(first, second))
    # One partial alone uncovers nobody.
    assert SECRET not in unmasked(scene, first)
    assert SECRET not in unmasked(scene, second)


def forked(scene: Scene, prefix: list[bytes], core: ServerCore) -> list[bytes]:
    """A log that goes on from `prefix` with the smaller aggregate, and the colluders' lies.

    Returns what the honest server, who is shown it, wants to append at each step.
    """
    machine = Machine.genesis(scene.world.rules, scene.world.instance)
    for seq, raw in enumerate(prefix, 1):
        machine.apply(seq, raw)
        core.apply(seq, raw)
    number, now = machine.state.next_round - 1, scene.world.now_ms
    lies: list[tuple[Site, bodies.Body]] = [
        (scene.colluders[0], bodies.SubmitAggregate(scene.fewer)),
        (scene.colluders[0], bodies.CommitPartial(bytes([1]) * 32)),
        (scene.colluders[1], bodies.CommitPartial(bytes([2]) * 32)),
    ]
    said: list[bytes] = []

    def append(raw: bytes) -> None:
        applied = machine.apply(machine.state.seq + 1, raw)
        assert not applied.rule, applied
        core.apply(machine.state.seq, raw)

    for site, body in lies:
        state = machine.state
        append(
            Command.make(
                site.identity.signing,
                state.instance,
                body,
                round_number=number,
                seq=state.seq,
                head=state.head,
                clock_ms=now,
            )
        )
        for raw in core.due(now):
            said.append(raw)
            if isinstance(Command.decode(raw).body, bodies.CommitPartial):
                append(raw)
    return said + core.due(now)


def boot(
    scene: Scene, backup: Backup, *, restarted: bool, guard: bytes | None = None
) -> ServerCore:
    world, site = scene.world, scene.honest
    record = guard if guard is not None else backup.guard
    assert record is not None
    return world.server_core(
        Machine.genesis(world.rules, world.instance),
        site.identity,
        site.disk,
        site.ledger,
        boot=7,
        guard=ServerGuard.decode(record),
        keyring=backup.ring(site.id),
        restarted=restarted,
    )


def revealed(said: list[bytes]) -> bytes | None:
    """The last partial of these commands."""
    found = [Command.decode(raw).body for raw in reversed(said)]
    return next((one.partial for one in found if isinstance(one, bodies.RevealPartial)), None)


def test_a_server_on_a_forked_log_answers_one_aggregate(scene: Scene) -> None:
    """The host shows the server two logs, one after the other, and rolls its disk back between."""
    world, site = scene.world, scene.honest
    prefix = list(world.log)
    assert not world.submit(scene.whole).rule
    world.settle()
    answer = revealed([raw for raw in world.log if author(raw) == site.identity.peer])
    assert answer is not None
    latest = site.disk.records[-1]

    # Without a guard on disk, and without a Resume, the old copy answers the other log as well.
    again = revealed(forked(scene, prefix, boot(scene, scene.backup, restarted=False)))
    assert again is not None
    assert SECRET in unmasked(scene, xor(answer, again))
    assert world.reused() > 0

    # With the guard that was written before the first answer left, it does not.
    with refused(GuardRefused, "answered"):
        forked(scene, prefix, boot(scene, scene.backup, restarted=False, guard=latest))
    # And a node that comes back from sealed state says nothing before its Resume is in the log.
    said = forked(scene, prefix, boot(scene, scene.backup, restarted=True))
    assert {type(Command.decode(raw).body) for raw in said} == {bodies.ResumeNode}


def author(raw: bytes) -> bytes:
    return Command.decode(raw).author


def test_the_log_takes_one_aggregate_a_round(scene: Scene) -> None:
    world = scene.world
    assert not world.submit(scene.whole).rule
    assert world.submit(scene.fewer).rule == "aggregate.phase"
    world.settle()
    assert SECRET in messages(world.records[-1])
    assert not equivocations(world.log)


def test_a_server_that_says_two_partials_is_not_heard_twice(scene: Scene) -> None:
    world = scene.world
    liar = scene.colluders[0]
    world.submit(scene.whole)
    # It is the last to commit and to reveal, so that the phase is not over after its first word.
    for phase, first, second in (
        (Phase.COMMITTING, "commit.twice", bodies.CommitPartial(bytes(32))),
        (Phase.REVEALING, "reveal.twice", bodies.RevealPartial(scene.fewer)),
    ):
        assert world.current.phase is phase
        (raw,) = liar.core.due(world.now_ms)
        assert not world.append(raw).rule
        assert world.say_here(liar, second).rule == first
        for site in world.sites:
            if site is not liar:
                world.append(site.core.due(world.now_ms)[0])


def test_a_header_signature_is_not_given_twice(scene: Scene) -> None:
    world, site = scene.world, scene.honest
    world.submit(scene.whole)
    world.settle()
    world.now_ms += 1_000
    while world.state.current is None:
        world.step()
    (raw,) = site.core.due(world.now_ms)
    assert not world.append(raw).rule
    header = world.current.header
    other = replace(header, time_ms=header.time_ms + 1)
    with refused(GuardRefused, "signed"):
        guards.sign_header_once(site.core.guard, other.round, other.id, site.disk)
    signature = other.sign(site.identity.signing)
    assert world.say_here(site, bodies.SignHeader(other.id, signature)).rule == "sign-header.id"
    signature = header.sign(site.identity.signing)
    again = bodies.SignHeader(header.id, signature)
    assert world.say_here(site, again).rule in {"sign-header.twice", "sign-header.phase"}


def test_the_guard_answers_no_other_participants(scene: Scene) -> None:
    world, site = scene.world, scene.honest
    world.submit(scene.whole)
    world.settle()
    guard = site.core.guard
    assert guard == ServerGuard.decode(site.disk.records[-1])
    same, _ = guards.answer_once(guard, guard.answer, site.disk)
    assert same == guard
    for other in (
        replace(guard.answer, aggregate=bytes(32)),
        replace(guard.answer, participants=bytes(32)),
        replace(guard.answer, commitment=bytes(32)),
    ):
        with refused(GuardRefused, "answered"):
            guards.answer_once(guard, other, site.disk)
    with refused(GuardRefused, "answer.header"):
        other = Answer(guard.round + 1, bytes(32), bytes(32), bytes(32), bytes(32))
        guards.answer_once(guard, other, site.disk)


def test_who_reveals_last_can_not_choose_the_broadcast(scene: Scene) -> None:
    world, liar = scene.world, scene.colluders[0]
    shape = world.current.header.shape
    aggregate = Aggregate.decode(scene.whole, shape)
    honest = [
        partial(scene.pads[site.id], scene.everyone, shape)
        for site in world.sites
        if site is not liar
    ]
    # Without commitments the last one sees the rest, and may then force any broadcast.
    wanted = b"\xaa" * shape.payload_bytes
    forced = xor(wanted, aggregate.payload, *honest)
    assert finalize(aggregate.payload, [*honest, forced]) == wanted

    world.submit(scene.whole)
    while world.current.phase is Phase.COMMITTING:
        assert not world.current.partials
        world.step()
    for site in world.sites:
        if site is not liar:
            world.append(site.core.due(world.now_ms)[0])
    assert len(world.current.partials) == 2
    assert world.say_here(liar, bodies.RevealPartial(forced)).rule == "reveal.commitment"
    assert world.say_here(liar, bodies.RevealPartial(forced[:-1])).rule == "reveal.size"
    with refused(GuardRefused, "revealed"):
        guards.reveal(liar.core.guard, world.instance, liar.id, forced)
    world.settle()
    assert SECRET in messages(world.records[-1])


def test_a_commitment_can_not_be_copied(scene: Scene) -> None:
    """Who repeats another's commitment could repeat its partial, and so cancel it."""
    world, liar = scene.world, scene.colluders[0]
    world.submit(scene.whole)
    world.append(scene.honest.core.due(world.now_ms)[0])
    made = world.current.commitments[scene.honest.id]
    assert world.say_here(liar, bodies.CommitPartial(made)).rule == "commit.copied"
    number = world.current.header.round
    digest = Aggregate.decode(scene.whole, world.current.header.shape).digest
    mine = commitment(world.instance, number, digest, liar.id, scene.fewer)
    assert mine != commitment(world.instance, number, digest, scene.honest.id, scene.fewer)


def test_a_wrong_partial_spoils_the_round_and_tells_nothing(scene: Scene) -> None:
    world, liar = scene.world, scene.colluders[0]
    world.submit(scene.whole)
    header = world.current.header
    noise = world.draw(header.shape.payload_bytes)
    digest = Aggregate.decode(scene.whole, header.shape).digest
    made = commitment(world.instance, header.round, digest, liar.id, noise)
    world.say_here(liar, bodies.CommitPartial(made))
    for site in world.sites:
        if site is not liar:
            world.append(site.core.due(world.now_ms)[0])
    world.say_here(liar, bodies.RevealPartial(noise))
    world.settle()
    assert world.records[-1].record.header == header
    assert not messages(world.records[-1])
    assert {kind.value for kind in kinds(world.records[-1])} == {"garbled"}
    assert world.told[scene.victim][-1][1] == "collided"


def test_an_aggregate_for_others_than_it_names_stays_noise(scene: Scene) -> None:
    """Participants are signed with the sum: said on the side they would choose the pads."""
    world = scene.world
    whole = Aggregate.decode(scene.whole, world.current.header.shape)
    bits = without(scene.whole, scene.victim, world)
    swapped = replace(whole, participants=bits)
    assert world.submit(swapped.encode()).rule == "signature"
    assert not world.submit(sign_sum(world, bits, whole.payload).encode()).rule
    world.settle()
    assert world.outcomes == []
    assert not messages(world.records[-1])


def test_silence_after_the_aggregate_is_named(scene: Scene) -> None:
    world, liar = scene.world, scene.colluders[0]
    world.submit(scene.whole)
    liar.down = True
    world.settle()
    world.pass_time(world.config.window.round_deadline_ms + 1)
    world.settle()
    assert (world.outcomes[-1].ending, world.outcomes[-1].missing) == (Ending.EXPOSED, (liar.id,))
    server = world.state.server(liar.id)
    assert server is not None
    assert server.status.name == "SUSPENDED"
