"""A server's opinions: which clients it vouches for, which servers it signs headers with."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Awaitable, Callable
from datetime import datetime

from attestation.allowlist import AllowList
from attestation.bundle import Bundle, Role
from attestation.errors import AttestationError, CollateralUnavailable
from attestation.ticket import Beacons, Challenge
from zipnet.committee import bodies
from zipnet.committee.events import Applied
from zipnet.committee.policy import accepted_list
from zipnet.committee.state import Client, State
from zipnet.committee.views import beacons
from zipnet.errors import EngineError, Refused, ZipnetError
from zipnet.network.base import Blobs, Channel
from zipnet.network.public import Answer, Ask, Request, server_topic
from zipnet.protocol.codec import Reader
from zipnet.roles.admission import TICKET_LIFE, Admission, platform
from zipnet.roles.identity import Draw

# How many tickets are judged before the vouchers are appended.
BATCH = 64
# After this many seconds a refused client is looked at again, and before this many a voucher ends.
AGAIN_S = 30
EARLY_S = 60

log = logging.getLogger("zipnet.server")


class Judge:
    """Validates tickets, and has the server say what came of it.

    `proven` has the ids of servers that have shown a good ticket, with the numbers of the lists
    under which it is good; `reasons` why others have not. `noted` makes `run` look again at once.
    """

    def __init__(
        self,
        admission: Admission,
        state: Callable[[], State],
        own_id: bytes,
        *,
        channel: Channel,
        blobs: Blobs,
        draw: Draw,
        now: Callable[[], datetime],
        say: Callable[[bodies.Body], Awaitable[Applied]],
        proved: Callable[[], None],
    ) -> None:
        self.proven: dict[bytes, frozenset[int]] = {}
        self.reasons: dict[bytes, str] = {}
        self.noted = asyncio.Event()
        self._admission = admission
        self._state = state
        self._id = own_id
        self._channel = channel
        self._blobs = blobs
        self._draw = draw
        self._now = now
        self._say = say
        self._proved = proved
        self._lists: dict[bytes, AllowList] = {}
        # Registration, number of the list, and until when there is nothing to say about it.
        self._judged: dict[bytes, tuple[bytes, int, int]] = {}
        # Peers of servers: the lists under which they were judged, and until when that counts.
        self._trusted: dict[bytes, tuple[frozenset[int], float]] = {}

    async def run(self) -> None:
        """Validate clients and servers, and say so; again when a list or a ticket asks for it."""
        while True:
            accepted = self._accepted()
            if accepted:
                await self._judge_servers(accepted)
                await self._judge_clients(accepted[0])
            self.noted.clear()
            try:
                async with asyncio.timeout(1.0):
                    await self.noted.wait()
            except TimeoutError:
                continue

    def _accepted(self) -> list[AllowList]:
        """The list in force, then those that will be: servers are judged before the change."""
        state = self._state()
        entries = [state.allow_list, *state.pending_lists] if state.allow_list else []
        known = self._lists
        self._lists = {e.digest: known.get(e.digest) or accepted_list(e) for e in entries if e}
        return list(self._lists.values())

    async def _judge_servers(self, accepted: list[AllowList]) -> None:
        """Let every other server prove itself; headers with one that can't are not signed."""
        now = self._now().timestamp()
        numbers = frozenset(one.number for one in accepted)
        for server in list(self._state().servers.values()):
            known = self._trusted.get(server.peer)
            if server.id == self._id or (known and numbers <= known[0] and now < known[1]):
                continue
            challenge = self._draw(32)
            try:
                raw = await self._channel.ask(
                    server_topic(server.id), Request(Ask.PROVE, challenge).encode()
                )
                content = Answer.decode(raw).content_or_raise(f"server {server.id.hex()[:16]}")
                bundle = Bundle.decode(content)
                if bundle.ticket.peer_id != server.peer:
                    raise Refused("another peer answers for the server", rule="peer")
                fresh = Challenge(challenge)
                await self._admission.prepare(bundle, Role.SERVER)
                expiry = self._admission.validate(
                    bundle, Role.SERVER, accepted[0], fresh, self._now()
                )
            except (AttestationError, ZipnetError) as error:
                self._trusted.pop(server.peer, None)
                self.proven.pop(server.id, None)
                if self.reasons.get(server.id) != error.rule:
                    log.warning("server %s: %s", server.id.hex()[:16], error.diagnostics())
                self.reasons[server.id] = error.rule
                continue
            self.reasons.pop(server.id, None)
            good = {accepted[0].number}
            for later in accepted[1:]:
                with contextlib.suppress(AttestationError):
                    self._admission.validate(bundle, Role.SERVER, later, fresh, self._now())
                    good.add(later.number)
            end = min(expiry.at.timestamp(), now + TICKET_LIFE / 2)
            self._trusted[server.peer] = numbers, end
            self.proven[server.id] = frozenset(good)
            self._proved()

    async def _judge_clients(self, accepted: AllowList) -> None:
        """Vouch for, or refuse, every registration that this server has no opinion on."""
        vouchers = []
        now = int(self._now().timestamp())
        for client in list(self._state().clients.values()):
            known = self._judged.get(client.id)
            if known and known[:2] == (client.registration, accepted.number) and now < known[2]:
                continue
            verdict = await self._opinion(client, accepted)
            if isinstance(verdict, str):
                self._judged[client.id] = client.registration, accepted.number, now + AGAIN_S
                if client.refusals.get(self._id) != verdict:
                    await self._say(bodies.Refuse(client.id, verdict))
            elif verdict is not None:
                end = verdict.not_after
                again = end - EARLY_S if now < end - EARLY_S else end
                self._judged[client.id] = client.registration, accepted.number, again
                before = client.vouchers.get(self._id)
                said = (client.registration, end)
                if before is None or (before.registration, before.not_after) != said:
                    vouchers.append(verdict)
            if len(vouchers) >= BATCH:
                await self._say(bodies.Vouch(tuple(vouchers)))
                vouchers = []
            await asyncio.sleep(0)
        if vouchers:
            await self._say(bodies.Vouch(tuple(vouchers)))

    async def _opinion(self, client: Client, accepted: AllowList) -> bodies.Voucher | str | None:
        """A voucher, the rule that the client breaks, or None if its bundle can't be had now."""
        try:
            raw = await self._blobs.get(client.registration)
        except EngineError:
            return None
        # A registration and a renewal both begin with the bundle.
        reader = Reader(raw, "registration", at_most=len(raw))
        bundle = Bundle.decode(reader.sized(2, bodies.MAX_BUNDLE))
        before = client.vouchers.get(self._id)
        try:
            # Who was let in with a beacon of then stays until the ticket ends.
            again = before is not None and before.registration == client.registration
            fresh = {bundle.ticket.fresh} if again else beacons(self._state())
            await self._admission.prepare(bundle, Role.CLIENT)
            expiry = self._admission.validate(
                bundle, Role.CLIENT, accepted, Beacons(frozenset(fresh)), self._now()
            )
        except CollateralUnavailable as error:
            log.warning("client %s can't be judged: %s", client.id.hex()[:16], error.diagnostics())
            return None
        except AttestationError as error:
            log.info("client %s refused by rule %s", client.id.hex()[:16], error.rule)
            return (error.rule or "unnamed")[: bodies.MAX_RULE]
        end = int(expiry.at.timestamp())
        return bodies.Voucher(client.id, client.registration, end, platform(expiry))
