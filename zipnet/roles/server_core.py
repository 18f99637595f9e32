"""A server without its shell: entries of the log in, commands to append out.

The shell appends what `due` returns, and hands in every entry that the log delivers. Until the
outcome of a command is known `due` returns the same bytes for it, so a retry is no second command;
one that was refused is made anew.
"""

from __future__ import annotations

from collections.abc import Container, Mapping

from blake3 import blake3
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

from zipnet.committee import bodies
from zipnet.committee.commands import Command
from zipnet.committee.events import (
    Applied,
    HeaderLive,
    HeaderProposed,
    RoundEnded,
    RoundFinal,
    Verdict,
)
from zipnet.committee.machine import Machine
from zipnet.committee.state import Round, Server, may_resume
from zipnet.committee.views import Duty, duties
from zipnet.ids import server_id
from zipnet.operators import Endorsement
from zipnet.protocol import guards
from zipnet.protocol.aggregate import Aggregate
from zipnet.protocol.guards import Answer, ServerGuard, Store
from zipnet.protocol.header import NO_HASH
from zipnet.protocol.instance import Instance
from zipnet.protocol.keyring import KeyRing
from zipnet.protocol.pads import KeystreamXor
from zipnet.protocol.precompute import RoundPads
from zipnet.protocol.roster import RESUME, EpochKey, Member
from zipnet.protocol.unblind import commitment
from zipnet.roles.identity import Draw, Identity


