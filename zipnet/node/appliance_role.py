"""A provisioned guest as a node: its role's settings, from the grant and from the guest itself."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import logging
import time
from collections.abc import Awaitable
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from attestation.bundle import Bundle
from attestation.bundle import Role as Ticketed
from attestation.errors import FileUnreadable, ProviderAbsent
from attestation.evidence import evidence_ticket
from attestation.files import unwritable
from attestation.providers import QuoteProvider
from zipnet.access import Access
from zipnet.config import Config, deployment_id
from zipnet.errors import ConfigRejected, Shutdown, ZipnetError
from zipnet.ids import UniqueId
from zipnet.node import sealed_client
from zipnet.node.exposition import Bundles
from zipnet.node.grant import ForAggregator, ForClient, ForServer, Grant, Trust
from zipnet.node.service import at_hand, cause
from zipnet.node.service_collateral import Attesting, Fetching, attesting
from zipnet.node.service_identity import instance_of, of_secret, signing_of
from zipnet.node.service_network import Place, bus_tls, opened
from zipnet.node.service_notify import Readiness
from zipnet.node.service_roles import (
    ClientSetup,
    DoorOf,
    ServerSetup,
    Setup,
    aggregator,
    client,
    server,
)
from zipnet.roles.admission import config_digest
from zipnet.roles.identity import Identity

METRICS_PORT = 9464
# In the guest's memory: the image's root is one, and this is a tmpfs.
FOLDER = "run/zipnet"
BLOCK = "sys/block"
# As run-qemu names the disk of a client's sealed state.
DISK = "zipnet-state"
MAX_SERIAL = 64
# Before a node begins anew in another generation.
PAUSE_S = 1.0

log = logging.getLogger("zipnet.service")


@dataclass(frozen=True, slots=True)
class Provisioned:
    """A guest after its grant; `booted` in Unix seconds, `metrics` where they would be served."""

    config: Config
    grant: Grant
    identity: Identity
    provider: QuoteProvider = field(repr=False)
    booted: int
    root: Path
    metrics: tuple[str, int]

    @property
    def folder(self) -> Path:
        """Where the node of these keys writes; a restarted process has other keys."""
        return self.root / FOLDER / self.identity.peer.hex()[:16]


async def serve_role(node: Provisioned, readiness: Readiness) -> None:
    """Serve until cancelled; begins anew when the committee does. Raises what stops the node."""
    config, own = node.config, node.grant.own
    setup = _setup(node)
    match own:
        case ForServer():
            secret = own.committee_secret.encode()
            instance = instance_of(config, setup.deployment, secret, own.recovery)
            attests = _attests(node, own.trust)
            door = _door(node, own.door)
            told = ServerSetup(instance, attests, own.endorsement, own.trees, own.recovery, door)
            # In another generation it needs another endorsement.
            await server(setup, told, readiness)
        case ForAggregator():
            while await _until_generation(aggregator(setup, readiness)):
                pass
        case ForClient():
            attests = _attests(node, own.trust)
            said = ClientSetup(attests, own.message.encode(), own.cadence_ms)
            run = partial(client, setup, said, readiness)
            if own.instance_key:
                key = Ed25519PrivateKey.from_private_bytes(own.instance_key)
                sealed = sealed_client.SealedSetup(key, state_disk(node.root))
                run = partial(sealed_client.client, setup, said, sealed, readiness)
            while await _until_generation(run()):
                pass


def state_disk(root: Path) -> Path:
    """The disk of a client's sealed state. Raises FileUnreadable if the guest has none."""
    for path in sorted((root / BLOCK).glob("*/serial")):
        with contextlib.suppress(OSError), path.open("rb") as file:
            if file.read(MAX_SERIAL).strip() == DISK.encode():
                return root / "dev" / path.parent.name
    raise FileUnreadable(
        "this guest has no disk for the state that the committee seals",
        expected=f"a virtio disk with the serial {DISK}",
        got="none",
        rule="state.disk",
        hint="start it with run-qemu --state DISK, or provision it with --sealing memory",
    )


