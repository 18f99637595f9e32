"""Firmware volumes: which modules a firmware holds, and which of them a TD can load.

Sources: UEFI Platform Initialization specification, volume 3 (FV, FFS and section formats); edk2
OvmfPkg/Library/PeilessStartupLib/DxeLoad.c: a TD loads the volumes of the boot firmware volume
except the one named NCCFV, which only a plain VM gets.

The walk follows the structure and never scans for signatures: code contains look-alikes. What it
can't open is an error, because it might hide a module.
"""

import lzma
import struct
from collections.abc import Iterator
from dataclasses import dataclass, replace
from uuid import UUID

from attestation.errors import FirmwareFormatError, FirmwareRejected

NCCFV = UUID("ae047c6d-bce9-426c-ae03-a68e3b8a0488")
DXEFV = UUID("7cb8bdc9-f8eb-4f34-aaea-3ee4af6516a1")
LZMA_SECTION = UUID("ee4e5898-3914-4259-9d6e-dc7bd79403cf")

_FILE_SYSTEMS = (
    UUID("8c8ce578-8a3d-4f1c-9935-896185c32dd3"),
    UUID("5473c07a-3dcb-4dca-bd6f-1e9689e7349a"),
)
_VOLUME_HEADER = struct.Struct("<16x16sQ4sIHHHxB")
_ERASE_POLARITY = 0x800
_MAX_VOLUME_HEADER = 4096
_FILE_HEADER_SIZE = 24
_LARGE_FILE = 0x01
_FILE_VALID = 0xF8  # header and data complete, not deleted, in flash that erases to 1
_FILES_WITH_SECTIONS = range(0x02, 0x10)  # not raw (1), padding (0xf0) or vendor types
_SECTION_COMPRESSION, _SECTION_GUIDED, _SECTION_DISPOSABLE = 0x01, 0x02, 0x03
_SECTION_NAME, _SECTION_VOLUME = 0x15, 0x17
_GUIDED_HEADER = struct.Struct("<16sHH")

_MAX_DEPTH = 8
_MAX_PARTS = 1 << 16  # volumes, files and sections; stock firmware has about 400
_MAX_STREAMS = 16  # also bounds how deep they can be nested; stock firmware has one
_MAX_UNPACKED = 128 << 20  # bytes; stock firmware has 12 to 16 MiB
_MAX_DECODER_MEMORY = 256 << 20


@dataclass(frozen=True, slots=True)
class Module:
    """One file of a volume; `loadable` says whether a TD can load it, `body` is its content.

    `name` is its user interface name, "" without one; `volume` the GUID of the volume it lies in.
    The body of a file that holds volumes is left out.
    """

    guid: UUID
    type: int
    name: str
    volume: UUID | None
    loadable: bool
    body: bytes


def modules(region: bytes) -> tuple[Module, ...]:
    """All modules of the volumes that fill `region`, the data of a BFV section.

    Raises FirmwareFormatError, and FirmwareRejected (rule `opaque-section`) for a part that can't
    be looked into.
    """
    walk = _Walk()
    offset = 0
    while offset < len(region):
        offset += walk.volume(memoryview(region)[offset:], depth=0, loadable=True, spare=False)
    return tuple(walk.found)


