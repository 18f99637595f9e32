"""The UEFI variable store of an OVMF firmware: read with the firmware's own checks, and written.

Sources: edk2 MdePkg/Include/Pi/PiFirmwareVolume.h (volume header),
MdeModulePkg/Include/Guid/VariableFormat.h (authenticated variable store),
OvmfPkg/Library/PlatformInitLib/Platform.c (PlatformValidateNvVarStore) and
OvmfPkg/EmuVariableFvbRuntimeDxe/Fvb.c (ValidateFvHeader): what makes a TD firmware drop the store
and boot with Secure Boot off; UEFI specification 32.4.1 (signature lists).
"""

import struct
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from uuid import UUID

from attestation.errors import FirmwareFormatError, FirmwareRejected

SYSTEM_NV_DATA = UUID("fff12b8d-7696-4c8b-a985-2747075b4f50")
AUTHENTICATED_STORE = UUID("aaf32c78-947b-439a-a180-2e144ec37792")

_VOLUME_HEADER = struct.Struct("<16s16sQ4sIHHHBB")
_VOLUME_HEADER_SIZE = 72  # with one block map entry and its end; the DXE phase takes no other
_VOLUME_ATTRIBUTES = 0x4FEFF
_BLOCK = 4096  # of flash: the store's share of the volume is a number of blocks
_STORE_HEADER = struct.Struct("<16sIBB6x")
_FORMATTED, _HEALTHY = 0x5A, 0xFE
_VARIABLE_HEADER = struct.Struct("<HBxIQ16sIII16s")
_VARIABLE_START = 0x55AA
_ADDED = 0x3F
_STATES = (0x7F, _ADDED, 0x3D, 0x3E, 0x3C)  # header only, added, and its ways of being deleted
_LIVE = (_ADDED, 0x3E)  # 0x3E: being replaced, still the value if its successor is not complete
_LIST_HEADER = struct.Struct("<16sIII")


@dataclass(frozen=True, slots=True)
class Variable:
    """One variable. `time` is its EFI_TIME (16 bytes, zero for an unauthenticated one)."""

    name: str
    vendor: UUID
    attributes: int
    data: bytes
    time: bytes = bytes(16)

    def encode(self) -> bytes:
        """Header, name and data as in the store, without padding."""
        name = self.name.encode("utf-16-le") + b"\0\0"
        header = _VARIABLE_HEADER.pack(
            _VARIABLE_START,
            _ADDED,
            self.attributes,
            0,
            self.time,
            0,
            len(name),
            len(self.data),
            self.vendor.bytes_le,
        )
        return header + name + self.data


@dataclass(frozen=True, slots=True)
class VariableStore:
    """A valid store: variables in bytes `start` to `end` of the volume, the live ones decoded."""

    start: int
    end: int
    variables: tuple[Variable, ...]


def parse(volume: bytes) -> VariableStore:
    """Read a variable store volume that spans all of `volume`, making every check of edk2's.

    Raises FirmwareFormatError, its rule naming the check.
    """
    _check_volume_header(volume)
    guid, size, layout, state = _STORE_HEADER.unpack_from(volume, _VOLUME_HEADER_SIZE)
    room = len(volume) - _VOLUME_HEADER_SIZE
    for what, ok, expected, got in (
        ("signature", guid == AUTHENTICATED_STORE.bytes_le, str(AUTHENTICATED_STORE), guid.hex()),
        ("format", layout == _FORMATTED, hex(_FORMATTED), hex(layout)),
        ("state", state == _HEALTHY, hex(_HEALTHY), hex(state)),
        (
            "size",
            _STORE_HEADER.size <= size <= room and (size + _VOLUME_HEADER_SIZE) % _BLOCK == 0,
            f"up to {room:#x}, whole blocks with the volume header",
            hex(size),
        ),
    ):
        if not ok:
            raise FirmwareFormatError(
                f"variable store has the wrong {what}",
                expected=expected,
                got=got,
                rule=f"store.{what}",
            )
    start, end = _VOLUME_HEADER_SIZE + _STORE_HEADER.size, _VOLUME_HEADER_SIZE + size
    return VariableStore(start, end, tuple(_walk(volume[start:end])))


def _check_volume_header(volume: bytes) -> None:
    if len(volume) < _VOLUME_HEADER_SIZE + _STORE_HEADER.size:
        raise FirmwareFormatError(
            "variable store is shorter than its headers",
            expected=f"at least {_VOLUME_HEADER_SIZE + _STORE_HEADER.size} bytes",
            got=str(len(volume)),
            rule="store.truncated",
        )
    zero, guid, length, signature, attributes, size, _, _, _, revision = _VOLUME_HEADER.unpack_from(
        volume
    )
    for what, ok, expected, got in (
        ("zero-vector", not any(zero), "16 zero bytes", zero.hex()),
        ("file-system", guid == SYSTEM_NV_DATA.bytes_le, str(SYSTEM_NV_DATA), guid.hex()),
        ("volume-signature", signature == b"_FVH", "_FVH", repr(signature)),
        ("attributes", attributes == _VOLUME_ATTRIBUTES, hex(_VOLUME_ATTRIBUTES), hex(attributes)),
        ("revision", revision == 2, "2", str(revision)),
        ("volume-length", length == len(volume), hex(len(volume)), hex(length)),
        (
            "header-length",
            size == _VOLUME_HEADER_SIZE,
            str(_VOLUME_HEADER_SIZE),
            str(size),
        ),
    ):
        if not ok:
            raise FirmwareFormatError(
                f"volume header of the variable store: wrong {what.replace('-', ' ')}",
                expected=expected,
                got=got,
                rule=f"store.{what}",
            )
    total = sum(struct.unpack_from(f"<{size // 2}H", volume)) & 0xFFFF
    if total:
        raise FirmwareFormatError(
            "volume header of the variable store: wrong checksum",
            expected="16-bit words that add up to 0",
            got=f"{total:#x}",
            rule="store.volume-checksum",
            hint="a TD would drop this store and boot with Secure Boot off",
        )


