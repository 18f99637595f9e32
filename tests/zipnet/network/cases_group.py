"""The committee's log on an engine: order, checkpoints, late joiners, and loud ends."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from functools import cache
from unittest.mock import patch

import pytest
from blake3 import blake3

from tests.simulator.world import World
from tests.zipnet.network.conformance import Bench, Suite, eventually, soon
from zipnet.committee import bodies, snapshot
from zipnet.committee.events import Applied, Verdict
from zipnet.committee.machine import Machine
from zipnet.committee.snapshot import digest as state_digest
from zipnet.committee.state import SignedCheckpoint
from zipnet.errors import (
    BlobMissing,
    LogBroken,
    SnapshotRejected,
    Unavailable,
    WireFormatError,
    ZipnetError,
)
from zipnet.network import group as group_module
from zipnet.network.base import Network
from zipnet.network.group import LATEST, Group, Pointer, Tip, checkpoint_signed
from zipnet.network.places import Places
from zipnet.protocol.header import NO_HASH

GROUP = Suite()
START = Tip()


class Replica:
    """A group without a server around it; `applied` is all that it has taken in."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.applied: list[Applied] = []
        self.group: Group

    async def open(self, network: Network, known: Tip = START) -> Replica:
        self.group = await Group.open(
            network,
            self.world.rules,
            self.world.instance,
            known,
            lambda machine: (machine.apply, self.applied.append),
        )
        return self

    @property
    def machine(self) -> Machine:
        return self.group.machine


@cache
def history() -> World:
    """Sixteen rounds and the checkpoint after them, which all servers have signed."""
    world = World(5, clients=2).start()
    while world.checkpoint is None:
        world.round()
    return world


@asynccontextmanager
async def running(*replicas: Replica, known: Tip = START) -> AsyncIterator[None]:
    tasks = [asyncio.create_task(replica.group.run(known)) for replica in replicas]
    try:
        yield
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def replicas(bench: Bench, world: World) -> list[Replica]:
    """Of three servers, on three handles."""
    return [await Replica(world).open(network) for network in (bench.a, bench.b, bench.c)]


def fresh(bench: Bench) -> World:
    """A deployment that has the engine to itself, before its first entry."""
    return World(sum(bench.name().encode()), clients=0)


def joins(world: World) -> list[bytes]:
    found = []
    for site in world.sites:
        world.join(site)
        found.append(world.log[-1])
    return found


def ticks(world: World, number: int) -> list[bytes]:
    """Commands that may come in any order: each is tied to the beginning of the log."""
    world.now_ms += 1000
    made = []
    for at in range(number):
        site = world.sites[at % len(world.sites)]
        core = world.server_core(
            Machine.genesis(world.rules, world.instance), site.identity, site.disk, site.ledger, 0
        )
        made.append(core.command(bodies.Tick(), 0, world.now_ms + at))
    return made


async def log_of(network: Network, world: World) -> str:
    return Places.of(world.instance.deployment_id).log(world.instance)


async def write(network: Network, world: World, entries: list[bytes]) -> None:
    log = await network.log(await log_of(network, world))
    # All at once, as one disk write each would take long; the order must be theirs all the same.
    calls = [log.append(raw, key=blake3(raw).hexdigest()) for raw in entries]
    assert await soon(asyncio.gather(*calls)) == list(range(1, len(entries) + 1))


async def caught_up(*found: Replica) -> None:
    async def same() -> bool:
        return len({one.group.tip.seq for one in found}) == 1

    await eventually(same)


async def checkpointed(bench: Bench, *, keep: int = 5) -> tuple[World, Replica]:
    """A replica that has followed the history and published its checkpoint."""
    world = history()
    replica = await Replica(world).open(bench.a)
    await write(bench.b, world, world.log)
    async with running(replica):
        await soon(replica.group.wait(len(world.log)))
        found = [checkpoint_signed(one) for one in replica.applied]
        (seq,) = [one for one in found if one is not None]
        with patch.object(group_module, "KEEP", keep):
            await replica.group.publish_checkpoint(seq)
    return world, replica


