"""Snapshots: canonical, complete, and refused when they are anything else."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.simulator.world import World
from tests.zipnet.committee.support import (
    give_up,
    good,
    reach,
    resume_node,
    started,
    state_of,
    suspend,
    user_id,
    world_of,
)
from tests.zipnet.protocol.support import refused
from zipnet.committee import bodies, snapshot
from zipnet.committee.machine import Machine
from zipnet.committee.state import Phase, SignedCheckpoint, State
from zipnet.errors import SnapshotRejected


def full(phase: Phase | None) -> World:
    """A state in which there is something of everything."""
    world = started(clients=5)
    world.round()
    good(world.say(world.sites[0], bodies.RotateAllowList(world.allow_list(2))))
    good(world.say(world.sites[0], bodies.Assign((world.tree,) * 2)))
    good(world.say(world.sites[0], bodies.Refuse(user_id(world, 2), "tdx.debug")))
    user = world.users[0]
    good(world.say(world.sites[0], resume_node(world, user.identity, user.core.id)))
    world.append(b"junk")
    if phase:
        reach(world, phase)
    else:
        suspend(world)
    return world


PHASES: list[Phase | None] = [None, *Phase]


@pytest.mark.parametrize("phase", PHASES)
def test_a_state_comes_back_from_its_snapshot(phase: Phase | None) -> None:
    world = full(phase)
    raw = world.sites[0].core.machine.snapshot()
    assert raw.startswith(snapshot.MAGIC)
    machine = Machine.restore(world.rules, raw)
    assert machine.snapshot() == raw
    assert machine.state == state_of(world)


def test_the_state_before_the_first_entry_has_a_snapshot() -> None:
    world = world_of()
    machine = Machine.genesis(world.rules, world.instance)
    assert Machine.restore(world.rules, machine.snapshot()).state == machine.state


def test_every_part_of_the_state_is_in_it() -> None:
    """Two states that differ in one field have different snapshots."""
    world = full(Phase.LIVE)
    raw = world.sites[0].core.machine.snapshot()
    changes: dict[str, Callable[[State], object]] = {
        "counter": lambda s: setattr(s, "counter", 1),
        "seq": lambda s: setattr(s, "seq", 1),
        "head": lambda s: setattr(s, "head", bytes(32)),
        "ring": lambda s: s.ring.append((b"\1" * 32, bytes(32))),
        "recovering": lambda s: setattr(s, "recovering", bytes(32)),
        "time_ms": lambda s: setattr(s, "time_ms", 1),
        "quota_since": lambda s: setattr(s, "quota_since", 1),
        "operator_documents": lambda s: s.operator_documents.append(b"x"),
        "serials": lambda s: s.serials.update({bytes(32): 1}),
        "servers": lambda s: s.servers.popitem(),
        "clients": lambda s: s.clients.popitem(),
        "epoch": lambda s: setattr(s.epoch, "number", 9),
        "allow_list": lambda s: setattr(s, "allow_list", None),
        "pending_lists": lambda s: s.pending_lists.pop(),
        "trees": lambda s: setattr(s, "trees", ()),
        "tree_at": lambda s: setattr(s, "tree_at", 9),
        "tree_votes": lambda s: s.tree_votes.clear(),
        "next_round": lambda s: setattr(s, "next_round", 9),
        "opened_ms": lambda s: setattr(s, "opened_ms", 9),
        "current": lambda s: setattr(s, "current", None),
        "previous_record": lambda s: setattr(s, "previous_record", bytes(32)),
        "schedule_hash": lambda s: setattr(s, "schedule_hash", b"\1" * 32),
        "last_record": lambda s: setattr(s, "last_record", None),
        "first_beacon": lambda s: setattr(s, "first_beacon", b"\1" * 32),
        "beacons": lambda s: s.beacons.clear(),
        "outcomes": lambda s: s.outcomes.clear(),
        "refused": lambda s: s.refused.clear(),
        "pending_checkpoint": lambda s: setattr(
            s, "pending_checkpoint", SignedCheckpoint(1, bytes(32), bytes(32), (), ())
        ),
        "checkpoint": lambda s: setattr(
            s, "checkpoint", SignedCheckpoint(1, bytes(32), bytes(32), (), ())
        ),
    }
    others = {"rules", "instance", "seen", "operators"}  # outside of it, derived, or tested apart
    assert set(changes) | others == set(State.__slots__)
    for name, change in changes.items():
        state = snapshot.decode(world.rules, raw)
        change(state)
        assert snapshot.encode(state) != raw, name


@pytest.mark.parametrize("phase", PHASES)
def test_a_snapshot_that_is_cut_or_longer_is_refused(phase: Phase | None) -> None:
    world = full(phase)
    raw = world.sites[0].core.machine.snapshot()
    with refused(SnapshotRejected, "snapshot.trailing"):
        snapshot.decode(world.rules, raw + b"\0")
    for end in range(0, len(raw), 97):
        with refused(SnapshotRejected, "snapshot.truncated"):
            snapshot.decode(world.rules, raw[:end])


@given(st.data())
def test_a_changed_snapshot_is_refused_or_another_state(data: st.DataObject) -> None:
    world, raw = busy()
    changed = bytearray(raw)
    changed[data.draw(st.integers(0, len(raw) - 1))] ^= data.draw(st.integers(1, 255))
    try:
        state = snapshot.decode(world.rules, bytes(changed))
    except SnapshotRejected as error:
        rule = error.rule
    else:
        rule = ""
        assert snapshot.encode(state) == bytes(changed)
    assert rule or snapshot.digest(bytes(changed)) != snapshot.digest(raw)


@cache
def busy() -> tuple[World, bytes]:
    """A world in the middle of a round, which nobody changes, and its snapshot."""
    world = full(Phase.REVEALING)
    return world, world.sites[0].core.machine.snapshot()


def rejected(world: World, change: Callable[[State], object], rule: str) -> None:
    state = snapshot.decode(world.rules, world.sites[0].core.machine.snapshot())
    change(state)
    with pytest.raises(SnapshotRejected) as caught:
        snapshot.decode(world.rules, snapshot.encode(state))
    assert caught.value.rule == rule


def test_another_deployments_snapshot_is_refused() -> None:
    world, other = started(), started(num_slots=4)
    with refused(SnapshotRejected, "snapshot.deployment"):
        snapshot.decode(other.rules, world.sites[0].core.machine.snapshot())


def test_another_magic_is_refused() -> None:
    world, raw = busy()
    with refused(SnapshotRejected, "snapshot.magic"):
        snapshot.decode(world.rules, b"zipnet state 1\n" + raw[15:])


def test_what_is_out_of_order_is_refused() -> None:
    """Mappings have one order and each key once."""
    world, raw = busy()
    state = snapshot.decode(world.rules, raw)
    first, second = sorted(state.clients)[:2]
    a = snapshot._client(state.clients[first])
    b = snapshot._client(state.clients[second])
    assert raw.count(a + b) == 1
    with pytest.raises(SnapshotRejected) as caught:
        snapshot.decode(world.rules, raw.replace(a + b, b + a))
    assert caught.value.rule == "snapshot.canonical"
    with pytest.raises(SnapshotRejected) as caught:
        snapshot.decode(world.rules, raw.replace(a + b, a + a))
    assert caught.value.rule in ("snapshot.canonical", "snapshot.truncated", "snapshot.flag",
                                 "snapshot.count", "snapshot.number")  # fmt: skip


def test_unknown_values_and_wrong_parts_are_refused() -> None:
    world, _ = busy()

    def no_status(state: State) -> None:
        next(iter(state.servers.values())).status = 9  # type: ignore[assignment]

    def no_phase(state: State) -> None:
        assert state.current is not None
        state.current.phase = 9  # type: ignore[assignment]

    def no_header(state: State) -> None:
        assert state.current is not None
        state.current.aggregate = bytes(bodies.MAX_COMMAND + 1)

    rejected(world, no_status, "snapshot.status")
    rejected(world, no_phase, "snapshot.phase")
    rejected(world, no_header, "snapshot.length")


def test_damage_within_a_part_is_named_by_that_part() -> None:
    world, raw = busy()
    state = snapshot.decode(world.rules, raw)
    assert state.current is not None
    header = state.current.header.encode()
    damaged = raw.replace(header, b"\xff\xff" + header[2:])
    with pytest.raises(SnapshotRejected) as caught:
        snapshot.decode(world.rules, damaged)
    assert caught.value.rule == "header.wire-version"
    assert "damaged" in str(caught.value)


def test_operators_must_be_such() -> None:
    world, raw = busy()
    state = snapshot.decode(world.rules, raw)
    names = b"".join(b"\3" + each.name.encode() + each.key for each in state.operators.operators)
    with pytest.raises(SnapshotRejected) as caught:
        snapshot.decode(world.rules, raw.replace(names, names[36:72] * 3))
    assert caught.value.rule == "operators.operators"


def test_outcomes_have_known_endings() -> None:
    world = reach(started(), Phase.LIVE)
    give_up(world)

    def no_ending(state: State) -> None:
        outcome = state.outcomes.pop()
        state.outcomes.append(
            type(outcome)(outcome.round, 9, outcome.missing)  # type: ignore[arg-type]
        )

    rejected(world, no_ending, "snapshot.ending")
