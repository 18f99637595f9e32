"""What of the committee's group is the same on every engine; `cases_group` has the rest."""

import asyncio
import contextlib
from collections.abc import AsyncIterator

import pytest

from tests.simulator.world import World
from tests.zipnet.network.cases_group import Replica, history, joins
from tests.zipnet.network.conformance import soon
from zipnet.errors import Unavailable, WireFormatError
from zipnet.network.base import Entry
from zipnet.network.group import Pointer
from zipnet.network.local import LocalLog, LocalNetwork


def test_pointer_round_trip() -> None:
    state = history().state
    assert state.checkpoint is not None
    pointer = Pointer(state.checkpoint, bytes(range(32)))
    raw = pointer.encode()
    assert Pointer.decode(raw).encode() == raw
    for bad in (raw[:-1], raw + b"\0", b"", bytes(9000)):
        with pytest.raises(WireFormatError):
            Pointer.decode(bad)


def test_reading_goes_on_after_a_stall(monkeypatch: pytest.MonkeyPatch) -> None:
    world = World(3, clients=0)
    real, calls = LocalLog.read, [0]

    def read(log: LocalLog, after: int = 0) -> AsyncIterator[Entry]:
        calls[0] += 1
        if calls[0] == 1:
            raise Unavailable("no answer in time", rule="deadline")
        return real(log, after)

    async def body() -> None:
        network = await LocalNetwork.open()
        monkeypatch.setattr(LocalLog, "read", read)
        replica = await Replica(world).open(network)
        run = asyncio.create_task(replica.group.run())
        await soon(replica.group.execute(joins(world)[0]))
        assert calls[0] == 2
        await network.close()
        with pytest.raises(Unavailable) as caught:
            await soon(run)
        assert caught.value.rule == "closed"
        with contextlib.suppress(asyncio.CancelledError):
            run.cancel()

    asyncio.run(body())