async def _until_generation(running: Awaitable[None]) -> bool:
    """Whether it ended because the committee has gone on in another generation."""
    try:
        await running
    except (BaseExceptionGroup, ZipnetError) as error:
        found = cause(error)
        if not isinstance(found, Shutdown) or found.rule != "generation":
            raise
        log.info("beginning anew: %s", found)
        await asyncio.sleep(PAUSE_S)
        return True
    return False


def _setup(node: Provisioned) -> Setup:
    """What every role is told. Raises ConfigRejected for a bus and certificates that don't fit."""
    deployment = deployment_id(node.config)
    place = _place(node)
    bus_tls(place)  # what is wrong is told before anything waits for the bus
    setup = Setup(
        node.config,
        deployment,
        partial(opened, place, deployment, UniqueId(node.grant.universe)),
        metrics=node.metrics if node.grant.metrics else None,
    )
    log.info("deployment %s, fingerprint %s, bus %s", node.config.name, deployment.hex(), place)
    match node.grant.own:
        case ForServer():
            setup = replace(setup, state=node.folder, guest=node.identity)
        case ForClient():
            setup = replace(setup, guest=node.identity)
        case ForAggregator(secret):
            setup = replace(setup, signing=signing_of(secret))
    return replace(setup, evidence=_bundles(node, setup))


def _place(node: Provisioned) -> Place:
    """Where the bus is; its certificates go into a file, which is where they are read from."""
    grant, certificates = node.grant, None
    if grant.certificates:
        certificates = node.folder / "bus.pem"
        try:
            node.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            certificates.write_bytes(grant.certificates)
        except OSError as error:
            raise unwritable(certificates, error) from error
    return Place(grant.urls, None, certificates, grant.replicas)


def _door(node: Provisioned, url: str) -> DoorOf | None:
    return DoorOf(url, bus_tls(replace(_place(node), urls=(url,)))) if url else None


def _attests(node: Provisioned, trust: Trust) -> Attesting:
    """How this guest proves itself, and checks others.

    Raises ConfigRejected, PolicyError, and ProviderAbsent for a mock anchor in a production image.
    """
    digest = hashlib.sha256(trust.mock_root).digest() if trust.mock_root else b""
    if digest != node.config.anchor.root:
        raise ConfigRejected(
            "the trust anchor is not that of the configuration",
            expected=str(node.config.anchor),
            got=f"mock={digest.hex()}" if digest else "no mock root",
            rule="anchor",
            hint="give the mock root exactly where the configuration names one",
        )
    if trust.mock_root:
        try:
            from attestation.providers import mock  # noqa: F401, PLC0415
        except ImportError:
            raise ProviderAbsent(
                "this image checks no quotes of a software TEE",
                expected="a deployment whose anchor is tdx",
                got=str(node.config.anchor),
                rule="mock-root.absent",
                hint="boot an image of the flavour mock in deployments with a mock anchor",
            ) from None
    access = Access(
        provider=node.provider, collateral=at_hand(trust.collateral), mock_root=trust.mock_root
    )
    return attesting(access, Fetching(trust.pccs, trust.fmspcs) if trust.pccs else None)


def _bundles(node: Provisioned, setup: Setup) -> Bundles:
    """What makes evidence of this guest, for the keys that others know the node by.

    A client's are those of this boot: whoever asks for evidence does not learn whose state it has.
    """
    identity = node.identity if setup.signing is None else of_secret(setup.signing)

    def bundle(challenge: bytes) -> bytes:
        ticket = evidence_ticket(
            role=Ticketed[node.grant.role.name],
            deployment_id=setup.deployment.raw,
            instance_id=identity.dh_pub,
            peer_id=identity.peer,
            dh_pub=identity.dh_pub,
            config_digest=config_digest(node.config),
            boot_epoch=node.booted,
            challenge=challenge,
            now=int(time.time()),
        )
        quote = node.provider.quote(ticket.report_data())
        return Bundle.sign(ticket, quote, identity.signing).encode()

    return bundle
