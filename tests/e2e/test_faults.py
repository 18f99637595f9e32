"""Whatever dies, freezes, forgets or is wrong: nothing accepted is lost or doubled, no pad is used
twice, and rounds go on. One deployment of processes on a bus of three nodes meets all faults.

    fault | stall seconds | accepted | lost | doubled | pads reused

`pytest -s` shows the table.
"""

from __future__ import annotations

import signal
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest

from attestation.bundle import Role
from tests.e2e.deployment import Deployment
from tests.e2e.faults import Scene, Wiretap, table
from tests.e2e.faulty import CLOCK_MS, DIE
from tests.e2e.process import Node, until
from tests.zipnet.network.nats_cluster import Cluster
from zipnet.ids import client_id
from zipnet.network.places import Places
from zipnet.node.service_identity import kept

pytestmark = pytest.mark.slow

CLIENTS = 4
# With which a node ends that finds nobody yet.
ENVIRONMENT = 3
# What a client says to whom one server's clock looks wrong, or who looks so to that server.
NAMED = r"server of (operator )?charlie.* by rule (future|stale|expired)"
Note = Callable[[str, object], None]


def managed(node: Node) -> bool:
    """Whether it is ready; who came before all the others is started again."""
    if node.exit_code() == ENVIRONMENT:
        node.wait()
        node.start()
    return node.heard_ready()


