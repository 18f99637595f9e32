"""Small but complete firmware images and UKIs, made from nothing; tests can bend every part."""

import lzma
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from uuid import UUID

from attestation.measure import firmware, tdvf, varstore, volume

PAGE = tdvf.PAGE
STORE_SIZE = 2 * PAGE
CODE_SIZE = 3 * PAGE
CFV_ENTRY = 1  # index of the CFV in the metadata of `Firmware`

FFS2 = UUID("8c8ce578-8a3d-4f1c-9935-896185c32dd3")
UIAPP = UUID("462caa21-7614-4503-836e-8ab6f4662331")
SHELL = UUID("7c04a583-9e3e-4f1c-ad65-e05268d0b4d1")
SECURE_BOOT_CONFIG = UUID("f0e6a44f-7195-41c3-ac64-54f202cd0a21")
DRIVER = UUID("6d33944a-ec75-4855-a54d-809c75241f6c")
OTHER_LIST_ENTRY = UUID("00f771de-1a7e-4fcb-890e-68c77e2fb44e")
LZMA_FILTERS = [{"id": lzma.FILTER_LZMA1, "dict_size": 1 << 20}]


def padded(data: bytes, multiple: int, fill: bytes = b"\xff") -> bytes:
    return data + fill * (-len(data) % multiple)


def sum16_fixed(header: bytes, at: int) -> bytes:
    """The header with its checksum word at `at` set so that all words add up to 0."""
    header = header[:at] + b"\0\0" + header[at + 2 :]
    total = -sum(struct.unpack(f"<{len(header) // 2}H", header)) & 0xFFFF
    return header[:at] + struct.pack("<H", total) + header[at + 2 :]


def store(
    variables: Sequence[varstore.Variable] = (), *, size: int = STORE_SIZE, area: int | None = None
) -> bytes:
    """A valid variable store volume of `size` bytes with a variable area of `area` bytes."""
    header = struct.pack(
        "<16s16sQ4sIHHHBBIIQ",
        bytes(16),
        varstore.SYSTEM_NV_DATA.bytes_le,
        size,
        b"_FVH",
        0x4FEFF,
        0x48,
        0,
        0,
        0,
        2,
        size // PAGE,
        PAGE,
        0,
    )
    header = sum16_fixed(header, 50)
    area = PAGE - 0x48 - 28 if area is None else area
    guid = varstore.AUTHENTICATED_STORE.bytes_le
    start = header + struct.pack("<16sIBB6x", guid, area + 28, 0x5A, 0xFE)
    blob = b"".join(padded(v.encode(), 4) for v in variables)
    return (start + blob).ljust(size, b"\xff")


def section(kind: int, body: bytes, *, large: bool = False) -> bytes:
    size = len(body) + (8 if large else 4)
    if large:
        return b"\xff\xff\xff" + bytes([kind]) + struct.pack("<I", size) + body
    return size.to_bytes(3, "little") + bytes([kind]) + body


def sections(*parts: bytes) -> bytes:
    return b"".join(padded(part, 4, b"\0") for part in parts[:-1]) + parts[-1]


def lzma_section(stream: bytes, guid: UUID = volume.LZMA_SECTION) -> bytes:
    packed = lzma.compress(stream, lzma.FORMAT_ALONE, filters=LZMA_FILTERS)
    return section(0x02, guid.bytes_le + struct.pack("<HH", 24, 1) + packed)


def file(guid: UUID, kind: int, body: bytes, *, large: bool = False, state: int = 0xF8) -> bytes:
    size = len(body) + (32 if large else 24)
    header = guid.bytes_le + bytes([0, 0xAA, kind, int(large)])
    header += (0 if large else size).to_bytes(3, "little") + bytes([state])
    header += struct.pack("<Q", size) if large else b""
    checksum = -(sum(header) - 0xAA - state) & 0xFF
    return header[:16] + bytes([checksum]) + header[17:] + body


def driver(guid: UUID = DRIVER, text: bytes = b"code", name: str = "Driver") -> bytes:
    ui = section(0x15, name.encode("utf-16-le") + b"\0\0")
    return file(guid, 0x07, sections(section(0x10, b"MZ" + text), ui))


