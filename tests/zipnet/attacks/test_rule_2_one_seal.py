"""A client seals a round once, whatever header it is shown; the server signs one header for it."""

from dataclasses import replace

import pytest

from tests.simulator.attacker import (
    authentic,
    client_pads,
    read,
    seal_anything,
    server_pads,
    sign_all,
    xor,
)
from tests.simulator.nodes import Disk, User
from tests.simulator.world import World
from tests.zipnet.attacks.support import SECRET, about_to_speak, messages, no_check, refused
from zipnet.committee import bodies
from zipnet.errors import GuardRefused, Refused
from zipnet.protocol import guards
from zipnet.protocol.envelope import Envelope, audit
from zipnet.protocol.header import Header
from zipnet.protocol.roster import Roster
from zipnet.protocol.sheet import Sheet
from zipnet.roles import client_core


def two_headers(world: World, keep: set[bytes]) -> tuple[Header, Sheet]:
    """A second header of the round in flight, with fewer clients in its roster."""
    current = world.current
    sheet = replace(
        current.sheet, clients=tuple(c for c in current.sheet.clients if c.key.member in keep)
    )
    servers = [entry.member for entry in sheet.servers]
    roster = Roster.of([entry.member for entry in sheet.clients], servers)
    return replace(current.header, roster_hash=roster.hash()), sheet


def test_two_seals_under_one_pad_uncover_both() -> None:
    world = World(2).start()
    world.round()
    world.open()
    user, shape = world.users[0], world.current.header.shape
    one, two = (SECRET * shape.payload_bytes)[: shape.payload_bytes], bytes(shape.payload_bytes)
    first, second = seal_anything(world, user, one), seal_anything(world, user, two)
    payloads = [Envelope.decode(raw, shape).payload for raw in (first, second)]
    # No key at all: the pads cancel.
    assert xor(*payloads) == xor(one, two)

    # A leaf takes the first, and names the second for what it is.
    world.begin_folds()
    leaf = world.folds[0]
    leaf.absorb(first)
    leaf.absorb(first)
    with refused(Refused, "envelope.double-seal"):
        leaf.absorb(second)
    # Both are signed: whoever has them can show that this client did it.
    for raw in (first, second):
        audit(Envelope.decode(raw, shape), user.identity.peer)


def test_the_core_seals_a_round_once() -> None:
    world = World(2).start()
    about_to_speak(world, world.users[0])
    user = world.users[0]
    backup = user.backup()
    assert world.seal_one(user) is not None
    with refused(Refused, "header.round"):
        world.seal_one(user)
    # Each layer below refuses by itself.
    number, header_id = world.current.header.round, world.current.header.id
    guard = user.core._guard
    with refused(GuardRefused, "sealed"):
        guards.seal_once(guard, number, header_id, b"another envelope", user.disk)
    for pair in user.backup().open():
        with refused(Refused, "ratchet.backward"):
            pair.keys(world.current.header)
    # What is on disk is what was in the guard before the bytes left, and not what was before.
    assert user.disk.records[-1] == guard.encode()
    assert backup.guard != guard.encode()


def test_a_crash_between_guard_and_send_sends_nothing() -> None:
    class Full(Disk):
        def write(self, record: bytes) -> None:  # noqa: ARG002
            raise OSError("no space left")

    world = World(2).start()
    about_to_speak(world, world.users[0])
    user = world.users[0]
    user.core._store = Full()
    with pytest.raises(OSError, match="no space"):
        world.seal_one(user)
    user.core._store = user.disk
    # Its pads are gone all the same: the next round is the next that it seals.
    with refused(GuardRefused, "turn.round"):
        world.seal_one(user)
    world.seal()
    world.submit(world.fold())
    world.settle()
    assert user.fates[-1][1].value == "late"