class _Walk:
    """The modules found so far, and what is left of the limits."""

    def __init__(self) -> None:
        self.found: list[Module] = []
        self.parts = 0
        self.streams = 0
        self.unpacked = 0

    def volume(self, data: memoryview, *, depth: int, loadable: bool, spare: bool) -> int:
        """Walk the volume at the start of `data`; gives its length.

        `spare`: a TD leaves this volume alone if it is called NCCFV.
        """
        if depth > _MAX_DEPTH:
            raise _broken("volumes are nested too deep", f"at most {_MAX_DEPTH}", "more", "nesting")
        self._count()
        length, name, offset = _volume_header(data)
        loadable = loadable and not (spare and name == NCCFV)
        while offset < length:
            rest = data[offset:length]
            if _erased(rest[:_FILE_HEADER_SIZE]) and _erased(rest):
                break
            size = self._file(rest, name, depth, loadable)
            offset += -(-size // 8) * 8
        return length

    def _file(self, data: memoryview, volume: UUID | None, depth: int, loadable: bool) -> int:
        """Record the file at the start of `data`, and what it contains; gives its length."""
        self._count()
        header_size, size = _file_header(data)
        kind, body = data[18], bytes(data[header_size:size])
        index = len(self.found)
        module = Module(UUID(bytes_le=bytes(data[:16])), kind, "", volume, loadable, body)
        self.found.append(module)
        if kind in _FILES_WITH_SECTIONS:
            volumes = 0
            for section, content in self._sections(memoryview(body)):
                if section == _SECTION_VOLUME:
                    # edk2 starts the first volume of a file whatever its name, and looks for the
                    # NCCFV in files of the outermost volume only.
                    spare = depth == 0 and volumes > 0
                    self.volume(content, depth=depth + 1, loadable=loadable, spare=spare)
                    volumes += 1
                elif section == _SECTION_NAME:
                    name = bytes(content).decode("utf-16-le", "replace").rstrip("\0")
                    module = replace(module, name=module.name or name)
            # What is in volumes counts where they are walked, with their own `loadable`.
            self.found[index] = replace(module, body=b"") if volumes else module
        return size

    def _sections(self, data: memoryview) -> Iterator[tuple[int, memoryview]]:
        """Type and content of the sections in a stream, those in LZMA sections in their place."""
        for kind, raw, header_size in _section_stream(data):
            self._count()
            if kind == _SECTION_GUIDED:
                yield from self._sections(memoryview(self._unpack(raw, header_size)))
            elif kind in (_SECTION_COMPRESSION, _SECTION_DISPOSABLE):
                raise _opaque(f"section type {kind:#x}")
            else:
                yield kind, raw[header_size:]

    def _count(self) -> None:
        self.parts += 1
        if self.parts > _MAX_PARTS:
            raise _broken("too many parts", f"at most {_MAX_PARTS}", "more", "part-count")

    def _unpack(self, raw: memoryview, header_size: int) -> bytes:
        """The section stream in a GUID-defined section."""
        if len(raw) < header_size + _GUIDED_HEADER.size:
            raise _broken("GUID-defined section is too short", "a GUID", "less", "guided-section")
        guid, start, _ = _GUIDED_HEADER.unpack_from(raw, header_size)
        if guid != LZMA_SECTION.bytes_le:
            raise _opaque(f"encoding {UUID(bytes_le=guid)}")
        self.streams += 1
        if self.streams > _MAX_STREAMS:
            raise _broken("too many LZMA sections", f"at most {_MAX_STREAMS}", "more", "lzma-count")
        decoder = lzma.LZMADecompressor(lzma.FORMAT_ALONE, memlimit=_MAX_DECODER_MEMORY)
        limit = _MAX_UNPACKED - self.unpacked
        try:
            unpacked = decoder.decompress(raw[start:], max_length=limit + 1)
        except lzma.LZMAError as error:
            raise _broken("LZMA section can't be unpacked", "LZMA", str(error), "lzma") from error
        if len(unpacked) > limit:
            raise _broken("LZMA section is a bomb", f"at most {limit} bytes", "more", "lzma-size")
        if not decoder.eof:
            raise _broken("LZMA section is truncated", "a whole stream", "a part", "lzma")
        self.unpacked += len(unpacked)
        return unpacked


def _broken(problem: str, expected: str, got: str, rule: str) -> FirmwareFormatError:
    return FirmwareFormatError(
        f"firmware volume: {problem}", expected=expected, got=got, rule=f"volume.{rule}"
    )


def _opaque(what: str) -> FirmwareRejected:
    return FirmwareRejected(
        "firmware has a part that the audit can't look into",
        expected="volumes and LZMA sections only",
        got=what,
        rule="opaque-section",
    )


def _erased(data: memoryview) -> bool:
    return not bytes(data).strip(b"\xff")


def _volume_header(data: memoryview) -> tuple[int, UUID | None, int]:
    """Length of the volume, its name, and the offset of its first file."""
    if len(data) < _VOLUME_HEADER.size:
        raise _broken("truncated header", f"{_VOLUME_HEADER.size} bytes", str(len(data)), "header")
    guid, length, signature, attributes, size, _, extended, _ = _VOLUME_HEADER.unpack_from(data)
    if signature != b"_FVH" or UUID(bytes_le=guid) not in _FILE_SYSTEMS:
        raise _broken("no volume of files here", "_FVH and FFS", repr(signature), "header")
    if size % 2 or not _VOLUME_HEADER.size <= size <= min(length, _MAX_VOLUME_HEADER):
        raise _broken("odd header length", "an even, small number", str(size), "header")
    if not size <= length <= len(data):
        raise _broken("length leaves its container", f"at most {len(data)}", str(length), "length")
    if sum(struct.unpack_from(f"<{size // 2}H", data)) & 0xFFFF:
        raise _broken("wrong header checksum", "a sum of 0", "another", "checksum")
    if not attributes & _ERASE_POLARITY:
        raise _broken("erases to 0", "erase polarity 1", hex(attributes), "erase-polarity")
    if not extended:
        return length, None, size
    if not size <= extended <= length - 20:
        raise _broken("extended header leaves it", f"up to {length}", str(extended), "extended")
    name, extended_size = struct.unpack_from("<16sI", data, extended)
    if not 20 <= extended_size <= length - extended:
        raise _broken("extended header leaves it", "20 or more", str(extended_size), "extended")
    return length, UUID(bytes_le=name), -(-(extended + extended_size) // 8) * 8


def _file_header(data: memoryview) -> tuple[int, int]:
    """Sizes of the header and of the whole file at the start of `data`."""
    if len(data) < _FILE_HEADER_SIZE:
        raise _broken("data behind its last file", "0xff", data.hex(), "file-header")
    header_size, size = _FILE_HEADER_SIZE, int.from_bytes(data[20:23], "little")
    if data[19] & _LARGE_FILE:
        header_size += 8
        size = int.from_bytes(data[24:32], "little")
    if not header_size <= size <= len(data):
        raise _broken("file leaves it", f"{header_size} to {len(data)}", str(size), "file-size")
    # The checksum covers neither the one of the content nor the state (PI specification 3.2.3).
    if (sum(data[:header_size]) - data[17] - data[23]) & 0xFF:
        raise _broken("wrong file header checksum", "a sum of 0", "another", "file-checksum")
    if data[23] != _FILE_VALID:
        raise _broken("file is not valid", hex(_FILE_VALID), hex(data[23]), "file-state")
    return header_size, size


def _section_stream(data: memoryview) -> Iterator[tuple[int, memoryview, int]]:
    """Type, whole bytes and header size of each section."""
    offset = 0
    while offset + 4 <= len(data):
        size, kind = int.from_bytes(data[offset : offset + 3], "little"), data[offset + 3]
        header_size = 4
        if size == 0xFFFFFF:
            header_size = 8
            size = int.from_bytes(data[offset + 4 : offset + 8], "little")
        if not header_size <= size <= len(data) - offset:
            rest = len(data) - offset
            raise _broken("section leaves its file", f"up to {rest}", str(size), "section-size")
        yield kind, data[offset : offset + size], header_size
        offset += -(-size // 4) * 4
