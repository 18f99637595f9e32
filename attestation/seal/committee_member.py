"""A member of a sealing committee: it releases its contribution to guests that pass the list.

    member.nonce(now)                                   answers NONCE_ASK
    asked = member.take(raw, now)                       cheap; uses the nonce up
    member.answer(asked, validate, list_number)         a quote is checked; bytes for the asker
    member.refuse(raw, error)                           the answer if either of them raises

The contribution is HKDF(root, deployment ‖ instance ‖ key id ‖ list number). Nothing measured is in
it, or an upgrade would lose the data: who gets it is decided by `validate`, anew each time.

For each instance a member keeps the newest version with the digest of its blob, so that an older
copy or another one of the same version shows; and how often it was opened, so that of two clones
only the one that came last can commit.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Protocol, TypeVar

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from attestation.bundle import Bundle, Fresh, Role
from attestation.errors import AttestationError, SealRefused
from attestation.seal.committee_format import (
    AEAD_NONCE,
    ID,
    NONCE,
    NOTHING,
    Answer,
    Asked,
    Op,
    Refusal,
    Released,
    Request,
)

ANSWER_DOMAIN = b"attestation/seal/committee/answer/v1"
BOX_DOMAIN = b"attestation/seal/committee/box/v1"
CONTRIBUTION_DOMAIN = b"attestation/seal/committee/contribution/v1"
NONCE_LIFE = 60
MAX_NONCES = 4_096
MAX_INSTANCES = 65_536
_T = TypeVar("_T")

# Raises AttestationError unless the bundle passes, under the list in force and as role SEALER, with
# this challenge.
Validate = Callable[[Bundle, bytes], object]


@dataclass(frozen=True, slots=True)
class Known:
    """What a member keeps of an instance.

    `version` and `digest` of its newest blob (0 and zeros: none yet), `boots`: how often it was
    opened or created, `anew`: whether the next commit may leave versions out.
    """

    version: int = 0
    digest: bytes = NOTHING
    boots: int = 0
    anew: bool = False


class Table(Protocol):
    """What a member must not forget, by deployment ‖ instance (64 bytes)."""

    def get(self, key: bytes) -> Known | None:
        """What was put last. Raises SealUnavailable if that can't be told."""
        ...

    def put(self, key: bytes, known: Known) -> None:
        """Durable when it returns. Raises SealUnavailable; SealRefused, rule `seal.table-full`."""
        ...


class MemoryTable:
    """A table that lasts as long as its process, of at most `capacity` instances.

    It never drops one: a member that has forgotten can't tell an old copy.
    """

    __slots__ = ("_capacity", "_known")

    def __init__(self, capacity: int = MAX_INSTANCES) -> None:
        self._capacity = capacity
        self._known: dict[bytes, Known] = {}

    def get(self, key: bytes) -> Known | None:
        """As `Table.get`."""
        return self._known.get(key)

    def put(self, key: bytes, known: Known) -> None:
        """As `Table.put`."""
        if key not in self._known and len(self._known) >= self._capacity:
            raise table_full(self._capacity)
        self._known[key] = known


def table_full(capacity: int) -> SealRefused:
    """A table holds no further instance: rule `seal.table-full`."""
    return SealRefused(
        "the member keeps as many instances as it can",
        expected=f"at most {capacity}",
        got="one more",
        rule="seal.table-full",
        hint="see who asks under ever new instance keys",
    )


