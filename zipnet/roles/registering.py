"""A client's place in the log: it registers or resumes, shows newer tickets, keeps a next key."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from datetime import UTC, datetime

from blake3 import blake3

from attestation.bundle import Fresh
from zipnet.committee import bodies
from zipnet.errors import Attestation, EngineError, Protocol
from zipnet.network.base import Channel, Network
from zipnet.network.public import Ask, ClientStatus
from zipnet.protocol.instance import Instance
from zipnet.roles.admission import TICKET_LIFE
from zipnet.roles.asking import ask_any
from zipnet.roles.client_core import ClientCore
from zipnet.roles.client_settings import ClientSettings
from zipnet.roles.committee_view import CommitteeView, Lookout
from zipnet.roles.presenting import Presenter

POLL = 0.1
# When a ticket is renewed, in parts of its life; in rounds, where the log has that of another boot.
RENEW_FROM, RENEW_UNTIL = 0.5, 0.75
RENEW_ROUNDS = 3
# Rules of tickets that a new ticket of the same node may satisfy.
OLD_TICKET = ("beacon", "stale", "expired")
# How often a Resume is sent that the log has a later one than: an answer may have been lost.
RESUMES = 2

log = logging.getLogger("zipnet.client")


class Place:
    """The place of one client in one generation. `view` is the committee as it was last checked.

    `bar` is called with the reason if the committee or the bus turns the client away.
    """

    def __init__(
        self,
        network: Network,
        lookout: Lookout,
        settings: ClientSettings,
        core: ClientCore,
        view: CommitteeView,
        bar: Callable[[Attestation], None],
    ) -> None:
        self._lookout = lookout
        self._set = settings
        self._core = core
        self._bar = bar
        self._presenter = Presenter(network, settings.clock)
        self.channel: Channel = network.channel(lookout.places.register)
        self.view = view
        self.instance: Instance = view.instance
        self.registration = b""
        self.renew_ms = 0
        self._posted = 0

    async def enter(self) -> None:
        """Go on in the epoch of the kept pairs if the log has this client in it; else register."""
        kept = self._core.keyring.epoch
        if kept and kept == self.view.next_epoch - 1:
            status = await self._status()
            if status.registered and status.member and await self._resume():
                return
            log.info("the pairs that were sealed are of no use: a new key for the next epoch")
        await self._register()

    async def _register(self) -> None:
        view = self.view
        await self.check_generation()
        bundle = await self._bundle()
        key = self._core.epoch_key(view.next_epoch, self._set.clock())
        self._posted = view.next_epoch
        body = bodies.Register(bundle, key).encode()
        try:
            await self._ask_any(Ask.REGISTER, body)
        except Protocol as error:
            if error.rule == "epoch-key.epoch":
                # An epoch has begun since this client looked: once more, for the next one.
                await self.find(self._set.connect_s)
                await asyncio.sleep(POLL)
                return await self._register()
            if error.rule != "epoch-key.serial":
                raise  # but this one says that the log has it, and an answer was lost
        self._registered(body)
        if self._presenter.due:
            await self._present(bundle)
        return None

    async def _resume(self) -> bool:
        """Fence off what ran with these pairs before; False if the log takes no Resume."""
        await self.check_generation()
        for left in reversed(range(RESUMES)):
            nonce, serial, signature = self._core.resume(self._set.clock())
            body = bodies.ResumeNode(self._core.id, nonce, serial, signature).encode()
            try:
                await self._ask_any(Ask.RESUME, body)
                break
            except Protocol as error:
                log.warning("no Resume: %s", error)
                if error.rule != "resume.serial" or not left:
                    return False
        log.info("resumed in epoch %d", self._core.keyring.epoch)
        window = self._set.config.window
        self.renew_ms = self._set.clock() + RENEW_ROUNDS * window.round_period_ms
        if self._presenter.due:
            await self._present(await self._bundle())
        await self.keep_key(self.view.next_epoch)
        return True

    def _registered(self, body: bytes) -> None:
        """Note what the log has, and when to show it a newer ticket: not all clients at once."""
        self.registration = blake3(body).digest()
        share = RENEW_FROM + (RENEW_UNTIL - RENEW_FROM) * self._set.draw(1)[0] / 255
        self.renew_ms = self._set.clock() + int(share * TICKET_LIFE * 1000)

    async def stay(self, *, silent: bool) -> None:
        """Look how the log sees this client, and do what follows; call it once a round.

        `silent` says that no live round was seen for long. Raises Attestation, ConnectTimeout,
        Protocol, EngineError, and Shutdown once the committee is in another generation.
        """
        if silent:
            await self.check_generation()
        await self._keep_ticket()
        status = await self._status()
        refusals = [one for one in status.refusals if self._heeds(one[0])]
        old = any(rule in OLD_TICKET for _, rule in refusals)
        if old or not status.registered:
            await self.find(self._set.connect_s)
            await self._register()
        elif refusals:
            self._bar(self.view.turned_away(*refusals[0]))
        elif silent:
            # No rounds: perhaps for a server with which no other signs, or for want of keys
            # where an epoch is over that never had a live header.
            self.view = await self._lookout.look(self.now())
            await self.keep_key(self.view.next_epoch)

    async def _keep_ticket(self) -> None:
        """Show the bus, and in time the log, a newer ticket. Raises Protocol, EngineError."""
        late = self._set.clock() >= self.renew_ms
        if self._presenter.due or late:
            self.view = await self._lookout.look(self.now())
            bundle = await self._bundle()
            await self._present(bundle)
            if late:
                body = bodies.Renew(bundle).encode()
                await self._ask_any(Ask.RENEW, body)
                self._registered(body)

    async def keep_key(self, epoch: int) -> None:
        """Have a key for this epoch in the log, if it has none of this boot."""
        if epoch <= self._posted:
            return
        key = self._core.epoch_key(epoch, self._set.clock())
        try:
            await self._ask_any(Ask.EPOCH_KEY, key.encode())
        except (EngineError, Protocol) as error:
            log.warning("no key for epoch %d yet: %s", epoch, error)
        else:
            self._posted = epoch

    async def retire(self) -> None:
        """Take the registration back: no round counts on this client.

        Raises Protocol, EngineError.
        """
        if not self.registration:
            return
        statement = self._core.id + self.registration
        signature = self.instance.sign(self._set.identity.signing, bodies.RETIRE, 0, statement)
        body = bodies.Retire(self._core.id, self.registration, signature)
        await self._ask_any(Ask.RETIRE, body.encode())

    async def find(self, seconds: float) -> None:
        """Check the committee anew, once it is all there. Raises as `Lookout.find`."""
        self.view = await self._lookout.find(self.now, seconds)

    async def check_generation(self) -> None:
        """Raise Shutdown once the committee is in another generation."""
        await self._lookout.check_generation(self.instance, self.view.operators)

    def lost(self) -> None:
        """The bus did not let this client submit."""
        self._presenter.lost()

    def now(self) -> datetime:
        """The time by this client's clock."""
        return datetime.fromtimestamp(self._set.clock() / 1000, UTC)

    async def _status(self) -> ClientStatus:
        return ClientStatus.decode(await self._ask_any(Ask.STATUS, self._core.id))

    async def _bundle(self) -> bytes:
        ticketing, beacon = self._set.ticketing(self.view.instance), self.view.beacons[-1]
        # A quote takes a TD a second.
        return await asyncio.to_thread(ticketing.bundle, beacon, Fresh.BEACON, self.now())

    async def _present(self, bundle: bytes) -> None:
        """Ask the bus for the right to submit; who is refused hears why."""
        error = await self._presenter.show(bundle, self.channel, self.view)
        if error is not None:
            self._bar(error)

    async def _ask_any(self, ask: Ask, body: bytes) -> bytes:
        return await ask_any(self.channel, self.view.servers, self._core.id, ask, body)

    def _heeds(self, server: bytes) -> bool:
        """Whether it matters what this server thinks: not if its operator is waived."""
        return not self._set.waived or server in self.view.servers