async def place(bench: Bench, world: World, pointer: Pointer | bytes) -> None:
    """Put a pointer where late joiners find it."""
    table = await bench.b.table(await log_of(bench.b, world))
    raw = pointer if isinstance(pointer, bytes) else pointer.encode()
    await table.put(LATEST, raw)


async def pointer_of(bench: Bench, world: World) -> Pointer:
    table = await bench.b.table(await log_of(bench.b, world))
    item = await table.get(LATEST)
    assert item is not None
    assert item.value is not None
    return Pointer.decode(item.value)


@GROUP.case("same order")
async def same_order(bench: Bench) -> None:
    world = fresh(bench)
    found = await replicas(bench, world)
    async with running(*found):
        for raw in joins(world):
            await soon(found[0].group.execute(raw))
        calls = [found[at % 3].group.execute(raw) for at, raw in enumerate(ticks(world, 60))]
        results = await soon(asyncio.gather(*calls))
        assert {one.verdict for one in results} == {Verdict.APPLIED}
        assert sorted(one.seq for one in results) == list(range(4, 64))
        await caught_up(*found)
    lists = [[(one.seq, one.verdict, one.rule) for one in each.applied] for each in found]
    assert lists[0] == lists[1] == lists[2]
    assert len(lists[0]) == 63


@GROUP.case("same chain")
async def same_chain(bench: Bench) -> None:
    world = fresh(bench)
    found = await replicas(bench, world)
    async with running(*found):
        calls = [found[at % 3].group.execute(raw) for at, raw in enumerate(joins(world))]
        await soon(asyncio.gather(*calls))
        await caught_up(*found)
    assert len({one.group.tip for one in found}) == 1
    assert found[0].group.tip.head != NO_HASH
    assert len({one.machine.snapshot() for one in found}) == 1


@GROUP.case("one round opener")
async def one_round_opener(bench: Bench) -> None:
    world = World(7, clients=2).start()
    world.post_keys()
    world.pass_time(world.config.window.round_period_ms)
    found = await replicas(bench, world)
    await write(bench.a, world, world.log)
    async with running(*found):
        for replica in found:
            await soon(replica.group.wait(len(world.log)))
        calls = [
            replica.group.execute(
                site.core.command(bodies.ProposeHeader(), world.state.next_round, world.now_ms)
            )
            for replica, site in zip(found, world.sites, strict=True)
        ]
        results = await soon(asyncio.gather(*calls))
    assert sorted(one.rule for one in results) == ["", "propose.in-flight", "propose.in-flight"]


@GROUP.case("late joiner from snapshot and tail")
async def late_joiner(bench: Bench) -> None:
    world, early = await checkpointed(bench)
    raw = world.sites[0].core.command(bodies.Tick(), 0, world.now_ms + 1)
    late = await Replica(world).open(await bench.d())
    assert late.group.tip.seq == (await pointer_of(bench, world)).checkpoint.seq
    again = await Replica(world).open(bench.c, early.group.tip)
    async with running(late), running(again, known=early.group.tip):
        applied = await soon(late.group.execute(raw))
        assert applied.verdict is Verdict.APPLIED
        await caught_up(late, again)
    # As whoever was there from the beginning.
    early.machine.apply(applied.seq, raw)
    assert {one.machine.snapshot() for one in (late, again)} == {early.machine.snapshot()}
    assert late.group.tip == again.group.tip


@GROUP.case("trimmed")
async def trimmed(bench: Bench) -> None:
    world, _ = await checkpointed(bench, keep=5)
    log = await bench.c.log(await log_of(bench.c, world))
    first, last = await log.bounds()
    assert (first, last) == ((await pointer_of(bench, world)).checkpoint.seq - 4, len(world.log))
    assert first > 1


