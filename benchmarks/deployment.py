"""What the bus's port adds to nats-py: `python -m benchmarks.deployment`.

A cluster of three nodes on loopback, flushed at each write, as operators run it. Ours and bare
nats-py take turns in one run, so that ratios hold on whatever machine; times don't. Envelopes come
from a process of their own, as they do in a deployment.

Admissions are a door's whole answer to a nats-server, with a quote of 5 kB, against the validators
alone. Nothing is sent for them: what that costs is the nats-server's.
"""

from __future__ import annotations

import asyncio
import multiprocessing
import os
import secrets
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from statistics import median

import click
import nats
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from nats.aio.client import Client
from nats.aio.msg import Msg

from attestation.bundle import Bundle
from benchmarks._figures import Figure, in_turns, ratio, seconds, show
from tests.zipnet.network.callouts import SERVER, SERVER_ID, claims, credentials
from tests.zipnet.network.guarded import Site, fresh_identity
from tests.zipnet.network.nats_cluster import Cluster
from zipnet.committee import bodies
from zipnet.committee.events import Applied
from zipnet.committee.machine import Machine
from zipnet.committee.state import Rules
from zipnet.config import MAX_QUOTA
from zipnet.demo import Operators, Volatile, clock, demo_window
from zipnet.network.group import Group, Tip
from zipnet.network.nats import NatsNetwork
from zipnet.network.nkeys import Kind, sign_token
from zipnet.operators import Endorsement
from zipnet.protocol.pads import keystream_xor
from zipnet.roles.server_core import ServerCore

# Times what is bare: a round's fan-in, a command, an admission. Beside the validators a door checks
# two signatures, the server's and the client's over its nonce, and makes two.
FAN_IN, EXECUTE, ADMIT = 1.5, 1.5, 2.0
ENVELOPE = 16 << 10
# Bytes in the body: of a Tick, and as many as a partial has.
COMMANDS = (0, 16 << 10)
NODES = 3
GO, SENT = "bench.go", "bench.sent"
TOKEN = "be" * 8
WAIT_S = 120.0


def sender(url: str) -> None:
    """A process that sends envelopes where it is told to: `subject number` on GO."""

    async def work() -> None:
        bus = await nats.connect(url)
        payload = secrets.token_bytes(ENVELOPE)

        async def burst(order: Msg) -> None:
            subject, number = order.data.decode().split()
            for _ in range(int(number)):
                await bus.publish(subject, payload)
            await bus.flush()

        await bus.subscribe(GO, cb=burst)
        await bus.flush()
        await bus.publish(SENT, b"ready")
        await asyncio.Event().wait()

    asyncio.run(work())


async def fan_in(url: str, runs: int, number: int) -> tuple[list[float], list[float]]:
    """Seconds to receive so many envelopes: on the port's channel, and by nats-py."""
    bus = await nats.connect(url)
    network = await member(url, 1)
    ready = await bus.subscribe(SENT)
    await bus.flush()
    context = multiprocessing.get_context("spawn")
    child = context.Process(target=sender, args=(url,), daemon=True)
    child.start()
    try:
        await ready.next_msg(WAIT_S)
        found = []
        for _ in range(runs + 1):
            ours = await _ours(bus, network, number)
            found.append((ours, await _bare(bus, number)))
        return [ours for ours, _ in found[1:]], [bare for _, bare in found[1:]]
    finally:
        child.kill()
        child.join()
        await network.close()
        await bus.close()


async def _ours(bus: Client, network: NatsNetwork, number: int) -> float:
    topic = f"node.{secrets.token_hex(8)}"
    async with network.channel("submit").listen(f"{topic}.*") as messages:
        begin = time.perf_counter()
        await bus.publish(GO, f"{TOKEN}.ch.submit.{topic}.client {number}".encode())
        for _ in range(number):
            message = await anext(messages)
            assert len(message.data) == ENVELOPE
        return time.perf_counter() - begin


async def _bare(bus: Client, number: int) -> float:
    subject = f"bare.{secrets.token_hex(8)}"
    heard = await bus.subscribe(f"{subject}.*", pending_msgs_limit=0, pending_bytes_limit=0)
    await bus.flush()
    begin = time.perf_counter()
    await bus.publish(GO, f"{subject}.client {number}".encode())
    for _ in range(number):
        message = await heard.next_msg(WAIT_S)
        assert len(message.data) == ENVELOPE
    spent = time.perf_counter() - begin
    await heard.unsubscribe()
    return spent


async def member(url: str, replicas: int) -> NatsNetwork:
    """A member's connection to a node."""
    key = Ed25519PrivateKey.generate()
    return await NatsNetwork.connect(
        [url], token=TOKEN, public=frozenset(), replicas=replicas, key=key, timeout=60
    )


