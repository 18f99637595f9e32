"""Fuzz target: snapshots."""

from functools import cache

from tests.simulator.world import World
from zipnet.committee import snapshot
from zipnet.committee.bodies import Suspend
from zipnet.errors import SnapshotRejected


@cache
def world() -> World:
    """The smallest deployment with something of most parts in its state."""
    return World(1, servers=1, clients=1, num_slots=1, num_sched_slots=1, min_participants=1)


@cache
def seeds() -> list[bytes]:
    there = world()
    machine = there.sites[0].core.machine
    found = [machine.snapshot()]
    there.start()
    found.append(machine.snapshot())
    there.open()
    found.append(machine.snapshot())
    there.seal()
    there.submit(there.fold())
    found.append(machine.snapshot())
    there.settle()
    there.append(b"junk")
    there.say(there.sites[0], Suspend())
    found.append(machine.snapshot())
    return found


def fuzz_one(data: bytes) -> None:
    try:
        state = snapshot.decode(world().rules, data)
    except SnapshotRejected as error:
        error.diagnostics().encode()
    else:
        assert snapshot.encode(state) == data
