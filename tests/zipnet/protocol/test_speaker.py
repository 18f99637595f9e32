"""What a client puts into rounds, and that nobody can tell from it who has something to say.

`play` runs rounds with a hostile aggregator: it drops the client's envelope, spoils what it likes
and ends rounds early. A client with messages and one without live through the same rounds with the
same random bytes; what they do is then the same, but for what lies in the slots that they own.
"""

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from enum import Flag, auto

import pytest
from blake3 import blake3
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.zipnet.protocol.support import INSTANCE, SHAPE, h, header, refused
from zipnet.errors import DatumRejected, GuardRefused, Refused
from zipnet.protocol import schedule, slots
from zipnet.protocol.header import NO_HASH, Header
from zipnet.protocol.ratelimit import Budget, rate_key, rate_tag
from zipnet.protocol.schedule import Reservation
from zipnet.protocol.slots import Kind, read_slots
from zipnet.protocol.speaker import (
    Final,
    Message,
    Outcome,
    Speaker,
    Turn,
    Unfinalized,
    settle,
    submit,
    turn,
    withdraw,
)

KEY = rate_key(h("identity"), INSTANCE.binding)
FRESH = Speaker(Budget(3, 10))


class Hostile(Flag):
    """What happens to a round."""

    NOTHING = 0
    # The client's envelope is left out.
    DROPPED = auto()
    # Noise is added to the scheduling vector, or to the message vector.
    JAMMED = auto()
    SPOILT = auto()
    # No record, with or without an aggregate in the log.
    ABORTED = auto()
    EXPOSED = auto()
    # The client does not get the record before its next turn.
    WITHHELD = auto()
    # The next round is of the next epoch.
    EPOCH = auto()


@dataclass
class Traced:
    """Random bytes, and how many were asked for each time."""

    source: random.Random
    sizes: list[int] = field(default_factory=list)

    def __call__(self, size: int) -> bytes:
        self.sizes.append(size)
        return self.source.randbytes(size)


@dataclass
class Life:
    """All that left a client, and all that was broadcast with it around."""

    speaker: Speaker
    draw: Traced
    turns: list[Turn | None] = field(default_factory=list)
    headers: list[Header] = field(default_factory=list)
    broadcasts: list[bytes | None] = field(default_factory=list)
    outcomes: list[tuple[Message, Outcome]] = field(default_factory=list)


def xor(a: bytes, b: bytes) -> bytes:
    return bytes(x ^ y for x, y in zip(a, b, strict=True))


def header_after(last: bytes | None, number: int, epoch: int) -> Header:
    """The header that follows a final payload, or a round without one."""
    named = NO_HASH if last is None else blake3(last[SHAPE.message_bytes :]).digest()
    return header(round_number=number, epoch=epoch, schedule_hash=named, base_round=1)


def play(
    speaker: Speaker,
    rounds: Sequence[Hostile],
    seed: int,
    participation: float,
    leak: Callable[[Speaker, Turn | None], Turn | None] = lambda _, taken: taken,
) -> Life:
    """The life of one client, among three others that always reserve and fill.

    `leak` changes what the client does, seeing whether it has something to say.
    """
    life = Life(speaker, Traced(random.Random(seed)))
    town = random.Random(seed + 1)
    others = [Speaker(Budget(3, 1)) for _ in range(3)]
    record: bytes | None = None
    known: Final | None = None
    other_known: list[Final | None] = [None] * 3
    epoch = 3
    for number, hostile in enumerate(rounds, 1):
        head = header_after(record, number, epoch)
        life.headers.append(head)
        life.speaker, taken = turn(
            life.speaker, head, known,
            crowd=4, participation=participation, rate_key=KEY, draw=life.draw,
        )  # fmt: skip
        taken = leak(life.speaker, taken)
        life.turns.append(taken)
        present = taken is not None and Hostile.DROPPED not in hostile
        total = taken.content if taken is not None and present else bytes(SHAPE.payload_bytes)
        for i, other in enumerate(others):
            others[i], its = turn(
                other, head, other_known[i],
                crowd=4, participation=1.0, rate_key=KEY, draw=town.randbytes,
            )  # fmt: skip
            assert its is not None
            total = xor(total, its.content)
        total = spoil(total, hostile, town)
        end: Final | Unfinalized = Final(number, total, present)
        record = total
        if hostile & (Hostile.ABORTED | Hostile.EXPOSED):
            end, record = Unfinalized(number, Hostile.EXPOSED in hostile), None
        life.broadcasts.append(record)
        life.speaker, outcomes = settle(life.speaker, end)
        life.outcomes += outcomes
        known = end if isinstance(end, Final) and Hostile.WITHHELD not in hostile else None
        other_known = [replace(end, present=True) if isinstance(end, Final) else None] * 3
        epoch += Hostile.EPOCH in hostile
    return life


