"""Registers that the kernel shows: what is missing, unreadable or of another size."""

from dataclasses import asdict
from pathlib import Path

import pytest

from attestation.errors import ProviderAbsent, ProviderError, ProviderFailed
from attestation.providers.registers import FOLDER, read_registers

# Names of Linux Documentation/ABI/testing/sysfs-devices-virtual-misc-tdx_guest, and our fields.
FILES = {
    "mrtd:sha384": "mr_td",
    "mrconfigid": "mr_config_id",
    "mrowner": "mr_owner",
    "mrownerconfig": "mr_owner_config",
    "rtmr0:sha384": "rtmr0",
    "rtmr1:sha384": "rtmr1",
    "rtmr2:sha384": "rtmr2",
    "rtmr3:sha384": "rtmr3",
}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for number, name in enumerate(FILES):
        (tmp_path / name).write_bytes(bytes([number]) * 48)
    return tmp_path


def refused(folder: Path, rule: str) -> ProviderError:
    with pytest.raises(ProviderError) as caught:
        read_registers(folder)
    assert caught.value.rule == rule
    assert caught.value.exit_code == 3
    assert caught.value.hint
    return caught.value


def test_all_registers(folder: Path) -> None:
    before = {path.name: path.stat().st_mtime_ns for path in folder.iterdir()}
    registers = asdict(read_registers(folder))
    assert registers == {field: bytes([n]) * 48 for n, field in enumerate(FILES.values())}
    assert before == {path.name: path.stat().st_mtime_ns for path in folder.iterdir()}


def test_the_kernels_folder() -> None:
    assert str(FOLDER) == "/sys/devices/virtual/misc/tdx_guest/measurements"


@pytest.mark.parametrize("kind", ["nothing", "file"])
def test_a_kernel_that_shows_none(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "measurements"
    if kind == "file":
        path.write_bytes(b"")
    error = refused(path, "registers.absent")
    assert type(error) is ProviderAbsent
    assert "Linux 6.16" in error.hint


@pytest.mark.parametrize("name", FILES)
def test_one_that_is_missing(folder: Path, name: str) -> None:
    (folder / name).unlink()
    error = refused(folder, "registers.read")
    assert type(error) is ProviderFailed
    assert name in error.message
    assert error.got == "No such file or directory"


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize(("size", "got"), [(0, "0 bytes"), (47, "47 bytes"), (49, "more")])
def test_one_of_another_size(folder: Path, name: str, size: int, got: str) -> None:
    (folder / name).write_bytes(bytes(size))
    error = refused(folder, "registers.size")
    assert type(error) is ProviderFailed
    assert name in error.message
    assert error.got == got


def test_a_folder_in_place_of_a_register(folder: Path) -> None:
    (folder / "rtmr2:sha384").unlink()
    (folder / "rtmr2:sha384").mkdir()
    assert refused(folder, "registers.read").got == "Is a directory"
