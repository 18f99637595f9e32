"""A server between log and protocol: what it says when, and when it must be silent."""

import pytest

from tests.simulator.hosts import restart
from tests.simulator.nodes import Site
from tests.simulator.world import World
from tests.zipnet.attacks.support import refused
from zipnet.committee import bodies
from zipnet.committee.commands import Command
from zipnet.committee.machine import Machine
from zipnet.committee.state import Phase, Status
from zipnet.committee.views import MAX_OFFSET_MS
from zipnet.errors import GuardRefused, LogBroken
from zipnet.protocol.guards import ServerGuard
from zipnet.roles.server_core import ServerCore


def said(raw: bytes) -> type:
    return type(Command.decode(raw).body)


def due(world: World, site: Site) -> list[type]:
    return [said(raw) for raw in site.core.due(world.clock(site))]


def at(world: World, phase: Phase) -> World:
    """A round, brought to this phase by everybody's commands; another one came before."""
    if not world.records:
        world.round()
    world.settle()
    world.now_ms += world.config.window.round_period_ms
    while world.state.current is None:
        assert world.step()
    if phase is Phase.PROPOSED:
        return world
    world.open()
    if phase is Phase.LIVE:
        return world
    world.seal()
    assert not world.submit(world.fold()).rule
    while world.current.phase is not phase:
        assert world.step()
    return world


def status(world: World, site: Site) -> Status:
    server = world.state.server(site.id)
    assert server is not None
    return server.status


def test_a_stranger_has_nothing_to_say() -> None:
    world = World(1)
    assert world.sites[0].core.must_join
    assert world.sites[0].core.due(world.now_ms) == []
    world.join(world.sites[0])
    assert not world.sites[0].core.must_join
    assert world.sites[1].core.due(world.now_ms) == []


@pytest.mark.parametrize(
    ("phase", "body"),
    [
        (Phase.PROPOSED, bodies.SignHeader),
        (Phase.COMMITTING, bodies.CommitPartial),
        (Phase.REVEALING, bodies.RevealPartial),
        (Phase.SIGNING, bodies.SignRecord),
    ],
)
def test_the_same_bytes_until_the_outcome_is_known(phase: Phase, body: type) -> None:
    world = at(World(2).start(), phase)
    site = world.sites[0]
    first = site.core.due(world.now_ms)
    assert [said(raw) for raw in first] == [body]
    world.now_ms += 200
    world.say(world.sites[1], bodies.Tick())
    assert site.core.due(world.now_ms) == first
    assert not world.append(first[0]).rule
    assert first[0] not in site.core.due(world.now_ms)


@pytest.mark.parametrize(
    ("phase", "body"),
    [
        (Phase.PROPOSED, bodies.SignHeader),
        (Phase.COMMITTING, bodies.CommitPartial),
        (Phase.REVEALING, bodies.RevealPartial),
        (Phase.SIGNING, bodies.SignRecord),
    ],
)
def test_a_refused_command_is_made_anew_and_says_the_same(phase: Phase, body: type) -> None:
    world = at(World(3).start(), phase)
    site = world.sites[0]
    (first,) = site.core.due(world.now_ms)
    refuse(world, first)
    (second,) = site.core.due(world.now_ms)
    assert second != first
    one, two = Command.decode(first), Command.decode(second)
    assert isinstance(two.body, body)
    assert one.body == two.body
    assert not world.append(second).rule
    if phase is Phase.PROPOSED:
        world.open()
        world.seal()
        world.submit(world.fold())
    world.settle()
    assert len(world.records) == 2
    assert world.reused() == 0


def refuse(world: World, raw: bytes) -> None:
    """Have the log refuse a good command, as it would one that is tied too far back."""
    machines = [site.core.machine for site in world.sites]
    rings = [list(machine.state.ring) for machine in machines]
    for machine in machines:
        zeros = [(digest, bytes(32)) for digest, _ in machine.state.ring]
        machine.state.ring.clear()
        machine.state.ring.extend(zeros)
    assert world.append(raw).rule == "command.position"
    for machine, ring in zip(machines, rings, strict=True):
        last = machine.state.ring[-1]
        machine.state.ring.clear()
        machine.state.ring.extend([*ring, last])


def test_a_proposal_at_its_turn_and_others_later() -> None:
    world = World(4).start()
    world.round()
    world.settle()
    assert [due(world, site) for site in world.sites] == [[], [], []]
    world.now_ms += world.config.window.round_period_ms
    first = [site for site in world.sites if bodies.ProposeHeader in due(world, site)]
    assert len(first) == 1
    world.now_ms += world.config.window.round_period_ms // 2
    later = [site for site in world.sites if bodies.ProposeHeader in due(world, site)]
    assert len(later) == 2
    assert first[0] in later


