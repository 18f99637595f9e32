"""Every role as a process of its own, on a bus of three nodes: rounds, commands, and kill -9."""

from __future__ import annotations

import json
import re
import signal
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from click.testing import CliRunner

from tests.e2e.deployment import Deployment
from tests.e2e.process import Node, until
from tests.zipnet.network.nats_cluster import Cluster
from zipnet.cli import main

pytestmark = pytest.mark.slow

CLIENTS = 8
MESSAGES = 20
# Of one fault: the bus may stand still for 10 s, and a round that lost a server ends at its
# deadline of 12 s; the rest is for a busy machine.
STALL_S = 60.0
Note = Callable[[str, object], None]


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    with Cluster(tmp_path_factory.mktemp("bus"), nodes=3) as made:
        yield made


def test_processes(cluster: Cluster, tmp_path: Path, record_property: Note) -> None:
    """20 messages of 8 clients, each exactly once; then each role dies in turn; then all stop."""
    with Deployment(tmp_path, cluster.urls) as made:
        made.start(CLIENTS)
        record_property("first 20 messages, s", made.await_landed(MESSAGES))
        use_commands(made)
        for name in ("bravo", "aggregator", "client 3"):
            record_property(f"stall after kill -9 of {name}, s", revived(made, name))
        for node in made.clients:
            await_end(node, signal.SIGTERM)
        # Who said goodbye is out of the log.
        server = made.servers[0]
        until(lambda: server.scrape().get("zipnet_client_registry_size") == 0, server.tail)
        everything = made.read()
        for node in (made.nodes["aggregator"], *made.servers):
            await_end(node, signal.SIGINT)
        found = made.check(everything, others=["by hand"])
        record_property("found", dict(found))
        assert found["accepted"] >= MESSAGES + 9


def await_end(node: Node, number: signal.Signals) -> None:
    code, seconds = node.stop(number)
    # It takes 5 s at most; the rest is for a busy machine.
    assert (code, seconds < 15) == (0, True), node.tail()
    assert "still not done" not in node.tail()


def revived(made: Deployment, name: str) -> float:
    """kill -9 in the middle of a round, and start again; how long nothing landed, in seconds."""
    node, server = made.nodes[name], made.servers[0]
    server.await_line("opening round", after=len(server.text()))
    begin = time.monotonic()
    node.kill()
    node.start()
    node.await_ready()
    made.await_landed(3)
    stalled = time.monotonic() - begin
    assert stalled < STALL_S, made.tails()
    return stalled


def use_commands(made: Deployment) -> None:
    """What operators and publishers look at, and say, by hand."""
    bus = made.bus
    facts = json.loads(made.zipnet("status", "--json", *bus))
    assert set(facts["servers"]) == set(made.keys)
    assert None not in facts["servers"].values()
    assert (facts["list"], facts["warning"]) == (1, "")
    assert facts["generation"] == made.instance.generation.hex()
    lines = made.zipnet("subscribe", *bus).splitlines()
    rows = Counter(line.split(maxsplit=1)[1] for line in lines)
    assert set(rows) <= {node.name for node in made.clients}
    assert rows.total() >= MESSAGES - CLIENTS
    entries = json.loads(made.zipnet("admin", "allow-list", "show", "--json", *bus))["entries"]
    assert len(entries) == 2
    number = facts["last_final_round"]
    record = json.loads(made.zipnet("archive", "get", str(number), "--json", *bus))
    assert (record["round"], record["servers"]) == (number, 3)
    said = made.zipnet("publish", "by hand", "--mock-tee", str(made.tee), *bus)
    match = re.fullmatch(r"landed in round (\d+): it is in the final record\n", said)
    assert match is not None, said
    # A program that is not on the list is told so, by each of its commands.
    words = ["--program", "another", "--mock-tee", str(made.tee), "--config", str(made.file)]
    result = CliRunner().invoke(main, ["publish", "in vain", *words, *bus])
    assert (result.exit_code, result.stdout) == (2, "")
    assert "rule: mrtd" in result.stderr
