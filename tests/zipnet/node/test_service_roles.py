"""All three roles as nodes, over one network in this process."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable, Coroutine
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from attestation.bundle import Role
from attestation.providers.mock_server import MockPccs
from tests.zipnet.instance.support import PATIENCE, run
from zipnet.access import Access
from zipnet.committee.state import Rules
from zipnet.config import Config, deployment_id
from zipnet.datum import Blob
from zipnet.demo import CLIENT, SERVER, Operators, demo_window
from zipnet.errors import (
    ConfigRejected,
    ConnectTimeout,
    DatumRejected,
    LogBroken,
    Refused,
    Shutdown,
    ZipnetError,
)
from zipnet.ids import UniqueId
from zipnet.network.base import Network
from zipnet.network.local import LocalNetwork
from zipnet.network.public import Notice
from zipnet.network.recovery import kept_checkpoint
from zipnet.node import service_roles
from zipnet.node.service import cause
from zipnet.node.service_collateral import Attesting, Fetching, attesting
from zipnet.node.service_identity import aggregator_instance, kept
from zipnet.node.service_network import Caller
from zipnet.node.service_notify import Readiness
from zipnet.node.service_roles import (
    ClientSetup,
    ServerSetup,
    Setup,
    aggregator,
    check_endorsement,
    client,
    in_force,
    message,
    reading,
    server,
)
from zipnet.node.state import UnsafePlainState
from zipnet.operators import Endorsement
from zipnet.protocol.guards import ServerGuard
from zipnet.protocol.instance import Instance
from zipnet.protocol.tree import Aggregator, AggregatorTree
from zipnet.roles.identity import Identity
from zipnet.roles.server import Server
from zipnet.unsafe_programs import Program

WINDOW = {"round_period_ms": 150, "round_deadline_ms": 2_000, "fold_deadline_ms": 500}


class Heard(Readiness):
    """What a service manager would hear."""

    __slots__ = ("lines",)

    def __init__(self) -> None:
        super().__init__()
        self.lines: list[str] = []

    def _say(self, *lines: str) -> None:
        self.lines += lines


class Host:
    """A machine on which nodes run, each with a folder of its own."""

    def __init__(self, engine: LocalNetwork, folder: Path) -> None:
        self.operators = Operators.new("host.test", demo_window(**WINDOW))
        self.fetching: Fetching | None = None
        self.engine = engine
        self.folder = folder
        self.callers: list[Caller] = []
        self._identities: dict[str, Identity] = {}
        self.tasks: dict[str, asyncio.Task[None]] = {}
        self.heard: dict[str, Heard] = {}

    def setup(self, name: str = "", **changes: Any) -> Setup:
        config = self.operators.config
        state = self.folder / name if name else None
        made = Setup(config, self.deployment, self.opened, state)
        return replace(made, **changes)

    @property
    def deployment(self) -> UniqueId:
        return deployment_id(self.operators.config)

    @contextlib.asynccontextmanager
    async def opened(self, caller: Caller) -> AsyncIterator[Network]:
        self.callers.append(caller)
        handle = await self.engine.connect()
        try:
            yield handle
        finally:
            await handle.close()

    def identity(self, name: str, role: Role = Role.SERVER) -> Identity:
        """The keys in a node's folder, looked up before the node runs."""
        if name not in self._identities:
            instance, config = self.operators.instance, self.operators.config
            if role is Role.AGGREGATOR:
                instance = aggregator_instance(self.deployment)
            with kept(self.folder / name, role, instance, config=config) as state:
                self._identities[name] = state.identity
        return self._identities[name]

    def tree(self) -> AggregatorTree:
        identity = self.identity("aggregator", Role.AGGREGATOR)
        return AggregatorTree((Aggregator(identity.peer, identity.dh_pub, 0),))

    def endorsed(self, name: str, instance: Instance | None = None) -> Endorsement:
        identity, key = self.identity(name), self.operators.keys[name]
        instance = instance or self.operators.instance
        return Endorsement.make(instance, key, identity.peer, identity.dh_pub, 1)

    def attesting(self, program: Program) -> Attesting:
        return attesting(self.operators.access(program), self.fetching)

    def server(self, name: str, **changes: Any) -> None:
        attests, endorsement = self.attesting(SERVER), self.endorsed(name)
        own = ServerSetup(self.operators.instance, attests, endorsement, (self.tree(),))
        self.start(name, lambda heard: server(self.setup(name, **changes), own, heard))

    def client(self, name: str, text: str = "", **changes: Any) -> None:
        own = ClientSetup(self.attesting(CLIENT), text.encode(), 50)
        setup = self.setup(name, **changes)
        self.start(name, lambda heard: client(setup, own, heard))

    def start(self, name: str, node: Callable[[Readiness], Coroutine[Any, Any, None]]) -> None:
        self.heard[name] = Heard()
        self.tasks[name] = asyncio.create_task(node(self.heard[name]))

    async def until(self, done: Callable[[], bool]) -> None:
        async with asyncio.timeout(PATIENCE):
            while not done():
                for task in self.tasks.values():
                    if task.done() and not task.cancelled() and task.exception():
                        task.result()
                await asyncio.sleep(0.02)

    def ready(self, *names: str) -> bool:
        return all("READY=1" in self.heard[name].lines for name in names)

    async def stop(self, name: str) -> None:
        task = self.tasks.pop(name)
        task.cancel()
        await asyncio.wait([task])

    async def committee(self) -> None:
        for name in self.operators.keys:
            self.server(name)
        await self.until(lambda: self.ready(*self.operators.keys))
        self.start("aggregator", lambda heard: aggregator(self.setup("aggregator"), heard))


