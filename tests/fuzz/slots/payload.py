"""Fuzz target: a final payload, as readers and as the owner of a reservation see it."""

from tests.zipnet.protocol.support import SHAPE, header
from zipnet.errors import WireFormatError
from zipnet.protocol import schedule
from zipnet.protocol.schedule import Reservation
from zipnet.protocol.slots import Kind, fill, read_slots

HEADER = header()


def seeds() -> list[bytes]:
    message = fill(HEADER, 0, b"12345678")
    dummy = fill(HEADER, 1, b"random 8", dummy=True)
    vector = schedule.write(Reservation(5, 0x1234), SHAPE)
    return [
        bytes(SHAPE.payload_bytes),
        (message + dummy + b"\1").ljust(SHAPE.message_bytes, b"\0") + vector,
    ]


def fuzz_one(data: bytes) -> None:
    try:
        found = read_slots(data, HEADER)
    except WireFormatError as error:
        error.diagnostics().encode()
        return
    size = SHAPE.slot_bytes
    for number, slot in enumerate(found):
        content = data[number * size : (number + 1) * size]
        if slot.kind is Kind.MESSAGE:
            assert fill(HEADER, number, slot.datum) == content
        assert (slot.kind is Kind.EMPTY) == (content == bytes(size))
    vector = data[SHAPE.message_bytes :]
    taken = [
        Reservation(at // 2, int.from_bytes(vector[at : at + 2], "big"))
        for at in range(0, len(vector), 2)
        if any(vector[at : at + 2])
    ]
    ranks = [schedule.rank(one, vector, SHAPE) for one in taken]
    owned = list(range(min(len(taken), SHAPE.num_slots)))
    assert ranks == owned + [None] * (len(taken) - len(owned))
    assert 0 < schedule.reserve_probability(SHAPE, 1, vector) <= 1
