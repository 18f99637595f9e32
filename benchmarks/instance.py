"""What a running instance adds to the protocol: `python -m benchmarks.instance`.

A round's work at three servers and a leaf, with commands, signatures, the machine and a log on the
local network, against the protocol's functions in a bare loop over the same header and envelopes.
Both take turns in one process and one thread; ratios are medians over rounds. Clients' own work is
not in it: envelopes are made before.

Linear is judged by what one more client costs: from 500 to 1,000 clients, it must not be more than
LINEAR times what it is from 125 to 500.
"""

from __future__ import annotations

import asyncio
import gc
import random
import sys
import time
from collections.abc import AsyncIterator, Iterator
from statistics import median

import click

from benchmarks._committee import Town
from benchmarks._figures import Figure, ratio, show
from tests.zipnet.instance.soak import soak
from zipnet.committee import bodies
from zipnet.committee.state import Phase, State
from zipnet.network.base import Entry, Log
from zipnet.network.local import LocalNetwork
from zipnet.protocol.aggregate import Aggregate
from zipnet.protocol.envelope import leaf_keys, seal_envelope
from zipnet.protocol.fold import LeafFold, TagSet, check_aggregate, payload_xor
from zipnet.protocol.header import Header, SignedHeader
from zipnet.protocol.pads import Pair, keystream_xor
from zipnet.protocol.precompute import RoundPads
from zipnet.protocol.record import Record, SignedRecord
from zipnet.protocol.roster import Member, Roster
from zipnet.protocol.sheet import Sheet
from zipnet.protocol.unblind import check_reveal, commitment, finalize
from zipnet.roles.admission import config_digest

LINEAR = 1.3
OVERHEAD = 1.5
CHUNK = 64
GROWTH = 0.1
SIZES = (125, 250, 500, 1000)


class Stage:
    """A committee over a log on the local network, and a leaf; rounds are driven by hand."""

    def __init__(self, clients: int) -> None:
        self.town = Town(clients)
        self.world = self.town.world
        self.town.run(1)  # the epoch opens: what that costs is `benchmarks.protocol`'s
        self.source = random.Random(clients)
        world, leaf = self.world, self.world.aggregators[0]
        self.signers = {user.id: user.identity.signing for user in world.users}
        self.mac_keys = {
            user.id: leaf_keys(
                leaf.dh, user.identity.dh_pub, world.instance, user.id, leaf.dh_pub
            ).mac
            for user in world.users
        }
        self.xor = keystream_xor()
        for site in world.sites:
            # Not the simulator's, which keeps a ledger; one core is wrapped to be timed.
            getattr(site.core, "_core", site.core)._xor = self.xor
        self.log: Log
        self.readers: list[AsyncIterator[Entry]]
        self.offset = len(world.log)

    @property
    def state(self) -> State:
        return self.world.state

    async def open(self, network: LocalNetwork) -> None:
        self.log = await network.log(config_digest(self.world.config).hex()[:32])
        self.readers = [self.log.read() for _ in self.world.sites]

    async def append(self, raw: bytes) -> None:
        """One entry, through the engine, to each server."""
        await self.log.append(raw, key=str(random.random()))
        entries = await asyncio.gather(*map(take, self.readers))
        for entry, site in zip(entries, self.world.sites, strict=True):
            applied = site.core.apply(entry.seq + self.offset, entry.data)
            assert not applied.rule, applied

    async def until(self, phase: Phase | None) -> None:
        """Let the servers do what is due until the round is in this phase, or over."""
        while (self.state.current.phase if self.state.current else None) is not phase:
            due = [
                (site, raw)
                for site in self.world.sites
                for raw in site.core.due(self.world.clock(site))
            ]
            if not due:
                self.world.now_ms += self.world.config.window.round_period_ms // 2
            for _, raw in due[:1]:
                await self.append(raw)

    def seal(self, header: Header) -> list[bytes]:
        payload = self.source.randbytes(header.shape.payload_bytes)
        return [
            seal_envelope(header, one, self.source.randbytes(16), payload, self.mac_keys[one], key)
            for one, key in self.signers.items()
        ]

    async def round(self) -> tuple[float, float]:
        """Seconds of a round here, and of the same in a bare loop."""
        gc.collect()
        begin = time.perf_counter()
        await self.until(Phase.PROPOSED)
        await self.until(Phase.LIVE)
        spent = time.perf_counter() - begin
        live, current = self.world.header, self.world.current
        sheet, tree = current.sheet.encode(), current.tree
        envelopes = self.seal(live.header)
        gc.collect()
        begin = time.perf_counter()
        fold = self.world.folds[0]
        fold.begin(SignedHeader.decode(live.encode()), Sheet.decode(sheet), tree)
        for raw in envelopes:
            fold.absorb(raw)
        aggregate = fold.close().encode()
        for site in self.world.sites:
            while site.core.work(CHUNK):
                await asyncio.sleep(0)
        await self.append(
            self.world.sites[0].core.command(
                bodies.SubmitAggregate(aggregate),
                live.header.round,
                self.world.clock(self.world.sites[0]),
            )
        )
        await self.until(None)
        spent += time.perf_counter() - begin
        return spent, self.bare(live, envelopes)

    def bare(self, live: SignedHeader, envelopes: list[bytes]) -> float:
        """The protocol's own functions: pads, fold, unblinding, signatures over what is public."""
        header, world = live.header, self.world
        roster = self.roster
        tree, leaf = world.tree, world.aggregators[0]
        secrets = [
            [Pair(m.id, server, header.round, self.source.randbytes(32)) for m in roster.clients]
            for server in header.servers
        ]
        keys = [world.where(one).identity.signing for one in header.servers]
        peers = {one: world.where(one).identity.peer for one in header.servers}
        gc.collect()
        begin = time.perf_counter()
        signed = SignedHeader(header, tuple(header.sign(key) for key in keys))
        for _ in keys:
            signed.verify(peers)
        leaf_fold = LeafFold(header, roster, tree, 0, self.mac_keys, TagSet(1 << 20), payload_xor())
        for raw in envelopes:
            leaf_fold.absorb(raw)
        sent = leaf_fold.close(leaf.signing).encode()
        partials, commitments = [], []
        for pairs, server in zip(secrets, header.servers, strict=True):
            pads = RoundPads.prepare(header, pairs, self.xor)
            total = Aggregate.decode(sent, header.shape)
            check_aggregate(total, header, tree, len(roster.clients), 2)
            partial = pads.partial(total.participants)
            partials.append(partial)
            commitments.append(
                commitment(header.instance, header.round, total.digest, server, partial)
            )
        for _ in keys:
            total = Aggregate.decode(sent, header.shape)
            for server, made, partial in zip(header.servers, commitments, partials, strict=True):
                check_reveal(
                    made, header.instance, header.round, total.digest, server, partial, header.shape
                )
            record = Record(
                header=header,
                clients=len(roster.clients),
                participants=total.participants,
                aggregate=total.digest,
                commitments=tuple(commitments),
                payload=finalize(total.payload, partials),
            )
            final = SignedRecord(record, tuple(record.sign(key) for key in keys))
            final.verify(peers)
        return time.perf_counter() - begin

    @property
    def roster(self) -> Roster:
        """Of the epoch, in which everybody is."""
        clients = [c.member for c in self.state.clients.values() if c.member is not None]
        servers = [s.member for s in self.state.active() if s.member is not None]
        both = ([Member(key.member, key.key) for key in keys] for keys in (clients, servers))
        return Roster.of(*both)