class Faults:
    """What may happen to processes and nodes."""

    def __init__(self, scene: Scene) -> None:
        self.scene, self.made, self.cluster = scene, scene.made, scene.cluster
        token, places = self.made.id.hex()[:16], Places.of(self.made.id.raw)
        self.stream = f"{token}_L_{places.log(self.made.instance)}"
        self.order = self.made.folder / "die"

    # Processes

    def kill(self, name: str) -> None:
        """kill -9 in the middle of a round."""
        node = self.made.nodes[name]
        self.await_round()
        node.kill()
        node.start()
        node.await_ready()

    def freeze_server(self) -> None:
        """Until the others have given up its round, and suspended it."""
        node, other = self.made.nodes["bravo"], self.made.nodes["charlie"]
        self.await_round()
        node.send_signal(signal.SIGSTOP)
        try:
            until(lambda: other.scrape().get("mosaik_groups_bonds") == 1, self.made.tails)
        finally:
            node.send_signal(signal.SIGCONT)

    def kill_aggregator_within_a_round(self) -> None:
        """It has envelopes, and there will be no sum of them."""
        node, heard = self.made.nodes["aggregator"], len(self.scene.tap.sealed)
        server = self.made.servers[0]
        after = len(server.text())
        until(lambda: len(self.scene.tap.sealed) > heard, self.made.tails)
        node.kill()
        server.await_line("ended no aggregate", after)
        node.start()
        node.await_ready()

    def kill_client_once_it_has_sealed(self) -> None:
        node = self.made.nodes["client 0"]
        self.order.touch()
        assert node.wait() == -signal.SIGKILL
        assert not self.order.exists()
        unsent = self.sealed_last(node)
        assert unsent not in self.scene.tap.sealed
        node.start()
        node.await_ready()
        # It takes part again, as the same client, and never in that round.
        before = self.told(node)
        until(lambda: self.told(node) > before, self.made.tails)
        assert unsent[0] in {client for client, _ in self.scene.tap.sealed}
        assert unsent not in self.scene.tap.sealed

    def restart_everything(self) -> None:
        """As after a power failure: nobody ends in order."""
        for node in self.made.nodes.values():
            node.kill()
        for number in range(3):
            self.cluster.kill(number)
        self.cluster.start()
        for node in self.made.nodes.values():
            node.start()
        for node in self.made.nodes.values():
            until(partial(managed, node), node.tail)

    def wrong_clock(self, off_ms: int) -> None:
        """A server starts with it, clients name it and stop; then its operator corrects it."""
        node, client = self.made.nodes["charlie"], self.made.nodes["client 1"]
        after = len(client.text())
        node.kill()
        node.env[CLOCK_MS] = str(off_ms)
        node.start()
        node.await_ready()
        client.await_line(NAMED, after)
        del node.env[CLOCK_MS]
        node.kill()
        node.start()
        node.await_ready()

    # Nodes of the bus

    def kill_leader(self) -> None:
        leader = self.cluster.stream_leader(self.stream)
        self.cluster.kill(leader)
        self.made.await_landed(2)
        self.cluster.revive(leader)

    def kill_two(self) -> None:
        leader = self.cluster.stream_leader(self.stream)
        other = (leader + 1) % 3
        self.cluster.kill(leader)
        self.cluster.kill(other)
        # It is enough that the servers notice.
        server = self.made.servers[0]
        server.await_line("does not answer, trying again", after=len(server.text()))
        self.cluster.start()

    def freeze_leader(self) -> None:
        leader = self.cluster.stream_leader(self.stream)
        self.cluster.stop_signal(leader)
        try:
            self.made.await_landed(2)
        finally:
            self.cluster.signal(leader, signal.SIGCONT)

    def wipe_disk(self) -> None:
        self.cluster.kill(0)
        self.cluster.wipe(0)
        self.made.await_landed(2)
        self.cluster.revive(0)

    def await_round(self) -> None:
        server = self.made.servers[0]
        server.await_line("opening round", after=len(server.text()))

    def sealed_last(self, node: Node) -> tuple[bytes, int]:
        """A client that has ended, and the last round that it has kept as sealed."""
        made = self.made
        name = f"client-{made.instance.generation.hex()[:16]}"
        folder, config = made.folder / node.name, made.config
        with kept(folder, Role.CLIENT, made.instance, config=config, name=name) as state:
            assert state.client_guard is not None
            return client_id(state.identity.dh_pub), state.client_guard.round

    def told(self, node: Node) -> int:
        """How many of its messages have landed."""
        return node.text().count("message landed")

    def all(self) -> dict[str, Callable[[], None]]:
        return {
            "kill -9 of a server": lambda: self.kill("bravo"),
            "kill -9 of the aggregator": lambda: self.kill("aggregator"),
            "kill -9 of a client": lambda: self.kill("client 1"),
            "kill -9 of the aggregator within a round": self.kill_aggregator_within_a_round,
            "a client dies between persist and send": self.kill_client_once_it_has_sealed,
            "a frozen server": self.freeze_server,
            "kill -9 of the log's leader": self.kill_leader,
            "a frozen leader of the log": self.freeze_leader,
            "two of three nodes down and back": self.kill_two,
            "a node's disk wiped": self.wipe_disk,
            "all processes and nodes killed": self.restart_everything,
            "a server's clock 10 minutes ahead": lambda: self.wrong_clock(600_000),
            "a server's clock 10 minutes behind": lambda: self.wrong_clock(-600_000),
        }


def test_faults(tmp_path: Path, record_property: Note) -> None:
    with (
        Cluster(tmp_path, nodes=3) as cluster,
        Deployment(tmp_path, cluster.urls) as made,
        Wiretap(made, cluster.urls) as tap,
    ):
        made.start(CLIENTS)
        scene = Scene(made, cluster, tap)
        faults = Faults(scene)
        # As from now on: it dies when it is told to.
        node = made.nodes["client 0"]
        node.kill()
        node.entry, node.env[DIE] = "tests.e2e.faulty", str(faults.order)
        node.start()
        made.nodes["charlie"].entry = "tests.e2e.faulty"
        for name, fault in faults.all().items():
            scene.under(name, fault)
            record_property(name, scene.rows[-1].cells)
        for one in made.clients:
            assert one.stop()[0] == 0, one.tail()
        everything = made.read()
        for one in (made.nodes["aggregator"], *made.servers):
            assert one.stop()[0] == 0, one.tail()
        found = made.check(everything)
        print(f"\n{table(scene.rows)}")
        assert found["accepted"] >= 3 * len(scene.rows)
