"""Message slots: what readers tell apart, and what tags are bound to."""

from blake3 import blake3
from hypothesis import given
from hypothesis import strategies as st

from tests.zipnet.protocol.support import INSTANCE, OTHER_INSTANCE, SHAPE, header, refused
from zipnet.errors import DatumRejected, Refused, WireFormatError
from zipnet.protocol import slots
from zipnet.protocol.slots import Kind, Slot, dummy_tag, fill, read_slots, tag

HEADER = header()
BINDING = INSTANCE.binding
DATUM = b"12345678"
data = st.binary(min_size=SHAPE.datum_bytes, max_size=SHAPE.datum_bytes)


def payload(*filled: bytes) -> bytes:
    return b"".join(filled).ljust(SHAPE.payload_bytes, b"\0")


def test_tags_are_keyed_by_their_labels() -> None:
    place = BINDING + (7).to_bytes(8, "big") + (2).to_bytes(4, "big") + DATUM
    for function, label in ((tag, "zipnet/slot-tag/v2"), (dummy_tag, "zipnet/slot-dummy/v2")):
        made = blake3(place, derive_key_context=label).digest()[:16]
        assert function(BINDING, 7, 2, DATUM) == made


def test_tags_are_bound_to_everything() -> None:
    made = {
        function(*place)
        for function in (tag, dummy_tag)
        for place in (
            (BINDING, 7, 2, DATUM),
            (OTHER_INSTANCE.binding, 7, 2, DATUM),
            (BINDING, 8, 2, DATUM),
            (BINDING, 7, 3, DATUM),
            (BINDING, 7, 2, DATUM[::-1]),
        )
    }
    assert len(made) == 10


@given(data, data)
def test_reading_what_was_filled(message: bytes, noise: bytes) -> None:
    filled = fill(HEADER, 0, message), fill(HEADER, 1, noise, dummy=True), b"\1" * 24
    assert all(len(one) == SHAPE.slot_bytes for one in filled)
    kinds = Kind.MESSAGE, Kind.DUMMY, Kind.GARBLED, Kind.EMPTY
    found = read_slots(payload(*filled), HEADER)
    assert tuple(slot.kind for slot in found) == kinds
    assert [slot.datum for slot in found] == [message, b"", b"", b""]


def test_a_message_of_zeros_is_a_message() -> None:
    found = read_slots(payload(fill(HEADER, 0, bytes(8))), HEADER)
    assert found[0] == Slot(Kind.MESSAGE, bytes(8))


@given(data, data, st.booleans(), st.booleans())
def test_two_in_one_slot_are_garbled(a: bytes, b: bytes, first: bool, second: bool) -> None:
    filled = fill(HEADER, 0, a, dummy=first), fill(HEADER, 0, b, dummy=second)
    both = bytes(x ^ y for x, y in zip(*filled, strict=True))
    expected = Kind.GARBLED if any(both) else Kind.EMPTY
    assert read_slots(payload(both), HEADER)[0].kind is expected


def test_elsewhere_it_is_garbled() -> None:
    filled = fill(HEADER, 1, DATUM)
    empty = bytes(SHAPE.slot_bytes)
    assert read_slots(payload(empty, filled), HEADER)[1].kind is Kind.MESSAGE
    for other, raw in (
        (HEADER, payload(filled)),
        (header(round_number=8), payload(empty, filled)),
        (header(instance=OTHER_INSTANCE), payload(empty, filled)),
    ):
        assert Kind.GARBLED in {slot.kind for slot in read_slots(raw, other)}


def test_refusals() -> None:
    for size in (0, 7, 9):
        with refused(DatumRejected, "datum.size"):
            fill(HEADER, 0, bytes(size))
    for slot in (-1, 4):
        with refused(Refused, "slot.number"):
            fill(HEADER, slot, DATUM)
    for size in (0, SHAPE.payload_bytes - 1, SHAPE.payload_bytes + 1):
        with refused(WireFormatError, "payload.size"):
            read_slots(bytes(size), HEADER)


def test_writing_into_a_vector() -> None:
    vector = slots.write(SHAPE, 3, b"\1" * 24)
    assert vector == bytes(72) + b"\1" * 24
    assert slots.write(SHAPE, None, b"") == bytes(SHAPE.message_bytes)


def test_data_stay_out_of_logs() -> None:
    assert "1234" not in repr(read_slots(payload(fill(HEADER, 0, DATUM)), HEADER))
