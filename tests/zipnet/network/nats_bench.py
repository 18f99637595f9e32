"""One instance on a cluster that some nodes have few rights on, for tests of single parts."""

import asyncio
import json
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from tests.zipnet.network.nats_cluster import Cluster, Node
from tests.zipnet.network.nats_harness import NatsHarness, guarded, member_key, nkey
from zipnet.network.nats import NatsNetwork

AGGREGATOR, CLIENT = member_key(40), member_key(41)


def with_few_rights(node: Node) -> str:
    """An aggregator, who may write one table, and a client, who may submit; neither reads more."""
    inbox = {key: key.public_key().public_bytes_raw().hex()[:16] for key in (AGGREGATOR, CLIENT)}
    reads = '"$JS.API.DIRECT.GET.>"'
    few = f"""
       {{ nkey: {nkey(AGGREGATOR)}, permissions: {{
          publish: [{reads}, "$KV.>"], subscribe: ["_INBOX.{inbox[AGGREGATOR]}.>", "*.pub.>"] }} }}
       {{ nkey: {nkey(CLIENT)}, permissions: {{
          publish: ["*.ch.submit.>"], subscribe: ["_INBOX.{inbox[CLIENT]}.>"] }} }}
       {{ user: guest,"""
    return guarded(node).replace("{ user: guest,", few)


@dataclass(slots=True)
class Bench:
    harness: NatsHarness
    cluster: Cluster
    network: NatsNetwork
    token: str
    handles: list[NatsNetwork] = field(default_factory=list)

    async def connect(
        self,
        key: Ed25519PrivateKey | None = None,
        *,
        public: frozenset[str] = frozenset(("public",)),
        replicas: int = 1,
        identity: Ed25519PrivateKey | None = None,
    ) -> NatsNetwork:
        network = await NatsNetwork.connect(
            self.cluster.urls,
            token=self.token,
            public=public,
            replicas=replicas,
            key=key,
            identity=identity,
            timeout=20.0,
        )
        self.handles.append(network)
        return network

    async def update(self, stream: str, **other: Any) -> None:
        """Change a stream's settings, as somebody with all rights."""
        info = await self.harness.administrate(f"STREAM.INFO.{stream}")
        config = {**info["config"], **other}  # type: ignore[dict-item]
        await self.harness.administrate(f"STREAM.UPDATE.{stream}", json.dumps(config).encode())


def on(cluster: Cluster, body: Callable[[Bench], Awaitable[None]]) -> None:
    async def main() -> None:
        harness = NatsHarness(cluster)
        network = await harness.connect()
        assert isinstance(network, NatsNetwork)
        bench = Bench(harness, cluster, network, network._token)
        try:
            async with asyncio.timeout(60):
                await body(bench)
        finally:
            for handle in bench.handles:
                await handle.close()
            await harness.close()
        assert asyncio.all_tasks() == {asyncio.current_task()}

    asyncio.run(main())
