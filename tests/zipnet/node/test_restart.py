"""Nodes that come back over their own state, and a log that is not the one they knew."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path
from secrets import token_bytes

import pytest
from blake3 import blake3

from attestation.bundle import Role
from tests.zipnet.instance.support import Town, run, town
from tests.zipnet.network.cases_group import Replica, history
from zipnet.demo import SERVER, Operators, demo_window
from zipnet.errors import GuardRefused, LogBroken, StateDamaged
from zipnet.network.base import Network
from zipnet.network.group import LATEST, Pointer, Tip
from zipnet.network.local import LocalNetwork
from zipnet.network.places import Places
from zipnet.node.state import UnsafePlainState
from zipnet.protocol.guards import seal_once
from zipnet.roles.identity import Identity
from zipnet.roles.server import Server
from zipnet.unsafe_programs import Program

SHORT = {"round_period_ms": 150, "round_deadline_ms": 2_000, "fold_deadline_ms": 500}


class Kept(Town):
    """An instance whose servers keep their state in files."""

    def __init__(self, network: Network, operators: Operators, folder: Path) -> None:
        self.folder = folder
        self.states: dict[str, UnsafePlainState] = {}
        super().__init__(network, operators, settings=self._kept)

    def server_role(
        self, name: str, program: Program = SERVER, identity: Identity | None = None
    ) -> Server:
        self.states[name] = UnsafePlainState.open(
            self.folder / name, Role.SERVER, self.operators.instance, token_bytes
        )
        return super().server_role(name, program, identity or self.states[name].identity)

    async def stop(self, at: int) -> None:
        """End a server in the middle of whatever it does, and let go of its file."""
        self._tasks[at].cancel()
        await asyncio.wait([self._tasks[at]])
        self.states[list(self.operators.keys)[at]].close()

    def _kept(self, name: str) -> dict[str, object]:
        state = self.states[name]
        return {
            "store": state,
            "tip": state.tip,
            "guard": state.server_guard,
            "seen": state.seen,
        }


def scenario(folder: Path, body: Callable[[Kept], Awaitable[None]]) -> None:
    async def whole() -> None:
        network = await LocalNetwork.open()
        made = Kept(network, Operators.new("kept.test", demo_window(**SHORT)), folder)
        try:
            await asyncio.wait_for(made.start(), 20)
            for _ in range(3):
                made.client()
            await asyncio.wait_for(body(made), 50)
        finally:
            await made.close()
            for state in made.states.values():
                state.close()
            await network.close()

    run(whole())


def test_a_server_goes_on_over_its_state(tmp_path: Path) -> None:
    async def body(made: Kept) -> None:
        name = list(made.operators.keys)[1]
        await made.say_until_landed(made.clients[0], "before")
        old = made.servers[1]
        for boot in (2, 3):
            await made.stop(1)
            again = made.servers[1] = made.server_role(name)
            state = made.states[name]
            # What it says is never ahead of what is on disk, so nothing that it said is lost.
            assert state.boot_epoch == boot
            assert state.server_guard == old.core.guard
            assert 0 < state.tip.seq <= old.group.tip.seq
            made.spawn(again.run())
            await made.until(again.joined.is_set)
            assert again.core.id == old.core.id
            told = await made.say_until_landed(made.clients[0], f"boot {boot}")
            assert again.core.guard.round >= told.round
            old = again
            made._tasks[1] = made._tasks[-1]
        assert not made.errors
        await made.check()
        assert all(ledger.uses for ledger in made.server_ledgers.values())
        assert [ledger.reused() for ledger in made.server_ledgers.values()] == [0, 0, 0]
        assert made.client_ledger.reused() == 0

    scenario(tmp_path, body)


def test_a_state_is_for_one_server(tmp_path: Path) -> None:
    async def body(made: Kept) -> None:
        with pytest.raises(StateDamaged) as caught:
            made.server_role(next(iter(made.operators.keys)))
        assert caught.value.rule == "state.in-use"

    scenario(tmp_path, body)


def test_the_tip_is_kept_before_a_partial_leaves(tmp_path: Path) -> None:
    """The entry with the aggregate is within what is on disk when the commitment is made."""

    async def body(made: Kept) -> None:
        name = next(iter(made.operators.keys))
        state, server = made.states[name], made.servers[0]
        seen: list[tuple[int, int]] = []
        write = state.write

        def watched(record: bytes) -> None:
            write(record)
            current = server.state.current
            if current is not None and current.aggregate:
                seen.append((state._record.tip.seq, server.state.seq))

        server.core._store = type("Watched", (), {"write": staticmethod(watched)})()
        await made.say_until_landed(made.clients[0], "hello")
        assert seen
        assert all(kept == applied for kept, applied in seen)

    scenario(tmp_path, body)


@pytest.mark.parametrize("rule", ["log.shorter", "log.chain"])
def test_a_server_does_not_start_on_another_log(tmp_path: Path, rule: str) -> None:
    async def body(made: Kept) -> None:
        await made.say_until_landed(made.clients[0], "hello")
        await made.stop(0)
        again = made.server_role(next(iter(made.operators.keys)))
        tip = again._set.tip
        assert tip.seq > 3
        if rule == "log.shorter":
            again._set.tip = Tip(tip.seq + 1000, tip.head)
        else:
            again._set.tip = Tip(tip.seq, bytes(32))
        with pytest.raises((LogBroken, BaseExceptionGroup)) as caught:
            await asyncio.wait_for(again.run(), 10)
        assert found(caught.value).rule == rule
        assert not again.joined.is_set()

    scenario(tmp_path, body)


def found(error: BaseException) -> LogBroken:
    """The cause of a task group's end."""
    while isinstance(error, BaseExceptionGroup):
        error = next(
            (one for one in error.exceptions if getattr(one, "rule", "").startswith("log.")),
            error.exceptions[0],
        )
    assert isinstance(error, LogBroken), error
    return error


