"""The folder of a TPM sealer: whose it is, and what a crash or a bad disk leaves."""

from __future__ import annotations

import stat
from contextlib import suppress
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from attestation.errors import SealFormatError, SealUnavailable
from attestation.seal.tpm2_blob import MAX_BLOB
from attestation.seal.tpm2_folder import PIN, Folder, Pin
from tests.attestation.seal.conformance import refused

SRK, EK = b"\0\x0b" + bytes(range(32)), b"\0\x0b" + bytes(32)


@pytest.fixture
def folder(tmp_path: Path) -> Folder:
    return Folder(tmp_path / "deep" / "sealed")


def test_only_its_user_can_read(folder: Folder) -> None:
    with folder.locked():
        folder.write_blob("node", b"bytes")
        folder.write_pin(Pin(SRK, None))
    assert stat.S_IMODE(folder.path.stat().st_mode) == 0o700
    for path in folder.path.iterdir():
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert {p.name for p in folder.path.iterdir()} == {"node.sealed", PIN}


@pytest.mark.parametrize("mode", [0o701, 0o710, 0o755, 0o770])
def test_a_folder_open_to_others(folder: Folder, mode: int) -> None:
    folder.path.mkdir(parents=True)
    folder.path.chmod(mode)
    with refused("seal.folder-mode"), folder.locked():
        pass


def test_a_folder_of_another_user(folder: Folder, monkeypatch: pytest.MonkeyPatch) -> None:
    folder.path.mkdir(parents=True, mode=0o700)
    monkeypatch.setattr("os.geteuid", lambda: folder.path.stat().st_uid + 1)
    with refused("seal.folder-mode"), folder.locked():
        pass


def test_one_at_a_time(folder: Folder) -> None:
    with folder.locked():
        with refused("seal.in-use"), Folder(folder.path).locked():
            pass
    with folder.locked():
        pass


def test_flushed_before_and_after_the_name(folder: Folder) -> None:
    synced: list[str] = []

    def sync(handle: int) -> None:
        synced.append(str(Path(f"/proc/self/fd/{handle}").readlink()))

    flushing = Folder(folder.path, sync)
    with flushing.locked():
        flushing.write_blob("node", b"bytes")
    assert [Path(path).name for path in synced] == [".node.sealed.new", "sealed"]


def test_a_disk_that_fails_keeps_the_old(folder: Folder) -> None:
    def sync(_: int) -> None:
        raise OSError(5, "I/O error")

    with folder.locked():
        folder.write_blob("node", b"old")
        with pytest.raises(SealUnavailable) as caught:
            Folder(folder.path, sync).write_blob("node", b"new")
        assert caught.value.rule == "seal.disk"
        assert "I/O error" in caught.value.got
        assert folder.blob("node") == b"old"


def test_what_is_no_file(folder: Folder) -> None:
    with folder.locked():
        assert folder.blob("node") is None
        (folder.path / "elsewhere").write_bytes(b"bytes")
        (folder.path / "node.sealed").symlink_to("elsewhere")
        (folder.path / "a.sealed").mkdir()
        for name in ("node", "a"):
            with pytest.raises(SealUnavailable) as caught:
                folder.blob(name)
            assert caught.value.rule == "seal.disk"


def test_a_link_in_place_of_the_folder(folder: Folder) -> None:
    folder.path.parent.mkdir()
    (folder.path.parent / "other").mkdir(0o700)
    folder.path.symlink_to("other")
    with pytest.raises(SealUnavailable) as caught, folder.locked():
        pass
    assert caught.value.rule == "seal.disk"


def test_reading_is_bounded(folder: Folder) -> None:
    with folder.locked():
        folder.write_blob("node", bytes(MAX_BLOB * 2))
        assert len(folder.blob("node") or b"") == MAX_BLOB + 1


@pytest.mark.parametrize("ek", [EK, None])
def test_pin(folder: Folder, ek: bytes | None) -> None:
    with folder.locked():
        assert folder.pin() is None
        folder.write_pin(Pin(SRK, ek))
        assert folder.pin() == Pin(SRK, ek)


def changed(at: int, new: bytes) -> bytes:
    good = Pin(SRK, EK).encode()
    at %= len(good)
    return good[:at] + new + good[at + len(new) :]


@given(st.binary(max_size=300) | st.builds(changed, st.integers(0), st.binary(max_size=4)))
def test_whatever_the_pin_says(raw: bytes) -> None:
    pin = None
    with suppress(SealFormatError):
        pin = Pin.parse(raw)
    assert pin is None or pin.encode() == raw


def test_no_pin() -> None:
    for raw in (b"", Pin(SRK, EK).encode() + b"\n", b"srk 00\nek -\n", b"\xff"):
        with pytest.raises(SealFormatError) as caught:
            Pin.parse(raw)
        assert caught.value.rule == "seal.pin-format"
