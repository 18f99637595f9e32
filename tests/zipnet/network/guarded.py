"""Nodes of the bus as `zipnet nats-config` sets them up, and a state behind their doors."""

from __future__ import annotations

import secrets
import ssl
import time
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

from blake3 import blake3

from attestation.bundle import Bundle, Fresh, Role, Ticket
from tests.zipnet.network import nats_cluster
from tests.zipnet.network.nats_cluster import Cluster
from zipnet.committee.machine import Machine
from zipnet.committee.state import ListInForce, Rules, State
from zipnet.demo import CLIENT, SERVER, Operators, demo_window
from zipnet.ids import UniqueId
from zipnet.network.admission import Door
from zipnet.network.bus_keys import BusKeys
from zipnet.network.nats_config import Node, Peer, Routes, Tls, render
from zipnet.network.rights import BusNames
from zipnet.network.tls import Certificate, client_context, self_signed
from zipnet.roles.admission import TICKET_LIFE, config_digest, policy_id
from zipnet.roles.gate import Gate
from zipnet.roles.identity import Identity
from zipnet.unsafe_programs import Program, ProgramQuotes

NAMES = ("alpha", "bravo", "charlie")
HOST = "127.0.0.1"
BEACON = b"\x42" * 32


def clock() -> int:
    return time.time_ns() // 1_000_000


def now() -> datetime:
    return datetime.now(UTC)


def fresh_identity() -> Identity:
    return Identity.fresh(secrets.token_bytes)


@dataclass
class Site:
    """The deployment, its operators' servers by name, and their nodes' certificates."""

    folder: Path
    operators: Operators = field(default_factory=lambda: Operators.new("door.test", demo_window()))
    servers: dict[str, Identity] = field(
        default_factory=lambda: {name: fresh_identity() for name in NAMES}
    )
    aggregators: tuple[Identity, ...] = field(default_factory=lambda: (fresh_identity(),))
    edge: dict[str, Certificate] = field(init=False)
    route: dict[str, Certificate] = field(init=False)

    def __post_init__(self) -> None:
        self.edge = {one: self_signed(one, [HOST], now(), 1) for one in self.servers}
        self.route = {one: self_signed(one, [HOST], now(), 1) for one in self.servers}
        for kind, made in (("edge", self.edge), ("route", self.route)):
            for name, certificate in made.items():
                (self.folder / f"{name}.{kind}.crt").write_bytes(certificate.pem)
                (self.folder / f"{name}.{kind}.key").write_bytes(certificate.key)
        pems = b"".join(one.pem for one in self.route.values())
        (self.folder / "routes.pem").write_bytes(pems)

    @property
    def deployment(self) -> UniqueId:
        return UniqueId(self.operators.instance.deployment_id)

    @property
    def names(self) -> BusNames:
        return BusNames.of(self.deployment)

    def keys(self, name: str) -> BusKeys:
        return BusKeys.of(self.servers[name])

    def tls(self) -> ssl.SSLContext:
        return client_context(b"".join(one.pem for one in self.edge.values()))

    def node(self, node: nats_cluster.Node) -> Node:
        """What the operator of this node gives to the command."""
        name, keys = NAMES[node.number], self.keys(NAMES[node.number]).public
        others = [(NAMES[one.number], one) for one in node.peers if one.number != node.number]
        peers = tuple(
            Peer(other, f"{HOST}:{one.route}", self.route[other].pin) for other, one in others
        )
        listen, certificates = f"{HOST}:{node.route}", str(self.folder / "routes.pem")
        routes = Routes(listen, self._tls(name, "route"), certificates, peers) if peers else None
        return Node(
            name=name,
            listen=f"{HOST}:{node.port}",
            monitor=f"{HOST}:{node.monitor}",
            routes=routes,
            servers=tuple(one.peer for one in self.servers.values()),
            aggregators=tuple(one.peer for one in self.aggregators),
            issuer=keys["issuer"],
            responder=keys["responder"],
            system=keys["system"],
            store=str(node.store),
            tls=self._tls(name, "edge"),
        )

    def _tls(self, name: str, kind: str) -> Tls:
        path = self.folder / f"{name}.{kind}"
        return Tls(f"{path}.crt", f"{path}.key")

    def text(self, node: nats_cluster.Node) -> str:
        return render(self.operators.config, self.node(node))

    def cluster(self, nodes: int = 1) -> Cluster:
        return Cluster(self.folder, nodes, self.text)

    # Behind the doors

    def state(self, *programs: Program) -> State:
        """A committee's state with a list of these programs, and one beacon."""
        machine = Machine.genesis(Rules.of(self.operators.config), self.operators.instance)
        machine.state.beacons.append(BEACON)
        self.enforce(machine.state, 1, *(programs or (SERVER, CLIENT)))
        return machine.state

    def enforce(self, state: State, number: int, *programs: Program) -> None:
        """Put another list in force."""
        envelope = self.operators.allow_list(number, *programs)
        state.allow_list = ListInForce(number, blake3(envelope).digest(), envelope, 1)

    def gate(self, state: State) -> Gate:
        return Gate(self.operators.admission(self.operators.instance), lambda: state, now)

    def door(self, name: str, state: State, capacity: int = 64) -> Door:
        return Door(self.gate(state), self.keys(name), self.deployment, clock, capacity)

    def bundle(
        self,
        identity: Identity,
        program: Program = CLIENT,
        *,
        issued: int | None = None,
        life: int = TICKET_LIFE,
        beacon: bytes = BEACON,
    ) -> bytes:
        """A client's ticket with a quote of this program, over 5 kB with its certificates."""
        operators = self.operators
        issued = int(time.time()) if issued is None else issued
        ticket = Ticket(
            role=Role.CLIENT,
            deployment_id=self.deployment.raw,
            instance_id=bytes(32),
            peer_id=identity.peer,
            dh_pub=identity.dh_pub,
            policy_id=policy_id(operators.instance),
            config_digest=config_digest(operators.config),
            boot_epoch=1,
            issued_at=issued,
            not_after=issued + life,
            fresh_kind=Fresh.BEACON,
            fresh=beacon,
        )
        quotes = ProgramQuotes(operators.tee, program, ticket.config_digest + bytes(16))
        return Bundle.sign(ticket, quotes.quote(ticket.report_data()), identity.signing).encode()