def _walk(area: bytes) -> Iterable[Variable]:
    """The live variables of the area behind the store header."""
    offset = 0
    while offset < len(area):
        if area[offset : offset + 2] != _VARIABLE_START.to_bytes(2, "little"):
            if area[offset:].strip(b"\xff"):
                raise FirmwareFormatError(
                    f"variable store has data behind its last variable, at {offset:#x}",
                    expected="0xff up to the end",
                    rule="store.padding",
                )
            return
        if offset + _VARIABLE_HEADER.size > len(area):
            raise FirmwareFormatError(
                f"variable header at {offset:#x} runs past the end of the store",
                expected=f"at most {len(area):#x}",
                got=f"{offset + _VARIABLE_HEADER.size:#x}",
                rule="store.variable-range",
            )
        _, state, attributes, _, time, _, name_size, data_size, vendor = (
            _VARIABLE_HEADER.unpack_from(area, offset)
        )
        if state not in _STATES:
            raise FirmwareFormatError(
                f"variable at {offset:#x} is in no valid state",
                expected=" ".join(map(hex, _STATES)),
                got=hex(state),
                rule="store.variable-state",
            )
        data_at = offset + _VARIABLE_HEADER.size + name_size
        end = data_at + data_size
        aligned = -(-end // 4) * 4
        if end > len(area):
            raise FirmwareFormatError(
                f"variable at {offset:#x} runs past the end of the store",
                expected=f"at most {len(area):#x}",
                got=f"{end:#x}",
                rule="store.variable-range",
            )
        if area[end:aligned].strip(b"\xff"):
            raise FirmwareFormatError(
                f"variable at {offset:#x} is not padded with 0xff",
                expected="0xff up to a multiple of 4",
                got=area[end:aligned].hex(),
                rule="store.variable-padding",
            )
        if state in _LIVE:
            name = _decode_name(area[data_at - name_size : data_at], offset)
            yield Variable(name, UUID(bytes_le=vendor), attributes, area[data_at:end], time)
        offset = aligned


def _decode_name(raw: bytes, offset: int) -> str:
    try:
        name = raw.decode("utf-16-le")
    except UnicodeDecodeError:
        name = ""
    if len(name) < 2 or name.find("\0") != len(name) - 1:
        raise FirmwareFormatError(
            f"variable at {offset:#x} has no proper name",
            expected="UTF-16 text with a NUL at its end",
            got=raw[:32].hex(),
            rule="store.variable-name",
        )
    return name[:-1]


def write(volume: bytes, variables: Sequence[Variable]) -> bytes:
    """The same store with exactly these variables, sorted by name; nothing else of it changes.

    Raises FirmwareFormatError if `volume` is no valid store, FirmwareRejected (rule
    `store-too-small`) if they do not fit.
    """
    store = parse(volume)
    blob = b""
    for variable in sorted(variables, key=lambda v: v.name):
        blob += variable.encode()
        blob += b"\xff" * (-len(blob) % 4)
    if len(blob) > store.end - store.start:
        raise FirmwareRejected(
            "variable store is too small for the policy",
            expected=f"at most {store.end - store.start} bytes",
            got=str(len(blob)),
            rule="store-too-small",
        )
    return (
        volume[: store.start] + blob.ljust(store.end - store.start, b"\xff") + volume[store.end :]
    )


def signature_list(kind: UUID, owner: UUID, payloads: Sequence[bytes]) -> bytes:
    """EFI_SIGNATURE_LIST of equally long, non-empty payloads of one kind and owner."""
    entries = b"".join(owner.bytes_le + payload for payload in payloads)
    size = 16 + len(payloads[0])
    return _LIST_HEADER.pack(kind.bytes_le, _LIST_HEADER.size + len(entries), 0, size) + entries


def signatures(data: bytes) -> tuple[tuple[UUID, UUID, bytes], ...]:
    """All (kind, owner, payload) of the EFI_SIGNATURE_LISTs in `data`.

    Raises FirmwareFormatError.
    """
    found = []
    offset = 0
    while offset < len(data):
        kind, total, extra, size = b"", 0, 0, 0
        if offset + _LIST_HEADER.size <= len(data):
            kind, total, extra, size = _LIST_HEADER.unpack_from(data, offset)
        entries = total - _LIST_HEADER.size - extra
        if size <= 16 or entries <= 0 or entries % size or offset + total > len(data):
            raise FirmwareFormatError(
                f"broken signature list at {offset:#x}",
                expected=f"whole entries within {len(data):#x} bytes",
                got=f"{total:#x} bytes with entries of {size:#x}",
                rule="siglist.sizes",
            )
        first = offset + _LIST_HEADER.size + extra
        for at in range(first, offset + total, size):
            owner = UUID(bytes_le=data[at : at + 16])
            found.append((UUID(bytes_le=kind), owner, data[at + 16 : at + size]))
        offset += total
    return tuple(found)
