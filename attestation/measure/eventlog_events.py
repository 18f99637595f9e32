"""What each type of event in a log holds: its name, a description, and what its digest is of.

Sources: TCG "PC Client Platform Firmware Profile" 1.06, section 10.4 (types, structures); edk2
SecurityPkg/Tcg/TdTcg2Dxe and OvmfPkg/Library/QemuFwCfgLib/QemuFwCfgCacheInit.c; systemd
src/boot/measure.c and src/boot/stub.c; Linux drivers/firmware/efi/libstub/efi-stub-helper.c; GRUB
grub-core/commands/tpm.c; UEFI 2.11, sections 3.1.3 (load options) and 10.3 (device paths).
"""

import re
import struct
from dataclasses import dataclass
from enum import StrEnum
from uuid import UUID

EV_NO_ACTION = 0x3
EV_SEPARATOR = 0x4
EV_ACTION = 0x5
EV_EVENT_TAG = 0x6
EV_S_CRTM_VERSION = 0x8
EV_PLATFORM_CONFIG_FLAGS = 0xA
EV_IPL = 0xD
EV_EFI_VARIABLE_DRIVER_CONFIG = 0x80000001
EV_EFI_VARIABLE_BOOT = 0x80000002
EV_EFI_BOOT_SERVICES_APPLICATION = 0x80000003
EV_EFI_BOOT_SERVICES_DRIVER = 0x80000004
EV_EFI_RUNTIME_SERVICES_DRIVER = 0x80000005
EV_EFI_GPT_EVENT = 0x80000006
EV_EFI_ACTION = 0x80000007
EV_EFI_HANDOFF_TABLES = 0x80000009
EV_EFI_PLATFORM_FIRMWARE_BLOB2 = 0x8000000A
EV_EFI_HANDOFF_TABLES2 = 0x8000000B
EV_EFI_VARIABLE_BOOT2 = 0x8000000C
EV_EFI_VARIABLE_AUTHORITY = 0x800000E0

_NAMES = {
    value: name for name, value in globals().items() if name.startswith("EV_")
} | {
    0x0: "EV_PREBOOT_CERT",
    0x1: "EV_POST_CODE",
    0x7: "EV_S_CRTM_CONTENTS",
    0x9: "EV_CPU_MICROCODE",
    0xB: "EV_TABLE_OF_DEVICES",
    0xC: "EV_COMPACT_HASH",
    0xE: "EV_IPL_PARTITION_DATA",
    0xF: "EV_NONHOST_CODE",
    0x10: "EV_NONHOST_CONFIG",
    0x11: "EV_NONHOST_INFO",
    0x12: "EV_OMIT_BOOT_DEVICE_EVENTS",
    0x13: "EV_POST_CODE2",
    0x80000008: "EV_EFI_PLATFORM_FIRMWARE_BLOB",
    0x8000000D: "EV_EFI_GPT_EVENT2",
    0x80000010: "EV_EFI_HCRTM_EVENT",
    0x800000E1: "EV_EFI_SPDM_FIRMWARE_BLOB",
    0x800000E2: "EV_EFI_SPDM_FIRMWARE_CONFIG",
    0x800000E3: "EV_EFI_SPDM_DEVICE_POLICY",
    0x800000E4: "EV_EFI_SPDM_DEVICE_AUTHORITY",
}  # fmt: skip

