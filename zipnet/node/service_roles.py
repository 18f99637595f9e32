"""The three roles as nodes: what each opens, in which order, and what it leaves behind.

A node is ready when it takes part: a server when it has joined, a client when it is registered, an
aggregator when it listens for the rounds of a generation.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import secrets
import ssl
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from attestation.bundle import Role
from attestation.errors import AttestationError
from attestation.files import write_whole
from zipnet.access import Access
from zipnet.config import Clients, Config
from zipnet.datum import Blob, bytes_datum, encode_exact
from zipnet.errors import Attestation, ConfigRejected, Refused, Shutdown, ZipnetError
from zipnet.ids import UniqueId
from zipnet.network.admission import Door
from zipnet.network.base import Network
from zipnet.network.bus_keys import BusKeys
from zipnet.network.recovery import Reopening
from zipnet.node.exposition import Bundles
from zipnet.node.sealed_root import kept_in
from zipnet.node.service import GOODBYE_S, measured
from zipnet.node.service_collateral import Attesting
from zipnet.node.service_identity import aggregator_instance, fresh_or_of_secret, kept
from zipnet.node.service_metrics import counters
from zipnet.node.service_network import PATIENCE_S, Caller
from zipnet.node.service_notify import Readiness
from zipnet.node.state import UnsafePlainState
from zipnet.operators import Endorsement
from zipnet.protocol.instance import Instance
from zipnet.protocol.pads import keystream_xor
from zipnet.protocol.tree import AggregatorTree
from zipnet.roles.admission import Ticketing
from zipnet.roles.aggregator import AggregatorRole
from zipnet.roles.client import ClientRole, ClientSettings
from zipnet.roles.committee_view import Lookout
from zipnet.roles.identity import Identity
from zipnet.roles.metrics import Metrics
from zipnet.roles.server import Server, ServerSettings

# How often a node looks whether its committee has gone on in another generation.
LOOK_S = 5.0
STATUS_S = 1.0
# In a server's state: the last checkpoint that all servers signed.
CHECKPOINT = "checkpoint"

log = logging.getLogger("zipnet.service")

Opener = Callable[[Caller], contextlib.AbstractAsyncContextManager[Network]]


@dataclass(frozen=True, slots=True)
class Setup:
    """What every node is told.

    `network` opens the network as whoever the node is; `signing` is the peer key where a secret
    text makes it; `metrics` is the address to serve them on, with `evidence` if there is some.
    `guest` are the keys of a guest, made at this boot; `state` is then in its memory.
    """

    config: Config
    deployment: UniqueId
    network: Opener
    state: Path | None = None
    signing: Ed25519PrivateKey | None = field(default=None, repr=False)
    metrics: tuple[str, int] | None = None
    evidence: Bundles | None = field(default=None, repr=False)
    guest: Identity | None = field(default=None, repr=False)


@dataclass(frozen=True, slots=True)
class DoorOf:
    """An operator's own node of the bus, and what it must show if that is encrypted."""

    url: str
    tls: ssl.SSLContext | None = None


@dataclass(frozen=True, slots=True)
class ServerSetup:
    """What a server is told beside that."""

    instance: Instance
    attests: Attesting
    endorsement: Endorsement
    trees: tuple[AggregatorTree, ...] = ()
    recovery: Reopening | None = None
    door: DoorOf | None = None


@dataclass(frozen=True, slots=True)
class ClientSetup:
    """What a client is told beside that; `message` is said every `cadence_ms`, if there is one."""

    attests: Attesting
    message: bytes = field(default=b"", repr=False)
    cadence_ms: int = 10_000


async def server(setup: Setup, own: ServerSetup, readiness: Readiness) -> None:
    """Serve until cancelled. Raises what stops this server."""
    if setup.state is None:
        raise ConfigRejected("a server keeps its state", expected="--state DIR", rule="state.none")
    with kept(
        setup.state,
        Role.SERVER,
        own.instance,
        config=setup.config,
        signing=setup.signing,
        recovery=own.recovery,
        guest=setup.guest,
    ) as state:
        check_endorsement(own.endorsement, own.instance, state.identity)
        async with setup.network(Caller(member=state.identity.signing)) as network:
            settings = _server_settings(setup, own, state, setup.state)
            role = Server(network, settings)
            text = own.attests.metrics(setup.config.name, settings.metrics.text)
            metrics = measured(setup.metrics, text, setup.evidence)
            async with metrics, asyncio.TaskGroup() as tasks:
                _upkeep(own.attests, tasks)
                tasks.create_task(role.run())
                await role.joined.wait()
                if own.door:
                    tasks.create_task(_door(setup, own.door, role, state.identity))
                readiness.ready("joined the committee")
                await _report(readiness, lambda: _server_status(role))


def _upkeep(attests: Attesting, tasks: asyncio.TaskGroup) -> None:
    """Keep collateral at hand, if it comes from a service."""
    if attests.service is not None:
        tasks.create_task(attests.service.run())


