"""Who may write into which message slot: reservations by footprints, and how many to make.

A client that takes part may write one footprint, not zero, into one random entry of the scheduling
vector of round r. If the final record of r shows it unchanged, the client owns in round r + 1 the
message slot whose number is the rank of that entry among the entries that are not zero. Two clients
in one entry always see the collision, since v1 XOR v2 = v1 needs v2 = 0; three or more miss it with
probability 0.11 / 2^16.

Randomness comes as a `Draw`. Slot and footprint are fresh in every round and follow from no key, so
that nothing links the rounds of a client.
"""

from collections.abc import Callable
from dataclasses import dataclass
from math import log

from zipnet.protocol.shape import Shape

# So many random bytes.
Draw = Callable[[int], bytes]
# Attempts per message slot at which most messages are delivered, for four entries a slot.
OCCUPANCY = 1.1


@dataclass(frozen=True, slots=True)
class Reservation:
    """An entry of the scheduling vector and the number that is written there, 1 to 2^16 - 1."""

    slot: int
    footprint: int


def uniform(below: int, draw: Draw) -> int:
    """A number from 0 to `below` - 1, each equally likely, by rejection."""
    bits = (below - 1).bit_length()
    size = (bits + 7) // 8
    while True:
        number = int.from_bytes(draw(size), "big") >> (8 * size - bits)
        if number < below:
            return number


def coin(probability: float, draw: Draw) -> bool:
    """True with this probability, to within 2^-64; always for 1, never for 0."""
    return int.from_bytes(draw(8), "big") < probability * 2.0**64


def reserve(shape: Shape, draw: Draw) -> Reservation:
    """A fresh reservation: uniform entry, uniform footprint other than zero."""
    slot = uniform(shape.num_sched_slots, draw)
    return Reservation(slot, 1 + uniform((1 << 8 * shape.sched_bytes) - 1, draw))


def write(reservation: Reservation | None, shape: Shape) -> bytes:
    """The scheduling vector that holds this one reservation, or none."""
    vector = bytearray(shape.schedule_bytes)
    if reservation is not None:
        at = reservation.slot * shape.sched_bytes
        footprint = reservation.footprint.to_bytes(shape.sched_bytes, "big")
        vector[at : at + shape.sched_bytes] = footprint
    return bytes(vector)


def rank(reservation: Reservation, schedule: bytes, shape: Shape) -> int | None:
    """The message slot that the reservation gives, in a final scheduling vector.

    None if the entry was changed, or if its rank is `num_slots` or more: there are no such slots.
    """
    at = reservation.slot * shape.sched_bytes
    entry = schedule[at : at + shape.sched_bytes]
    if entry != reservation.footprint.to_bytes(shape.sched_bytes, "big"):
        return None
    place = nonzero(schedule[:at], shape)
    return place if place < shape.num_slots else None


def nonzero(schedule: bytes, shape: Shape) -> int:
    """How many entries of (a part of) a scheduling vector are not zero."""
    size = shape.sched_bytes
    empty = bytes(size)
    return sum(schedule[at : at + size] != empty for at in range(0, len(schedule), size))


def attempts(taken: int, entries: int) -> float:
    """How many reservations probably left `taken` of `entries` entries not zero.

    -S ln(1 - nz / S). A full vector counts as half an entry short of it, to stay finite.
    """
    return -entries * log(1 - min(taken, entries - 0.5) / entries)


def reserve_probability(shape: Shape, crowd: int, last_schedule: bytes | None) -> float:
    """With what probability each client reserves: min(1, 1.1 m / max(crowd, estimated attempts)).

    `crowd` is the number of clients that are expected to take part, `last_schedule` the final
    scheduling vector of the round before, if there is one. Both are public, so the probability is
    the same for those who have something to say and those who have not.
    """
    load = float(max(crowd, 1))
    if last_schedule is not None:
        load = max(load, attempts(nonzero(last_schedule, shape), shape.num_sched_slots))
    return min(1.0, OCCUPANCY * shape.num_slots / load)
