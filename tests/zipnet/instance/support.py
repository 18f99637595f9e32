"""A whole instance for a test: the demo's, with short rounds, and a ledger of every pad."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Hashable, Sequence
from contextlib import asynccontextmanager

from tests.simulator.nodes import Ledger
from zipnet.committee.state import Ending, State
from zipnet.datum import bytes_datum, encode_exact
from zipnet.demo import CLIENT, DATUM_BYTES, SERVER, DemoInstance, Operators, demo_window
from zipnet.network.base import Network
from zipnet.network.local import LocalNetwork
from zipnet.network.places import Places
from zipnet.protocol.record import SignedRecord
from zipnet.protocol.slots import Kind, read_slots
from zipnet.roles.client import ClientRole
from zipnet.roles.identity import Identity
from zipnet.roles.server import Server
from zipnet.roles.unanswered import Told
from zipnet.unsafe_programs import Program

# How long anything may take, in seconds. Enough for a busy machine.
PATIENCE = 30.0
Note = bytes_datum(DATUM_BYTES)


def note(text: str) -> bytes:
    return encode_exact(Note(text.encode()))


class Town(DemoInstance):
    """An instance that notes each pad that is used, and each message with its outcome."""

    def __init__(
        self,
        network: Network,
        operators: Operators,
        *,
        trees: Sequence[Sequence[int]] = ((0,),),
        settings: Callable[[str], dict[str, object]] = lambda _name: {},
        programs: dict[str, Program] | None = None,
    ) -> None:
        self.client_ledger = Ledger()
        self.server_ledgers: dict[str, Ledger] = {name: Ledger() for name in operators.keys}
        self.told: dict[bytes, list[Told]] = {}
        self._boots = 0
        self._programs = programs or {}
        super().__init__(network, operators, lambda: network, trees=trees, settings=settings)

    def server_role(
        self, name: str, program: Program = SERVER, identity: Identity | None = None
    ) -> Server:
        """As the demo's, with a ledger, and with the program that this operator runs here."""
        role = super().server_role(name, self._programs.get(name, program), identity)
        self._boots += 1
        boot = self._boots

        def occasion() -> Hashable:
            current = role.state.current
            return boot, current.header.id if current else None

        role._set.xor = self.server_ledgers[name].within(occasion)
        return role

    def client_role(self, program: Program = CLIENT, **settings: object) -> ClientRole:
        """As the demo's, with the ledger of all clients."""
        return super().client_role(program, **{"xor": self.client_ledger.xor, **settings})

    @property
    def state(self) -> State:
        """That of the first server."""
        return self.servers[0].state

    async def say(self, client: ClientRole, text: str) -> Told:
        """Send a text, which must not have been sent before, and note what comes of it."""
        raw = note(text)
        assert raw not in self.told
        self.told[raw] = []
        told = await client.send(raw)
        self.told[raw].append(told)
        return told

    async def say_until_landed(self, client: ClientRole, text: str) -> Told:
        """Send a text under ever new names until one lands."""
        for attempt in range(20):
            told = await self.say(client, f"{text} {attempt}")
            if told.outcome == "landed":
                return told
        raise AssertionError(f"{text} never lands")

    async def records(self) -> list[SignedRecord]:
        """All that was broadcast."""
        log = await self.network.log(Places.of(self.operators.instance.deployment_id).broadcasts)
        _, last = await log.bounds()
        found: list[SignedRecord] = []
        if last:
            async for entry in log.read():
                found.append(SignedRecord.decode(entry.data))
                if entry.seq == last:
                    break
        return found

    async def until(self, done: Callable[[], bool]) -> None:
        """Wait for what must come; raise what stopped a node."""
        async with asyncio.timeout(PATIENCE):
            await self._until(done)

    async def rounds(self, number: int) -> None:
        """Wait for so many more final rounds."""
        before = self.finals()
        await self.until(lambda: self.finals() >= before + number)

    def finals(self) -> int:
        """How many rounds have had a record, as far as the first server's state goes back."""
        return len([o for o in self.state.outcomes if o.ending is Ending.FINAL])

    def endings(self) -> list[Ending]:
        """How the last rounds ended."""
        return [outcome.ending for outcome in self.state.outcomes]

    def id_of(self, name: str) -> bytes:
        """The id of this operator's server."""
        key = self.operators.keys[name].public_key().public_bytes_raw()
        return next(s.id for s in self.state.servers.values() if s.operator == key)

    async def check(self) -> None:
        """What must hold whatever happened."""
        records = await self.records()
        heard: Counter[bytes] = Counter()
        rounds: dict[bytes, int] = {}
        previous = bytes(32)
        for signed in records:
            record = signed.record
            assert record.header.previous_record == previous, "a record is missing, or comes twice"
            previous = record.hash
            for slot in read_slots(record.payload, record.header):
                if slot.kind is Kind.MESSAGE:
                    heard[slot.datum] += 1
                    rounds[slot.datum] = record.header.round
        for raw, outcomes in self.told.items():
            assert len(outcomes) <= 1
            for told in outcomes:
                landed = told.outcome == "landed"
                assert heard[raw] == landed, (raw, told)
                assert not landed or rounds[raw] == told.round
        assert max(heard.values(), default=0) <= 1
        assert set(heard) <= set(self.told), "nobody said that"
        for ledger in (self.client_ledger, *self.server_ledgers.values()):
            assert ledger.uses
            assert ledger.reused() == 0


@asynccontextmanager
async def town(
    *,
    name: str = "town.test",
    network: Network | None = None,
    listed: tuple[Program, ...] = (SERVER, CLIENT),
    trees: Sequence[Sequence[int]] = ((0,),),
    settings: Callable[[str], dict[str, object]] = lambda _name: {},
    programs: dict[str, Program] | None = None,
    started: bool = True,
    clients: int = 0,
    **window: int,
) -> AsyncIterator[Town]:
    """An instance whose committee has started, with so many clients of the listed program."""
    values = {
        "round_period_ms": 150,
        "round_deadline_ms": 2_000,
        "fold_deadline_ms": 500,
        "max_clients": 64,
        **window,
    }
    own = network is None
    engine = network or await LocalNetwork.open()
    operators = Operators.new(name, demo_window(**values))
    made = Town(engine, operators, trees=trees, settings=settings, programs=programs)
    try:
        async with asyncio.timeout(PATIENCE):
            if started:
                await made.start(listed)
        for _ in range(clients):
            made.client()
        yield made
    finally:
        await made.close()
        if own:
            await engine.close()


def run(body: Coroutine[None, None, None]) -> None:
    """Run a scenario, which must end."""
    asyncio.run(asyncio.wait_for(body, 4 * PATIENCE))


async def together(calls: Sequence[Awaitable[Told]]) -> list[Told]:
    """All of them, in time."""
    return list(await asyncio.wait_for(asyncio.gather(*calls), PATIENCE))
