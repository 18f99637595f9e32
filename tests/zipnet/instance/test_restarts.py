"""Servers that come back at a bad moment: rounds must go on."""

from __future__ import annotations

import asyncio

import pytest

from tests.zipnet.instance.support import Town, run, town
from tests.zipnet.instance.test_faults import stop, tasks_of
from zipnet.committee.state import Ending, State
from zipnet.operators import Endorsement
from zipnet.roles.server import Server
from zipnet.roles.server_core import ServerCore


async def again(made: Town, name: str, server: Server) -> asyncio.Task[None]:
    """Start another boot of an operator's server."""
    made.servers[list(made.operators.keys).index(name)] = server
    task = made.spawn(server.run())
    await made.until(server.joined.is_set)
    return task


def test_an_epoch_that_never_had_a_live_header() -> None:
    """Clients hear of an epoch by its first live header, and keep a key for the next one then."""

    async def body() -> None:
        async with town(clients=3, round_deadline_ms=900) as made:
            await made.rounds(1)
            identity = made.servers[1]._set.ticketing.identity
            await stop(tasks_of(made)["bravo"])
            silent = made.server_role("bravo", identity=identity)

            async def nothing() -> None:
                await asyncio.Event().wait()

            # It joins, and dies before it signs the header of the epoch that opens for it.
            silent._append = nothing  # type: ignore[method-assign]
            epoch = made.state.epoch.number
            task = await again(made, "bravo", silent)
            await made.until(lambda: made.state.epoch.number > epoch)
            await made.until(lambda: made.endings()[-1] is Ending.UNSIGNED)
            await stop(task)
            await again(made, "bravo", made.server_role("bravo", identity=identity))
            await made.say_until_landed(made.clients[0], "after all")
            assert not made.errors
            await made.check()

    run(body())


def test_an_epoch_that_begins_while_a_server_joins(monkeypatch: pytest.MonkeyPatch) -> None:
    async def body() -> None:
        async with town(clients=2, round_deadline_ms=900) as made:
            await made.rounds(1)
            identity = made.servers[1]._set.ticketing.identity
            await stop(tasks_of(made)["bravo"])
            join, right, calls = ServerCore.join, State.next_epoch, []

            def late(core: ServerCore, endorsement: Endorsement, clock_ms: int) -> bytes:
                calls.append(clock_ms)
                with monkeypatch.context() as patch:
                    if len(calls) == 1:
                        # What it would have been before the epoch began.
                        patch.setattr(State, "next_epoch", lambda state: right(state) - 1)
                    return join(core, endorsement, clock_ms)

            monkeypatch.setattr(ServerCore, "join", late)
            await again(made, "bravo", made.server_role("bravo", identity=identity))
            assert len(calls) == 2
            await made.say_until_landed(made.clients[0], "together")
            assert not made.errors
            await made.check()

    run(body())