@contextlib.asynccontextmanager
async def host(folder: Path) -> AsyncIterator[Host]:
    engine = await LocalNetwork.open()
    made = Host(engine, folder)
    try:
        yield made
    finally:
        for name in list(made.tasks):
            await made.stop(name)
        await engine.close()


def test_a_whole_instance(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    servers: list[Server] = []

    class Seen(Server):
        def __init__(self, *words: Any) -> None:
            super().__init__(*words)
            servers.append(self)

    def landed() -> int:
        return sum("message landed" in record.getMessage() for record in caplog.records)

    async def body() -> None:
        async with host(tmp_path) as made:
            await made.committee()
            await servers[0].take_list(made.operators.allow_list(1, SERVER, CLIENT))
            for at in range(3):
                made.client(f"client {at}", f"text {at}")
            made.client("no state", state=None)
            with caplog.at_level("INFO"):
                await made.until(lambda: landed() >= 6)
            assert made.ready("aggregator", "client 0", "no state")
            state = servers[0].state
            assert len(state.clients) == 4
            await made.until(lambda: any("epoch" in one for one in made.heard["alpha"].lines))
            # A client that is told to end takes its registration back.
            await made.stop("client 0")
            await made.until(lambda: len(servers[0].state.clients) == 3)
            # One that comes back is the same, and a server too.
            before = {one.endorsement.peer for one in servers[0].state.servers.values()}
            await made.stop("alpha")
            made.server("alpha")
            made.client("client 0", "again")
            await made.until(lambda: made.ready("alpha", "client 0"))
            seen = landed()
            with caplog.at_level("INFO"):
                await made.until(lambda: landed() > seen)
            assert {one.endorsement.peer for one in servers[-1].state.servers.values()} == before
            # What all servers have signed each of them keeps for itself.
            file = made.folder / "alpha" / "checkpoint"
            await made.until(file.exists)
            rules = Rules.of(made.operators.config)
            found = kept_checkpoint(file.read_bytes(), rules, made.deployment.raw)
            assert found.pointer.checkpoint.seq > 0
            # Members connect as such, a client as a guest that may show a ticket.
            kinds = {(bool(one.member), bool(one.identity)) for one in made.callers}
            assert kinds == {(True, False), (False, True), (False, False)}

    monkeypatch.setattr(service_roles, "Server", Seen)
    run(body())


def refusal(error: BaseException) -> ZipnetError:
    found = cause(error)
    assert isinstance(found, ZipnetError)
    return found


def test_a_server_whose_log_is_gone(tmp_path: Path) -> None:
    async def body() -> None:
        async with host(tmp_path) as made:
            made.server("alpha")
            await made.until(lambda: made.ready("alpha"))
            await made.stop("alpha")
            instance, config = made.operators.instance, made.operators.config
            with kept(tmp_path / "alpha", Role.SERVER, instance, config=config) as state:
                assert isinstance(state, UnsafePlainState)
                state._tip = replace(state.tip, seq=1000)
                # As before a partial: with its guard the tip is on disk.
                state.write(ServerGuard(instance.binding).encode())
            made.server("alpha")
            with pytest.raises((LogBroken, BaseExceptionGroup)) as caught:
                await made.until(lambda: made.ready("alpha"))
            assert refusal(caught.value).rule == "log.shorter"
            assert not made.ready("alpha")

    run(body())


def test_collateral_from_a_service(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nobody is judged before it is there, and nobody is refused for that."""
    servers: list[Server] = []

    class Seen(Server):
        def __init__(self, *words: Any) -> None:
            super().__init__(*words)
            servers.append(self)

    monkeypatch.setattr(service_roles, "Server", Seen)

    def landed() -> int:
        return sum("message landed" in record.getMessage() for record in caplog.records)

    async def scraped(port: int) -> str:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(b"GET /metrics HTTP/1.1\r\n\r\n")
        raw = await reader.read()
        writer.close()
        return raw.decode()

    async def body() -> None:
        async with host(tmp_path) as made:
            tee = made.operators.tee
            collateral = tee.collateral()
            with MockPccs(collateral) as pccs, caplog.at_level("INFO"):
                url, fmspc = pccs.url, collateral.parsed.fmspc
                made.fetching = Fetching(url, (fmspc,), made.folder / "collateral of all")
                made.server("alpha", metrics=("127.0.0.1", 0))
                for name in ("bravo", "charlie"):
                    made.server(name)
                await made.until(lambda: made.ready("alpha", "bravo", "charlie"))
                made.start("aggregator", lambda h: aggregator(made.setup("aggregator"), h))
                await servers[0].take_list(made.operators.allow_list(1, SERVER, CLIENT))
                for at in range(2):
                    made.client(f"client {at}", f"text {at}")
                await made.until(lambda: landed() >= 2)
                assert pccs.requests
                said = [record.getMessage() for record in caplog.records]
                port = next(one for one in said if one.startswith("metrics on port "))
                text = await scraped(int(port.rpartition(" ")[2]))
                assert f'fmspc="{fmspc.hex()}",ca="platform"}}' in text
                assert "attestation_collateral_seconds_left{" in text

    run(body())


def test_a_server_without_what_it_needs(tmp_path: Path) -> None:
    async def body() -> None:
        async with host(tmp_path) as made:
            attests, endorsement = made.attesting(SERVER), made.endorsed("alpha")
            own = ServerSetup(made.operators.instance, attests, endorsement)
            with pytest.raises(ConfigRejected) as caught:
                await server(made.setup(), own, Heard())
            assert caught.value.rule == "state.none"
            with pytest.raises(ConfigRejected) as caught:
                await server(made.setup("bravo"), own, Heard())
            assert caught.value.rule == "endorsement.server"
            assert made.callers == []

    run(body())


def test_an_endorsement_of_another_generation(tmp_path: Path) -> None:
    operators = Operators.new("host.test", demo_window())
    instance, config = operators.instance, operators.config
    other = Instance(instance.deployment_id, bytes(32))
    with kept(tmp_path, Role.SERVER, instance, config=config) as state:
        identity = state.identity
    key = operators.keys["alpha"]
    made = Endorsement.make(instance, key, identity.peer, identity.dh_pub, 1)
    check_endorsement(made, instance, identity)
    with pytest.raises(Refused) as caught:
        check_endorsement(made, other, identity)
    assert caught.value.rule == "endorsement.signature"


def test_nobody_is_there(tmp_path: Path) -> None:
    async def body() -> None:
        async with host(tmp_path) as made, made.opened(Caller()) as network:
            lookout = reading(network, made.setup())
            await lookout.open()
            with pytest.raises(ConnectTimeout) as caught:
                await in_force(lookout, 0.3)
            assert caught.value.rule == "connect"
            assert caught.value.exit_code == 3

    run(body())


def test_another_generation_ends_a_node(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(service_roles, "LOOK_S", 0.05)

    async def body() -> None:
        async with host(tmp_path) as made:
            await made.committee()
            await made.until(lambda: made.ready("aggregator"))
            for name in made.operators.keys:
                await made.stop(name)
            later = Instance(made.deployment.raw, b"\x01" * 32)
            async with made.opened(Caller()) as network:
                lookout = reading(network, made.setup())
                await lookout.open()
                for name in made.operators.keys:
                    endorsement = made.endorsed(name, later)
                    notice = Notice(endorsement, later, 1, bytes(32), bytes(32), ())
                    raw = notice.signed(made.identity(name).signing).encode()
                    await lookout.live.put(f"notice/{endorsement.operator.hex()}", raw)
                with pytest.raises((Shutdown, BaseExceptionGroup)) as caught:
                    await made.until(lambda: False)
                assert refusal(caught.value).rule == "generation"
                assert await in_force(lookout) == later

    run(body())


def test_messages() -> None:
    operators = Operators.new("host.test", demo_window())
    config: Config = operators.config
    assert message(config, b"") == b""
    assert len(message(config, b"hello")) == config.wire_size
    with pytest.raises(DatumRejected):
        message(config, b"x" * config.wire_size)
    other = replace(config, type_tag="acme.note")
    assert other.type_tag != Blob.TYPE_TAG
    with pytest.raises(ConfigRejected) as caught:
        message(other, b"hello")
    assert caught.value.rule == "message.type"
    assert message(other, b"") == b""


def test_reading_needs_no_collateral() -> None:
    assert Access().collateral is None
