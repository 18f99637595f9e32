"""An instance on guarded nodes of the bus: three operators, each with a server behind a door."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import cast

from tests.zipnet.instance.support import PATIENCE, Town
from tests.zipnet.network.guarded import NAMES, Site, clock, fresh_identity
from tests.zipnet.network.nats_cluster import Cluster
from zipnet.demo import CLIENT, SERVER, Operators, demo_window
from zipnet.network.admission import Door
from zipnet.network.base import Network
from zipnet.network.nats import NatsNetwork
from zipnet.network.rights import BusNames
from zipnet.roles.aggregator import AggregatorRole
from zipnet.roles.client import ClientRole
from zipnet.roles.identity import Identity
from zipnet.unsafe_programs import Program

NOWHERE = cast("Network", None)


class NatsTown(Town):
    """Each node has a connection of its own, as by its operator: servers to their own node."""

    def __init__(self, folder: Path, operators: Operators, nodes: int) -> None:
        self._leaves: list[Identity] = []
        super().__init__(NOWHERE, operators)
        servers = {name: fresh_identity() for name in NAMES}
        self.site = Site(folder, operators, servers, tuple(self._leaves))
        self.cluster: Cluster = self.site.cluster(nodes)
        self.doors: dict[str, Door] = {}
        self._open = AsyncExitStack()

    @property
    def urls(self) -> list[str]:
        return [url.replace("nats://", "tls://") for url in self.cluster.urls]

    def url(self, name: str) -> str:
        """The node of this operator, or the only one."""
        return self.urls[min(NAMES.index(name), len(self.urls) - 1)]

    def tls(self) -> ssl.SSLContext:
        return self.site.tls()

    async def connect(
        self,
        urls: list[str],
        *,
        key: Identity | None = None,
        identity: Identity | None = None,
    ) -> NatsNetwork:
        names = BusNames.of(self.site.deployment)
        network = await NatsNetwork.connect(
            urls,
            token=names.token,
            public=names.places.public,
            replicas=len(self.urls),
            key=key.signing if key else None,
            identity=identity.signing if identity else None,
            tls=self.tls(),
            timeout=PATIENCE,
        )
        self._open.push_async_callback(network.close)
        return network

    def aggregator_role(self, identity: Identity) -> AggregatorRole:
        """As the demo's; connected once the nodes are there."""
        self._leaves.append(identity)
        return super().aggregator_role(identity)

    async def open(self, programs: tuple[Program, ...] = (SERVER, CLIENT)) -> None:
        """Start servers, doors and aggregators; the list accepts these programs."""
        for name, identity in self.site.servers.items():
            network = await self.connect([self.url(name)], key=identity)
            self._serve(name, network, identity)
        self.network = self.servers[0]._network
        await self.until(lambda: all(server.joined.is_set() for server in self.servers))
        # On one node there is one server whom it asks.
        for name, server in list(zip(NAMES, self.servers, strict=True))[: len(self.urls)]:
            keys, deployment = self.site.keys(name), self.site.deployment
            door = self.doors[name] = Door(server.gate, keys, deployment, clock, 64)
            self.spawn(door.run(self.url(name), self.tls()))
        await self.until(lambda: all(door.open.is_set() for door in self.doors.values()))
        await self.push(self.operators.allow_list(1, *programs))
        for role, leaf in zip(self.aggregators, self._leaves, strict=True):
            role._network = await self.connect(self.urls, key=leaf)
            self.spawn(role.run())

    def _serve(self, name: str, network: Network, identity: Identity) -> None:
        self._handle = lambda: network
        server = self.server_role(name, identity=identity)
        self.servers.append(server)
        self.spawn(server.run())

    async def enter(self, program: Program = CLIENT, **settings: object) -> ClientRole:
        """One more client, started, over a connection to any node."""
        identity = fresh_identity()
        network = await self.connect(self.urls, identity=identity)
        self._handle = lambda: network
        return self.client(program, identity=identity, **settings)

    def refusals(self) -> set[str]:
        """The rules by which doors have refused."""
        return {rule for door in self.doors.values() for rule in door.refused}

    async def close(self) -> None:
        """Stop everything but the nodes."""
        await super().close()
        await self._open.aclose()


@asynccontextmanager
async def nats_town(
    folder: Path, *, nodes: int = 1, programs: tuple[Program, ...] = (SERVER, CLIENT)
) -> AsyncIterator[NatsTown]:
    """An instance whose committee has started. Nodes are stopped at the end."""
    window = demo_window(
        round_period_ms=200, round_deadline_ms=8_000, fold_deadline_ms=800, max_clients=64
    )
    made = NatsTown(folder, Operators.new("nats.test", window), nodes)
    try:
        await asyncio.to_thread(made.cluster.__enter__)
        await made.open(programs)
        yield made
    finally:
        try:
            await made.close()
        finally:
            await asyncio.to_thread(made.cluster.close)
