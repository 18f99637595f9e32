"""The event log of a modelled boot: what a TD with this firmware and image writes, and measures.

RTMR1 and RTMR2 are those of `attestation.measure.rtmr`. RTMR0 is a model only: variable store,
Secure Boot variables and separator; a TD also measures its memory map, fw_cfg, ACPI tables and boot
options there, which depend on the host.

Sources: edk2 OvmfPkg/Library/TdxHelperLib (the store), OvmfPkg/IntelTdx/TdxMeasurementLib,
SecurityPkg/Tcg/TdTcg2Dxe/TdTcg2Dxe.c (variables, images, separators) and
OvmfPkg/Library/QemuBootOrderLib (device paths); systemd src/boot/measure.c; Linux
drivers/firmware/efi/libstub/efi-stub-helper.c.
"""

import hashlib
import struct
from collections.abc import Iterator, Sequence
from enum import StrEnum
from uuid import UUID

from attestation.errors import FirmwareFormatError
from attestation.measure import authenticode, rtmr, varstore
from attestation.measure import eventlog_events as types
from attestation.measure.eventlog import EventLog, LogEvent
from attestation.measure.pe import Pe
from attestation.measure.rtmr import BootPath
from attestation.measure.tdvf import Section, SectionType, Tdvf

_IMAGE_SECURITY = UUID("d719b2cb-3d3a-4596-a3bc-dad00e67656f")
_VARIABLES = (
    ("PK", types.GLOBAL_VARIABLE),
    ("KEK", types.GLOBAL_VARIABLE),
    ("db", _IMAGE_SECURITY),
    ("dbx", _IMAGE_SECURITY),
)
# The description of a volume without a name of its own.
_BLOB = b"Fv(XXXXXXXX-XXXX-XXXX-XXXX-XXXXXXXXXXXX)\0"
_PCI_ROOT = bytes.fromhex("02010c00d041030a00000000")
_END = bytes.fromhex("7fff0400")
_QEMU_KERNEL = bytes.fromhex("01031400") + UUID("1428f772-b64a-441e-b8c3-9ebdd7f893c7").bytes_le
_SLOT = 2  # of the first device that has an option ROM
_TAGS = {
    "LoadOptions": (0x8F3B22ED, b"LOADED_IMAGE::LoadOptions\0"),
    "initrd": (0x8F3B22EC, b"Linux initrd\0"),
}

_Measured = tuple[int, int, bytes, bytes]  # RTMR, type, digest, data


class SeparatorModel(StrEnum):
    """Where a firmware's edk2 measures the separators that end its own part of the boot."""

    STABLE202411 = "stable202411"  # or newer: one into RTMR0, one into RTMR1
    OLDER = "older"  # two into RTMR0


def boot(
    firmware: bytes,
    uki: Pe,
    boot_path: BootPath,
    option_roms: Sequence[bytes],
    separators: SeparatorModel,
) -> EventLog:
    """The log of a boot of `uki`; option ROMs are PE images that devices bring along.

    Raises as `Tdvf.parse`, `rtmr.rtmr1` and `rtmr.rtmr2`, and PeFormatError.
    """
    measured = [
        *_firmware(firmware, separators),
        *_drivers(option_roms),
        *_start(uki, boot_path, separators),
        *_stub(uki),
    ]
    return EventLog(
        tuple(
            LogEvent(number, register + 1, kind, digest, data)
            for number, (register, kind, digest, data) in enumerate(measured)
        )
    )


def _firmware(fd: bytes, separators: SeparatorModel) -> Iterator[_Measured]:
    live: dict[tuple[str, UUID], bytes] = {}
    for section in Tdvf.parse(fd).of_type(SectionType.CFV):
        content = fd[section.data_offset : section.data_end]
        yield 0, types.EV_EFI_PLATFORM_FIRMWARE_BLOB2, _sha(content), _blob(section)
        try:
            found = varstore.parse(content).variables
        except FirmwareFormatError:
            found = ()  # the firmware drops such a store, and goes on without Secure Boot
        live |= {(variable.name, variable.vendor): variable.data for variable in found}
    enabled = {data for (name, _), data in live.items() if name == "SecureBootEnable"} != {b"\0"}
    secure = ("PK", types.GLOBAL_VARIABLE) in live and enabled
    yield _variable("SecureBoot", types.GLOBAL_VARIABLE, bytes([secure]))
    for name, vendor in _VARIABLES:
        yield _variable(name, vendor, live.get((name, vendor), b""))
    for _ in range(2 if separators is SeparatorModel.OLDER else 1):
        yield _whole(0, types.EV_SEPARATOR, bytes(4))


def _drivers(option_roms: Sequence[bytes]) -> Iterator[_Measured]:
    for index, rom in enumerate(option_roms):
        image = Pe.parse(rom)
        place = struct.pack("<BBHBB", 1, 1, 6, 0, _SLOT + index)
        place += struct.pack("<BBHIQQ", 4, 8, 24, 0, 0, len(rom) - 1)
        data = _loaded(image, _PCI_ROOT + place)
        yield 1, types.EV_EFI_BOOT_SERVICES_DRIVER, authenticode.digest(image, "sha384"), data


def _start(uki: Pe, boot_path: BootPath, separators: SeparatorModel) -> Iterator[_Measured]:
    place = _QEMU_KERNEL + _file("kernel")
    if boot_path is BootPath.ESP:
        place = _PCI_ROOT + struct.pack("<BBHBB", 1, 1, 6, 0, 1) + _file(r"\EFI\BOOT\BOOTX64.EFI")
    for event in rtmr.rtmr1_events(uki, boot_path):
        if event.description == "UKI":
            kind, data = types.EV_EFI_BOOT_SERVICES_APPLICATION, _loaded(uki, place)
            yield 1, kind, event.digest, data
        elif event.description != "separator":
            yield 1, types.EV_EFI_ACTION, event.digest, event.description.encode()
        elif separators is not SeparatorModel.OLDER:
            yield 1, types.EV_SEPARATOR, event.digest, bytes(4)


def _stub(uki: Pe) -> Iterator[_Measured]:
    for event in rtmr.rtmr2_events(uki):
        tag = _TAGS.get(event.description)
        if tag is None:
            data = event.description.removesuffix(" name").encode("utf-16-le") + b"\0\0"
            yield 2, types.EV_IPL, event.digest, data
        else:
            number, text = tag
            data = struct.pack("<II", number, len(text)) + text
            yield 2, types.EV_EVENT_TAG, event.digest, data


def _blob(cfv: Section) -> bytes:
    return bytes([len(_BLOB)]) + _BLOB + struct.pack("<QQ", cfv.gpa, cfv.raw_size)


def _variable(name: str, vendor: UUID, value: bytes) -> _Measured:
    data = vendor.bytes_le + struct.pack("<QQ", len(name), len(value))
    return _whole(0, types.EV_EFI_VARIABLE_DRIVER_CONFIG, data + name.encode("utf-16-le") + value)


def _whole(register: int, kind: int, data: bytes) -> _Measured:
    return register, kind, _sha(data), data


def _loaded(image: Pe, place: bytes) -> bytes:
    """UEFI_IMAGE_LOAD_EVENT; where in memory is a matter of luck."""
    path = place + _END
    return struct.pack("<QQQQ", 0x7E000000, len(image.data), 0, len(path)) + path


def _file(name: str) -> bytes:
    text = name.encode("utf-16-le") + b"\0\0"
    return struct.pack("<BBH", 4, 4, 4 + len(text)) + text


def _sha(data: bytes) -> bytes:
    return hashlib.sha384(data).digest()