@GROUP.case("trimmed beyond what can be restored")
async def trimmed_too_far(bench: Bench) -> None:
    world, _ = await checkpointed(bench)
    table = await bench.a.table(await log_of(bench.a, world))
    await table.delete(LATEST)
    with pytest.raises(LogBroken) as caught:
        await Replica(world).open(bench.c)
    assert caught.value.rule == "log.gap"


@GROUP.case("same key again after snapshot and trim")
async def same_key_after_trim(bench: Bench) -> None:
    world, _ = await checkpointed(bench)
    old, log = world.log[40], await bench.b.log(await log_of(bench.b, world))
    seq = await log.append(old, key=blake3(old).hexdigest() + ".1")
    known = Replica(world)
    late = await Replica(world).open(bench.c)
    full = Machine.genesis(world.rules, world.instance)
    for at, raw in enumerate([*world.log, old], 1):
        known.applied.append(full.apply(at, raw))
    async with running(late):
        await soon(late.group.wait(seq))
    assert late.applied[-1].verdict is Verdict.DUPLICATE
    assert late.applied[-1] == known.applied[-1]
    assert late.machine.snapshot() == full.snapshot()


@GROUP.case("squatted key")
async def squatted_key(bench: Bench) -> None:
    world = fresh(bench)
    raw = joins(world)[0]
    log = await bench.b.log(await log_of(bench.b, world))
    for suffix in ("", ".1"):
        await log.append(b"junk" + suffix.encode(), key=blake3(raw).hexdigest() + suffix)
    replica = await Replica(world).open(bench.a)
    async with running(replica):
        applied = await soon(replica.group.execute(raw))
    assert (applied.seq, applied.verdict) == (3, Verdict.APPLIED)
    assert [one.verdict for one in replica.applied[:2]] == [Verdict.REFUSED] * 2


@GROUP.case("all keys squatted")
async def all_keys_squatted(bench: Bench) -> None:
    world = fresh(bench)
    raw = joins(world)[0]
    log = await bench.b.log(await log_of(bench.b, world))
    for suffix in ("", *(f".{at}" for at in range(1, 8))):
        await log.append(b"junk" + suffix.encode(), key=blake3(raw).hexdigest() + suffix)
    replica = await Replica(world).open(bench.a)
    async with running(replica):
        with pytest.raises(ZipnetError) as caught:
            await soon(replica.group.execute(raw))
    assert caught.value.rule == "execute.key"


@GROUP.case("execute after its deadline, and again")
async def execute_deadline(bench: Bench) -> None:
    world = fresh(bench)
    raw = joins(world)[0]
    replica = await Replica(world).open(bench.a)
    with pytest.raises(Unavailable) as caught:
        await replica.group.execute(raw, deadline=0.3)  # nothing is applied as yet
    assert caught.value.rule == "execute"
    with pytest.raises(Unavailable):
        await replica.group.wait(1, deadline=0.05)
    async with running(replica):
        applied = await soon(replica.group.execute(raw))
    assert (applied.seq, applied.verdict) == (1, Verdict.APPLIED)
    log = await bench.b.log(await log_of(bench.b, world))
    assert await log.bounds() == (1, 1)


@GROUP.case("a halted group says nothing")
async def halted(bench: Bench) -> None:
    world = fresh(bench)
    one, other, _ = joins(world)
    replica = await Replica(world).open(bench.a)
    async with running(replica):
        await soon(replica.group.execute(one))
        waiting = asyncio.create_task(replica.group.wait(9))
        await asyncio.sleep(0)
    for call in (waiting, replica.group.execute(other), replica.group.wait(2)):
        with pytest.raises(LogBroken) as caught:
            await soon(call)
        assert caught.value.rule == "halted"
    log = await bench.b.log(await log_of(bench.b, world))
    assert await log.bounds() == (1, 1)


