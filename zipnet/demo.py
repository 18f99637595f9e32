"""A whole instance in one process, over a software TEE: for a first look, for tests, for CI.

Three operators with a server each, one aggregator, some clients. Nothing in it is secret from
whoever runs it, and its quotes chain to a root that it has just made up.
"""

from __future__ import annotations

import asyncio
import hashlib
import os
import secrets
import time
from collections.abc import Callable, Coroutine, Sequence
from dataclasses import dataclass, field, replace

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from attestation.allowlist import AllowList, Entry, TcbPolicy, assemble, sign
from attestation.bundle import Role
from attestation.providers.mock import MockTee
from zipnet.access import Access
from zipnet.config import Anchor, Config, Operator, ShuffleWindow, deployment_id
from zipnet.datum import bytes_datum
from zipnet.ids import InstanceIds
from zipnet.network.base import Network
from zipnet.operators import Endorsement
from zipnet.protocol.instance import Instance, generation
from zipnet.protocol.pads import keystream_xor
from zipnet.protocol.tree import Aggregator, AggregatorTree
from zipnet.roles.admission import Admission, Ticketing, config_digest
from zipnet.roles.aggregator import AggregatorRole
from zipnet.roles.client import ClientRole, ClientSettings
from zipnet.roles.committee_view import Lookout
from zipnet.roles.identity import Identity
from zipnet.roles.metrics import Metrics
from zipnet.roles.server import Server, ServerSettings
from zipnet.unsafe_programs import Program, ProgramQuotes

DATUM_BYTES = 64


class Volatile:
    """A guard's store for nodes that draw new keys at each start: nothing is kept."""

    def write(self, record: bytes) -> None:
        """Keep nothing."""


SERVER = Program("server 1", "server")
CLIENT = Program("client 1", "client")


def demo_window(**changes: int) -> ShuffleWindow:
    """Short rounds for few clients on one machine."""
    values = {
        "num_slots": 32,
        "num_sched_slots": 128,
        "round_period_ms": 500,
        "round_deadline_ms": 10_000,
        "fold_deadline_ms": 400,
        "min_participants": 2,
        "max_clients": 1024,
    }
    return ShuffleWindow(**{**values, **changes})


@dataclass(slots=True)
class Operators:
    """The three parties, with all that they sign."""

    keys: dict[str, Ed25519PrivateKey]
    config: Config
    tee: MockTee
    instance: Instance = field(init=False)

    def __post_init__(self) -> None:
        deployment = deployment_id(self.config)
        committee = InstanceIds.of(deployment).committee.raw
        self.instance = Instance(deployment.raw, generation(committee, secrets.token_bytes(32), 0))

    @classmethod
    def new(cls, name: str, window: ShuffleWindow, count: int = 3) -> Operators:
        """Fresh keys, a fresh software TEE, and the configuration that names them."""
        names = ["alpha", "bravo", "charlie", "delta", "echo"][:count]
        keys = {name: Ed25519PrivateKey.generate() for name in names}
        tee = MockTee(secrets.token_bytes(32))
        operators = [
            Operator(name, key.public_key().public_bytes_raw()) for name, key in keys.items()
        ]
        config = replace(
            Config.new(name, bytes_datum(DATUM_BYTES), operators=operators),
            window=window,
            init=secrets.token_bytes(32),
            anchor=Anchor.mock(hashlib.sha256(tee.root_der).digest()),
        )
        return cls(keys, config, tee)

    def admission(self, instance: Instance) -> Admission:
        """The door, as servers and clients have it."""
        collateral = self.tee.collateral()
        return Admission(self.config, instance, lambda _quote: collateral, self.tee.root_der)

    def access(self, program: Program = CLIENT) -> Access:
        """What a client of the SDK needs here, for this program."""
        collateral = self.tee.collateral()
        return Access(
            provider=ProgramQuotes(self.tee, program, config_digest(self.config) + bytes(16)),
            collateral=lambda _quote: collateral,
            mock_root=self.tee.root_der,
        )

    def allow_list(self, number: int, *programs: Program) -> bytes:
        """A list of programs that all operators signed."""
        payload = AllowList(
            number,
            self.instance.deployment_id,
            int(time.time()),
            tuple(Entry(program.measurement) for program in programs),
            TcbPolicy(),
        ).dumps()
        return assemble(payload, [sign(payload, key) for key in self.keys.values()])

    def ticketing(self, role: Role, identity: Identity, program: Program) -> Ticketing:
        """How a node of this program comes by tickets."""
        mr_config_id = config_digest(self.config) + bytes(16)
        return Ticketing(
            self.config,
            self.instance,
            role,
            identity,
            ProgramQuotes(self.tee, program, mr_config_id),
            boot_epoch=1,
            instance_id=secrets.token_bytes(32),
        )


