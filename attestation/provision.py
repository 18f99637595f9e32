"""Provisioning: how a guest that knows only its role gets its configuration and its secrets.

The operator's tool sends a challenge of 32 bytes. The guest answers with an *offer*:

    box_pub (X25519, made for this offer, 32) | bundle (attestation.bundle)

whose ticket has 32 zero bytes as deployment_id (the guest was not told yet), POLICY_ID, instance_id
= dh_pub, the first 32 bytes of MRCONFIGID as config_digest, and as its challenge

    SHA-256(u32be 30 | OFFER_DOMAIN | u32be 32 | challenge | u32be 32 | box_pub)

so the quote binds the box key too, and no other service takes the ticket. The tool judges it by the
same validators as any ticket, and answers with a *grant*:

    signer (Ed25519, 32) | u32be length | configuration | u32be length | box | signature (64)

    signature: Ed25519 by signer over
               GRANT_DOMAIN | 0 | SHA-512(offer) | SHA-512(configuration) | SHA-512(box)
    box:       sender's ephemeral X25519 key (32) | ChaCha20-Poly1305 of the secret
               key    HKDF-SHA256(X25519, salt SHA-256(offer), info GRANT_DOMAIN | sender | box_pub)
               nonce  zeros: the key is used once
               AAD    SHA-512(offer) | SHA-512(configuration) | signer

A grant fits one offer, so one guest, one boot and one exchange. The signer is in the AAD: else
another operator could sign a box that he can't open, and pass its secret off as his.

Nothing here does I/O; `attestation.provision_stream` carries the bytes.
"""

import hashlib
import struct
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import datetime

from cryptography.exceptions import InvalidSignature, InvalidTag
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from attestation.bundle import MAX_BUNDLE
from attestation.errors import ProvisionFormatError, ProvisionRefused
from attestation.providers import QuoteProvider
from attestation.quote import Quote
from attestation.ticket import (
    AllOf,
    Bundle,
    BundleValidator,
    Challenge,
    Expiry,
    Fresh,
    Peer,
    Role,
    Ticket,
    TicketValidator,
)
from attestation.verify import Collateral

__all__ = [
    "CHALLENGE_SIZE",
    "MAX_CONFIG",
    "MAX_GRANT",
    "MAX_OFFER",
    "MAX_SECRET",
    "POLICY_ID",
    "UNTOLD",
    "Accepted",
    "Draw",
    "Grant",
    "Granted",
    "Guest",
    "Offer",
    "Terms",
    "check_offer",
    "make_grant",
]

Draw = Callable[[int], bytes]

POLICY_ID = hashlib.sha256(b"attestation/provision/policy/v1").digest()
OFFER_DOMAIN = b"attestation/provision/offer/v1"
GRANT_DOMAIN = b"attestation/provision/grant/v1"
# The deployment of a guest that was not told of any.
UNTOLD = bytes(32)
CHALLENGE_SIZE = 32
# How long an offer's ticket holds, in seconds: several times an exchange.
LIFETIME = 600
# The largest configuration, in bytes; and the largest secret, which has room for a list of
# measurements and collateral beside the keys.
MAX_CONFIG = 1 << 16
MAX_SECRET = 1 << 21

_KEY = 32
_SIGNATURE = 64
_TAG = 16
_LENGTH = struct.Struct(">I")
_FIXED = _KEY + 2 * _LENGTH.size + _SIGNATURE
_BOX = _KEY + _TAG
MAX_OFFER = _KEY + MAX_BUNDLE
MAX_GRANT = _FIXED + MAX_CONFIG + _BOX + MAX_SECRET


@dataclass(frozen=True, slots=True)
class Terms:
    """What a configuration says about its own delivery.

    `digest` is what MRCONFIGID must begin with (32 bytes), `signers` the Ed25519 public keys of the
    operators that it names.
    """

    digest: bytes
    signers: frozenset[bytes]