async def _door(setup: Setup, of: DoorOf, role: Server, identity: Identity) -> None:
    """Let clients in at this operator's own node of the bus."""
    capacity = setup.config.window.max_clients
    door = Door(role.gate, BusKeys.of(identity), setup.deployment, clock, capacity)
    await door.run(of.url, of.tls)


def check_endorsement(endorsement: Endorsement, instance: Instance, identity: Identity) -> None:
    """Check that an operator has signed for this node, in this generation.

    Raises ConfigRejected, Refused.
    """
    if (endorsement.peer, endorsement.dh_pub) != (identity.peer, identity.dh_pub):
        raise ConfigRejected(
            "the endorsement is for another server",
            expected=f"peer {identity.peer.hex()}, DH key {identity.dh_pub.hex()}",
            got=f"peer {endorsement.peer.hex()}, DH key {endorsement.dh_pub.hex()}",
            rule="endorsement.server",
            hint="`zipnet server identity` prints the keys; `zipnet admin server add` signs them",
        )
    try:
        endorsement.verify(instance)
    except Refused as error:
        raise Refused(
            "the endorsement is not for this generation, or its operator did not sign it",
            expected=f"generation {instance.generation.hex()}",
            rule="endorsement.signature",
            hint="the committee secret makes the generation: is it the one that was signed with?",
        ) from error


async def aggregator(setup: Setup, readiness: Readiness) -> None:
    """Fold until cancelled. Raises what stops this node."""
    with contextlib.ExitStack() as stack:
        if setup.state is None:
            identity = fresh_or_of_secret(setup.signing)
        else:
            of = aggregator_instance(setup.deployment)
            state = kept(
                setup.state, Role.AGGREGATOR, of, config=setup.config, signing=setup.signing
            )
            identity = stack.enter_context(state).identity
        async with setup.network(Caller(member=identity.signing)) as network:
            lookout = reading(network, setup)
            await lookout.open()
            instance = await in_force(lookout)
            role = AggregatorRole(network, setup.config, instance, identity)

            def text() -> str:
                return counters(
                    setup.config.name,
                    {"zipnet_aggregator_rounds_total": role.rounds},
                    {"zipnet_aggregator_refused_total": role.refused},
                )

            metrics = measured(setup.metrics, text, setup.evidence)
            async with metrics, asyncio.TaskGroup() as tasks:
                tasks.create_task(role.run())
                tasks.create_task(_same_generation(lookout, instance))
                readiness.ready("waiting for rounds")
                await _report(readiness, lambda: f"{role.rounds} rounds folded")


async def client(setup: Setup, own: ClientSetup, readiness: Readiness) -> None:
    """Take part until cancelled, then take the registration back. Raises what stops this client."""
    raw = message(setup.config, own.message)
    with contextlib.ExitStack() as stack:
        identity, kept_state = setup.guest or fresh_or_of_secret(setup.signing), None
        if setup.state is not None:
            # A client's state is of one generation, and only the committee knows which it is.
            async with setup.network(Caller()) as network:
                lookout = reading(network, setup)
                await lookout.open()
                instance = await in_force(lookout)
            kept_state = stack.enter_context(_client_state(setup, setup.state, instance))
            identity = kept_state.identity
        async with setup.network(Caller(identity=identity.signing)) as network:
            role = client_role(network, setup, own, identity, kept_state)
            await take_part(role, setup, own, raw, readiness)


def message(config: Config, content: bytes) -> bytes:
    """What a client says, encoded; nothing for cover alone.

    Raises DatumRejected, and ConfigRejected where the deployment carries another datum.
    """
    if not content:
        return b""
    if config.type_tag != Blob.TYPE_TAG:
        raise ConfigRejected(
            "a text is no message of this deployment",
            expected=f"messages of type {config.type_tag}",
            got="--message",
            rule="message.type",
            hint="write a program that uses `zipnet.Zipnet[...]`",
        )
    return encode_exact(bytes_datum(config.wire_size)(content))


async def in_force(lookout: Lookout, seconds: float = PATIENCE_S) -> Instance:
    """The generation that the committee is in, as its servers' notices say.

    Raises ConnectTimeout if they don't in time, EngineError.
    """
    try:
        async with asyncio.timeout(seconds):
            while True:
                found = await lookout.generation()
                if found is not None:
                    return found
                await asyncio.sleep(0.2)
    except TimeoutError:
        raise await lookout.nobody(None) from None


def reading(network: Network, setup: Setup) -> Lookout:
    """For what is public: no ticket is looked at."""
    admission = partial(Access().admission, setup.config)
    return Lookout(network, setup.config, setup.deployment.raw, frozenset(), admission)


def _server_settings(
    setup: Setup, own: ServerSetup, state: UnsafePlainState, folder: Path
) -> ServerSettings:
    ticketing = Ticketing(
        setup.config,
        own.instance,
        Role.SERVER,
        state.identity,
        own.attests.access.provider,
        boot_epoch=state.boot_epoch,
        instance_id=state.identity.dh_pub,
    )
    return ServerSettings(
        admission=own.attests.access.admission(setup.config, own.instance),
        ticketing=ticketing,
        endorsement=own.endorsement,
        store=state,
        xor=keystream_xor(),
        draw=secrets.token_bytes,
        clock=clock,
        metrics=Metrics(setup.config.name),
        tip=state.tip,
        guard=state.server_guard,
        seen=state.seen,
        keep=partial(write_whole, folder / CHECKPOINT),
        trees=own.trees,
        recovery=own.recovery,
        # A guest's folder is in its memory, and lasts as long.
        sealing=kept_in(folder, secrets.token_bytes),
    )


