"""The log is lost; the operators open the next generation on the last checkpoint."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace

import pytest

from tests.zipnet.instance.support import PATIENCE, Town, run, town
from zipnet.committee.state import Rules, SignedCheckpoint
from zipnet.errors import (
    BlobMissing,
    LogBroken,
    Refused,
    Shutdown,
    SnapshotRejected,
    WireFormatError,
    ZipnetError,
)
from zipnet.network._sql import Transaction
from zipnet.network.group import LATEST
from zipnet.network.local import LocalNetwork
from zipnet.network.places import Places
from zipnet.network.recovery import Reopening, last_checkpoint
from zipnet.operators import NOBODY, RecoveryDocument
from zipnet.protocol.instance import Instance
from zipnet.roles.committee_view import Lookout
from zipnet.roles.reader import RecordReader
from zipnet.roles.seats import Seats
from zipnet.roles.server import Server


@dataclass
class Lost:
    """An instance whose log is gone after its first checkpoint, with what is left of it."""

    made: Town
    old: Instance
    left: Reopening
    changes: dict[str, object] = field(default_factory=dict)

    @property
    def new(self) -> Instance:
        return Instance(self.old.deployment_id, b"\x77" * 32)

    def reopening(self, offender: str = "", missing: str = "", **changes: object) -> Reopening:
        """What the operators sign, all but the offender and who is missing."""
        keys = self.made.operators.keys
        values = {
            "deployment_id": self.old.deployment_id,
            "old_generation": self.old.generation,
            "new_generation": self.new.generation,
            "counter": 1,
            "checkpoint": self.left.pointer.checkpoint.digest,
            "offender": keys[offender].public_key().public_bytes_raw() if offender else NOBODY,
            **changes,
        }
        document = RecoveryDocument(**values)  # type: ignore[arg-type]
        signers = [key for name, key in keys.items() if name not in (offender, missing)]
        return replace(self.left, document=document.assemble(map(document.sign, signers)))

    def server(self, name: str, recovery: Reopening | None, before: Server | None = None) -> Server:
        """A server of the new generation, not started."""
        self.made.operators.instance = self.new
        self.changes = {} if recovery is None else {"recovery": recovery}
        identity = before._set.ticketing.identity if before else None
        return self.made.server_role(name, identity=identity)


def cause(error: BaseException) -> ZipnetError:
    """What ended a node, of those that its task group names."""
    if isinstance(error, BaseExceptionGroup):
        found = [cause(one) for one in error.exceptions]
        return next((one for one in found if one.rule.startswith("log.")), found[0])
    assert isinstance(error, ZipnetError), error
    return error


async def end_of(server: Server) -> ZipnetError:
    """What stops a server that must not go on."""
    with pytest.raises((ZipnetError, BaseExceptionGroup)) as caught:
        await asyncio.wait_for(server.run(), PATIENCE)
    assert not server.joined.is_set()
    return cause(caught.value)


async def delete_log(network: LocalNetwork, name: str) -> None:
    """As a member of a bus can who may do everything there."""

    def delete(tx: Transaction) -> None:
        for table, column in (("entry", "log"), ("taken", "log"), ("log", "name")):
            tx.db.execute(f"delete from {table} where {column} = ?", (name,))  # noqa: S608

    await network._handle.submit(delete, 10)


async def published(made: Town) -> None:
    """Wait for a checkpoint that late joiners find."""
    instance = made.operators.instance
    table = await made.network.table(Places.of(instance.deployment_id).log(instance))
    async with asyncio.timeout(PATIENCE):
        while await table.get(LATEST) is None:
            await made.until(lambda: True)
            await asyncio.sleep(0.05)


@asynccontextmanager
async def lost(*, rewritten: bool = False) -> AsyncIterator[Lost]:
    network = await LocalNetwork.open()
    there: list[Lost] = []
    try:
        async with town(
            network=network,
            clients=2,
            settings=lambda _name: there[0].changes if there else {},
            round_period_ms=100,
            round_deadline_ms=900,
        ) as made:
            await made.say_until_landed(made.clients[0], "before")
            await published(made)
            old = made.operators.instance
            await made.say_until_landed(made.clients[1], "after the checkpoint")
            name = Places.of(old.deployment_id).log(old)
            await delete_log(network, name)
            if rewritten:
                await (await network.log(name)).append(b"another past", key="another")
            _, waiting = await asyncio.wait(made._tasks[:3], timeout=PATIENCE)
            assert not waiting
            ends = [cause(error) for error in made.errors]
            assert len(ends) == 3
            assert all(isinstance(end, LogBroken) for end in ends), ends
            rules = {"log.short", "log.shorter"} if rewritten else {"log.missing"}
            assert {end.rule for end in ends} <= rules
            made.errors.clear()
            left = await last_checkpoint(network, Rules.of(made.operators.config), old)
            there.append(Lost(made, old, left))
            yield there[0]
    finally:
        await network.close()


def test_the_instance_goes_on_from_the_checkpoint() -> None:
    async def body() -> None:
        async with lost() as there:
            made = there.made
            before = await made.records()
            old_servers, old_clients = made.servers[:], made.clients[:]
            at = next(i for i, one in enumerate(before) if not one.record.header.round % 16)
            reopening = Reopening.decode(there.reopening(offender="charlie").encode())
            made.servers = [
                there.server("alpha", reopening, old_servers[0]),
                there.server("bravo", reopening),
            ]
            running = [made.spawn(server.run()) for server in made.servers]
            await made.until(lambda: all(one.joined.is_set() for one in made.servers))
            assert made.state.next_round == before[at].record.header.round + 1
            # The offender's operator has a server again, with new keys.
            made.servers.append(there.server("charlie", reopening))
            made.spawn(made.servers[2].run())
            await made.until(made.servers[2].joined.is_set)
            for aggregator in made.aggregators:
                made.spawn(made.aggregator_role(aggregator._identity).run())
            # The clients of before end, and say why.
            async with asyncio.timeout(PATIENCE):
                while len(made.errors) < len(old_clients):
                    await asyncio.sleep(0.02)
            for error in map(cause, made.errors):
                assert isinstance(error, Shutdown), error
                assert error.rule == "generation"
            made.errors.clear()
            made.clients = [made.client(identity=one._set.identity) for one in old_clients]
            for number, client in enumerate(made.clients):
                await made.say_until_landed(client, f"again {number}")
            assert [one.state.instance for one in made.servers] == [there.new] * 3
            after = (await made.records())[len(before) :]
            assert after[0].record.header.round > before[at].record.header.round
            previous = before[at].record.hash
            for signed in after:
                assert signed.record.header.instance == there.new
                assert signed.record.header.previous_record == previous
                previous = signed.record.hash
            for ledger in (made.client_ledger, *made.server_ledgers.values()):
                assert ledger.uses
                assert ledger.reused() == 0
            # Whoever reads from the beginning gets all of it, and each record is checked.
            operators = made.operators
            lookout = Lookout(made.network, operators.config, there.old.deployment_id,
                              frozenset(), operators.admission)  # fmt: skip
            await lookout.open()
            seats = Seats(lookout, operators.config, frozenset())
            reader = RecordReader(lookout, seats, 1)
            await reader.open()
            for signed in [*before, *after]:
                assert await asyncio.wait_for(anext(reader), 5) == signed.record
            # With a checkpoint of its own the generation needs the old one no more.
            await published(made)
            running[1].cancel()
            late = there.server("bravo", None)
            made.spawn(late.run())
            await made.until(late.joined.is_set)
            assert late.state.counter == 1
            assert not made.errors

    run(body())


def test_what_is_refused() -> None:
    async def body() -> None:
        async with lost(rewritten=True) as there:
            good = there.reopening()
            one = good.pointer.checkpoint
            for wrong, rule in (
                (there.reopening(checkpoint=bytes(32)), "recover.checkpoint"),
                (there.reopening(counter=2), "recover.counter"),
                (there.reopening(new_generation=b"\x78" * 32), "recover.new-generation"),
                (there.reopening(missing="bravo"), "signers"),
            ):
                end = await end_of(there.server("alpha", wrong))
                assert isinstance(end, Refused), end
                assert end.rule == rule
            unsigned = replace(one, signatures=one.signatures[:2])
            for pointer, snapshot, rule in (
                (unsigned, good.snapshot, "checkpoint.signatures"),
                (replace(one, seq=one.seq + 1), good.snapshot, "checkpoint.state"),
            ):
                assert isinstance(pointer, SignedCheckpoint)
                bad = Reopening(replace(good.pointer, checkpoint=pointer), good.document, snapshot)
                end = await end_of(there.server("alpha", bad))
                assert isinstance(end, SnapshotRejected)
                assert end.rule == rule
            # None of it stands in the way of the right one.
            server = there.server("alpha", good)
            there.made.spawn(server.run())
            await there.made.until(server.joined.is_set)
            # A server that is told of no recovery notices that there was one.
            end = await end_of(there.server("bravo", None))
            assert isinstance(end, LogBroken)
            assert end.rule == "recovery.missing"
            with pytest.raises(BlobMissing):
                await last_checkpoint(
                    there.made.network, Rules.of(there.made.operators.config), there.new
                )
            with pytest.raises(WireFormatError):
                Reopening.decode(good.encode() + b"\0")

    run(body())
