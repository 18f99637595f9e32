"""A client on a network: the loops around `client_core`.

It registers with a server, keeps a key for the next epoch in the log, seals each live round, and
reads the records. What became of a message is told by records and headers only; a leaf's answer, or
its receipt where that was lost, tells why an envelope was refused.
"""

from __future__ import annotations

import asyncio
import copy
import logging
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime

from blake3 import blake3

from attestation.bundle import Fresh
from zipnet.committee import bodies
from zipnet.committee.state import Ending
from zipnet.config import Config
from zipnet.errors import (
    Attestation,
    ConnectTimeout,
    Denied,
    EngineError,
    Protocol,
    Refused,
    Shutdown,
    WireFormatError,
    ZipnetError,
)
from zipnet.network.base import Network, Table
from zipnet.network.public import (
    OUTCOME,
    Answer,
    Ask,
    ClientStatus,
    LiveRound,
    Request,
    server_topic,
    submit_topic,
)
from zipnet.protocol.guards import ClientGuard, Store
from zipnet.protocol.header import Header
from zipnet.protocol.instance import Instance
from zipnet.protocol.pads import KeystreamXor
from zipnet.protocol.record import SignedRecord
from zipnet.protocol.sheet import Sheet
from zipnet.protocol.speaker import Message, Outcome
from zipnet.roles.admission import TICKET_LIFE, Ticketing
from zipnet.roles.asking import ask_any
from zipnet.roles.client_core import ClientCore, Sealed
from zipnet.roles.committee_view import CommitteeView, Lookout
from zipnet.roles.identity import Draw, Identity
from zipnet.roles.presenting import Presenter
from zipnet.roles.unanswered import NOT_REFUSED, Asked, Told, receipt_rule

log = logging.getLogger("zipnet.client")

POLL = 0.1
MAX_UNANSWERED = 16
# When a ticket is renewed, in parts of its life.
RENEW_FROM, RENEW_UNTIL = 0.5, 0.75
# Rules of tickets that a new ticket of the same node may satisfy.
OLD_TICKET = ("beacon", "stale", "expired")
UNEXPLAINED = (Outcome.LATE, Outcome.UNPUBLISHED)

Settled = Sequence[tuple[Message, Outcome]]


@dataclass(slots=True)
class ClientSettings:
    """What a client needs beside its network. `clock` gives Unix milliseconds.

    `guard` is what `store` has kept of an earlier boot of the same identity.
    """

    config: Config
    deployment_id: bytes
    identity: Identity
    ticketing: Callable[[Instance], Ticketing]
    store: Store
    xor: KeystreamXor
    draw: Draw
    clock: Callable[[], int]
    waived: frozenset[bytes] = frozenset()
    participation: float = 1.0
    connect_s: float = 30.0
    guard: ClientGuard | None = None


