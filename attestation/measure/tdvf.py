"""TDVF metadata of a TDX firmware, and the MR_TD that a trust domain started from it will have.

Sources: Intel "TDX Virtual Firmware Design Guide" (metadata, section 11), edk2
OvmfPkg/ResetVector/X64/IntelTdxMetadata.asm and OvmfPkg/ResetVector/Ia16/ResetVectorVtf0.asm (the
GUIDed table before the reset vector), QEMU hw/i386/tdvf.c (what a host accepts), Intel "TDX Module
Base Architecture Specification" (TDH.MEM.PAGE.ADD, TDH.MR.EXTEND).
"""

import hashlib
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from enum import IntEnum, StrEnum
from uuid import UUID

from attestation.errors import FirmwareFormatError, FirmwareRejected

PAGE = 4096
CHUNK = 256
MR_EXTEND = 1  # attribute bit 0: the host asks the TDX module to measure the content
PAGE_AUG = 2  # attribute bit 1: the guest adds these pages itself, after the build
ATTRIBUTES_AT = 28  # of the attribute word in a section entry

TABLE_FOOTER = UUID("96b582de-1fb2-45f7-baea-a366c55a082d")
METADATA_ENTRY = UUID("e47a6535-984a-4798-865e-4685a7bf8ec2")

_MAX_SECTIONS = 64
_MAX_GUEST_BYTES = 256 << 20  # of all sections; stock firmware has about 5 MiB
_MAX_ADDRESS = 1 << 52  # physical address width of the architecture
_ENTRY = struct.Struct("<IIQQII")
_ENTRY_TAIL = 18  # u16 length and GUID behind the data of a table entry


class SectionType(IntEnum):
    """Section types of the TDVF design guide; QEMU starts the first four only."""

    BFV = 0
    CFV = 1
    TD_HOB = 2
    TEMP_MEM = 3
    PERM_MEM = 4
    PAYLOAD = 5
    PAYLOAD_PARAM = 6
    TD_INFO = 7


class PageOrder(StrEnum):
    """How a host builds a measured section: each page added then extended, or all adds first."""

    INTERLEAVED = "interleaved"
    TWO_PASS = "two-pass"  # noqa: S105 - a pass over pages


class HostProfile(StrEnum):
    """Host software that yields one MR_TD for one firmware."""

    UPSTREAM = "upstream"  # Linux >= 6.16 and QEMU >= 10.1
    CANONICAL_24_04 = "canonical-24.04"  # the out-of-tree stack of Ubuntu 24.04

    @property
    def page_order(self) -> PageOrder:
        """The page order of these hosts."""
        return PageOrder.INTERLEAVED if self is HostProfile.UPSTREAM else PageOrder.TWO_PASS


@dataclass(frozen=True, slots=True)
class Section:
    """One metadata entry; sizes and addresses in bytes, `entry_offset` is where it was read."""

    entry_offset: int
    data_offset: int
    raw_size: int
    gpa: int
    mem_size: int
    type: int
    attributes: int

    @property
    def measured(self) -> bool:
        """Whether MR_TD covers the content of the section."""
        return bool(self.attributes & MR_EXTEND) and not self.attributes & PAGE_AUG

    @property
    def data_end(self) -> int:
        """File offset behind the section's data."""
        return self.data_offset + self.raw_size

    @property
    def name(self) -> str:
        """The type for people, also where it is none of ours."""
        return SectionType(self.type).name if self.type in set(SectionType) else str(self.type)