def spoil(total: bytes, hostile: Hostile, town: random.Random) -> bytes:
    noise = bytearray(SHAPE.payload_bytes)
    if Hostile.JAMMED in hostile:
        noise[SHAPE.message_bytes + 2 * town.randrange(SHAPE.num_sched_slots)] = 7
    if Hostile.SPOILT in hostile:
        noise[SHAPE.slot_bytes * town.randrange(SHAPE.num_slots)] = 7
    return xor(total, bytes(noise))


def talker(count: int = 30, limit: int = 10) -> Speaker:
    speaker = Speaker(Budget(3, limit))
    for number in range(count):
        speaker, given_number = submit(speaker, f"talk{number:04}".encode(), SHAPE)
        assert given_number == number
    return speaker


def without(content: bytes, slot: int | None) -> bytes:
    """A payload with one slot blanked."""
    if slot is None:
        return content
    at = slot * SHAPE.slot_bytes
    return content[:at] + bytes(SHAPE.slot_bytes) + content[at + SHAPE.slot_bytes :]


lives = st.lists(st.sampled_from(list(Hostile)) | st.just(Hostile.NOTHING), min_size=1, max_size=14)
mixed = st.lists(st.lists(st.sampled_from(list(Hostile)), max_size=3), min_size=1, max_size=14).map(
    lambda rounds: [Hostile.NOTHING if not some else some[0] | some[-1] for some in rounds]
)


@settings(deadline=None, max_examples=150)
@given(lives | mixed, st.integers(0, 1 << 32), st.sampled_from([0.3, 0.8, 1.0]))
def test_a_talker_does_what_a_cover_client_does(
    rounds: list[Hostile], seed: int, participation: float
) -> None:
    talk, cover = (
        play(speaker, rounds, seed, participation) for speaker in (talker(limit=2), FRESH)
    )
    check_alike(talk, cover)


def check_alike(talk: Life, cover: Life) -> None:
    assert talk.draw.sizes == cover.draw.sizes
    for mine, quiet in zip(talk.turns, cover.turns, strict=True):
        assert (mine is None) == (quiet is None)
        if mine is None or quiet is None:
            continue
        assert mine.slot == quiet.slot
        assert len(mine.content) == len(quiet.content) == SHAPE.payload_bytes
        # The same scheduling vector, and the same message vector but for the one slot.
        assert without(mine.content, mine.slot) == without(quiet.content, quiet.slot)
        assert len(mine.rate_tag) == len(quiet.rate_tag) == 16
        assert not quiet.spoke
        if not mine.spoke:
            assert mine.content == quiet.content
            assert mine.rate_tag == quiet.rate_tag
    for mine, seen, also in zip(talk.turns, talk.broadcasts, cover.broadcasts, strict=True):
        assert (seen is None) == (also is None)
        if seen is not None and also is not None:
            slot = mine.slot if mine is not None else None
            assert without(seen, slot) == without(also, slot)
    assert talk.headers == cover.headers


