"""What a network says of itself: its universe, and the ids beside a name."""

import asyncio
from collections.abc import Awaitable, Callable

import pytest

from zipnet.errors import WrongUniverse
from zipnet.ids import UNIVERSE, UniqueId
from zipnet.network import index
from zipnet.network.local import LocalNetwork

IDS = [bytes([at]) * 32 for at in range(20)]


def run(test: Callable[[LocalNetwork], Awaitable[None]]) -> None:
    async def main() -> None:
        network = await LocalNetwork.open()
        try:
            await test(network)
        finally:
            await network.close()

    asyncio.run(main())


def test_the_first_says_which_universe_it_is() -> None:
    async def test(network: LocalNetwork) -> None:
        other = UniqueId.of("other")
        results = await asyncio.gather(
            *(index.check_universe(network, one) for one in (UNIVERSE, other, UNIVERSE)),
            return_exceptions=True,
        )
        assert [type(one) for one in results] == [type(None), WrongUniverse, type(None)]
        with pytest.raises(WrongUniverse) as error:
            await index.check_universe(network, other)
        assert (error.value.expected, error.value.got) == (other.hex(), UNIVERSE.hex())

    run(test)


def test_ids_beside_a_name_are_the_newest() -> None:
    async def test(network: LocalNetwork) -> None:
        assert await index.deployments(network, "a..b") == ()
        for one in (*IDS, IDS[18], IDS[18]):
            await index.announce(network, "a..b", one)
        found = await index.deployments(network, "a..b")
        assert found[:3] == (IDS[18], IDS[19], IDS[17])
        assert len(found) == len(set(found)) == index.MAX_IDS
        assert await index.deployments(network, "a.b") == ()

    run(test)


def test_whatever_is_written_there_is_read() -> None:
    async def test(network: LocalNetwork) -> None:
        await index.announce(network, "a", IDS[0])
        table = await network.table(index.TABLE)
        item = await anext(aiter(table.watch("name/")))
        await table.put(item.key, bytes(100_001))
        assert await index.deployments(network, "a") == (bytes(32),) * index.MAX_IDS

    run(test)
