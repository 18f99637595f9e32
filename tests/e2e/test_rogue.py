"""The operator of one node of the bus turns on the others, with all the rights that he can have.

His node is admitted, and he gives himself users of his own on it. He reads, forges, replays and
reorders; deletes the log and writes it anew; deletes it for good. The servers stop and say why,
nothing that he made is accepted, and the others go on without him.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import os
import re
import secrets
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import nats
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from nats.aio.client import Client
from nats.aio.msg import Msg
from nats.js.client import JetStreamContext
from nats.js.errors import APIError

from attestation.bundle import Role
from tests.e2e.deployment import DATUM_BYTES, NAMES, Deployment, Said
from tests.e2e.operations import Operations
from tests.e2e.process import PATIENCE, Node
from tests.e2e.test_guarded import Operators
from tests.zipnet.network.nats_cluster import Cluster
from tests.zipnet.network.nats_cluster import Node as BusNode
from zipnet.access import Access, Network
from zipnet.committee import bodies
from zipnet.committee.commands import Command
from zipnet.committee.events import Applied, RoundFinal
from zipnet.committee.machine import Machine
from zipnet.committee.state import CHECKPOINT_ROUNDS, Rules
from zipnet.datum import bytes_datum, decode_exact
from zipnet.ids import UNIVERSE
from zipnet.network import base
from zipnet.network.places import Places
from zipnet.network.public import card_key
from zipnet.network.tls import client_context
from zipnet.node.service_identity import access_of, kept
from zipnet.node.service_network import Caller, Place, opened
from zipnet.protocol.record import SignedRecord
from zipnet.protocol.slots import Kind, read_slots
from zipnet.sdk import Zipnet

pytestmark = pytest.mark.slow

ROGUE, HONEST = "charlie", ("alpha", "bravo")
PASSWORD = "known to charlie alone"  # noqa: S105
# What a server that runs says of a log that is gone, or another one.
GONE = {"log.missing", "log.replaced", "log.short", "log.shorter", "log.gap"}
Text = bytes_datum(DATUM_BYTES)


def with_users(text: str) -> str:
    """A node's configuration with a user in each account, whom no door is asked about."""
    for account, users in (
        ("COMMITTEE", "    jetstream: enabled\n    users: [\n"),
        ("EDGE", "  EDGE: {\n    users: [\n"),
    ):
        assert text.count(users) == 1
        user = f'      {{ user: "rogue-{account}", password: "{PASSWORD}" }}\n'
        text = text.replace(users, users + user)
    before = "    auth_users: [\n"
    return text.replace(before, f'{before}      "rogue-COMMITTEE"\n      "rogue-EDGE"\n')


class Rogue:
    """Everything that passes his node, and what he does there. `log` is as he heard it."""

    def __init__(self, made: Deployment) -> None:
        self._made = made
        token, places = made.id.hex()[:16], Places.of(made.id.raw)
        self._places = places
        self.stream = f"{token}_L_{places.log(made.instance)}"
        self.subject = f"{token}.log.{places.log(made.instance)}"
        self.live = f"$KV.{token}_T_{places.live}.live"
        self.records = f"{token}.log.{places.broadcasts}"
        self.heard: Counter[str] = Counter()
        self.sizes: dict[str, set[int]] = {}
        self.contents: list[bytes] = []
        self.log: list[bytes] = []
        self._open: list[Client] = []
        self._js: JetStreamContext

    async def connect(self) -> None:
        made = self._made
        assert made.certificates is not None
        tls = client_context(made.certificates.read_bytes())
        url = made.urls[NAMES.index(ROGUE)]
        for account in ("COMMITTEE", "EDGE"):
            bus = await nats.connect(
                url, user=f"rogue-{account}", password=PASSWORD, tls=tls, pending_size=64 << 20
            )
            self._open.append(bus)
            await bus.subscribe(">", cb=self._hear)
            await bus.flush()
        self._js = self._open[0].jetstream()

    async def close(self) -> None:
        for bus in self._open:
            await bus.close()

    async def follow(self) -> None:
        """Take in the log from its first entry on, as far as it is there."""
        last = (await self._js.stream_info(self.stream)).state.last_seq
        while len(self.log) < last:
            message = await self._js.get_msg(self.stream, len(self.log) + 1)
            assert message.data is not None
            self.log.append(message.data)

    async def _hear(self, message: Msg) -> None:
        kind = self._kind(message.subject)
        self.heard[kind] += 1
        self.sizes.setdefault(kind, set()).add(len(message.data))
        if kind == "envelope":
            self.contents.append(message.data)

    def _kind(self, subject: str) -> str:
        places = self._places
        kinds = {
            "command": re.escape(self.subject),
            "envelope": rf".*\.ch\.{places.submit}\..*",
            "question": rf".*\.ch\.{places.register}\..*",
            "record": re.escape(self.records),
            "live round": re.escape(self.live),
        }
        return next((kind for kind, form in kinds.items() if re.fullmatch(form, subject)), "other")

    # What he writes

    async def append(self, data: bytes, *, key: str = "") -> int:
        headers = {"Nats-Msg-Id": key or secrets.token_hex(32)}
        return (await self._js.publish(self.subject, data, headers=headers)).seq

    async def put_live(self, data: bytes) -> None:
        await self._js.publish(self.live, data)

    async def delete_entry(self, seq: int) -> bool:
        return await self._js.delete_msg(self.stream, seq)

    async def delete_log(self) -> None:
        assert await self._js.delete_stream(self.stream)

    async def rewrite_log(self, entries: Sequence[bytes]) -> None:
        """The same stream again, with other entries under the numbers that there were.

        Servers that have not noticed yet may append among them.
        """
        config = (await self._js.stream_info(self.stream)).config
        await self.delete_log()
        await self._js.add_stream(config)
        for at, entry in enumerate(entries):
            await self.append(entry, key=f"again-{at}")