def test_that_comparison_is_about_something() -> None:
    rounds = [Hostile.NOTHING, Hostile.DROPPED, Hostile.NOTHING, Hostile.NOTHING] * 10
    talk, cover = (play(speaker, rounds, 5, 1.0) for speaker in (talker(), FRESH))
    check_alike(talk, cover)
    spoken = [mine for mine in talk.turns if mine is not None and mine.spoke]
    assert len(spoken) == 10
    assert {outcome for _, outcome in talk.outcomes} >= {Outcome.LANDED, Outcome.LATE}
    # Every owned slot is filled, with a message or with a dummy.
    for life, kind in ((talk, Kind.MESSAGE), (cover, Kind.DUMMY)):
        for taken, head in zip(life.turns, life.headers, strict=True):
            assert taken is not None
            if taken.slot is not None:
                found = read_slots(taken.content, head)[taken.slot].kind
                assert found is (kind if taken.spoke else Kind.DUMMY)


def reserves_at_need(speaker: Speaker, taken: Turn | None) -> Turn | None:
    if taken is None or speaker.queue:
        return taken
    content = taken.content[: SHAPE.message_bytes].ljust(SHAPE.payload_bytes, b"\0")
    return replace(taken, content=content)


def leaves_slots_empty(_speaker: Speaker, taken: Turn | None) -> Turn | None:
    if taken is None or taken.spoke or taken.slot is None:
        return taken
    return replace(taken, content=without(taken.content, taken.slot), slot=None)


def takes_part_at_need(speaker: Speaker, taken: Turn | None) -> Turn | None:
    return taken if speaker.queue else None


@pytest.mark.parametrize("leak", [reserves_at_need, leaves_slots_empty, takes_part_at_need])
def test_that_comparison_finds_leaks(
    leak: Callable[[Speaker, Turn | None], Turn | None],
) -> None:
    rounds = [Hostile.NOTHING] * 12
    talk, cover = (play(speaker, rounds, 5, 1.0, leak) for speaker in (talker(), FRESH))
    with pytest.raises(AssertionError):
        check_alike(talk, cover)


def test_rate_tags_are_always_there_and_never_twice() -> None:
    rounds = ([Hostile.NOTHING] * 11 + [Hostile.EPOCH]) * 6
    talk = play(talker(limit=2), rounds, 1, 1.0)
    tags = [taken.rate_tag for taken in talk.turns if taken is not None]
    assert len(set(tags)) == len(tags) == len(rounds)
    expected = {rate_tag(KEY, counter, epoch) for counter in range(2) for epoch in range(3, 9)}
    spoken = {taken.rate_tag for taken in talk.turns if taken is not None and taken.spoke}
    assert spoken == expected
    # Out of budget, it went on as cover; what it could not say is still queued.
    assert len(talk.speaker.queue) == 30 - 12
    assert all(taken is not None and taken.content != b"" for taken in talk.turns)


def test_a_budget_that_is_spent_covers_until_the_next_epoch() -> None:
    speaker = replace(talker(), budget=Budget.spent(3, 10))
    life = play(speaker, [Hostile.NOTHING] * 12, 1, 1.0)
    assert not any(taken is not None and taken.spoke for taken in life.turns)
    assert any(taken is not None and taken.slot is not None for taken in life.turns)


def test_participation_is_sampled() -> None:
    life = play(talker(64), [Hostile.NOTHING] * 400, 2, 0.25)
    there = sum(taken is not None for taken in life.turns)
    assert 70 < there < 130
    # It reserves in one round and may stay away in the next: that slot is empty.
    assert life.speaker.queue[:1] != ()


def test_everyone_reserves_with_the_public_probability() -> None:
    shape, rounds, crowd = SHAPE, 2000, 22
    odds = schedule.reserve_probability(shape, crowd, None)
    assert odds == pytest.approx(0.2)
    for speaker in (FRESH, talker()):
        draw = random.Random(3).randbytes
        reserving = 0
        for number in range(1, rounds + 1):
            head = header_after(None, number, 3)
            speaker, taken = turn(  # noqa: PLW2901
                speaker, head, None, crowd=crowd, participation=1.0, rate_key=KEY, draw=draw
            )
            assert taken is not None
            reserving += any(taken.content)
        assert abs(reserving - odds * rounds) < 80


