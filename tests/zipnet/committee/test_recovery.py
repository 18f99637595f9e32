"""Checkpoints, and the next generation that begins with one."""

from __future__ import annotations

import pytest

from tests.simulator.world import World
from tests.zipnet.committee.support import (
    bad,
    command,
    forged,
    good,
    reach,
    recover_command,
    recovery,
    reopened,
    replace_server,
    spare,
    started,
    state_of,
    suspend,
)
from zipnet.committee import bodies, snapshot
from zipnet.committee.events import CheckpointDue, CheckpointSigned, Recovered
from zipnet.committee.machine import Machine
from zipnet.committee.state import CHECKPOINT_ROUNDS, Phase, SignedCheckpoint
from zipnet.committee.views import beacons
from zipnet.protocol.header import NO_HASH
from zipnet.protocol.instance import Instance
from zipnet.roles.client_core import ClientCore


def due(world: World) -> CheckpointDue:
    """The sixteenth round is over, and nobody has signed the state after it."""
    for site in world.sites:
        state = site.core.machine.state
        state.next_round += CHECKPOINT_ROUNDS - 1
    reach(world, Phase.SIGNING)
    signed = state_of(world).current
    assert signed is not None
    assert signed.record is not None
    for site in world.sites:
        record = signed.record.record
        body = bodies.SignRecord(record.hash, record.sign(site.identity.signing))
        applied = good(world.say(site, body, CHECKPOINT_ROUNDS))
    event = applied.events[-1]
    assert isinstance(event, CheckpointDue)
    return event


def sign(world: World, at: int) -> tuple[object, ...]:
    pending = state_of(world).pending_checkpoint
    assert pending is not None
    site = world.sites[at]
    statement = bodies.Checkpoint.body(pending.seq, pending.head, pending.digest)
    signature = state_of(world).instance.sign(
        site.identity.signing, bodies.SIGN_CHECKPOINT, 0, statement
    )
    body = bodies.Checkpoint(pending.seq, pending.head, pending.digest, signature)
    return good(world.say(site, body)).events


def test_a_checkpoint_is_due_after_every_sixteenth_round_only() -> None:
    world = started(epoch_rounds=64)
    for number in range(1, 2 * CHECKPOINT_ROUNDS + 1):
        world.round()
        found = [
            event
            for site in world.sites[:1]
            for applied in site.applied
            for event in applied.events
            if isinstance(event, CheckpointDue)
        ]
        assert len(found) == number // CHECKPOINT_ROUNDS
    assert state_of(world).checkpoint is not None
    assert len(world.snapshots()) == 1


def test_its_snapshot_has_its_digest_and_restores() -> None:
    world = started()
    event = due(world)
    assert event.digest == snapshot.digest(event.snapshot)
    machine = Machine.restore(world.rules, event.snapshot)
    assert machine.snapshot() == event.snapshot
    assert (machine.state.seq, machine.state.head) == (event.seq, event.head)
    state = state_of(world)
    assert (event.seq, event.head) == (state.seq, state.head)
    assert state.pending_checkpoint == SignedCheckpoint(
        event.seq,
        event.head,
        event.digest,
        tuple(sorted(site.core.id for site in world.sites)),
        (),
    )


def test_who_restores_a_checkpoint_awaits_its_signatures_as_the_others_do() -> None:
    world = started()
    event = due(world)
    machine = Machine.restore(world.rules, event.snapshot)
    machine.await_signatures(event.digest)
    assert machine.state == state_of(world)
    for at in range(3):
        sign(world, at)
        machine.apply(machine.state.seq + 1, world.log[-1])
    assert machine.snapshot() == world.sites[0].core.machine.snapshot()
    assert machine.state.checkpoint is not None


def test_all_servers_sign() -> None:
    world = started()
    event = due(world)
    assert sign(world, 2) == ()
    assert sign(world, 0) == ()
    assert state_of(world).checkpoint is None
    assert sign(world, 1) == (CheckpointSigned(event.seq),)
    state = state_of(world)
    assert state.pending_checkpoint is None
    assert state.checkpoint is not None
    assert state.checkpoint.complete
    assert state.checkpoint.digest == event.digest
    for server, signature in state.checkpoint.signatures:
        peer = next(site.identity.peer for site in world.sites if site.core.id == server)
        statement = bodies.Checkpoint.body(event.seq, event.head, event.digest)
        world.instance.verify(peer, signature, bodies.SIGN_CHECKPOINT, 0, statement)


def test_a_later_server_has_no_part_in_it_and_the_next_one_replaces_it() -> None:
    world = started()
    first = due(world)
    sign(world, 0)
    replace_server(world)
    for user in world.users:
        world.vouch(user, world.sites[2:])
    for site in world.sites:
        site.core.machine.state.next_round = CHECKPOINT_ROUNDS * 2
    reach(world, Phase.SIGNING)
    while state_of(world).current is not None:
        site = world.sites[len(state_of(world).current.record_signatures)]  # type: ignore[union-attr]
        record = state_of(world).current.record.record  # type: ignore[union-attr]
        body = bodies.SignRecord(record.hash, record.sign(site.identity.signing))
        good(world.say(site, body, CHECKPOINT_ROUNDS * 2))
    pending = state_of(world).pending_checkpoint
    assert pending is not None
    assert pending.seq > first.seq
    assert world.sites[2].core.id in pending.servers


# Recovery


def recover(world: World) -> None:
    """Everything of the next generation up to its first header."""
    document = recovery(world)
    applied = good(world.append(recover_command(world, document)))
    world.instance = state_of(world).instance
    assert applied.events == (Recovered(world.instance.generation),)


