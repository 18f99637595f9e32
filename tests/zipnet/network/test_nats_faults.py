"""A cluster of three under faults: what was acknowledged is there, once, and readers see it all."""

import asyncio
import secrets
import signal
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator
from contextlib import AsyncExitStack
from dataclasses import dataclass, field

import pytest

from tests.zipnet.network.conformance import take
from tests.zipnet.network.nats_cluster import Cluster
from tests.zipnet.network.nats_harness import member_key
from zipnet.errors import Lagged, Unavailable
from zipnet.network.base import Entry, Log
from zipnet.network.nats import NatsNetwork

pytestmark = pytest.mark.slow

WRITERS = 12
# What each writer must have acknowledged before the fault, and from when it is over.
BEFORE, AFTER = 10, 20
# From the end of a fault; an election takes up to 9 s, and the machine may be busy.
PATIENCE = 60.0


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    with Cluster(tmp_path_factory.mktemp("faults"), 3) as running:
        yield running


@dataclass(slots=True)
class Scene:
    """Twelve writers and a reader, at nodes as they come."""

    cluster: Cluster
    token: str
    acked: dict[str, int] = field(default_factory=dict)
    unknown: set[str] = field(default_factory=set)
    read: list[Entry] = field(default_factory=list)
    counts: Counter[int] = field(default_factory=Counter)
    last_ack: float = 0.0
    stall: float = 0.0
    over: bool = False

    @property
    def stream(self) -> str:
        return f"{self.token}_L_log"

    async def connect(self, number: int = 0) -> NatsNetwork:
        return await NatsNetwork.connect(
            self.cluster.urls,
            token=self.token,
            public=frozenset(),
            key=member_key(number),
            timeout=PATIENCE,
        )

    async def write(self, number: int, log: Log) -> None:
        at = 0
        while not self.over:
            key = f"w{number}-{at}"
            try:
                seq = await log.append(key.encode() * 100, key=key, deadline=12.0)
            except Unavailable:
                # Loud: it may be there or not, and is tried again under the same key.
                self.unknown.add(key)
                continue
            now = time.monotonic()
            if self.last_ack:
                self.stall = max(self.stall, now - self.last_ack)
            self.last_ack = now
            assert key not in self.acked
            self.acked[key] = seq
            self.counts[number] += 1
            at += 1

    async def follow(self, log: Log) -> None:
        async for entry in log.read():
            self.read.append(entry)

    async def reach(self, more: int) -> None:
        """Until each writer had so many more acknowledged."""
        wanted = {number: self.counts[number] + more for number in range(WRITERS)}
        async with asyncio.timeout(PATIENCE):
            while any(self.counts[number] < least for number, least in wanted.items()):
                await asyncio.sleep(0.02)


async def under(cluster: Cluster, fault: Callable[[Scene], Awaitable[None]]) -> Scene:
    """Write and read through a fault; then check what became of each entry."""
    scene = Scene(cluster, secrets.token_hex(8))
    async with AsyncExitStack() as stack, asyncio.TaskGroup() as group:
        networks = [await scene.connect(number % 3) for number in range(4)]
        for network in networks:
            stack.push_async_callback(network.close)
        logs = [await network.log("log") for network in networks]
        writers = [group.create_task(scene.write(n, logs[n % 3])) for n in range(WRITERS)]
        follower = group.create_task(scene.follow(logs[3]))
        await scene.reach(BEFORE)
        await fault(scene)
        await scene.reach(AFTER)
        scene.over = True
        await asyncio.wait(writers)
        await check(scene, logs[3], follower)
    return scene


async def check(scene: Scene, log: Log, follower: asyncio.Task[None]) -> None:
    first, last = await log.bounds()
    assert first == 1
    stored = await take(log.read(), last)
    assert [entry.seq for entry in stored] == list(range(1, last + 1))
    by_key = {entry.key: entry.seq for entry in stored}
    lost = [key for key, seq in scene.acked.items() if by_key.get(key) != seq]
    doubled = last - len(by_key)
    assert (len(lost), doubled) == (0, 0)
    # Nothing is there that nobody wrote.
    assert by_key.keys() <= scene.acked.keys() | scene.unknown
    async with asyncio.timeout(PATIENCE):
        while len(scene.read) < last:
            await asyncio.sleep(0.02)
    follower.cancel()
    assert scene.read == stored
    print(
        f"stall {scene.stall:.1f} s, acknowledged {len(scene.acked)}, lost {len(lost)}, "
        f"doubled {doubled}, outcome once unknown {len(scene.unknown)}"
    )


