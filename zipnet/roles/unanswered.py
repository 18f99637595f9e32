"""What is told of a message, and of envelopes whose answer was lost by the leaf's receipt."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from dataclasses import dataclass

from zipnet.config import ShuffleWindow
from zipnet.errors import EngineError, ZipnetError
from zipnet.network.base import Table
from zipnet.network.public import LiveRound, receipts_key
from zipnet.protocol.receipts import Receipt, Status
from zipnet.protocol.sheet import Sheet
from zipnet.roles.client_core import ClientCore

log = logging.getLogger("zipnet.client")

# Why a message is late, if its envelope was not refused for what it is: it came after the deadline,
# the leaf took it but it got lost above, the leaf never had it, or is dead and left no receipts.
LATE, TAKEN, ABSENT = "envelope.late", "receipt.taken", "receipt.absent"
NO_RECEIPT = "receipt.none"
NOT_REFUSED = frozenset({"", LATE, TAKEN, ABSENT, NO_RECEIPT})

_RULES = {Status.LATE: LATE, Status.TAKEN: TAKEN, Status.ABSENT: ABSENT}


@dataclass(frozen=True, slots=True)
class Told:
    """What became of a message: its outcome, the round, and the rule if it was refused or late."""

    outcome: str
    round: int
    rule: str = ""


@dataclass(frozen=True, slots=True)
class Asked:
    """An envelope under way: to which leaf of which round."""

    live: LiveRound
    sheet: Sheet
    leaf: int

    @property
    def clients(self) -> int:
        """How many clients the leaf has."""
        tree = self.live.tree
        return sum(tree.leaf_for(one.member.id) == self.leaf for one in self.sheet.clients)


def rule_of(receipt: Receipt) -> str:
    """The rule in a receipt, or what stands for its status."""
    return receipt.rule or _RULES[receipt.status]


async def receipt_rule(
    asked: Asked, receipts: Table, core: ClientCore, window: ShuffleWindow
) -> str:
    """Why an envelope whose answer was lost is not in, as its leaf says."""
    number = asked.live.header.header.round
    key = receipts_key(number, asked.leaf)
    leaf, clients = asked.live.tree.nodes[asked.leaf], asked.clients
    # A leaf makes them half a deadline after its sum, or when the next round begins.
    seconds = (window.fold_deadline_ms + window.round_period_ms) / 1000
    with contextlib.suppress(TimeoutError, EngineError):
        async with asyncio.timeout(seconds):
            async for item in receipts.watch(key):
                if item.key != key or item.value is None:
                    continue
                try:
                    receipt = core.receipt(item.value, number, leaf, clients)
                except ZipnetError as error:  # anybody on the bus may write there
                    log.warning("round %d: no receipts of its leaf: %s", number, error)
                    continue
                if receipt is None:
                    continue
                return rule_of(receipt)
    return NO_RECEIPT
