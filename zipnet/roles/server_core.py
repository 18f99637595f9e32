"""A server without its shell: entries of the log in, commands to append out.

The shell appends what `due` returns, and hands in every entry that the log delivers. Until the
outcome of a command is known `due` returns the same bytes for it, so a retry is no second command;
one that was refused is made anew.
"""

from __future__ import annotations

from blake3 import blake3
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

from zipnet.committee import bodies
from zipnet.committee.commands import Command
from zipnet.committee.events import Applied, HeaderLive, HeaderProposed, RoundEnded, RoundFinal
from zipnet.committee.machine import Machine
from zipnet.committee.state import Round
from zipnet.committee.views import Duty, duties
from zipnet.ids import server_id
from zipnet.operators import Endorsement
from zipnet.protocol import guards
from zipnet.protocol.aggregate import Aggregate
from zipnet.protocol.guards import Answer, ServerGuard, Store
from zipnet.protocol.header import NO_HASH
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
    ) -> None:
        self.machine = machine
        self.id = server_id(identity.dh_pub)
        self.keyring = keyring or KeyRing(self.id)
        self.fenced = ""
        self._identity = identity
        self._store = store
        self._xor = xor
        self._draw = draw
        binding = machine.state.instance.binding
        self._guard = guard or ServerGuard(binding)
        guards.check_binding(self._guard, binding)
        self._restarted = restarted
        self._nonce = NO_HASH  # of the last Resume that this boot sent
        self._resuming = b""
        self._serial = 0
        self._pads: RoundPads | None = None
        self._partial: tuple[int, bytes] | None = None
        self._sent: dict[tuple[object, ...], bytes] = {}

    @property
    def guard(self) -> ServerGuard:
        """What this server must not do again, as it is in the store."""
        return self._guard

    def join(self, endorsement: Endorsement, clock_ms: int) -> bytes:
        """The command by which this server enters."""
        key = self._epoch_key(clock_ms)
        body = bodies.Join(endorsement, key, self._draw(32))
        return self.command(body, 0, clock_ms)

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
        if not self._restarted and server.last_resume != self._nonce:
            self.fenced = "another node has resumed in this server's name"
        if self.fenced:
            return []
        wanted = duties(state, self._identity.peer, clock_ms)
        if self._restarted or self._resuming:
            wanted = [Duty.RESUME]
        elif self.keyring.key(state.next_epoch()) is None and Duty.POST_KEY not in wanted:
            wanted.append(Duty.POST_KEY)  # the log has one, but a restart has lost its secret
        found = []
        for duty in wanted:
            current = state.current
            place = (current.header.round, current.phase) if current else (state.next_round,)
            what = (duty, state.epoch.number, server.resumed_round, *place)
            if what not in self._sent:
                made = self._make(duty, clock_ms)
                if made is None:
                    continue
                self._sent[what] = made
            found.append(self._sent[what])
        return found

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
        self._guard, _ = guards.sign_header_once(self._guard, header.round, header.id, self._store)
        return bodies.SignHeader(header.id, header.sign(self._identity.signing))

    def _commit(self, current: Round) -> bodies.Body | None:
        if self._pads is None:
            return None
        header = current.header
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
        """Above all that this node has used, also before a restart if its clock went on."""
        self._serial = max(self._serial + 1, clock_ms)
        return self._serial

    def _open_epoch(self, event: HeaderProposed) -> None:
        header, state = event.header, self.machine.state
        if header.epoch == self.keyring.epoch or self.keyring.key(header.epoch) is None:
            return
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
        self._sent.clear()

    def _drop_pads(self) -> None:
        if self._pads is not None:
            self._pads.erase()
            self._pads = None
