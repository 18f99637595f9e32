"""Three operators who do not trust each other, and fifty clients over TLS.

Each operator runs a node of the bus, configured by `zipnet nats-config` with pinned routes, and a
server behind it that is its door. Two leaves and a root aggregate. Whoever brings a forged quote,
an unlisted program or an old ticket is told so by its reason.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import signal
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path

import pytest

from attestation.bundle import Fresh, Role
from attestation.providers.mock import MockTee
from tests.e2e.deployment import DATUM_BYTES, NAMES, Deployment, Said
from tests.e2e.process import PATIENCE
from tests.e2e.test_guarded import Operators
from tests.simulator.nodes import Ledger
from tests.zipnet.network.guarded import fresh_identity
from tests.zipnet.network.nats_cluster import Cluster
from zipnet.datum import bytes_datum, encode_exact
from zipnet.errors import Attestation
from zipnet.ids import UNIVERSE
from zipnet.node.service_collateral import Attesting
from zipnet.node.service_identity import access_of
from zipnet.node.service_network import Caller, Place, opened
from zipnet.node.service_roles import ClientSetup, Setup, client_role
from zipnet.protocol.instance import Instance
from zipnet.roles.admission import TICKET_LIFE, Ticketing, config_digest
from zipnet.roles.client import ClientRole
from zipnet.unsafe_programs import ProgramQuotes, default_program

pytestmark = pytest.mark.slow

CLIENTS = 50
ROOT, LEAVES = "aggregator", ("leaf-0", "leaf-1")
ATTEMPTS = 12
Text = bytes_datum(DATUM_BYTES)
Tickets = Callable[[Ticketing], object]


@dataclass(frozen=True, slots=True)
class Old:
    """Tickets that have ended when they are made."""

    made: Ticketing

    def bundle(self, fresh: bytes, kind: Fresh, now: datetime) -> bytes:
        return self.made.bundle(fresh, kind, now - timedelta(seconds=TICKET_LIFE + 20))


def forged(plain: Ticketing) -> Ticketing:
    """With quotes that a laptop has signed by itself."""
    config = plain.config
    program = default_program("client")
    quotes = ProgramQuotes(MockTee(b"\x66" * 32), program, config_digest(config) + bytes(16))
    return Ticketing(
        config, plain.instance, Role.CLIENT, plain.identity, quotes, 1, plain.instance_id
    )


@dataclass
class Crowd:
    """Clients as tasks, each with connections of its own to one operator's node."""

    made: Deployment
    stack: contextlib.AsyncExitStack
    tasks: asyncio.TaskGroup
    ledger: Ledger = field(default_factory=Ledger)
    runs: list[asyncio.Task[None]] = field(default_factory=list)
    landed: Said = field(default_factory=Counter)
    sent: set[str] = field(default_factory=set)

    async def enter(
        self, number: int, program: str = "", tickets: Tickets | None = None
    ) -> ClientRole:
        made, identity = self.made, fresh_identity()
        place = Place((made.urls[number % len(made.urls)],), None, made.certificates)
        access = access_of(made.config, Role.CLIENT, made.tee, program, None)
        caller = Caller(identity=identity.signing)
        network = await self.stack.enter_async_context(
            opened(place, made.id, UNIVERSE, caller, PATIENCE)
        )
        setup = Setup(made.config, made.id, partial(opened, place, made.id, UNIVERSE))
        role = client_role(network, setup, ClientSetup(Attesting(access)), identity, None)
        role._set.xor = self.ledger.xor
        if tickets is not None:
            plain = role._set.ticketing

            def other(instance: Instance) -> object:
                return tickets(plain(instance))

            role._set.ticketing = other  # type: ignore[assignment]
        self.runs.append(self.tasks.create_task(role.run()))
        return role

    async def say(self, role: ClientRole, name: str) -> None:
        """Send under ever new names until one lands."""
        for attempt in range(ATTEMPTS):
            text = f"{name}.{attempt}"
            self.sent.add(text)
            told = await role.send(encode_exact(Text(text.encode())))
            if told.outcome == "landed":
                self.landed[text, told.round] += 1
                return
        raise AssertionError(f"{name} never lands")

    async def refused(self, role: ClientRole) -> Attestation:
        """The reason that a client's program hears."""
        await role.ready()
        with pytest.raises(Attestation) as caught:
            await role.send(encode_exact(Text(b"let me in")))
        assert role.rounds == 0
        return caught.value

    def leave(self) -> None:
        for run in self.runs:
            run.cancel()


