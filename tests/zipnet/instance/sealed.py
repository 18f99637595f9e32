"""Sealed clients in a town: booted, killed, copied; each pad that they use is in the ledger."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from attestation.seal.committee_format import Blob
from tests.zipnet.instance.support import Town
from zipnet.access import Access
from zipnet.config import deployment_id
from zipnet.demo import CLIENT
from zipnet.network.base import Network
from zipnet.node import sealed_client, service_roles
from zipnet.node.sealed_client import SealedSetup
from zipnet.node.sealed_disk import BLOB_SLOT, DISK_BYTES
from zipnet.node.sealed_state import SealedState
from zipnet.node.service import cause
from zipnet.node.service_collateral import Attesting
from zipnet.node.service_network import Caller
from zipnet.node.service_notify import Readiness
from zipnet.node.service_roles import ClientSetup, Setup
from zipnet.node.slots import TwoSlots
from zipnet.roles.client import ClientRole, ClientSettings


class Machine:
    """A machine with one disk, whose owner has given it one instance key."""

    def __init__(self, made: Town, disk: Path, patch: pytest.MonkeyPatch) -> None:
        self.made = made
        self.disk = disk
        self.key = Ed25519PrivateKey.generate()
        self.program = CLIENT
        self.roles: list[ClientRole] = []
        self.settings: list[ClientSettings] = []
        disk.write_bytes(bytes(DISK_BYTES))

        def role(network: Network, lookout: object, settings: ClientSettings) -> ClientRole:
            settings.xor = made.client_ledger.xor
            self.settings.append(settings)
            self.roles.append(ClientRole(network, lookout, settings))  # type: ignore[arg-type]
            return self.roles[-1]

        patch.setattr(sealed_client, "ClientRole", role)
        patch.setattr(sealed_client, "SealedState", partial(SealedState, pause_s=0.1))
        patch.setattr(service_roles, "STATUS_S", 0.05)

    def boot(self, disk: Path | None = None) -> asyncio.Task[None]:
        """Start the client over a disk; the task ends with what stopped it."""
        config = self.made.operators.config
        setup = Setup(config, deployment_id(config), self._network)
        own = ClientSetup(Attesting(self.access()))
        sealed = SealedSetup(self.key, disk or self.disk)
        return asyncio.create_task(sealed_client.client(setup, own, sealed, Readiness()))

    def access(self) -> Access:
        return replace(self.made.operators.access(self.program), connect_s=10.0)

    async def up(self, disk: Path | None = None) -> tuple[asyncio.Task[None], ClientRole]:
        """Boot, and wait until it takes part."""
        before, task = len(self.roles), self.boot(disk)
        await self.until(lambda: len(self.roles) > before, task)
        role = self.roles[before]
        await self.until(role.taking_part.is_set, task)
        return task, role

    async def until(self, done: Callable[[], bool], task: asyncio.Task[None]) -> None:
        """As the town's, but for what stops this client."""

        def check() -> bool:
            if task.done():
                task.result()
            return done()

        await self.made.until(check)

    async def sealed(self, version: int, task: asyncio.Task[None]) -> None:
        """Wait until a version of the seal is on the disk, and all servers know it."""

        def known() -> bool:
            blob = self.blob()
            return blob is not None and blob.header.version >= version

        await self.until(known, task)
        await asyncio.sleep(0.3)  # the commit that follows

    def blob(self) -> Blob | None:
        """What is sealed on the disk."""
        slots = TwoSlots(self.disk, BLOB_SLOT)
        try:
            raw = slots.read()
        finally:
            slots.close()
        return None if raw is None else Blob.parse(raw)

    async def kill(self, task: asyncio.Task[None]) -> None:
        """End it in the middle of whatever it does."""
        task.cancel()
        await asyncio.wait([task])

    @contextlib.asynccontextmanager
    async def _network(self, _caller: Caller) -> AsyncIterator[Network]:
        yield self.made.network


def rule_of(task: asyncio.Task[None]) -> str:
    """The rule that a client has ended by."""
    error = task.exception()
    assert error is not None
    return str(getattr(cause(error), "rule", error))
