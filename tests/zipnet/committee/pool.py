"""A pool of commands as a simulated deployment makes them, and logs drawn from it."""

from __future__ import annotations

import random
from collections.abc import Iterator
from functools import cache

from tests.simulator.world import World
from tests.zipnet.committee.support import (
    give_up,
    operators_document,
    reach,
    replace_server,
    resume_node,
    started,
    state_of,
    user_id,
)
from zipnet.committee import bodies
from zipnet.committee.commands import Command
from zipnet.committee.machine import Machine
from zipnet.committee.state import Phase, Rules
from zipnet.errors import WireFormatError
from zipnet.protocol.instance import Instance


class Pool:
    """Logs of whole worlds, all of one deployment, with the keys to sign their commands anew."""

    def __init__(self) -> None:
        self.logs: list[list[bytes]] = []
        self.starts: list[tuple[int, bytes]] = []
        worlds = [self._quiet(), self._troubled()]
        self.rules: Rules = worlds[0].rules
        self.instance: Instance = worlds[0].instance
        self.keys = {
            site.identity.peer: site.identity.signing for world in worlds for site in world.sites
        }
        for world in worlds:
            self.logs.append(world.log)
            machine = self.genesis()
            for seq, raw in enumerate(world.log, 1):
                machine.apply(seq, raw)
                if seq % 7 == 0:
                    self.starts.append((seq, machine.snapshot()))
            assert machine.snapshot() == world.sites[0].core.machine.snapshot()
        self.raws = [raw for log in self.logs for raw in log]

    def _quiet(self) -> World:
        world = started(clients=3, epoch_rounds=2, messages_per_epoch=2)
        for _ in range(4):
            world.round()
        return world

    def _troubled(self) -> World:
        """The same deployment, where something happens in each round."""
        world = started(clients=6, epoch_rounds=2, messages_per_epoch=2)
        first = world.sites[0]
        for number, phase in enumerate(Phase):
            world.say(first, bodies.RotateAllowList(world.allow_list(2 + number)))
            reach(world, phase)
            restarted = world.users[4 + number % 2]
            world.say(first, bodies.Refuse(user_id(world, number % 3), "x"))
            give_up(world)
            world.register(world.user())
            world.say(first, resume_node(world, restarted.identity, restarted.core.id))
            for user in world.users:
                world.vouch(user)
        new = replace_server(world)
        world.say(new, bodies.Suspend())
        world.say(first, bodies.ChangeOperators(operators_document(world, [0, 1])))
        world.say(first, bodies.Leave())
        assert state_of(world).seq == len(world.log)
        return world

    def genesis(self) -> Machine:
        return Machine.genesis(self.rules, self.instance)

    def start(self, draw: random.Random) -> bytes:
        """A snapshot from somewhere in one of the logs, or before the first entry."""
        return draw.choice([self.genesis().snapshot(), *(raw for _, raw in self.starts)])

    def entries(self, draw: random.Random, machine: Machine, count: int) -> Iterator[bytes]:
        """So many entries for a log that goes on from here: some good ones, all sorts of others.

        `machine` applies each before the next is asked for.
        """
        at = draw.randrange(len(self.raws))
        said: list[bytes] = []
        while len(said) < count:
            raw = self._one(draw, machine, self.raws[at % len(self.raws)], said)
            # Mostly in the order of the world's log, now and then from elsewhere.
            at = at + 1 if draw.random() < 0.85 else draw.randrange(len(self.raws))
            said.append(raw)
            yield raw

    def _one(self, draw: random.Random, machine: Machine, raw: bytes, said: list[bytes]) -> bytes:
        kind = draw.random()
        if kind < 0.03:
            return draw.randbytes(draw.randrange(300))
        if kind < 0.06:
            changed = bytearray(raw)
            changed[draw.randrange(len(changed))] ^= 1 << draw.randrange(8)
            return bytes(changed)
        if kind < 0.12 and said:
            return draw.choice(said)
        if kind < 0.16:
            return raw
        return self.signed_here(draw, machine, raw)

    def signed_here(self, draw: random.Random, machine: Machine, raw: bytes) -> bytes:
        """The command as its author, or another, would say it at this place of the log."""
        state = machine.state
        try:
            old = Command.decode(raw)
        except WireFormatError:
            return raw
        author = old.author if draw.random() < 0.9 else draw.choice(sorted(self.keys))
        number = old.round
        if number and state.current is not None and draw.random() < 0.5:
            number = state.current.header.round
        elif number and draw.random() < 0.5:
            number = state.next_round
        back = draw.randrange(min(len(state.ring), 5)) if state.ring else 0
        return Command.make(
            self.keys[author],
            state.instance,
            old.body,
            round_number=number,
            seq=state.seq - back,
            head=state.ring[-1 - back][1] if state.ring else state.head,
            clock_ms=max(0, old.clock_ms + draw.choice([0, 0, 0, -1000, 7000, 60_000])),
        )


@cache
def pool() -> Pool:
    return Pool()
