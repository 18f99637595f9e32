"""newc cpio archives: the format of an initrd (Linux Documentation/driver-api/early-userspace)."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

from release.errors import BuildRefused

HEADER = 110
MAGIC = b"070701"
TRAILER = "TRAILER!!!"
NAME_LIMIT = 4096
HEADER_FORM = re.compile(MAGIC + rb"[0-9A-Fa-f]{104}")


@dataclass(frozen=True, slots=True)
class Entry:
    """One archive member. `data` is the file's content or the target of a link."""

    name: str
    mode: int
    uid: int
    gid: int
    mtime: int
    nlink: int
    device: tuple[int, int]
    data: bytes


def read(archive: bytes) -> Iterator[Entry]:
    """The members in order, without the trailer. Raises BuildRefused for a malformed archive."""
    at = 0
    while True:
        fields = _fields(archive, at)
        name_size, size = fields[11], fields[6]
        begin = at + HEADER
        data = _align(begin + name_size)
        end = data + size
        if not 1 < name_size <= NAME_LIMIT or end > len(archive):
            raise _malformed(at)
        name = archive[begin : begin + name_size - 1].decode("utf-8", "surrogateescape")
        if name == TRAILER:
            return
        yield Entry(
            name=name,
            mode=fields[1],
            uid=fields[2],
            gid=fields[3],
            mtime=fields[5],
            nlink=fields[4],
            device=(fields[9], fields[10]),
            data=archive[data:end],
        )
        at = _align(end)


def write(members: dict[str, tuple[int, bytes]]) -> bytes:
    """An archive of members (name to mode and data), owned by root, with mtime 0."""
    out = bytearray()
    numbered = enumerate([*members.items(), (TRAILER, (0, b""))], start=1)
    for inode, (name, (mode, data)) in numbered:
        raw = name.encode() + b"\0"
        fields = (inode, mode, 0, 0, 1, 0, len(data), 0, 0, 0, 0, len(raw), 0)
        out += MAGIC + b"".join(b"%08X" % value for value in fields) + raw
        out += bytes(-len(out) % 4) + data
        out += bytes(-len(out) % 4)
    return bytes(out)


def _fields(archive: bytes, at: int) -> list[int]:
    header = archive[at : at + HEADER]
    # Digits only: int() takes signs and blanks too, and a negative size would lead backwards.
    if len(header) != HEADER or not HEADER_FORM.fullmatch(header):
        raise _malformed(at)
    return [int(header[i : i + 8], 16) for i in range(6, HEADER, 8)]


def _align(offset: int) -> int:
    return -(-offset // 4) * 4


def _malformed(at: int) -> BuildRefused:
    return BuildRefused(
        "an initrd is not a newc cpio archive",
        got=f"a malformed member at offset {at}",
        rule="a UKI's initrd is one archive as mkosi writes it",
    )
