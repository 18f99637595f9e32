r"""What a server on a host keeps as a member of the committee that clients seal with.

    "zipnet sealing 1\n" (17) ‖ root (32) ‖ u32 count ‖ count x (deployment ‖ instance (64) ‖
    version (u64) ‖ digest (32) ‖ boots (u64) ‖ anew (u8)), ascending ‖ BLAKE3 of all before (32)

The file is written whole for each answer and is on the disk before the answer leaves. Its host can
read it and put an old one back, as with the server's other state: then this member is one that
lies. A server inside a TD keeps the same in memory only.
"""

from __future__ import annotations

import stat
from pathlib import Path

from blake3 import blake3

from attestation.errors import FileError, SealUnavailable
from attestation.files import read_file, write_whole
from attestation.seal.committee_member import Known, table_full
from zipnet.errors import StateDamaged, WireFormatError
from zipnet.protocol.codec import Reader
from zipnet.roles.identity import Draw
from zipnet.roles.sealing import Kept

MAGIC = b"zipnet sealing 1\n"
CHECK = "zipnet/node/sealing/v1"
ENTRY = 64 + 8 + 32 + 8 + 1
MAX_INSTANCES = 4096
MAX_FILE = len(MAGIC) + 32 + 4 + MAX_INSTANCES * ENTRY + 32
NAME = "sealing"


class FileTable:
    """A `Table` in a file, of at most MAX_INSTANCES. The lock of the server's state guards it."""

    __slots__ = ("_known", "_path", "_root")

    def __init__(self, path: Path, root: bytes, known: dict[bytes, Known]) -> None:
        self._path = path
        self._root = root
        self._known = known

    def get(self, key: bytes) -> Known | None:
        """As `Table.get`."""
        return self._known.get(key)

    def put(self, key: bytes, known: Known) -> None:
        """As `Table.put`: on the disk when it returns."""
        if key not in self._known and len(self._known) >= MAX_INSTANCES:
            raise table_full(MAX_INSTANCES)
        after = {**self._known, key: known}
        try:
            write_whole(self._path, encode(self._root, after), 0o600)
        except FileError as error:
            raise SealUnavailable(
                "the member can't note what it knows",
                expected=f"a file {self._path.name} that can be written",
                got=str(error),
                rule="seal.disk",
                hint="see the disk of this server",
            ) from error
        self._known = after


def kept_in(folder: Path, draw: Draw) -> Kept:
    """What the file `sealing` in a server's state folder holds; made with a fresh root if absent.

    Raises StateDamaged: `sealing.mode` if others may read it, `sealing.damaged`; FileError.
    """
    path = folder / NAME
    if path.exists():
        mode = stat.S_IMODE(path.stat().st_mode)
        if mode & 0o077:
            raise StateDamaged(
                "others may read the root of this server's contributions",
                expected="mode 600",
                got=f"{path}: {mode:o}",
                rule="sealing.mode",
                hint="it may be known: remove it, and clients start with new identities",
            )
        root, known = decode(read_file(path, MAX_FILE))
    else:
        root, known = draw(32), {}
        write_whole(path, encode(root, known), 0o600)
    return Kept(root, FileTable(path, root, known))


def encode(root: bytes, known: dict[bytes, Known]) -> bytes:
    """As at the top of this module."""
    entries = b"".join(
        key
        + one.version.to_bytes(8, "big")
        + one.digest
        + one.boots.to_bytes(8, "big")
        + bytes([one.anew])
        for key, one in sorted(known.items())
    )
    start = MAGIC + root + len(known).to_bytes(4, "big") + entries
    return start + blake3(start, derive_key_context=CHECK).digest()


def decode(raw: bytes) -> tuple[bytes, dict[bytes, Known]]:
    """Root and table in `raw`, all of it. Raises StateDamaged, rule `sealing.damaged`."""
    try:
        reader = Reader(raw, "sealing", at_most=MAX_FILE)
        reader.expect("version", MAGIC)
        root = reader.take(32)
        entries = reader.many(4, MAX_INSTANCES, _entry)
        reader.expect("check", blake3(raw[:-32], derive_key_context=CHECK).digest())
        reader.done()
        keys = [key for key, _ in entries]
        if keys != sorted(set(keys)):
            raise reader.wrong("order", "instances ascending, each once", "another order")
    except WireFormatError as error:
        raise StateDamaged(
            "what this server keeps for sealing is damaged",
            expected=error.expected,
            got=error.got,
            rule="sealing.damaged",
            hint=f"remove the file {NAME}: clients then start with new identities",
        ) from error
    return root, dict(entries)


def _entry(reader: Reader) -> tuple[bytes, Known]:
    key = reader.take(64)
    return key, Known(reader.u64(), reader.take(32), reader.u64(), reader.flag())