class ClientRole:
    """One client. `run` returns only by an error or by cancellation.

    `refusal` is the last reason why this client did not take part, empty if it does.
    """

    def __init__(self, network: Network, lookout: Lookout, settings: ClientSettings) -> None:
        self._network = network
        self._lookout = lookout
        self._set = settings
        self._view: CommitteeView
        self._core: ClientCore
        self._waiting: dict[int, asyncio.Future[Told]] = {}
        self._rules: dict[int, str] = {}
        self._presenter = Presenter(network, settings.clock)
        self._unanswered: dict[int, Asked] = {}
        self._tasks: asyncio.TaskGroup
        self._posted = 0
        self._sealed: Header | None = None
        self._ready = asyncio.Event()
        self._over = False
        self._heard_ms = settings.clock()
        self._headers: dict[int, Header] = {}  # of sealed rounds whose end is not known
        self._read_records: deque[bytes] = deque(maxlen=64)  # hashes
        self._changed = asyncio.Condition()
        self._barred: Attestation | None = None
        self._registration = b""
        self._renew_ms = 0
        self.refusal = ""
        self.rounds = 0
        self.taking_part = asyncio.Event()

    async def ready(self) -> None:
        """Return when the committee checked out, and has the registration."""
        await self._ready.wait()
        if self._over:
            raise Shutdown("the client has ended", rule="ended")

    async def send(self, datum: bytes) -> Told:
        """Put a datum into a round, and wait for what becomes of it.

        Whoever is cancelled takes the datum back if it is in no round yet. Raises DatumRejected,
        Refused if too many wait, Attestation if servers refuse this client or it refuses one of
        them, Shutdown if the client ends before.
        """
        await self.ready()
        if self._barred is not None:
            raise copy.copy(self._barred)
        number = self._core.submit(datum)
        future: asyncio.Future[Told] = asyncio.get_running_loop().create_future()
        self._waiting[number] = future
        try:
            return await future
        finally:
            self._core.withdraw(number)

    async def run(self) -> None:
        """Take part. Raises ConnectTimeout, Attestation, Protocol, EngineError."""
        try:
            await self._lookout.open()
            self._view = await self._lookout.find(self._now, self._set.connect_s)
            self._instance = self._view.instance
            self._core = ClientCore(
                self._set.config,
                self._instance,
                self._set.identity,
                store=self._set.store,
                xor=self._set.xor,
                draw=self._set.draw,
                waived=self._set.waived,
                participation=self._set.participation,
                guard=self._set.guard,
            )
            self._register_channel = self._network.channel(self._lookout.places.register)
            self._submit_channel = self._network.channel(self._lookout.places.submit)
            self._receipts: Table = await self._network.table(self._lookout.places.receipts)
            _, last = await self._lookout.records.bounds()
            await self._register()
            self._ready.set()
            async with asyncio.TaskGroup() as tasks:
                self._tasks = tasks
                tasks.create_task(self._read(last))
                tasks.create_task(self._seal())
                tasks.create_task(self._stay())
        finally:
            self._end()

    def _end(self) -> None:
        self._over = True
        self._ready.set()
        for future in self._waiting.values():
            if not future.done():
                future.set_exception(
                    Shutdown("the client ended before the outcome was known", rule="ended")
                )
        self._waiting.clear()

    # Being in

    async def _register(self) -> None:
        view = self._view
        await self._lookout.check_generation(self._instance, view.operators)
        bundle = await self._bundle()
        key = self._core.epoch_key(view.next_epoch, self._set.clock())
        self._posted = view.next_epoch
        body = bodies.Register(bundle, key).encode()
        try:
            await self._ask_any(Ask.REGISTER, body)
        except Protocol as error:
            if error.rule == "epoch-key.epoch":
                # An epoch has begun since this client looked: once more, for the next one.
                self._view = await self._lookout.find(self._now, self._set.connect_s)
                await asyncio.sleep(POLL)
                return await self._register()
            if error.rule != "epoch-key.serial":
                raise  # but this one says that the log has it, and an answer was lost
        self._registered(body)
        if self._presenter.due:
            await self._present(bundle)
        return None

    def _registered(self, body: bytes) -> None:
        """Note what the log has, and when to show it a newer ticket: not all clients at once."""
        self._registration = blake3(body).digest()
        share = RENEW_FROM + (RENEW_UNTIL - RENEW_FROM) * self._set.draw(1)[0] / 255
        self._renew_ms = self._set.clock() + int(share * TICKET_LIFE * 1000)

    async def _keep_ticket(self) -> None:
        """Show the bus, and in time the log, a newer ticket. Raises Protocol, EngineError."""
        late = self._set.clock() >= self._renew_ms
        if self._presenter.due or late:
            self._view = await self._lookout.look(self._now())
            bundle = await self._bundle()
            await self._present(bundle)
            if late:
                body = bodies.Renew(bundle).encode()
                await self._ask_any(Ask.RENEW, body)
                self._registered(body)

    async def _bundle(self) -> bytes:
        ticketing, beacon = self._set.ticketing(self._view.instance), self._view.beacons[-1]
        # A quote takes a TD a second.
        return await asyncio.to_thread(ticketing.bundle, beacon, Fresh.BEACON, self._now())

    async def _present(self, bundle: bytes) -> None:
        """Ask the bus for the right to submit; who is refused hears why."""
        error = await self._presenter.show(bundle, self._register_channel, self._view)
        if error is not None:
            self._bar(error)

    async def retire(self) -> None:
        """Take the registration back, after the end of `run`: no round counts on this client.

        Raises Protocol, EngineError.
        """
        if not self._registration:
            return
        identity, instance = self._set.identity, self._view.instance
        statement = self._core.id + self._registration
        signature = instance.sign(identity.signing, bodies.RETIRE, 0, statement)
        body = bodies.Retire(self._core.id, self._registration, signature)
        await self._ask_any(Ask.RETIRE, body.encode())

    async def _ask_any(self, ask: Ask, body: bytes) -> bytes:
        channel, servers = self._register_channel, self._view.servers
        return await ask_any(channel, servers, self._core.id, ask, body)

    async def _stay(self) -> None:
        """Look how the log sees this client; a refusal by a server is what `refusal` says."""
        while True:
            try:
                if self._silence_ms() > self._set.config.window.round_deadline_ms:
                    await self._lookout.check_generation(self._instance, self._view.operators)
                await self._keep_ticket()
                raw = await self._ask_any(Ask.STATUS, self._core.id)
                status = ClientStatus.decode(raw)
                refusals = [one for one in status.refusals if self._heeds(one[0])]
                old = any(rule in OLD_TICKET for _, rule in refusals)
                if old or not status.registered:
                    await self._again()
                elif refusals:
                    self._bar(self._view.turned_away(*refusals[0]))
                elif self._silence_ms() > self._set.config.window.round_deadline_ms:
                    # No rounds: perhaps for a server with which no other signs, or for want of keys
                    # where an epoch is over that never had a live header.
                    self._view = await self._lookout.look(self._now())
                    await self._keep_key(self._view.next_epoch)
            except Attestation as error:
                self._bar(error)
            except ConnectTimeout as error:
                log.info("%s", error)
            except (EngineError, Protocol) as error:
                log.warning("%s", error)
            await asyncio.sleep(self._set.config.window.round_period_ms / 1000)

    async def _again(self) -> None:
        self._view = await self._lookout.find(self._now, self._set.connect_s)
        await self._register()

    def _silence_ms(self) -> int:
        """How long ago the last live round was seen."""
        return self._set.clock() - self._heard_ms

    def _heeds(self, server: bytes) -> bool:
        """Whether it matters what this server thinks: not if its operator is waived."""
        return not self._set.waived or server in self._view.servers

    def _refused(self, rule: str, what: str) -> None:
        if rule != self.refusal:
            log.warning("%s by rule %s", what, rule)
        self.refusal = rule

    def _bar(self, error: Attestation) -> None:
        """Tell the reason to whoever waits, but for messages that a round holds already."""
        self._refused(error.rule, error.message)
        self._barred = error
        for number, future in list(self._waiting.items()):
            if self._core.withdraw(number):
                del self._waiting[number]
                if not future.done():
                    future.set_exception(copy.copy(error))

    # Rounds

    async def _seal(self) -> None:
        async for item in self._lookout.live.watch("live"):
            if item.key != "live" or item.value is None:
                continue
            try:
                await self._seal_one(LiveRound.decode(item.value))
            except Attestation as error:
                self._bar(error)
            except ZipnetError as error:
                self._refused(error.rule, str(error))

    async def _seal_one(self, live: LiveRound) -> None:
        header = live.header.header
        if header.instance != self._instance:
            return  # once all servers are in that generation, this client ends
        self._heard_ms = self._set.clock()
        if self._sealed is not None and header.round <= self._sealed.round:
            return  # each server of the committee publishes it
        sheet = Sheet.decode(await self._lookout.blobs.get(live.sheet))
        missed = self._view.misses(header, sheet, self._set.waived)
        if missed or self._unchecked(header, sheet) or self._now() >= self._view.expires:
            # Servers say one after the other which list is in force.
            seconds = self._set.config.window.fold_deadline_ms / 2000
            self._view = await self._lookout.find(self._now, seconds)
            if reason := self._unchecked(header, sheet):
                raise Refused(
                    "the header is not of the committee that this client has checked",
                    expected="the list and the servers whose tickets were validated",
                    got=reason,
                    rule="header.unchecked",
                    hint="it is checked again at the next round",
                )
        await self._end_of(header)
        try:
            await self._seal_in_time(live, sheet)
        finally:
            # Not before, since at the first header of an epoch all clients do this at once.
            await self._keep_key(header.epoch + 1)

    def _unchecked(self, header: Header, sheet: Sheet) -> str:
        """What of the header this client has no reason to trust; empty if nothing.

        An endorsement says whose server it is, only the ticket under this list which code it runs.
        """
        if header.list_hash != self._view.accepted.digest:
            return f"list {header.list_number}"
        peers = {entry.key.member: entry.endorsement.peer for entry in sheet.servers}
        for server in header.servers:
            if server not in peers or self._view.servers.get(server) != peers[server]:
                return f"server {server.hex()[:16]}"
        return ""

    async def _seal_in_time(self, live: LiveRound, sheet: Sheet) -> None:
        header = live.header.header
        sealed = self._core.seal(live.header, sheet, live.tree, self._view.operators)
        self._sealed = header
        if sealed is None:
            return
        self._headers[header.round] = header
        self.refusal, self._barred = "", None
        self.rounds += 1
        self.taking_part.set()
        if len(self._unanswered) >= MAX_UNANSWERED:
            del self._unanswered[min(self._unanswered)]
        self._unanswered[header.round] = Asked(live, sheet, sealed.leaf)
        # The next round does not wait for an answer that was lost.
        self._tasks.create_task(self._submit(live, sealed))

    async def _submit(self, live: LiveRound, sealed: Sealed) -> None:
        number, rule = live.header.header.round, ""
        where = submit_topic(live.tree.nodes[sealed.leaf].peer, self._set.identity.peer)
        try:
            raw = await self._submit_channel.ask(where, sealed.envelope)
            Answer.decode(raw).content_or_raise("the aggregator")
        except (Refused, WireFormatError) as error:
            rule = error.rule
            log.warning("round %d: %s", number, error)
        except EngineError as error:
            if isinstance(error, Denied):
                self._presenter.lost()
            log.warning("round %d: the aggregator does not answer: %s", number, error)
            return
        if self._unanswered.pop(number, None) is not None and rule:
            self._rules[number] = rule

    async def _keep_key(self, epoch: int) -> None:
        if epoch <= self._posted:
            return
        key = self._core.epoch_key(epoch, self._set.clock())
        try:
            await self._ask_any(Ask.EPOCH_KEY, key.encode())
        except (EngineError, Protocol) as error:
            log.warning("no key for epoch %d yet: %s", epoch, error)
        else:
            self._posted = epoch

    async def _end_of(self, header: Header) -> None:
        """What the next header says of the rounds that this client has sealed."""
        sealed = self._sealed
        if sealed is None or sealed.round >= header.round:
            return
        previous = header.previous_record
        if previous != sealed.previous_record:
            # There is a new record: what that says must be known before this round is sealed.
            try:
                async with asyncio.timeout(self._set.config.window.fold_deadline_ms / 2000):
                    async with self._changed:
                        await self._changed.wait_for(lambda: previous in self._read_records)
            except TimeoutError:
                return
        # All records so far have been read: rounds that are open still have none.
        # Asked whether or not a message was in them: who asks must not show who talks.
        for number in sorted(number for number in self._headers if number < header.round):
            exposed = await self._may_be_exposed(self._headers.pop(number))
            self._tell(number, self._core.ended(number, aggregated=exposed))
        for number in sorted(self._unanswered):
            if number < header.round:
                self._tell(number, ())

    async def _may_be_exposed(self, sealed: Header) -> bool:
        """Whether a message of a round without a record counts as read.

        It does unless every server of its header signs that there was no aggregate. One that lies,
        or a bus that does, would make its author send it again.
        """
        request = Request(Ask.OUTCOME, sealed.round.to_bytes(8, "big")).encode()
        for server in sealed.servers:
            try:
                raw = await self._register_channel.ask(server_topic(server), request)
                content = Answer.decode(raw).content_or_raise("server")
            except ZipnetError:
                return True
            ending, signature = content[:1], content[1:]
            peer = self._view.servers.get(server, b"")
            if ending not in (bytes([Ending.UNSIGNED]), bytes([Ending.NO_AGGREGATE])):
                return True
            if not sealed.instance.has_signed(peer, signature, OUTCOME, sealed.round, ending):
                return True
        return False

    async def _read(self, last: int) -> None:
        async for entry in self._lookout.records.read(after=last):
            try:
                signed = SignedRecord.decode(entry.data)
                outcomes = self._core.final(signed)
            except ZipnetError as error:
                log.debug("entry %d of the broadcasts is no record: %s", entry.seq, error)
                continue
            self._headers.pop(signed.record.header.round, None)
            self._tell(signed.record.header.round, outcomes)
            async with self._changed:
                self._read_records.append(signed.record.hash)
                self._changed.notify_all()

    def _tell(self, round_number: int, outcomes: Settled) -> None:
        rule = self._rules.pop(round_number, "")
        asked = self._unanswered.pop(round_number, None)
        if asked is None:
            self._settle(round_number, outcomes, rule)
            return
        late = [one for one in outcomes if one[1] in UNEXPLAINED]
        self._settle(round_number, [one for one in outcomes if one[1] not in UNEXPLAINED], "")
        # Also without a message: whoever looks shows that an answer was lost, not that it talked.
        self._tasks.create_task(self._explain(asked, late))

    async def _explain(self, asked: Asked, late: Settled) -> None:
        self._settle(asked.live.header.header.round, late, await self._receipt(asked))

    def _settle(self, round_number: int, outcomes: Settled, rule: str) -> None:
        for message, outcome in outcomes:
            future = self._waiting.pop(message.number, None)
            refused = outcome is Outcome.LATE and rule not in NOT_REFUSED
            if future is not None and not future.done():
                word = "refused" if refused else outcome.value
                future.set_result(Told(word, round_number, rule))

    async def _receipt(self, asked: Asked) -> str:
        return await receipt_rule(asked, self._receipts, self._core, self._set.config.window)

    def _now(self) -> datetime:
        return datetime.fromtimestamp(self._set.clock() / 1000, UTC)
