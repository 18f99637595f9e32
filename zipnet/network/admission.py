"""The door of the bus: a server answers whom its own nats-server lets in, and throws out later.

Every operator's node asks its own server, by an issuer of its own (`BusKeys`), so that each admits
by its own verdict and no secret is shared. Admissions end with the ticket, and after `LIFE_S` in
any case; those whose ticket a new list no longer accepts are disconnected at once.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import ssl
from collections.abc import Callable
from dataclasses import dataclass

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from attestation.bundle import Bundle
from attestation.errors import AttestationError
from zipnet.errors import Denied, EngineError, Refused, Unavailable, ZipnetError
from zipnet.ids import UniqueId
from zipnet.network._nats_wire import Credentials, Raw, Wire
from zipnet.network.bus_keys import BusKeys
from zipnet.network.callout import ASKED, Admitted, ConnectRequest, accept, refuse
from zipnet.network.nkeys import Kind, public_of
from zipnet.network.rights import EDGE, GUEST, BusNames
from zipnet.roles.gate import Gate

LIFE_S = 600
CONNECT_S = 5.0
RETRY_S = 1.0
LOOK_S = 0.5
PING_S, PINGS = 5.0, 2
KICKED = "_INBOX.kicked"
# Of one peer's connections, so many are remembered to be ended; older ones end by themselves.
MAX_CONNECTIONS = 8
# A server waits 1.5 s for an answer, and one takes some milliseconds.
MAX_WAITING = 512

log = logging.getLogger("zipnet.door")


@dataclass(slots=True)
class Guest:
    """A client that was let in: its ticket, when that ends, and its connections to the server."""

    bundle: Bundle
    until: int
    server: str
    connections: list[int]


class Door:
    """Lets clients in as `gate` judges them, `capacity` of them at a time. `clock` gives Unix ms.

    `admitted` and `refused` count the answers, the latter by rule.
    """

    def __init__(
        self,
        gate: Gate,
        keys: BusKeys,
        deployment: UniqueId,
        clock: Callable[[], int],
        capacity: int,
    ) -> None:
        self.admitted = 0
        self.refused: dict[str, int] = {}
        self.open = asyncio.Event()
        self._gate = gate
        self._keys = keys
        self._issuer = keys.public["issuer"]
        self._names = BusNames.of(deployment)
        self._clock = clock
        self._capacity = capacity
        self._inside: dict[bytes, Guest] = {}

    def decide(self, raw: bytes, server: str) -> bytes | None:
        """The answer to a request that this server (its key as text) is to have signed.

        None if that is not for this door to answer: the request is altered, or another server's.
        """
        try:
            request = ConnectRequest.parse(raw, server, self._issuer)
        except ZipnetError as error:
            # Every responder of the account hears all requests; those of others are no news.
            level = logging.DEBUG if error.rule == "token.issuer" else logging.WARNING
            log.log(level, "a request is left unanswered: %s", error.diagnostics())
            return None
        now = self._clock() // 1000
        try:
            admitted = self._admit(request, now)
        except (AttestationError, ZipnetError) as error:
            rule = error.rule or type(error).__name__
            self.refused[rule] = self.refused.get(rule, 0) + 1
            log.info("%s is refused by rule %s: %s", request.host, rule, error)
            return refuse(request, f"{rule}: {error.message}", self._keys.issuer, now)
        self.admitted += 1
        return accept(request, admitted, self._keys.issuer, now)

    def _admit(self, request: ConnectRequest, now: int) -> Admitted:
        bundle = request.bundle()
        if bundle is None:
            return Admitted(EDGE, GUEST, self._names.guest())
        peer = bundle.ticket.peer_id
        known = self._inside.get(peer)
        again = known is not None and known.bundle == bundle
        end = int(self._gate.check(bundle, again=again).at.timestamp())
        self._make_room(peer, now)
        before = known.connections if known and known.server == request.server else []
        connections = [*before, request.cid][-MAX_CONNECTIONS:]
        self._inside[peer] = Guest(bundle, end, request.server, connections)
        rights = self._names.client(peer)
        return Admitted(EDGE, peer.hex()[:16], rights, min(end, now + LIFE_S))

    def _make_room(self, peer: bytes, now: int) -> None:
        if peer in self._inside or len(self._inside) < self._capacity:
            return
        self._inside = {one: guest for one, guest in self._inside.items() if guest.until > now}
        if len(self._inside) >= self._capacity:
            raise Refused(
                "too many clients at this node",
                expected=f"at most {self._capacity}",
                got="one more",
                rule="door.full",
                hint="try another operator's node, or again when tickets have ended",
            )

    async def stale(self) -> list[Guest]:
        """Forget, and return, those whom the list in force no longer accepts."""
        gone = []
        for at, (peer, guest) in enumerate(list(self._inside.items())):
            if at % 64 == 63:
                await asyncio.sleep(0)
            try:
                self._gate.check(guest.bundle, again=True)
            except (AttestationError, ZipnetError) as error:
                if self._inside.get(peer) is guest:
                    del self._inside[peer]
                gone.append(guest)
                log.info("client %s is to go by rule %s", peer.hex()[:16], error.rule)
        return gone

    async def run(self, url: str, tls: ssl.SSLContext | None = None) -> None:
        """Answer the server at `url`, this operator's own, for ever.

        Raises Denied if that does not know this door's keys, EngineMisconfigured; if it can't be
        reached, tries again.
        """
        while True:
            try:
                wire = await _connect(url, self._keys.responder, tls)
            except Unavailable as error:
                log.warning("the door can't be opened: %s", error)
            else:
                try:
                    await self._serve(wire, url, tls)
                finally:
                    self.open.clear()
                    await wire.drop()
                log.warning("the connection to %s is lost", url)
            await asyncio.sleep(RETRY_S)

    async def _serve(self, wire: Wire, url: str, tls: ssl.SSLContext | None) -> None:
        """Answer until the connection ends."""
        requests: asyncio.Queue[Raw] = asyncio.Queue(MAX_WAITING)

        def take(message: Raw) -> None:
            # One more would wait longer than its server does.
            with contextlib.suppress(asyncio.QueueFull):
                requests.put_nowait(message)

        await wire.subscribe(ASKED, take)
        await wire.flush()
        log.info("the door is open: %s admits by issuer %s", url, self._issuer)
        self.open.set()
        tasks = [
            asyncio.create_task(wire.ended(PING_S, PINGS)),
            asyncio.create_task(self._answer(wire, requests)),
            asyncio.create_task(self._look(url, tls)),
        ]
        try:
            done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            for task in done:
                task.result()
        except Unavailable as error:
            log.warning("%s", error)
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def _answer(self, wire: Wire, requests: asyncio.Queue[Raw]) -> None:
        while True:
            request = await requests.get()
            # Requests of other servers are not answered, so that nobody else can have this issuer
            # sign for what was shown to him.
            answer = self.decide(request.data, wire.server_key)
            if answer is not None and request.reply:
                await wire.publish(request.reply, answer)

    async def _look(self, url: str, tls: ssl.SSLContext | None) -> None:
        """Judge again whoever is inside when a list comes in force."""
        judged = self._gate.list_digest
        while True:
            await asyncio.sleep(LOOK_S)
            digest = self._gate.list_digest
            if digest == judged:
                continue
            judged = digest
            gone = await self.stale()
            if gone:
                await self._disconnect(gone, url, tls)

    async def _disconnect(self, guests: list[Guest], url: str, tls: ssl.SSLContext | None) -> None:
        """End their connections; who can't be reached so goes when his admission ends."""
        try:
            wire = await _connect(url, self._keys.system, tls)
            try:
                for guest in guests:
                    where = f"$SYS.REQ.SERVER.{guest.server}.KICK"
                    for cid in guest.connections:
                        # Without somewhere to answer to, a server does not act.
                        await wire.publish(where, json.dumps({"cid": cid}).encode(), KICKED)
                await wire.flush()
            finally:
                await wire.drop()
        except EngineError as error:
            log.warning("some stay for up to %d s, unlisted as they are: %s", LIFE_S, error)


async def _connect(url: str, key: Ed25519PrivateKey, tls: ssl.SSLContext | None) -> Wire:
    def refused(what: str, subject: str) -> None:
        log.warning("the bus allows no %s of %s", what, subject)

    try:
        return await Wire.open(url, Credentials(key), tls, CONNECT_S, refused)
    except Denied as error:
        raise Denied(
            "the bus does not know this server's keys",
            expected=f"a configuration that names {public_of(Kind.USER, key)}",
            got=error.got,
            rule="door.denied",
            hint="`zipnet nats-config keys` prints them; write the node's configuration anew",
        ) from error
