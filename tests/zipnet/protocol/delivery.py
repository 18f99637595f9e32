"""Simulated rounds: how many of N clients that all have something to say get it through.

`footprints` runs the functions of `zipnet.protocol.schedule`; `hashed` is the peer, wire version 1,
where a hash of the round names each client's slot.
"""

import random
from collections import Counter

from zipnet.protocol.schedule import (
    Reservation,
    coin,
    rank,
    reserve,
    reserve_probability,
    write,
)
from zipnet.protocol.shape import Shape


def shape_of(slots: int, entries_per_slot: int = 4) -> Shape:
    return Shape(num_slots=slots, slot_bytes=17, num_sched_slots=entries_per_slot * slots)


def footprints(
    clients: int, shape: Shape, rounds: int, seed: int, *, back_off: bool = False
) -> float:
    """Mean deliveries a round. With back-off each round follows from the one before."""
    draw = random.Random(seed).randbytes
    last: bytes | None = None
    delivered = 0
    for _ in range(rounds):
        odds = reserve_probability(shape, clients, last) if back_off else 1.0
        made = [reserve(shape, draw) for _ in range(clients) if coin(odds, draw)]
        last = combined(made, shape)
        ranks = Counter(rank(reservation, last, shape) for reservation in made)
        delivered += sum(place is not None and owners == 1 for place, owners in ranks.items())
    return delivered / rounds


def combined(made: list[Reservation], shape: Shape) -> bytes:
    """The final scheduling vector: all clients' vectors, XORed."""
    total = 0
    for reservation in made:
        total ^= int.from_bytes(write(reservation, shape), "big")
    return total.to_bytes(shape.schedule_bytes, "big")


def hashed(clients: int, slots: int, rounds: int, seed: int) -> float:
    """Mean deliveries a round if each client's slot is random and shared slots are lost."""
    source = random.Random(seed)
    delivered = 0
    for _ in range(rounds):
        owners = Counter(source.randrange(slots) for _ in range(clients))
        delivered += sum(count == 1 for count in owners.values())
    return delivered / rounds