_WHOLE = {
    EV_SEPARATOR,
    EV_ACTION,
    EV_S_CRTM_VERSION,
    EV_EFI_VARIABLE_DRIVER_CONFIG,
    EV_EFI_GPT_EVENT,
    EV_EFI_ACTION,
    EV_EFI_VARIABLE_BOOT2,
    EV_EFI_VARIABLE_AUTHORITY,
}
_VARIABLES = {
    EV_EFI_VARIABLE_DRIVER_CONFIG,
    EV_EFI_VARIABLE_BOOT,
    EV_EFI_VARIABLE_BOOT2,
    EV_EFI_VARIABLE_AUTHORITY,
}
_LABELLED = {EV_EFI_PLATFORM_FIRMWARE_BLOB2, EV_EFI_HANDOFF_TABLES2}
_IMAGES = {
    EV_EFI_BOOT_SERVICES_APPLICATION,
    EV_EFI_BOOT_SERVICES_DRIVER,
    EV_EFI_RUNTIME_SERVICES_DRIVER,
}
GLOBAL_VARIABLE = UUID("8be4df61-93ca-11d2-aa0d-00e098032b8c")
_BOOT_VARIABLE = re.compile(r"(?:Boot|Driver)(?:Order|[0-9A-Fa-f]{4})")
# grub_tpm_verify_string(): the text is hashed, prefix and NUL are not.
_GRUB = (b"grub_cmd: ", b"kernel_cmdline: ", b"module_cmdline: ")
_SECTION = re.compile(r"\.[a-z]{1,12}")
_VARIABLE = struct.Struct("<16sQQ")
_IMAGE = struct.Struct("<QQQQ")
_TAG_SIZE = 8  # u32 id and u32 size, then the text
_BLOB = struct.Struct("<QQ")
_RANGE = struct.Struct("<4xQQ")
_NODE = struct.Struct("<BBH")
_LOAD_OPTION = struct.Struct("<IH")
_FW_CFG = b"QEMU FW CFG\0"
_SHOWN = 100


class Backing(StrEnum):
    """What an event's digest is of."""

    DATA = "data"  # of bytes of the log: everyone can recompute it
    CONTENT = "content"  # of something that is not in the log: an image, an initrd, a table


@dataclass(frozen=True, slots=True)
class Hashed:
    """What the digest of an event of this type must be of.

    `content` is None where the data doesn't have the form that its type demands: nothing can be
    the digest then. `section`: systemd's stub logs the same data twice for a section, first with
    the digest of its name (`content`), then with that of the section itself.
    """

    backing: Backing
    what: str
    content: bytes | None = None
    section: bool = False


def hashed(kind: int, data: bytes) -> Hashed:
    """The rule for the digest of an event of type `kind`."""
    if kind in _WHOLE:
        return Hashed(Backing.DATA, "its data", data)
    if kind == EV_EFI_VARIABLE_BOOT:
        # TCG and edk2 hash the value alone here: which option it is, only the log says.
        parsed = variable(data)
        good = (
            parsed is not None
            and parsed.vendor == GLOBAL_VARIABLE
            and _BOOT_VARIABLE.fullmatch(parsed.name) is not None
        )
        return Hashed(
            Backing.DATA, "the value of a boot variable", parsed.value if parsed and good else None
        )
    if kind == EV_IPL:
        for prefix in _GRUB:
            if data.startswith(prefix):
                text = data[len(prefix) :]
                return Hashed(
                    Backing.DATA,
                    f"the text behind '{prefix.decode()}'",
                    text[:-1] if text.endswith(b"\0") else None,
                )
        name = utf16(data)
        if name is not None and _SECTION.fullmatch(name):
            return Hashed(
                Backing.CONTENT, "the name of an image's section", name.encode() + b"\0", True
            )
    return Hashed(Backing.CONTENT, "something that is not in the log")


@dataclass(frozen=True, slots=True)
class Variable:
    """UEFI_VARIABLE_DATA: a variable as events hold it."""

    vendor: UUID
    name: str
    value: bytes


def variable(data: bytes) -> Variable | None:
    """The variable that fills `data` exactly, or None."""
    if len(data) < _VARIABLE.size:
        return None
    vendor, characters, size = _VARIABLE.unpack_from(data)
    end = _VARIABLE.size + 2 * characters
    if end + size != len(data):
        return None
    try:
        name = data[_VARIABLE.size : end].decode("utf-16-le")
    except UnicodeDecodeError:
        return None
    return Variable(UUID(bytes_le=vendor), name, data[end:])


def utf16(data: bytes) -> str | None:
    """The text of `data` if that is ASCII characters in UTF-16 and a NUL, and nothing else."""
    text = data[:-2:2]
    if len(data) < 4 or data != text.decode("latin-1").encode("utf-16-le") + b"\0\0":
        return None
    return text.decode("ascii") if all(0x20 <= byte < 0x7F for byte in text) else None


def name(kind: int) -> str:
    """The type as TCG names it, or in hex."""
    return _NAMES.get(kind, f"{kind:#x}")


