"""PE/COFF images, as strictly as the firmware's own loader reads them.

Sources: Microsoft "PE Format"; edk2 MdePkg/Library/BasePeCoffLib/BasePeCoff.c
(PeCoffLoaderGetPeHeader) for the checks. An image that this module refuses would not boot either,
or could be read in two ways.
"""

import struct
from dataclasses import dataclass

from attestation.errors import PeFormatError

_MAX_SECTIONS = 96  # the limit of the format for images
_MAX_DIRECTORIES = 16
_SECURITY_DIRECTORY = 4
_SECTION_HEADER = struct.Struct("<8sIIII16x")
# Of optional header magic to (checksum, number of directories, first directory), all offsets.
_LAYOUTS = {0x10B: (64, 92, 96), 0x20B: (64, 108, 112)}


@dataclass(frozen=True, slots=True)
class PeSection:
    """One section: `raw_size` bytes at `raw_offset` of the file, `virtual_size` in memory."""

    name: str
    virtual_size: int
    raw_offset: int
    raw_size: int


@dataclass(frozen=True, slots=True)
class Pe:
    """The parts of a PE image that hashing and measuring need; offsets are file offsets.

    `security_entry` is the offset of the certificate table's data directory entry (8 bytes), None
    if the header has no such entry; `certificates` is the table's size in bytes, 0 without one.
    """

    data: bytes
    sections: tuple[PeSection, ...]
    checksum: int
    security_entry: int | None
    headers_size: int
    certificates: int

    @classmethod
    def parse(cls, data: bytes) -> "Pe":
        """Read the headers of an image. Raises PeFormatError."""
        if data[:2] != b"MZ" or len(data) < 0x40:
            raise PeFormatError(
                "not a PE image",
                expected="a DOS header that starts with MZ",
                got=repr(bytes(data[:2])),
                rule="pe.dos-header",
                hint="give a unified kernel image (.efi)",
            )
        (pe_offset,) = struct.unpack_from("<I", data, 0x3C)
        optional = pe_offset + 24
        if optional + 2 > len(data) or data[pe_offset : pe_offset + 4] != b"PE\0\0":
            raise PeFormatError(
                "no PE header where the DOS header points",
                expected="PE signature",
                got=f"offset {pe_offset:#x} in {len(data):#x} bytes",
                rule="pe.signature",
            )
        (count,) = struct.unpack_from("<H", data, pe_offset + 6)
        optional_size, magic = struct.unpack_from("<H2xH", data, pe_offset + 20)
        if magic not in _LAYOUTS:
            raise PeFormatError(
                "unknown optional header",
                expected="PE32 (0x10b) or PE32+ (0x20b)",
                got=f"{magic:#x}",
                rule="pe.magic",
            )
        checksum_at, count_at, directories_at = _LAYOUTS[magic]
        table = optional + optional_size
        if not 1 <= count <= _MAX_SECTIONS or table + 40 * count > len(data):
            raise PeFormatError(
                "section table does not fit",
                expected=f"1 to {_MAX_SECTIONS} sections within {len(data):#x} bytes",
                got=f"{count} at {table:#x}",
                rule="pe.section-table",
            )
        # Only now is it known that the whole optional header is in the file.
        (directories,) = struct.unpack_from("<I", data, min(optional + count_at, table - 4))
        if optional_size != directories_at + 8 * directories or directories > _MAX_DIRECTORIES:
            raise PeFormatError(
                "optional header size and number of data directories disagree",
                expected=f"{directories_at} + 8 for each of up to {_MAX_DIRECTORIES} directories",
                got=f"{optional_size} bytes, {directories} directories",
                rule="pe.optional-header",
            )
        (headers_size,) = struct.unpack_from("<I", data, optional + 60)
        if not table + 40 * count <= headers_size <= len(data):
            raise PeFormatError(
                "SizeOfHeaders does not cover the headers, or leaves the file",
                expected=f"{table + 40 * count:#x} to {len(data):#x}",
                got=f"{headers_size:#x}",
                rule="pe.headers-size",
            )
        sections = tuple(_section(data, table + 40 * index) for index in range(count))
        _check_layout(sections, headers_size, len(data))
        entry, certificates = None, 0
        if directories > _SECURITY_DIRECTORY:
            entry = optional + directories_at + 8 * _SECURITY_DIRECTORY
            certificates = _certificates(data, entry, headers_size, sections)
        return cls(data, sections, optional + checksum_at, entry, headers_size, certificates)

    def section(self, name: str) -> memoryview | None:
        """The file content of the one section of this name, None if there is none.

        Raises PeFormatError if there are several: which one is used would be the loader's choice.
        """
        found = self._find(name)
        return (
            None if found is None else memoryview(self.data)[found.raw_offset :][: found.raw_size]
        )

    def loaded(self, name: str) -> tuple[memoryview, int] | None:
        """A section as in memory: its content up to its virtual size, and how many zeros follow.

        None if there is no such section or its virtual size is 0. Raises PeFormatError on several.
        """
        found = self._find(name)
        if found is None or found.virtual_size == 0:
            return None
        content = memoryview(self.data)[found.raw_offset :]
        content = content[: min(found.raw_size, found.virtual_size)]
        return content, found.virtual_size - len(content)

    def _find(self, name: str) -> PeSection | None:
        found = [section for section in self.sections if section.name == name]
        if len(found) > 1:
            raise PeFormatError(
                f"several sections are called {name}",
                expected="at most one",
                got=str(len(found)),
                rule="pe.duplicate-section",
                hint="multi-profile images are not supported",
            )
        return found[0] if found else None


def _section(data: bytes, offset: int) -> PeSection:
    raw_name, virtual_size, address, raw_size, raw_offset = _SECTION_HEADER.unpack_from(
        data, offset
    )
    name = raw_name.rstrip(b"\0").decode("latin-1")
    end = raw_offset + raw_size
    if raw_size and (raw_offset == 0 or address == 0 or end > len(data)):
        raise PeFormatError(
            f"section {name!r} has its data outside the file or nowhere",
            expected=f"an end up to {len(data):#x}",
            got=f"{raw_offset:#x} to {end:#x}, loaded at {address:#x}",
            rule="pe.section-range",
        )
    return PeSection(name, virtual_size, raw_offset, raw_size)


def _check_layout(sections: tuple[PeSection, ...], headers_size: int, size: int) -> None:
    """No byte of the file belongs to two parts, so the Authenticode hash has one reading."""
    end = headers_size
    for section in sorted((s for s in sections if s.raw_size), key=lambda s: s.raw_offset):
        if section.raw_offset < end:
            raise PeFormatError(
                f"section {section.name!r} overlaps the headers or another section",
                expected=f"a start of at least {end:#x} in {size:#x} bytes",
                got=f"{section.raw_offset:#x}",
                rule="pe.section-overlap",
            )
        end = section.raw_offset + section.raw_size


def _certificates(
    data: bytes, entry: int, headers_size: int, sections: tuple[PeSection, ...]
) -> int:
    start, size = struct.unpack_from("<II", data, entry)
    if not size:
        return 0
    floor = max([headers_size, *(s.raw_offset + s.raw_size for s in sections if s.raw_size)])
    if start < floor or start + size != len(data):
        raise PeFormatError(
            "certificate table is not what ends the file",
            expected=f"a start of at least {floor:#x}, an end at {len(data):#x}",
            got=f"{start:#x} to {start + size:#x}",
            rule="pe.certificate-table",
        )
    return int(size)