@GROUP.case("log shorter than the tip")
async def shorter_log(bench: Bench) -> None:
    world = fresh(bench)
    await write(bench.a, world, joins(world)[:2])
    with pytest.raises(LogBroken) as caught:
        await Replica(world).open(bench.b, Tip(3, bytes(32)))
    assert caught.value.rule == "log.shorter"


@GROUP.case("log with another past than the tip")
async def other_chain(bench: Bench) -> None:
    world = fresh(bench)
    await write(bench.a, world, joins(world))
    known = Tip(2, bytes([1]) * 32)
    replica = await Replica(world).open(bench.b, known)
    with pytest.raises(LogBroken) as caught:
        await soon(replica.group.run(known))
    assert caught.value.rule == "log.chain"
    assert replica.group.halted is caught.value
    with pytest.raises(LogBroken) as halted:
        await replica.group.execute(world.log[-1])
    assert "another past" in halted.value.got


@GROUP.case("checkpoint with another past than the tip")
async def other_chain_checkpoint(bench: Bench) -> None:
    world, _ = await checkpointed(bench)
    seq = (await pointer_of(bench, world)).checkpoint.seq
    with pytest.raises(LogBroken) as caught:
        await Replica(world).open(bench.b, Tip(seq, bytes([1]) * 32))
    assert caught.value.rule == "log.chain"


@GROUP.case("log deleted behind a group's back", needs="delete-log")
async def deleted_log(bench: Bench) -> None:
    world = fresh(bench)
    replica = await Replica(world).open(bench.a)
    raw = joins(world)
    run = asyncio.create_task(replica.group.run())
    for one in raw[:2]:
        await soon(replica.group.execute(one))
    await bench.harness.delete_log(await log_of(bench.a, world))
    asking = asyncio.create_task(replica.group.execute(raw[2]))
    with pytest.raises(LogBroken):
        await soon(run)
    with pytest.raises(LogBroken):
        await soon(asking)
    assert isinstance(replica.group.halted, LogBroken)


@GROUP.case("forged checkpoint")
async def forged_checkpoint(bench: Bench) -> None:
    world, _ = await checkpointed(bench)
    good = await pointer_of(bench, world)
    one = good.checkpoint
    blobs = await bench.b.blobs(Places.of(world.instance.deployment_id).blobs)
    raw = await blobs.get(good.blob)

    async def refused(pointer: Pointer | bytes) -> ZipnetError:
        await place(bench, world, pointer)
        with pytest.raises(ZipnetError) as caught:
            await Replica(world).open(bench.c)
        return caught.value

    def signed(signatures: tuple[tuple[bytes, bytes], ...]) -> Pointer:
        return replace(good, checkpoint=replace(one, signatures=signatures))

    assert isinstance(await refused(b"junk"), WireFormatError)
    assert isinstance(await refused(replace(good, blob=bytes(32))), BlobMissing)
    unsigned = await refused(signed(()))
    assert unsigned.rule == "checkpoint.signatures"
    assert "op0, op1, op2" in unsigned.got
    missing = await refused(signed(one.signatures[:2]))
    assert missing.rule == "checkpoint.signatures"
    stolen = ((one.signatures[0][0], one.signatures[1][1]), *one.signatures[1:])
    assert (await refused(signed(stolen))).rule == "signature"
    later = replace(good, checkpoint=replace(one, seq=one.seq + 1))
    assert (await refused(later)).rule == "checkpoint.state"
    # Another state under the signatures, and a state that signs for itself.
    machine = Machine.restore(world.rules, raw)
    machine.state.next_round += 1
    forged = machine.snapshot()
    assert (await refused(replace(good, blob=await blobs.put(forged)))).rule == "checkpoint.state"
    resigned = SignedCheckpoint(
        one.seq, one.head, state_digest(forged), one.servers, one.signatures
    )
    assert (await refused(Pointer(resigned, await blobs.put(forged)))).rule == "signature"
    assert (await refused(Pointer(one, await blobs.put(raw + b"\0")))).rule == "snapshot.trailing"
    assert (await refused(await self_signed(bench, world, one))).rule == "checkpoint.server"
    # The genuine one is taken all the same.
    await place(bench, world, good)
    assert (await Replica(world).open(bench.c)).group.tip.seq == one.seq