def describe(kind: int, data: bytes) -> str:
    """What the data says, for people: printable ASCII, at most 100 characters.

    Nothing here proves anything; whoever hands the log over may have written it.
    """
    text = _describe(kind, data)
    text = "".join(char if " " <= char <= "~" else "." for char in text)
    return text if len(text) <= _SHOWN else text[: _SHOWN - 3] + "..."


def _describe(kind: int, data: bytes) -> str:
    if kind in _VARIABLES:
        return _describe_variable(data)
    if kind in _IMAGES:
        return _describe_image(data)
    if kind in _LABELLED and data:
        return _describe_table(data[1 : 1 + data[0]], data[1 + data[0] :])
    if kind == EV_SEPARATOR:
        return data[:_SHOWN].hex()
    if kind == EV_PLATFORM_CONFIG_FLAGS and data.startswith(_FW_CFG):
        return f"fw_cfg {_text(data[len(_FW_CFG) :])}"
    return _text(data[_TAG_SIZE:] if kind == EV_EVENT_TAG else data)


def _describe_table(label: bytes, rest: bytes) -> str:
    """UEFI_PLATFORM_FIRMWARE_BLOB2 and UEFI_HANDOFF_TABLE_POINTERS2 begin with a label."""
    if len(rest) != _BLOB.size:
        return _text(label)
    base, size = _BLOB.unpack(rest)
    return f"{_text(label)} at {base:#x}, {size} bytes"


def _text(data: bytes) -> str:
    """Data that is text as such, with or without a NUL at its end; else its size."""
    wide = utf16(data)
    if wide is not None:
        return wide
    text = data.rstrip(b"\0")
    if text and all(0x20 <= byte < 0x7F or byte in b"\t\r\n" for byte in text):
        return text.decode("ascii")
    return f"{len(data)} bytes"


def _describe_variable(data: bytes) -> str:
    parsed = variable(data)
    if parsed is None:
        return f"{len(data)} bytes, no variable"
    value = parsed.value
    if parsed.name.endswith("Order") and len(value) % 2 == 0:
        return f"{parsed.name}: " + " ".join(f"{n:04x}" for (n,) in struct.iter_unpack("<H", value))
    if _BOOT_VARIABLE.fullmatch(parsed.name) and len(value) > _LOAD_OPTION.size:
        label = value[_LOAD_OPTION.size :].decode("utf-16-le", "replace").partition("\0")[0]
        return f"{parsed.name}: {label}"
    return f"{parsed.name}, {len(value)} bytes"


def _describe_image(data: bytes) -> str:
    """UEFI_IMAGE_LOAD_EVENT: size and device path; the address differs from boot to boot."""
    if len(data) < _IMAGE.size:
        return f"{len(data)} bytes, no image"
    _, size, _, length = _IMAGE.unpack_from(data)
    path = _device_path(data[_IMAGE.size : _IMAGE.size + min(length, len(data))])
    return f"{size} bytes from {path}"


def _device_path(path: bytes) -> str:
    """The nodes of a device path, the common ones in the notation of UEFI 10.6."""
    shown = []
    while len(path) >= _NODE.size:
        kind, subtype, size = _NODE.unpack_from(path)
        if kind == 0x7F or not _NODE.size <= size <= len(path):
            break
        body, path = path[_NODE.size : size], path[size:]
        shown.append(_device_node(kind, subtype, body))
        if sum(map(len, shown)) > _SHOWN:
            break
    return "/".join(shown) or "no device path"


def _device_node(kind: int, subtype: int, body: bytes) -> str:
    text = f"Path({kind},{subtype})"
    match kind, subtype, len(body):
        case 1, 1, 2:
            text = f"Pci({body[1]:#x},{body[0]:#x})"
        case 4, 4, _:
            text = body.decode("utf-16-le", "replace").rstrip("\0")
        case 4, 6, 16:
            text = f"FvFile({UUID(bytes_le=body)})"
        case 4, 7, 16:
            text = f"Fv({UUID(bytes_le=body)})"
        case 4, 8, 20:
            text = "Offset({:#x},{:#x})".format(*_RANGE.unpack(body))
    return text