@dataclass(frozen=True, slots=True)
class Tdvf:
    """The metadata of one firmware image of `size` bytes, sections in metadata order."""

    sections: tuple[Section, ...]
    size: int

    @classmethod
    def parse(cls, fd: bytes) -> "Tdvf":
        """Read the metadata of a unified firmware image. Raises FirmwareFormatError."""
        start = _descriptor_offset(fd)
        if start + 16 > len(fd):
            raise FirmwareFormatError(
                "TDX metadata descriptor lies outside the file",
                expected=f"16 bytes within {len(fd):#x}",
                got=f"offset {start:#x}",
                rule="tdvf.descriptor-range",
            )
        signature, length, version, count = struct.unpack_from("<4sIII", fd, start)
        if signature != b"TDVF" or version != 1:
            raise FirmwareFormatError(
                "no TDX metadata at the place that the table names",
                expected="TDVF version 1",
                got=f"{signature!r} version {version}",
                rule="tdvf.descriptor-signature",
            )
        if not 1 <= count <= _MAX_SECTIONS or length != 16 + _ENTRY.size * count:
            raise FirmwareFormatError(
                "TDX metadata length and section count disagree",
                expected=f"1 to {_MAX_SECTIONS} sections of 32 bytes",
                got=f"{count} sections in {length} bytes",
                rule="tdvf.descriptor-length",
            )
        if start + length > len(fd):
            raise FirmwareFormatError(
                "TDX metadata runs past the end of the file",
                expected=f"at most {len(fd):#x}",
                got=f"{start + length:#x}",
                rule="tdvf.descriptor-range",
            )
        sections = tuple(
            Section(offset, *_ENTRY.unpack_from(fd, offset))
            for offset in range(start + 16, start + length, _ENTRY.size)
        )
        for index, section in enumerate(sections):
            _check_section(index, section, len(fd))
        _check_disjoint("guest memory", [(s.gpa, s.mem_size) for s in sections])
        _check_disjoint("the file", [(s.data_offset, s.raw_size) for s in sections])
        total = sum(s.mem_size for s in sections)
        if total > _MAX_GUEST_BYTES:
            raise FirmwareFormatError(
                "TDX sections are larger than any firmware needs",
                expected=f"at most {_MAX_GUEST_BYTES:#x} bytes",
                got=f"{total:#x}",
                rule="tdvf.total-size",
            )
        return cls(sections, len(fd))

    def of_type(self, kind: SectionType) -> tuple[Section, ...]:
        """All sections of one type, in metadata order."""
        return tuple(s for s in self.sections if s.type == kind)


def _descriptor_offset(fd: bytes) -> int:
    """File offset of the TDX metadata, from the GUIDed table that ends 32 bytes before the end."""
    end = len(fd) - 32
    if end < _ENTRY_TAIL or fd[end - 16 : end] != TABLE_FOOTER.bytes_le:
        raise FirmwareFormatError(
            "not a unified OVMF firmware image: no GUIDed table at its end",
            expected=f"GUID {TABLE_FOOTER} 48 bytes before the end",
            rule="tdvf.footer",
            hint="give the unified OVMF*.fd file, not one of a CODE/VARS pair",
        )
    (length,) = struct.unpack_from("<H", fd, end - _ENTRY_TAIL)
    floor, cursor = end - length, end - _ENTRY_TAIL
    if floor < 0 or floor > cursor:
        raise FirmwareFormatError(
            "GUIDed table is longer than the file, or shorter than its own footer",
            expected=f"{_ENTRY_TAIL} to {end} bytes",
            got=str(length),
            rule="tdvf.table-length",
        )
    found: list[int] = []
    while cursor > floor:
        size = 0
        if cursor - floor >= _ENTRY_TAIL:
            (size,) = struct.unpack_from("<H", fd, cursor - _ENTRY_TAIL)
        if not _ENTRY_TAIL <= size <= cursor - floor:
            raise FirmwareFormatError(
                "entry of the GUIDed table leaves the table",
                expected=f"{_ENTRY_TAIL} to {cursor - floor} bytes",
                got=str(size),
                rule="tdvf.table-entry",
            )
        if fd[cursor - 16 : cursor] == METADATA_ENTRY.bytes_le:
            if size != _ENTRY_TAIL + 4:
                raise FirmwareFormatError(
                    "TDX metadata entry has the wrong size",
                    expected=str(_ENTRY_TAIL + 4),
                    got=str(size),
                    rule="tdvf.table-entry",
                )
            found.append(struct.unpack_from("<I", fd, cursor - size)[0])
        cursor -= size
    if len(found) != 1:
        raise FirmwareFormatError(
            "firmware does not have one TDX metadata entry",
            expected=f"one table entry {METADATA_ENTRY}",
            got=str(len(found)),
            rule="tdvf.metadata-entry",
            hint="this firmware does not support TDX; take one built for it (OVMF.inteltdx)",
        )
    back = found[0]
    if not 0 < back <= len(fd):
        raise FirmwareFormatError(
            "TDX metadata descriptor lies outside the file",
            expected=f"1 to {len(fd):#x} bytes before the end",
            got=f"{back:#x}",
            rule="tdvf.descriptor-range",
        )
    return len(fd) - back


