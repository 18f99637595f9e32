"""Messages go in, and come out once."""

from __future__ import annotations

import asyncio
from collections import Counter

from tests.zipnet.instance.support import Town, run, together, town
from zipnet.network.local import LocalNetwork
from zipnet.roles.unanswered import Told


async def chatter(made: Town, prefix: str, each: int) -> list[Told]:
    """Every client says so much, one thing after another."""

    async def talk(at: int) -> list[Told]:
        client = made.clients[at]
        return [await made.say(client, f"{prefix} {at} {number}") for number in range(each)]

    calls = [talk(at) for at in range(len(made.clients))]
    return [told for some in await asyncio.gather(*calls) for told in some]


def test_every_message_comes_out_once() -> None:
    async def body() -> None:
        async with town(clients=5, epoch_rounds=8, messages_per_epoch=8) as made:
            told = await asyncio.wait_for(chatter(made, "hello", 5), 30)
            # Two that choose the same place collide, which is rare and told.
            assert Counter(one.outcome for one in told)["landed"] >= 20
            assert {one.outcome for one in told} <= {"landed", "collided"}
            await made.until(lambda: made.state.epoch.number >= 2)
            told = await asyncio.wait_for(chatter(made, "again", 1), 30)
            assert "landed" in {one.outcome for one in told}
            assert not made.errors
            await made.check()

    run(body())


def test_many_messages_of_one_client_wait_their_turn() -> None:
    async def body() -> None:
        async with town(clients=3) as made:
            one = made.clients[0]
            told = await together([made.say(one, f"note {at}") for at in range(6)])
            assert len({each.round for each in told}) == 6
            await made.check()

    run(body())


def test_a_client_that_comes_later_says_something_at_once() -> None:
    async def body() -> None:
        async with town(clients=2) as made:
            await made.rounds(1)
            told = await together([made.say(made.client(), "late to the party")])
            assert told[0].outcome == "landed"
            await made.check()

    run(body())


def test_a_client_may_join_right_after_the_first_round() -> None:
    """Servers' tickets, made before the first record, must not be too old for it."""

    async def body() -> None:
        async with town(clients=2, round_period_ms=400) as made:
            await made.rounds(2)
            client = made.client(connect_s=2.0)
            told = await together([made.say(client, "early bird")])
            assert told[0].outcome == "landed"
            await made.check()

    run(body())


def test_tiers() -> None:
    async def body() -> None:
        async with town(clients=6, trees=((0, 0, 0),), fold_deadline_ms=600) as made:
            tree = made.trees[0]
            told = await asyncio.wait_for(chatter(made, "tier", 2), 30)
            assert "landed" in {one.outcome for one in told}
            leaves = {tree.leaf_for(client.id) for client in made.state.clients.values()}
            assert leaves <= {1, 2}
            root, *others = made.aggregators
            assert root.rounds >= 2
            assert all(one.rounds >= 2 for one in others)
            assert not any(one.refused for one in made.aggregators)
            last = made.state.last_record
            assert last is not None
            assert last.record.participants == bytes([0b111111])
            await made.check()

    run(body())


def test_two_instances_side_by_side() -> None:
    async def body() -> None:
        network = await LocalNetwork.open()
        try:
            async with (
                town(name="one.test", network=network, clients=3) as one,
                town(name="two.test", network=network, clients=2) as two,
            ):
                await asyncio.gather(chatter(one, "one", 2), chatter(two, "two", 2))
                assert len(one.state.clients) == 3
                assert len(two.state.clients) == 2
                assert not one.state.clients.keys() & two.state.clients.keys()
                assert one.operators.instance != two.operators.instance
                await one.check()
                await two.check()
        finally:
            await network.close()

    run(body())
