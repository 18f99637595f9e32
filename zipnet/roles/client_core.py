"""A client without its shell: live headers and records in, envelopes and outcomes out."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TypeAlias

from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

from zipnet.config import Config
from zipnet.errors import GuardRefused, Refused
from zipnet.ids import client_id
from zipnet.operators import OperatorSet
from zipnet.protocol import guards, speaker
from zipnet.protocol.envelope import leaf_keys
from zipnet.protocol.guards import ClientGuard, Store
from zipnet.protocol.header import NO_HASH, Header, SignedHeader
from zipnet.protocol.instance import Instance
from zipnet.protocol.keyring import KeyRing
from zipnet.protocol.pads import KeystreamXor
from zipnet.protocol.ratelimit import Budget, rate_key
from zipnet.protocol.receipts import Receipt, check_blob, find, open_receipt, receipt_tag
from zipnet.protocol.record import SignedRecord
from zipnet.protocol.roster import RESUME, EpochKey, Member, Resume
from zipnet.protocol.seal import check_header, seal
from zipnet.protocol.sheet import Sheet
from zipnet.protocol.speaker import Final, Message, Outcome, Speaker, Unfinalized
from zipnet.protocol.tree import Aggregator, AggregatorTree
from zipnet.roles.identity import Draw, Identity

Outcomes: TypeAlias = tuple[tuple[Message, Outcome], ...]


@dataclass(frozen=True, slots=True)
class _Place:
    """Where this client stood in a round: its bit under the header, and who signs the record."""

    header_id: bytes
    bit: int
    peers: dict[bytes, bytes]


@dataclass(frozen=True, slots=True)
class Sealed:
    """An envelope that may leave, and the place in the tree of the leaf that takes it."""

    envelope: bytes = field(repr=False)
    leaf: int


class ClientCore:
    """One client in one generation. `waived` are operators that it can do without.

    `keyring` and `guard` are what it has kept of an earlier boot; `restarted` says that there was
    one, and that the pairs need a Resume. `share` is how many rate-limit tags it may use in an
    epoch (None: all), `budget` what is left of one that ran before, where that is known. `fenced`
    is set once the log shows that another copy of this client has started after it.
    """

    __slots__ = (
        "_config",
        "_draw",
        "_guard",
        "_identity",
        "_instance",
        "_last",
        "_last_list",
        "_nonce",
        "_participation",
        "_peers",
        "_places",
        "_rate_key",
        "_restarted",
        "_serial",
        "_share",
        "_store",
        "_waived",
        "_xor",
        "fenced",
        "id",
        "keyring",
        "speaker",
    )

    def __init__(
        self,
        config: Config,
        instance: Instance,
        identity: Identity,
        *,
        store: Store,
        xor: KeystreamXor,
        draw: Draw,
        waived: frozenset[bytes] = frozenset(),
        participation: float = 1.0,
        guard: ClientGuard | None = None,
        keyring: KeyRing | None = None,
        restarted: bool = False,
        share: int | None = None,
        budget: Budget | None = None,
    ) -> None:
        self.id = client_id(identity.dh_pub)
        self.keyring = keyring or KeyRing(self.id)
        self._share = limit = share or config.window.messages_per_epoch
        if budget is None:
            # A tag that comes twice shows a talker: who doesn't know which were used uses none.
            budget = Budget.spent(self.keyring.epoch, limit) if restarted else Budget(0, limit)
        self.speaker = Speaker(budget)
        self.fenced = False
        self._config = config
        self._instance = instance
        self._identity = identity
        self._store = store
        self._xor = xor
        self._draw = draw
        self._waived = waived
        self._participation = participation
        self._guard = guard or ClientGuard(instance.binding)
        guards.check_binding(self._guard, instance.binding)
        self._rate_key = rate_key(identity.dh.private_bytes_raw(), instance.binding)
        self._restarted = restarted
        self._nonce = NO_HASH
        self._serial = 0
        self._last_list = 0
        self._last: Final | None = None
        self._peers: dict[bytes, bytes] = {}
        self._places: dict[int, _Place] = {}  # of rounds whose outcome may still matter

    def submit(self, datum: bytes) -> int:
        """Queue a datum of exactly the deployment's size; returns its number.

        Raises DatumRejected, and Refused if the queue is full.
        """
        self.speaker, number = speaker.submit(self.speaker, datum, self._config.shape)
        return number

    def withdraw(self, number: int) -> bool:
        """Take a message back; False if it went into a round, or its outcome is known."""
        self.speaker, found = speaker.withdraw(self.speaker, number)
        return found

    def epoch_key(self, epoch: int, clock_ms: int) -> EpochKey:
        """A new key for `epoch`, signed; its secret is kept until the epoch opens."""
        secret = X25519PrivateKey.from_private_bytes(self._draw(32))
        serial = self._next_serial(clock_ms)
        return self.keyring.offer(self._instance, epoch, serial, secret, self._identity.signing)

    def resume(self, clock_ms: int) -> tuple[bytes, int, bytes]:
        """Nonce, serial and signature of this node's Resume, which a server is to append."""
        self._nonce = self._draw(32)
        serial = self._next_serial(clock_ms)
        statement = self.id + self._nonce + serial.to_bytes(8, "big")
        signature = self._instance.sign(self._identity.signing, RESUME, 0, statement)
        return self._nonce, serial, signature

    def seal(
        self, live: SignedHeader, sheet: Sheet, tree: AggregatorTree, operators: OperatorSet
    ) -> Sealed | None:
        """Check the live round and seal it once; None if this client stays away from it.

        The guard is in the store before this returns; pairs are kept in memory only, and a boot
        that has lost them needs a new epoch key. Raises Refused and GuardRefused:
        then nothing may leave, and the reason is for the user to read.
        """
        header = live.header
        committee = sheet.committee(header, operators.keys, self._waived)
        roster = sheet.roster(header)
        check_header(
            live,
            instance=self._instance,
            shape=self._config.shape,
            committee=committee,
            roster=roster,
            resumes=sheet.resumes,
            tree=tree,
            me=Member(self.id, self._own_key(header.epoch)),
            min_participants=self._config.window.min_participants,
            last_list_number=self._last_list,
            last_sealed_round=self._guard.round,
        )
        self._check_resumes(sheet.resumes, header)
        if header.epoch != self.keyring.epoch:
            others = [entry.member for entry in sheet.servers]
            self.keyring.open(self._instance, header.epoch, header.base_round, others, server=False)
        if header.epoch > self.speaker.budget.epoch:
            fresh = Budget(header.epoch, self._share)
            self.speaker = replace(self.speaker, budget=fresh)
        self._last_list = header.list_number
        self._peers = {one: seat.peer for one, seat in committee.servers.items()}
        crowd = len(roster.clients)
        self.speaker, turn = speaker.turn(
            self.speaker,
            header,
            self._last,
            crowd=crowd,
            participation=self._participation,
            rate_key=self._rate_key,
            draw=self._draw,
        )
        if turn is None:
            return None
        open_rounds = {sent.round for sent in self.speaker.in_flight} | {header.round - 1}
        self._places = {at: place for at, place in self._places.items() if at in open_rounds}
        self._places[header.round] = _Place(header.id, roster.index()[self.id], self._peers)
        leaf = tree.leaf_for(self.id)
        leaf_dh = tree.nodes[leaf].dh_pub
        keys = leaf_keys(self._identity.dh, leaf_dh, self._instance, self.id, leaf_dh)
        pairs = self.keyring.pairs(header.servers, header.round, sheet.resumes)
        envelope = seal(
            header,
            pairs,
            self.id,
            turn.content,
            turn.rate_tag,
            keys,
            self._identity.signing,
            self._xor,
        )
        self._guard, envelope = guards.seal_once(
            self._guard, header.round, header.id, envelope, self._store
        )
        return Sealed(envelope, leaf)

    def final(self, signed: SignedRecord) -> Outcomes:
        """What a final record says of this client's message.

        A record may come after the next round was sealed. Raises Refused for one that the servers
        of its header, or of the last one checked if that was not sealed, have not all signed.
        """
        header = signed.record.header
        place = self._places.get(header.round)
        signed.verify(place.peers if place else self._peers)
        final = Final(header.round, signed.record.payload, self._is_in(signed))
        if self._last is None or final.round > self._last.round:
            self._last = final
        self.speaker, outcomes = speaker.settle(self.speaker, final)
        return outcomes

    def receipt(
        self, blob: bytes, round_number: int, leaf: Aggregator, clients: int
    ) -> Receipt | None:
        """What the receipts of the leaf, for so many clients, say to this one; None: nothing.

        Raises WireFormatError, and Refused for an entry that the leaf has not made for it.
        """
        check_blob(blob, clients)
        keys = leaf_keys(self._identity.dh, leaf.dh_pub, self._instance, self.id, leaf.dh_pub)
        entry = find(blob, receipt_tag(keys.receipt, round_number))
        if entry is None:
            return None
        own = self._identity.dh
        return open_receipt(entry, self._instance, round_number, self.id, own, leaf.peer)

    def ended(self, round_number: int, *, aggregated: bool) -> Outcomes:
        """What the end of a round without a record says of this client's message."""
        end = Unfinalized(round_number, aggregated)
        self.speaker, outcomes = speaker.settle(self.speaker, end)
        return outcomes

    def _is_in(self, signed: SignedRecord) -> bool:
        record = signed.record
        place = self._places.get(record.header.round)
        if place is None or place.header_id != record.header.id:
            return False
        return bool(record.participants[place.bit >> 3] >> (place.bit & 7) & 1)

    def _own_key(self, epoch: int) -> bytes:
        key = self.keyring.key(epoch)
        if key is None:
            raise Refused(
                "this client has no secret for the epoch",
                expected=f"epoch {self.keyring.epoch} or a later one with a key of this client",
                got=str(epoch),
                rule="epoch.no-secret",
                hint="it takes part from the next epoch on",
            )
        return key

    def _check_resumes(self, resumes: tuple[Resume, ...], header: Header) -> None:
        """Act only if the last Resume in this client's name is its own."""
        own = [resume for resume in resumes if resume.node == self.id]
        last = own[-1] if own else None
        # The pairs of a later epoch are this boot's own: nobody else resumes with them.
        open_already = header.epoch == self.keyring.epoch
        if last is not None or (self._restarted and open_already):
            try:
                guards.check_resumed(self._nonce, last, header.round)
            except GuardRefused:
                # Without its own in the list, a client that waits for it sees the boot before it.
                known = not self._restarted or any(one.nonce == self._nonce for one in own)
                later = last is not None and last.nonce != self._nonce
                self.fenced = open_already and known and later
                raise
        self._restarted = False

    def _next_serial(self, clock_ms: int) -> int:
        """Above all that this node has used, also before a restart if its clock went on."""
        self._serial = max(self._serial + 1, clock_ms)
        return self._serial
