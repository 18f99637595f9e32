"""Starts that must not succeed, and with what they end: on a bus of one node, by one operator."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.e2e.deployment import Deployment
from tests.e2e.process import Node
from tests.zipnet.network.nats_cluster import Cluster

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    with Cluster(tmp_path_factory.mktemp("bus")) as made:
        yield made


def alone(folder: Path, cluster: Cluster) -> Deployment:
    return Deployment(folder, cluster.urls, names=("alpha",), min_participants=1)


def ended(node: Node) -> tuple[int, str]:
    """The exit code of a node that ends by itself, and the rule that it names."""
    node.start()
    code = node.wait()
    rules = re.findall(r"^  rule: (\S+)$", node.text(), re.MULTILINE)
    assert "Traceback" not in node.text(), node.tail()
    assert rules, node.tail()
    return code, rules[-1]


def test_a_log_that_is_gone_stops_its_servers(cluster: Cluster, tmp_path: Path) -> None:
    with alone(tmp_path, cluster) as made:
        made.start(clients=1)
        made.await_landed(2)
        for node in (*made.clients, made.nodes["aggregator"], *made.servers):
            assert node.stop()[0] == 0
        cluster.stop(0)
        cluster.wipe(0)
        cluster.revive(0)
        server = made.servers[0]
        # Not at the second attempt either, which finds the empty log that the first has made.
        for _ in range(2):
            assert ended(server) == (2, "log.shorter")
        assert "zipnet admin recover" in server.text()


def test_who_is_not_meant(cluster: Cluster, tmp_path: Path) -> None:
    with alone(tmp_path, cluster) as made:
        made.prepare()
        right = made.secret.read_text()
        made.secret.write_text("another secret of the committee")
        # Its state is of the generation that the right secret opens.
        assert ended(made.server("alpha")) == (2, "state.instance")
        made.secret.write_text(right)
        made.server("alpha").start()
        made.servers[0].await_ready()
        # A second process of the same node.
        words = ["--state", str(tmp_path / "alpha"), "--mock-tee", str(made.tee)]
        words += ["--committee-secret-file", str(made.secret)]
        words += ["--endorsement", str(tmp_path / "alpha.endorsement")]
        assert ended(made.add("twin", "server", *words)) == (2, "state.in-use")
        elsewhere = ["--state", str(tmp_path / "elsewhere"), *words[2:]]
        assert ended(made.add("stranger", "server", *elsewhere)) == (2, "endorsement.server")
        aggregator = ["--state", str(tmp_path / "a")]
        other = made.add("other", "aggregator", *aggregator, "--universe", "another")
        assert ended(other) == (2, "universe")


def test_who_finds_nobody(cluster: Cluster, tmp_path: Path) -> None:
    """A bus that has never heard of the deployment."""
    with alone(tmp_path, cluster) as made:
        node = made.add("client", "client", "--mock-tee", str(made.tee))
        assert ended(node) == (3, "instance.unknown")
        assert made.id.hex() in node.text()
