"""Procedures that open a deployment's next generation; docs/runbooks names them.

The first changes the committee secret, the second begins where a lost log's last checkpoint is.
"""

from __future__ import annotations

import asyncio
import secrets
import signal
from collections.abc import Iterator
from pathlib import Path

import nats
import pytest
from nats.js.errors import NotFoundError

from tests.e2e.deployment import Deployment
from tests.e2e.operations import Operations
from tests.e2e.process import until
from tests.zipnet.network.nats_cluster import Cluster
from zipnet.network.places import Places
from zipnet.protocol.instance import Instance

pytestmark = pytest.mark.slow

MESSAGES = 3
# So many rounds make sure that servers have signed one, as they do after every sixteenth record.
CHECKPOINT = 20


@pytest.fixture(scope="module")
def town(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Operations]:
    folder: Path = tmp_path_factory.mktemp("generations")
    with Cluster(folder) as cluster:
        with Deployment(folder, cluster.urls, round_period_ms=200) as made:
            made.start(clients=2)
            made.await_landed(MESSAGES)
            yield Operations(made)


def recover(town: Operations, old: str, *, running: bool) -> None:
    """All operators sign; servers get new endorsements and the file; everybody starts again."""
    made, recovery = town.made, town.file("recovery")
    joined: list[str] = []
    said = ""
    for name in made.keys:
        out = town.file(f"recovery-{name}")
        words = [*town.key(name), *town.secret, *joined, "--generation", old, "-o", str(out)]
        words += ["--state", str(town.folder / name)]
        said = made.zipnet("admin", "recover", *words, "--recovery", str(recovery), *made.bus)
        joined = ["--join", str(out)]
    assert f"recovery     {recovery}" in said
    town.options = ["--recovery", str(recovery)]
    new = said.split()[1]
    for name in made.keys:
        town.endorse(name, "--generation", new)
    nodes = [made.server(name, *town.options) for name in made.keys]
    for node in nodes:
        node.start()
    for node in nodes:
        node.await_ready()
    assert new != old
    until(lambda: town.status()["generation"] == new, made.tails)
    for node in (made.nodes["aggregator"], *made.clients):
        if running:
            # It ends by itself, and a service manager starts it again.
            assert node.wait() != 0, node.tail()
            assert "rule: generation" in node.text()
        node.start()
    for node in (made.nodes["aggregator"], *made.clients):
        node.await_ready()
    made.await_landed(MESSAGES)


def test_rotate_the_committee_secret(town: Operations) -> None:
    made = town.made
    old = str(town.status()["generation"])
    town.await_rounds(CHECKPOINT)
    for node in (*made.clients, made.nodes["aggregator"], *made.servers):
        town.stop(node)
    made.secret.write_text(secrets.token_hex(16))
    recover(town, old, running=False)
    # With the secret of before a server finds that the recovery is for another one.
    stranger = town.file("secret-of-before")
    stranger.write_text("sixteen bytes and more")
    words = ["server", "--config", str(made.file), *town.options]
    assert town.refused(*words, "--committee-secret-file", str(stranger)) == (2, "recovery.secret")


def test_recover_a_lost_log(town: Operations) -> None:
    made = town.made
    old = str(town.status()["generation"])
    town.await_rounds(CHECKPOINT)
    asyncio.run(delete_log(made, bytes.fromhex(old)))
    for node in made.servers:
        assert node.wait() == 2, node.tail()
        assert "rule: log." in node.text()
    # Whoever is started again says what to do.
    again = made.servers[0]
    again.start()
    assert again.wait() == 2
    assert "rule: log.shorter" in again.text()
    assert "zipnet admin recover" in again.text()
    recover(town, old, running=True)
    # From now on servers are always started with the file.
    town.restart("alpha")
    made.await_landed(MESSAGES)


def test_nothing_is_lost(town: Operations) -> None:
    made = town.made
    for node in made.clients:
        assert node.stop(signal.SIGTERM)[0] == 0, node.tail()
    assert town.check_heard(made.read()) >= 3 * MESSAGES
    for node in (made.nodes["aggregator"], *made.servers):
        town.stop(node)


async def delete_log(made: Deployment, generation: bytes) -> None:
    """As a member of the bus can who may do everything there."""
    name = Places.of(made.id.raw).log(Instance(made.id.raw, generation))
    bus = await nats.connect(made.urls[0])
    try:
        stream = f"{made.id.hex()[:16]}_L_{name}"
        assert await bus.jetstream().delete_stream(stream)
        with pytest.raises(NotFoundError):
            await bus.jetstream().stream_info(stream)
    finally:
        await bus.close()
