"""Message slots: a datum and a tag that tells messages, dummies and noise apart.

    slot  = datum ‖ tag
    tag   = BLAKE3.derive_key("zipnet/slot-tag/v2")(binding ‖ u64 round ‖ u32 slot ‖ datum)[:16]
    dummy = BLAKE3.derive_key("zipnet/slot-dummy/v2")(the same)[:16]

Anyone can make tags. They detect collisions and damage, not insiders: whoever owns a slot, or adds
to it, can write what it likes. Applications that need authorship sign inside the datum.
"""

from dataclasses import dataclass, field
from enum import Enum

from blake3 import blake3

from zipnet.errors import DatumRejected, Refused, WireFormatError
from zipnet.protocol.header import Header
from zipnet.protocol.shape import TAG_LEN, Shape

TAG = "zipnet/slot-tag/v2"
DUMMY_TAG = "zipnet/slot-dummy/v2"


class Kind(Enum):
    """What a slot of a broadcast holds."""

    EMPTY = "empty"
    MESSAGE = "message"
    DUMMY = "dummy"
    GARBLED = "garbled"


@dataclass(frozen=True, slots=True)
class Slot:
    """One slot as read; `datum` is empty unless it is a message."""

    kind: Kind
    datum: bytes = field(default=b"", repr=False)


def tag(binding: bytes, round_number: int, slot: int, datum: bytes) -> bytes:
    """The tag of a message, 16 bytes."""
    return _tag(TAG, binding, round_number, slot, datum)


def dummy_tag(binding: bytes, round_number: int, slot: int, datum: bytes) -> bytes:
    """The tag of a dummy, 16 bytes."""
    return _tag(DUMMY_TAG, binding, round_number, slot, datum)


def fill(header: Header, slot: int, datum: bytes, *, dummy: bool = False) -> bytes:
    """The bytes of a slot, `slot_bytes` long; the datum of a dummy is random.

    Raises DatumRejected for a datum of another size, Refused for a slot beyond the last.
    """
    check_datum(header.shape, datum)
    if not 0 <= slot < header.shape.num_slots:
        raise Refused(
            "the round has no such slot",
            expected=f"0 to {header.shape.num_slots - 1}",
            got=str(slot),
            rule="slot.number",
        )
    label = DUMMY_TAG if dummy else TAG
    return datum + _tag(label, header.instance.binding, header.round, slot, datum)


def check_datum(shape: Shape, datum: bytes) -> None:
    """Refuse a datum that does not fill a slot exactly. Raises DatumRejected."""
    if len(datum) != shape.datum_bytes:
        raise DatumRejected(
            "the datum has the wrong size",
            expected=f"{shape.datum_bytes} bytes",
            got=str(len(datum)),
            rule="datum.size",
            hint="every datum encodes to exactly its WIRE_SIZE",
        )


def write(shape: Shape, slot: int | None, content: bytes) -> bytes:
    """The message vector with `content` (a filled slot) in this slot, or with nothing."""
    vector = bytearray(shape.message_bytes)
    if slot is not None:
        vector[slot * shape.slot_bytes : (slot + 1) * shape.slot_bytes] = content
    return bytes(vector)


def read_slots(payload: bytes, header: Header) -> tuple[Slot, ...]:
    """All slots of a final payload, in order. Raises WireFormatError for one of another size."""
    shape = header.shape
    if len(payload) != shape.payload_bytes:
        raise WireFormatError(
            "the payload is not of this round",
            expected=f"{shape.payload_bytes} bytes",
            got=str(len(payload)),
            rule="payload.size",
            hint="read it with the header of its own round",
        )
    size = shape.slot_bytes
    return tuple(
        _read(payload[slot * size : (slot + 1) * size], header, slot)
        for slot in range(shape.num_slots)
    )


def _read(content: bytes, header: Header, slot: int) -> Slot:
    if not any(content):
        return Slot(Kind.EMPTY)
    datum, found = content[:-TAG_LEN], content[-TAG_LEN:]
    place = (header.instance.binding, header.round, slot, datum)
    if found == tag(*place):
        return Slot(Kind.MESSAGE, datum)
    if found == dummy_tag(*place):
        return Slot(Kind.DUMMY)
    return Slot(Kind.GARBLED)


def _tag(label: str, binding: bytes, round_number: int, slot: int, datum: bytes) -> bytes:
    material = binding + round_number.to_bytes(8, "big") + slot.to_bytes(4, "big") + datum
    return blake3(material, derive_key_context=label).digest(TAG_LEN)
