"""Whose server signed: told by the operator's endorsement on its card.

A card stays in the registry after its server has gone, so old records can be checked as well. One
server of each operator must have signed, of some set of operators that there has been; the sets
come in their order.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from zipnet.config import Config
from zipnet.errors import ConnectTimeout, Refused
from zipnet.ids import server_id
from zipnet.network.public import Card, card_key
from zipnet.operators import Endorsement, OperatorSet
from zipnet.protocol.header import Header

if TYPE_CHECKING:
    from zipnet.roles.committee_view import Lookout

POLL = 0.1


class Seats:
    """Who may sign for a deployment. `waived` are operators' keys that need not be there."""

    def __init__(self, lookout: Lookout, config: Config, waived: frozenset[bytes]) -> None:
        self._lookout = lookout
        self._config = config
        self._waived = waived
        self._sets: tuple[OperatorSet, ...] = (OperatorSet.genesis(config),)
        self._at = 0  # place of the set that signed last
        self._known: tuple[tuple[bytes, tuple[bytes, ...]], dict[bytes, bytes]] | None = None

    async def wait(self, seconds: float) -> None:
        """Return when a server of each operator has said that it is there. Raises ConnectTimeout.

        Nothing more is checked: it tells a wrong configuration from a committee that is silent.
        """
        missing = "anybody"
        try:
            async with asyncio.timeout(seconds):
                while True:
                    self._sets = await self._lookout.history()
                    names = await self._lookout.absent(self._sets[-1])
                    if not names:
                        return
                    missing = ", ".join(names)
                    await asyncio.sleep(POLL)
        except TimeoutError:
            last = ConnectTimeout("servers are missing", expected=missing, got="none")
            raise await self._lookout.nobody(last) from None

    async def peers(self, header: Header) -> dict[bytes, bytes]:
        """The peer keys of the header's servers. Raises Refused, EngineError."""
        if header.instance.deployment_id != self._sets[0].digest:
            raise Refused(
                "the header is of another deployment",
                expected=self._sets[0].digest.hex(),
                got=header.instance.deployment_id.hex(),
                rule="header.deployment",
            )
        if header.shape != self._config.shape:
            raise Refused("the header has other sizes than this deployment", rule="header.shape")
        key = (header.instance.generation, header.servers)
        if self._known is None or self._known[0] != key:
            cards = [await self._card(header, server) for server in header.servers]
            by_operator = {card.operator: card.peer for card in cards}
            if len(by_operator) != len(cards) or not await self._complete(by_operator):
                raise Refused(
                    "the servers are not one of each operator",
                    expected=" and ".join(one.name for one in self._sets[-1].operators),
                    got=f"servers of {len(by_operator)} operators",
                    rule="header.operators",
                )
            self._known = key, {server_id(card.dh_pub): card.peer for card in cards}
        return self._known[1]

    async def _card(self, header: Header, server: bytes) -> Endorsement:
        item = await self._lookout.cards.get(card_key(header.instance, server))
        if item is None or item.value is None:
            raise Refused(
                "a server of the header has no card in the registry",
                got=server.hex()[:16],
                rule="header.unknown-server",
                hint="without its operator's endorsement nobody knows whose server it was; read "
                "from a later round",
            )
        endorsement = Card.decode(item.value).endorsement
        if server_id(endorsement.dh_pub) != server:
            raise Refused("the card is of another server", rule="header.unknown-server")
        endorsement.verify(header.instance)
        return endorsement

    async def _complete(self, operators: dict[bytes, bytes]) -> bool:
        """Whether these are all operators, but for waived ones, of one set that there was."""
        for refreshed in (False, True):
            if refreshed:
                self._sets = await self._lookout.history()
            for at in range(self._at, len(self._sets)):
                everyone = set(self._sets[at].keys)
                if everyone - self._waived <= operators.keys() <= everyone:
                    self._at = at
                    return True
        return False