async def self_signed(bench: Bench, world: World, one: SignedCheckpoint) -> Pointer:
    """A state of a bus member's own making, in which servers keep their endorsements only."""
    machine = Machine.genesis(world.rules, world.instance)
    keys = {}
    for raw_peer, server in list(history().state.servers.items()):
        key = world.signing()
        keys[server.id] = key
        peer = key.public_key().public_bytes_raw()
        machine.state.servers[peer] = replace(server, peer=peer)
        assert raw_peer != peer
    machine.state.seq, machine.state.head = one.seq, one.head
    forged = machine.snapshot()
    digest = snapshot.digest(forged)
    statement = bodies.Checkpoint.body(one.seq, one.head, digest)
    signatures = tuple(
        (server, world.instance.sign(key, bodies.SIGN_CHECKPOINT, 0, statement))
        for server, key in sorted(keys.items())
    )
    blobs = await bench.b.blobs(Places.of(world.instance.deployment_id).blobs)
    checkpoint = SignedCheckpoint(one.seq, one.head, digest, tuple(sorted(keys)), signatures)
    return Pointer(checkpoint, await blobs.put(forged))


@GROUP.case("altered blob of a checkpoint", needs="alter-blob")
async def altered_checkpoint(bench: Bench) -> None:
    world, _ = await checkpointed(bench)
    blob = (await pointer_of(bench, world)).blob
    await bench.harness.alter_blob(Places.of(world.instance.deployment_id).blobs, blob)
    with pytest.raises(ZipnetError) as caught:
        await Replica(world).open(bench.c)
    assert not isinstance(caught.value, SnapshotRejected)


@GROUP.case("pointers only go up, and junk does not stay")
async def pointer_goes_up(bench: Bench) -> None:
    world = history()
    found = await replicas(bench, world)
    await write(bench.b, world, world.log)
    async with running(*found):
        for replica in found:
            await soon(replica.group.wait(len(world.log)))
        (seq,) = [s for s in map(checkpoint_signed, found[0].applied) if s is not None]
        table = await bench.c.table(await log_of(bench.c, world))
        await place(bench, world, b"junk")
        await found[0].group.publish_checkpoint(seq)
        good = await pointer_of(bench, world)
        far = replace(good, checkpoint=replace(good.checkpoint, seq=1 << 60))
        await place(bench, world, far)
        await found[1].group.publish_checkpoint(seq)
        assert await pointer_of(bench, world) == good
        before = await table.get(LATEST)
        await found[2].group.publish_checkpoint(seq)
        assert await table.get(LATEST) == before
        # Nothing is left to publish.
        await table.delete(LATEST)
        await found[2].group.publish_checkpoint(seq)
        assert await table.get(LATEST) is None


@GROUP.case("a checkpoint is published when the network is back")
async def published_later(bench: Bench) -> None:
    world = history()
    replica = await Replica(world).open(bench.a)
    await write(bench.b, world, world.log)
    async with running(replica):
        await soon(replica.group.wait(len(world.log)))
        (seq,) = [s for s in map(checkpoint_signed, replica.applied) if s is not None]

        async def gone(data: bytes) -> bytes:
            raise Unavailable("no answer in time", got=str(len(data)), rule="deadline")

        blobs = replica.group._blobs
        with patch.object(type(blobs), "put", lambda _, data: gone(data)):
            with pytest.raises(Unavailable):
                await replica.group.publish_checkpoint(seq)
        await replica.group.publish_checkpoint(seq)
    assert (await pointer_of(bench, world)).checkpoint.seq == seq