class ServerCore:
    """One committee server. `machine` is for reading only.

    `restarted` says that this node comes back with sealed pair secrets: it then answers nothing
    until its own Resume is in the log. `fenced` says why it may not act at all, if so.
    """

    __slots__ = (
        "_draw",
        "_guard",
        "_identity",
        "_joining",
        "_nonce",
        "_pads",
        "_partial",
        "_restarted",
        "_resuming",
        "_sent",
        "_serial",
        "_store",
        "_xor",
        "fenced",
        "id",
        "keyring",
        "machine",
        "trusted",
    )

    def __init__(
        self,
        machine: Machine,
        identity: Identity,
        *,
        store: Store,
        xor: KeystreamXor,
        draw: Draw,
        guard: ServerGuard | None = None,
        keyring: KeyRing | None = None,
        restarted: bool = False,
        instance: Instance | None = None,
    ) -> None:
        self.machine = machine
        self.id = server_id(identity.dh_pub)
        self.keyring = keyring or KeyRing(self.id)
        self.fenced = ""
        # Servers whose tickets this one has checked, with the numbers of the lists under which they
        # are good; None where nobody is asked for one.
        self.trusted: Mapping[bytes, Container[int]] | None = None
        self._identity = identity
        self._store = store
        self._xor = xor
        self._draw = draw
        # Until its Recover is applied a machine is in the generation before.
        binding = (instance or machine.state.instance).binding
        self._guard = guard or ServerGuard(binding)
        guards.check_binding(self._guard, binding)
        self._restarted = restarted
        self._nonce = NO_HASH  # of the last Resume that this boot sent
        self._resuming = b""
        self._joining = b""
        self._serial = 0
        self._pads: RoundPads | None = None
        self._partial: tuple[int, bytes] | None = None
        self._sent: dict[tuple[object, ...], bytes] = {}

    @property
    def guard(self) -> ServerGuard:
        """What this server must not do again, as it is in the store."""
        return self._guard

    @property
    def must_join(self) -> bool:
        """Whether this boot can take part only after a Join: the log has the key of another.

        Without it the committee would wait for this server until the epoch is over.
        """
        state = self.machine.state
        server = state.servers.get(self._identity.peer)
        if server is None or server.member is None:
            return server is None
        return not self.fenced and server.member.key != self.keyring.key(state.epoch.number)

    def join(self, endorsement: Endorsement, clock_ms: int) -> bytes:
        """The command by which this server enters."""
        key = self._epoch_key(clock_ms)
        body = bodies.Join(endorsement, key, self._draw(32))
        self._joining = self.command(body, 0, clock_ms)
        return self._joining

    def command(self, body: bodies.Body, round_number: int, clock_ms: int) -> bytes:
        """A signed command, tied to the last entry that was applied here."""
        state = self.machine.state
        return Command.make(
            self._identity.signing,
            state.instance,
            body,
            round_number=round_number,
            seq=state.seq,
            head=state.head,
            clock_ms=clock_ms,
        )

    def apply(self, seq: int, raw: bytes) -> Applied:
        """Take in entry `seq`. Raises LogBroken if it is not the next one."""
        applied = self.machine.apply(seq, raw)
        self._sent = {what: sent for what, sent in self._sent.items() if sent != raw}
        server = self.machine.state.servers.get(self._identity.peer)
        if self._resuming and server is not None and server.last_resume == self._resuming:
            self._nonce, self._resuming, self._restarted = self._resuming, b"", False
        if raw == self._joining and applied.verdict is Verdict.APPLIED:
            # With its new key it has no past any more that a Resume would have to fence off.
            self._nonce, self._resuming, self._restarted = NO_HASH, b"", False
            self._sent.pop((Duty.RESUME,), None)
        for event in applied.events:
            if isinstance(event, HeaderProposed):
                self._open_epoch(event)
            elif isinstance(event, HeaderLive):
                self._begin(event)
            elif isinstance(event, RoundFinal | RoundEnded):
                self._close()
        return applied

    def work(self, clients: int) -> bool:
        """Add up the pads of so many more clients; whether there are any left."""
        return self._pads is not None and self._pads.work(clients)

    def due(self, clock_ms: int) -> list[bytes]:
        """The commands that this server is to append now.

        Raises GuardRefused for what must never leave, which then names a broken or cloned node.
        """
        state = self.machine.state
        server = state.servers.get(self._identity.peer)
        if server is None:
            return []
        if not self._may_act(server):
            return []
        wanted = duties(state, self._identity.peer, clock_ms)
        if self._restarted or self._resuming:
            wanted = [Duty.RESUME] if may_resume(state, server) else []
        elif server.next_key and server.next_key.key != self.keyring.key(state.next_epoch()):
            wanted.append(Duty.POST_KEY)  # the log has one whose secret a restart has lost
        found = []
        for duty in wanted:
            what = self._occasion(duty)
            if what not in self._sent:
                made = self._make(duty, clock_ms)
                if made is None:
                    continue
                self._sent[what] = made
            found.append(self._sent[what])
        return found

    def _may_act(self, server: Server) -> bool:
        """Whether this node is the one that speaks for the server; if another is, for good not."""
        if not self._restarted and server.last_resume != self._nonce:
            if not self.keyring.epoch:
                return False  # a Resume of an earlier boot: this one has yet to join
            self.fenced = "another node has resumed in this server's name"
        own, posted = self.keyring.key(self.machine.state.next_epoch()), server.next_key
        if own and posted and posted.key != own and posted.serial > self._serial:
            self.fenced = "another node has posted a key in this server's name"
        return not self.fenced

    def _occasion(self, duty: Duty) -> tuple[object, ...]:
        """What one command is made for; while its outcome is unknown there is no second one.

        Of two Resumes or keys under way the first would be in force, and the second what this node
        works with: so for them no change of the round is a new occasion.
        """
        state = self.machine.state
        if duty is Duty.RESUME:
            return (duty,)
        if duty is Duty.POST_KEY:
            return duty, state.epoch.number
        current = state.current
        place = (current.header.round, current.phase) if current else (state.next_round,)
        server = state.servers[self._identity.peer]
        return duty, state.epoch.number, server.resumed_round, *place

    def _make(self, duty: Duty, clock_ms: int) -> bytes | None:
        """The command for a duty; None if this boot lacks what it takes, and must stay silent."""
        made = self._body(duty, clock_ms)
        if made is None:
            return None
        body, round_number = made
        return self.command(body, round_number, clock_ms)

    def _body(self, duty: Duty, clock_ms: int) -> tuple[bodies.Body, int] | None:
        """The body, and the number of the round that it is about."""
        state = self.machine.state
        match duty:
            case Duty.RESUME:
                return self._resume(clock_ms), 0
            case Duty.TICK:
                return bodies.Tick(), 0
            case Duty.POST_KEY:
                return bodies.EpochKeys((self._epoch_key(clock_ms),)), 0
            case Duty.SIGN_CHECKPOINT:
                return self._sign_checkpoint(), 0
            case Duty.PROPOSE:
                return bodies.ProposeHeader(), state.next_round
        assert state.current is not None
        body = self._round_body(duty, state.current)
        return None if body is None else (body, state.current.header.round)

    def _round_body(self, duty: Duty, current: Round) -> bodies.Body | None:
        match duty:
            case Duty.SIGN_HEADER:
                return self._sign_header(current)
            case Duty.COMMIT:
                return self._commit(current)
            case Duty.REVEAL:
                return self._reveal(current)
            case Duty.SIGN_RECORD:
                assert current.record is not None
                record = current.record.record
                return bodies.SignRecord(record.hash, record.sign(self._identity.signing))
        return bodies.TimeoutRound(current.phase)

    def _sign_header(self, current: Round) -> bodies.Body | None:
        header = current.header
        if header.epoch != self.keyring.epoch:
            return None  # without its pairs this server could never answer
        others = [one for one in header.servers if one != self.id]
        if self.trusted is not None and not all(
            header.list_number in self.trusted.get(one, ()) for one in others
        ):
            return None  # a server that has not proved itself is in it
        self._guard, _ = guards.sign_header_once(self._guard, header.round, header.id, self._store)
        return bodies.SignHeader(header.id, header.sign(self._identity.signing))

    def _commit(self, current: Round) -> bodies.Body | None:
        header = current.header
        if self._partial is not None and self._partial[0] == header.round:
            return bodies.CommitPartial(self._guard.answer.commitment)  # the first was refused
        if self._pads is None:
            return None
        aggregate = Aggregate.decode(current.aggregate, header.shape)
        partial = self._pads.partial(aggregate.participants)
        made = commitment(header.instance, header.round, aggregate.digest, self.id, partial)
        answer = Answer(
            header.round,
            header.id,
            aggregate.digest,
            blake3(aggregate.participants).digest(),
            made,
        )
        self._guard, _ = guards.answer_once(self._guard, answer, self._store)
        self._pads.erase()
        self._pads = None
        self._partial = header.round, partial
        return bodies.CommitPartial(made)

    def _reveal(self, current: Round) -> bodies.Body | None:
        header = current.header
        if self._partial is None or self._partial[0] != header.round:
            return None
        partial = guards.reveal(self._guard, header.instance, self.id, self._partial[1])
        return bodies.RevealPartial(partial)

    def _sign_checkpoint(self) -> bodies.Body:
        state = self.machine.state
        pending = state.pending_checkpoint
        assert pending is not None
        statement = bodies.Checkpoint.body(pending.seq, pending.head, pending.digest)
        signature = state.instance.sign(
            self._identity.signing, bodies.SIGN_CHECKPOINT, 0, statement
        )
        return bodies.Checkpoint(pending.seq, pending.head, pending.digest, signature)

    def _resume(self, clock_ms: int) -> bodies.Body:
        self._resuming = self._draw(32)
        bare = bodies.ResumeNode(self.id, self._resuming, self._next_serial(clock_ms), bytes(64))
        signature = self.machine.state.instance.sign(
            self._identity.signing, RESUME, 0, bare.statement()
        )
        return bodies.ResumeNode(bare.node, bare.nonce, bare.serial, signature)

    def _epoch_key(self, clock_ms: int) -> EpochKey:
        state = self.machine.state
        secret = X25519PrivateKey.from_private_bytes(self._draw(32))
        return self.keyring.offer(
            state.instance,
            state.next_epoch(),
            self._next_serial(clock_ms),
            secret,
            self._identity.signing,
        )

    def _next_serial(self, clock_ms: int) -> int:
        """Above all that is used in this server's name, so that a clock set back does no harm."""
        server = self.machine.state.servers.get(self._identity.peer)
        last = self._serial
        if server is not None:
            keys = (key.serial for key in (server.member, server.next_key) if key)
            last = max(last, server.resume_serial, *keys)
        self._serial = max(last + 1, clock_ms)
        return self._serial

    def _open_epoch(self, event: HeaderProposed) -> None:
        header, state = event.header, self.machine.state
        server = state.servers.get(self._identity.peer)
        if header.epoch == self.keyring.epoch or server is None or server.member is None:
            return
        if server.member.key != self.keyring.key(header.epoch):
            return  # the roster has another key than this boot: its pads would be noise
        clients = [
            Member(client.id, client.member.key)
            for client in state.clients.values()
            if client.member is not None
        ]
        self.keyring.open(state.instance, header.epoch, header.base_round, clients, server=True)

    def _begin(self, event: HeaderLive) -> None:
        header = event.header.header
        current = self.machine.state.current
        self._drop_pads()
        if self._restarted:
            return  # entries from before the restart: the pairs have been there
        if current is None or self.id not in header.servers or header.epoch != self.keyring.epoch:
            return
        if (self._guard.round, self._guard.header) != (header.round, header.id):
            return  # signed in this server's name, but not by this boot
        clients = [entry.key.member for entry in current.sheet.clients]
        pairs = self.keyring.pairs(clients, header.round, current.sheet.resumes)
        self._pads = RoundPads(header, pairs, self._xor)

    def _close(self) -> None:
        self._drop_pads()
        self._partial = None
        lasting = (Duty.RESUME, Duty.POST_KEY)
        self._sent = {what: sent for what, sent in self._sent.items() if what[0] in lasting}

    def _drop_pads(self) -> None:
        if self._pads is not None:
            self._pads.erase()
            self._pads = None
