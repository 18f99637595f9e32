"""A whole deployment: three operators, each with a server process, an aggregator, clients, a bus.

Operators do what their runbook says, by the commands that they have: keys, configuration, a mock
PKI, endorsements, a signed list. What came of it is read with the SDK, as anybody could.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import re
import secrets
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

from blake3 import blake3
from click.testing import CliRunner
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from attestation.allowlist import AllowList, Entry, TcbPolicy, assemble, sign
from attestation.bundle import Role
from attestation.cli import main as attestation
from attestation.measure.record import Measurement, Measurements
from tests.e2e.book import reused
from tests.e2e.process import PATIENCE, Node, until
from zipnet import config_file
from zipnet.access import Network
from zipnet.cli import main as zipnet
from zipnet.config import Anchor, Config, Operator, ShuffleWindow, deployment_id
from zipnet.datum import bytes_datum
from zipnet.ids import UNIVERSE
from zipnet.network.group import Tip
from zipnet.network.places import Places
from zipnet.node.service_identity import kept
from zipnet.node.service_network import Caller, Place, opened
from zipnet.protocol.instance import Instance, generation
from zipnet.sdk import Zipnet

NAMES = ("alpha", "bravo", "charlie")
# Rounds live through a change of the bus's leader; a server that dies costs one deadline.
WINDOW = {
    "num_slots": 32,
    "num_sched_slots": 128,
    "round_period_ms": 500,
    "round_deadline_ms": 12_000,
    "fold_deadline_ms": 2_000,
    "min_participants": 2,
    "max_clients": 256,
}
DATUM_BYTES = 64
CADENCE = "300ms"

Said = Counter[tuple[str, int]]


class Deployment:
    """Started by `start`, stopped when the context is left.

    `urls` are those of the bus, `certificates` what it shows, `doors` each operator's own node
    where the bus is guarded.
    """

    def __init__(
        self,
        folder: Path,
        urls: Sequence[str] = (),
        names: Sequence[str] = NAMES,
        **window: int,
    ) -> None:
        self.folder = folder
        self.urls = list(urls)
        self.certificates: Path | None = None
        self.doors: dict[str, str] = {}
        self.keys = {name: Ed25519PrivateKey.generate() for name in names}
        self.tee = folder / "tee"
        self.call(attestation, "mock-pki", str(self.tee))
        root = hashlib.sha256((self.tee / "root.der").read_bytes()).digest()
        self.config = Config(
            name="e2e.test",
            type_tag=bytes_datum(DATUM_BYTES).TYPE_TAG,
            wire_size=DATUM_BYTES,
            window=ShuffleWindow(**{**WINDOW, **window}),
            operators=tuple(
                Operator(name, key.public_key().public_bytes_raw())
                for name, key in self.keys.items()
            ),
            init=secrets.token_bytes(32),
            anchor=Anchor.mock(root),
        )
        self.id = deployment_id(self.config)
        self.file = folder / "e2e.test.toml"
        self.file.write_text(config_file.dumps(self.config))
        self.secret = folder / "committee-secret"
        self.secret.write_text(secrets.token_hex(16))
        self.nodes: dict[str, Node] = {}
        self.tree = ""

    @property
    def instance(self) -> Instance:
        committee = Places.of(self.id.raw).committee.raw
        secret = self.secret.read_text().encode()
        return Instance(self.id.raw, generation(committee, secret, 0))

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        for node in self.nodes.values():
            node.kill()

    @property
    def bus(self) -> list[str]:
        """The options by which everybody finds the bus."""
        shown = ["--bus-certificates", str(self.certificates)] if self.certificates else []
        # As many as there are nodes: of five at most, and of one here.
        return ["--bootstrap", ",".join(self.urls), "--replicas", str(len(self.urls)), *shown]

    # What operators do

    def call(self, command: object, *words: str) -> str:
        """What a command prints; it must succeed."""
        result = CliRunner().invoke(command, list(words))  # type: ignore[arg-type]
        assert result.exit_code == 0, f"{' '.join(words)}\n{result.output}"
        return result.stdout

    def zipnet(self, *words: str) -> str:
        """As an operator calls it on this deployment."""
        return self.call(zipnet, *words, "--config", str(self.file))

    def prepare(self, *names: str) -> None:
        """All that comes before the first start of these servers, or of all."""
        if not self.tree:
            self.tree = self.identity("aggregator", "--state", str(self.folder / "aggregator"))
        secret = ["--committee-secret-file", str(self.secret)]
        for name in names or self.keys:
            file = self.folder / f"{name}.key"
            file.write_text(self.keys[name].private_bytes_raw().hex())
            state = ["--state", str(self.folder / name)]
            facts = json.loads(self.zipnet("server", "identity", *state, *secret, "--json"))
            out = self.folder / f"{name}.endorsement"
            words = ["--peer", facts["peer"], "--dh", facts["dh"], "--key", str(file)]
            self.zipnet("admin", "server", "add", *secret, *words, "-o", str(out))

    def identity(self, role: str, *words: str) -> str:
        """The keys of an aggregator as servers name it."""
        tree: str = json.loads(self.zipnet(role, "identity", *words, "--json"))["tree"]
        return tree

    def measurements(self, *names: str) -> tuple[Measurement, ...]:
        """What the list accepts: the server's program, and clients of these names."""
        found = [self.call(zipnet, "config", "program", "server")]
        clients = names or ("zipnet client",)
        found += [self.call(zipnet, "config", "program", "client", "--name", n) for n in clients]
        return tuple(Measurements.loads(text.encode()).entries[0] for text in found)

    def push(self, number: int, *entries: Measurement) -> None:
        """Sign a list by all operators, and hand it over."""
        accepted = tuple(map(Entry, entries))
        now = int(time.time())
        payload = AllowList(number, self.id.raw, now, accepted, TcbPolicy()).dumps()
        signatures = [sign(payload, key) for key in self.keys.values()]
        file = self.folder / f"list-{number}"
        file.write_bytes(assemble(payload, signatures))
        self.zipnet("admin", "allow-list", "push", str(file), *self.bus)

    # Nodes

    def add(self, name: str, role: str, *words: str, **env: str) -> Node:
        """One more node, not started."""
        common = ["--config", str(self.file), *self.bus]
        node = Node(name, self.folder, [role, *common, *words], env)
        self.nodes[name] = node
        return node

    def server(self, name: str, *words: str) -> Node:
        return self.add(
            name,
            "server",
            *("--state", str(self.folder / name)),
            *("--committee-secret-file", str(self.secret)),
            *("--endorsement", str(self.folder / f"{name}.endorsement")),
            *("--mock-tee", str(self.tee)),
            *("--tree", self.tree),
            *(("--door", self.doors[name]) if name in self.doors else ()),
            *words,
        )

    def aggregator(self, name: str = "aggregator") -> Node:
        return self.add(name, "aggregator", "--state", str(self.folder / name))

    def client(self, name: str, *words: str) -> Node:
        """One that says its name every CADENCE, and stays the same when it comes back."""
        said = ["--message", name, "--cadence", CADENCE, "--state", str(self.folder / name)]
        return self.add(name, "client", "--mock-tee", str(self.tee), *said, *words)

    @property
    def servers(self) -> list[Node]:
        return [self.nodes[name] for name in self.keys if name in self.nodes]

    @property
    def clients(self) -> list[Node]:
        return [node for name, node in self.nodes.items() if name.startswith("client")]

    def start(self, clients: int = 0) -> None:
        """The committee, its list, the aggregator, and so many clients."""
        if not self.tree:
            self.prepare()
        for name in self.keys:
            self.server(name).start()
        for node in self.servers:
            node.await_ready()
        # Each says so on the bus just after it has joined.
        until(self.announced, self.tails)
        self.push(1, *self.measurements())
        self.aggregator().start()
        self.nodes["aggregator"].await_ready()
        for at in range(clients):
            self.client(f"client {at}").start()
        for node in self.clients:
            node.await_ready()

    def announced(self) -> bool:
        """Whether a guest finds the committee."""
        words = ["status", *self.bus, "--config", str(self.file)]
        return CliRunner().invoke(zipnet, words).exit_code == 0

    def rounds(self) -> int:
        """Final rounds as the server knows that has seen most, in this boot of it."""
        seen = [node.scrape().get("zipnet_rounds_finalized_total", 0) for node in self.servers]
        return max(seen)

    def landed(self) -> Said:
        """What clients were told that it landed: text and round."""
        said: Said = Counter()
        for node in self.clients:
            for number in re.findall(r"message landed in round (\d+)", node.text()):
                said[node.name, int(number)] += 1
        return said

    def await_landed(self, number: int) -> float:
        """Until so many messages have landed beyond those so far; the seconds that it took."""
        before = self.landed().total()
        return until(lambda: self.landed().total() >= before + number, self.tails)

    def tails(self) -> str:
        return "\n".join(f"--- {name}\n{node.tail()}" for name, node in self.nodes.items())

    # What came of it

    def read(self) -> Said:
        """What was broadcast up to now, read with the SDK: text and round."""
        return asyncio.run(asyncio.wait_for(self._read(), PATIENCE))

    async def _read(self) -> Said:
        kind = bytes_datum(DATUM_BYTES)
        said: Said = Counter()
        bus = ",".join(self.urls)
        made = Network.connect(bus, self.config, certificates=self.certificates)
        async with await made as network:
            log = await network.port.log(Places.of(self.id.raw).broadcasts)
            _, last = await log.bounds()
            reader = await Zipnet[kind].read(network, self.config, from_round=1)
            seen = 0
            async for broadcast in reader.broadcasts():
                for message in broadcast.messages:
                    said[message.datum.content.decode(), message.round] += 1
                seen += 1
                if seen >= last:
                    break
        return said

    async def heads(self, tip: Tip) -> dict[int, bytes]:
        """The heads of the chain from a tip on, as whoever reads the log computes them."""
        found, head = {tip.seq: tip.head}, tip.head
        place = Place(tuple(self.urls), None, self.certificates, len(self.urls))
        # As one of the servers, which have stopped: nobody else may read the log.
        folder, config = self.folder / next(iter(self.keys)), self.config
        with kept(folder, Role.SERVER, self.instance, config=config) as state:
            member = Caller(member=state.identity.signing)
        async with opened(place, self.id, UNIVERSE, member) as network:
            log = await network.log(Places.of(self.id.raw).log(self.instance))
            _, last = await log.bounds()
            if last > tip.seq:
                async for entry in log.read(after=tip.seq):
                    found[entry.seq] = head = blake3(head + entry.data).digest()
                    if entry.seq == last:
                        break
        return found

    def tips(self) -> dict[str, Tip]:
        """What each server, now stopped, has kept of the log."""
        found = {}
        for name in self.keys:
            folder, config = self.folder / name, self.config
            with kept(folder, Role.SERVER, self.instance, config=config) as state:
                found[name] = state.tip
        return found

    def check(self, everything: Said, *, others: Sequence[str] = ()) -> Counter[str]:
        """What must hold once all nodes have stopped; counts of what was found.

        `everything` was read after the clients had stopped. What `others` said is not judged.
        """
        told = self.landed()
        read = Counter({one: count for one, count in everything.items() if one[0] not in others})
        lost, extra = told - read, read - told
        assert not lost, f"accepted and lost: {lost}"
        # Whoever ends, by a kill or not, may not have been told of the message that was on its way.
        unheard = Counter(name for name, _ in extra.elements())
        known = {node.name: node.ends for node in self.clients}
        assert all(count <= known.get(name, 0) for name, count in unheard.items()), extra
        doubled = sum(count > 1 for count in everything.values())
        assert not doubled, everything
        tips = self.tips()
        first = min(tips.values(), key=lambda tip: tip.seq)
        heads = asyncio.run(asyncio.wait_for(self.heads(first), PATIENCE))
        assert first.seq > 0
        for name, tip in tips.items():
            assert heads[tip.seq] == tip.head, f"{name} knows another log"
        pads = [reused([self.nodes[name].book]) for name in self.keys]
        pads.append(reused([node.book for node in self.clients]))
        assert pads == [0] * len(pads)
        return Counter(accepted=told.total(), lost=lost.total(), doubled=doubled, pads=sum(pads))