@pytest.mark.parametrize("back", [0, 1, 30])
def test_a_checkpoint_must_have_the_tip_in_its_past(back: int) -> None:
    """Also one at or beyond the tip, whose entries nobody reads again."""
    world = history()
    checkpoint, due = world.state.checkpoint, world.checkpoint
    assert checkpoint is not None
    assert due is not None
    heads = [bytes(32)]
    for raw in world.log:
        heads.append(blake3(heads[-1] + raw).digest())
    seq = checkpoint.seq - back
    assert heads[checkpoint.seq] == checkpoint.head

    async def body() -> None:
        network = await LocalNetwork.open()
        places = Places.of(world.instance.deployment_id)
        log = await network.log(places.log(world.instance))
        for raw in world.log:
            await log.append(raw, key=blake3(raw).hexdigest())
        blob = await (await network.blobs(places.blobs)).put(due.snapshot)
        table = await network.table(places.log(world.instance))
        await table.put(LATEST, Pointer(checkpoint, blob).encode())
        right = await Replica(world).open(network, Tip(seq, heads[seq]))
        assert right.group.tip.seq == checkpoint.seq
        with pytest.raises(LogBroken) as caught:
            await Replica(world).open(network, Tip(seq, heads[seq - 1]))
        assert caught.value.rule == "log.chain"
        await network.close()

    run(body())


def test_a_client_registers_anew_over_its_state(tmp_path: Path) -> None:
    async def body() -> None:
        async with town(clients=2) as made:
            peers = set()
            for boot in (1, 2):
                state = UnsafePlainState.open(
                    tmp_path / "client", Role.CLIENT, made.operators.instance, token_bytes
                )
                before = state.client_guard
                role = made.client_role(identity=state.identity, store=state, guard=before)
                task = made.spawn(role.run())
                told = await made.say_until_landed(role, f"boot {boot}")
                peers.add(state.identity.peer)
                assert state.boot_epoch == boot
                task.cancel()
                await asyncio.wait([task])
                guard = state.client_guard
                assert guard is not None
                assert guard.round >= told.round > (before.round if before else 0)
                with pytest.raises(GuardRefused) as caught:
                    seal_once(guard, told.round, bytes(32), b"another", state)
                assert caught.value.rule == "sealed"
                state.close()
            assert len(peers) == 1
            assert made.client_ledger.reused() == 0
            await made.check()

    run(body())
