"""What the committee's part of a round costs, and what a registered client takes in memory."""

import gc
import random
import time
import tracemalloc
from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import replace
from statistics import median
from typing import Any

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

from benchmarks._figures import Figure, seconds
from tests.simulator.world import World
from zipnet.committee import bodies
from zipnet.committee.commands import kind_name
from zipnet.committee.machine import Machine
from zipnet.protocol.keyring import KeyRing
from zipnet.protocol.roster import Member

SERVERS = 3
BATCH = 100
KIB = 1024


class Timed:
    """A core that adds up the seconds that are spent in it."""

    def __init__(self, core: Any) -> None:
        self._core = core
        self.spent = 0.0

    def __getattr__(self, name: str) -> Any:
        return getattr(self._core, name)

    def _timed(self, what: Callable[..., Any], *given: Any) -> Any:
        begin = time.perf_counter()
        try:
            return what(*given)
        finally:
            self.spent += time.perf_counter() - begin

    def apply(self, *given: Any) -> Any:
        return self._timed(self._core.apply, *given)

    def due(self, *given: Any) -> Any:
        return self._timed(self._core.due, *given)


class Town:
    """Three servers and so many clients, with the shape of 64 slots of 256 bytes."""

    def __init__(self, clients: int) -> None:
        self.world = world = World(
            3,
            servers=SERVERS,
            clients=clients,
            config=lambda config: replace(config, wire_size=240),
            num_slots=64,
            num_sched_slots=512,
            max_clients=2 * clients,
            epoch_rounds=64,
        )
        for site in world.sites:
            world.join(site)
        world.say(world.sites[0], bodies.RotateAllowList(world.allow_list()))
        for site in world.sites:
            world.say(site, bodies.Assign((world.tree,)))
        for user in world.users:
            world.register(user)
        end = world.now_ms // 1000 + 86_400
        known = [
            bodies.Voucher(one.id, one.registration, end, world.draw(32))
            for one in world.state.clients.values()
        ]
        for site in world.sites:
            for at in range(0, len(known), BATCH):
                world.say(site, bodies.Vouch(tuple(known[at : at + BATCH])))
        self.clients = clients
        self.rounds: list[float] = []
        timed: Any = Timed(world.sites[0].core)
        world.sites[0].core = timed
        self._timed = timed

    def run(self, rounds: int) -> None:
        """Whole rounds; in the first one the epoch opens, and keys for the next follow it."""
        for _ in range(rounds):
            before = self._timed.spent
            self.world.round()
            self.rounds.append(self._timed.spent - before)
            if len(self.rounds) == 1:
                self.post_keys()
        assert not self.world.state.refused, self.world.state.refused

    def post_keys(self) -> None:
        world, epoch = self.world, self.world.state.next_epoch()
        keys = [user.core.epoch_key(epoch, world.now_ms) for user in world.users]
        for at in range(0, len(keys), BATCH):
            world.say(world.sites[0], bodies.EpochKeys(tuple(keys[at : at + BATCH])))

    def replay(self) -> tuple[Machine, dict[str, list[float]]]:
        """A fresh machine at the end of the log, and the seconds of each kind of command."""
        machine = Machine.genesis(self.world.rules, self.world.instance)
        took: dict[str, list[float]] = defaultdict(list)
        for seq, raw in enumerate(self.world.log, 1):
            begin = time.perf_counter()
            machine.apply(seq, raw)
            took[kind_name(raw)].append(time.perf_counter() - begin)
        return machine, took


def rows(clients: int, rounds: int) -> Iterator[Figure]:
    """The committee's costs at this number of clients; then memory, with its limit."""
    town = Town(clients)
    town.run(1 + rounds)
    machine, took = town.replay()
    for kind, values in sorted(took.items()):
        many = f", {BATCH} at once" if kind in ("EpochKeys", "Vouch") else ""
        yield Figure(f"apply {kind}{many}", 1e6 * median(values), "µs")
    snapshots = [seconds(machine.snapshot) for _ in range(rounds)]
    yield Figure("snapshot", 1e3 * median(snapshots), "ms")
    yield Figure("snapshot per client", len(machine.snapshot()) / clients, "bytes")
    whole = median(town.rounds[1:])
    yield Figure(f"one server's work in a round, {clients:,} clients", 1e3 * whole, "ms")
    yield Figure("one server's work in a round, per client", 1e6 * whole / clients, "µs")
    yield Figure("the same in a first round of an epoch, per client",
                 1e6 * town.rounds[0] / clients, "µs")  # fmt: skip
    del machine
    yield from memory(town)


def memory(town: Town) -> Iterator[Figure]:
    """What is freed if the clients are forgotten, in a machine that has followed the log or that
    comes from a snapshot; and what a server's pairs with them take."""
    raw = town.world.sites[0].core.machine.snapshot()
    pairs = pair_bytes(town) / town.clients
    for name, make in (
        ("from the log", lambda: town.replay()[0]),
        ("from a snapshot", lambda: Machine.restore(town.world.rules, raw)),
    ):
        state = client_bytes(make) / town.clients
        yield Figure(f"memory per client in a state {name}", state, "bytes")
        yield Figure(f"memory per client in a server {name}", state + pairs, "bytes", most=2 * KIB)
    yield Figure("of that a Pair and its place in the keyring", pairs, "bytes")


def client_bytes(make: Callable[[], Machine]) -> int:
    """The memory that goes with a machine's clients, all vouched for, with keys of two epochs."""
    tracemalloc.start()
    try:
        machine = make()
        clients = machine.state.clients
        vouched = {(len(c.vouchers), bool(c.member), bool(c.next_key)) for c in clients.values()}
        assert vouched == {(SERVERS, True, True)}, vouched
        del clients
        gc.collect()
        before = tracemalloc.get_traced_memory()[0]
        machine.state.clients = {}
        gc.collect()
        return before - tracemalloc.get_traced_memory()[0]
    finally:
        tracemalloc.stop()


def pair_bytes(town: Town) -> int:
    """The memory of a keyring that has opened an epoch with all clients."""
    source = random.Random(1)
    state = town.world.state
    server = state.active()[0]
    ring = KeyRing(server.id)
    secret = X25519PrivateKey.from_private_bytes(source.randbytes(32))
    signer = Ed25519PrivateKey.from_private_bytes(source.randbytes(32))
    ring.offer(state.instance, 1, 1, secret, signer)
    members = [Member(c.id, c.member.key) for c in state.clients.values() if c.member]
    gc.collect()
    tracemalloc.start()
    try:
        ring.open(state.instance, 1, 1, members, server=True)
        gc.collect()
        return tracemalloc.get_traced_memory()[0]
    finally:
        tracemalloc.stop()