def run(cluster: Cluster, fault: Callable[[Scene], Awaitable[None]]) -> Scene:
    try:
        return asyncio.run(under(cluster, fault))
    finally:
        cluster.start()


def test_kill_the_leader(cluster: Cluster) -> None:
    async def fault(scene: Scene) -> None:
        leader = await asyncio.to_thread(cluster.stream_leader, scene.stream)
        cluster.kill(leader)
        await scene.reach(AFTER)
        await asyncio.to_thread(cluster.revive, leader)

    run(cluster, fault)


def test_two_of_three_down_and_back(cluster: Cluster) -> None:
    async def fault(scene: Scene) -> None:
        leader = await asyncio.to_thread(cluster.stream_leader, scene.stream)
        other = (leader + 1) % 3
        cluster.kill(leader)
        cluster.kill(other)
        await asyncio.sleep(1)
        before = len(scene.acked)
        await asyncio.sleep(3)
        # One of three decides nothing.
        assert len(scene.acked) == before
        await asyncio.to_thread(cluster.start)

    run(cluster, fault)


def test_freeze_the_leader(cluster: Cluster) -> None:
    async def fault(scene: Scene) -> None:
        leader = await asyncio.to_thread(cluster.stream_leader, scene.stream)
        cluster.stop_signal(leader)
        try:
            await scene.reach(5)
        finally:
            cluster.signal(leader, signal.SIGCONT)

    run(cluster, fault)


def test_a_wiped_disk(cluster: Cluster) -> None:
    async def fault(scene: Scene) -> None:
        cluster.kill(0)
        cluster.wipe(0)
        await scene.reach(AFTER)
        await asyncio.to_thread(cluster.revive, 0)
        await asyncio.to_thread(current, scene)
        # What it has now is needed: the one that leads goes away.
        leader = await asyncio.to_thread(cluster.stream_leader, scene.stream)
        other = leader or 1
        cluster.kill(other)
        await scene.reach(AFTER)

    def current(scene: Scene) -> None:
        end = time.monotonic() + PATIENCE
        while time.monotonic() < end:
            leader = cluster.stream_leader(scene.stream)
            for account in cluster.ask(leader, "/jsz?streams=1&accounts=1")["account_details"]:
                for one in account["stream_detail"]:
                    if one["name"] == scene.stream and all(
                        peer.get("current") and not peer.get("lag")
                        for peer in one["cluster"].get("replicas", [])
                    ):
                        return
            time.sleep(0.1)
        raise AssertionError("the wiped node does not come back")

    run(cluster, fault)


def test_listeners_are_told_when_their_node_dies(cluster: Cluster) -> None:
    async def body() -> None:
        scene = Scene(cluster, secrets.token_hex(8))
        network, other = await scene.connect(), await scene.connect(1)
        try:
            wire = network._connection._wire
            assert wire is not None
            number = next(n.number for n in cluster.nodes if n.name == wire.server)
            async with network.channel("c").listen("t") as listener:
                cluster.kill(number)
                with pytest.raises(Lagged) as caught:
                    await asyncio.wait_for(anext(listener), PATIENCE)
                assert caught.value.rule == "listen.reconnect"
                # The sender may have been at the same node.
                async with asyncio.timeout(PATIENCE):
                    while True:
                        await other.channel("c").send("t", b"after")
                        try:
                            message = await asyncio.wait_for(anext(listener), 1)
                            break
                        except TimeoutError:
                            continue
                assert message.data == b"after"
        finally:
            await network.close()
            await other.close()

    try:
        asyncio.run(body())
    finally:
        cluster.start()
