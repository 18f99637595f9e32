"""Nodes die, come back, and have wrong clocks; what was accepted is neither lost nor doubled."""

from __future__ import annotations

import asyncio
import contextlib
from collections import Counter
from collections.abc import Callable

import pytest

from tests.zipnet.instance.support import PATIENCE, Town, run, town
from zipnet.committee.state import Ending, Phase
from zipnet.demo import clock
from zipnet.errors import Attestation, Shutdown
from zipnet.roles.client import ClientRole
from zipnet.roles.unanswered import Told


async def stop(task: asyncio.Task[None]) -> None:
    task.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await task


def tasks_of(made: Town) -> dict[str, asyncio.Task[None]]:
    """The servers' tasks by operator, in the order in which they were started."""
    return dict(zip(made.operators.keys, made._tasks, strict=False))


async def talk(made: Town, client: ClientRole, name: str, stopped: asyncio.Event) -> list[Told]:
    """Say one thing after another until told to stop."""
    told: list[Told] = []
    while not stopped.is_set():
        told.append(await made.say(client, f"{name} {len(told)}"))
    return told


def test_an_aggregator_dies_and_comes_back() -> None:
    async def body() -> None:
        async with town(clients=3, round_deadline_ms=900) as made:
            stopped = asyncio.Event()
            talks = [
                asyncio.create_task(talk(made, client, f"c{at}", stopped))
                for at, client in enumerate(made.clients)
            ]
            await made.rounds(3)
            await stop(made._tasks[len(made.servers)])
            await made.until(lambda: made.endings()[-1] is Ending.NO_AGGREGATE)
            again = made.aggregator_role(made.aggregator._identity)
            made.spawn(again.run())
            await made.rounds(6)
            stopped.set()
            told = [one for some in await asyncio.wait_for(asyncio.gather(*talks), PATIENCE)
                    for one in some]  # fmt: skip
            words = Counter(one.outcome for one in told)
            assert words["landed"] >= 6
            # Without an aggregate nothing was published, and whoever waited knows it.
            assert words.keys() <= {"landed", "collided", "late", "unpublished"}
            assert again.rounds >= 6
            assert not made.errors
            await made.check()

    run(body())


def test_an_aggregator_that_returns_within_a_round_harms_nobody() -> None:
    async def body() -> None:
        async with town(clients=3, round_deadline_ms=900) as made:
            await made.say_until_landed(made.clients[0], "before")
            task = made._tasks[len(made.servers)]
            await made.until(
                lambda: (
                    made.state.current is not None
                    and made.state.current.phase in (Phase.PROPOSED, Phase.LIVE)
                )
            )
            await stop(task)
            made.spawn(made.aggregator_role(made.aggregator._identity).run())
            for at, client in enumerate(made.clients):
                await made.say_until_landed(client, f"after {at}")
            assert not made.errors
            await made.check()

    run(body())


def test_the_tree_to_fall_back_to() -> None:
    async def body() -> None:
        async with town(clients=3, trees=((0,), (0,)), round_deadline_ms=900) as made:
            assert made.state.trees == made.trees
            await made.say_until_landed(made.clients[0], "by the first")
            await stop(made._tasks[len(made.servers)])
            await made.until(lambda: made.state.tree_at == 1)
            for at, client in enumerate(made.clients):
                await made.say_until_landed(client, f"by the second {at}")
            first, second = made.aggregators
            assert second.rounds > 0
            assert Counter(made.endings())[Ending.NO_AGGREGATE] == 1
            await made.check()
            assert first.rounds > 0

    run(body())


def test_a_server_restarts_with_its_identity() -> None:
    async def body() -> None:
        async with town(clients=3, round_deadline_ms=900) as made:
            stopped = asyncio.Event()
            talks = [
                asyncio.create_task(talk(made, client, f"c{at}", stopped))
                for at, client in enumerate(made.clients)
            ]
            await made.rounds(2)
            running = tasks_of(made)
            for name in ("bravo", "charlie"):
                at = list(made.operators.keys).index(name)
                epoch, known = made.state.epoch.number, made.servers[at]
                await stop(running[name])
                await asyncio.sleep(0.3)
                identity = known._set.ticketing.identity
                made.servers[at] = again = made.server_role(name, identity=identity)
                made.spawn(again.run())
                await made.until(lambda epoch=epoch: made.state.epoch.number > epoch)  # type: ignore[misc]
                await made.rounds(2)
                assert again.core.id == known.core.id
                assert again.joined.is_set()
            stopped.set()
            told = [one for some in await asyncio.wait_for(asyncio.gather(*talks), PATIENCE)
                    for one in some]  # fmt: skip
            assert Counter(one.outcome for one in told)["landed"] >= 4
            await made.until(lambda: len({one.state.seq for one in made.servers}) == 1)
            assert len({one.core.machine.snapshot() for one in made.servers}) == 1
            assert not made.errors
            await made.check()

    run(body())


