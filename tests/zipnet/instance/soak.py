"""Many clients that talk for a while: rounds are not missed, and memory does not grow."""

from __future__ import annotations

import asyncio
import gc
import time
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

from zipnet.committee.events import Applied, RoundEnded, RoundFinal
from zipnet.datum import bytes_datum, encode_exact
from zipnet.demo import DATUM_BYTES, DemoInstance, Operators, demo_window
from zipnet.network.local import LocalNetwork
from zipnet.roles.client import ClientRole

PAGE = 4096
# The part of the time after which memory must not grow, and samples of which the median counts.
WARM = 0.4
SAMPLES = 5
Note = bytes_datum(DATUM_BYTES)


@dataclass(frozen=True, slots=True)
class Soaked:
    """What came of it. `before` and `after` are resident bytes, warm and at the end."""

    rounds: int
    missed: int
    landed: int
    before: int
    after: int
    longest_s: float

    @property
    def growth(self) -> float:
        """As a part of what there was."""
        return self.after / self.before - 1


def resident() -> int:
    """Bytes of this process in memory."""
    gc.collect()
    return int(Path("/proc/self/statm").read_text().split()[1]) * PAGE


async def memory() -> int:
    """The least of some samples: what is only in use for a moment does not count."""
    found = []
    for _ in range(SAMPLES):
        found.append(resident())
        await asyncio.sleep(0.2)
    return min(found)


async def soak(seconds: float, clients: int, **window: int) -> Soaked:
    """Rounds for so long, after all clients have taken part once."""
    network = await LocalNetwork.open()
    values = {"max_clients": 2 * clients, "round_deadline_ms": 20_000, **window}
    made = DemoInstance(network, Operators.new("soak.test", demo_window(**values)), lambda: network)
    landed = [0]

    async def talk(client: ClientRole) -> None:
        number = 0
        while True:
            told = await client.send(encode_exact(Note(b"%d %d" % (id(client), number))))
            landed[0] += told.outcome == "landed"
            number += 1

    talks: list[asyncio.Task[None]] = []
    try:
        await made.start()
        for _ in range(clients):
            made.client()
            await asyncio.sleep(0)
        async with asyncio.timeout(60 + clients):
            await asyncio.gather(*(client.taking_part.wait() for client in made.clients))
        ends: list[tuple[float, bool]] = []
        watch(made, ends)
        talks = [asyncio.create_task(talk(client)) for client in made.clients]
        await asyncio.sleep(WARM * seconds)
        before = await memory()
        await asyncio.sleep((1 - WARM) * seconds)
        after = await memory()
        if made.errors:
            raise made.errors[0]
        times = [when for when, _ in ends]
        gaps = [later - earlier for earlier, later in pairwise(times)]
        missed = sum(not final for _, final in ends)
        return Soaked(len(ends), missed, landed[0], before, after, max(gaps, default=0.0))
    finally:
        for task in talks:
            task.cancel()
        await asyncio.gather(*talks, return_exceptions=True)
        await made.close()
        await network.close()


def watch(made: DemoInstance, ends: list[tuple[float, bool]]) -> None:
    """Note when each round ends from now on, and whether it has a record."""
    group = made.servers[0].group
    heard = group._on_applied

    def note(applied: Applied) -> None:
        heard(applied)
        ends.extend(
            (time.monotonic(), isinstance(event, RoundFinal))
            for event in applied.events
            if isinstance(event, RoundFinal | RoundEnded)
        )

    group._on_applied = note
