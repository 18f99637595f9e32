"""Event logs from nothing but bytes, their layout written out once more from the specification."""

import hashlib
from dataclasses import dataclass, replace
from typing import Any, Self

from attestation.measure.eventlog import EventLog

SHA1, SHA256, SHA384, SHA512 = 4, 11, 12, 13
SIZES = {SHA1: 20, SHA256: 32, SHA384: 48, SHA512: 64}
GLOBAL = bytes.fromhex("61dfe48bca93d211aa0d00e098032b8c")
SEPARATOR = 4
ACTION = 0x80000007


def u16(value: int) -> bytes:
    return value.to_bytes(2, "little")


def u32(value: int) -> bytes:
    return value.to_bytes(4, "little")


def u64(value: int) -> bytes:
    return value.to_bytes(8, "little")


def sha384(data: bytes) -> bytes:
    return hashlib.sha384(data).digest()


@dataclass(frozen=True)
class Header:
    """The first record; a size of None is made true."""

    index: bytes = u32(1)
    kind: bytes = u32(3)
    digest: bytes = bytes(20)
    size: bytes | None = None
    signature: bytes = b"Spec ID Event03\0"
    platform: bytes = bytes(4) + b"\0\2\0\2"
    count: bytes | None = None
    algorithms: tuple[tuple[int, int], ...] = ((SHA384, 48),)
    vendor: bytes = b"\0"

    def with_(self, **changes: Any) -> Self:
        return replace(self, **changes)

    def build(self) -> bytes:
        count = u32(len(self.algorithms)) if self.count is None else self.count
        listed = b"".join(u16(name) + u16(size) for name, size in self.algorithms)
        body = self.signature + self.platform + count + listed + self.vendor
        size = u32(len(body)) if self.size is None else self.size
        return self.index + self.kind + self.digest + size + body


def record(
    register: int,
    kind: int,
    data: bytes,
    hashed: bytes | None = None,
    algorithms: tuple[int, ...] = (SHA384,),
) -> bytes:
    """One record, whose digests are of `hashed`, or else of the data."""
    digests = b""
    for name in algorithms:
        digest = hashlib.new(
            {SHA1: "sha1", SHA256: "sha256", SHA384: "sha384", SHA512: "sha512"}[name],
            data if hashed is None else hashed,
        ).digest()
        digests += u16(name) + digest
    return u32(register) + u32(kind) + u32(len(algorithms)) + digests + u32(len(data)) + data


HEADER = Header().build()
END = b"\xff" * 4


def log_of(*records: bytes) -> EventLog:
    return EventLog.parse(HEADER + b"".join(records) + END)


def variable(name: str, value: bytes, vendor: bytes = GLOBAL) -> bytes:
    """UEFI_VARIABLE_DATA."""
    return vendor + u64(len(name)) + u64(len(value)) + name.encode("utf-16-le") + value