def applied(made: Deployment, entries: Sequence[bytes]) -> list[Applied]:
    """What each server makes of these entries."""
    machine = Machine.genesis(Rules.of(made.config), made.instance)
    return [machine.apply(seq, raw) for seq, raw in enumerate(entries, 1)]


def forgeries(made: Deployment, log: Sequence[bytes]) -> dict[str, bytes]:
    """By the rule that refuses them; the empty one is for what was there before."""
    machine = Machine.genesis(Rules.of(made.config), made.instance)
    for seq, raw in enumerate(log, 1):
        machine.apply(seq, raw)
    state, stranger = machine.state, Ed25519PrivateKey.generate()
    place = {"round_number": 0, "seq": state.seq, "head": state.head}
    clock = state.time_ms
    own = Command.make(stranger, made.instance, bodies.Tick(), clock_ms=clock, **place)  # type: ignore[arg-type]
    last = log[-1]
    return {
        "command.wire-version": b"no command at all",
        "command.author": own,
        "signature": last[:-1] + bytes([last[-1] ^ 1]),
    }


def rewritten(log: Sequence[bytes]) -> list[bytes]:
    """The other way round, and longer than whatever servers may have seen meanwhile."""
    return [*log[::-1], *(secrets.token_bytes(64) for _ in range(300))]


async def forge(made: Deployment, rogue: Rogue) -> None:
    """Whatever he appends changes nothing, and rounds go on."""
    await rogue.follow()
    wanted = {}
    for rule, raw in forgeries(made, rogue.log).items():
        wanted[await rogue.append(raw)] = rule
    # What servers wrote, once more, and the other way round.
    replayed = [await rogue.append(raw) for raw in rogue.log[-1:-40:-1]]
    await rogue.put_live(os.urandom(400))
    with pytest.raises(APIError):
        await rogue.delete_entry(replayed[0])
    await asyncio.to_thread(made.await_landed, 3)
    await rogue.follow()
    found = applied(made, rogue.log)
    assert {seq: found[seq - 1].rule for seq in wanted} == wanted
    assert {found[seq - 1].verdict.value for seq in replayed} == {"duplicate"}
    assert not any(found[seq - 1].events for seq in (*wanted, *replayed))


async def read_by(made: Deployment, rogue: Rogue) -> None:
    """What he has seen: who speaks when and how large, not what about."""
    assert set(rogue.heard) >= {"command", "envelope", "question", "record", "live round"}
    # All envelopes of all clients have one size, whether there is a message in them or not.
    shape = made.config.shape
    assert max(rogue.sizes["envelope"]) > shape.payload_bytes
    names = [node.name.encode() for node in made.clients]
    assert rogue.contents
    assert not any(name in raw for name in names for raw in rogue.contents)
    print("\n".join(f"{kind:<12} {count}" for kind, count in sorted(rogue.heard.items())))


