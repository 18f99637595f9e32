"""A committee server on a network: the loops around `server_core`.

One task applies the log, one appends what is due, one judges clients and the other servers, one
answers what is asked. Whatever stops one of them stops the server, with its reason.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import TypeVar

from blake3 import blake3

from attestation.bundle import Fresh
from attestation.seal.committee_member import Member
from zipnet.committee import bodies
from zipnet.committee.commands import Command
from zipnet.committee.events import (
    Applied,
    HeaderLive,
    HeaderProposed,
    ListAccepted,
    RoundEnded,
    RoundFinal,
    ServerSuspended,
    Verdict,
)
from zipnet.committee.machine import Machine
from zipnet.committee.state import Rules, State
from zipnet.committee.views import beacons
from zipnet.errors import Conflict, Refused, Unavailable, ZipnetError
from zipnet.network import index
from zipnet.network.archive import Archive
from zipnet.network.base import Blobs, Network, Table
from zipnet.network.group import Group, Tip, checkpoint_signed
from zipnet.network.places import Places
from zipnet.network.public import OUTCOME, Card, LiveRound, Notice, card_key, server_topic
from zipnet.network.recovery import Reopening
from zipnet.operators import Endorsement
from zipnet.protocol.guards import ServerGuard, Store
from zipnet.protocol.header import NO_HASH
from zipnet.protocol.pads import KeystreamXor
from zipnet.protocol.tree import AggregatorTree
from zipnet.roles.admission import Admission, Ticketing
from zipnet.roles.desk import Desk
from zipnet.roles.gate import Gate
from zipnet.roles.identity import Draw
from zipnet.roles.judge import Judge
from zipnet.roles.metrics import Metrics
from zipnet.roles.sealing import Kept, SealingDesk
from zipnet.roles.server_core import ServerCore

# How many clients' pads, or tickets, are worked on before other tasks get a turn.
CHUNK = 64
CARD_ROUNDS = 16
ARCHIVE_ROUNDS = 64
POLL = 0.05

log = logging.getLogger("zipnet.server")
T = TypeVar("T")


def _forget(_what: object) -> None:
    """For a node that keeps nothing."""


@dataclass(slots=True)
class ServerSettings:
    """What a server needs beside its network. `clock` gives Unix milliseconds.

    `guard` and `tip` are what `store` has kept of an earlier boot; `seen` hears of each new tip,
    `keep` gets each checkpoint that all servers signed, as a `Reopening` without a document.
    `recovery` leads into any generation but the first. `sealing` is what it keeps as a member of
    the committee that clients seal with; without, that lasts as long as this server's memory.
    """

    admission: Admission
    ticketing: Ticketing
    endorsement: Endorsement
    store: Store
    xor: KeystreamXor
    draw: Draw
    clock: Callable[[], int]
    metrics: Metrics
    tip: Tip = field(default_factory=Tip)
    guard: ServerGuard | None = None
    seen: Callable[[Tip], None] = _forget
    keep: Callable[[bytes], None] = _forget
    trees: tuple[AggregatorTree, ...] = ()
    recovery: Reopening | None = None
    sealing: Kept | None = None


class Server:
    """One server. `run` returns only by an error or by cancellation."""

    def __init__(self, network: Network, settings: ServerSettings) -> None:
        self._network = network
        self._set = settings
        self._places = Places.of(settings.admission.instance.deployment_id)
        self._wake = asyncio.Event()
        self._todo: asyncio.Queue[HeaderLive | RoundFinal | int] = asyncio.Queue()
        self._noticed = b""
        self._quoting = asyncio.Lock()
        self.joined = asyncio.Event()
        self.gate = Gate(settings.admission, lambda: self.state, self._now)
        self.core: ServerCore
        self.group: Group
        self.judge: Judge

    @property
    def state(self) -> State:
        """The machine's state, for reading."""
        return self.core.machine.state

    async def run(self) -> None:
        """Join, and serve rounds. Raises what stops this server."""
        config, instance = self._set.admission.config, self._set.admission.instance
        rules, recovery = Rules.of(config), self._set.recovery
        begin = recovery.machine(rules, instance.deployment_id) if recovery else None
        self.group = await Group.open(
            self._network, rules, instance, self._set.tip, self._connect, begin
        )
        name = self._places
        self._live: Table = await self._network.table(name.live)
        self._cards: Table = await self._network.table(name.servers)
        await self._network.table(name.receipts)  # for aggregators, who may not make it
        self._records = await self._network.log(name.broadcasts)
        self._blobs: Blobs = await self._network.blobs(name.blobs)
        self._archive = await Archive.open(self._network, instance.deployment_id)
        channel = self._network.channel(name.register)
        self.judge = Judge(
            self._set.admission,
            lambda: self.state,
            self.core.id,
            channel=channel,
            blobs=self._blobs,
            draw=self._set.draw,
            now=self._now,
            say=self._say,
            proved=self._wake.set,
        )
        self.core.trusted = self.judge.proven
        desk = Desk(
            lambda: self.state,
            self._blobs,
            self._say,
            self._prove,
            self._sign_outcome,
            self.judge.noted.set,
            self.gate,
            self._sealing(),
        )
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self.group.run(self._set.tip))
            await self._catch_up()
            async with channel.listen(server_topic(self.core.id)) as requests:
                if self._set.recovery is not None:
                    await self._recover(self._set.recovery.document)
                await self._join()
                tasks.create_task(self._publish())
                tasks.create_task(self.judge.run())
                tasks.create_task(self._append())
                await desk.serve(requests)

    def _sealing(self) -> SealingDesk:
        """This server as a member of the committee that clients seal with."""
        s = self._set
        kept = s.sealing or Kept.in_memory(s.draw)
        key = s.ticketing.identity.signing
        member = Member(kept.root, self.core.id, key, kept.table, s.draw)
        return SealingDesk(member, s.admission, self.gate.accepted, self._now)

    def _connect(
        self, machine: Machine
    ) -> tuple[Callable[[int, bytes], Applied], Callable[[Applied], None]]:
        s = self._set
        self.core = ServerCore(
            machine,
            s.ticketing.identity,
            store=s.store,
            xor=s.xor,
            draw=s.draw,
            guard=s.guard,
            instance=s.admission.instance,
        )
        return self.core.apply, self._on_applied

    async def _catch_up(self) -> None:
        log_ = await self._network.log(self._places.log(self._set.admission.instance))
        _, last = await log_.bounds()
        await self.group.wait(last, 600.0)

    async def _recover(self, document: bytes) -> None:
        """Begin the generation, unless another server has begun it. Raises Refused."""
        state, instance = self.state, self._set.admission.instance
        if not state.recovering:
            return
        raw = Command.make(
            self._set.ticketing.identity.signing,
            instance,
            bodies.Recover(document),
            round_number=0,
            seq=state.seq,
            head=state.head,
            clock_ms=self._set.clock(),
        )
        applied = await self._execute(raw)
        if state.recovering:
            raise Refused(f"the recovery is refused: {applied.detail}", rule=applied.rule)
        log.info("generation %d begins: %s", state.counter, state.instance.generation.hex()[:16])

    async def _join(self) -> None:
        applied = await self._execute(self.core.join(self._set.endorsement, self._set.clock()))
        while applied.rule == "epoch-key.epoch":
            # An epoch has begun since this server looked: once more, for the next one.
            applied = await self._execute(self.core.join(self._set.endorsement, self._set.clock()))
        if applied.verdict is Verdict.REFUSED:
            raise Refused(f"the committee refuses this server: {applied.detail}", rule=applied.rule)
        log.info("joined the committee as %s", self.core.id.hex()[:16])
        self.joined.set()
        if self._set.trees and self.state.trees != self._set.trees:
            await self._say(bodies.Assign(self._set.trees))

    async def take_list(self, envelope: bytes) -> None:
        """Append a signed list of measurements. Raises Refused."""
        applied = await self._say(bodies.RotateAllowList(envelope))
        if applied.verdict is Verdict.REFUSED:
            raise Refused(applied.detail.splitlines()[0], rule=applied.rule)

    async def _execute(self, raw: bytes) -> Applied:
        """Append until the outcome is known: always the same bytes."""
        while True:
            try:
                return await self.group.execute(raw)
            except Unavailable as error:
                log.warning("the network does not answer, trying again: %s", error)
                await asyncio.sleep(POLL)

    # What the log says

    def _on_applied(self, applied: Applied) -> None:
        self._set.seen(Tip(self.state.seq, self.state.head))
        self._wake.set()
        self._set.metrics.applied(self.state, self.core.id)
        if applied.verdict is Verdict.REFUSED:
            log.debug("entry %d refused by rule %s", applied.seq, applied.rule)
        for event in applied.events:
            if isinstance(event, HeaderProposed):
                log.info("opening round %d", event.header.round)
            elif isinstance(event, HeaderLive):
                self._todo.put_nowait(event)
            elif isinstance(event, RoundFinal):
                self._set.metrics.finalized()
                self._todo.put_nowait(event)
            elif isinstance(event, RoundEnded):
                missing = ", ".join(one.hex()[:16] for one in event.outcome.missing) or "nobody"
                how = event.outcome.ending.name.lower().replace("_", " ")
                log.warning("round %d ended %s; missing: %s", event.outcome.round, how, missing)
            elif isinstance(event, ServerSuspended):
                log.warning("server %s suspended: %s", event.server.hex()[:16], event.rule)
            elif isinstance(event, ListAccepted):
                log.info("list %d in force from round %d", event.number, event.from_round)
                self.judge.noted.set()
        seq = checkpoint_signed(applied)
        if seq is not None:
            self._todo.put_nowait(seq)

    async def _append(self) -> None:
        """Append what is due, one command after another."""
        period = self._set.admission.config.window.round_period_ms / 1000
        while True:
            self._wake.clear()
            if self.core.must_join:
                await self._join()
            for raw in self.core.due(self._set.clock()):
                applied = await self._execute(raw)
                if applied.verdict is Verdict.REFUSED:
                    log.debug("own command refused by rule %s", applied.rule)
                elif applied.verdict is Verdict.APPLIED:
                    self._set.metrics.own(raw)
            while self.core.work(CHUNK):
                await asyncio.sleep(0)
            if not self._wake.is_set():
                try:
                    async with asyncio.timeout(max(POLL, period / 20)):
                        await self._wake.wait()
                except TimeoutError:
                    continue

    # What others read

    async def _publish(self) -> None:
        """Notice and card when they change, and what each round leaves."""
        name, deployment = self._set.admission.config.name, self.state.instance.deployment_id
        await self._again(lambda: index.announce(self._network, name, deployment))
        self._published = await self._before()
        carded, shown = -CARD_ROUNDS, NO_HASH
        while True:
            await self._publish_notice()
            known = beacons(self.state)
            # Until the first record each server that joins moves the beacon.
            if known and (self.state.next_round - carded >= CARD_ROUNDS or shown not in known):
                carded, shown = self.state.next_round, self._beacon()
                card = Card(self._set.endorsement, await self._quoted(shown, Fresh.BEACON))
                key = card_key(self.state.instance, self.core.id)
                await self._put(self._cards, key, card.encode())
            try:
                async with asyncio.timeout(0.25):
                    what = await self._todo.get()
            except TimeoutError:
                continue
            await self._publish_notice()  # clients look at it when a header names a new list
            await self._publish_one(what)

    async def _publish_notice(self) -> None:
        made = self._notice()
        if made.statement() != self._noticed:
            self._noticed = made.statement()
            await self._keep_documents()
            operator = self._set.endorsement.operator.hex()
            await self._put(self._live, f"notice/{operator}", made.encode())

    async def _before(self) -> int:
        """The last round that was published before this boot, as far as the archive tells."""
        try:
            newest = await self._again(self._archive.newest)
        except ZipnetError as error:
            log.warning("the archive can't be read: %s", error)
            return 0
        # What somebody has forged there must not hide a round to come.
        return min(newest, self.state.next_round - 1)

    async def _publish_one(self, what: HeaderLive | RoundFinal | int) -> None:
        if isinstance(what, HeaderLive):
            await self._publish_live(what)
        elif isinstance(what, RoundFinal):
            await self._publish_final(what)
        else:
            await self._publish_checkpoint(what)

    async def _publish_checkpoint(self, seq: int) -> None:
        found = self.group.signed_checkpoint(seq)
        if found is not None:
            # Here too: whoever deletes the log can delete what the network has of it.
            kept = Reopening(found[0], b"", found[1]).encode()
            await asyncio.to_thread(self._set.keep, kept)
        await self._again(lambda: self.group.publish_checkpoint(seq))

    async def _publish_final(self, event: RoundFinal) -> None:
        number = event.record.record.header.round
        log.info("round finalized: %d", number)
        if number <= self._published:
            return  # from before the restart, and perhaps archived: the log has forgotten its key
        raw, key = event.record.encode(), event.record.record.hash.hex()
        await self._again(lambda: self._records.append(raw, key=key))
        if number % ARCHIVE_ROUNDS == 0:
            try:
                await self._again(self._archive.tidy)
            except ZipnetError as error:
                log.warning("old broadcasts stay in the log: %s", error)

    async def _publish_live(self, event: HeaderLive) -> None:
        current = self.state.current
        if current is None or current.header != event.header.header:
            return  # the round is over already
        sheet = await self._again(lambda: self._blobs.put(current.sheet.encode()))
        accepted, documents = await self._keep_documents()
        live = LiveRound(event.header, current.tree, sheet, accepted, documents)
        await self._put(self._live, "live", live.encode(), lambda: self.state.current is current)

    async def _keep_documents(self) -> tuple[bytes, tuple[bytes, ...]]:
        """Put the list in force and the operators' documents into blobs; their digests."""
        state = self.state
        accepted = NO_HASH
        if state.allow_list is not None:
            envelope = state.allow_list.envelope
            accepted = await self._again(lambda: self._blobs.put(envelope))
        documents = [
            await self._again(lambda raw=raw: self._blobs.put(raw))  # type: ignore[misc]
            for raw in state.operator_documents
        ]
        return accepted, tuple(documents)

    def _notice(self) -> Notice:
        state = self.state
        envelope = state.allow_list.envelope if state.allow_list else b""
        return Notice(
            self._set.endorsement,
            state.instance,
            state.next_epoch(),
            state.first_beacon if state.first_beacon in beacons(state) else NO_HASH,
            blake3(envelope).digest() if envelope else NO_HASH,
            tuple(blake3(raw).digest() for raw in state.operator_documents),
        ).signed(self._set.ticketing.identity.signing)

    def _beacon(self) -> bytes:
        state = self.state
        return state.beacons[-1] if state.beacons else state.first_beacon

    async def _put(
        self, table: Table, key: str, value: bytes, still: Callable[[], bool] = lambda: True
    ) -> None:
        """Write a value that other servers may have written already, while it holds `still`."""

        async def put() -> None:
            while still():
                before = await table.get(key)
                if before is not None and before.value == value:
                    return
                rev = before.rev if before is not None else 0
                with contextlib.suppress(Conflict):
                    await table.put(key, value, expect=rev)
                    return

        await self._again(put)

    async def _again(self, call: Callable[[], Awaitable[T]]) -> T:
        """Repeat an idempotent call until the network answers."""
        while True:
            try:
                return await call()
            except Unavailable as error:
                log.warning("the network does not answer, trying again: %s", error)
                await asyncio.sleep(POLL)

    async def _say(self, body: bodies.Body, round_number: int = 0) -> Applied:
        return await self._execute(self.core.command(body, round_number, self._set.clock()))

    def _sign_outcome(self, round_number: int, ending: bytes) -> bytes:
        key = self._set.ticketing.identity.signing
        return self.state.instance.sign(key, OUTCOME, round_number, ending)

    async def _prove(self, challenge: bytes) -> bytes:
        return await self._quoted(challenge, Fresh.CHALLENGE)

    async def _quoted(self, fresh: bytes, kind: Fresh) -> bytes:
        # A quote takes a TD a second, in which rounds must go on; the device makes one at a time.
        async with self._quoting:
            bundle = self._set.ticketing.bundle
            return await asyncio.to_thread(bundle, fresh, kind, self._now())

    def _now(self) -> datetime:
        return datetime.fromtimestamp(self._set.clock() / 1000, UTC)
