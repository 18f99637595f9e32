"""The measurement registers of this TD, where the kernel shows them (Linux 6.16 and later).

Linux Documentation/ABI/testing/sysfs-devices-virtual-misc-tdx_guest: one binary file of 48 bytes a
register. What a file says is worth as much as the kernel that wrote it: to others only a quote
proves the values. Nothing here writes, since writing to an rtmr file extends the register for good.
"""

from dataclasses import dataclass, fields
from pathlib import Path

from attestation.errors import ProviderAbsent, ProviderFailed

FOLDER = Path("/sys/devices/virtual/misc/tdx_guest/measurements")
SIZE = 48

_FILES = {
    "mr_td": "mrtd:sha384",
    "mr_config_id": "mrconfigid",
    "mr_owner": "mrowner",
    "mr_owner_config": "mrownerconfig",
    "rtmr0": "rtmr0:sha384",
    "rtmr1": "rtmr1:sha384",
    "rtmr2": "rtmr2:sha384",
    "rtmr3": "rtmr3:sha384",
}


@dataclass(frozen=True, slots=True)
class Registers:
    """The registers of one TD, 48 bytes each."""

    mr_td: bytes
    mr_config_id: bytes
    mr_owner: bytes
    mr_owner_config: bytes
    rtmr0: bytes
    rtmr1: bytes
    rtmr2: bytes
    rtmr3: bytes


def read_registers(folder: Path = FOLDER) -> Registers:
    """Read all registers.

    Raises ProviderAbsent (rule `registers.absent`) where the kernel shows none, ProviderFailed
    (`registers.read`, `registers.size`) where it shows some.
    """
    if not folder.is_dir():
        raise ProviderAbsent(
            "this kernel shows no measurement registers",
            expected=f"the folder {folder}",
            got="none",
            rule="registers.absent",
            hint="run this in a TDX guest with Linux 6.16 or later and the module tdx_guest loaded",
        )
    return Registers(
        **{field.name: _read(folder / _FILES[field.name]) for field in fields(Registers)}
    )


def _read(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            value = file.read(SIZE + 1)
    except OSError as error:
        raise ProviderFailed(
            f"the kernel does not give the register {path.name}",
            expected=f"{SIZE} bytes",
            got=error.strerror or type(error).__name__,
            rule="registers.read",
            hint="run as root; if it stays, look in the kernel log",
        ) from error
    if len(value) != SIZE:
        raise ProviderFailed(
            f"the register {path.name} has another size",
            expected=f"{SIZE} bytes",
            got=f"{len(value)} bytes" if len(value) < SIZE else "more",
            rule="registers.size",
            hint="report this with the version of the kernel",
        )
    return value
