"""What a client makes of its seal at a start, and how it keeps it while it runs.

| what is found                                   | the client is      | its pairs             |
|-------------------------------------------------|--------------------|-----------------------|
| nothing: an empty disk                          | new                | none                  |
| the newest seal, of the epoch that runs         | the same           | it resumes with them  |
| the newest seal, of an epoch that is over       | the same           | none                  |
| an older copy, or another of the same version   | the same           | none, none are read   |
| damaged pairs or journal, another generation    | the same           | none                  |
| damaged seal, or one that the committee can't   | new, under a new   | none                  |
| open: a member missing, forgetful, equivocating | key                |                       |
| another node's or deployment's seal             | refuses to run     |                       |

Without pairs it draws a new epoch key and waits for the next epoch; of the running one it uses no
rate-limit tag. Each row but the first three is told in one line of the log, with its rule.

A client uses half of an epoch's tags and leaves the rest to boots to come: each boot takes half of
what is left, and the seal has that before the first one is used. So no boot uses those of another,
whatever was put back, and none has to ask the committee when it speaks.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

from attestation.bundle import Role
from attestation.errors import AttestationError, SealError, SealUnavailable
from attestation.seal.committee_format import Blob
from attestation.seal.committee_sealer import CommitteeSealer
from zipnet.errors import StateDamaged, WireFormatError
from zipnet.ids import client_id
from zipnet.node.sealed_disk import SealedDisk
from zipnet.node.sealed_journal import Journal
from zipnet.node.sealed_record import SealedPairs, SealedRecord
from zipnet.protocol.guards import ClientGuard
from zipnet.protocol.instance import Instance
from zipnet.protocol.keyring import KeyRing
from zipnet.protocol.ratelimit import Budget
from zipnet.roles.client import fenced
from zipnet.roles.committee_view import CommitteeView
from zipnet.roles.identity import Draw

EMPTY, FOREIGN, FENCED = "seal.absent", "seal.foreign", "seal.fenced"
MEMBERS, BEHIND = "seal.members", "seal.behind"
# An older copy; or a member that has forgotten what it confirmed, of which this might be one.
OLDER = frozenset({"seal.rollback", "seal.fork", BEHIND})
# Nobody can open this any more.
LOST = frozenset({"seal.damaged", "seal.equivocation", "slots.damaged"})
# Below the number of any list.
NO_KEY = -1
# How often a committee that does not answer is asked, and how long a client waits in between.
TRIES, PAUSE_S = 5, 5.0

log = logging.getLogger("zipnet.sealing")


@dataclass(frozen=True, slots=True)
class Start:
    """How a client begins: `ring` are pairs to resume with, `rule` why it lost what it had."""

    record: SealedRecord
    journal: Journal
    ring: KeyRing | None
    guard: ClientGuard | None
    budget: Budget | None
    rule: str


@dataclass(frozen=True, slots=True)
class _Found:
    """A record, or None if there is none to be had; `rule` says why, or what must not be used."""

    record: SealedRecord | None
    rule: str = ""


class SealedState:
    """The seal and the journal of one client on one disk.

    `sealer` makes what asks these servers (id to peer key); `limit` is how many messages a client
    may send in an epoch.
    """

    def __init__(
        self,
        disk: SealedDisk,
        sealer: Callable[[Mapping[bytes, bytes]], CommitteeSealer],
        instance: Instance,
        limit: int,
        draw: Draw,
        pause_s: float = PAUSE_S,
    ) -> None:
        self._disk = disk
        self._make = sealer
        self._instance = instance
        self._limit = limit
        self._draw = draw
        self._pause_s = pause_s
        self._sealer: CommitteeSealer
        self._servers: Mapping[bytes, bytes] = {}
        self._list = NO_KEY  # that of the key
        self._record: SealedRecord
        self._view: CommitteeView
        self._wake = asyncio.Event()

    @property
    def share(self) -> int:
        """How many rate-limit tags a boot uses of an epoch that begins in it."""
        return (self._limit + 1) // 2

    async def start(self, view: CommitteeView) -> Start:
        """What the disk holds, as far as it may be used, sealed again where that is needed.

        Raises StateDamaged (`state.foreign`) for a disk of another node, Shutdown (`fenced`) if
        another copy of this client starts, SealError by the rule of a server that refuses this
        client, ProviderError.
        """
        self._view = view
        self._sealer, self._servers = self._make(view.servers), view.servers
        found = await self._open()
        known, rule = found.record, found.rule
        if known and known.role is not Role.CLIENT:
            raise _foreign(None)
        if known is None:
            self._list = NO_KEY
        record = known or SealedRecord.fresh(Role.CLIENT, self._instance, self._draw)
        journal = Journal(self._disk.journal, record.journal, self._instance, self._draw)
        guard, pairs = None, None
        try:
            if known and not rule:
                record, pairs = self._usable(known)
        except (StateDamaged, WireFormatError) as error:
            rule = error.rule
        try:
            guard = journal.read()
        except StateDamaged as error:
            # Without a record there is no key that the journal could be under.
            rule = rule or (error.rule if known else "")
        if rule:
            kept = "the same identity and new epoch keys" if known else "a new identity"
            log.warning("sealed state: rule %s; the client goes on with %s", rule, kept)
        if known and not rule and pairs is not None:
            resumed = await self._resumed(record, pairs)
            if resumed is not None:
                ring, budget = resumed
                return Start(self._record, journal, ring, guard, budget, "")
        record = record.without_pairs(self._instance)
        journal.write(ClientGuard(self._instance.binding).encode())
        self._record = record
        if known is None or rule:
            await self.seal()
        spent = Budget.spent(view.next_epoch - 1, self.share) if known else None
        return Start(record, journal, None, None, spent, rule)

    def opened(self, ring: KeyRing, view: CommitteeView) -> None:
        """An epoch has begun, with these pairs: they are sealed as soon as `run` comes to it."""
        pairs = SealedPairs.of(ring, self.share)
        self._record = replace(self._record, pairs=pairs.encode())
        self._view = view
        self._wake.set()

    def doubted(self) -> None:
        """Another copy may have started: whoever seals as the older one hears of it."""
        self._wake.set()

    async def run(self) -> None:
        """Seal what epochs begin with. Raises Shutdown (`fenced`) if another copy has started."""
        while True:
            await self._wake.wait()
            self._wake.clear()
            if not await self.seal():
                await asyncio.sleep(self._pause_s)
                self._wake.set()

    async def seal(self) -> bool:
        """Seal the record as it is now; whether all servers have confirmed it. Raises Shutdown."""
        try:
            await self._seal(self._record, self._view)
        except (AttestationError, StateDamaged) as error:
            if error.rule == FENCED:
                raise fenced(str(error)) from error
            if error.rule == BEHIND:
                # A server has lost its table: what it never knew of, it can't go on with.
                self._list = NO_KEY
            log.warning("the state of this client is not sealed: %s", error)
            return False
        return True

    async def _open(self) -> _Found:
        """The record. Raises as `start`."""
        for left in reversed(range(TRIES)):
            try:
                data = await self._sealer.open()
                self._note_key()
                return _Found(SealedRecord.decode(data))
            except (WireFormatError, StateDamaged) as error:
                return _Found(None, error.rule)
            except SealError as error:
                if error.rule in OLDER:
                    log.info("%s", error)
                    return await self._older(error.rule)
                found = _without(error, last=not left)
            if found is not None:
                return found
            await asyncio.sleep(self._pause_s)
        raise AssertionError("the last try has a verdict")

    async def _older(self, rule: str) -> _Found:
        """Who an older copy says that this client is: that does not change."""
        try:
            data = await self._sealer.unsafe_open_older()
            self._note_key()
            return _Found(SealedRecord.decode(data), rule)
        except (SealError, WireFormatError) as error:
            log.warning("an older seal does not open: %s", error)
            return _Found(None, error.rule)

    def _note_key(self) -> None:
        raw = self._disk.read()
        assert raw is not None
        self._list = Blob.parse(raw).header.list_number

    def _usable(self, record: SealedRecord) -> tuple[SealedRecord, SealedPairs | None]:
        """The record, and its pairs if their epoch runs.

        Raises StateDamaged (`state.generation`), WireFormatError for pairs that are not its own.
        """
        if record.binding != self._instance.binding:
            raise StateDamaged(
                "the seal is of another generation",
                expected=self._instance.binding.hex(),
                got=record.binding.hex(),
                rule="state.generation",
            )
        if not record.pairs:
            return record, None
        pairs = SealedPairs.decode(record.pairs)
        pairs.ring(client_id(record.identity.dh_pub))
        return record, pairs if pairs.epoch == self._view.next_epoch - 1 else None

    async def _resumed(
        self, record: SealedRecord, pairs: SealedPairs
    ) -> tuple[KeyRing, Budget] | None:
        """The pairs, and half of the tags that are left, once the seal says that they are taken."""
        used = min(pairs.tags, self._limit)
        until = used + (self._limit - used + 1) // 2
        taken = replace(pairs, tags=until)
        self._record = replace(record, pairs=taken.encode())
        if not await self.seal():
            log.warning("the seal can't be renewed: the client takes new epoch keys")
            return None
        ring = taken.ring(client_id(record.identity.dh_pub))
        if until == used:
            return ring, Budget.spent(pairs.epoch, self.share)
        return ring, Budget(pairs.epoch, until, used)

    async def _seal(self, record: SealedRecord, view: CommitteeView) -> None:
        """Under a new key where the servers or the list are new, so that old images have none."""
        if dict(view.servers) != dict(self._servers):
            self._sealer, self._servers = self._make(view.servers), view.servers
            self._list = NO_KEY
        if self._list != NO_KEY:
            # Also before a new key: who makes one is not asked which boot it is.
            await self._sealer.update(record.encode())
        if self._list < view.accepted.number:
            await self._sealer.create(record.encode(), view.accepted.number)
            self._list = view.accepted.number


def _without(error: SealError, *, last: bool) -> _Found | None:
    """What a seal that does not open means; None: try again. Raises as `SealedState.start`."""
    if error.rule == EMPTY:
        return _Found(None)
    if error.rule == FOREIGN:
        raise _foreign(error) from error
    if error.rule == FENCED:
        raise fenced(str(error)) from error
    log.warning("the committee does not open the seal: %s", error)
    gone = error.rule == MEMBERS
    # Members that are others now won't come back; those that don't answer may.
    if error.rule in LOST or (gone and (last or not isinstance(error, SealUnavailable))):
        return _Found(None, error.rule)
    if last:
        raise error
    return None


def _foreign(error: SealError | None) -> StateDamaged:
    return StateDamaged(
        "the disk holds the state of another node",
        expected=error.expected if error else "a client's",
        got=error.got if error else "another role's",
        rule="state.foreign",
        hint="it was not written to: attach the disk of this client, or an empty one",
    )
