"""Procedures on the servers of a deployment that goes on meanwhile; docs/runbooks names them.

They are done one after another to one deployment. At the end nothing is lost or doubled.
"""

from __future__ import annotations

import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.e2e.deployment import Deployment
from tests.e2e.operations import Operations
from tests.zipnet.network.nats_cluster import Cluster
from zipnet.cli import main

pytestmark = pytest.mark.slow

MESSAGES = 3


@pytest.fixture(scope="module")
def town(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Operations]:
    folder: Path = tmp_path_factory.mktemp("servers")
    with Cluster(folder) as cluster, Deployment(folder, cluster.urls) as made:
        made.start(clients=3)
        made.await_landed(MESSAGES)
        yield Operations(made)


def test_rolling_restart(town: Operations) -> None:
    before = town.servers()
    for name in town.made.keys:
        town.restart(name)
    assert town.servers() == before
    town.made.await_landed(MESSAGES)


def test_upgrade_the_binary(town: Operations) -> None:
    """A patch: wire and machine are as before. Another wire version is refused at once."""
    version = town.made.call(main, "--version").split()
    assert version[-4:] == ["wire", "2,", "machine", "1"]
    town.restart("alpha")
    assert f"zipnet server {version[2].rstrip(',')}: preflight" in town.made.nodes["alpha"].text()
    other = town.file("other.toml")
    other.write_text(town.made.file.read_text().replace("wire_version = 2", "wire_version = 3"))
    assert town.refused("config", "fingerprint", str(other)) == (2, "wire_version")


def test_rotate_a_servers_key(town: Operations) -> None:
    old = town.servers()["bravo"]
    town.stop(town.made.nodes["bravo"])
    town.wipe("bravo", old, "--push", *town.made.bus)
    new = town.endorse("bravo")
    assert new != old
    town.start_server("bravo")
    assert town.servers()["bravo"] == new
    town.made.await_landed(MESSAGES)


def test_rebuild_an_image(town: Operations) -> None:
    old, new = town.program(), town.program("server 2")
    town.rotate_list(str(new))
    town.options = ["--program", "server 2"]
    for name in town.made.keys:
        town.restart(name)
    town.made.await_landed(MESSAGES)
    town.rotate_list("--drop", str(old))
    town.made.await_landed(MESSAGES)


def test_add_a_server(town: Operations) -> None:
    made = town.made
    signers = list(made.keys)
    added = town.new_operator("delta")
    signed = town.change_operators("--add", added, signers=signers)
    town.documents.append(signed)
    town.endorse("delta")
    town.push_operators(signed)
    town.start_server("delta")
    assert None not in town.servers().values()
    assert set(town.servers()) == {*signers, "delta"}
    # Only three have signed the list in force, and one of these would leave.
    early = town.change_operators("--drop", "charlie")
    words = ["--config", str(made.file), *made.bus]
    assert town.refused("admin", "operators", "push", str(early), *words) == (2, "operators.list")
    # All of them sign the list anew, so that it stays good without one of them.
    town.rotate_list()
    made.await_landed(MESSAGES)


def test_remove_a_server(town: Operations) -> None:
    made = town.made
    old, before = town.servers()["charlie"], list(town.documents)
    signed = town.change_operators("--drop", "charlie")
    town.documents.append(signed)
    town.push_operators(signed)
    made.await_landed(MESSAGES)
    assert "charlie" not in town.servers()
    gone = made.nodes["charlie"]
    # Nobody lets it in again: it has ended, and says why.
    assert gone.wait() == 2
    assert "rule: join.operator" in gone.text()
    town.wipe("charlie", old, documents=before)
    del made.keys["charlie"]
    made.await_landed(MESSAGES)


def test_nothing_is_lost_or_doubled(town: Operations) -> None:
    made = town.made
    for node in made.clients:
        assert node.stop(signal.SIGTERM)[0] == 0, node.tail()
    everything = made.read()
    for node in (made.nodes["aggregator"], *made.servers):
        town.stop(node)
    assert made.check(everything)["accepted"] >= 8 * MESSAGES