def rejoin(world: World) -> None:
    for site in world.sites:
        good(world.join(site))
    for site in world.sites:
        good(world.say(site, bodies.Assign((world.tree,))))
    for user in world.users:
        user.core = ClientCore(
            world.config,
            world.instance,
            user.identity,
            store=user.disk,
            xor=world.client_ledger.xor,
            draw=world.draw,
        )
        world.admit(user)


def lost() -> World:
    """A deployment whose log was lost after some rounds."""
    world = started()
    for _ in range(3):
        world.round()
    good(world.say(world.sites[0], bodies.RotateAllowList(world.allow_list(2))))
    good(world.say(world.sites[2], bodies.Assign((world.tree,) * 2)))
    return world


def test_the_next_generation_keeps_what_was_agreed_and_nobody_in_it() -> None:
    world = lost()
    before = snapshot.decode(world.rules, world.sites[0].core.machine.snapshot())
    reopened(world)
    state = state_of(world)
    assert (state.seq, state.head, len(state.ring), state.seen) == (0, NO_HASH, 0, set())
    assert state.recovering == snapshot.digest(snapshot.encode(before))
    recover(world)
    state = state_of(world)
    assert state.instance.generation == b"\x77" * 32
    assert state.instance.deployment_id == before.instance.deployment_id
    assert (state.counter, state.recovering, state.seq) == (1, b"", 1)
    assert (state.servers, state.clients, state.tree_votes) == ({}, {}, {})
    assert (state.current, state.pending_checkpoint) == (None, None)
    assert (state.schedule_hash, state.first_beacon, beacons(state)) == (
        NO_HASH, NO_HASH, frozenset(),
    )  # fmt: skip
    assert (state.epoch.number, state.epoch.base_round, state.epoch.resumes) == (
        before.epoch.number, 0, [],
    )  # fmt: skip
    for name in ("operators", "allow_list", "pending_lists", "trees", "next_round",
                 "previous_record", "last_record", "time_ms"):  # fmt: skip
        assert getattr(state, name) == getattr(before, name)
    assert len(world.snapshots()) == 1


def test_everybody_joins_anew_and_the_records_go_on() -> None:
    world = lost()
    last = world.records[-1].record
    old_epoch = state_of(world).epoch.number
    reopened(world)
    recover(world)
    rejoin(world)
    assert beacons(state_of(world)) == {state_of(world).first_beacon}
    one, two = world.round().record, world.round().record
    one.follows(last.hash)
    two.follows(one.hash)
    assert one.header.round == last.header.round + 1
    assert one.header.epoch == old_epoch + 1
    assert one.header.base_round == one.header.round
    assert one.header.instance.generation == b"\x77" * 32
    assert one.header.schedule_hash == NO_HASH
    assert len(world.snapshots()) == 1


def test_commands_of_the_old_generation_are_void() -> None:
    world = lost()
    old = world.instance
    reopened(world)
    recover(world)
    raw = forged(world, world.sites[0].identity.signing, bodies.Tick(), instance=old)
    bad(world.append(raw), "command.generation")


def test_a_generation_is_recovered_once() -> None:
    world = reopened(lost())
    document = recovery(world)
    recover(world)
    again = command(world, world.sites[0], bodies.Recover(document))
    bad(world.append(again), "command.recover")


def test_an_offender_need_not_sign() -> None:
    world = reopened(lost())
    offender = world.operators[1].public_key().public_bytes_raw()
    document = recovery(world, offender=offender, signers=[0, 2])
    good(world.append(recover_command(world, document)))
    assert state_of(world).counter == 1


def test_recoveries_may_follow_each_other() -> None:
    world = reopened(lost())
    recover(world)
    rejoin(world)
    reopened(world)
    document = recovery(world, new_generation=b"\x78" * 32, old_generation=b"\x77" * 32)
    good(world.append(recover_command(world, document)))
    assert state_of(world).counter == 2


def test_junk_before_the_recovery_does_not_prevent_it() -> None:
    world = reopened(lost())
    bad(world.append(b"junk"), "command.wire-version")
    bad(world.append(command(world, world.sites[0], bodies.Tick())), "command.recover")
    recover(world)
    assert state_of(world).seq == 3


@pytest.mark.parametrize("at", range(3))
def test_any_server_may_bring_it_one_that_rests_too(at: int) -> None:
    world = lost()
    suspend(world)
    reopened(world)
    document = recovery(world)
    good(world.append(recover_command(world, document, world.sites[at])))


def test_whoever_brings_it_needs_no_place_in_the_checkpoint() -> None:
    """Servers that keep nothing have new identities when all of them were lost."""
    world = reopened(lost())
    good(world.append(recover_command(world, recovery(world), spare(world))))


def test_a_snapshot_before_the_recovery_still_awaits_it() -> None:
    world = reopened(lost())
    world.append(b"junk")
    machine = world.sites[0].core.machine
    again = Machine.restore(world.rules, machine.snapshot())
    assert again.state.recovering == machine.state.recovering
    raw = recover_command(world, recovery(world))
    good(world.append(raw))
    assert again.apply(2, raw).rule == ""
    assert again.snapshot() == machine.snapshot()


@pytest.mark.parametrize("raw", [b"", b"{}", b"[]"])
def test_what_is_no_document_recovers_nothing(raw: bytes) -> None:
    world = reopened(started())
    author = world.sites[0].identity.signing
    instance = Instance(world.instance.deployment_id, b"\x77" * 32)
    before = state_of(world).counter
    applied = world.append(forged(world, author, bodies.Recover(raw), instance=instance))
    assert applied.rule.startswith("envelope.")
    assert state_of(world).counter == before
