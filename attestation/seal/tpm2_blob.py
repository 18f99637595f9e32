"""The file that holds sealed data: what the TPM needs to give its key, and the data under that key.

    "attestation seal" (16) ‖ version 1 (u8) ‖ u8 length ‖ name ‖ NV index (u32) ‖ counter (u64) ‖
    selected PCRs (3, as in TPMS_PCR_SELECTION) ‖ digest of their values (32) ‖ TPM2B_PUBLIC ‖
    TPM2B_PRIVATE ‖ nonce (12) ‖ u32 length ‖ ciphertext and tag of ChaCha20-Poly1305

Integers are big endian. Everything before the nonce is authenticated with the data. None of it is
believed: the object's own policy holds counter and PCRs, and the TPM holds the object together.
"""

from __future__ import annotations

import secrets
from dataclasses import dataclass, field
from typing import Self

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305

from attestation.errors import SealFormatError
from attestation.seal.base import MAX_DATA, NAME
from attestation.seal.tpm2_policy import DIGEST, MAX_PCRS, PUBLIC_SIZE, SELECT, Pcrs

MAGIC = b"attestation seal"
VERSION = 1
KEY = 32
NONCE = 12
TAG = 16
# A sealed key of 32 bytes takes some 160; other TPMs may use longer seeds and hashes.
MAX_PRIVATE = 512
_MAX_HEADER = len(MAGIC) + 2 + 32 + 4 + 8 + SELECT + DIGEST + 2 + PUBLIC_SIZE + 2 + MAX_PRIVATE
MAX_BLOB = _MAX_HEADER + NONCE + 4 + MAX_DATA + TAG
_HINT = "the file is damaged: restore it, or seal anew"


@dataclass(frozen=True, slots=True)
class Header:
    """What stands before the nonce, in clear: `public` and `private` without their sizes."""

    name: str
    index: int
    counter: int
    pcrs: Pcrs
    pcr_digest: bytes
    public: bytes
    private: bytes = field(repr=False)

    def encode(self) -> bytes:
        """As at the top of this module."""
        name = self.name.encode("ascii")
        return b"".join(
            (
                MAGIC,
                bytes([VERSION, len(name)]),
                name,
                self.index.to_bytes(4, "big"),
                self.counter.to_bytes(8, "big"),
                self.pcrs.select,
                self.pcr_digest,
                len(self.public).to_bytes(2, "big"),
                self.public,
                len(self.private).to_bytes(2, "big"),
                self.private,
            )
        )


@dataclass(frozen=True, slots=True)
class Blob:
    """Sealed data. Encoding what was parsed gives the same bytes."""

    header: Header
    nonce: bytes
    ciphertext: bytes = field(repr=False)

    @classmethod
    def encrypt(cls, header: Header, key: bytes, data: bytes) -> Self:
        """Data under a key that is used for nothing else."""
        nonce = secrets.token_bytes(NONCE)
        return cls(header, nonce, ChaCha20Poly1305(key).encrypt(nonce, data, header.encode()))

    def decrypt(self, key: bytes) -> bytes:
        """The data. Raises SealFormatError, rule `seal.tag`."""
        try:
            return ChaCha20Poly1305(key).decrypt(self.nonce, self.ciphertext, self.header.encode())
        except (InvalidTag, ValueError) as error:
            raise SealFormatError(
                "the sealed data was changed",
                expected="the bytes that were written",
                rule="seal.tag",
                hint=_HINT,
            ) from error

    def encode(self) -> bytes:
        """As at the top of this module."""
        size = len(self.ciphertext).to_bytes(4, "big")
        return self.header.encode() + self.nonce + size + self.ciphertext

    @classmethod
    def parse(cls, raw: bytes) -> Self:
        """All of `raw`, which came from a disk. Raises SealFormatError."""
        if len(raw) > MAX_BLOB:
            raise SealFormatError(
                "the file is larger than sealed data can be",
                expected=f"at most {MAX_BLOB} bytes",
                rule="seal.blob-size",
                hint=_HINT,
            )
        reader = _Reader(raw)
        start = reader.take(len(MAGIC) + 1)
        if start != MAGIC + bytes([VERSION]):
            raise SealFormatError(
                "this is no sealed data that this version reads",
                expected=(MAGIC + bytes([VERSION])).hex(),
                got=start.hex(),
                rule="seal.version",
                hint="use the version that wrote it, or seal anew",
            )
        name = reader.take(reader.number(1)).decode("ascii", "replace")
        if NAME.fullmatch(name) is None:
            raise SealFormatError(
                "sealed data has no name",
                expected=NAME.pattern,
                got=ascii(name)[:80],
                rule="seal.blob-name",
                hint=_HINT,
            )
        header = Header(
            name,
            reader.number(4),
            reader.number(8),
            _pcrs(reader.take(SELECT)),
            reader.take(DIGEST),
            reader.sized(2, "public", PUBLIC_SIZE, PUBLIC_SIZE),
            reader.sized(2, "private", 1, MAX_PRIVATE),
        )
        nonce = reader.take(NONCE)
        ciphertext = reader.sized(4, "data", TAG, MAX_DATA + TAG)
        if reader.left:
            raise SealFormatError(
                "something follows the sealed data",
                expected="the end of the file",
                got=f"{reader.left} bytes more",
                rule="seal.trailing",
                hint=_HINT,
            )
        return cls(header, nonce, ciphertext)


def _pcrs(select: bytes) -> Pcrs:
    pcrs = Pcrs(select)
    if not 0 < len(pcrs.numbers) <= MAX_PCRS:
        raise SealFormatError(
            "sealed data names no registers, or too many",
            expected=f"1 to {MAX_PCRS}",
            got=str(len(pcrs.numbers)),
            rule="seal.blob-pcrs",
            hint=_HINT,
        )
    return pcrs


class _Reader:
    """Takes fields from the front of bytes."""

    __slots__ = ("_at", "_raw")

    def __init__(self, raw: bytes) -> None:
        self._raw = raw
        self._at = 0

    @property
    def left(self) -> int:
        return len(self._raw) - self._at

    def take(self, count: int) -> bytes:
        if count > self.left:
            raise SealFormatError(
                "the sealed data is cut off",
                expected=f"{count} bytes at {self._at}",
                got=str(self.left),
                rule="seal.cut",
                hint=_HINT,
            )
        self._at += count
        return self._raw[self._at - count : self._at]

    def number(self, size: int) -> int:
        return int.from_bytes(self.take(size), "big")

    def sized(self, size: int, what: str, least: int, most: int) -> bytes:
        count = self.number(size)
        if not least <= count <= most:
            raise SealFormatError(
                f"the {what} part of sealed data has a size that it can't have",
                expected=f"{least} to {most} bytes",
                got=str(count),
                rule="seal.field-size",
                hint=_HINT,
            )
        return self.take(count)