def ended(node: Node) -> str:
    """The rule by which a server has stopped, loudly."""
    assert node.wait() == 2, node.tail()
    rules = re.findall(r"^  rule: (\S+)$", node.text(), re.MULTILINE)
    assert "zipnet admin recover" in node.text() or rules[-1] == "log.replaced", node.tail()
    return str(rules[-1])


def started(node: Node) -> str:
    node.start()
    return ended(node)


async def checkpointed(made: Deployment, rogue: Rogue) -> None:
    """Until all have signed one, and rounds have followed it."""
    number = 0
    async with asyncio.timeout(3 * PATIENCE):
        while number < CHECKPOINT_ROUNDS + 4:
            await asyncio.sleep(0.2)
            await rogue.follow()
            finals = [
                event.record.record.header.round
                for one in applied(made, rogue.log)
                for event in one.events
                if isinstance(event, RoundFinal)
            ]
            number = max(finals, default=0)


async def attack(made: Deployment) -> list[str]:
    """Everything in turn; the rules by which servers stopped."""
    rogue = Rogue(made)
    await rogue.connect()
    try:
        await forge(made, rogue)
        await read_by(made, rogue)
        await checkpointed(made, rogue)
        await rogue.rewrite_log(rewritten(rogue.log))
        rules = [await asyncio.to_thread(ended, node) for node in made.servers]
        assert set(rules) <= GONE, rules
        # Nor do they believe it when they start again.
        again = [await asyncio.to_thread(started, made.nodes[name]) for name in HONEST]
        assert again == ["log.chain", "log.chain"]
        await rogue.delete_log()
        again = [await asyncio.to_thread(started, made.nodes[name]) for name in HONEST]
        assert again == ["log.shorter", "log.shorter"]
        return rules
    finally:
        await rogue.close()


@dataclass(frozen=True, slots=True)
class Kept:
    """What an honest operator takes from the old bus: records, and whose servers signed them."""

    records: tuple[bytes, ...]
    cards: dict[str, bytes]

    @classmethod
    async def of(cls, made: Deployment, member: Ed25519PrivateKey) -> Kept:
        async with reached(made, member) as port, asyncio.timeout(PATIENCE):
            places = Places.of(made.id.raw)
            log = await port.log(places.broadcasts)
            _, last = await log.bounds()
            records = []
            async for entry in log.read():
                records.append(entry.data)
                if entry.seq == last:
                    break
            table, cards = await port.table(places.servers), {}
            for record in map(SignedRecord.decode, records):
                header = record.record.header
                for server in header.servers:
                    key = card_key(header.instance, server)
                    item = await table.get(key)
                    assert item is not None
                    assert item.value is not None
                    cards[key] = item.value
            return cls(tuple(records), cards)

    async def put(self, made: Deployment, member: Ed25519PrivateKey) -> None:
        """Everybody can check them; they need not be believed."""
        async with reached(made, member) as port, asyncio.timeout(PATIENCE):
            places = Places.of(made.id.raw)
            log, table = await port.log(places.broadcasts), await port.table(places.servers)
            for raw in self.records:
                await log.append(raw, key=SignedRecord.decode(raw).record.hash.hex())
            for key, card in self.cards.items():
                await table.put(key, card)

    def said(self) -> Said:
        """The messages in the records."""
        said: Said = Counter()
        for raw in self.records:
            record = SignedRecord.decode(raw).record
            for slot in read_slots(record.payload, record.header):
                if slot.kind is Kind.MESSAGE:
                    datum = decode_exact(Text, slot.datum)
                    said[datum.content.decode(), record.header.round] += 1
        return said


def reached(
    made: Deployment, member: Ed25519PrivateKey
) -> contextlib.AbstractAsyncContextManager[base.Network]:
    """The bus as a server sees it: while servers are down their doors let nobody else in."""
    place = Place(tuple(made.urls), None, made.certificates, len(made.urls))
    return opened(place, made.id, UNIVERSE, Caller(member=member))


def recover(made: Deployment, town: Operations) -> None:
    """The two who are left sign, and name the third; their servers begin on nodes of their own."""
    old, file = made.instance.generation.hex(), town.file("recovery")
    made.secret.write_text(secrets.token_hex(16))
    joined: list[str] = []
    said = ""
    for name in HONEST:
        out = town.file(f"signed-by-{name}")
        words = [*town.key(name), *town.secret, *joined, "--offender", ROGUE]
        words += ["--generation", old, "--state", str(made.folder / name), "-o", str(out)]
        said = made.zipnet("admin", "recover", *words, "--recovery", str(file), *made.bus)
        joined = ["--join", str(out)]
    assert "signatures   2 of 2" in said
    assert f"recovery     {file}" in said
    town.options = ["--recovery", str(file)]
    new = said.split()[1]
    assert new != old
    for name in HONEST:
        town.endorse(name, "--generation", new)


