"""Fuzz target: entries of the log, of which whatever bytes are one."""

from functools import cache

from tests.simulator.world import World
from zipnet.committee.commands import Command
from zipnet.committee.events import Verdict
from zipnet.committee.machine import Machine


@cache
def world() -> World:
    return World(1, servers=2, clients=2).start()


def seeds() -> list[bytes]:
    """What was said, said again by the first server: nearly all of it is refused by some rule."""
    core = world().sites[0].core
    said = map(Command.decode, world().log)
    return [core.command(one.body, one.round, one.clock_ms) for one in said]


def fuzz_one(data: bytes) -> None:
    there = world().sites[0].core.machine
    machine = Machine.restore(there.state.rules, there.snapshot())
    applied = machine.apply(machine.state.seq + 1, data)
    assert (applied.verdict is Verdict.REFUSED) == bool(applied.rule)
    # Also where it was refused: what the ring of refusals says of it must read back.
    Machine.restore(there.state.rules, machine.snapshot())
