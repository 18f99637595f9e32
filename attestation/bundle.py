"""The format of tickets and bundles; what counts as a good one is in `attestation.ticket`.

A ticket is 251 bytes, big endian, without padding (`struct` ">BB32s32s32s32s32s32sQQQB32s"):

    offset size  field
         0    1  version        1
         1    1  role           1 client, 2 server, 3 aggregator, 4 sealer
         2   32  deployment_id
        34   32  instance_id    names the node across its boots
        66   32  peer_id        Ed25519 public key
        98   32  dh_pub         X25519 public key
       130   32  policy_id
       162   32  config_digest  the quote's MRCONFIGID holds it, padded with zeros
       194    8  boot_epoch     grows with each boot of the instance
       202    8  issued_at      Unix seconds, by the clock of the peer
       210    8  not_after      Unix seconds; the ticket holds before this moment
       218    1  fresh_kind     0 none, 1 challenge, 2 beacon
       219   32  fresh          the challenge or beacon; zeros for kind 0

The quote's report_data, all 64 bytes, is

    SHA-512(u32be length of REPORT_DOMAIN ‖ REPORT_DOMAIN ‖ u32be 251 ‖ ticket)

A bundle is ticket ‖ Ed25519 signature (64) ‖ u32be length of the quote ‖ quote, at most 20,000
bytes. The signature is by peer_id over SIGNATURE_DOMAIN ‖ 0 ‖ ticket ‖ SHA-512(quote). Peers
without a TEE show an empty quote.
"""

import hashlib
import struct
from dataclasses import dataclass
from enum import IntEnum
from typing import TypeVar

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from attestation.errors import TicketFormatError

VERSION = 1
REPORT_DOMAIN = b"attestation/ticket/report-data/v1"
SIGNATURE_DOMAIN = b"attestation/ticket/signature/v1"
MAX_BUNDLE = 20_000

_TICKET = struct.Struct(">BB32s32s32s32s32s32sQQQB32s")
_LENGTH = struct.Struct(">I")
_SIGNATURE_SIZE = 64
_HEAD = _TICKET.size + _SIGNATURE_SIZE + _LENGTH.size
_Kind = TypeVar("_Kind", bound=IntEnum)


class Role(IntEnum):
    """What the peer wants to be."""

    CLIENT = 1
    SERVER = 2
    AGGREGATOR = 3
    SEALER = 4


class Fresh(IntEnum):
    """What shows that the ticket is new. `NONE` is no proof: `BundleValidator` refuses it."""

    NONE = 0
    CHALLENGE = 1
    BEACON = 2


@dataclass(frozen=True, slots=True)
class Ticket:
    """The fields that a quote binds; sizes, units and order as in the table above.

    Raises TicketFormatError for values that have no encoding.
    """

    role: Role
    deployment_id: bytes
    instance_id: bytes
    peer_id: bytes
    dh_pub: bytes
    policy_id: bytes
    config_digest: bytes
    boot_epoch: int
    issued_at: int
    not_after: int
    fresh_kind: Fresh
    fresh: bytes

    def __post_init__(self) -> None:
        for name in (*_IDS, "fresh"):
            value = getattr(self, name)
            if not isinstance(value, bytes) or len(value) != 32:
                raise TicketFormatError(
                    f"the ticket's {name} is wrong", expected="32 bytes", rule="ticket.field"
                )
        for name in ("boot_epoch", "issued_at", "not_after"):
            value = getattr(self, name)
            if type(value) is not int or not 0 <= value < 1 << 64:
                raise TicketFormatError(
                    f"the ticket's {name} is wrong", expected="0 to 2^64 - 1", rule="ticket.field"
                )
        if self.issued_at >= self.not_after:
            raise TicketFormatError(
                "the ticket ends before it begins",
                expected=f"not_after later than {self.issued_at}",
                got=str(self.not_after),
                rule="ticket.times",
            )
        if self.fresh_kind is Fresh.NONE and any(self.fresh):
            raise TicketFormatError(
                "the ticket has freshness of no kind",
                expected="32 zero bytes",
                got=self.fresh.hex(),
                rule="ticket.fresh",
            )

    def encode(self) -> bytes:
        """The 251 bytes."""
        return _TICKET.pack(
            VERSION,
            self.role,
            *(getattr(self, name) for name in _IDS),
            self.boot_epoch,
            self.issued_at,
            self.not_after,
            self.fresh_kind,
            self.fresh,
        )

    @classmethod
    def decode(cls, raw: bytes) -> "Ticket":
        """The ticket in exactly 251 bytes. Raises TicketFormatError."""
        if len(raw) != _TICKET.size:
            raise TicketFormatError(
                "this is no ticket",
                expected=f"{_TICKET.size} bytes",
                got=str(len(raw)),
                rule="ticket.size",
            )
        version, role, *ids, boot_epoch, issued_at, not_after, kind, fresh = _TICKET.unpack(raw)
        if version != VERSION:
            raise TicketFormatError(
                "the ticket is of another version",
                expected=str(VERSION),
                got=str(version),
                rule="ticket.version",
                hint="run the same release on both sides",
            )
        return cls(
            role=_member("role", Role, role),
            **dict(zip(_IDS, ids, strict=True)),
            boot_epoch=boot_epoch,
            issued_at=issued_at,
            not_after=not_after,
            fresh_kind=_member("fresh-kind", Fresh, kind),
            fresh=fresh,
        )

    def report_data(self) -> bytes:
        """The 64 bytes that the quote must carry."""
        parts = (REPORT_DOMAIN, self.encode())
        return hashlib.sha512(b"".join(_LENGTH.pack(len(p)) + p for p in parts)).digest()