def _check_section(index: int, section: Section, size: int) -> None:
    def refuse(problem: str, expected: str, got: str, rule: str) -> FirmwareFormatError:
        where = f"TDX section {index} ({section.name})"
        hint = "give the unified OVMF*.fd file, not one of a CODE/VARS pair"
        return FirmwareFormatError(
            f"{where} {problem}",
            expected=expected,
            got=got,
            rule=rule,
            hint=hint if rule == "tdvf.section-range" else "",
        )

    if section.gpa % PAGE or section.mem_size % PAGE:
        raise refuse(
            "is not page aligned",
            f"multiples of {PAGE}",
            f"address {section.gpa:#x}, size {section.mem_size:#x}",
            "tdvf.section-alignment",
        )
    if section.gpa + section.mem_size > _MAX_ADDRESS:
        raise refuse(
            "leaves the address space",
            f"an end up to {_MAX_ADDRESS:#x}",
            f"{section.gpa + section.mem_size:#x}",
            "tdvf.section-address",
        )
    if section.raw_size > section.mem_size:
        raise refuse(
            "has more data than memory",
            f"at most {section.mem_size:#x} bytes",
            f"{section.raw_size:#x}",
            "tdvf.section-memory",
        )
    if section.data_end > size:
        raise refuse(
            "has its data outside the file",
            f"an end up to {size:#x}",
            f"{section.data_end:#x}",
            "tdvf.section-range",
        )
    # QEMU's own rule, tdvf_parse_and_check_section_entry().
    has_data = section.type in (SectionType.BFV, SectionType.CFV)
    if section.type <= SectionType.TEMP_MEM and bool(section.raw_size) != has_data:
        raise refuse(
            "has data" if section.raw_size else "has no data",
            "data in the file" if has_data else "memory only",
            f"{section.raw_size:#x} bytes",
            "tdvf.section-data",
        )


def _check_disjoint(space: str, ranges: list[tuple[int, int]]) -> None:
    end = 0
    for start, size in sorted(r for r in ranges if r[1]):
        if start < end:
            raise FirmwareFormatError(
                f"TDX sections overlap in {space}",
                expected=f"a start of at least {end:#x}",
                got=f"{start:#x}",
                rule="tdvf.section-overlap",
            )
        end = start + size


def mr_td(fd: bytes, order: PageOrder) -> bytes:
    """MR_TD (48 bytes) of a trust domain that a host with this page order starts from `fd`.

    SHA-384 over what TDH.MEM.PAGE.ADD (128 bytes a page) and TDH.MR.EXTEND (128 + 256 bytes a
    chunk) append, sections in metadata order. Raises FirmwareFormatError, FirmwareRejected.
    """
    tdvf = Tdvf.parse(fd)
    state = hashlib.sha384()
    for index, section in enumerate(tdvf.sections):
        if section.type > SectionType.TEMP_MEM:
            raise FirmwareRejected(
                f"TDVF contains unsupported section type {section.type}: QEMU does not start it",
                expected="section types 0 to 3",
                got=f"section {index} of type {section.name}",
                rule="section-type",
                hint="use an OVMF built for TDX; td-shim with a payload has no MR_TD under QEMU",
            )
        if section.attributes & PAGE_AUG:
            continue
        if section.measured and section.type == SectionType.TD_HOB:
            raise FirmwareRejected(
                "firmware measures the TD HOB, which the host writes: MR_TD depends on the host",
                expected="no MR_EXTEND on section type TD_HOB",
                got=f"section {index} with it",
                rule="measured-hob",
            )
        for part in _section_stream(fd, section, order):
            state.update(part)
    return state.digest()


def _section_stream(fd: bytes, section: Section, order: PageOrder) -> Iterator[bytes]:
    pages = range(section.gpa, section.gpa + section.mem_size, PAGE)
    if not section.measured:
        yield b"".join(map(_page_add, pages))
    elif order is PageOrder.INTERLEAVED:
        for gpa in pages:
            yield _page_add(gpa)
            yield _page_extends(fd, section, gpa)
    else:
        yield b"".join(map(_page_add, pages))
        for gpa in pages:
            yield _page_extends(fd, section, gpa)


def _page_add(gpa: int) -> bytes:
    return struct.pack("<16sQ104x", b"MEM.PAGE.ADD", gpa)


def _page_extends(fd: bytes, section: Section, gpa: int) -> bytes:
    start = section.data_offset + gpa - section.gpa
    page = fd[start : min(start + PAGE, section.data_end)].ljust(PAGE, b"\0")
    return b"".join(
        struct.pack("<16sQ104x", b"MR.EXTEND", gpa + at) + page[at : at + CHUNK]
        for at in range(0, PAGE, CHUNK)
    )