class Member:
    """One member: `root` are 32 secret random bytes, `key` signs, `draw(n)` gives n random bytes.

    Not for two threads at once.
    """

    __slots__ = ("_draw", "_given", "_id", "_key", "_last", "_nonces", "_root", "_table")

    def __init__(
        self,
        root: bytes,
        member_id: bytes,
        key: Ed25519PrivateKey,
        table: Table,
        draw: Callable[[int], bytes],
    ) -> None:
        self._root = root
        self._id = member_id
        self._key = key
        self._table = table
        self._draw = draw
        self._given = 0
        # When each nonce was given, and as which; as which the last was that an instance used.
        self._nonces: dict[bytes, tuple[int, int]] = {}
        self._last: dict[bytes, int] = {}

    def nonce(self, now: int) -> bytes:
        """32 random bytes that one request may show within 60 s; `now` in seconds, by any clock."""
        nonce = self._draw(NONCE)
        self._given += 1
        _put_last(self._nonces, nonce, (now, self._given))
        return nonce

    def take(self, raw: bytes, now: int) -> Asked:
        """The request, well formed, consistent and under one of our nonces, which is used up.

        Raises SealFormatError, TicketFormatError; SealRefused, rules `seal.nonce`, `seal.binding`.
        """
        asked = Asked.decode(raw)
        request, ticket = asked.request, asked.bundle.ticket
        nonce = next((seat.nonce for seat in request.seats if seat.member == self._id), b"")
        given, order = self._nonces.pop(nonce, (None, 0))
        if given is None or not 0 <= now - given <= NONCE_LIFE:
            raise SealRefused(
                "the request has no nonce of this member that still holds",
                expected=f"one that was given for it within {NONCE_LIFE} s, and not used",
                got=nonce.hex() or "none",
                rule="seal.nonce",
                hint="ask for a nonce, and then again",
            )
        for what, expected, got in (
            ("role", bytes([Role.SEALER]), bytes([ticket.role])),
            ("kind of freshness", bytes([Fresh.CHALLENGE]), bytes([ticket.fresh_kind])),
            ("challenge", request.challenge, ticket.fresh),
            ("deployment", request.deployment, ticket.deployment_id),
            ("instance", request.instance, ticket.instance_id),
            # Whoever has the instance's key is the instance.
            ("peer", request.instance, ticket.peer_id),
        ):
            if expected != got:
                raise SealRefused(
                    f"the ticket is not for this request: its {what} differs",
                    expected=expected.hex(),
                    got=got.hex(),
                    rule="seal.binding",
                    hint="one ticket is drawn for each request, by the holder of the instance key",
                )
        return replace(asked, order=order)

    def answer(self, asked: Asked, validate: Validate, list_number: int) -> bytes:
        """What a taken request asks for, signed, and boxed for its ticket's X25519 key.

        `list_number` is that of the list in force, which `validate` goes by. Raises what `validate`
        raises; SealRefused, rules `seal.list`, `seal.late`, `seal.fenced`, `seal.behind`,
        `seal.version`, `seal.fork`, `seal.ephemeral`; and what the table raises. Nothing is
        released or kept then.
        """
        request = asked.request
        validate(asked.bundle, request.challenge)
        if request.list_number > list_number:
            raise SealRefused(
                "the key is of a list that is not in force yet",
                expected=f"list {list_number} or one before",
                got=str(request.list_number),
                rule="seal.list",
                hint="try again when the new list is in force",
            )
        slot = request.deployment + request.instance
        if asked.order <= self._last.get(slot, 0):
            # Its asker has given it up, and would be fenced off by its own earlier request.
            raise SealRefused(
                "a later request of this instance has been answered",
                expected=f"nonce {self._last[slot] + 1} or a later one",
                got=str(asked.order),
                rule="seal.late",
                hint="the request was held up on its way, or two copies ask: ask again",
            )
        boot = next(seat.boot for seat in request.seats if seat.member == self._id)
        known = _next(self._table.get(slot) or Known(), request, boot)
        released = Released(
            NOTHING if request.op is Op.COMMIT else self._contribution(request),
            *(known.version, known.digest, known.boots),
        )
        box = self._box(asked, released)
        # Before the answer leaves: a boot or version that is given out is never given again.
        self._table.put(slot, known)
        self._last.pop(slot, None)
        _put_last(self._last, slot, asked.order)
        return self._signed(asked.raw, box)

    def refuse(self, raw: bytes, error: AttestationError) -> bytes:
        """The signed answer that says by which rule this request is refused."""
        return self._signed(raw, Refusal.of(error.rule, error.message))

    def _contribution(self, request: Request) -> bytes:
        number = request.list_number.to_bytes(8, "big")
        parts = (CONTRIBUTION_DOMAIN, b"\0", request.deployment, request.instance, request.key_id)
        return HKDF(SHA256(), ID, None, b"".join(parts) + number).derive(self._root)

    def _box(self, asked: Asked, released: Released) -> bytes:
        own = X25519PrivateKey.from_private_bytes(self._draw(32))
        public = own.public_key().public_bytes_raw()
        theirs = asked.bundle.ticket.dh_pub
        try:
            shared = own.exchange(X25519PublicKey.from_public_bytes(theirs))
        except ValueError as error:
            raise SealRefused(
                "nothing can be sealed for the ticket's X25519 key",
                expected="a key drawn for this request",
                got=theirs.hex(),
                rule="seal.ephemeral",
            ) from error
        cipher = box_cipher(shared, asked.raw, self._id, public, theirs)
        return public + cipher.encrypt(bytes(AEAD_NONCE), released.encode(), None)

    def _signed(self, raw: bytes, content: bytes | Refusal) -> bytes:
        answer = Answer(content, bytes(64))
        signature = self._key.sign(to_sign(self._id, raw, answer))
        return replace(answer, signature=signature).encode()


def _put_last(items: dict[bytes, _T], key: bytes, value: _T) -> None:
    """Add an item; the oldest makes room if there are MAX_NONCES."""
    if len(items) >= MAX_NONCES:
        del items[next(iter(items))]
    items[key] = value


def box_cipher(
    shared: bytes, raw: bytes, member: bytes, public: bytes, dh_pub: bytes
) -> ChaCha20Poly1305:
    """The cipher of one box: `public` is the member's key for it, `dh_pub` the asker's."""
    info = BOX_DOMAIN + b"\0" + member + public + dh_pub
    salt = hashlib.sha256(raw).digest()
    return ChaCha20Poly1305(HKDF(SHA256(), 32, salt, info).derive(shared))


def to_sign(member: bytes, raw: bytes, answer: Answer) -> bytes:
    """What a member signs of its answer to the request `raw`."""
    return ANSWER_DOMAIN + b"\0" + member + hashlib.sha256(raw).digest() + answer.signed


def _next(known: Known, request: Request, boot: int) -> Known:
    """What is known once this request is answered."""
    if request.op is not Op.COMMIT:
        return replace(known, boots=known.boots + 1, anew=request.op is Op.CREATE)
    if boot > known.boots:
        raise SealRefused(
            "this member has forgotten the instance",
            expected=f"boot {boot}",
            got=str(known.boots),
            rule="seal.behind",
            hint="its operator has lost the member's table: create a new key",
        )
    if boot < known.boots:
        raise SealRefused(
            "another copy of this instance has started since",
            expected=f"boot {known.boots}",
            got=str(boot),
            rule="seal.fenced",
            hint="stop this one, and see who runs a second one under the same instance key",
        )
    if request.version == known.version and request.digest != known.digest:
        raise SealRefused(
            "another blob of this version is known",
            expected=known.digest.hex(),
            got=request.digest.hex(),
            rule="seal.fork",
            hint="two copies of the instance wrote: stop one",
        )
    if request.version == known.version + 1 or (known.anew and request.version > known.version):
        return replace(known, version=request.version, digest=request.digest, anew=False)
    if request.version != known.version:
        raise SealRefused(
            "the version does not follow the newest that is known",
            expected=f"version {known.version + 1}",
            got=str(request.version),
            rule="seal.version",
            hint="open the newest blob, or create a new key",
        )
    return known
