"""Envelopes whose answer was lost, and what the leaf's receipt says of them instead."""

from __future__ import annotations

from dataclasses import dataclass

from zipnet.network.public import LiveRound
from zipnet.protocol.receipts import Receipt, Status
from zipnet.protocol.sheet import Sheet

# Why a message is late, if its envelope was not refused for what it is: it came after the deadline,
# the leaf took it but it got lost above, the leaf never had it, or is dead and left no receipts.
LATE, TAKEN, ABSENT = "envelope.late", "receipt.taken", "receipt.absent"
NO_RECEIPT = "receipt.none"
NOT_REFUSED = frozenset({"", LATE, TAKEN, ABSENT, NO_RECEIPT})

_RULES = {Status.LATE: LATE, Status.TAKEN: TAKEN, Status.ABSENT: ABSENT}


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