def go_on(made: Deployment, town: Operations) -> None:
    """Start what is left on the new bus."""
    for name in HONEST:
        made.server(name, *town.options).start()
    for name in HONEST:
        made.nodes[name].await_ready()
    made.aggregator().start()
    made.nodes["aggregator"].await_ready()


def use(made: Deployment, operators: Operators, cluster: Cluster) -> None:
    made.urls = [url.replace("nats://", "tls://") for url in cluster.urls]
    made.doors = dict(zip(operators.names, made.urls, strict=True))
    made.certificates = operators.folder / "edges.pem"


async def said_afterwards(made: Deployment, number: int) -> Said:
    """What clients say that do without the third operator."""
    bus = ",".join(made.urls)
    told: Said = Counter()
    async with contextlib.AsyncExitStack() as stack, asyncio.timeout(2 * PATIENCE):
        writers = []
        for _ in range(3):
            connected = Network.connect(bus, made.config, certificates=made.certificates)
            network = await stack.enter_async_context(await connected)
            submitted = Zipnet[Text].submit(network, made.config, without_him(made))
            writers.append(await stack.enter_async_context(await submitted))
        for at in itertools.count():
            texts = [f"{at} by {one}" for one in range(len(writers))]
            sends = [one.send(Text(t.encode())) for one, t in zip(writers, texts, strict=True)]
            for text, receipt in zip(texts, await asyncio.gather(*sends), strict=True):
                if receipt.outcome.value == "landed":
                    told[text, receipt.round] += 1
            if told.total() >= number:
                break
    return told


async def read_all(made: Deployment, number: int) -> Said:
    """So many messages from the first round on."""
    bus = ",".join(made.urls)
    read: Said = Counter()
    connected = Network.connect(bus, made.config, certificates=made.certificates)
    async with await connected as network, asyncio.timeout(PATIENCE):
        access = without_him(made)
        reader = await Zipnet[Text].read(network, made.config, access, from_round=1)
        async for message in reader:
            read[message.datum.content.decode(), message.round] += 1
            if read.total() == number:
                break
    return read


def without_him(made: Deployment) -> Access:
    found = access_of(made.config, Role.CLIENT, made.tee, "", None)
    return replace(found, waived=frozenset({ROGUE}), connect_s=PATIENCE)


def test_rogue(tmp_path: Path) -> None:
    with Deployment(tmp_path, min_servers=2) as made:
        made.prepare()
        operators = Operators(made)

        def text(node: BusNode) -> str:
            plain = operators.text(node)
            return with_users(plain) if NAMES[node.number] == ROGUE else plain

        with Cluster(tmp_path / "three", 3, text) as cluster:
            use(made, operators, cluster)
            made.start(clients=3)
            made.await_landed(3)
            rules = asyncio.run(attack(made))
            with kept(
                made.folder / HONEST[0], Role.SERVER, made.instance, config=made.config
            ) as state:
                member = state.identity.signing
            before = asyncio.run(Kept.of(made, member))
            told, read = made.landed(), before.said()
            assert not told - read, "accepted and lost"
            assert max(read.values()) == 1
            # Nobody has said what he made up.
            assert {name for name, _ in read} <= {node.name for node in made.clients}
            town = Operations(made)
            recover(made, town)
            for node in (made.nodes["aggregator"], *made.clients):
                node.kill()
        fewer = Operators(made, HONEST)
        with Cluster(tmp_path / "two", 2, fewer.text) as cluster:
            use(made, fewer, cluster)
            asyncio.run(before.put(made, member))
            go_on(made, town)
            told = asyncio.run(said_afterwards(made, 3))
            everything = asyncio.run(read_all(made, read.total() + told.total()))
            assert everything == read + told
            for name in HONEST:
                assert made.nodes[name].stop()[0] == 0, made.nodes[name].tail()
            print(
                f"servers stopped by {', '.join(rules)}; {read.total()} messages before, "
                f"{told.total()} after the recovery"
            )
