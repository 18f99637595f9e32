"""What somebody on the wire, or an aggregator, writes down of rounds; who had something to say.

The clients are those of the simulator. `LENGTH` rounds are a block. Each client is told by a fair
coin of its own whether it has something to say in a block, so what is written down of a client in a
block is one sample, and all samples of one run are independent of all of its coins, unless a client
acts on its queue. A dropping aggregator leaves out each client once in a block, one a round.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import TypeAlias

import pytest

from tests.simulator.world import World
from zipnet.committee.views import live
from zipnet.protocol import speaker
from zipnet.protocol.header import Header
from zipnet.protocol.record import Record
from zipnet.protocol.schedule import Draw, nonzero
from zipnet.protocol.slots import Kind, read_slots
from zipnet.protocol.speaker import Final, Speaker, Turn

CLIENTS = 8
LENGTH = CLIENTS
ROUNDS = 200
# Fewer slots than clients: they reserve with a probability of 0.55, and most own a slot now and
# then. So many entries that few reservations collide.
SLOTS = 4
ENTRIES = 64


@dataclass(frozen=True, slots=True)
class Work:
    """What a client does between header and envelope, for want of a clock: draws, writes, pads."""

    drawn: tuple[int, ...]
    written: tuple[int, ...]
    pads: int


@dataclass(frozen=True, slots=True)
class Seen:
    """One round. `envelopes` are in the order of arrival; `dropped` is whom the leaf left out."""

    envelopes: Mapping[bytes, bytes]
    work: Mapping[bytes, Work]
    dropped: bytes | None
    record: Record
    taken: int  # entries of the schedule that are not zero
    ranks: int  # slots that the schedule before this one gave away
    empty: tuple[int, ...]  # those of them with nothing in


@dataclass(frozen=True, slots=True)
class Run:
    """All rounds, and whether a client had something to say, by block."""

    rounds: tuple[Seen, ...]
    talks: tuple[Mapping[bytes, bool], ...]


Talk: TypeAlias = Callable[[random.Random], bool]


class Watched(World):
    """A world that keeps a list of the sizes that nodes draw."""

    def __init__(self, seed: int, participation: float) -> None:
        self.drawn: list[int] = []
        super().__init__(
            seed,
            servers=1,
            clients=CLIENTS,
            participation=participation,
            num_slots=SLOTS,
            num_sched_slots=ENTRIES,
            epoch_rounds=40,
            messages_per_epoch=8,  # some have used theirs up before an epoch is over
        )

    def draw(self, size: int) -> bytes:
        self.drawn.append(size)
        return super().draw(size)


def coin(source: random.Random) -> bool:
    return source.random() < 0.5


def watch(
    seed: int,
    *,
    drop: bool = True,
    rounds: int = ROUNDS,
    talk: Talk = coin,
    participation: float = 0.9,
) -> Run:
    """A deployment over so many rounds."""
    world = Watched(seed, participation)
    world.start()
    # What users say, and who is dropped, is not drawn from the source that nodes draw from.
    source = random.Random(-1 - seed)
    ids = [user.core.id for user in world.users]
    talks: list[dict[bytes, bool]] = []
    seen: list[Seen] = []
    order: list[bytes] = []
    for number in range(rounds):
        if number % LENGTH == 0:
            order = source.sample(ids, LENGTH)
            talks.append({one: talk(source) for one in ids})
            fill_queues(world, talks[-1], source)
        dropped = order[number % LENGTH] if drop else None
        seen.append(one_round(world, dropped, seen[-1] if seen else None))
    return Run(tuple(seen), tuple(talks))


def fill_queues(world: World, talks: Mapping[bytes, bool], source: random.Random) -> None:
    for user in world.users:
        # What an earlier block left over is forgotten.
        user.core.speaker = replace(user.core.speaker, queue=())
        for _ in range(LENGTH):
            datum = source.randbytes(world.config.wire_size)
            if talks[user.core.id]:
                user.core.submit(datum)


def one_round(world: Watched, dropped: bytes | None, before: Seen | None) -> Seen:
    world.open()
    signed, current = live(world.state), world.state.current
    assert signed is not None
    assert current is not None
    envelopes, work = {}, {}
    for user in world.users:
        drawn, written = len(world.drawn), len(user.disk.records)
        keyed = len(world.client_ledger.uses)
        operators = world.state.operators
        sealed = user.core.seal(signed, current.sheet, current.tree, operators)
        sizes = tuple(map(len, user.disk.records[written:]))
        done = len(world.client_ledger.uses) - keyed
        work[user.core.id] = Work(tuple(world.drawn[drawn:]), sizes, done)
        if sealed is not None:
            envelopes[user.core.id] = sealed.envelope
    world.envelopes = dict(envelopes)
    world.drop = {dropped} if dropped is not None else set()
    applied = world.submit(world.fold())
    assert not applied.rule, applied
    world.settle()
    record = world.records[-1].record
    shape = record.header.shape
    ranks = 0
    if before is not None and record.header.schedule_hash == before.record.schedule_hash():
        ranks = min(before.taken, shape.num_slots)
    slots = read_slots(record.payload, record.header)
    # Whether a slot holds a message or a dummy is what a broadcast tells everybody: not used.
    empty = tuple(at for at in range(ranks) if slots[at].kind is Kind.EMPTY)
    taken = nonzero(record.payload[shape.message_bytes :], shape)
    return Seen(envelopes, work, dropped, record, taken, ranks, empty)


# Leaks to plant: what a client does, given what it should do and whether it has something to say.

Act: TypeAlias = Callable[[float, int], tuple[Speaker, Turn | None]]
Leak: TypeAlias = Callable[[Act, bool, float, int, Draw], tuple[Speaker, Turn | None]]


def plant(patch: pytest.MonkeyPatch, leak: Leak) -> None:
    """Make all clients act by `leak`. `Act` takes the participation and the crowd."""
    real = speaker.turn

    def leaking(
        state: Speaker,
        header: Header,
        last: Final | None,
        *,
        crowd: int,
        participation: float,
        rate_key: bytes,
        draw: Draw,
    ) -> tuple[Speaker, Turn | None]:
        def act(odds: float, how_many: int) -> tuple[Speaker, Turn | None]:
            return real(
                state,
                header,
                last,
                crowd=how_many,
                participation=odds,
                rate_key=rate_key,
                draw=draw,
            )

        return leak(act, bool(state.queue), participation, crowd, draw)

    patch.setattr(speaker, "turn", leaking)


def marks_a_byte(
    act: Act, talks: bool, participation: float, crowd: int, draw: Draw
) -> tuple[Speaker, Turn | None]:
    """The last byte of the rate tag is even if a message is in the envelope."""
    state, done = act(participation, crowd)
    if done is not None and done.spoke:
        tag = done.rate_tag[:-1] + bytes([done.rate_tag[-1] & 0xFE])
        done = replace(done, rate_tag=tag)
    return state, done


def cover_skips(
    act: Act, talks: bool, participation: float, crowd: int, draw: Draw
) -> tuple[Speaker, Turn | None]:
    """Who has nothing to say stays away from one round in four."""
    return act(participation if talks else 0.75 * participation, crowd)


def talkers_reserve(
    act: Act, talks: bool, participation: float, crowd: int, draw: Draw
) -> tuple[Speaker, Turn | None]:
    """Who has something to say always reserves, others never."""
    return act(participation, 1 if talks else 1 << 60)


def cover_leaves_empty(
    act: Act, talks: bool, participation: float, crowd: int, draw: Draw
) -> tuple[Speaker, Turn | None]:
    """Who has nothing to say puts no dummy into a slot that it owns."""
    state, done = act(participation, crowd)
    if done is not None and done.slot is not None and not done.spoke:
        empty = bytes(len(done.content) - 2 * ENTRIES)
        done = replace(done, content=empty + done.content[-2 * ENTRIES :])
    return state, done
