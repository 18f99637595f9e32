"""The disk of a sealed client: what is no such disk, and what lies where on it."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from attestation.errors import SealUnavailable
from tests.zipnet.protocol.support import refused
from zipnet.errors import StateDamaged
from zipnet.node.sealed_disk import (
    BLOB_SLOT,
    DISK_BYTES,
    JOURNAL_AT,
    JOURNAL_SLOT,
    MAX_BLOB,
    SealedDisk,
)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    made = tmp_path / "disk"
    made.write_bytes(bytes(DISK_BYTES))
    return made


def test_two_records_that_do_not_touch(path: Path) -> None:
    disk = SealedDisk.open(path)
    assert disk.read() is None
    assert disk.journal.read() is None
    for _ in range(2):
        disk.write(b"b" * MAX_BLOB)
        disk.journal.write(b"j")
    disk.close()
    disk.close()
    raw = path.read_bytes()
    assert len(raw) == DISK_BYTES
    assert not any(raw[JOURNAL_AT + 2 * JOURNAL_SLOT :])
    assert raw[JOURNAL_AT - 1 : JOURNAL_AT] == raw[BLOB_SLOT - 1 : BLOB_SLOT] == b"b"
    disk = SealedDisk.open(path)
    assert (disk.read(), disk.journal.read()) == (b"b" * MAX_BLOB, b"j")
    disk.close()


def test_one_process_at_a_time(path: Path) -> None:
    disk = SealedDisk.open(path)
    with refused(StateDamaged, "disk.in-use"):
        SealedDisk.open(path)
    disk.close()
    SealedDisk.open(path).close()


def test_a_device_that_another_has(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def busy(*_: object) -> int:
        raise OSError(errno.EBUSY, "busy")

    monkeypatch.setattr(os, "open", busy)
    with refused(StateDamaged, "disk.in-use"):
        SealedDisk.open(path)


def test_what_is_no_disk(tmp_path: Path, path: Path) -> None:
    with refused(StateDamaged, "disk.absent"):
        SealedDisk.open(tmp_path / "none")
    link = tmp_path / "link"
    link.symlink_to(path)
    with refused(StateDamaged, "disk.open"):
        SealedDisk.open(link)
    with refused(StateDamaged, "disk.kind"):
        SealedDisk.open(Path(os.devnull))
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    with refused(StateDamaged, "disk.kind"):
        SealedDisk.open(pipe)
    path.write_bytes(bytes(DISK_BYTES - 1))
    with refused(StateDamaged, "disk.size"):
        SealedDisk.open(path)


def test_a_disk_that_fails(path: Path) -> None:
    def fails(_descriptor: int) -> None:
        raise OSError(errno.EIO, "input/output error")

    disk = SealedDisk.open(path, fails)
    disk.read()
    with pytest.raises(SealUnavailable) as caught:
        disk.write(b"x")
    assert caught.value.rule == "seal.disk"
    disk.close()
    with pytest.raises(SealUnavailable) as caught:
        disk.read()
    assert caught.value.rule == "seal.disk"