def _server_status(role: Server) -> str:
    state = role.state
    return f"round {state.next_round - 1}, epoch {state.epoch.number}, entry {state.seq}"


def _client_state(
    setup: Setup, folder: Path, instance: Instance
) -> contextlib.AbstractContextManager[UnsafePlainState]:
    return kept(
        folder,
        Role.CLIENT,
        instance,
        config=setup.config,
        signing=setup.signing,
        name=f"client-{instance.generation.hex()[:16]}",
    )


def client_role(
    network: Network,
    setup: Setup,
    own: ClientSetup,
    identity: Identity,
    state: UnsafePlainState | None,
) -> ClientRole:
    """A client of these keys, whose guards go into its state, if it has one."""
    boot = state.boot_epoch if state else int(time.time())
    settings = client_settings(setup, own, identity, boot)
    if state is not None:
        settings = replace(settings, store=state, guard=state.client_guard)
    return ClientRole(network, checking(network, setup, own), settings)


def checking(network: Network, setup: Setup, own: ClientSetup) -> Lookout:
    """For a client, which looks at every server's ticket."""
    admission = partial(own.attests.access.admission, setup.config)
    return Lookout(network, setup.config, setup.deployment.raw, frozenset(), admission)


def client_settings(
    setup: Setup, own: ClientSetup, identity: Identity, boot_epoch: int
) -> ClientSettings:
    """Those of a client of these keys that keeps nothing."""
    config, access = setup.config, own.attests.access

    def ticketing(instance: Instance) -> Ticketing:
        return Ticketing(
            config,
            instance,
            Role.CLIENT,
            identity,
            access.provider if config.clients is Clients.ATTESTED else None,
            boot_epoch=boot_epoch,
            instance_id=identity.dh_pub,
        )

    return ClientSettings(
        config=config,
        deployment_id=setup.deployment.raw,
        identity=identity,
        ticketing=ticketing,
        store=access.store,
        xor=keystream_xor(),
        draw=secrets.token_bytes,
        clock=clock,
        connect_s=access.connect_s,
    )


async def take_part(
    role: ClientRole, setup: Setup, own: ClientSetup, raw: bytes, readiness: Readiness
) -> None:
    """Run a client until cancelled, then take its registration back; `raw` is what it says."""

    def text() -> str:
        values = {
            "zipnet_client_rounds_total": role.rounds,
            "zipnet_client_refused": int(bool(role.refusal)),
        }
        return counters(setup.config.name, values)

    try:
        whole = own.attests.metrics(setup.config.name, text)
        metrics = measured(setup.metrics, whole, setup.evidence)
        async with metrics, asyncio.TaskGroup() as tasks:
            _upkeep(own.attests, tasks)
            tasks.create_task(role.run())
            await role.ready()
            log.info("registered")
            readiness.ready("registered")
            if raw:
                tasks.create_task(_say(role, raw, own.cadence_ms / 1000))
            await _report(readiness, lambda: _client_status(role))
    finally:
        await _retire(role)


def _client_status(role: ClientRole) -> str:
    refused = f", refused by rule {role.refusal}" if role.refusal else ""
    return f"{role.rounds} rounds sealed{refused}"


async def _say(role: ClientRole, raw: bytes, seconds: float) -> None:
    """Say it again and again; each time is another message, whatever became of the last one."""
    while True:
        try:
            told = await role.send(raw)
        except Shutdown:
            return  # its reason is told by the client itself
        except (Attestation, AttestationError, Refused) as error:
            log.warning("the message was not sent: %s", error)
        else:
            why = f" by rule {told.rule}" if told.rule else ""
            log.info("message %s in round %d%s", told.outcome, told.round, why)
        await asyncio.sleep(seconds)


async def _retire(role: ClientRole) -> None:
    """Say goodbye, so that no round waits for this client; they do if nobody hears it."""
    try:
        async with asyncio.timeout(GOODBYE_S):
            await role.retire()
    except (ZipnetError, TimeoutError) as error:
        log.info("the client goes without a word: %s", error)


async def _same_generation(lookout: Lookout, instance: Instance) -> None:
    """Raise Shutdown once the committee has gone on without this generation."""
    while True:
        await asyncio.sleep(LOOK_S)
        try:
            operators = (await lookout.history())[-1]
            await lookout.check_generation(instance, operators)
        except Shutdown:
            raise
        except ZipnetError as error:
            log.warning("it is not known which generation the committee is in: %s", error)


async def _report(readiness: Readiness, text: Callable[[], str]) -> None:
    while True:
        readiness.status(text())
        await asyncio.sleep(STATUS_S)


def clock() -> int:
    """Unix milliseconds."""
    return time.time_ns() // 1_000_000
