"""Who may come in: the validators that a configuration and the list in force stand for.

The same stack decides on servers, for clients and other servers, and in a client, for servers.
"""

from __future__ import annotations

import hashlib
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from datetime import datetime

from blake3 import blake3

from attestation.allowlist import AllowList
from attestation.bundle import Bundle, Fresh, Role, Ticket
from attestation.errors import (
    CollateralFormatError,
    CollateralRejected,
    CollateralUnavailable,
    TicketRejected,
)
from attestation.providers import QuoteProvider
from attestation.tdx import Tdx
from attestation.ticket import (
    AllOf,
    Beacons,
    BundleValidator,
    Challenge,
    Expiry,
    Peer,
    TicketValidator,
)
from attestation.verify import Collateral
from zipnet.config import Clients, Config
from zipnet.errors import ConfigRejected
from zipnet.protocol.header import NO_HASH
from zipnet.protocol.instance import Instance
from zipnet.roles.identity import Identity

POLICY = "zipnet/policy/v2"
PLATFORM = "zipnet/platform/v2"
CONFIG = "zipnet/config-digest/v2"
TICKET_LIFE = 3_600
# The rule of `attestation.collateral` for a platform of a model that was not named.
NOT_ALLOWED = "fmspc"

# The collateral for the platform that a quote (its bytes) comes from, as it is at hand. May raise
# AttestationError: CollateralUnavailable for what may still come.
CollateralSource = Callable[[bytes], Collateral]
# Brings it to hand, from wherever it is published. Raises as above.
CollateralFetch = Callable[[bytes], Awaitable[object]]


def policy_id(instance: Instance) -> bytes:
    """What tickets of an instance name as their policy: BLAKE3.derive_key(POLICY)(binding).

    The list in force is not in it: a ticket outlives a list, and is judged anew under each.
    """
    return blake3(instance.binding, derive_key_context=POLICY).digest()


def config_digest(config: Config) -> bytes:
    """What MRCONFIGID holds, padded: SHA-256 of the configuration's encoding."""
    return hashlib.sha256(config.encode()).digest()


@dataclass(frozen=True, slots=True)
class Admission:
    """The door of one instance. `mock_root` is the root certificate (DER) of a mock anchor.

    Raises ConfigRejected if it is not the one that the configuration names, or if there is one
    where there must be none.
    """

    config: Config
    instance: Instance
    collateral: CollateralSource = field(repr=False)
    mock_root: bytes = field(default=b"", repr=False)
    fetch: CollateralFetch | None = field(default=None, repr=False)

    def __post_init__(self) -> None:
        digest = hashlib.sha256(self.mock_root).digest() if self.mock_root else b""
        if digest != self.config.anchor.root:
            raise ConfigRejected(
                "the trust anchor is not that of the configuration",
                expected=str(self.config.anchor),
                got=f"mock={digest.hex()}" if digest else "no mock root",
                rule="anchor",
                hint="give the mock root certificate exactly where the configuration names one",
            )

    def attests(self, role: Role) -> bool:
        """Whether peers of this role must show a quote. Sealers are clients' guests."""
        return role is Role.SERVER or (
            role in (Role.CLIENT, Role.SEALER) and self.config.clients is Clients.ATTESTED
        )

    def validators(self, role: Role, accepted: AllowList) -> TicketValidator:
        """The stack for a role under a list."""
        bundle = BundleValidator(max_age=TICKET_LIFE, max_lifetime=TICKET_LIFE)
        if not self.attests(role):
            return AllOf(bundle)
        if self.config.anchor.kind == "tdx":
            return AllOf(bundle, Tdx().require_mrtd(accepted))
        # Production images hold no mock provider: there this import fails.
        from attestation.providers.mock import MockVerifier  # noqa: PLC0415
        from attestation.unsafe_mock_tdx import UnsafeMockTdx  # noqa: PLC0415

        verifier = MockVerifier(self.mock_root)
        return AllOf(bundle, UnsafeMockTdx(verifier=verifier).require_mrtd(accepted))

    async def prepare(self, bundle: Bundle, role: Role) -> None:
        """Bring the collateral for a peer to hand, so that `validate` needs no network.

        Raises CollateralUnavailable, which says nothing about the peer: also where the service
        answers with what is no good. CollateralRejected for a platform that is not allowed, and
        QuoteFormatError and QuoteRejected, are about the peer.
        """
        if self.fetch is None or not self.attests(role):
            return
        try:
            await self.fetch(bundle.quote)
        except (CollateralFormatError, CollateralRejected) as error:
            if error.rule == NOT_ALLOWED:
                raise
            raise CollateralUnavailable(
                error.message,
                expected=error.expected,
                got=error.got,
                rule=error.rule,
                hint=error.hint,
            ) from error

    def validate(
        self,
        bundle: Bundle,
        role: Role,
        accepted: AllowList,
        freshness: Challenge | Beacons,
        now: datetime,
    ) -> Expiry:
        """Until when the bundle is good. Raises AttestationError: TicketRejected for most."""
        collateral = self.collateral(bundle.quote) if self.attests(role) else None
        peer = Peer(
            peer_id=bundle.ticket.peer_id,
            deployment_id=self.instance.deployment_id,
            policy_ids=frozenset({policy_id(self.instance)}),
            roles=frozenset({role}),
            now=now,
            freshness=freshness,
            collateral=collateral,
        )
        if bundle.ticket.config_digest != config_digest(self.config):
            raise TicketRejected(
                "the peer runs under another configuration",
                expected=config_digest(self.config).hex(),
                got=bundle.ticket.config_digest.hex(),
                rule="config-digest",
                hint="compare `zipnet config fingerprint` on both sides",
            )
        return self.validators(role, accepted).validate(bundle, peer)


def platform(expiry: Expiry) -> bytes:
    """A name of the machine that a validated peer runs on (32 bytes); zeros if it has none."""
    if expiry.claims is None:
        return NO_HASH
    return blake3(expiry.claims.ppid, derive_key_context=PLATFORM).digest()


@dataclass(frozen=True, slots=True)
class Ticketing:
    """How a node comes by its own tickets. `provider` is None for roles without a quote."""

    config: Config
    instance: Instance
    role: Role
    identity: Identity
    provider: QuoteProvider | None
    boot_epoch: int
    instance_id: bytes

    def bundle(self, fresh: bytes, kind: Fresh, now: datetime) -> bytes:
        """A new bundle for a challenge or beacon, encoded. Raises ProviderError."""
        issued = int(now.timestamp())
        ticket = Ticket(
            role=self.role,
            deployment_id=self.instance.deployment_id,
            instance_id=self.instance_id,
            peer_id=self.identity.peer,
            dh_pub=self.identity.dh_pub,
            policy_id=policy_id(self.instance),
            config_digest=config_digest(self.config),
            boot_epoch=self.boot_epoch,
            issued_at=issued,
            not_after=issued + TICKET_LIFE,
            fresh_kind=kind,
            fresh=fresh,
        )
        quote = self.provider.quote(ticket.report_data()) if self.provider else b""
        return Bundle.sign(ticket, quote, self.identity.signing).encode()