async def take(reader: AsyncIterator[Entry]) -> Entry:
    """The next one."""
    return await anext(reader)


async def rounds(clients: int, runs: int) -> tuple[list[float], list[float], int]:
    """Seconds of each round here and bare, and the bytes of a payload."""
    network = await LocalNetwork.open()
    try:
        stage = Stage(clients)
        await stage.open(network)
        await stage.round()
        found = [await stage.round() for _ in range(runs)]
        size = stage.world.config.shape.payload_bytes
        return [ours for ours, _ in found], [bare for _, bare in found], size
    finally:
        await network.close()


def work(runs: int, sizes: tuple[int, ...]) -> Iterator[Figure]:
    """The cost of rounds as their number of clients doubles."""
    took = {}
    for clients in sizes:
        ours, bare, size = asyncio.run(rounds(clients, runs))
        took[clients] = median(ours)
        name = f"{clients:,} clients x {size / 1024:.0f} KiB"
        yield Figure(f"{name}: committee and aggregator", 1e3 * median(ours), "ms")
        yield Figure(f"{name}: the same functions bare", 1e3 * median(bare), "ms")
        limit = OVERHEAD if clients == max(sizes) else 0
        over = ratio(ours, bare)
        yield Figure(f"{name}: running / bare", over, "x", **({"most": limit} if limit else {}))
        yield Figure(f"{name}: per client", 1e6 * median(ours) / clients, "µs")
        yield Figure(f"{name}: per byte of a payload", 1e9 * median(ours) / clients / size, "ns")
    small, middle, large = sizes[0], sizes[-2], sizes[-1]
    few = (took[middle] - took[small]) / (middle - small)
    many = (took[large] - took[middle]) / (large - middle)
    yield Figure(
        f"one more client: {middle} to {large} / {small} to {middle}",
        many / few,
        "x",
        most=LINEAR,
    )


def endurance(seconds: float, clients: int) -> Iterator[Figure]:
    """Clients that talk for so long."""
    found = asyncio.run(
        soak(
            seconds,
            clients,
            num_slots=64,
            num_sched_slots=512,
            round_period_ms=2_000,
            fold_deadline_ms=1_500,
        )
    )
    name = f"{clients} clients for {seconds:g} s"
    yield Figure(f"{name}: rounds", found.rounds, "", least=1)
    yield Figure(f"{name}: rounds without a record", found.missed, "", most=0)
    yield Figure(f"{name}: longest time between two", found.longest_s, "s")
    yield Figure(f"{name}: messages that landed", found.landed, "", least=1)
    yield Figure(f"{name}: resident memory when warm", found.before / (1 << 20), "MiB")
    yield Figure(f"{name}: its growth after that", 100 * found.growth, "%", -100, 100 * GROWTH)


@click.command()
@click.option("--runs", default=7, show_default=True, help="Rounds of each kind; medians count.")
@click.option("--soak", "seconds", default=60.0, show_default=True, help="Seconds; 0 for none.")
@click.option("--clients", default=300, show_default=True, help="Clients of the soak.")
@click.option("--quick", is_flag=True, help="Fewer rounds, and no soak.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def main(runs: int, seconds: float, clients: int, quick: bool, as_json: bool) -> None:
    """Measure a running instance; exit 1 if a figure is out of its limit."""
    found = list(work(3 if quick else runs, SIZES))
    if seconds and not quick:
        found += endurance(seconds, clients)
    sys.exit(0 if show(found, as_json) else 1)


if __name__ == "__main__":
    main()
