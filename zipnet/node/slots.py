r"""One small record on disk that survives being killed while it is written.

Two slots of equal size in one file or block device. A write goes to the slot that holds the older
record, is flushed to the disk, and only then returns; a reader takes the newer of those that are
whole. Each slot:

    "zipnet slot 1\n" (14) ‖ u64 counter ‖ u32 length ‖ BLAKE3 of all these and the record ‖ record

Neither secrecy nor age is protected here: what is in the record has to be sealed, and what must not
go back in time needs a witness elsewhere.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

from blake3 import blake3

from zipnet.errors import StateDamaged

MAGIC = b"zipnet slot 1\n"
HEAD = len(MAGIC) + 8 + 4 + 32
SLOT = "zipnet/node/slot/v1"


class TwoSlots:
    """The record in `path`. Not for two processes at once; the caller holds a lock.

    `size` is that of one slot, header included. The file is made if it is not there. With `fd` the
    slots begin at byte `at` of an open file or device, which stays its owner's. Raises StateDamaged
    for a record that neither slot has whole, although something was written; OSError if the disk
    fails.
    """

    __slots__ = ("_at", "_counter", "_fd", "_shared", "_size", "_sync", "path")

    def __init__(
        self,
        path: Path,
        size: int,
        sync: Callable[[int], None] = os.fsync,
        *,
        fd: int | None = None,
        at: int = 0,
    ) -> None:
        self.path = path
        self._size = size
        self._sync = sync
        self._shared = fd is not None
        flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW
        self._fd = os.open(path, flags, 0o600) if fd is None else fd
        self._at = at
        self._counter = 0

    def fileno(self) -> int:
        """The open file, for locks and for looking at its mode."""
        return self._fd

    def close(self) -> None:
        """Close the file, if it is not another's; twice is once."""
        fd, self._fd = self._fd, -1  # a late write must not reach what has this number next
        if fd >= 0 and not self._shared:
            os.close(fd)

    def read(self) -> bytes | None:
        """The newest whole record; None if nothing was ever written. Raises StateDamaged."""
        found = [self._slot(place) for place in (0, 1)]
        whole = [one for one in found if isinstance(one, tuple)]
        if not whole:
            if all(one is None for one in found):
                return None
            raise StateDamaged(
                "the state of this node is damaged",
                expected=f"a whole record in one of the two slots of {self.path.name}",
                got="neither",
                rule="slots.damaged",
                hint="the node must start anew, with new keys; keep the file for an inquiry",
            )
        self._counter, record = max(whole)
        return record

    def write(self, record: bytes) -> None:
        """Replace the record; returns when it is on the disk. Call `read` first."""
        if HEAD + len(record) > self._size:
            raise StateDamaged(
                "the record does not fit its slot",
                expected=f"at most {self._size - HEAD} bytes",
                got=str(len(record)),
                rule="slots.size",
            )
        counter = self._counter + 1
        raw = memoryview(self._head(counter, record) + record)
        at = self._at + (counter % 2) * self._size
        while raw:  # a full disk may take a part
            done = os.pwrite(self._fd, raw, at)
            raw, at = raw[done:], at + done
        self._sync(self._fd)
        self._counter = counter

    def _head(self, counter: int, record: bytes) -> bytes:
        start = MAGIC + counter.to_bytes(8, "big") + len(record).to_bytes(4, "big")
        return start + blake3(start + record, derive_key_context=SLOT).digest()

    def _slot(self, place: int) -> tuple[int, bytes] | bool | None:
        """Counter and record; None for a slot never written, False for one that is not whole."""
        raw = os.pread(self._fd, self._size, self._at + place * self._size)
        if not any(raw):
            return None
        counter = int.from_bytes(raw[len(MAGIC) : len(MAGIC) + 8], "big")
        length = int.from_bytes(raw[len(MAGIC) + 8 : len(MAGIC) + 12], "big")
        record = raw[HEAD : HEAD + length]
        whole = len(record) == length and raw[:HEAD] == self._head(counter, record)
        # Anybody can make a whole slot: there must be a number after it.
        return (counter, record) if whole and counter % 2 == place and not counter >> 63 else False
