"""An aggregator on a network: takes envelopes or children's sums, hands one sum on.

It reads the live round, folds until the deadline of its tier, and submits: a leaf or inner node to
its parent, the root to the servers. Whoever submits to it gets an answer, with the rule if it was
refused. A leaf also leaves receipts of each round, for clients whose answer was lost; where it dies
before, there are none, and the record alone says who was in.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import secrets
from collections.abc import AsyncIterator

from zipnet.config import Config
from zipnet.errors import Lagged, Refused, Unavailable, ZipnetError
from zipnet.network.base import Channel, Message, Network, Table
from zipnet.network.places import Places
from zipnet.network.public import (
    Answer,
    Ask,
    LiveRound,
    Request,
    receipts_key,
    server_topic,
    submit_pattern,
    submit_topic,
)
from zipnet.protocol.aggregate import FIXED_BYTES, Aggregate
from zipnet.protocol.envelope import HEADER_AT, ROUND_AT, envelope_bytes
from zipnet.protocol.fold import payload_xor
from zipnet.protocol.instance import Instance
from zipnet.protocol.receipts import join
from zipnet.protocol.roster import bitmap_bytes
from zipnet.protocol.sheet import Sheet
from zipnet.roles.aggregator_core import AggregatorCore, Receipts
from zipnet.roles.identity import Draw, Identity

MAX_PENDING = 256 << 20
RECEIPTS_TTL = 3600
# How many receipts are sealed before other tasks get a turn.
CHUNK = 16

log = logging.getLogger("zipnet.aggregator")


class AggregatorRole:
    """One node of the tree; `refused` counts refusals by rule.

    Submissions that wait may have `max_pending` bytes; what is over that is lost, and late.
    """

    def __init__(
        self,
        network: Network,
        config: Config,
        instance: Instance,
        identity: Identity,
        *,
        draw: Draw = secrets.token_bytes,
        max_pending: int = MAX_PENDING,
    ) -> None:
        window = config.window
        self.refused: dict[str, int] = {}
        self.rounds = 0
        self._network = network
        self._config = config
        self._instance = instance
        self._identity = identity
        limit = window.epoch_rounds * 2 * window.max_clients
        self._core = AggregatorCore(identity, payload_xor(), limit)
        self._places = Places.of(instance.deployment_id)
        self._round = 0
        self._core_changed = asyncio.Event()
        self._draw = draw
        self._max_pending = max_pending
        self._told = 0  # the last round whose receipts are made
        self._early: list[Message] = []  # from those that saw the live header before this node

    async def run(self) -> None:
        """Fold round after round. Raises what stops this node."""
        live = await self._network.table(self._places.live)
        self._receipts: Table = await self._network.table(self._places.receipts)
        self._blobs = await self._network.blobs(self._places.blobs)
        self._servers: Channel = self._network.channel(self._places.register)
        self._nodes: Channel = self._network.channel(self._places.submit)
        mine = submit_pattern(self._identity.peer)
        async with (
            self._nodes.listen(mine, max_bytes=self._max_pending) as submissions,
            asyncio.TaskGroup() as tasks,
        ):
            self._tasks = tasks
            tasks.create_task(self._take(submissions))
            async for item in live.watch("live"):
                if item.key != "live" or item.value is None:
                    continue
                try:
                    await self._fold(LiveRound.decode(item.value))
                except ZipnetError as error:
                    if isinstance(error, Unavailable) and error.rule == "closed":
                        raise
                    log.warning("a round is left out: %s", error)

    async def _fold(self, live: LiveRound) -> None:
        header = live.header.header
        if header.instance != self._instance or header.round <= self._round:
            return
        sheet = Sheet.decode(await self._blobs.get(live.sheet))
        self._tell()
        try:
            self._core.begin(live.header, sheet, live.tree)
        except Refused as error:
            log.info("not in the tree of round %d: %s", header.round, error)
            return
        self._round = header.round
        early, self._early = self._early, []
        for message in early:
            await self._answer(message)
        part = self._part(live)
        window = self._config.window
        # Tiers close one after the other, the root last and within the fold deadline.
        await self._wait_for_all(window.fold_deadline_ms / 1000 * part)
        aggregate = self._core.close()
        self.rounds += 1
        log.info("round %d: %d of %d clients", header.round, aggregate.count(), aggregate.clients)
        await self._hand_on(live, aggregate)
        # What comes a little late is still in the receipts; the next round does not wait for it.
        self._tasks.create_task(self._tell_later(header.round, window.fold_deadline_ms / 2000))

    def _part(self, live: LiveRound) -> float:
        """The part of the fold deadline after which this node closes: 1 for the root."""
        nodes = live.tree.nodes
        at = next(i for i, node in enumerate(nodes) if node.peer == self._identity.peer)
        depth = 0
        while at:
            at, depth = nodes[at].parent, depth + 1
        return 1 / (1 + depth)

    async def _wait_for_all(self, seconds: float) -> None:
        """Until everybody is in, or the time is over."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                while not self._core.complete:
                    await self._core_changed.wait()
                    self._core_changed.clear()

    async def _hand_on(self, live: LiveRound, aggregate: Aggregate) -> None:
        nodes = live.tree.nodes
        at = next(i for i, node in enumerate(nodes) if node.peer == self._identity.peer)
        if at:
            where = submit_topic(nodes[nodes[at].parent].peer, self._identity.peer)
            await self._ask(self._nodes, where, aggregate.encode())
            return
        request = Request(Ask.AGGREGATE, aggregate.encode()).encode()
        for server in live.header.header.servers:
            if await self._ask(self._servers, server_topic(server), request):
                return

    async def _tell_later(self, round_number: int, seconds: float) -> None:
        await asyncio.sleep(seconds)
        if self._round == round_number:
            self._tell()

    def _tell(self) -> None:
        """Make the receipts of the round that was folded last, once."""
        if self._told >= self._round:
            return
        self._told = self._round
        receipts = self._core.receipts()
        if receipts is not None:
            self._tasks.create_task(self._put_receipts(receipts))

    async def _put_receipts(self, receipts: Receipts) -> None:
        entries = []
        for place in range(len(receipts.due)):
            entries.append(receipts.seal(place, self._draw))
            if place % CHUNK == CHUNK - 1:
                await asyncio.sleep(0)
        key = receipts_key(receipts.header.round, receipts.node)
        try:
            await self._receipts.put(key, join(entries), ttl=RECEIPTS_TTL)
        except ZipnetError as error:
            log.warning("round %d has no receipts: %s", receipts.header.round, error)

    async def _ask(self, channel: Channel, where: str, data: bytes) -> bool:
        try:
            Answer.decode(await channel.ask(where, data)).content_or_raise(where)
        except ZipnetError as error:
            log.warning("%s did not take the sum: %s", where, error)
            return False
        return True

    async def _take(self, submissions: AsyncIterator[Message]) -> None:
        while True:
            try:
                async for message in submissions:
                    if self._is_early(message.data):
                        self._early.append(message)
                    else:
                        await self._answer(message)
            except Lagged as error:
                self._core.lose()
                log.warning("submissions were lost: %s", error)

    def _is_early(self, data: bytes) -> bool:
        """Whether this is for a later round, and there is room to keep it for that.

        Envelopes and aggregates begin alike. A child may have seen the live header first.
        """
        shape, clients = self._config.shape, self._config.window.max_clients
        sum_bytes = FIXED_BYTES + bitmap_bytes(clients) + shape.payload_bytes
        size = max(envelope_bytes(shape), sum_bytes)
        number = int.from_bytes(data[ROUND_AT:HEADER_AT], "big")
        room = len(self._early) < self._max_pending // size
        return HEADER_AT <= len(data) <= size and number > self._round and room

    async def _answer(self, message: Message) -> None:
        answer = Answer()
        try:
            if self._core.leaf:
                self._core.absorb(message.data)
            else:
                aggregate = Aggregate.decode(message.data, self._config.shape)
                self._core.absorb_child(aggregate)
            self._core_changed.set()
        except ZipnetError as error:
            self.refused[error.rule] = self.refused.get(error.rule, 0) + 1
            answer = Answer.refusal(error)
        if message.reply is not None:
            with contextlib.suppress(Unavailable):
                await message.reply(answer.encode())
