"""Who comes to a guarded node: connections by nats-py alone, and the door that is asked."""

from __future__ import annotations

import asyncio
import base64
from collections.abc import AsyncIterator, Coroutine
from contextlib import asynccontextmanager

import nats.errors
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from nats.aio.client import Client

from tests.zipnet.network.guarded import NAMES, Site
from tests.zipnet.network.nats_cluster import Cluster
from zipnet.committee.state import State
from zipnet.network.admission import Door
from zipnet.network.nkeys import Kind, public_of
from zipnet.network.rights import inbox
from zipnet.roles.identity import Identity
from zipnet.unsafe_programs import Program

PATIENCE = 20.0
OTHER_CLIENT = Program("client 2", "client")
ERRORS = (nats.errors.Error, OSError, TimeoutError)


def run(body: Coroutine[None, None, None]) -> None:
    asyncio.run(asyncio.wait_for(body, 3 * PATIENCE))


@asynccontextmanager
async def opened(site: Site, bus: Cluster, state: State, at: int = 0) -> AsyncIterator[Door]:
    """The door of a node, open."""
    door = site.door(NAMES[at], state)
    task = asyncio.create_task(door.run(bus.nodes[at].url, site.tls()))
    try:
        await asyncio.wait_for(door.open.wait(), PATIENCE)
        yield door
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


class Visitor:
    """A connection by nats-py alone, with what its server complained of."""

    def __init__(self) -> None:
        self.said: list[str] = []
        self.gone = asyncio.Event()
        self.bus = Client()

    async def enter(
        self,
        site: Site,
        url: str,
        key: Ed25519PrivateKey | None = None,
        token: bytes = b"",
        prefix: str = "_INBOX.guest",
        named: Ed25519PrivateKey | None = None,
    ) -> Visitor:
        """`named` is the key it claims to have, if another. Raises what nats-py does if refused."""
        if key is not None:
            self.bus._public_nkey = public_of(Kind.USER, named or key)

        def sign(nonce: str) -> bytes:
            assert key is not None
            return base64.b64encode(key.sign(nonce.encode()))

        async def failed(error: Exception) -> None:
            self.said.append(str(error))

        async def closed() -> None:
            self.gone.set()

        try:
            await self.bus.connect(
                [url],
                tls=site.tls(),
                allow_reconnect=False,
                connect_timeout=5,
                error_cb=failed,
                closed_cb=closed,
                signature_cb=sign if key else None,
                token=base64.b64encode(token).decode() if token else None,
                inbox_prefix=prefix,
            )
        except BaseException:
            # What nats-py leaves open.
            writer = getattr(self.bus._transport, "_io_writer", None)
            if writer is not None:
                writer.transport.abort()
            await self.bus.close()
            raise
        assert self.bus.is_connected
        return self

    async def _settled(self) -> None:
        # The flush of nats-py asks before it sends what waits.
        await self.bus._flush_pending(force_flush=True)
        await self.bus.flush()

    async def may_publish(self, subject: str, data: bytes = b"") -> bool:
        self.said.clear()
        await self.bus.publish(subject, data)
        await self._settled()
        return not any("permissions violation" in one for one in self.said)

    async def may_subscribe(self, subject: str) -> bool:
        self.said.clear()
        subscription = await self.bus.subscribe(subject)
        await self._settled()
        if any("permissions violation" in one for one in self.said):
            return False
        await subscription.unsubscribe()
        return True


async def guest(site: Site, url: str) -> Visitor:
    return await Visitor().enter(site, url)


async def client(site: Site, url: str, identity: Identity, token: bytes) -> Visitor:
    prefix = inbox(identity.peer).removesuffix(".>")
    return await Visitor().enter(site, url, identity.signing, token, prefix)


async def member(site: Site, url: str, identity: Identity) -> Visitor:
    return await Visitor().enter(site, url, identity.signing, prefix="_INBOX")


async def refused(
    site: Site,
    door: Door,
    url: str,
    token: bytes,
    key: Ed25519PrivateKey | None,
) -> str:
    """The rule by which a connection is refused."""
    before = dict(door.refused)
    with pytest.raises(ERRORS, match=r"(?i)authorization violation"):
        await Visitor().enter(site, url, key, token)
    rules = [rule for rule, count in door.refused.items() if count > before.get(rule, 0)]
    assert len(rules) == 1
    return rules[0]
