"""A whole deployment under arbitrary actions, with what must hold after each of them."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import replace

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    invariant,
    precondition,
    rule,
)

from attestation.bundle import Bundle
from tests.simulator.world import World, window
from tests.zipnet.committee.support import bare, resume_node, spare, voucher
from zipnet.committee import bodies
from zipnet.committee.events import Applied, Verdict
from zipnet.committee.machine import Machine
from zipnet.committee.state import Ending, Phase, Round, State
from zipnet.errors import ZipnetError
from zipnet.protocol.header import NO_HASH
from zipnet.protocol.record import SignedRecord

SITES = st.integers(0, 2)
USERS = st.integers(0, 7)


class Watched(World):
    """A world in which a refused entry must leave the state as it was."""

    def append(self, raw: bytes) -> Applied:
        author = raw[3:35]
        machine = self.sites[0].core.machine
        before = bare(machine, author)
        applied = super().append(raw)
        if applied.verdict is not Verdict.APPLIED and applied.rule != "command.quota":
            assert bare(machine, author) == before
        return applied

    def tell(self, record: SignedRecord) -> None:
        """Clients that did not follow the last header do not know this record's servers."""
        with suppress(ZipnetError):
            super().tell(record)


class Deployment(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        settings_of = window(epoch_rounds=2, messages_per_epoch=2, max_clients=8, min_servers=2)
        self.world = Watched(
            5, servers=3, clients=3, config=lambda config: config.with_window(settings_of)
        )
        self.world.start()
        self.next_round = 1
        self.time_ms = 0
        self.rounds: list[int] = []

    @property
    def state(self) -> State:
        return self.world.sites[0].core.machine.state

    @property
    def current(self) -> Round | None:
        return self.state.current

    # What may happen

    @rule(at=SITES, ms=st.sampled_from([0, 1, 400, 1_000, 6_000, 40_000]))
    def tick(self, at: int, ms: int) -> None:
        self.world.now_ms += ms
        self.world.say(self.world.sites[at], bodies.Tick())

    @rule(ms=st.sampled_from([500, 6_000]))
    def all_tick(self, ms: int) -> None:
        self.world.pass_time(ms)

    @rule(at=SITES, skew=st.sampled_from([-200_000, -5, 0, 0, 5, 31_000, 10**7]))
    def set_clock(self, at: int, skew: int) -> None:
        self.world.sites[at].skew_ms = skew

    @rule(at=SITES, count=st.integers(1, 4))
    def act(self, at: int, count: int) -> None:
        """The server does what it is to do: keys, headers, commitments, reveals, records."""
        site = self.world.sites[at]
        for _ in range(count):
            due = site.core.due(self.world.clock(site))
            if due:
                self.world.append(due[0])

    @rule()
    def settle(self) -> None:
        self.world.post_keys()
        self.world.settle()

    @rule(at=SITES, ahead=st.integers(0, 1))
    def propose(self, at: int, ahead: int) -> None:
        number = self.state.next_round + ahead
        self.world.say(self.world.sites[at], bodies.ProposeHeader(), number)

    @precondition(lambda self: self.current is not None and self.current.phase is Phase.LIVE)
    @rule(submit=st.booleans())
    def aggregate(self, submit: bool) -> None:
        self.world.seal()
        raw = self.world.fold()
        if submit:
            self.world.submit(raw)

    @rule(at=SITES, phase=st.sampled_from(Phase), number=st.integers(-1, 1))
    def time_out(self, at: int, phase: Phase, number: int) -> None:
        current = self.current.header.round if self.current else self.state.next_round
        self.world.say(self.world.sites[at], bodies.TimeoutRound(phase), max(1, current + number))

    @rule(at=SITES)
    def give_up(self, at: int) -> None:
        if self.current is not None:
            self.world.now_ms += 6_000
            body = bodies.TimeoutRound(self.current.phase)
            self.world.say(self.world.sites[at], body, self.current.header.round)

    @rule(at=SITES, user=USERS)
    def register(self, at: int, user: int) -> None:
        if user < len(self.world.users):
            self.world.register(self.world.users[user], self.world.sites[at])
        else:
            self.world.users.append(self.world.user())

    @rule(at=SITES, user=USERS, issued=st.integers(1, 4))
    def renew(self, at: int, user: int, issued: int) -> None:
        who = self.world.users[user % len(self.world.users)]
        ticket = replace(Bundle.decode(who.bundle).ticket, issued_at=issued)
        bundle = Bundle.sign(ticket, b"", who.identity.signing).encode()
        self.world.say(self.world.sites[at], bodies.Renew(bundle))

    @rule(at=SITES, user=USERS, seconds=st.sampled_from([0, 1, 10, 86_400]))
    def vouch(self, at: int, user: int, seconds: int) -> None:
        client = self.client(user)
        if client in self.state.clients:
            end = self.world.now_ms // 1000 + seconds
            word = voucher(self.world, client, not_after=end)
            self.world.say(self.world.sites[at], bodies.Vouch((word,)))

    @rule(user=USERS)
    def admit(self, user: int) -> None:
        if user < len(self.world.users):
            self.world.register(self.world.users[user])
            if self.client(user) in self.state.clients:
                self.world.vouch(self.world.users[user])

    @rule(at=SITES, user=USERS)
    def refuse(self, at: int, user: int) -> None:
        self.world.say(self.world.sites[at], bodies.Refuse(self.client(user), "tdx.debug"))

    @rule(at=SITES, user=USERS)
    def retire(self, at: int, user: int) -> None:
        client = self.state.clients.get(self.client(user))
        if client is None:
            return
        identity = self.world.users[user % len(self.world.users)].identity
        body = client.id + client.registration
        signature = self.world.instance.sign(identity.signing, bodies.RETIRE, 0, body)
        retire = bodies.Retire(client.id, client.registration, signature)
        self.world.say(self.world.sites[at], retire)

    @rule(at=SITES, user=USERS)
    def resume_client(self, at: int, user: int) -> None:
        who = self.world.users[user % len(self.world.users)]
        body = resume_node(self.world, who.identity, who.core.id)
        self.world.say(self.world.sites[at], body)

    @rule(at=SITES)
    def suspend(self, at: int) -> None:
        self.world.say(self.world.sites[at], bodies.Suspend())

    @rule(at=SITES)
    def leave(self, at: int) -> None:
        self.world.say(self.world.sites[at], bodies.Leave())

    @rule(at=SITES)
    def join(self, at: int) -> None:
        self.world.join(self.world.sites[at])

    @rule(at=st.integers(1, 2))
    def replace_server(self, at: int) -> None:
        new = spare(self.world, at)
        self.world.sites[at] = new
        self.world.join(new)

    @rule(number=st.integers(1, 9))
    def rotate(self, number: int) -> None:
        body = bodies.RotateAllowList(self.world.allow_list(number))
        self.world.say(self.world.sites[0], body)

    @rule(at=SITES, copies=st.integers(1, 2))
    def assign(self, at: int, copies: int) -> None:
        self.world.say(self.world.sites[at], bodies.Assign((self.world.tree,) * copies))

    @rule(raw=st.binary(max_size=200))
    def junk(self, raw: bytes) -> None:
        self.world.append(raw)

    @rule(place=st.integers(0, 10**6))
    def replay(self, place: int) -> None:
        raw = self.world.log[place % len(self.world.log)]
        assert self.world.append(raw).verdict is Verdict.DUPLICATE

    @rule(place=st.integers(0, 10**6), bit=st.integers(0, 10**6))
    def replay_changed(self, place: int, bit: int) -> None:
        raw = bytearray(self.world.log[place % len(self.world.log)])
        if raw:
            raw[bit // 8 % len(raw)] ^= 1 << bit % 8
        assert self.world.append(bytes(raw)).verdict is not Verdict.APPLIED

    def client(self, user: int) -> bytes:
        return self.world.users[user % len(self.world.users)].core.id

    # What always holds

    @invariant()
    def replicas_agree(self) -> None:
        assert len(self.world.snapshots()) == 1

    @invariant()
    def rounds_and_time_go_forward(self) -> None:
        assert self.state.next_round >= self.next_round
        if self.next_round > 1:
            assert self.state.time_ms >= self.time_ms
        self.next_round, self.time_ms = self.state.next_round, self.state.time_ms

    @invariant()
    def records_chain_and_each_round_ends_once(self) -> None:
        previous = NO_HASH
        for signed in self.world.records:
            signed.record.follows(previous)
            previous = signed.record.hash
        assert self.state.previous_record == previous
        rounds = [outcome.round for outcome in self.state.outcomes]
        assert rounds == sorted(set(rounds))
        final = [one.round for one in self.state.outcomes if one.ending is Ending.FINAL]
        assert final == [one.record.header.round for one in self.world.records]

    @invariant()
    def a_snapshot_is_the_state(self) -> None:
        machine = self.world.sites[0].core.machine
        raw = machine.snapshot()
        again = Machine.restore(self.world.rules, raw)
        assert again.state == machine.state
        assert again.snapshot() == raw

    @invariant()
    def who_is_in_a_round_may_be_there(self) -> None:
        state = self.state
        assert len({server.operator for server in state.servers.values()}) == len(state.servers)
        assert len(state.clients) <= 8
        if state.current is not None:
            assert len(state.current.sheet.clients) >= 2
            assert len(state.current.header.servers) >= 2


TestDeployment = Deployment.TestCase
TestDeployment.settings = settings(
    max_examples=25,
    stateful_step_count=40,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)
