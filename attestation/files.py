"""Reading input files, bounded, and writing files whole."""

import os
import secrets
import stat
from contextlib import suppress
from pathlib import Path

from attestation.errors import FileTooLarge, FileUnreadable

# The end of the names of files that a crash may leave behind.
UNFINISHED = ".new"


def read_file(path: Path, limit: int) -> bytes:
    """The content of a regular file of at most `limit` bytes.

    Raises FileUnreadable, FileTooLarge.
    """
    try:
        # Before opening, which would wait for a writer if this were a pipe.
        if not stat.S_ISREG(path.stat().st_mode):
            raise FileUnreadable(f"{path} is not a regular file", rule="file.kind")
        with path.open("rb") as file:
            data = file.read(limit + 1)
    except OSError as error:
        raise FileUnreadable(
            f"can't read {path}: {error.strerror}",
            rule="file.read",
            hint="check the path and its permissions",
        ) from error
    if len(data) > limit:
        raise FileTooLarge(
            f"{path} is too large",
            expected=f"at most {limit} bytes",
            rule="file.size",
            hint="check that this is the right file",
        )
    return data


def write_whole(path: Path, data: bytes, mode: int = 0o666) -> None:
    """Write a file so that after a crash it is there as it was before, or whole.

    `mode` is what a new file gets, less the umask. Raises FileUnreadable (`file.write`).
    """
    unfinished = path.with_name(f".{path.name}.{secrets.token_hex(8)}{UNFINISHED}")
    try:
        try:
            flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
            with os.fdopen(os.open(unfinished, flags, mode), "wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            unfinished.replace(path)
        except BaseException:
            with suppress(OSError):
                unfinished.unlink()
            raise
        folder = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)
    except OSError as error:
        raise unwritable(path, error) from error


def unwritable(path: Path, error: OSError) -> FileUnreadable:
    """What to raise for a file that can't be written."""
    return FileUnreadable(
        f"can't write {path}: {error.strerror}",
        rule="file.write",
        hint="check the path, its permissions and the space there",
    )
