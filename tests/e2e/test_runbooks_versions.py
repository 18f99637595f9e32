"""Procedures that replace a deployment by another one; docs/runbooks names them.

One operator has two or three deployments on one bus, an old one and what comes after it.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.e2e.deployment import Deployment
from tests.e2e.operations import Operations
from tests.zipnet.network.nats_cluster import Cluster
from zipnet import config_file
from zipnet.config import deployment_id

pytestmark = pytest.mark.slow

MESSAGES = 3


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    with Cluster(tmp_path_factory.mktemp("bus")) as made:
        yield made


@pytest.fixture
def old(cluster: Cluster, tmp_path: Path) -> Iterator[Operations]:
    folder = tmp_path / "old"
    folder.mkdir()
    with Deployment(folder, cluster.urls, names=("alpha",), min_participants=1) as made:
        made.start(clients=1)
        made.await_landed(MESSAGES)
        yield Operations(made)


def after(old: Operations, folder: Path, *changes: tuple[str, str]) -> Deployment:
    """A deployment of the same operators whose file differs in these places, not started."""
    folder.mkdir()
    made = Deployment(folder, old.made.urls, names=tuple(old.made.keys))
    made.keys, made.tee = old.made.keys, old.made.tee
    text = old.made.file.read_text()
    for pattern, value in changes:
        text, count = re.subn(pattern, value, text, flags=re.MULTILINE)
        assert count == 1, pattern
    made.file.write_text(text)
    made.config = config_file.load(made.file)
    made.id = deployment_id(made.config)
    return made


def test_rotate_round_parameters(old: Operations, tmp_path: Path) -> None:
    """Lockstep: the name stays, everybody gets a new file."""
    changes = (r"^num_slots = 32\b", "num_slots = 64"), (r'^init = "[0-9a-f]{4}', 'init = "abcd')
    with after(old, tmp_path / "new", *changes) as new:
        assert new.config.name == old.made.config.name
        assert new.id != old.made.id
        new.start()
        # Side by side: the one goes on, the other waits for clients.
        old.made.await_landed(MESSAGES)
        assert Operations(new).status()["fingerprint"] == new.id.hex()
        retire(old)
        new.client("client 0").start()
        new.nodes["client 0"].await_ready()
        new.await_landed(MESSAGES)
        retire(Operations(new))


def test_retire_and_replace(old: Operations, tmp_path: Path) -> None:
    """The version in the name: publishers move when they like, then the old instance ends."""
    with after(old, tmp_path / "new", (r'^name = "e2e\.test"', 'name = "e2e.test.v2"')) as new:
        assert new.id != old.made.id
        new.start(clients=1)
        old.made.await_landed(MESSAGES)
        new.await_landed(MESSAGES)
        retire(old)
        new.await_landed(MESSAGES)
        # What was said under the old name can still be read, and nothing be written.
        words = ["publish", "too late", "--mock-tee", str(old.made.tee), "--timeout", "3s"]
        words += ["--config", str(old.made.file), *old.made.bus]
        assert old.refused(*words) == (3, "ask")
        retire(Operations(new))


def retire(of: Operations) -> None:
    """Stop clients, then the rest; all that landed is still there to read."""
    made = of.made
    for node in made.clients:
        of.stop(node)
    read = made.read()
    for node in (made.nodes["aggregator"], *made.servers):
        of.stop(node)
    assert made.check(read)["accepted"] >= MESSAGES
    assert json.loads(made.zipnet("status", "--json", *made.bus))["last_final_round"] > 0
