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
from collections.abc import Sequence
from datetime import UTC, datetime

from zipnet.committee.state import Ending
from zipnet.errors import (
    Attestation,
    ConnectTimeout,
    Denied,
    EngineError,
    GuardRefused,
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
    LiveRound,
    Request,
    server_topic,
    submit_topic,
)
from zipnet.protocol.header import Header
from zipnet.protocol.record import SignedRecord
from zipnet.protocol.sheet import Sheet
from zipnet.protocol.speaker import Message, Outcome
from zipnet.roles.client_core import ClientCore, Sealed
from zipnet.roles.client_settings import ClientSettings
from zipnet.roles.committee_view import Lookout
from zipnet.roles.registering import Place
from zipnet.roles.unanswered import NOT_REFUSED, Asked, Told, receipt_rule

__all__ = ["ClientRole", "ClientSettings", "fenced"]

log = logging.getLogger("zipnet.client")

MAX_UNANSWERED = 16
UNEXPLAINED = (Outcome.LATE, Outcome.UNPUBLISHED)
# What a client meets whose place another copy of it has taken; also one that waits for its place.
DISPLACED = ("header.absent", "header.client-key")

Settled = Sequence[tuple[Message, Outcome]]


class ClientRole:
    """One client. `run` returns only by an error or by cancellation.

    `refusal` is the last reason why this client did not take part, empty if it does.
    """

    def __init__(self, network: Network, lookout: Lookout, settings: ClientSettings) -> None:
        self._network = network
        self._lookout = lookout
        self._set = settings
        self._core: ClientCore
        self._place: Place
        self._placed = False
        self._waiting: dict[int, asyncio.Future[Told]] = {}
        self._rules: dict[int, str] = {}
        self._unanswered: dict[int, Asked] = {}
        self._tasks: asyncio.TaskGroup
        self._sealed: Header | None = None
        self._epoch = settings.keyring.epoch if settings.keyring else 0
        self._ready = asyncio.Event()
        self._over = False
        self._heard_ms = settings.clock()
        self._headers: dict[int, Header] = {}  # of sealed rounds whose end is not known
        self._read_records: deque[bytes] = deque(maxlen=64)  # hashes
        self._changed = asyncio.Condition()
        self._barred: Attestation | None = None
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
            view = await self._lookout.find(self._now, self._set.connect_s)
            self._instance = view.instance
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
                keyring=self._set.keyring,
                restarted=self._set.keyring is not None,
                share=self._set.share,
                budget=self._set.budget,
            )
            self._place = Place(
                self._network, self._lookout, self._set, self._core, view, self._bar
            )
            self._placed = True
            self._submit_channel = self._network.channel(self._lookout.places.submit)
            self._receipts: Table = await self._network.table(self._lookout.places.receipts)
            _, last = await self._lookout.records.bounds()
            await self._place.enter()
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

    async def retire(self) -> None:
        """Take the registration back, after the end of `run`: no round counts on this client.

        Not that of a client whose pairs are sealed, as it may come back within the epoch. Raises
        Protocol, EngineError.
        """
        if self._placed and not self._set.sealed:
            await self._place.retire()

    async def _stay(self) -> None:
        """Look how the log sees this client; a refusal by a server is what `refusal` says."""
        window = self._set.config.window
        while True:
            try:
                await self._place.stay(silent=self._silence_ms() > window.round_deadline_ms)
            except Attestation as error:
                self._bar(error)
            except ConnectTimeout as error:
                log.info("%s", error)
            except (EngineError, Protocol) as error:
                log.warning("%s", error)
            await asyncio.sleep(window.round_period_ms / 1000)

    def _silence_ms(self) -> int:
        """How long ago the last live round was seen."""
        return self._set.clock() - self._heard_ms

    def _refused(self, rule: str, what: str) -> None:
        if rule != self.refusal:
            log.warning("%s by rule %s", what, rule)
            if rule in DISPLACED:
                self._set.doubted()
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
        """Seal each live round. Raises Shutdown once another copy of this client has taken over."""
        async for item in self._lookout.live.watch("live"):
            if item.key != "live" or item.value is None:
                continue
            try:
                await self._seal_one(LiveRound.decode(item.value))
            except Attestation as error:
                self._bar(error)
            except ZipnetError as error:
                if self._core.fenced:
                    raise fenced(str(error)) from error
                if isinstance(error, GuardRefused) and error.rule == "fenced":
                    log.info("waiting for a round that has this client's own Resume")
                else:
                    self._refused(error.rule, str(error))

    async def _seal_one(self, live: LiveRound) -> None:
        header = live.header.header
        if header.instance != self._instance:
            return  # once all servers are in that generation, this client ends
        self._heard_ms = self._set.clock()
        if self._sealed is not None and header.round <= self._sealed.round:
            return  # each server of the committee publishes it
        sheet = Sheet.decode(await self._lookout.blobs.get(live.sheet))
        missed = self._place.view.misses(header, sheet, self._set.waived)
        if missed or self._unchecked(header, sheet) or self._now() >= self._place.view.expires:
            # Servers say one after the other which list is in force.
            seconds = self._set.config.window.fold_deadline_ms / 2000
            await self._place.find(seconds)
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
            await self._place.keep_key(header.epoch + 1)

    def _unchecked(self, header: Header, sheet: Sheet) -> str:
        """What of the header this client has no reason to trust; empty if nothing.

        An endorsement says whose server it is, only the ticket under this list which code it runs.
        """
        if header.list_hash != self._place.view.accepted.digest:
            return f"list {header.list_number}"
        peers = {entry.key.member: entry.endorsement.peer for entry in sheet.servers}
        for server in header.servers:
            if server not in peers or self._place.view.servers.get(server) != peers[server]:
                return f"server {server.hex()[:16]}"
        return ""

    async def _seal_in_time(self, live: LiveRound, sheet: Sheet) -> None:
        header = live.header.header
        sealed = self._core.seal(live.header, sheet, live.tree, self._place.view.operators)
        self._sealed = header
        if header.epoch != self._epoch:
            self._epoch = header.epoch
            self._set.opened(self._core.keyring, self._place.view)
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
                self._place.lost()
            log.warning("round %d: the aggregator does not answer: %s", number, error)
            return
        if self._unanswered.pop(number, None) is not None and rule:
            self._rules[number] = rule

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
                raw = await self._place.channel.ask(server_topic(server), request)
                content = Answer.decode(raw).content_or_raise("server")
            except ZipnetError:
                return True
            ending, signature = content[:1], content[1:]
            peer = self._place.view.servers.get(server, b"")
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


def fenced(got: str) -> Shutdown:
    """What ends a client of which a later copy runs."""
    return Shutdown(
        "another copy of this client has started since, and takes its place",
        expected="one client under one identity",
        got=got,
        rule="fenced",
        hint="see where the other one runs; this one must not go on",
    )
