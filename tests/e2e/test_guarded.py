"""Every role as a process, on a bus that the operators guard: TLS, nkeys, a door at each node.

All is set up by the commands that operators have; nothing here knows what a configuration of the
bus looks like.
"""

from __future__ import annotations

import json
import signal
from collections.abc import Sequence
from pathlib import Path

import pytest

from tests.e2e.deployment import NAMES, Deployment
from tests.zipnet.network.nats_cluster import Cluster
from tests.zipnet.network.nats_cluster import Node as BusNode
from zipnet.commands.nats_config import nats_config

pytestmark = pytest.mark.slow

HOST = "127.0.0.1"


class Operators:
    """What operators exchange before their nodes start: keys, certificates, pins."""

    def __init__(self, made: Deployment, names: Sequence[str] = NAMES) -> None:
        self.made = made
        self.names = names
        self.folder = made.folder / "-".join(("bus", *names))
        self.folder.mkdir()
        self.pins: dict[str, str] = {}
        for name in self.names:
            for kind in ("edge", "route"):
                words = ["cert", "--name", name, "--host", HOST]
                file = self.folder / f"{name}.{kind}"
                out = ["--cert", f"{file}.crt", "--key", f"{file}.key"]
                self.pins[f"{name}.{kind}"] = made.call(nats_config, *words, *out).strip()
        for kind in ("edge", "route"):
            certificates = [
                (self.folder / f"{name}.{kind}.crt").read_bytes() for name in self.names
            ]
            (self.folder / f"{kind}s.pem").write_bytes(b"".join(certificates))
        self.keys = {
            name: json.loads(
                made.call(nats_config, "keys", "--state", str(made.folder / name), "--json")
            )
            for name in self.names
        }

    def text(self, node: BusNode) -> str:
        """The configuration of one operator's node."""
        name = self.names[node.number]
        keys, out = self.keys[name], self.folder / f"{name}.conf"
        words = ["--node", name, "--listen", f"{HOST}:{node.port}", "--store", str(node.store)]
        words += ["--route", f"{HOST}:{node.route}", "--monitor", f"{HOST}:{node.monitor}"]
        words += ["--route-ca", str(self.folder / "routes.pem"), "-o", str(out)]
        for kind, option in (("edge", "tls"), ("route", "route")):
            file = self.folder / f"{name}.{kind}"
            words += [f"--{option}-cert", f"{file}.crt", f"--{option}-key", f"{file}.key"]
        for one in ("issuer", "responder", "system"):
            words += [f"--{one}", keys[one]]
        for other in node.peers:
            if other.number != node.number:
                peer = self.names[other.number]
                words += ["--peer", f"{peer}={HOST}:{other.route}={self.pins[f'{peer}.route']}"]
        for one in self.names:
            words += ["--server", self.keys[one]["peer"]]
        for one in self.made.tree.split(","):
            words += ["--aggregator", one.partition(":")[0]]
        if not out.exists():
            self.made.call(nats_config, *words, "--config", str(self.made.file))
        return out.read_text()


def test_guarded(tmp_path: Path) -> None:
    with Deployment(tmp_path) as made:
        made.prepare()
        operators = Operators(made)
        with Cluster(tmp_path, 3, operators.text) as cluster:
            made.urls = [url.replace("nats://", "tls://") for url in cluster.urls]
            made.doors = dict(zip(NAMES, made.urls, strict=True))
            made.certificates = operators.folder / "edges.pem"
            made.start(clients=3)
            # What an unlisted program is told, and that it may read all the same.
            other = made.client("client other", "--program", "another")
            other.start()
            other.await_line(r"refuses this client.* by rule mrtd")
            made.await_landed(6)
            assert "message landed" not in other.text()
            facts = json.loads(made.zipnet("status", "--json", *made.bus))
            assert None not in facts["servers"].values()
            # One whose door was killed comes back, and lets in again.
            made.servers[2].kill()
            made.servers[2].start()
            made.servers[2].await_ready()
            made.await_landed(3)
            for node in made.clients:
                assert node.stop(signal.SIGTERM)[0] == 0, node.tail()
            # As a guest, whom the servers let in.
            everything = made.read()
            assert "has no receipts" not in made.nodes["aggregator"].text()
            for node in (made.nodes["aggregator"], *made.servers):
                assert node.stop(signal.SIGTERM)[0] == 0, node.tail()
            assert made.check(everything)["accepted"] >= 9
