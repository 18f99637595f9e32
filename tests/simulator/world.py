"""A deployment in one process, driven by a seed: servers, clients, an aggregator tree and the bus.

    world = World(seed=1, servers=3, clients=5)
    world.start()                 # joins, list, assignment, registrations
    record = world.round()        # one whole round, or what ended it

Nothing here replaces a part of the protocol: nodes are the cores of `zipnet.roles`. An attack is
made by acting between them: `world.log` is the bus, `world.drop` what the leaf leaves out, clocks
are per node, and a test may append whatever it signs.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace

from blake3 import blake3
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from attestation.allowlist import AllowList, Entry, TcbPolicy, assemble, sign
from attestation.bundle import Bundle, Fresh, Role, Ticket
from tests.attestation.tickets import ENTRY
from zipnet.committee import bodies
from zipnet.committee.events import Applied, RoundEnded, RoundFinal
from zipnet.committee.machine import Machine
from zipnet.committee.state import Outcome, Phase, Rules
from zipnet.committee.views import live
from zipnet.config import Anchor, Config, Operator, ShuffleWindow, deployment_id
from zipnet.errors import Refused, ZipnetError
from zipnet.ids import InstanceIds
from zipnet.operators import Endorsement
from zipnet.protocol.fold import payload_xor
from zipnet.protocol.instance import Instance, generation
from zipnet.protocol.pads import KeystreamXor, keystream_xor
from zipnet.protocol.record import SignedRecord
from zipnet.protocol.tree import Aggregator, AggregatorTree
from zipnet.roles.aggregator_core import AggregatorCore
from zipnet.roles.client_core import ClientCore
from zipnet.roles.identity import Identity
from zipnet.roles.server_core import ServerCore

START_MS = 1_800_000_000_000
SECRET = b"committee secret of the simulator"


class Disk:
    """A store that keeps what was written to it."""

    def __init__(self) -> None:
        self.records: list[bytes] = []

    def write(self, record: bytes) -> None:
        self.records.append(record)


class Ledger:
    """Every pad that was used, by its key: what went out under it, and how often.

    It wraps the cipher of a node. A key that hides two different payloads is a two-time pad.
    """

    def __init__(self) -> None:
        self.uses: Counter[bytes] = Counter()
        self._xor = keystream_xor()

    def xor(self, keys: Iterable[bytes], buffer: memoryview) -> None:
        known = list(keys)
        self.uses.update(blake3(key).digest() for key in known)
        self._xor(known, buffer)

    def reused(self) -> int:
        return sum(count > 1 for count in self.uses.values())


def window(**changes: int) -> ShuffleWindow:
    """A small, quick window."""
    values = {
        "num_slots": 8,
        "num_sched_slots": 32,
        "round_period_ms": 1_000,
        "round_deadline_ms": 5_000,
        "fold_deadline_ms": 500,
        "min_participants": 2,
        "max_clients": 64,
        "epoch_rounds": 8,
        "messages_per_epoch": 8,
    }
    return ShuffleWindow(**{**values, **changes})


@dataclass
class Site:
    """A server as its operator has it."""

    name: str
    operator: Ed25519PrivateKey
    identity: Identity
    core: ServerCore
    disk: Disk
    skew_ms: int = 0
    down: bool = False
    serial: int = 1
    applied: list[Applied] = field(default_factory=list)


@dataclass
class User:
    """A client with its disk."""

    identity: Identity
    core: ClientCore
    disk: Disk
    bundle: bytes
    gone: bool = False
    refusal: str = ""


class World:
    """See the module. `draw` is deterministic: the seed decides everything."""

    def __init__(
        self,
        seed: int = 0,
        *,
        servers: int = 3,
        clients: int = 4,
        tree: tuple[int, ...] = (0,),
        participation: float = 1.0,
        config: Callable[[Config], Config] = lambda config: config,
        **changes: int,
    ) -> None:
        self.random = random.Random(seed)
        self.now_ms = START_MS
        self.operators = [self.signing() for _ in range(servers)]
        names = [f"op{at}" for at in range(servers)]
        self.config = config(
            Config(
                name="sim.test",
                type_tag="sim.note",
                wire_size=16,
                window=window(**changes),
                operators=tuple(
                    Operator(name, key.public_key().public_bytes_raw())
                    for name, key in zip(names, self.operators, strict=True)
                ),
                init=bytes(32),
                anchor=Anchor.mock(bytes([7]) * 32),
            )
        )
        self.deployment = deployment_id(self.config)
        committee = InstanceIds.of(self.deployment).committee.raw
        self.instance = Instance(self.deployment.raw, generation(committee, SECRET, 0))
        self.rules = Rules.of(self.config)
        self.client_ledger, self.server_ledgers = Ledger(), [Ledger() for _ in range(servers)]
        self.log: list[bytes] = []
        self.sites = [
            self.site(name, key, ledger.xor)
            for name, key, ledger in zip(names, self.operators, self.server_ledgers, strict=True)
        ]
        self.aggregators = [Identity.fresh(self.draw) for _ in tree]
        self.tree = AggregatorTree(
            tuple(
                Aggregator(identity.peer, identity.dh_pub, parent)
                for identity, parent in zip(self.aggregators, tree, strict=True)
            )
        )
        self.folds = [AggregatorCore(one, payload_xor(), 1 << 16) for one in self.aggregators]
        self.participation = participation
        self.users = [self.user() for _ in range(clients)]
        self.drop: set[bytes] = set()
        self.records: list[SignedRecord] = []
        self.outcomes: list[Outcome] = []
        self.told: dict[bytes, list[tuple[int, str]]] = {}
        self.envelopes: dict[bytes, bytes] = {}

    # Making nodes

    def draw(self, size: int) -> bytes:
        return self.random.randbytes(size)

    def signing(self) -> Ed25519PrivateKey:
        return Ed25519PrivateKey.from_private_bytes(self.draw(32))

    def site(self, name: str, operator: Ed25519PrivateKey, xor: KeystreamXor) -> Site:
        identity, disk = Identity.fresh(self.draw), Disk()
        core = ServerCore(
            Machine.genesis(self.rules, self.instance),
            identity,
            store=disk,
            xor=xor,
            draw=self.draw,
        )
        return Site(name, operator, identity, core, disk)

    def user(self, **settings: object) -> User:
        identity, disk = Identity.fresh(self.draw), Disk()
        core = ClientCore(
            self.config,
            self.instance,
            identity,
            store=disk,
            xor=self.client_ledger.xor,
            draw=self.draw,
            participation=self.participation,
            **settings,  # type: ignore[arg-type]
        )
        return User(identity, core, disk, self.bundle(identity))

    def bundle(self, identity: Identity) -> bytes:
        now = self.now_ms // 1000
        ticket = Ticket(
            role=Role.CLIENT,
            deployment_id=self.instance.deployment_id,
            instance_id=self.draw(32),
            peer_id=identity.peer,
            dh_pub=identity.dh_pub,
            policy_id=bytes(32),
            config_digest=bytes(32),
            boot_epoch=1,
            issued_at=now,
            not_after=now + 86_400,
            fresh_kind=Fresh.BEACON,
            fresh=bytes(32),
        )
        return Bundle.sign(ticket, b"", identity.signing).encode()

    # The bus

    @property
    def state(self):  # type: ignore[no-untyped-def]
        """The first server's state: all that are up have the same."""
        return self.sites[0].core.machine.state

    def clock(self, site: Site) -> int:
        return self.now_ms + site.skew_ms

    def append(self, raw: bytes) -> Applied:
        """One entry, delivered to all that are up; what the first of them made of it."""
        self.log.append(raw)
        results = [self.deliver(site) for site in self.sites if not site.down]
        first = results[0]
        for event in first.events:
            if isinstance(event, RoundFinal):
                self.records.append(event.record)
                self.tell(event.record)
            elif isinstance(event, RoundEnded):
                self.outcomes.append(event.outcome)
                self.tell_end(event.outcome)
        return first

    def deliver(self, site: Site) -> Applied:
        """Bring a server to the end of the log."""
        applied = None
        while site.core.machine.state.seq < len(self.log):
            seq = site.core.machine.state.seq + 1
            applied = site.core.apply(seq, self.log[seq - 1])
            site.applied.append(applied)
        return applied or site.applied[-1]

    def say(self, site: Site, body: bodies.Body, round_number: int = 0) -> Applied:
        """A command of this server's, whatever it is."""
        return self.append(site.core.command(body, round_number, self.clock(site)))

    def settle(self, limit: int = 200) -> int:
        """Let all servers do what they are to do now, in random order; how many commands."""
        for count in range(limit):
            ready = [(site, raw) for site in self.up() for raw in site.core.due(self.clock(site))]
            if not ready:
                return count
            self.append(self.random.choice(ready)[1])
        raise AssertionError("the servers never come to rest")

    def up(self) -> list[Site]:
        return [site for site in self.sites if not site.down]

    # Beginning

    def allow_list(self, number: int = 1, signers: Iterable[int] | None = None) -> bytes:
        entry = Entry(replace(ENTRY, role="client", mr_td=bytes([number % 256]) * 48))
        payload = AllowList(
            number, self.instance.deployment_id, START_MS // 1000, (entry,), TcbPolicy()
        ).dumps()
        who = range(len(self.operators)) if signers is None else signers
        return assemble(payload, [sign(payload, self.operators[at]) for at in who])

    def join(self, site: Site) -> Applied:
        site.serial += 1
        endorsement = Endorsement.make(
            self.instance, site.operator, site.identity.peer, site.identity.dh_pub, site.serial
        )
        self.deliver(site) if self.log else None
        return self.append(site.core.join(endorsement, self.clock(site)))

    def register(self, user: User, carrier: Site | None = None) -> Applied:
        key = user.core.epoch_key(self.state.next_epoch(), self.now_ms)
        return self.say(carrier or self.up()[0], bodies.Register(user.bundle, key))

    def vouch(self, user: User, sites: Iterable[Site] | None = None) -> None:
        registration = self.state.clients[user.core.id].registration
        end = self.now_ms // 1000 + 86_400
        voucher = bodies.Voucher(user.core.id, registration, end, bytes(32))
        for site in sites or self.up():
            self.say(site, bodies.Vouch((voucher,)))

    def admit(self, user: User) -> None:
        self.register(user)
        self.vouch(user)

    def start(self) -> World:
        for site in self.sites:
            self.join(site)
        self.say(self.sites[0], bodies.RotateAllowList(self.allow_list()))
        for site in self.sites:
            self.say(site, bodies.Assign((self.tree,)))
        for user in self.users:
            self.admit(user)
        return self

    # Rounds

    def post_keys(self) -> None:
        """Clients that are in keep a key for the next epoch in the log."""
        epoch = self.state.next_epoch()
        missing = [
            user
            for user in self.users
            if not user.gone and user.core.keyring.key(epoch) is None
            and user.core.id in self.state.clients
        ]  # fmt: skip
        keys = tuple(user.core.epoch_key(epoch, self.now_ms) for user in missing)
        if keys:
            self.say(self.up()[0], bodies.EpochKeys(keys))

    def open(self) -> None:
        """Time goes on until a header is live; raises what stands in the way."""
        self.post_keys()
        for _ in range(12):
            self.settle()
            if self.state.current is not None and self.state.current.phase is not Phase.PROPOSED:
                return
            self.now_ms += self.config.window.round_period_ms // 2
            for site in self.up():
                self.say(site, bodies.Tick())
        raise AssertionError("no header became live")

    def seal(self) -> None:
        """Every client seals the live round, or keeps the reason why it does not."""
        header = live(self.state)
        assert header is not None
        current = self.state.current
        for user in self.users:
            if user.gone:
                continue
            try:
                sealed = user.core.seal(header, current.sheet, current.tree, self.state.operators)
            except ZipnetError as error:
                user.refusal = error.rule
                continue
            user.refusal = ""
            if sealed is not None:
                self.envelopes[user.core.id] = sealed.envelope

    def fold(self) -> bytes:
        """The root's aggregate of what was sealed, encoded."""
        header = live(self.state)
        assert header is not None
        current = self.state.current
        for fold in self.folds:
            fold.begin(header, current.sheet, current.tree)
        for client, envelope in sorted(self.envelopes.items()):
            if client in self.drop:
                continue
            leaf = self.tree.leaf_for(client)
            self.folds[leaf].absorb(envelope)
        self.envelopes.clear()
        for at in range(len(self.folds) - 1, 0, -1):
            parent = self.tree.nodes[at].parent
            self.folds[parent].absorb_child(self.folds[at].close())
        return self.folds[0].close().encode()

    def submit(self, aggregate: bytes) -> Applied:
        current = self.state.current
        return self.say(self.up()[0], bodies.SubmitAggregate(aggregate), current.header.round)

    def round(self) -> SignedRecord:
        """One whole round without trouble."""
        before = len(self.records)
        self.open()
        self.seal()
        applied = self.submit(self.fold())
        if applied.rule:
            raise Refused(applied.detail, rule=applied.rule)
        self.settle()
        assert len(self.records) == before + 1, self.outcomes
        return self.records[-1]

    def time_out(self) -> Outcome:
        """Nothing more happens until the round is given up."""
        count = len(self.outcomes)
        self.now_ms += self.config.window.round_deadline_ms + 1
        for site in self.up():
            self.say(site, bodies.Tick())
        self.settle()
        assert len(self.outcomes) > count, "the round goes on"
        return self.outcomes[-1]

    def tell(self, record: SignedRecord) -> None:
        for user in self.users:
            if user.gone or not user.core.keyring.epoch:
                continue
            for message, outcome in user.core.final(record):
                self.told.setdefault(user.core.id, []).append((message.number, outcome.value))

    def tell_end(self, outcome: Outcome) -> None:
        exposed = outcome.ending.name == "EXPOSED"
        for user in self.users:
            for message, what in user.core.ended(outcome.round, aggregated=exposed):
                self.told.setdefault(user.core.id, []).append((message.number, what.value))

    def snapshots(self) -> set[bytes]:
        return {site.core.machine.snapshot() for site in self.up()}
