r"""What lies on the disk, and what an asker and the members of a committee say to each other.

A blob:

    "committee seal 1\n" (17) ‖ deployment (32) ‖ instance (32) ‖ key id (32) ‖ list number (u64) ‖
    version (u64) ‖ u16 n ‖ n × (member id (32) ‖ commitment (32)), ids ascending ‖ nonce (12) ‖
    u32 length ‖ ciphertext and tag of ChaCha20-Poly1305, whose AAD is everything before it

A request is a body ‖ a bundle (`attestation.bundle`); the same bytes go to every member:

    "committee ask 1\n" (16) ‖ op (u8: 1 open, 2 create, 3 commit) ‖ deployment (32) ‖
    instance (32) ‖ key id (32) ‖ list number (u64) ‖ version (u64) ‖ digest (32) ‖
    u16 n ‖ n × (member id (32) ‖ nonce (32) ‖ boot (u64)), ids ascending

The bundle's ticket has the role SEALER, the instance as instance_id and as peer_id (the instance
*is* an Ed25519 key), an X25519 key of this one request as dh_pub, and as its challenge

    SHA-256(u32 length ‖ CHALLENGE_DOMAIN ‖ u32 length ‖ body)

An answer, signed over ANSWER_DOMAIN ‖ 0 ‖ member id ‖ SHA-256(request) ‖ status ‖ content:

    "committee answer 1\n" (19) ‖ status (u8) ‖ u16 length ‖ content ‖ Ed25519 signature (64)
    status 0: content = X25519 public key (32) ‖ ChaCha20-Poly1305(contribution (32) ‖ known
              version (u64) ‖ known digest (32) ‖ boot (u64)); the nonce is zero, the key
              HKDF-SHA256(X25519, salt SHA-256(request), info BOX_DOMAIN ‖ 0 ‖ member id ‖
              its public key ‖ dh_pub); the contribution of an answer to a commit is zeros
    status 1: content = u8 length ‖ rule ‖ u16 length ‖ text, both printable ASCII

Version 0 with a digest of zeros is "nothing known". Integers are big endian and below 2^63.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from enum import IntEnum
from itertools import pairwise
from typing import Self, TypeVar

from attestation.bundle import MAX_BUNDLE, Bundle
from attestation.errors import SealFormatError

BLOB_MAGIC = b"committee seal 1\n"
REQUEST_MAGIC = b"committee ask 1\n"
ANSWER_MAGIC = b"committee answer 1\n"
# Asks a member for a nonce; the answer is these 32 bytes and nothing else.
NONCE_ASK = b"committee nonce 1\n"
CHALLENGE_DOMAIN = b"attestation/seal/committee/challenge/v1"

ID = 32
NONCE = 32
MAX_MEMBERS = 64
MAX_NUMBER = (1 << 63) - 1
MAX_DATA = 24 << 10
MAX_RULE = 64
MAX_TEXT = 300
AEAD_NONCE = 12
TAG = 16
NOTHING = bytes(ID)
RELEASED = ID + 8 + ID + 8
_MAX_HEADER = len(BLOB_MAGIC) + 3 * ID + 2 * 8 + 2 + MAX_MEMBERS * 2 * ID
MAX_BLOB = _MAX_HEADER + AEAD_NONCE + 4 + MAX_DATA + TAG
_MAX_BODY = len(REQUEST_MAGIC) + 1 + 4 * ID + 2 * 8 + 2 + MAX_MEMBERS * (ID + NONCE + 8)
MAX_REQUEST = _MAX_BODY + MAX_BUNDLE
_MAX_CONTENT = 1 + MAX_RULE + 2 + MAX_TEXT
MAX_ANSWER = len(ANSWER_MAGIC) + 1 + 2 + _MAX_CONTENT + 64
_BOX = ID + RELEASED + TAG
_RULE = re.compile(rf"[a-z][a-z0-9.-]{{0,{MAX_RULE - 1}}}")
_TEXT = re.compile(rf"[ -~]{{0,{MAX_TEXT}}}")
_T = TypeVar("_T")


class Op(IntEnum):
    """What a request is for. CREATE also lets the next commit leave versions out."""

    OPEN = 1
    CREATE = 2
    COMMIT = 3


@dataclass(frozen=True, slots=True)
class Header:
    """What stands before a blob's nonce, in clear; `members` are (id, commitment), ids ascending.

    `list_number` is that of the list in force when the key was made. Raises SealFormatError, rule
    `seal.damaged`.
    """

    deployment: bytes
    instance: bytes
    key_id: bytes
    list_number: int
    version: int
    members: tuple[tuple[bytes, bytes], ...]

    def __post_init__(self) -> None:
        _check_fields(
            "seal.damaged",
            (
                self.deployment,
                self.instance,
                self.key_id,
                *(part for m in self.members for part in m),
            ),
            (self.list_number, self.version),
            [member for member, _ in self.members],
        )
        if self.version == 0:
            raise _wrong("seal.damaged", "version", "1 or more", "0")

    @property
    def ids(self) -> tuple[bytes, ...]:
        """The members whose contributions the key is made of, ascending."""
        return tuple(member for member, _ in self.members)

    def encode(self) -> bytes:
        """As at the top of this module."""
        return b"".join(
            (
                *(BLOB_MAGIC, self.deployment, self.instance, self.key_id),
                *(_u64(self.list_number), _u64(self.version), len(self.members).to_bytes(2, "big")),
                *(member + commitment for member, commitment in self.members),
            )
        )


@dataclass(frozen=True, slots=True)
class Blob:
    """Sealed data. Encoding what was parsed gives the same bytes."""

    header: Header
    nonce: bytes
    ciphertext: bytes = field(repr=False)

    @property
    def associated(self) -> bytes:
        """What is authenticated with the data."""
        size = len(self.ciphertext).to_bytes(4, "big")
        return self.header.encode() + self.nonce + size

    @property
    def digest(self) -> bytes:
        """What the members keep of it: SHA-256 of all its bytes."""
        return hashlib.sha256(self.encode()).digest()

    def encode(self) -> bytes:
        """As at the top of this module."""
        return self.associated + self.ciphertext

    @classmethod
    def parse(cls, raw: bytes) -> Self:
        """All of `raw`, which came from a disk. Raises SealFormatError, rule `seal.damaged`."""
        reader = _Reader(raw, "seal.damaged", MAX_BLOB)
        reader.expect(BLOB_MAGIC)
        header = Header(
            *(reader.take(ID), reader.take(ID), reader.take(ID)),
            *(reader.number(8), reader.number(8)),
            reader.many(lambda: (reader.take(ID), reader.take(ID))),
        )
        nonce = reader.take(AEAD_NONCE)
        ciphertext = reader.sized(4, TAG, MAX_DATA + TAG)
        reader.done()
        return cls(header, nonce, ciphertext)


@dataclass(frozen=True, slots=True)
class Seat:
    """A member in a request: the nonce that it gave, and its boot number (0 but for a commit)."""

    member: bytes
    nonce: bytes
    boot: int = 0


@dataclass(frozen=True, slots=True)
class Request:
    """The body of a request. Raises SealFormatError, rule `seal.request`."""

    op: Op
    deployment: bytes
    instance: bytes
    key_id: bytes
    list_number: int
    version: int
    digest: bytes
    seats: tuple[Seat, ...]

    def __post_init__(self) -> None:
        ids = [seat.member for seat in self.seats]
        _check_fields(
            "seal.request",
            (
                *(self.deployment, self.instance, self.key_id, self.digest),
                *(part for seat in self.seats for part in (seat.member, seat.nonce)),
            ),
            (self.list_number, self.version, *(seat.boot for seat in self.seats)),
            ids,
        )
        if (self.version == 0) != (self.op is Op.CREATE):
            raise _wrong("seal.request", "version", "0 to create, else more", str(self.version))
        if self.op is Op.CREATE and self.digest != NOTHING:
            raise _wrong("seal.request", "digest", "zeros to create", self.digest.hex())
        if any((seat.boot == 0) == (self.op is Op.COMMIT) for seat in self.seats):
            raise _wrong("seal.request", "boot number", "0 but to commit", "another")

    @property
    def challenge(self) -> bytes:
        """What the ticket beside it must be fresh by: it binds every field and every nonce."""
        parts = (CHALLENGE_DOMAIN, self.encode())
        return hashlib.sha256(b"".join(len(p).to_bytes(4, "big") + p for p in parts)).digest()

    def encode(self) -> bytes:
        """As at the top of this module."""
        return b"".join(
            (
                *(REQUEST_MAGIC, bytes([self.op]), self.deployment, self.instance, self.key_id),
                *(_u64(self.list_number), _u64(self.version), self.digest),
                len(self.seats).to_bytes(2, "big"),
                *(seat.member + seat.nonce + _u64(seat.boot) for seat in self.seats),
            )
        )


@dataclass(frozen=True, slots=True)
class Asked:
    """A request as a member received it: nothing in it is checked yet but its format.

    `order` is that of its nonce among those that the member has given, once it has looked.
    """

    request: Request
    bundle: Bundle
    raw: bytes = field(repr=False)
    order: int = 0

    @classmethod
    def decode(cls, raw: bytes) -> Self:
        """All of `raw`. Raises SealFormatError, rule `seal.request`; TicketFormatError."""
        reader = _Reader(raw, "seal.request", MAX_REQUEST)
        reader.expect(REQUEST_MAGIC)
        op = reader.number(1)
        if op not in set(Op):
            raise _wrong("seal.request", "operation", "1, 2 or 3", str(op))
        request = Request(
            Op(op),
            *(reader.take(ID), reader.take(ID), reader.take(ID)),
            *(reader.number(8), reader.number(8), reader.take(ID)),
            reader.many(lambda: Seat(reader.take(ID), reader.take(NONCE), reader.number(8))),
        )
        return cls(request, Bundle.decode(reader.rest()), raw)


@dataclass(frozen=True, slots=True)
class Released:
    """What a member answers: its contribution, the newest (version, digest) it knows, the boot."""

    contribution: bytes = field(repr=False)
    version: int
    digest: bytes
    boot: int

    def encode(self) -> bytes:
        """80 bytes, for the box."""
        return self.contribution + _u64(self.version) + self.digest + _u64(self.boot)

    @classmethod
    def decode(cls, raw: bytes) -> Self:
        """All of `raw`, out of the box. Raises SealFormatError, rule `seal.answer`."""
        reader = _Reader(raw, "seal.answer", RELEASED)
        released = cls(reader.take(ID), reader.number(8), reader.take(ID), reader.number(8))
        reader.done()
        if released.version == 0 and released.digest != NOTHING:
            raise _wrong("seal.answer", "digest", "zeros for nothing", released.digest.hex())
        if released.boot == 0:
            raise _wrong("seal.answer", "boot number", "1 or more", "0")
        return released


@dataclass(frozen=True, slots=True)
class Refusal:
    """Why a member does not answer; its words, cut and cleaned."""

    rule: str
    text: str

    @classmethod
    def of(cls, rule: str, text: str) -> Self:
        """As much of an error as travels."""
        clean = re.sub(r"[^ -~]", "?", text)[:MAX_TEXT]
        return cls(rule if _RULE.fullmatch(rule) else "seal.refused", clean)

    def encode(self) -> bytes:
        """As at the top of this module."""
        rule, text = self.rule.encode("ascii"), self.text.encode("ascii")
        return bytes([len(rule)]) + rule + len(text).to_bytes(2, "big") + text


@dataclass(frozen=True, slots=True)
class Answer:
    """An answer as it arrived: `content` is a box or a `Refusal`, `signature` not yet checked."""

    content: bytes | Refusal
    signature: bytes

    @property
    def signed(self) -> bytes:
        """Status and content, the end of what is signed."""
        if isinstance(self.content, Refusal):
            return b"\1" + self.content.encode()
        return b"\0" + self.content

    def encode(self) -> bytes:
        """As at the top of this module."""
        status, content = self.signed[:1], self.signed[1:]
        size = len(content).to_bytes(2, "big")
        return ANSWER_MAGIC + status + size + content + self.signature

    @classmethod
    def decode(cls, raw: bytes) -> Self:
        """All of `raw`. Raises SealFormatError, rule `seal.answer`."""
        reader = _Reader(raw, "seal.answer", MAX_ANSWER)
        reader.expect(ANSWER_MAGIC)
        status = reader.number(1)
        content = reader.sized(2, 0, _MAX_CONTENT)
        signature = reader.take(64)
        reader.done()
        if status == 1:
            return cls(_refusal(content), signature)
        if status != 0:
            raise _wrong("seal.answer", "status", "0 or 1", str(status))
        if len(content) != _BOX:
            raise _wrong("seal.answer", "box", f"{_BOX} bytes", str(len(content)))
        return cls(content, signature)


def _refusal(raw: bytes) -> Refusal:
    reader = _Reader(raw, "seal.answer", _MAX_CONTENT)
    rule = reader.sized(1, 1, MAX_RULE).decode("latin-1")
    text = reader.sized(2, 0, MAX_TEXT).decode("latin-1")
    reader.done()
    if _RULE.fullmatch(rule) is None or _TEXT.fullmatch(text) is None:
        raise _wrong("seal.answer", "refusal", "a rule and printable ASCII", ascii(rule))
    return Refusal(rule, text)


class _Reader:
    """Takes fields from the front of bytes; every error has the same rule."""

    __slots__ = ("_at", "_raw", "_rule")

    def __init__(self, raw: bytes, rule: str, at_most: int) -> None:
        self._raw = raw
        self._rule = rule
        self._at = 0
        if len(raw) > at_most:
            raise _wrong(rule, "size", f"at most {at_most} bytes", str(len(raw)))

    def take(self, count: int) -> bytes:
        left = len(self._raw) - self._at
        if count > left:
            raise _wrong(self._rule, "length", f"{count} bytes at {self._at}", str(left))
        self._at += count
        return self._raw[self._at - count : self._at]

    def number(self, size: int) -> int:
        return int.from_bytes(self.take(size), "big")

    def expect(self, magic: bytes) -> None:
        got = self.take(len(magic))
        if got != magic:
            raise _wrong(self._rule, "start", magic.hex(), got.hex())

    def sized(self, size: int, least: int, most: int) -> bytes:
        count = self.number(size)
        if not least <= count <= most:
            raise _wrong(self._rule, "size of a field", f"{least} to {most} bytes", str(count))
        return self.take(count)

    def many(self, one: Callable[[], _T]) -> tuple[_T, ...]:
        count = self.number(2)
        if not 1 <= count <= MAX_MEMBERS:
            raise _wrong(self._rule, "number of members", f"1 to {MAX_MEMBERS}", str(count))
        return tuple(one() for _ in range(count))

    def rest(self) -> bytes:
        return self.take(len(self._raw) - self._at)

    def done(self) -> None:
        left = len(self._raw) - self._at
        if left:
            raise _wrong(self._rule, "end", "nothing more", f"{left} bytes")


def _u64(value: int) -> bytes:
    return value.to_bytes(8, "big")


def _check_fields(
    rule: str, parts: tuple[bytes, ...], numbers: tuple[int, ...], ids: list[bytes]
) -> None:
    if any(len(part) != ID for part in parts):
        raise _wrong(rule, "field", f"{ID} bytes", "another size")
    if not all(0 <= number <= MAX_NUMBER for number in numbers):
        raise _wrong(rule, "number", "0 to 2^63 - 1", str(max(numbers, key=abs)))
    if not 1 <= len(ids) <= MAX_MEMBERS:
        raise _wrong(rule, "number of members", f"1 to {MAX_MEMBERS}", str(len(ids)))
    if any(first >= second for first, second in pairwise(ids)):
        raise _wrong(rule, "order of members", "ids ascending, each once", "another")


_WHAT = {
    "seal.damaged": "data that a committee sealed",
    "seal.request": "request to a sealing committee",
    "seal.answer": "answer of a sealing committee",
}


def _wrong(rule: str, what: str, expected: str, got: str) -> SealFormatError:
    return SealFormatError(
        f"this is no {_WHAT[rule]}: its {what} is wrong",
        expected=expected,
        got=got,
        rule=rule,
        hint="the bytes were damaged, or another version made them",
    )
