"""The disk of a sealed client: a block device or file without a partition table or file system.

    byte  size         what
       0  2 x 32,768   two slots: the committee's seal (attestation.seal.committee)
  65,536  2 x  4,096   two slots: the journal of guards (zipnet.node.sealed_journal)

The rest, up to 1 MiB at least, is not used. Slots are as in `zipnet.node.slots`. A disk of zeros is
one before the first start. Whoever has the machine can read the disk, alter it and put an old copy
back: both records are sealed, and the committee knows which one is the last.
"""

from __future__ import annotations

import errno
import fcntl
import os
import stat
from collections.abc import Callable
from pathlib import Path

from attestation.errors import SealUnavailable
from zipnet.errors import StateDamaged
from zipnet.node.slots import HEAD, TwoSlots

BLOB_SLOT = 32 << 10
JOURNAL_SLOT = 4 << 10
JOURNAL_AT = 2 * BLOB_SLOT
DISK_BYTES = 1 << 20
MAX_BLOB = BLOB_SLOT - HEAD


class SealedDisk:
    """A disk that this process has for itself. `blob` and `journal` are its two records."""

    __slots__ = ("_fd", "blob", "journal", "path")

    def __init__(self, fd: int, path: Path, sync: Callable[[int], None]) -> None:
        self._fd = fd
        self.path = path
        self.blob = TwoSlots(path, BLOB_SLOT, sync, fd=fd)
        self.journal = TwoSlots(path, JOURNAL_SLOT, sync, fd=fd, at=JOURNAL_AT)

    @classmethod
    def open(cls, path: Path, sync: Callable[[int], None] = os.fsync) -> SealedDisk:
        """The disk at `path`, which is there already.

        Raises StateDamaged: `disk.absent`, `disk.open`, `disk.in-use`, `disk.kind`, `disk.size`.
        """
        fd = _open(path)
        try:
            _have_alone(fd, path)
            _check_size(fd, path)
        except BaseException:
            os.close(fd)
            raise
        return cls(fd, path, sync)

    def read(self) -> bytes | None:
        """The newest whole seal; None on an empty disk.

        Raises StateDamaged, `slots.damaged`; SealUnavailable, `seal.disk`.
        """
        try:
            return self.blob.read()
        except OSError as error:
            raise _failed(self.path, error) from error

    def write(self, raw: bytes) -> None:
        """Replace the seal; durable when it returns. Raises SealUnavailable, `seal.disk`."""
        try:
            self.blob.write(raw)
        except OSError as error:
            raise _failed(self.path, error) from error

    def close(self) -> None:
        """Close the disk, and let another process have it; twice is once."""
        self.blob.close()
        self.journal.close()
        fd, self._fd = self._fd, -1
        if fd >= 0:
            os.close(fd)


def _failed(path: Path, error: OSError) -> SealUnavailable:
    return SealUnavailable(
        "the disk for sealed state fails",
        expected=f"{path} to be read and written",
        got=error.strerror or str(error),
        rule="seal.disk",
        hint="attach another disk: the client then starts with a new identity",
    )


def _open(path: Path) -> int:
    flags = os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK
    try:
        if stat.S_ISBLK(path.lstat().st_mode):
            # Of a device this means: not while it is mounted, or opened so by another process.
            flags |= os.O_EXCL
        return os.open(path, flags)
    except OSError as error:
        if isinstance(error, FileNotFoundError):
            rule, expected = "disk.absent", "a block device or file for sealed state"
        elif error.errno == errno.EBUSY:
            raise _in_use(path) from error
        else:
            rule, expected = "disk.open", "a block device or file that this user may write"
        raise StateDamaged(
            "the disk for sealed state can't be opened",
            expected=expected,
            got=f"{path}: {error.strerror or error}",
            rule=rule,
            hint="attach the disk to the machine, or start without sealed state",
        ) from error


def _have_alone(fd: int, path: Path) -> None:
    found = os.fstat(fd)
    if not (stat.S_ISREG(found.st_mode) or stat.S_ISBLK(found.st_mode)):
        raise StateDamaged(
            "this is no disk for sealed state",
            expected="a block device or a regular file",
            got=f"{path}: {stat.filemode(found.st_mode)}",
            rule="disk.kind",
        )
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        raise _in_use(path) from error


def _check_size(fd: int, path: Path) -> None:
    size = os.lseek(fd, 0, os.SEEK_END)  # of a device, fstat says 0
    if size < DISK_BYTES:
        raise StateDamaged(
            "the disk for sealed state is too small",
            expected=f"at least {DISK_BYTES} bytes",
            got=f"{size} bytes: {path}",
            rule="disk.size",
            hint="give the machine a larger one: `truncate -s 1M FILE` makes an empty disk",
        )


def _in_use(path: Path) -> StateDamaged:
    return StateDamaged(
        "the disk for sealed state is in use",
        expected="one process at a time",
        got=str(path),
        rule="disk.in-use",
        hint="stop the other process; two nodes with one identity fence each other",
    )