# One client that owns message slot 0 of round 2, by its reservation in round 1.
MINE = Reservation(5, 0x1234)
OWNER = replace(talker(2), round=1, reservation=MINE)
PAYLOAD = bytes(SHAPE.message_bytes) + schedule.write(MINE, SHAPE)
LAST = Final(1, PAYLOAD, present=True)


def second(
    speaker: Speaker = OWNER, last: Final | None = LAST, head: Header | None = None
) -> tuple[Speaker, Turn]:
    head = head or header_after(PAYLOAD, 2, 3)
    draw = random.Random(0).randbytes
    after, taken = turn(speaker, head, last, crowd=1, participation=1.0, rate_key=KEY, draw=draw)
    assert taken is not None
    return after, taken


def test_a_reservation_that_stands_gives_the_slot() -> None:
    after, taken = second()
    head = header_after(PAYLOAD, 2, 3)
    assert (taken.slot, taken.spoke) == (0, True)
    assert read_slots(taken.content, head)[0].datum == b"talk0000"
    assert taken.content[: SHAPE.slot_bytes] == slots.fill(head, 0, b"talk0000")
    assert [message.number for message in after.queue] == [1]
    assert [sent.message.number for sent in after.in_flight] == [0]
    assert after.budget.used == 1
    assert after.reservation not in (None, MINE)


OTHER_PAYLOAD = bytes(SHAPE.message_bytes) + schedule.write(Reservation(5, 0x1235), SHAPE)
TWO = bytes(SHAPE.message_bytes) + xor(
    schedule.write(MINE, SHAPE), schedule.write(Reservation(1, 9), SHAPE)
)


@pytest.mark.parametrize(
    ("speaker", "last", "named", "number"),
    [
        # The round before has no record, or the client does not know it.
        (OWNER, LAST, None, 2),
        (OWNER, None, PAYLOAD, 2),
        # Its entry was changed.
        (OWNER, Final(1, OTHER_PAYLOAD, present=True), OTHER_PAYLOAD, 2),
        # It was not in: the entry is that of another client with the same luck.
        (OWNER, replace(LAST, present=False), PAYLOAD, 2),
        # The header names another schedule.
        (OWNER, LAST, TWO, 2),
        # A round lies between.
        (OWNER, LAST, PAYLOAD, 3),
        (replace(OWNER, round=0), LAST, PAYLOAD, 2),
        # It did not reserve.
        (replace(OWNER, reservation=None), LAST, PAYLOAD, 2),
    ],
)
def test_reservations_that_give_no_slot(
    speaker: Speaker, last: Final | None, named: bytes | None, number: int
) -> None:
    after, taken = second(speaker, last, header_after(named, number, 3))
    assert (taken.slot, taken.spoke) == (None, False)
    assert not any(taken.content[: SHAPE.message_bytes])
    assert after.queue == speaker.queue
    assert after.in_flight == ()


def test_regression_rounds_of_one_client_share_no_reservation() -> None:
    made = set()
    draw = random.Random(9).randbytes
    for number in range(1, 101):
        head = header_after(None, number, 3)
        after, _ = turn(FRESH, head, None, crowd=1, participation=1.0, rate_key=KEY, draw=draw)
        assert after.reservation is not None
        made.add((after.reservation.slot, after.reservation.footprint))
    assert len(made) == 100


def test_outcomes() -> None:
    after, taken = second()
    landed = taken.content
    garbled = xor(landed, b"\1".ljust(SHAPE.payload_bytes, b"\0"))
    for end, expected in (
        (Final(2, landed, present=True), Outcome.LANDED),
        (Final(2, garbled, present=True), Outcome.COLLIDED),
        (Final(2, bytes(SHAPE.payload_bytes), present=True), Outcome.COLLIDED),
        # The bitmap decides, even over the slot itself.
        (Final(2, landed, present=False), Outcome.LATE),
        (Final(2, bytes(SHAPE.payload_bytes), present=False), Outcome.LATE),
        (Unfinalized(2, aggregated=True), Outcome.EXPOSED),
        (Unfinalized(2, aggregated=False), Outcome.UNPUBLISHED),
    ):
        done, outcomes = settle(after, end)
        assert [(message.datum, outcome) for message, outcome in outcomes] == [
            (b"talk0000", expected)
        ]
        # Whatever it was, the message is not queued again.
        assert [message.number for message in done.queue] == [1]
        assert done.in_flight == ()
        assert settle(done, end) == (done, ())