_IDS = ("deployment_id", "instance_id", "peer_id", "dh_pub", "policy_id", "config_digest")


@dataclass(frozen=True, slots=True)
class Bundle:
    """A ticket, its proof of possession (64 bytes, not yet checked) and its quote (raw bytes).

    Raises TicketFormatError for values that have no encoding.
    """

    ticket: Ticket
    signature: bytes
    quote: bytes

    def __post_init__(self) -> None:
        if len(self.signature) != _SIGNATURE_SIZE:
            raise TicketFormatError(
                "the bundle's signature is wrong",
                expected=f"{_SIGNATURE_SIZE} bytes",
                got=str(len(self.signature)),
                rule="bundle.signature-size",
            )
        _bundle_size(_HEAD + len(self.quote))

    @classmethod
    def sign(cls, ticket: Ticket, quote: bytes, key: Ed25519PrivateKey) -> "Bundle":
        """The bundle that the holder of peer_id's key shows. Raises TicketFormatError."""
        public = key.public_key().public_bytes(Encoding.Raw, PublicFormat.Raw)
        if public != ticket.peer_id:
            raise TicketFormatError(
                "the key is not that of the ticket",
                expected=ticket.peer_id.hex(),
                got=public.hex(),
                rule="bundle.key",
            )
        return cls(ticket, key.sign(_possession(ticket, quote)), quote)

    def encode(self) -> bytes:
        """The bytes to show, at most 20,000."""
        return self.ticket.encode() + self.signature + _LENGTH.pack(len(self.quote)) + self.quote

    @classmethod
    def decode(cls, raw: bytes) -> "Bundle":
        """The bundle in `raw`, all of it. Raises TicketFormatError."""
        _bundle_size(len(raw))
        ticket = Ticket.decode(raw[: _TICKET.size])
        (length,) = _LENGTH.unpack_from(raw, _HEAD - _LENGTH.size)
        if length != len(raw) - _HEAD:
            raise TicketFormatError(
                "the bundle's quote is longer or shorter than it says",
                expected=f"{length} bytes",
                got=str(len(raw) - _HEAD),
                rule="bundle.quote-size",
            )
        return cls(ticket, raw[_TICKET.size : _HEAD - _LENGTH.size], raw[_HEAD:])

    def possessed(self) -> bool:
        """Whether the holder of peer_id's key signed this ticket with this quote."""
        key = Ed25519PublicKey.from_public_bytes(self.ticket.peer_id)
        try:
            key.verify(self.signature, _possession(self.ticket, self.quote))
        except InvalidSignature:
            return False
        return True


def _possession(ticket: Ticket, quote: bytes) -> bytes:
    return SIGNATURE_DOMAIN + b"\0" + ticket.encode() + hashlib.sha512(quote).digest()


def _bundle_size(size: int) -> None:
    if not _HEAD <= size <= MAX_BUNDLE:
        raise TicketFormatError(
            "this is no bundle of ticket and quote",
            expected=f"{_HEAD} to {MAX_BUNDLE} bytes",
            got=str(size),
            rule="bundle.size",
        )


def _member(name: str, kind: type[_Kind], value: int) -> _Kind:
    try:
        return kind(value)
    except ValueError:
        raise TicketFormatError(
            f"the ticket's {name} is unknown",
            expected=" or ".join(f"{member.value} {member.name.lower()}" for member in kind),
            got=str(value),
            rule=f"ticket.{name}",
        ) from None