def test_a_server_restarts_from_a_checkpoint(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("zipnet.network.group.KEEP", 20)

    async def body() -> None:
        async with town(clients=2, round_period_ms=100, round_deadline_ms=900) as made:
            await made.until(lambda: made.state.checkpoint is not None)
            task, known = tasks_of(made)["charlie"], made.servers[2]
            await made.rounds(1)
            await stop(task)
            identity = known._set.ticketing.identity
            made.servers[2] = again = made.server_role("charlie", identity=identity)
            made.spawn(again.run())
            await made.until(again.joined.is_set)
            first = made.state.checkpoint
            assert first is not None
            bounds = await again.group._log.bounds()
            assert bounds[0] > 1
            # All agree on the next one as well.
            await made.until(
                lambda: made.state.checkpoint is not None and made.state.checkpoint.seq > first.seq
            )
            await made.say_until_landed(made.clients[0], "after the checkpoint")
            await made.until(lambda: len({one.state.seq for one in made.servers}) == 1)
            assert len({one.core.machine.snapshot() for one in made.servers}) == 1
            assert not [r for r in made.state.refused if r.rule == "checkpoint.digest"]
            await made.check()

    run(body())


def test_a_client_restarts_with_its_identity() -> None:
    async def body() -> None:
        async with town(clients=3) as made:
            one = made.clients[0]
            await made.say_until_landed(one, "first life")
            task = made._tasks[-3]
            waiting = asyncio.create_task(made.say(one, "left unsaid?"))
            await asyncio.sleep(0.01)
            await stop(task)
            with pytest.raises(Shutdown):
                await waiting
            again = made.client(identity=one._set.identity)
            await made.say_until_landed(again, "second life")
            assert len(made.state.clients) == 3
            # What its outcome was not known of may have come out; nobody says it twice.
            heard = made.told.pop(next(raw for raw in made.told if b"left unsaid" in raw))
            assert heard == []
            assert not made.errors

    run(body())


def off(minutes: int) -> Callable[[str], dict[str, object]]:
    """Settings with which the clock of one server is wrong."""

    def wrong() -> int:
        return clock() + minutes * 60_000

    return lambda name: {"clock": wrong} if name == "charlie" else {}


@pytest.mark.parametrize("minutes", [-10, 10])
def test_a_server_with_a_wrong_clock_is_named(minutes: int) -> None:
    async def body() -> None:
        async with town(settings=off(minutes), clients=1, round_deadline_ms=700) as made:
            client = made.client_role()
            saying = asyncio.create_task(made.say(client, "what time is it?"))
            running = made.spawn(client.run())
            # Either its ticket or its opinion of the client's is of another time.
            await made.until(lambda: saying.done() or bool(made.errors))
            error = made.errors[0] if made.errors else saying.exception()
            assert isinstance(error, Attestation)
            assert error.rule == "future"
            assert "charlie" in error.message
            await stop(running)
            await asyncio.gather(saying, return_exceptions=True)
            assert not await made.records()
            assert abs(made.state.time_ms - clock()) < 5_000

    run(body())


def test_a_send_is_not_left_without_an_answer() -> None:
    """Rounds that end in each possible way, and the end of the client itself."""

    async def body() -> None:
        async with town(clients=3, round_deadline_ms=600) as made:
            await made.rounds(1)
            sends = [
                asyncio.create_task(made.say(client, f"{at} {number}"))
                for at, client in enumerate(made.clients)
                for number in range(4)
            ]
            await made.rounds(3)
            await stop(tasks_of(made)["bravo"])
            await made.until(lambda: made.endings()[-1] is not Ending.FINAL)
            await made.close()
            ends = await asyncio.wait_for(asyncio.gather(*sends, return_exceptions=True), PATIENCE)
            assert all(isinstance(end, Told | Shutdown) for end in ends), ends
            assert sum(isinstance(end, Told) for end in ends) >= 1

    run(body())