def test_two_headers_of_one_round_are_an_intersection_attack(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The second header's roster has the victim and servants of the attacker."""
    world = World(3, clients=4).start()
    about_to_speak(world, world.users[0])
    victim, servants = world.users[0], {user.id for user in world.users[2:]}
    current, shape = world.current, world.current.header.shape
    backup, state = victim.backup(), victim.core.speaker
    second, sheet = two_headers(world, {victim.id, *servants})
    all_pads = [server_pads(site, second, current.sheet.resumes) for site in world.sites]

    # The KDF is bound to the header: the pads of the two have nothing to do with each other.
    before, after = (client_pads(backup, header) for header in (current.header, second))
    assert not set(before.values()) & set(after.values())

    # A client without checks and guard seals under both; the broadcast of the second names it.
    assert world.seal_one(victim) is not None
    ring = backup.ring(victim.id)
    core = world.client_core(victim.identity, Disk(), keyring=ring)
    core.speaker, core._last = state, victim.core._last
    live = sign_all(world, second)
    careless = core.seal(live, sheet, current.tree, world.state.operators)
    assert careless is not None
    assert SECRET in read(careless.envelope, all_pads, shape)
    # Whoever reads both broadcasts knows that the author is in both rosters: the victim, since
    # all others of the second are the attacker's own.
    assert {c.key.member for c in sheet.clients} - servants == {victim.id}

    # With the guard, the second header comes too late, whoever signed it.
    with refused(Refused, "header.round"):
        victim.core.seal(live, sheet, current.tree, world.state.operators)
    monkeypatch.setattr(client_core, "check_header", no_check)
    with refused(GuardRefused, "turn.round"):
        victim.core.seal(live, sheet, current.tree, world.state.operators)


def test_an_honest_server_signs_one_header_of_a_round() -> None:
    """Not all can be brought to sign a second one: then no client seals under it."""
    world = World(3).start()
    about_to_speak(world, world.users[0])
    second, sheet = two_headers(world, {world.users[0].id, world.users[3].id})
    honest = world.sites[1]
    with refused(GuardRefused, "signed"):
        guards.sign_header_once(honest.core.guard, second.round, second.id, honest.disk)
    signed = sign_all(world, second)
    place = second.servers.index(honest.id)
    others = (*signed.signatures[:place], bytes(64), *signed.signatures[place + 1 :])
    live = replace(signed, signatures=others)
    with refused(Refused, "signature"):
        world.users[0].core.seal(live, sheet, world.current.tree, world.state.operators)


def test_a_retry_of_a_server_on_a_fork_is_no_second_header() -> None:
    """A bus that shows two logs to one server gets one signature a round from it."""
    world = World(4).start()
    world.round()
    prefix = list(world.log)
    world.now_ms += 1_000
    world.open()
    site = world.sites[0]
    signed = site.core.guard
    fork = world.server_core(
        world.sites[0].core.machine.genesis(world.rules, world.instance),
        site.identity,
        site.disk,
        site.ledger,
        boot=9,
        guard=signed,
        keyring=site.backup().ring(site.id),
    )
    for seq, raw in enumerate(prefix, 1):
        fork.apply(seq, raw)
    other = world.sites[1].core
    machine, now = fork.machine, world.now_ms
    raw = fork.command(bodies.Tick(), 0, now)  # any other entry before the proposal will do
    fork.apply(machine.state.seq + 1, raw)
    proposal = fork.command(bodies.ProposeHeader(), machine.state.next_round, now)
    applied = fork.apply(machine.state.seq + 1, proposal)
    assert not applied.rule
    assert machine.state.current is not None
    assert other.machine.state.current is not None
    assert machine.state.current.header.round == other.machine.state.current.header.round
    assert machine.state.current.header.id != other.machine.state.current.header.id
    with refused(GuardRefused, "signed"):
        fork.due(now)


def test_regression_envelope_of_another_round_is_refused() -> None:
    """An envelope is bound to its round: MAC, signature and prefix say so."""
    world = World(5).start()
    world.open()
    world.seal()
    user: User = world.users[0]
    kept = world.envelopes[user.id]
    world.submit(world.fold())
    world.settle()
    world.open()
    world.begin_folds()
    leaf = world.folds[0]
    with refused(Refused, "envelope.round"):
        leaf.absorb(kept)
    header, shape = world.current.header, world.current.header.shape
    old = Envelope.decode(kept, shape)
    moved = replace(old, round=header.round, header_id=header.id)
    with refused(Refused, "envelope.mac"):
        leaf.absorb(moved.encode())
    with refused(Refused, "signature"):
        audit(moved, user.identity.peer)
    # A client that wraps its own old payload anew spoils the round only, under its own name.
    leaf.absorb(authentic(world, user, header, old.payload))
    for other in world.users[1:]:
        envelope = world.seal_one(other)
        assert envelope is not None
        leaf.absorb(envelope)
    world.submit(leaf.close().encode())
    world.settle()
    assert not messages(world.records[-1])
