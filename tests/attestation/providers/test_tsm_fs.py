"""The file operations under a quote request. configfs needs a TDX guest: calls are checked."""

import errno
import os
import stat
from pathlib import Path

import pytest

from attestation.errors import ProviderAbsent, ProviderFailed
from attestation.providers.tsm import MAX_OUTBLOB, REPORTS, RealFs, TsmProvider
from tests.attestation.providers.fake_tsm import quote_of

DATA = bytes(range(64))
QUOTE = quote_of(DATA)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    RealFs(tmp_path).mkdir("report")
    return tmp_path / "report"


def test_real_folder_is_private(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plain = os.mkdir

    def mkdir(path: Path, mode: int = 0o777) -> None:
        # As configfs does, whatever mode is asked for.
        plain(path, 0o755)

    monkeypatch.setattr(os, "mkdir", mkdir)
    RealFs(tmp_path).mkdir("report")
    assert stat.S_IMODE((tmp_path / "report").stat().st_mode) == 0o700
    RealFs(tmp_path).rmdir("report")
    assert list(tmp_path.iterdir()) == []


def test_real_folder_that_cannot_be_made_private_is_not_left(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def chmod(*_: object, **__: object) -> None:
        raise PermissionError(errno.EPERM, "no")

    monkeypatch.setattr(os, "chmod", chmod)
    with pytest.raises(ProviderFailed) as caught:
        TsmProvider(RealFs(tmp_path)).quote(DATA)
    assert caught.value.rule == "tsm.permission"
    assert list(tmp_path.iterdir()) == []


def test_real_write_is_one_call_that_neither_creates_nor_truncates(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fs = RealFs(folder.parent)
    with pytest.raises(FileNotFoundError):
        fs.write("report", "inblob", DATA)
    (folder / "inblob").write_bytes(b"x" * 80)
    (folder / "inblob").chmod(0o200)
    calls: list[tuple[str, object]] = []
    opened, wrote = os.open, os.write

    def open_(path: Path, flags: int) -> int:
        calls.append(("open", flags & (os.O_ACCMODE | os.O_CREAT | os.O_TRUNC)))
        return opened(path, flags)

    def write(file: int, data: bytes) -> int:
        calls.append(("write", len(data)))
        return wrote(file, data)

    monkeypatch.setattr(os, "open", open_)
    monkeypatch.setattr(os, "write", write)
    fs.write("report", "inblob", DATA)
    monkeypatch.undo()
    assert calls == [("open", os.O_WRONLY), ("write", 64)]
    (folder / "inblob").chmod(0o600)
    assert (folder / "inblob").read_bytes() == DATA + b"x" * 16


def test_real_write_that_is_cut_short(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (folder / "inblob").touch()
    monkeypatch.setattr(os, "write", lambda *_: 10)
    with pytest.raises(OSError, match="10 of 64"):
        RealFs(folder.parent).write("report", "inblob", DATA)


def test_real_read_is_bounded(folder: Path) -> None:
    (folder / "outblob").write_bytes(QUOTE)
    fs = RealFs(folder.parent)
    assert fs.read("report", "outblob", MAX_OUTBLOB) == QUOTE
    assert fs.read("report", "outblob", 10) == QUOTE[:10]
    (folder / "outblob").write_bytes(b"")
    assert fs.read("report", "outblob", 10) == b""


def test_real_machine_without_configfs_tsm(tmp_path: Path) -> None:
    with pytest.raises(ProviderAbsent) as caught:
        TsmProvider(RealFs(tmp_path / "missing")).quote(DATA)
    assert caught.value.rule == "tsm.no-configfs"
    assert "6.7" in caught.value.hint


def test_the_path_is_the_kernels_and_no_environment_changes_it() -> None:
    assert RealFs().reports == REPORTS == Path("/sys/kernel/config/tsm/report")
    assert TsmProvider().fs == RealFs()