def test_a_server_that_is_ahead_ticks_first() -> None:
    world = World(5).start()
    world.round()
    site = world.sites[0]
    site.skew_ms = 40_000
    (raw,) = site.core.due(world.clock(site))
    assert said(raw) is bodies.Tick
    assert site.core.due(world.clock(site) + 1) == [raw]
    world.append(raw)
    assert due(world, site) == []


def test_a_server_with_a_wrong_clock_signs_no_header() -> None:
    world = at(World(6).start(), Phase.PROPOSED)
    site = world.sites[0]
    assert due(world, site) == [bodies.SignHeader]
    assert site.core.due(world.now_ms - MAX_OFFSET_MS - 1) == []


def test_servers_that_have_not_proved_themselves() -> None:
    """Where tickets are asked for, no header is signed with a server whose ticket is unknown."""
    world = at(World(7).start(), Phase.PROPOSED)
    site = world.sites[0]
    site.core.trusted = {world.sites[1].id: {1}, world.sites[2].id: {2}}
    assert due(world, site) == []
    site.core.trusted = {one.id: {1} for one in world.sites[1:]}
    assert due(world, site) == [bodies.SignHeader]
    site.core.trusted = None
    assert due(world, site) == [bodies.SignHeader]


def test_a_silent_round_is_given_up() -> None:
    world = at(World(8).start(), Phase.LIVE)
    site = world.sites[0]
    assert due(world, site) == []
    world.pass_time(world.config.window.round_deadline_ms + 1)
    assert due(world, site) == [bodies.TimeoutRound]


def test_checkpoints_are_signed_by_all() -> None:
    world = World(9).start()
    while not world.checkpoint:
        world.round()
    assert world.state.checkpoint is not None
    assert world.state.checkpoint.complete
    assert world.checkpoint.seq == world.state.checkpoint.seq
    Machine.restore(world.rules, world.checkpoint.snapshot)


def test_pads_are_made_in_steps() -> None:
    world = World(10, clients=5).start()
    site = world.sites[0]
    assert not site.core.work(1)
    at(world, Phase.LIVE)
    steps = 0
    while site.core.work(2):
        steps += 1
    assert steps == 2
    world.seal()
    world.submit(world.fold())
    world.settle()
    assert len(world.records) == 2
    assert world.reused() == 0


def test_an_entry_out_of_order_stops_it() -> None:
    world = World(11).start()
    with refused(LogBroken, "log.gap"):
        world.sites[0].core.apply(len(world.log) + 5, world.log[0])


def test_a_guard_of_another_instance() -> None:
    world = World(12)
    site = world.sites[0]
    guard = ServerGuard(bytes(32))
    with refused(GuardRefused, "binding"):
        ServerCore(
            Machine.genesis(world.rules, world.instance),
            site.identity,
            store=site.disk,
            xor=site.ledger.xor,
            draw=world.draw,
            guard=guard,
        )


# Restarts


def test_a_restart_with_sealed_pairs_resumes_first() -> None:
    world = at(World(20).start(), Phase.COMMITTING)
    site = world.sites[0]
    restart(world, site, site.backup())
    (raw,) = site.core.due(world.now_ms)
    assert said(raw) is bodies.ResumeNode
    assert site.core.due(world.now_ms + 100) == [raw]
    world.append(raw)
    assert said(raw) not in due(world, site)
    world.settle()
    assert world.time_out().missing == (site.id,)
    world.round()
    assert world.reused() == 0


def test_a_restart_in_the_middle_of_its_answer_reads_the_whole_log() -> None:
    """Its pairs are past the round that the log opens again before its eyes."""
    world = at(World(21).start(), Phase.COMMITTING)
    site = world.sites[0]
    world.append(site.core.due(world.now_ms)[0])
    backup = site.backup()
    assert backup.guard is not None
    answered = ServerGuard.decode(backup.guard).answer.round
    assert {pair.round for pair in backup.open()} == {answered + 1}
    restart(world, site, backup)
    assert site.core.machine.snapshot() == world.sites[1].core.machine.snapshot()
    world.settle()
    world.time_out()
    world.round()
    assert world.reused() == 0


def test_a_refused_resume_is_made_anew() -> None:
    world = World(22).start()
    world.round()
    site = world.sites[0]
    restart(world, site, site.backup())
    (first,) = site.core.due(world.now_ms)
    refuse(world, first)
    (second,) = site.core.due(world.now_ms)
    assert Command.decode(first).body != Command.decode(second).body
    assert not world.append(second).rule
    world.settle()
    assert not site.core.fenced
    world.round()
    assert world.reused() == 0
