"""What a fault did to an instance of processes: how long it stood still, what became of messages.

That no pad is used twice is told by two witnesses: each node's book, written before bytes leave,
and a wiretap on the bus, on which one client's envelopes of one round must all be the same bytes.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import re
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from types import TracebackType
from typing import Self

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from tests.e2e.book import reused
from tests.e2e.deployment import Deployment
from tests.e2e.process import PATIENCE, until
from tests.zipnet.network.nats_cluster import Cluster
from zipnet.access import Network
from zipnet.errors import Lagged, WireFormatError
from zipnet.network.nats import NatsNetwork
from zipnet.network.places import Places
from zipnet.protocol.envelope import Envelope
from zipnet.protocol.record import SignedRecord

# Of the instance's own, beyond what a fault lasts: the bus may need 22 s to elect under a storm of
# kills, a round that lost a server ends at its deadline of 12 s; the rest is for a busy machine.
STALL_S = 60.0
LANDED = re.compile(r"^(\S+Z) INFO zipnet\.service: message landed in round \d+$", re.MULTILINE)
HEADINGS = ("fault", "stall seconds", "accepted", "lost", "doubled", "pads reused")


class Wiretap:
    """A member at each node of an unguarded bus, that hears what clients submit.

    `sealed` has the envelopes of each client and round. `missed` counts how often one of its
    connections lost something, as it must where nodes die.
    """

    def __init__(self, made: Deployment, urls: Sequence[str]) -> None:
        self._made = made
        self._urls = urls
        self.sealed: dict[tuple[bytes, int], set[bytes]] = {}
        self.missed = 0
        self._ready = threading.Event()
        self._stop = asyncio.Event()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread = threading.Thread(target=lambda: asyncio.run(self._run()))

    def __enter__(self) -> Self:
        self._thread.start()
        assert self._ready.wait(PATIENCE)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        assert self._loop is not None
        self._loop.call_soon_threadsafe(self._stop.set)
        self._thread.join(PATIENCE)

    def reused(self) -> int:
        """How many times a client sealed a round with other bytes."""
        assert self.sealed, "no envelope was heard"
        return sum(len(found) - 1 for found in self.sealed.values())

    async def _run(self) -> None:
        self._loop = asyncio.get_running_loop()
        token = self._made.id.hex()[:16]
        async with contextlib.AsyncExitStack() as stack:
            taps = []
            for url in self._urls:
                key = Ed25519PrivateKey.generate()
                network = await NatsNetwork.connect(
                    [url], token=token, public=frozenset(), key=key, timeout=PATIENCE
                )
                stack.push_async_callback(network.close)
                listening = asyncio.Event()
                taps.append(asyncio.create_task(self._listen(network, listening)))
                await listening.wait()
            self._ready.set()
            await self._stop.wait()
            for tap in taps:
                tap.cancel()
            await asyncio.gather(*taps, return_exceptions=True)

    async def _listen(self, network: NatsNetwork, listening: asyncio.Event) -> None:
        shape = self._made.config.shape
        channel = network.channel(Places.of(self._made.id.raw).submit)
        async with channel.listen(">") as messages:
            listening.set()
            while True:
                try:
                    message = await anext(messages)
                except Lagged:
                    self.missed += 1
                    continue
                # Aggregates come here too.
                with contextlib.suppress(WireFormatError):
                    found = Envelope.decode(message.data, shape)
                    seen = self.sealed.setdefault((found.client, found.round), set())
                    seen.add(message.data)


@dataclass(frozen=True, slots=True)
class Row:
    """What one fault did. Counts are of all messages up to then."""

    fault: str
    stall_s: float
    accepted: int
    lost: int
    doubled: int
    pads: int

    @property
    def cells(self) -> tuple[str, ...]:
        numbers = (self.accepted, self.lost, self.doubled, self.pads)
        return (self.fault, f"{self.stall_s:.1f}", *map(str, numbers))


def table(rows: Sequence[Row]) -> str:
    """For people."""
    lines = [HEADINGS, *(row.cells for row in rows)]
    widths = [max(len(line[at]) for line in lines) for at in range(len(HEADINGS))]
    return "\n".join(
        " | ".join([line[0].ljust(widths[0]), *map(str.rjust, line[1:], widths[1:])])
        for line in lines
    )


@dataclass
class Scene:
    """An instance that faults happen to, one after the other."""

    made: Deployment
    cluster: Cluster
    tap: Wiretap
    rows: list[Row] = field(default_factory=list)

    def under(self, name: str, fault: Callable[[], None]) -> None:
        """Let it happen, see the instance go on with everybody, and note what it did.

        A fault must be over when its function returns.
        """
        self.made.await_landed(1)
        begin = time.time()
        fault()
        over = time.time()
        self.made.await_landed(3)
        self.await_everybody()
        row = Row(name, self._stall(begin), *self.judge())
        self.rows.append(row)
        print(table(self.rows[-1:]).splitlines()[-1], flush=True)
        assert row.stall_s < STALL_S + over - begin, self.made.tails()
        assert (row.lost, row.doubled, row.pads) == (0, 0, 0)

    def judge(self) -> tuple[int, int, int, int]:
        """Accepted, lost, doubled, pads reused."""
        made, told = self.made, self.made.landed()
        read = made.read()
        lost = (told - read).total()
        doubled = sum(count - 1 for count in read.values())
        books = [[made.nodes[name].book] for name in made.keys]
        books.append([node.book for node in made.clients])
        return told.total(), lost, doubled, sum(map(reused, books)) + self.tap.reused()

    def _stall(self, begin: float) -> float:
        """The longest time in which nothing landed, from just before `begin` until now."""
        times = sorted(
            datetime.fromisoformat(at).timestamp()
            for node in self.made.clients
            for at in LANDED.findall(node.text())
        )
        last = max(at for at in times if at <= begin)
        late = [at for at in times if at >= last]
        return max(b - a for a, b in itertools.pairwise(late))

    def await_everybody(self) -> None:
        """Until all servers have signed a record that follows what was there before.

        Its header has the head of the log, so that they have the same one.
        """
        begin, wanted = self.last_record()[0], len(self.made.keys)

        def signed() -> bool:
            number, servers = self.last_record()
            return number > begin and servers == wanted

        until(signed, self.made.tails)

    def last_record(self) -> tuple[int, int]:
        """Round and number of servers of the newest record."""
        return asyncio.run(asyncio.wait_for(self._last_record(), PATIENCE))

    async def _last_record(self) -> tuple[int, int]:
        made = self.made
        async with await Network.connect(",".join(made.urls), made.config) as network:
            log = await network.port.log(Places.of(made.id.raw).broadcasts)
            _, last = await log.bounds()
            entry = await anext(aiter(log.read(after=last - 1)))
        header = SignedRecord.decode(entry.data).record.header
        return header.round, len(header.servers)