class Committee:
    """One replica, with the server of one operator, on a log of the bus; and a bare stream."""

    def __init__(self, network: NatsNetwork, bus: Client) -> None:
        self._network = network
        self._operators = Operators.new("bench.test", demo_window(byte_quota=MAX_QUOTA))
        self._identity = fresh_identity()
        self._stream = bus.jetstream()
        self._core: ServerCore
        self._group: Group

    async def run(self, runs: int, number: int) -> list[Figure]:
        """Open both, and measure each size of commands."""
        operators = self._operators
        self._group = await Group.open(
            self._network, Rules.of(operators.config), operators.instance, Tip(), self._connect
        )
        # As the log's stream is.
        await self._stream.add_stream(
            name="bare", subjects=["bare.log"], num_replicas=NODES, duplicate_window=120
        )
        running = asyncio.create_task(self._group.run())
        try:
            await self._execute(self._core.join(self._endorsement(), clock()))
            found = []
            for size in COMMANDS:
                found += await self._measure(size, runs, number)
            return found
        finally:
            running.cancel()
            await asyncio.gather(running, return_exceptions=True)

    def _endorsement(self) -> Endorsement:
        made, key = self._identity, self._operators.keys["alpha"]
        return Endorsement.make(self._operators.instance, key, made.peer, made.dh_pub, clock())

    def _connect(
        self, machine: Machine
    ) -> tuple[Callable[[int, bytes], Applied], Callable[[Applied], None]]:
        self._core = ServerCore(
            machine, self._identity, store=Volatile(), xor=keystream_xor(), draw=os.urandom
        )
        return self._core.apply, lambda _applied: None

    async def _measure(self, size: int, runs: int, number: int) -> list[Figure]:
        ours, bare, length = [], [], 0
        for _ in range(runs + 1):
            ours.append(await self._executed(size, number))
            length = len(self._command(size))
            bare.append(await self._published(length, number))
        over, name = ratio(ours[1:], bare[1:]), f"command of {length:,} bytes"
        return [
            Figure(f"{name}: execute, p50", 1e3 * median(ours[1:]), "ms"),
            Figure(f"{name}: acked publish of nats-py, p50", 1e3 * median(bare[1:]), "ms"),
            Figure(f"{name}: execute / publish", over, "x", most=EXECUTE),
        ]

    def _command(self, size: int) -> bytes:
        # What is no list is refused at the end of all that is asked of a command.
        body = bodies.RotateAllowList(os.urandom(size)) if size else bodies.Tick()
        return self._core.command(body, 0, clock())

    async def _executed(self, size: int, number: int) -> float:
        took = []
        for _ in range(number):
            raw = self._command(size)
            begin = time.perf_counter()
            await self._execute(raw)
            took.append(time.perf_counter() - begin)
        return median(took)

    async def _execute(self, raw: bytes) -> None:
        applied = await self._group.execute(raw)
        assert applied.rule in ("", "envelope.json"), applied

    async def _published(self, length: int, number: int) -> float:
        took = []
        for _ in range(number):
            raw = os.urandom(length)
            headers = {"Nats-Msg-Id": secrets.token_hex(32)}
            begin = time.perf_counter()
            await self._stream.publish("bare.log", raw, headers=headers, stream="bare")
            took.append(time.perf_counter() - begin)
        return median(took)


async def on_the_bus(urls: Sequence[str], runs: int, envelopes: int, commands: int) -> list[Figure]:
    """Fan-in, and commands."""
    ours, bare = await fan_in(urls[0], runs, envelopes)
    name = f"fan-in of {envelopes:,} x {ENVELOPE >> 10} KiB"
    found = [
        Figure(f"{name}: a channel", 1e3 * median(ours), "ms"),
        Figure(f"{name}: nats-py", 1e3 * median(bare), "ms"),
        Figure(f"{name}: channel / nats-py", ratio(ours, bare), "x", most=FAN_IN),
    ]
    network, bus = await member(urls[0], NODES), await nats.connect(urls[0])
    try:
        return found + await Committee(network, bus).run(runs, commands)
    finally:
        await network.close()
        await bus.close()


def admissions(folder: Path, runs: int, number: int) -> Iterator[Figure]:
    """Tickets that a door has not seen before, each with a quote of its own."""
    site = Site(folder)
    state = site.state()
    door, gate = site.door("alpha", state, (runs + 1) * number), site.gate(state)
    issuer = site.keys("alpha").public["issuer"]

    def made() -> tuple[bytes, Bundle]:
        identity = fresh_identity()
        bundle = site.bundle(identity)
        stated = claims(credentials(identity.signing, bundle))
        stated["sub"] = issuer
        return sign_token(stated, Kind.SERVER, SERVER).encode(), Bundle.decode(bundle)

    both = iter([made() for _ in range((runs + 1) * number)])
    asked: list[tuple[bytes, Bundle]] = []

    def answered() -> float:
        asked[:] = [next(both) for _ in range(number)]
        return seconds(lambda: [door.decide(raw, SERVER_ID) for raw, _ in asked])

    def validated() -> float:
        return seconds(lambda: [gate.check(bundle) for _, bundle in asked])

    ours, bare = in_turns(runs, answered, validated)
    assert (door.admitted, door.refused) == ((runs + 1) * number, {})
    yield Figure("admissions: a door's answers", number / median(ours), "1/s")
    yield Figure("admissions: the validators alone", number / median(bare), "1/s")
    yield Figure("admissions: answer / validation", ratio(ours, bare), "x", most=ADMIT)


@click.command()
@click.option("--runs", default=7, show_default=True, help="Runs of each kind; medians count.")
@click.option("--quick", is_flag=True, help="Fewer runs, of less.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def main(runs: int, quick: bool, as_json: bool) -> None:
    """Measure a deployment's bus; exit 1 if a ratio is out of its limit."""
    runs, envelopes, commands, tickets = (2, 200, 20, 10) if quick else (runs, 1000, 200, 50)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        found = list(admissions(folder, runs, tickets))
        with Cluster(folder / "bus", NODES) as cluster:
            found += asyncio.run(on_the_bus(cluster.urls, runs, envelopes, commands))
    sys.exit(0 if show(found, as_json) else 1)


if __name__ == "__main__":
    main()