def test_ends_of_other_rounds_settle_nothing() -> None:
    after, taken = second()
    for number in (1, 3):
        for end in (Final(number, taken.content, present=True), Unfinalized(number, True)):
            assert settle(after, end) == (after, ())


@settings(deadline=None, max_examples=60)
@given(lives | mixed, st.integers(0, 1 << 32))
def test_every_message_has_one_outcome(rounds: list[Hostile], seed: int) -> None:
    life = play(talker(), rounds, seed, 1.0)
    settled = [message.number for message, _ in life.outcomes]
    queued = [message.number for message in life.speaker.queue]
    assert settled + queued == list(range(30))
    said = [head.round for head, t in zip(life.headers, life.turns, strict=True) if t and t.spoke]
    assert len(said) == len(settled)
    for number, (_, outcome) in zip(said, life.outcomes, strict=True):
        hostile = rounds[number - 1]
        if Hostile.EXPOSED in hostile:
            assert outcome is Outcome.EXPOSED
        elif Hostile.ABORTED in hostile:
            assert outcome is Outcome.UNPUBLISHED
        elif Hostile.DROPPED in hostile:
            assert outcome is Outcome.LATE
        elif outcome is not Outcome.LANDED:
            assert outcome is Outcome.COLLIDED


def test_one_turn_a_round() -> None:
    after, _ = second()
    for number in (1, 2):
        with refused(GuardRefused, "turn.round"):
            second(after, None, header_after(None, number, 3))
    with refused(GuardRefused, "budget.epoch"):
        second(after, None, header_after(None, 3, 2))


def test_staying_away_is_a_turn() -> None:
    head = header_after(PAYLOAD, 2, 3)
    after, taken = turn(
        OWNER, head, LAST,
        crowd=1, participation=0.5, rate_key=KEY, draw=lambda size: b"\xff" * size,
    )  # fmt: skip
    assert taken is None
    assert (after.round, after.reservation, after.queue) == (2, None, OWNER.queue)


def test_queues_are_bounded() -> None:
    speaker = replace(OWNER, capacity=2)
    with refused(Refused, "queue.full"):
        submit(speaker, b"12345678", SHAPE)
    # What is in flight counts until it is settled.
    after, taken = second(speaker)
    with refused(Refused, "queue.full"):
        submit(after, b"12345678", SHAPE)
    done, _ = settle(after, Final(2, taken.content, present=True))
    assert submit(done, b"12345678", SHAPE)[1] == 2
    with refused(DatumRejected, "datum.size"):
        submit(done, b"1234567", SHAPE)


def test_a_message_can_be_taken_back_before_it_is_in_a_round() -> None:
    datum = bytes(SHAPE.datum_bytes)
    speaker, first = submit(FRESH, datum, SHAPE)
    speaker, second = submit(speaker, datum, SHAPE)
    left, found = withdraw(speaker, first)
    assert found
    assert [message.number for message in left.queue] == [second]
    assert withdraw(left, first) == (left, False)
    assert submit(left, datum, SHAPE)[1] == second + 1


def test_messages_and_slots_stay_out_of_logs() -> None:
    after, taken = second()
    sent = after.in_flight[0]
    for shown in (repr(after), repr(taken), repr(sent), repr(LAST), repr(after.queue)):
        assert "talk" not in shown
        assert "slot" not in shown
        assert "spoke=True" not in shown
    assert repr(second(replace(OWNER, queue=()))[1]) == repr(taken)