@dataclass(frozen=True, slots=True)
class Offer:
    """What a guest shows: well-formed, and nothing more until `check_offer` took it."""

    box_pub: bytes
    bundle: Bundle
    raw: bytes = field(repr=False)

    @classmethod
    def decode(cls, raw: bytes) -> "Offer":
        """The offer in `raw`, all of it. Raises ProvisionFormatError, TicketFormatError."""
        if not _KEY < len(raw) <= MAX_OFFER:
            raise ProvisionFormatError(
                "this is no offer of a guest",
                expected=f"{_KEY + 1} to {MAX_OFFER} bytes",
                got=str(len(raw)),
                rule="provision.offer-size",
            )
        return cls(raw[:_KEY], Bundle.decode(raw[_KEY:]), raw)

    @property
    def ticket(self) -> Ticket:
        """The guest's identity and what else its quote binds."""
        return self.bundle.ticket


@dataclass(frozen=True, slots=True)
class Accepted:
    """An offer that passed all checks of the operator's side, and until when it does."""

    offer: Offer
    expiry: Expiry


@dataclass(frozen=True, slots=True)
class Grant:
    """An operator's answer to one offer; fields as above, nothing about them checked."""

    signer: bytes
    config: bytes
    box: bytes = field(repr=False)
    signature: bytes

    def encode(self) -> bytes:
        """The bytes to send."""
        sized = b"".join(_LENGTH.pack(len(part)) + part for part in (self.config, self.box))
        return self.signer + sized + self.signature

    @classmethod
    def decode(cls, raw: bytes) -> "Grant":
        """The grant in `raw`, all of it. Raises ProvisionFormatError."""
        if not _FIXED + _BOX <= len(raw) <= MAX_GRANT:
            raise ProvisionFormatError(
                "this is no grant",
                expected=f"{_FIXED + _BOX} to {MAX_GRANT} bytes",
                got=str(len(raw)),
                rule="provision.grant-size",
            )
        body = raw[_KEY:-_SIGNATURE]
        (size,) = _LENGTH.unpack_from(body)
        config, rest = body[_LENGTH.size :][:size], body[_LENGTH.size :][size:]
        if size > MAX_CONFIG or len(rest) < _LENGTH.size + _BOX:
            raise _lengths()
        box = rest[_LENGTH.size :]
        if _LENGTH.unpack_from(rest) != (len(box),) or len(box) > _BOX + MAX_SECRET:
            raise _lengths()
        return cls(raw[:_KEY], config, box, raw[-_SIGNATURE:])


@dataclass(frozen=True, slots=True)
class Granted:
    """What a guest was given, and by which operator (Ed25519 public key)."""

    config: bytes
    secret: bytes = field(repr=False)
    signer: bytes


@dataclass(frozen=True, slots=True)
class _Open:
    """The offer that waits for its grant."""

    key: X25519PrivateKey = field(repr=False)
    box_pub: bytes
    raw: bytes = field(repr=False)
    digest: bytes


