"""Showing tickets to whoever guards the bus, and hearing why one is refused.

A guarded bus refuses without a reason, and lets nobody in for long. A client that is refused stays
a guest, who may ask: the servers say what they hold against its ticket.
"""

from __future__ import annotations

import logging
from collections.abc import Callable

from zipnet.errors import Attestation, Denied, EngineError, Refused, WireFormatError
from zipnet.network.base import Channel, Network
from zipnet.network.public import Answer, Ask, Request, server_topic
from zipnet.roles.committee_view import CommitteeView

# A door lets in for ten minutes; who was refused may be listed by now.
AGAIN_MS = 300_000
RETRY_MS = 5_000

log = logging.getLogger("zipnet.client")


class Presenter:
    """Where a client stands with the bus. `clock` gives milliseconds."""

    def __init__(self, network: Network, clock: Callable[[], int]) -> None:
        self._network = network
        self._clock = clock
        self._again_ms = 0

    @property
    def due(self) -> bool:
        """Whether a new ticket should be shown now."""
        return self._clock() >= self._again_ms

    def lost(self) -> None:
        """The bus did not let this client submit."""
        self._again_ms = min(self._again_ms, self._clock() + RETRY_MS)

    async def show(
        self, bundle: bytes, channel: Channel, view: CommitteeView
    ) -> Attestation | None:
        """Show a bundle; why it is refused, None if it is not, or if the bus does not answer.

        Servers are asked over `channel`.
        """
        self._again_ms = self._clock() + RETRY_MS
        try:
            await self._network.present(bundle)
        except Denied as error:
            reason = await why(bundle, channel, view)
            return reason or Attestation(
                "the bus does not let this client in, and no server says why",
                expected="a ticket that all servers accept",
                got=error.got,
                rule=error.rule,
                hint="another operator's node may: it is tried again",
            )
        except EngineError as error:
            log.warning("the bus was shown no ticket: %s", error)
            return None
        self._again_ms = self._clock() + AGAIN_MS
        return None


async def why(bundle: bytes, channel: Channel, view: CommitteeView) -> Attestation | None:
    """What the first server that refuses this bundle says of it; None if all that answer take it.

    Each operator's node admits by the verdict of its own server.
    """
    request = Request(Ask.ADMISSION, bundle).encode()
    for server in view.servers:
        try:
            raw = await channel.ask(server_topic(server), request)
            Answer.decode(raw).content_or_raise("it")
        except Refused as error:
            return view.turned_away(server, error.rule, error.message)
        except (EngineError, WireFormatError) as error:
            log.info(
                "server %s does not say whether it takes this client: %s", server.hex()[:16], error
            )
    return None
