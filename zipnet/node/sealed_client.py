"""A client whose identity and pairs the committee seals: it survives a restart of its machine.

It asks as a guest first, since the seal says who it is. When it is told to end it leaves its
registration in the log: if it is back within the epoch it goes on where it was.
"""

from __future__ import annotations

import asyncio
import secrets
import time
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from attestation.seal.committee import Committee
from attestation.seal.committee_sealer import CommitteeSealer
from zipnet.config import Clients
from zipnet.errors import ConfigRejected
from zipnet.node.sealed_disk import SealedDisk
from zipnet.node.sealed_state import SealedState
from zipnet.node.service_network import Caller
from zipnet.node.service_notify import Readiness
from zipnet.node.service_roles import (
    ClientSetup,
    Setup,
    checking,
    client_settings,
    clock,
    message,
    take_part,
)
from zipnet.protocol.instance import Instance
from zipnet.roles.client import ClientRole
from zipnet.roles.sealing import Asker, ServersAsked


@dataclass(frozen=True, slots=True)
class SealedSetup:
    """What a sealed client is told beside the rest.

    `instance_key` names the node to the committee, whatever becomes of its identity, and comes from
    its owner: who has it can ask for what is sealed, from an image on the list. `disk` is a block
    device, or a file on one's own machine.
    """

    instance_key: Ed25519PrivateKey = field(repr=False)
    disk: Path


async def client(setup: Setup, own: ClientSetup, sealed: SealedSetup, readiness: Readiness) -> None:
    """Take part until cancelled. Raises what stops this client.

    StateDamaged for a disk that is in use, too small, not there or another node's; Shutdown, rule
    `fenced`, once another copy of this client has started.
    """
    raw = message(setup.config, own.message)
    if setup.config.clients is not Clients.ATTESTED:
        raise ConfigRejected(
            "nothing is sealed in a deployment whose clients show no quotes",
            expected="attested clients",
            got=str(setup.config.clients),
            rule="sealing.unattested",
            hint="run this client without a disk",
        )
    disk = SealedDisk.open(sealed.disk)
    try:
        async with setup.network(Caller()) as network:
            lookout = checking(network, setup, own)
            await lookout.open()
            view = await lookout.find(_now, own.attests.access.connect_s)
            asked = ServersAsked(network.channel(lookout.places.register))
            state = _state(setup, own, sealed, disk, asked, view.instance)
            start = await state.start(view)
        identity = start.record.identity
        async with setup.network(Caller(identity=identity.signing)) as network:
            lookout = checking(network, setup, own)
            asked.channel = network.channel(lookout.places.register)
            settings = replace(
                client_settings(setup, own, identity, int(time.time())),
                store=start.journal,
                guard=start.guard,
                keyring=start.ring,
                share=state.share,
                budget=start.budget,
                opened=state.opened,
                doubted=state.doubted,
                sealed=True,
            )
            role = ClientRole(network, lookout, settings)
            async with asyncio.TaskGroup() as tasks:
                sealing = tasks.create_task(state.run())
                await take_part(role, setup, own, raw, readiness)
                sealing.cancel()
    finally:
        disk.close()


def _state(
    setup: Setup,
    own: ClientSetup,
    sealed: SealedSetup,
    disk: SealedDisk,
    asked: ServersAsked,
    instance: Instance,
) -> SealedState:
    access = own.attests.access
    admission = access.admission(setup.config, instance)
    asker = Asker(admission, access.provider, sealed.instance_key, _now)

    def sealer(servers: Mapping[bytes, bytes]) -> CommitteeSealer:
        committee = Committee(instance.deployment_id, asker.id, dict(servers))
        return CommitteeSealer(committee, asked, disk, asker.ticket, secrets.token_bytes)

    limit = setup.config.window.messages_per_epoch
    return SealedState(disk, sealer, instance, limit, secrets.token_bytes)


def _now() -> datetime:
    return datetime.fromtimestamp(clock() / 1000, UTC)