def fv(
    files: Sequence[bytes],
    *,
    name: UUID | None = None,
    size: int | None = None,
    attributes: int = 0x4FEFF,
    file_system: UUID = FFS2,
) -> bytes:
    """A firmware volume; with `size`, 0xff fills it up behind the files."""
    body = b""
    extended = 0
    if name is not None:
        extended = 0x48
        body = padded(name.bytes_le + struct.pack("<I", 20), 8)
    for part in files:
        body = padded(body, 8) + part
    length = size if size is not None else -(-(0x48 + len(body)) // 8) * 8
    header = struct.pack(
        "<16s16sQ4sIHHHBBIIQ",
        bytes(16),
        file_system.bytes_le,
        length,
        b"_FVH",
        attributes,
        0x48,
        0,
        extended,
        0,
        2,
        1,
        length,
        0,
    )
    return (sum16_fixed(header, 50) + body).ljust(length, b"\xff")


def main_volume(inner: bytes) -> bytes:
    """FVMAIN_COMPACT: one file with a section stream of volumes."""
    return fv([file(UUID("9e21fd93-9c72-4c15-8c4b-e77f1db2d792"), 0x0B, inner)])


def default_loadable() -> tuple[bytes, ...]:
    return (
        driver(text=firmware.LOADER_GUARD, name="Bds"),
        driver(SECURE_BOOT_CONFIG, firmware.SECURE_BOOT_MARK, "SecureBootConfigDxe"),
    )


@dataclass
class Firmware:
    """What goes into a synthetic TDVF image; `build()` puts it together."""

    loadable: Sequence[bytes] = field(default_factory=default_loadable)
    spare: Sequence[bytes] = field(default_factory=lambda: (driver(UIAPP, name="UiApp"),))
    store: bytes = field(default_factory=store)
    inner: bytes | None = None  # instead of the LZMA section with DXEFV and NCCFV
    code: bytes | None = None  # instead of the volumes of the BFV
    sections: Sequence[tuple[int, int, int, int, int, int]] | None = None
    version: int = 1

    def default_sections(self) -> list[tuple[int, int, int, int, int, int]]:
        """Metadata fields: data offset and size, guest address and size, type, attributes."""
        cfv = len(self.store)
        base = (1 << 32) - CODE_SIZE
        return [
            (cfv, CODE_SIZE, base, CODE_SIZE, 0, 1),
            (0, cfv, base - cfv, cfv, 1, 0),
            (0, 0, 0x810000, 2 * PAGE, 3, 0),
            (0, 0, 0x809000, PAGE, 2, 0),
        ]

    def volumes(self) -> bytes:
        """The BFV up to the volume that holds the metadata."""
        inner = self.inner
        if inner is None:
            inner = lzma_section(
                sections(
                    section(0x17, fv(self.loadable, name=volume.DXEFV)),
                    section(0x17, fv(self.spare, name=volume.NCCFV)),
                )
            )
        return main_volume(inner)

    def metadata(self) -> bytes:
        """The end of the file: descriptor, GUIDed table, reset vector."""
        entries = self.default_sections() if self.sections is None else self.sections
        packed = b"".join(struct.pack("<IIQQII", *entry) for entry in entries)
        length = 16 + len(packed)
        descriptor = b"TDVF" + struct.pack("<III", length, self.version, len(entries)) + packed
        other = bytes(8) + struct.pack("<H", 26) + OTHER_LIST_ENTRY.bytes_le
        tdx = struct.pack("<H", 22) + tdvf.METADATA_ENTRY.bytes_le
        table_size = 18 + len(other) + 4 + len(tdx)
        back = len(descriptor) + table_size + 32
        footer = struct.pack("<H", table_size) + tdvf.TABLE_FOOTER.bytes_le
        return descriptor + other + struct.pack("<I", back) + tdx + footer + bytes(32)

    def build(self) -> bytes:
        code = self.code
        if code is None:
            end = self.metadata()
            front = self.volumes()
            room = CODE_SIZE - len(front)
            reset = file(UUID(int=1), 0x01, end)
            space = room - 0x48 - len(reset)
            assert space >= 24, "CODE_SIZE is too small for this content"
            filler = file(UUID(bytes=b"\xff" * 16), 0xF0, b"\xff" * (space - 24))
            # The raw file must end with the volume, so the padding takes up the alignment.
            cut = -len(reset) % 8
            if cut:
                reset = file(UUID(int=1), 0x01, bytes(cut) + end)
                filler = file(UUID(bytes=b"\xff" * 16), 0xF0, b"\xff" * (space - cut - 24))
            code = front + fv([filler, reset], size=room)
        return self.store + code


def entry_offset(fd: bytes, index: int) -> int:
    """File offset of one metadata entry of a well-formed image."""
    return tdvf.Tdvf.parse(fd).sections[index].entry_offset


def pe(
    parts: Sequence[tuple[str, bytes, int | None]],
    *,
    magic: int = 0x20B,
    directories: int = 16,
    certificate: bytes = b"",
    gap: int = 0,
    trailing: bytes = b"",
) -> bytes:
    """A PE image of sections (name, content, virtual size or None for the length)."""
    directories_at = 112 if magic == 0x20B else 96
    optional_size = directories_at + 8 * directories
    headers_size = -(-(0x40 + 24 + optional_size + 40 * len(parts)) // 512) * 512
    optional = bytearray(optional_size)
    struct.pack_into("<H", optional, 0, magic)
    struct.pack_into("<I", optional, 60, headers_size)
    struct.pack_into("<I", optional, directories_at - 4, directories)
    table = bytearray()
    body = bytearray(gap)
    for index, (name, content, virtual) in enumerate(parts):
        raw = padded(content, 16, b"\0") if content else b""
        table += struct.pack(
            "<8sIIII16x",
            name.encode(),
            len(content) if virtual is None else virtual,
            0x1000 * (index + 1),
            len(raw),
            headers_size + len(body) if raw else 0,
        )
        body += raw
    body += trailing
    if certificate:
        body += bytes(-(headers_size + len(body)) % 8)
        place = (headers_size + len(body), len(certificate))
        struct.pack_into("<II", optional, directories_at + 32, *place)
        body += certificate
    dos = b"MZ".ljust(0x3C, b"\0") + struct.pack("<I", 0x40)
    coff = b"PE\0\0" + struct.pack("<HHIIIHH", 0x8664, len(parts), 0, 0, 0, optional_size, 0)
    headers = (dos + coff + bytes(optional) + bytes(table)).ljust(headers_size, b"\0")
    return headers + bytes(body)


UKI_SECTIONS: Mapping[str, bytes] = {
    ".text": b"stub",
    ".sbat": b"sbat,1\n",
    ".osrel": b"ID=zipnet\n",
    ".cmdline": b"console=ttyS0 panic=-1\n",
    ".uname": b"6.12",
    ".linux": b"MZ kernel",
    ".initrd": b"070701 initrd!",
}


def uki(changes: Mapping[str, bytes | None] | None = None) -> bytes:
    """A unified kernel image; a change to None leaves the section out."""
    parts = {**UKI_SECTIONS, **(changes or {})}
    return pe([(name, content, None) for name, content in parts.items() if content is not None])
