"""A deployment in one process, driven by a seed: servers, clients, an aggregator tree and the bus.

    world = World(seed=1, servers=3, clients=5).start()   # joins, list, trees, registrations
    record = world.round()                                # one whole round, or what ended it

Nothing here replaces a part of the protocol: nodes are the cores of `zipnet.roles`. An attack is
made by acting between them: `world.log` is the bus, `world.drop` what leaves leave out, `Bus` what
happens to commands under way, `Site.view` another log for one server, clocks are per node, `hosts`
restarts, rolls back and clones nodes, and a test may append whatever it signs.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Hashable, Iterable
from dataclasses import dataclass, field, replace

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from attestation.allowlist import AllowList, Entry, TcbPolicy, assemble, sign
from attestation.bundle import Bundle, Fresh, Role, Ticket
from tests.attestation.tickets import ENTRY
from tests.simulator.nodes import START_MS, Disk, Ledger, Site, User, window
from zipnet.committee import bodies
from zipnet.committee.events import (
    Applied,
    CheckpointDue,
    CheckpointSigned,
    RoundEnded,
    RoundFinal,
    Verdict,
)
from zipnet.committee.machine import Machine
from zipnet.committee.state import Ending, Outcome, Phase, Round, Rules, State
from zipnet.committee.views import live
from zipnet.config import Anchor, Config, Operator, deployment_id
from zipnet.errors import Refused, ZipnetError
from zipnet.ids import InstanceIds
from zipnet.operators import Endorsement
from zipnet.protocol.fold import payload_xor
from zipnet.protocol.guards import ClientGuard, ServerGuard
from zipnet.protocol.header import SignedHeader
from zipnet.protocol.instance import Instance, generation
from zipnet.protocol.keyring import KeyRing
from zipnet.protocol.record import SignedRecord
from zipnet.protocol.tree import Aggregator, AggregatorTree
from zipnet.roles.aggregator_core import AggregatorCore
from zipnet.roles.client_core import ClientCore
from zipnet.roles.identity import Identity
from zipnet.roles.server_core import ServerCore

__all__ = ["START_MS", "Bus", "Disk", "Ledger", "Site", "User", "World", "window"]
SECRET = b"committee secret of the simulator"
DAY_S = 86_400
NOTHING = Applied(0, Verdict.DUPLICATE)


@dataclass
class Bus:
    """What happens to commands: the share held back for later, lost, and said once more.

    What is held back arrives in any order, and what was said long ago may come again.
    """

    delay: float = 0.0
    lose: float = 0.0
    replay: float = 0.0
    under_way: list[bytes] = field(default_factory=list)


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
        self.instance = self.generation(0)
        self.rules = Rules.of(self.config)
        self.client_ledger, self.server_ledgers = Ledger(), [Ledger() for _ in range(servers)]
        self.bus = Bus()
        self.log: list[bytes] = []
        self.sites = [
            self.site(name, key, ledger)
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
        self.checkpoint: CheckpointDue | None = None  # the last that all servers have signed
        self.reopened = b""  # the snapshot that the generation began with
        self._due: CheckpointDue | None = None

    # Making nodes

    def draw(self, size: int) -> bytes:
        return self.random.randbytes(size)

    def signing(self) -> Ed25519PrivateKey:
        return Ed25519PrivateKey.from_private_bytes(self.draw(32))

    def generation(self, counter: int) -> Instance:
        committee = InstanceIds.of(self.deployment).committee.raw
        return Instance(self.deployment.raw, generation(committee, SECRET, counter))

    def site(self, name: str, operator: Ed25519PrivateKey, ledger: Ledger) -> Site:
        identity, disk = Identity.fresh(self.draw), Disk()
        machine = Machine.genesis(self.rules, self.instance)
        core = self.server_core(machine, identity, disk, ledger, 0)
        return Site(name, operator, identity, core, disk, ledger)

    def server_core(
        self,
        machine: Machine,
        identity: Identity,
        disk: Disk,
        ledger: Ledger,
        boot: int,
        *,
        guard: ServerGuard | None = None,
        keyring: KeyRing | None = None,
        restarted: bool = False,
    ) -> ServerCore:
        def occasion() -> Hashable:
            current = machine.state.current
            return boot, current.header.id if current else None

        return ServerCore(
            machine,
            identity,
            store=disk,
            xor=ledger.within(occasion),
            draw=self.draw,
            guard=guard,
            keyring=keyring,
            restarted=restarted,
        )

    def user(self, waived: frozenset[bytes] = frozenset()) -> User:
        identity, disk = Identity.fresh(self.draw), Disk()
        core = self.client_core(identity, disk, waived=waived)
        return User(identity, core, disk, self.bundle(identity))

    def client_core(
        self,
        identity: Identity,
        disk: Disk,
        *,
        waived: frozenset[bytes] = frozenset(),
        guard: ClientGuard | None = None,
        keyring: KeyRing | None = None,
        restarted: bool = False,
    ) -> ClientCore:
        return ClientCore(
            self.config,
            self.instance,
            identity,
            store=disk,
            xor=self.client_ledger.xor,
            draw=self.draw,
            waived=waived,
            participation=self.participation,
            guard=guard,
            keyring=keyring,
            restarted=restarted,
        )

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
            not_after=now + DAY_S,
            fresh_kind=Fresh.BEACON,
            fresh=bytes(32),
        )
        return Bundle.sign(ticket, b"", identity.signing).encode()

    # The bus

    @property
    def state(self) -> State:
        """That of the first server that is up: all that see the same log have the same."""
        return self.up()[0].core.machine.state

    @property
    def current(self) -> Round:
        """The round in flight."""
        current = self.state.current
        assert current is not None
        return current

    @property
    def header(self) -> SignedHeader:
        """The live header."""
        header = live(self.state)
        assert header is not None
        return header

    def clock(self, site: Site) -> int:
        return self.now_ms + site.skew_ms

    def up(self) -> list[Site]:
        return [site for site in self.sites if not site.down]

    def where(self, server: bytes) -> Site:
        """The first site with this server id."""
        return next(site for site in self.sites if site.id == server)

    def append(self, raw: bytes) -> Applied:
        """One entry, delivered to all that are up; what the first of them made of it."""
        self.log.append(raw)
        results = [self.deliver(site) for site in self.sites if not site.down]
        for event in results[0].events:
            if isinstance(event, RoundFinal):
                self.records.append(event.record)
                self.tell(event.record)
            elif isinstance(event, RoundEnded):
                self.outcomes.append(event.outcome)
                self.tell_end(event.outcome)
            elif isinstance(event, CheckpointDue):
                self._due = event
            elif isinstance(event, CheckpointSigned):
                self.checkpoint = self._due
        return results[0]

    def deliver(self, site: Site) -> Applied:
        """Bring a server to the end of the log, or of what it is shown of it."""
        log = self.log if site.view is None else site.view
        applied = None
        while site.core.machine.state.seq < len(log):
            seq = site.core.machine.state.seq + 1
            applied = site.core.apply(seq, log[seq - 1])
            site.applied.append(applied)
        last = site.applied[-1] if site.applied else NOTHING
        return applied or last

    def say(self, site: Site, body: bodies.Body, round_number: int = 0) -> Applied:
        """A command of this server's, whatever it is."""
        return self.append(site.core.command(body, round_number, self.clock(site)))

    def say_here(self, site: Site, body: bodies.Body) -> Applied:
        """A command about the round in flight."""
        return self.say(site, body, self.current.header.round)

    def settle(self, limit: int = 400) -> int:
        """Let all servers do what they are to do now, in random order; how many commands."""
        for number in range(limit):
            if not self.step():
                return number
        raise AssertionError("the servers never come to rest")

    def step(self) -> bool:
        """One command of those that are due, or that are under way; whether there was any."""
        bus, chance = self.bus, self.random.random
        due = [raw for site in self.up() for raw in site.core.due(self.clock(site))]
        fresh = [raw for raw in due if raw not in bus.under_way]
        if not fresh and not bus.under_way:
            return False
        if self.log and chance() < bus.replay:
            self.append(self.random.choice(self.log))
        if fresh and (not bus.under_way or chance() < 0.5):
            raw = self.random.choice(fresh)
            if chance() < bus.lose:
                return True  # whoever wants it said says it again
            if chance() < bus.delay:
                bus.under_way.append(raw)
                return True
        else:
            raw = bus.under_way.pop(self.random.randrange(len(bus.under_way)))
        self.append(raw)
        return True

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
        if self.log:
            self.deliver(site)
        return self.append(site.core.join(endorsement, self.clock(site)))

    def register(self, user: User, carrier: Site | None = None) -> Applied:
        key = user.core.epoch_key(self.state.next_epoch(), self.now_ms)
        return self.say(carrier or self.up()[0], bodies.Register(user.bundle, key))

    def vouch(self, user: User, sites: Iterable[Site] | None = None) -> None:
        registration = self.state.clients[user.core.id].registration
        end = self.now_ms // 1000 + DAY_S
        voucher = bodies.Voucher(user.core.id, registration, end, bytes(32))
        for site in self.up() if sites is None else sites:
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
        epoch, carrier = self.state.next_epoch(), self.up()[0]
        missing = []
        for user in self.users:
            client = self.state.clients.get(user.id)
            if user.gone or client is None:
                continue
            in_log = client.next_key.key if client.next_key else None
            if in_log is None or in_log != user.core.keyring.key(epoch):
                missing.append(user.core.epoch_key(epoch, self.now_ms))
        if missing and self.say(carrier, bodies.EpochKeys(tuple(missing))).rule:
            for key in missing:
                self.say(carrier, bodies.EpochKeys((key,)))

    def open(self) -> None:
        """Time goes on until a header is live; raises what stands in the way."""
        for _ in range(24):
            self.post_keys()
            for site in self.up():
                if site.core.must_join:
                    self.join(site)
            self.settle()
            if self.state.current is not None and self.state.current.phase is not Phase.PROPOSED:
                return
            self.pass_time(self.config.window.round_period_ms // 2)
        raise AssertionError("no header became live")

    def pass_time(self, milliseconds: int) -> None:
        """The clocks of all go on, and the machine's with them."""
        self.now_ms += milliseconds
        for site in self.up():
            self.say(site, bodies.Tick())

    def seal_one(self, user: User) -> bytes | None:
        """What this client seals of the live round. Raises the reason why it does not."""
        current = self.current
        sealed = user.core.seal(self.header, current.sheet, current.tree, self.state.operators)
        return None if sealed is None else sealed.envelope

    def seal(self) -> None:
        """Every client seals the live round, or keeps the reason why it does not."""
        for user in self.users:
            if user.gone:
                continue
            try:
                envelope = self.seal_one(user)
            except ZipnetError as error:
                user.refusal = error.rule
                continue
            user.refusal = ""
            if envelope is not None:
                self.envelopes[user.core.id] = envelope

    def begin_folds(self) -> None:
        for fold in self.folds:
            fold.begin(self.header, self.current.sheet, self.current.tree)

    def fold(self) -> bytes:
        """The root's aggregate of what was sealed, encoded."""
        self.begin_folds()
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
        return self.say_here(self.up()[0], bodies.SubmitAggregate(aggregate))

    def aggregate(self) -> None:
        """Open a round, seal and fold it, and give the servers the sum. Raises Refused."""
        self.open()
        self.seal()
        applied = self.submit(self.fold())
        if applied.rule:
            raise Refused(applied.detail, rule=applied.rule)

    def round(self) -> SignedRecord:
        """One whole round without trouble."""
        before = len(self.records)
        self.aggregate()
        self.settle()
        assert len(self.records) == before + 1, self.outcomes
        return self.records[-1]

    def time_out(self) -> Outcome:
        """Nothing more happens until the round is given up."""
        before = len(self.outcomes)
        self.pass_time(self.config.window.round_deadline_ms + 1)
        self.settle()
        assert len(self.outcomes) > before, "the round goes on"
        return self.outcomes[before]

    def tell(self, record: SignedRecord) -> None:
        for user in self.users:
            if user.gone or not user.core.keyring.epoch:
                continue
            try:
                outcomes = user.core.final(record)
            except Refused:
                # A new boot has checked no header yet, and waits for nothing of this round.
                waiting = {sent.round for sent in user.core.speaker.in_flight}
                assert record.record.header.round not in waiting
                continue
            user.hear(outcomes)
            for message, outcome in outcomes:
                self.told.setdefault(user.core.id, []).append((message.number, outcome.value))

    def tell_end(self, outcome: Outcome) -> None:
        for user in self.users:
            if user.gone:
                continue
            aggregated = outcome.ending is Ending.EXPOSED
            outcomes = user.core.ended(outcome.round, aggregated=aggregated)
            user.hear(outcomes)
            for message, what in outcomes:
                self.told.setdefault(user.core.id, []).append((message.number, what.value))

    def snapshots(self) -> set[bytes]:
        return {site.core.machine.snapshot() for site in self.up()}

    def reused(self) -> int:
        """How many pads hid more than one thing."""
        return sum(ledger.reused() for ledger in (self.client_ledger, *self.server_ledgers))
