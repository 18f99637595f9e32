"""Files that `zipnet admin` writes and reads, and one that it erases."""

from __future__ import annotations

import fcntl
import os
from pathlib import Path

from securesystemslib.dsse import Envelope

from attestation import envelope
from attestation.errors import AllowListRejected, FileUnreadable
from attestation.files import read_file
from zipnet.errors import DocumentRejected, GuardRefused

# Of what is erased, at a time.
CHUNK = 1 << 20


def read_signed(path: Path, payload_type: str) -> Envelope:
    """What an operator has signed, whichever it is. Raises FileError, DocumentRejected."""
    try:
        return envelope.parse(read_file(path, envelope.MAX_BYTES), payload_type)
    except AllowListRejected as error:
        raise DocumentRejected(
            f"{path} is no such document: {error.message}",
            expected=error.expected,
            got=error.got,
            rule=error.rule,
        ) from error


def erase(path: Path) -> None:
    """Overwrite a node's state, a file or a disk, with zeros, and remove a file.

    Raises FileUnreadable, and GuardRefused while a node has it open.
    """
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)
    except OSError as error:
        raise _unwritable(path, error) from error
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        size = os.lseek(descriptor, 0, os.SEEK_END)
        for at in range(0, size, CHUNK):
            os.pwrite(descriptor, bytes(min(CHUNK, size - at)), at)
        os.fsync(descriptor)
        if path.is_file():
            path.unlink()
    except BlockingIOError as error:
        raise GuardRefused(
            f"a node is running on {path}",
            expected="no process that has it open",
            rule="state.in-use",
            hint="stop the server first",
        ) from error
    except OSError as error:
        raise _unwritable(path, error) from error
    finally:
        os.close(descriptor)


def write_new(path: Path, data: bytes) -> None:
    """Write a file that was not there. Raises FileUnreadable."""
    try:
        with path.open("xb") as file:
            file.write(data)
    except OSError as error:
        raise _unwritable(path, error) from error


def _unwritable(path: Path, error: OSError) -> FileUnreadable:
    return FileUnreadable(
        f"can't write {path}: {error.strerror}",
        rule="file.write",
        hint="name a file in a folder that you may write to; what is there is not replaced",
    )