async def crowded(made: Deployment) -> Crowd:
    """All that clients do."""
    async with (
        contextlib.AsyncExitStack() as stack,
        asyncio.timeout(4 * PATIENCE),
        asyncio.TaskGroup() as tasks,
    ):
        crowd = Crowd(made, stack, tasks)
        # One more is a process.
        good = [await crowd.enter(number) for number in range(CLIENTS - 1)]
        strangers = {
            "root-mismatch": await crowd.enter(0, tickets=forged),
            "mrtd": await crowd.enter(1, program="another"),
            "expired": await crowd.enter(2, tickets=Old),
        }
        ticketing = good[0]._set.ticketing(made.instance)
        # With its certificates: more than a nats-server takes by default.
        assert len(ticketing.bundle(bytes(32), Fresh.BEACON, datetime.now(UTC))) > 4 << 10
        await asyncio.gather(*(crowd.say(one, f"by {at}") for at, one in enumerate(good)))
        for rule, role in strangers.items():
            error = await crowd.refused(role)
            assert error.rule == rule
            assert any(f"of {name} " in error.message for name in NAMES)
            print(f"refused by rule {rule}: {error.message}")
        await asyncio.gather(*(role.retire() for role in good))
        crowd.leave()
    return crowd


def tree_of(made: Deployment) -> str:
    """A root with two leaves, as the operators agree on it."""
    found = made.tree
    for name in LEAVES:
        state = ["--state", str(made.folder / name)]
        keys = json.loads(made.zipnet("aggregator", "identity", *state, "--json"))
        found += f",{keys['tree']}:0"
    return found


def test_three_operators(tmp_path: Path) -> None:
    with Deployment(tmp_path, num_slots=64, num_sched_slots=512) as made:
        made.prepare()
        made.tree = tree_of(made)
        operators = Operators(made)
        with Cluster(tmp_path, 3, operators.text) as cluster:
            made.urls = [url.replace("nats://", "tls://") for url in cluster.urls]
            made.doors = dict(zip(NAMES, made.urls, strict=True))
            made.certificates = operators.folder / "edges.pem"
            for name in LEAVES:
                made.aggregator(name)
            made.start()
            for name in LEAVES:
                made.nodes[name].start()
                made.nodes[name].await_ready()
            made.client("client 0").start()
            made.nodes["client 0"].await_ready()
            crowd = asyncio.run(crowded(made))
            assert made.nodes["client 0"].stop(signal.SIGTERM)[0] == 0
            everything = made.read()
            # What landed was read exactly once, in its round, and what did not was not read.
            by_tasks = Counter({one: n for one, n in everything.items() if one[0] != "client 0"})
            assert by_tasks == crowd.landed
            assert len(crowd.landed) == CLIENTS - 1
            assert crowd.ledger.uses
            assert crowd.ledger.reused() == 0
            folded = [made.nodes[name].scrape() for name in (ROOT, *LEAVES)]
            assert all(one["zipnet_aggregator_rounds_total"] > 0 for one in folded), folded
            for server in made.servers:
                assert "refused by rule" in server.text()
            for node in (*(made.nodes[name] for name in (ROOT, *LEAVES)), *made.servers):
                assert node.stop(signal.SIGTERM)[0] == 0, node.tail()
            found = made.check(everything, others=[text for text, _ in crowd.landed])
            assert found["accepted"] >= 1
            print(f"{CLIENTS} clients, {len(crowd.landed)} of them tasks: each read exactly once")
