"""Blobs as files: one folder an archive, one file a blob, named by its digest."""

import os
from pathlib import Path

from blake3 import blake3

from zipnet.errors import BlobAltered, BlobMissing, Unavailable


def tidy(folder: Path) -> None:
    """Make the archive's folder, and remove what an interrupted `put` left. Raises Unavailable."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for torn in folder.glob(".*"):
            torn.unlink()
        sync(folder.parent)
    except OSError as error:
        raise _unavailable(error) from error


def put(folder: Path, data: bytes, *, durable: bool) -> bytes:
    """As `Blobs.put`."""
    digest = blake3(data).digest()
    path = folder / digest.hex()
    try:
        if not _holds(path, data):
            torn = folder / f".{digest.hex()}"
            with torn.open("wb") as file:
                file.write(data)
                file.flush()
                if durable:
                    os.fsync(file.fileno())
            torn.replace(path)
        if durable:
            sync(folder)
    except OSError as error:
        raise _unavailable(error) from error
    return digest


def get(folder: Path, digest: bytes) -> bytes:
    """As `Blobs.get`."""
    try:
        data = (folder / digest.hex()).read_bytes()
    except FileNotFoundError as error:
        raise BlobMissing(
            "there is no such blob",
            expected=digest.hex(),
            rule="blob.missing",
            hint="ask who announced it to store it again",
        ) from error
    except OSError as error:
        raise _unavailable(error) from error
    actual = blake3(data).digest()
    if actual != digest:
        raise BlobAltered(
            "the blob was altered",
            expected=digest.hex(),
            got=actual.hex(),
            rule="blob.altered",
            hint="check the disk; storing the blob again repairs it",
        )
    return data


def sync(folder: Path) -> None:
    """Make the names in a folder durable. Raises OSError."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _holds(path: Path, data: bytes) -> bool:
    try:
        return path.stat().st_size == len(data) and path.read_bytes() == data
    except FileNotFoundError:
        return False


def _unavailable(error: OSError) -> Unavailable:
    return Unavailable(
        "the archive can't be read or written",
        got=str(error),
        rule="blob.file",
        hint="check the disk, then try again",
    )
