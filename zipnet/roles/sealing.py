"""Sealing over zipnet's network: what a server answers as a member, and how a client asks.

Members are the servers, under their ids and peer keys. A client asks as a guest, on the channel
`register`: each server by its own topic, since every one of them must answer.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import datetime

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from attestation.allowlist import AllowList
from attestation.bundle import Bundle, Fresh, Role, Ticket
from attestation.errors import AttestationError, SealRefused, SealUnavailable
from attestation.providers import QuoteProvider
from attestation.seal.committee_format import NONCE_ASK, Asked
from attestation.seal.committee_member import Member, MemoryTable, Table
from attestation.ticket import Challenge
from zipnet.errors import EngineError, Refused, WireFormatError
from zipnet.network.base import Channel
from zipnet.network.public import Answer, Ask, Request, server_topic
from zipnet.roles.admission import TICKET_LIFE, Admission, config_digest, policy_id
from zipnet.roles.identity import Draw

# Checking a quote costs milliseconds: so many requests wait, and no more.
MAX_WAITING = 32

log = logging.getLogger("zipnet.sealing")


@dataclass(frozen=True, slots=True)
class Kept:
    """What a member keeps: 32 random bytes that all contributions derive from, and its table."""

    root: bytes = field(repr=False)
    table: Table

    @classmethod
    def in_memory(cls, draw: Draw) -> Kept:
        """For as long as the process lasts: what was sealed is lost with it."""
        return cls(draw(32), MemoryTable())


class SealingDesk:
    """Answers sealing requests as a `Member`, for guests that the list in force accepts.

    `accepted` gives that list; `now` the time. Sealing is refused where clients show no quotes: any
    program could ask for any node's key.
    """

    def __init__(
        self,
        member: Member,
        admission: Admission,
        accepted: Callable[[], AllowList],
        now: Callable[[], datetime],
    ) -> None:
        self._member = member
        self._admission = admission
        self._accepted = accepted
        self._now = now
        self._turn = asyncio.Lock()
        self._waiting = 0

    async def answer(self, raw: bytes) -> bytes:
        """A nonce, or a signed answer, which may be a refusal. Raises Refused."""
        if not self._admission.attests(Role.SEALER):
            raise Refused(
                "nothing is sealed in a deployment whose clients show no quotes",
                expected="attested clients",
                rule="sealing.unattested",
                hint="run the client without sealed state",
            )
        seconds = int(self._now().timestamp())
        if raw == NONCE_ASK:
            return self._member.nonce(seconds)
        accepted = self._accepted()
        try:
            return await self._release(self._member.take(raw, seconds), accepted)
        except AttestationError as error:
            log.info("a request to seal or open is refused by rule %s: %s", error.rule, error)
            return self._member.refuse(raw, error)

    async def _release(self, asked: Asked, accepted: AllowList) -> bytes:
        if not asked.bundle.possessed():  # before anything is fetched for it
            raise SealRefused("the bundle is not signed by the instance's key", rule="pop")
        if self._waiting >= MAX_WAITING:
            raise SealUnavailable(
                "too many requests wait",
                expected=f"at most {MAX_WAITING}",
                rule="sealing.busy",
                hint="try again in a moment",
            )
        self._waiting += 1
        try:
            async with self._turn:
                await self._admission.prepare(asked.bundle, Role.SEALER)

                def validate(bundle: Bundle, challenge: bytes) -> object:
                    fresh = Challenge(challenge)
                    return self._admission.validate(
                        bundle, Role.SEALER, accepted, fresh, self._now()
                    )

                return self._member.answer(asked, validate, accepted.number)
        finally:
            self._waiting -= 1


@dataclass(slots=True)
class ServersAsked:
    """The way to the members: `channel` is `register`, of whichever connection there is now."""

    channel: Channel

    async def ask(self, member: bytes, raw: bytes) -> bytes:
        """What the server with this id answers. Raises SealUnavailable if it does not, or can't."""
        try:
            request = Request(Ask.SEALING, raw).encode()
            answer = Answer.decode(await self.channel.ask(server_topic(member), request))
            return answer.content_or_raise(f"server {member.hex()[:16]}")
        except (EngineError, Refused, WireFormatError) as error:
            # Nobody has signed this refusal: whoever carries messages can make it.
            log.warning("server %s does not seal: %s", member.hex()[:16], error)
            raise SealUnavailable(error.message, got=error.got, rule=error.rule) from error


@dataclass(frozen=True, slots=True)
class Asker:
    """Who asks: a node under its owner's instance key, and how it proves its code."""

    admission: Admission
    provider: QuoteProvider
    key: Ed25519PrivateKey = field(repr=False)
    now: Callable[[], datetime]

    @property
    def id(self) -> bytes:
        """The public instance key, by which the committee knows the node."""
        return self.key.public_key().public_bytes_raw()

    async def ticket(self, challenge: bytes, ephemeral: bytes) -> bytes:
        """A bundle for one request, encoded. Raises ProviderError."""
        issued = int(self.now().timestamp())
        ticket = Ticket(
            role=Role.SEALER,
            deployment_id=self.admission.instance.deployment_id,
            instance_id=self.id,
            peer_id=self.id,
            dh_pub=ephemeral,
            policy_id=policy_id(self.admission.instance),
            config_digest=config_digest(self.admission.config),
            boot_epoch=issued,
            issued_at=issued,
            not_after=issued + TICKET_LIFE,
            fresh_kind=Fresh.CHALLENGE,
            fresh=challenge,
        )
        # A quote takes a TD a second.
        quote = await asyncio.to_thread(self.provider.quote, ticket.report_data())
        return Bundle.sign(ticket, quote, self.key).encode()
