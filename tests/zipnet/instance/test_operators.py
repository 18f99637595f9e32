"""The operators change while clients take part."""

from __future__ import annotations

import asyncio
from collections import Counter

from tests.zipnet.instance.support import PATIENCE, run, town
from tests.zipnet.instance.test_recovery import cause
from zipnet.committee import bodies
from zipnet.committee.state import Ending
from zipnet.operators import OperatorDocument


def test_clients_follow_when_an_operator_leaves() -> None:
    async def body() -> None:
        async with town(clients=2) as made:
            await made.say_until_landed(made.clients[0], "with all")
            state, keys = made.state, made.operators.keys
            stay = [one for one in state.operators.operators if one.name != "charlie"]
            document = OperatorDocument.after(
                state.operators, state.instance.deployment_id, stay, len(stay)
            )
            raw = document.assemble([document.sign(key) for key in keys.values()])
            await made.servers[0]._say(bodies.ChangeOperators(raw))
            await made.until(lambda: len(made.state.operators.operators) == 2)
            for client in made.clients:
                await made.say_until_landed(client, f"without charlie {id(client)}")
            # His server has ended, by the rule that keeps it out.
            # At once: only what was under way, and what opened before the notices, may be lost.
            assert Counter(made.endings())[Ending.NO_AGGREGATE] <= 2
            async with asyncio.timeout(PATIENCE):
                while not made.errors:
                    await asyncio.sleep(0.02)
            assert cause(made.errors.pop()).rule == "join.operator"

    run(body())
