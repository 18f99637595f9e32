"""The SDK over a whole instance in this process: what programs see, and what they are told."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Coroutine
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar, Self

import pytest

from zipnet import config_file
from zipnet.access import Network
from zipnet.config import Config, ShuffleWindow
from zipnet.demo import CLIENT, SERVER, DemoInstance, Operators, demo_window
from zipnet.errors import (
    ConfigRejected,
    DatumRejected,
    Shutdown,
)
from zipnet.network.local import LocalNetwork
from zipnet.protocol.receipts import Status
from zipnet.roles.identity import Identity
from zipnet.roles.server import Server
from zipnet.sdk import Outcome, Receipt, Submitter, Zipnet
from zipnet.unsafe_programs import Program

QUICK = demo_window(round_period_ms=100, fold_deadline_ms=300, round_deadline_ms=1500)
ROGUE = Program("rogue", "server")


@dataclass(frozen=True, slots=True)
class Note:
    TYPE_TAG: ClassVar[str] = "zipnet.bytes"
    WIRE_SIZE: ClassVar[int] = 64

    text: str

    def encode(self) -> bytes:
        return self.text.encode().ljust(self.WIRE_SIZE, b"\0")

    @classmethod
    def decode(cls, raw: bytes) -> Self:
        return cls(raw.rstrip(b"\0").decode())


@dataclass(slots=True)
class World:
    engine: LocalNetwork
    operators: Operators
    instance: DemoInstance

    @property
    def config(self) -> Config:
        return self.operators.config

    async def node(self) -> Network:
        """Another node on the same engine."""
        return await Network.over(await self.engine.connect())

    async def submit(self, **changes: Any) -> Submitter[Note]:
        access = replace(self.operators.access(), **changes)
        return await Zipnet[Note].submit(await self.node(), self.config, access)


class OneRogue(DemoInstance):
    """The server of the last operator runs a program that is on no list."""

    def server_role(
        self, name: str, program: Program = SERVER, identity: Identity | None = None
    ) -> Server:
        last = list(self.operators.keys)[-1]
        return DemoInstance.server_role(self, name, ROGUE if name == last else program, identity)


@asynccontextmanager
async def world(
    kind: type[DemoInstance] = DemoInstance,
    *,
    clients: int = 2,
    window: ShuffleWindow = QUICK,
    programs: tuple[Program, ...] = (SERVER, CLIENT),
) -> AsyncIterator[World]:
    engine = await LocalNetwork.open()
    operators = Operators.new("demo.local", window)
    instance = kind(engine, operators, lambda: engine)
    try:
        await instance.start(programs)
        for _ in range(clients):
            instance.client()
        yield World(engine, operators, instance)
        assert instance.errors == []
    finally:
        await instance.close()
        await engine.close()


def run(test: Coroutine[Any, Any, None]) -> None:
    async def bounded() -> None:
        async with asyncio.timeout(25):
            await test

    asyncio.run(bounded())


async def land(tx: Submitter[Note], text: str) -> Receipt:
    """Send until it has landed: a collision of footprints is rare, but no fault."""
    while True:
        receipt = await tx.send(Note(text))
        if receipt.outcome is Outcome.LANDED:
            return receipt


# Writing and reading


def test_what_is_sent_is_read_in_order_and_typed() -> None:
    async def test() -> None:
        async with world() as here:
            log = await Zipnet[Note].read(await here.node(), here.config)
            async with await here.submit() as tx:
                sent = [(await land(tx, text)).round for text in ("one", "two", "three")]
            got = [await anext(aiter(log)) for _ in sent]
            assert [message.datum for message in got] == [Note("one"), Note("two"), Note("three")]
            assert [message.round for message in got] == sent == sorted(sent)

            past = await Zipnet[Note].read(await here.node(), here.config, from_round=sent[1])
            assert (await anext(aiter(past))).datum == Note("two")
            start = await Zipnet[Note].read(await here.node(), here.config, from_round=1)
            assert (await anext(start.broadcasts())).round == 1

    run(test())


def test_records_of_a_server_that_was_replaced_are_believed() -> None:
    async def test() -> None:
        async with world() as here:
            log = await Zipnet[Note].read(await here.node(), here.config)
            await anext(log.broadcasts())
            here.instance._tasks[0].cancel()
            server = here.instance.server_role("alpha")
            here.instance.spawn(server.run())
            await server.joined.wait()
            past = await Zipnet[Note].read(await here.node(), here.config, from_round=1)
            for reader in (log, past):
                async for record in reader._records:
                    if server.core.id in record.header.servers:
                        break

    run(test())


def test_a_slot_without_a_datum_of_the_type_is_garbled() -> None:
    async def test() -> None:
        async with world() as here:
            log = (await Zipnet[Note].read(await here.node(), here.config)).broadcasts()
            bad = b"\xff" * 64
            while (told := await here.instance.clients[0].send(bad)).outcome != "landed":
                pass
            async for broadcast in log:
                assert broadcast.messages == ()
                if broadcast.garbled:
                    assert broadcast.round == told.round
                    assert broadcast.clients == 2
                    break

    run(test())


def test_the_leaf_says_what_became_of_envelopes() -> None:
    async def test() -> None:
        async with world() as here:
            network = await here.node()
            received = await Zipnet[Note].receipts(network, here.config)
            tx = await Zipnet[Note].submit(network, here.config, here.operators.access())
            receipt = await land(tx, "hi")
            async for leaf in received:
                if leaf.round == receipt.round:
                    assert (leaf.status, leaf.rule) == (Status.TAKEN, "")
                    break
            await network.close()

    run(test())


def test_a_name_is_bound_to_bytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def test() -> None:
        async with world() as here:
            (tmp_path / "demo.local.toml").write_text(config_file.dumps(here.config))
            monkeypatch.setenv("ZIPNET_CONFIG", str(tmp_path))
            network = await here.node()
            async with await Zipnet.bind(
                network, "demo.local", access=here.operators.access()
            ) as z:
                assert z.deployment_id == Zipnet.deployment_id(here.config)
                while (receipt := await z.publish(b"hello")).outcome is not Outcome.LANDED:
                    pass
                async for message in z.subscribe(from_round=receipt.round):
                    assert (message.round, message.datum) == (receipt.round, b"hello")
                    break
                with pytest.raises(DatumRejected) as error:
                    await z.publish(bytes(63))
                assert error.value.rule == "datum.content"
            with pytest.raises(Shutdown):
                await z.publish(b"more")

    run(test())


# What is refused before anything is sent


def test_unknown_names_list_the_known_ones(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def test() -> None:
        config = Operators.new("acme.mainnet", QUICK).config
        for name in ("acme.mainnet", "old.name"):
            (tmp_path / f"{name}.toml").write_text(config_file.dumps(config))
        other = replace(config, name="notes", type_tag="acme.note")
        (tmp_path / "notes.toml").write_text(config_file.dumps(other))
        async with await Network.local() as network:
            for name, rule in (
                ("acme.testnet", "name.unknown"),
                ("../secrets", "name.unknown"),
                ("old.name", "name.file"),
                ("notes", "datum"),
            ):
                with pytest.raises(ConfigRejected) as error:
                    await Zipnet.bind(network, name, folder=tmp_path)
                assert error.value.rule == rule
                if rule == "name.unknown":
                    assert "acme.mainnet, notes, old.name" in str(error.value)
            monkeypatch.delenv("ZIPNET_CONFIG", raising=False)
            with pytest.raises(ConfigRejected) as error:
                await Zipnet.bind(network, "acme.mainnet")
            assert error.value.rule == "folder"

    run(test())


def test_a_deployment_of_another_type_is_refused() -> None:
    async def test() -> None:
        config = replace(Operators.new("demo.local", QUICK).config, wire_size=128)
        async with await Network.local() as network:
            with pytest.raises(ConfigRejected) as error:
                await Zipnet[Note].submit(network, config)
            assert error.value.rule == "datum"

    run(test())
