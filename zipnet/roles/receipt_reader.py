"""What a client's leaf says of its envelopes: the one entry of a round that only it can open.

A receipt explains why an envelope was late or refused; whether the client was in a round says only
the signed record.
"""

from __future__ import annotations

import asyncio
import logging
from collections import OrderedDict
from collections.abc import AsyncIterator
from dataclasses import dataclass

from zipnet.errors import Refused, ZipnetError
from zipnet.ids import client_id
from zipnet.network.base import Item, Table
from zipnet.network.public import LiveRound
from zipnet.protocol.envelope import leaf_keys
from zipnet.protocol.instance import MAX_ROUND, Instance
from zipnet.protocol.receipts import Receipt, find, open_receipt, receipt_tag
from zipnet.roles.committee_view import Lookout
from zipnet.roles.identity import Identity
from zipnet.roles.seats import Seats

# A leaf of an older tree may still publish for a round that was live under it.
LEAVES = 8

log = logging.getLogger("zipnet.receipts")


@dataclass(frozen=True, slots=True)
class _Leaf:
    instance: Instance
    peer: bytes
    dh_pub: bytes


class ReceiptReader:
    """The receipts of one client from now on, as (round, receipt). An async iterator without end.

    An entry that does not open is passed over: it is of another leaf, or no leaf wrote it.
    """

    def __init__(self, lookout: Lookout, seats: Seats, receipts: Table, identity: Identity) -> None:
        self._lookout = lookout
        self._seats = seats
        self._table = receipts
        self._identity = identity
        self._id = client_id(identity.dh_pub)
        self._leaves: OrderedDict[_Leaf, bytes] = OrderedDict()  # with the receipt key
        self._items: AsyncIterator[Item] = receipts.watch()
        self._last = 0

    def __aiter__(self) -> ReceiptReader:
        return self

    async def __anext__(self) -> tuple[int, Receipt]:
        async for item in self._items:
            number = _round_of(item.key)
            if item.value is None or number <= self._last:
                continue
            await self._look()
            found = await asyncio.to_thread(self._open, number, item.value)
            if found is not None:
                self._last = number
                return number, found
        raise StopAsyncIteration

    async def _look(self) -> None:
        """Learn this client's leaf from the live round, if servers signed for it."""
        item = await self._lookout.live.get("live")
        if item is None or item.value is None:
            return
        try:
            live = LiveRound.decode(item.value)
            header = live.header.header
            if live.tree.hash() != header.tree_hash:
                raise Refused("the tree is not that of the header", rule="header.tree")
            live.header.verify(await self._seats.peers(header))
            node = live.tree.nodes[live.tree.leaf_for(self._id)]
            leaf = _Leaf(header.instance, node.peer, node.dh_pub)
            if leaf not in self._leaves:
                own = self._identity.dh
                keys = leaf_keys(own, leaf.dh_pub, leaf.instance, self._id, leaf.dh_pub)
                self._leaves[leaf] = keys.receipt
        except ZipnetError as error:
            log.debug("no live round to be believed: %s", error)
        while len(self._leaves) > LEAVES:
            self._leaves.popitem(last=False)

    def _open(self, number: int, blob: bytes) -> Receipt | None:
        for leaf, key in reversed(self._leaves.items()):
            entry = find(blob, receipt_tag(key, number))
            if entry is None:
                continue
            try:
                return open_receipt(
                    entry, leaf.instance, number, self._id, self._identity.dh, leaf.peer
                )
            except ZipnetError as error:
                log.debug("a receipt of round %d does not open: %s", number, error)
        return None


def _round_of(key: str) -> int:
    """The round that leads a key; 0 for a key of another form."""
    head = key.partition("/")[0]
    number = int(head) if head.isascii() and head.isdigit() and len(head) < 20 else 0
    return number if number <= MAX_ROUND else 0
