"""Committees that are not complete, or not all the time before the first record."""

from __future__ import annotations

import asyncio

from tests.zipnet.instance.support import PATIENCE, Town, run, town
from tests.zipnet.instance.test_faults import stop, tasks_of
from zipnet.demo import CLIENT, SERVER
from zipnet.network.places import Places
from zipnet.network.public import card_key
from zipnet.roles.committee_view import Lookout


async def lookout_of(made: Town) -> Lookout:
    operators = made.operators
    deployment = operators.instance.deployment_id
    found = Lookout(made.network, operators.config, deployment, frozenset(), operators.admission)
    await found.open()
    return found


async def carded(made: Town) -> None:
    """Until each server shows a ticket."""
    instance = made.operators.instance
    cards = await made.network.table(Places.of(instance.deployment_id).servers)
    async with asyncio.timeout(PATIENCE):
        for server in made.servers:
            while await cards.get(card_key(instance, server.core.id)) is None:
                await asyncio.sleep(0.02)


def test_tickets_follow_the_first_beacon() -> None:
    """It moves when a server joins anew: the others show theirs again, or nobody would come in."""

    async def body() -> None:
        async with town() as made:
            await carded(made)
            before = made.state.first_beacon
            await stop(tasks_of(made)["charlie"])
            identity = made.servers[2]._set.ticketing.identity
            made.servers[2] = made.server_role("charlie", identity=identity)
            made.spawn(made.servers[2].run())
            await made.until(lambda: made.state.first_beacon != before)
            clients = [made.client() for _ in range(2)]
            for client in clients:
                await asyncio.wait_for(client.ready(), PATIENCE)
            await made.say_until_landed(clients[0], "heard")
            assert not made.errors
            await made.check()

    run(body())


def test_as_many_servers_as_rounds_take() -> None:
    """One operator is gone for good, and clients do without him: so do aggregators."""

    async def body() -> None:
        async with town(started=False, min_servers=2) as made:
            lookout = await lookout_of(made)
            made.servers = [made.server_role("alpha")]
            made.spawn(made.servers[0].run())
            await made.until(made.servers[0].joined.is_set)
            assert await lookout.generation() is None
            made.servers.append(made.server_role("bravo"))
            made.spawn(made.servers[1].run())
            await made.until(made.servers[1].joined.is_set)
            await made.push(made.operators.allow_list(1, SERVER, CLIENT))
            async with asyncio.timeout(PATIENCE):
                while await lookout.generation() != made.operators.instance:
                    await asyncio.sleep(0.02)
            made.spawn(made.aggregator.run())
            waived = frozenset({made.operators.keys["charlie"].public_key().public_bytes_raw()})
            clients = [made.client(waived=waived) for _ in range(2)]
            await made.say_until_landed(clients[0], "heard by two")
            assert not made.errors

    run(body())