class Guest:
    """The guest's side, made once per boot with an identity made at this boot.

    `terms` reads a configuration, and raises errors of its own tree for what is none; `clock` gives
    Unix seconds. MRCONFIGID comes from a quote that the guest does not verify, so a host can make
    it take another configuration, as it can by launching it with another. It gains nothing: every
    peer compares the MRCONFIGID of a genuine quote with the configuration's digest.
    """

    def __init__(
        self,
        role: Role,
        signing: Ed25519PrivateKey,
        dh_pub: bytes,
        provider: QuoteProvider,
        terms: Callable[[bytes], Terms],
        draw: Draw,
        clock: Callable[[], int],
    ) -> None:
        self._role = role
        self._signing = signing
        self._dh_pub = dh_pub
        self._provider = provider
        self._terms = terms
        self._draw = draw
        self._clock = clock
        self._booted = clock()
        self._digest: bytes | None = None
        self._open: _Open | None = None

    def offer(self, challenge: bytes) -> bytes:
        """An offer that answers `challenge` (32 bytes) and opens one grant. The last is forgotten.

        Blocks while quotes are made: one, at the first call two.

        Raises ProvisionFormatError, ProvisionRefused, QuoteFormatError, ProviderAbsent,
        ProviderFailed.
        """
        self._open = None
        if len(challenge) != CHALLENGE_SIZE:
            raise ProvisionFormatError(
                "the challenge has the wrong size",
                expected=f"{CHALLENGE_SIZE} bytes",
                got=str(len(challenge)),
                rule="provision.challenge-size",
            )
        if self._digest is None:
            self._digest = self._launched_with()
        key = X25519PrivateKey.from_private_bytes(self._draw(_KEY))
        box_pub = key.public_key().public_bytes_raw()
        now = self._clock()
        ticket = Ticket(
            role=self._role,
            deployment_id=UNTOLD,
            instance_id=self._dh_pub,
            peer_id=self._signing.public_key().public_bytes_raw(),
            dh_pub=self._dh_pub,
            policy_id=POLICY_ID,
            config_digest=self._digest,
            boot_epoch=self._booted,
            issued_at=now,
            not_after=now + LIFETIME,
            fresh_kind=Fresh.CHALLENGE,
            fresh=_fresh(challenge, box_pub),
        )
        quote = self._provider.quote(ticket.report_data())
        raw = box_pub + Bundle.sign(ticket, quote, self._signing).encode()
        self._open = _Open(key, box_pub, raw, self._digest)
        return raw

    def accept(self, raw: bytes) -> Granted:
        """What the grant in `raw` holds. A grant, good or bad, uses the open offer up.

        Raises ProvisionFormatError; ProvisionRefused with one of the rules provision.used, .config,
        .operator, .signature, .box; and what `terms` raises.
        """
        grant = Grant.decode(raw)
        open_, self._open = self._open, None
        if open_ is None:
            raise ProvisionRefused(
                "there is no offer that this grant could answer",
                expected="a grant for the last offer, once",
                got="a second grant, or one without an offer",
                rule="provision.used",
                hint="ask the guest for a new offer",
            )
        terms = self._terms(grant.config)
        if terms.digest != open_.digest:
            raise ProvisionRefused(
                "the guest was launched for another configuration",
                expected=f"the configuration that hashes to {open_.digest.hex()}",
                got=terms.digest.hex(),
                rule="provision.config",
                hint="send the configuration whose hash the guest was launched with (mrconfigid)",
            )
        if grant.signer not in terms.signers:
            raise ProvisionRefused(
                "the configuration does not name this operator",
                expected=f"one of its {len(terms.signers)} operators",
                got=grant.signer.hex(),
                rule="provision.operator",
                hint="use the key of an operator that the configuration names",
            )
        try:
            Ed25519PublicKey.from_public_bytes(grant.signer).verify(
                grant.signature, _signed(open_.raw, grant.config, grant.box)
            )
        except InvalidSignature:
            raise ProvisionRefused(
                "the grant is not signed for this offer",
                expected=f"a signature by {grant.signer.hex()} over the last offer",
                got="one over something else, or by another key",
                rule="provision.signature",
                hint="ask the guest for a new offer: a grant fits one offer of one boot",
            ) from None
        sender, sealed = grant.box[:_KEY], grant.box[_KEY:]
        cipher = _cipher(open_.key, sender, open_.raw, sender + open_.box_pub)
        try:
            secret = cipher.decrypt(
                bytes(12), sealed, _bound(open_.raw, grant.config, grant.signer)
            )
        except InvalidTag:
            raise _unopened("a box for another key, or for another signer") from None
        return Granted(grant.config, secret, grant.signer)

    def _launched_with(self) -> bytes:
        # The quote never leaves the guest, and is over nothing that a ticket could hash to.
        nothing = hashlib.sha512(b"attestation/provision/self/v1").digest()
        held = Quote.parse(self._provider.quote(nothing)).body.mr_config_id
        if any(held[32:]):
            raise ProvisionRefused(
                "the guest's MRCONFIGID holds no digest of a configuration",
                expected="32 bytes and 16 zero bytes",
                got=held.hex(),
                rule="provision.mr-config-id",
                hint="launch the guest with the configuration's hash as mrconfigid",
            )
        return held[:32]