def clock() -> int:
    """Unix milliseconds."""
    return time.time_ns() // 1_000_000


class DemoInstance:
    """Servers, an aggregator and clients on one network, until the context ends.

    `errors` holds what stopped a node. Make more clients with `client`. `trees` are the parents of
    each tree's aggregators; `settings` changes those of the server of the operator with that name.
    """

    def __init__(
        self,
        network: Network,
        operators: Operators,
        handle: Callable[[], Network],
        *,
        trees: Sequence[Sequence[int]] = ((0,),),
        settings: Callable[[str], dict[str, object]] = lambda _name: {},
    ) -> None:
        self.operators = operators
        self.network = network
        self.servers: list[Server] = []
        self.clients: list[ClientRole] = []
        self.errors: list[BaseException] = []
        self._handle = handle
        self._settings = settings
        self._tasks: list[asyncio.Task[None]] = []
        self._xor = keystream_xor()
        nodes = [[Identity.fresh(secrets.token_bytes) for _ in parents] for parents in trees]
        self.trees = tuple(
            AggregatorTree(
                tuple(
                    Aggregator(identity.peer, identity.dh_pub, parent)
                    for identity, parent in zip(identities, parents, strict=True)
                )
            )
            for identities, parents in zip(nodes, trees, strict=True)
        )
        self.aggregators = [self.aggregator_role(one) for ids in nodes for one in ids]
        self.aggregator = self.aggregators[0]

    async def start(self, programs: tuple[Program, ...] = (SERVER, CLIENT)) -> None:
        """Start the committee and the aggregators; the list accepts these programs."""
        self.servers += [self.server_role(name) for name in self.operators.keys]
        for server in self.servers:
            self.spawn(server.run())
        await self._until(lambda: all(server.joined.is_set() for server in self.servers))
        await self.push(self.operators.allow_list(1, *programs))
        for aggregator in self.aggregators:
            self.spawn(aggregator.run())

    async def push(self, envelope: bytes) -> None:
        """Let the committee take a list. Raises Refused."""
        await self.servers[0].take_list(envelope)

    def client(self, program: Program = CLIENT, **settings: object) -> ClientRole:
        """One more client, started."""
        role = self.client_role(program, **settings)
        self.clients.append(role)
        self.spawn(role.run())
        return role

    def client_role(self, program: Program = CLIENT, **settings: object) -> ClientRole:
        """One more client, not started."""
        config, operators = self.operators.config, self.operators
        identity = settings.pop("identity", None) or Identity.fresh(secrets.token_bytes)
        assert isinstance(identity, Identity)
        network = self._handle()
        made = ClientSettings(
            config=config,
            deployment_id=operators.instance.deployment_id,
            identity=identity,
            ticketing=lambda _instance: operators.ticketing(Role.CLIENT, identity, program),
            store=Volatile(),
            xor=self._xor,
            draw=os.urandom,
            clock=clock,
        )
        made = replace(made, **settings)  # type: ignore[arg-type]
        lookout = Lookout(network, config, made.deployment_id, made.waived, operators.admission)
        return ClientRole(network, lookout, made)

    async def close(self) -> None:
        """Stop everything."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def server_role(
        self, name: str, program: Program = SERVER, identity: Identity | None = None
    ) -> Server:
        """A server of this operator, not started; one that restarts keeps its identity."""
        operators = self.operators
        identity = identity or Identity.fresh(secrets.token_bytes)
        endorsement = Endorsement.make(
            operators.instance, operators.keys[name], identity.peer, identity.dh_pub, clock()
        )
        made = ServerSettings(
            admission=operators.admission(operators.instance),
            ticketing=operators.ticketing(Role.SERVER, identity, program),
            endorsement=endorsement,
            store=Volatile(),
            xor=self._xor,
            draw=os.urandom,
            clock=clock,
            metrics=Metrics(operators.config.name),
            trees=self.trees,
        )
        changes = self._settings(name)
        return Server(self._handle(), replace(made, **changes))  # type: ignore[arg-type]

    def aggregator_role(self, identity: Identity) -> AggregatorRole:
        """An aggregator, not started."""
        operators = self.operators
        return AggregatorRole(self._handle(), operators.config, operators.instance, identity)

    def spawn(self, work: Coroutine[None, None, None]) -> asyncio.Task[None]:
        """Run a node until the instance is closed; what stops it goes to `errors`."""

        async def watched() -> None:
            try:
                await work
            except asyncio.CancelledError:
                raise
            except BaseException as error:
                self.errors.append(error)

        task = asyncio.create_task(watched())
        self._tasks.append(task)
        return task

    async def _until(self, done: Callable[[], bool]) -> None:
        while not done():
            if self.errors:
                raise self.errors[0]
            await asyncio.sleep(0.02)
