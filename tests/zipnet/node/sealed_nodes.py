"""A sealed client's state over a real file, and a committee in this process; no network."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import cast

from attestation.seal.committee_sealer import CommitteeSealer
from tests.attestation.seal.committee_simulator import Crash, Node, Simulator
from tests.zipnet.protocol.support import INSTANCE
from zipnet.ids import client_id
from zipnet.node.sealed_disk import DISK_BYTES, SealedDisk
from zipnet.node.sealed_state import SealedState, Start
from zipnet.protocol.guards import ClientGuard
from zipnet.protocol.instance import Instance
from zipnet.protocol.keyring import KeyRing
from zipnet.protocol.ratelimit import Budget
from zipnet.protocol.roster import Member
from zipnet.roles.committee_view import CommitteeView
from zipnet.roles.identity import Draw, Identity

LIMIT = 8


class Client:
    """One machine: a disk, an instance key; `epoch` is the one that runs, `list` in force."""

    def __init__(self, path: Path, simulator: Simulator) -> None:
        self.path = path
        self.simulator = simulator
        self.node = Node(simulator)
        self.instance = INSTANCE
        self.epoch = 1
        self.list = 3
        self.crash = 0  # at the so manieth flush from now on
        self.disk: SealedDisk | None = None
        self.confirmed = False
        self.state: SealedState
        path.write_bytes(bytes(DISK_BYTES))

    @property
    def view(self) -> CommitteeView:
        """As much of a view as is looked at."""
        servers = self.simulator.committee(self.node.instance).keys
        accepted = SimpleNamespace(number=self.list)
        made = SimpleNamespace(servers=servers, accepted=accepted, next_epoch=self.epoch + 1)
        return cast("CommitteeView", made)

    def boot(self, instance: Instance | None = None) -> Start:
        """A new process over the disk."""
        return asyncio.run(self.start(instance))

    async def start(self, instance: Instance | None = None) -> Start:
        """As `boot`, while others run."""
        self.close()
        disk = self.disk = SealedDisk.open(self.path, self._sync)
        draw = self.simulator.random.randbytes

        def sealer(servers: Mapping[bytes, bytes]) -> CommitteeSealer:
            committee = self.simulator.committee(self.node.instance)
            assert committee.keys == servers
            return CommitteeSealer(committee, self.simulator, disk, self.node.bundle, draw)

        self.state = SealedState(disk, sealer, instance or self.instance, LIMIT, draw, 0.0)
        return await self.state.start(self.view)

    def open_epoch(self, start: Start, *, seals: bool = True) -> KeyRing:
        """The next epoch begins; its pairs are sealed, if there is time."""
        self.epoch += 1
        made = ring(start.record.identity, self.epoch)
        self.state.opened(made, self.view)
        if seals:
            self.confirmed = asyncio.run(self.state.seal())
        return made

    def close(self) -> None:
        if self.disk is not None:
            self.disk.close()
            self.disk = None

    def _sync(self, _descriptor: int) -> None:
        if self.crash:
            self.crash -= 1
            if not self.crash:
                raise Crash


def ring(identity: Identity, epoch: int) -> KeyRing:
    """The pairs that an epoch begins with, with two servers."""
    made = KeyRing(client_id(identity.dh_pub))
    made.offer(INSTANCE, epoch, 1, Identity.fresh(_bytes(epoch)).dh, identity.signing)
    others = [Member(bytes([at]) * 32, Identity.fresh(_bytes(at)).dh_pub) for at in (1, 2)]
    made.open(INSTANCE, epoch, 10 * epoch, others, server=False)
    return made


def _bytes(seed: int) -> Draw:
    return lambda count: bytes([seed % 200 + 1]) * count


def guard(number: int, instance: Instance = INSTANCE) -> bytes:
    """The guard after a round."""
    return ClientGuard(instance.binding, number).encode()


def tags(budget: Budget | None) -> range:
    """The rate-limit tags that a boot may use of the running epoch."""
    return range(budget.used, budget.limit) if budget else range(0)