def check_offer(
    raw: bytes,
    *,
    challenge: bytes,
    role: Role,
    config_digest: bytes,
    validator: TicketValidator,
    collateral: Collateral | None,
    now: datetime,
) -> Accepted:
    """The operator's judgement of an offer that answers his own fresh `challenge`.

    `validator` says which code may have the secrets; a `BundleValidator` comes before it. The
    guest's deployment is still UNTOLD: for an allow-list that was checked to be of the deployment,
    give `Tdx` its copy `replace(allow_list, deployment_id=UNTOLD)`.

    Raises ProvisionFormatError, TicketFormatError, ProvisionRefused (`config-digest`),
    TicketRejected, PolicyError.
    """
    offer = Offer.decode(raw)
    ticket = offer.ticket
    if ticket.config_digest != config_digest:
        raise ProvisionRefused(
            "the guest was launched for another configuration",
            expected=config_digest.hex(),
            got=ticket.config_digest.hex(),
            rule="config-digest",
            hint="launch the guest with the hash of this configuration as mrconfigid",
        )
    peer = Peer(
        peer_id=ticket.peer_id,
        deployment_id=UNTOLD,
        policy_ids=frozenset({POLICY_ID}),
        roles=frozenset({role}),
        now=now,
        freshness=Challenge(_fresh(challenge, offer.box_pub)),
        collateral=collateral,
    )
    return Accepted(offer, AllOf(BundleValidator(), validator).validate(offer.bundle, peer))


def make_grant(
    accepted: Accepted, key: Ed25519PrivateKey, config: bytes, secret: bytes, draw: Draw
) -> bytes:
    """The grant that gives `config` and `secret` to the guest of this offer, signed by `key`.

    `draw` gives the random bytes of the ephemeral key. Raises ProvisionFormatError for a size
    that no grant can have, ProvisionRefused (`provision.box`) for a box key that gives no secret.
    """
    for part, name, size, limit in (
        (config, "configuration", len(config), MAX_CONFIG),
        (secret, "secret", len(secret), MAX_SECRET),
    ):
        if len(part) > limit:
            raise ProvisionFormatError(
                f"the {name} is too large for a grant",
                expected=f"at most {limit} bytes",
                got=str(size),
                rule="provision.grant-size",
            )
    offer = accepted.offer
    ephemeral = X25519PrivateKey.from_private_bytes(draw(_KEY))
    sender = ephemeral.public_key().public_bytes_raw()
    signer = key.public_key().public_bytes_raw()
    cipher = _cipher(ephemeral, offer.box_pub, offer.raw, sender + offer.box_pub)
    box = sender + cipher.encrypt(bytes(12), secret, _bound(offer.raw, config, signer))
    return Grant(signer, config, box, key.sign(_signed(offer.raw, config, box))).encode()


def _fresh(challenge: bytes, box_pub: bytes) -> bytes:
    parts = (OFFER_DOMAIN, challenge, box_pub)
    return hashlib.sha256(b"".join(_LENGTH.pack(len(part)) + part for part in parts)).digest()


def _signed(offer: bytes, config: bytes, box: bytes) -> bytes:
    hashes = (hashlib.sha512(part).digest() for part in (offer, config, box))
    return GRANT_DOMAIN + b"\0" + b"".join(hashes)


def _bound(offer: bytes, config: bytes, signer: bytes) -> bytes:
    return hashlib.sha512(offer).digest() + hashlib.sha512(config).digest() + signer


def _cipher(own: X25519PrivateKey, other: bytes, offer: bytes, keys: bytes) -> ChaCha20Poly1305:
    try:
        secret = own.exchange(X25519PublicKey.from_public_bytes(other))
    except ValueError:
        raise _unopened("an X25519 key of small order") from None
    salt = hashlib.sha256(offer).digest()
    return ChaCha20Poly1305(HKDF(SHA256(), _KEY, salt, GRANT_DOMAIN + keys).derive(secret))


def _unopened(got: str) -> ProvisionRefused:
    return ProvisionRefused(
        "the box of the grant does not open",
        expected="a box that the signer made for the key of the last offer",
        got=got,
        rule="provision.box",
        hint="ask the guest for a new offer and make a new grant",
    )


def _lengths() -> ProvisionFormatError:
    return ProvisionFormatError(
        "the lengths in the grant don't fit it",
        expected=f"at most {MAX_CONFIG} bytes of configuration, and a box that fills the rest",
        rule="provision.grant-lengths",
    )
