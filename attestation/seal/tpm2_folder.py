"""The folder with a TPM sealer's files: one for each name, and the Names of its TPM's keys."""

from __future__ import annotations

import fcntl
import os
import re
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from attestation.errors import SealError, SealFormatError, SealRefused, SealUnavailable
from attestation.seal.tpm2_blob import MAX_BLOB

PIN = "tpm2.pin"
_SUFFIX = ".sealed"
_NAME = "000b[0-9a-f]{64}"  # TPM_ALG_SHA256, then the digest of the public area
_PIN = re.compile(rf"srk ({_NAME})\nek ({_NAME}|-)\n")


@dataclass(frozen=True, slots=True)
class Pin:
    """The Names of the TPM's storage root key and, where it could be had, endorsement key."""

    srk: bytes
    ek: bytes | None

    def encode(self) -> bytes:
        """Two lines of text, in hex; `-` for none."""
        return f"srk {self.srk.hex()}\nek {'-' if self.ek is None else self.ek.hex()}\n".encode()

    @classmethod
    def parse(cls, raw: bytes) -> Self:
        """All of `raw`. Raises SealFormatError, rule `seal.pin-format`."""
        match = _PIN.fullmatch(raw.decode("ascii", "replace"))
        if match is None:
            raise SealFormatError(
                "the record of the TPM's keys is damaged",
                expected="two lines: srk HEX, ek HEX",
                got=ascii(raw[:80]),
                rule="seal.pin-format",
                hint=f"restore {PIN} from a backup, or pass the SRK's Name yourself",
            )
        return cls(bytes.fromhex(match[1]), None if match[2] == "-" else bytes.fromhex(match[2]))


@dataclass(frozen=True, slots=True)
class Folder:
    """A folder of this user alone (mode 700). All methods raise SealUnavailable if the disk fails.

    `sync` flushes an open file or folder, as os.fsync.
    """

    path: Path
    sync: Callable[[int], None] = os.fsync

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Make the folder, and have it alone.

        Raises SealRefused, rules `seal.folder-mode` and `seal.in-use`.
        """
        with _disk(self.path):
            self.path.mkdir(mode=0o700, parents=True, exist_ok=True)
            handle = os.open(self.path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
        try:
            self._check(handle)
            yield
        finally:
            os.close(handle)

    def _check(self, handle: int) -> None:
        found = os.fstat(handle)
        if found.st_uid != os.geteuid() or stat.S_IMODE(found.st_mode) & 0o077:
            raise SealRefused(
                "others may read or change the folder of sealed data",
                expected=f"a folder of user {os.geteuid()} with mode 700",
                got=f"user {found.st_uid}, {stat.filemode(found.st_mode)}",
                rule="seal.folder-mode",
                hint=f"see who owns {self.path}, and chmod 700 it",
            )
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise SealRefused(
                "the sealed data is in use",
                expected="one sealer at a time",
                got=str(self.path),
                rule="seal.in-use",
                hint="stop the other process",
            ) from error

    def pin(self) -> Pin | None:
        """The recorded Names, if any. Raises SealFormatError, rule `seal.pin-format`."""
        raw = self._read(PIN, 1024)
        return None if raw is None else Pin.parse(raw)

    def write_pin(self, pin: Pin) -> None:
        """Record the Names; durable when it returns."""
        self._write(PIN, pin.encode())

    def blob(self, name: str) -> bytes | None:
        """The file of a name, up to one byte more than one can have."""
        return self._read(name + _SUFFIX, MAX_BLOB + 1)

    def write_blob(self, name: str, raw: bytes) -> None:
        """Replace the file of a name; durable when it returns, and never there by half."""
        self._write(name + _SUFFIX, raw)

    def has_blobs(self) -> bool:
        """Whether anything was ever sealed here."""
        with _disk(self.path):
            return any(self.path.glob(f"*{_SUFFIX}"))

    def _read(self, name: str, limit: int) -> bytes | None:
        flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
        with _disk(self.path / name):
            try:
                handle = os.open(self.path / name, flags)
            except FileNotFoundError:
                return None
            with os.fdopen(handle, "rb") as file:
                return file.read(limit)

    def _write(self, name: str, raw: bytes) -> None:
        # One writer at a time: what is under this name was left by one that was killed.
        new = self.path / f".{name}.new"
        with _disk(self.path / name):
            new.unlink(missing_ok=True)
            flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
            with os.fdopen(os.open(new, flags, 0o600), "wb") as file:
                file.write(raw)
                file.flush()
                self.sync(file.fileno())
            new.replace(self.path / name)
            folder = os.open(self.path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            try:
                self.sync(folder)
            finally:
                os.close(folder)


@contextmanager
def _disk(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise _unusable(path, error) from error


def _unusable(path: Path, error: OSError) -> SealError:
    return SealUnavailable(
        "the files of sealed data can't be used",
        expected=f"regular files in {path.parent if path.suffix else path}",
        got=f"{path.name}: {error.strerror or error}",
        rule="seal.disk",
        hint="check the disk, its free space and who owns the folder",
    )
