"""Reading input files, bounded."""

import stat
from pathlib import Path

from attestation.errors import FileTooLarge, FileUnreadable


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
