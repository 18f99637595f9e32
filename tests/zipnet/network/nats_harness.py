"""The engine on NATS, for the conformance suite: one cluster for all cases, a token for each."""

import asyncio
import json
import secrets
from pathlib import Path

import nats
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from nats.aio.client import Client

from tests.zipnet.network.conformance import PUBLIC_LOG
from tests.zipnet.network.nats_cluster import Cluster, Node, plain
from zipnet.network._nats_blobs import SIZE
from zipnet.network.base import Network
from zipnet.network.nats import NatsNetwork
from zipnet.network.nkeys import Kind, public_text

MAX_PAYLOAD = 2 * 1000 * 1000
PASSWORD = "of the tests"  # noqa: S105


def member_key(number: int = 0) -> Ed25519PrivateKey:
    """The peer keys that a guarded cluster admits."""
    return Ed25519PrivateKey.from_private_bytes(bytes([number + 1]) * 32)


def nkey(key: Ed25519PrivateKey) -> str:
    return public_text(Kind.USER, key.public_key().public_bytes_raw())


def guarded(node: Node) -> str:
    """Members by their keys, who may do all; guests; and a user of the system account."""
    members = ", ".join(f"{{ nkey: {nkey(member_key(number))} }}" for number in range(3))
    reads = '"$JS.API.DIRECT.GET.>"'
    return plain(
        node,
        max_payload=MAX_PAYLOAD,
        more=f"""
accounts {{
  A: {{ jetstream: enabled, users: [ {members}
       {{ user: admin, password: "{PASSWORD}" }}
       {{ user: guest, password: "", permissions: {{
          publish: [{reads}], subscribe: ["_INBOX.guest.>", "*.pub.>"] }} }} ] }}
  SYS: {{ users: [ {{ user: sys, password: "{PASSWORD}" }} ] }}
}}
system_account: SYS
no_auth_user: guest
""",
    )


class NatsHarness:
    """One instance on a cluster that others use as well."""

    lacks: dict[str, str] = {}  # noqa: RUF012

    def __init__(self, cluster: Cluster) -> None:
        self._cluster = cluster
        self._token = secrets.token_hex(8)
        self._handles: list[NatsNetwork] = []

    @property
    def replicas(self) -> int:
        return len(self._cluster.nodes)

    async def connect(self) -> Network:
        return await self._add(member_key(len(self._handles) % 3))

    async def guest(self) -> Network:
        return await self._add(None)

    async def stranger(self) -> Network:
        return await self._add(member_key(77))

    async def kill(self) -> None:
        await asyncio.to_thread(self._kill)

    async def revive(self) -> None:
        await asyncio.to_thread(self._cluster.start)

    async def delete_log(self, name: str) -> None:
        await self.administrate(f"STREAM.DELETE.{self._token}_L_{name}")

    async def alter_blob(self, archive: str, digest: bytes) -> None:
        subject = f"{self._token}.blob.{archive}.{digest.hex()}.0"
        async with await self._admin("admin") as admin:
            ack = await admin.request(subject, b"atad", timeout=10, headers={SIZE: "4"})
        assert "error" not in json.loads(ack.data)

    async def cut(self, network: Network) -> None:
        assert isinstance(network, NatsNetwork)
        wire = network._connection._wire
        assert wire is not None
        body = json.dumps({"cid": wire._client.client_id}).encode()
        server = wire._client._server_info["server_id"]
        async with await self._admin("sys") as system:
            answer = await system.request(f"$SYS.REQ.SERVER.{server}.KICK", body, timeout=10)
        assert "error" not in json.loads(answer.data)

    async def administrate(self, verb: str, body: bytes = b"") -> dict[str, object]:
        """Ask the administration as somebody who may do anything."""
        async with await self._admin("admin") as admin:
            answer = await admin.request(f"$JS.API.{verb}", body, timeout=10)
        found: dict[str, object] = json.loads(answer.data)
        assert "error" not in found, found
        return found

    async def close(self) -> None:
        handles, self._handles = self._handles, []
        for handle in handles:
            await handle.close()
        if all(self._cluster.running(node.number) for node in self._cluster.nodes):
            names = (await self.administrate("STREAM.NAMES"))["streams"] or []
            assert isinstance(names, list)
            for name in names:
                if self._token in name:
                    await self.administrate(f"STREAM.DELETE.{name}")

    def _kill(self) -> None:
        for node in self._cluster.nodes:
            self._cluster.kill(node.number)

    async def _add(self, key: Ed25519PrivateKey | None) -> NatsNetwork:
        network = await NatsNetwork.connect(
            self._cluster.urls,
            token=self._token,
            public=frozenset((PUBLIC_LOG,)),
            replicas=self.replicas,
            key=key,
            timeout=20.0,
        )
        self._handles.append(network)
        return network

    async def _admin(self, user: str) -> Client:
        return await nats.connect(self._cluster.urls, user=user, password=PASSWORD)


def cluster(folder: Path, nodes: int) -> Cluster:
    """Not started yet."""
    return Cluster(folder, nodes, guarded)
