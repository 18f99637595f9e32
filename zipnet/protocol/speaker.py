"""What a client puts into a round. A client with something to say acts as one without.

An aggregator chooses whose envelopes it drops, and everybody sees every broadcast. Whatever a
client does because it has a message can therefore be told by dropping that client and looking at
what is missing. So nothing below reads the queue but the choice of what goes into a slot that the
client owns anyway:

* Whether it takes part is drawn with a constant probability.
* Whether it reserves is drawn with a probability that follows from public values.
* A slot that it owns is always filled: with the next message, or with a dummy.
* The rate-limit tag is a pseudorandom function's output or random; only the client knows which.
* The same random bytes are drawn in the same order, and the same hashes are computed.

Who has used up its budget of messages goes on as cover. What remains visible is what a broadcast is
for: that a slot holds a message and not a dummy. Who drops one client in many rounds can count how
many fewer messages there are.

Nothing is ever sent again by itself. Every `Outcome` says what a caller must know before it does:
a message that was or may have been read ties the round in which it comes again to the first one,
and its author to those who took part in both.
"""

from dataclasses import dataclass, field, replace
from enum import Enum

from blake3 import blake3

from zipnet.errors import GuardRefused, Refused
from zipnet.protocol import schedule, slots
from zipnet.protocol.envelope import RATE_TAG_BYTES
from zipnet.protocol.header import Header
from zipnet.protocol.ratelimit import Budget, rate_tag
from zipnet.protocol.schedule import Draw, Reservation
from zipnet.protocol.shape import Shape


class Outcome(Enum):
    """What became of a message."""

    # The signed record has the client in, and its slot holds what it sent.
    LANDED = "landed"
    # The client is in, but the slot holds something else. Who spoiled the slot knows what was added
    # and can have read the message; sending it again shows them a second round of its author.
    COLLIDED = "collided"
    # The record has the client not in: the envelope came late, was refused or was dropped. No
    # partial of an honest server covers it, so it has not been read. Sending it again is safe.
    LATE = "late"
    # The round ended without a record, after its aggregate was in the log: whoever was to reveal
    # last can have read the message. Treat it as published.
    EXPOSED = "exposed"
    # The round ended before there was an aggregate. It has not been read; as with LATE.
    UNPUBLISHED = "unpublished"


@dataclass(frozen=True, slots=True)
class Message:
    """A datum to send, under the number that `submit` gave it."""

    number: int
    datum: bytes = field(repr=False)


@dataclass(frozen=True, slots=True)
class Sent:
    """A message that was put into a slot of a round: `content` is the whole slot."""

    message: Message
    round: int
    slot: int = field(repr=False)
    content: bytes = field(repr=False)


@dataclass(frozen=True, slots=True)
class Final:
    """A final record as this client sees it; `present` is whether it has the client's bit set."""

    round: int
    payload: bytes = field(repr=False)
    present: bool


@dataclass(frozen=True, slots=True)
class Unfinalized:
    """A round that ended without a record; `aggregated`: an aggregate of it was in the log."""

    round: int
    aggregated: bool


@dataclass(frozen=True, slots=True)
class Speaker:
    """A client between two rounds.

    `round` is that of the last turn, `reservation` what it wrote there. `in_flight` waits for the
    end of its rounds, in order. At most `capacity` messages are queued and in flight together.
    """

    budget: Budget
    capacity: int = 64
    round: int = 0
    reservation: Reservation | None = field(default=None, repr=False)
    queue: tuple[Message, ...] = field(default=(), repr=False)
    in_flight: tuple[Sent, ...] = field(default=(), repr=False)
    submitted: int = field(default=0, repr=False)


@dataclass(frozen=True, slots=True)
class Turn:
    """What goes into the envelope: `content` is a whole payload, not yet padded.

    `slot` is the message slot that the client owns, if any; `spoke` whether a message is in it.
    """

    content: bytes = field(repr=False)
    rate_tag: bytes = field(repr=False)
    slot: int | None = field(repr=False)
    spoke: bool = field(repr=False)


def submit(speaker: Speaker, datum: bytes, shape: Shape) -> tuple[Speaker, int]:
    """Queue a datum; returns its number, counted from 0.

    Raises DatumRejected for a datum of the wrong size, Refused if the queue is full.
    """
    slots.check_datum(shape, datum)
    if len(speaker.queue) + len(speaker.in_flight) >= speaker.capacity:
        raise Refused(
            "too many messages are waiting",
            expected=f"at most {speaker.capacity}",
            got="one more",
            rule="queue.full",
            hint="wait for outcomes, or send more slowly than the round period allows",
        )
    message = Message(speaker.submitted, datum)
    queue = (*speaker.queue, message)
    return replace(speaker, queue=queue, submitted=message.number + 1), message.number


def withdraw(speaker: Speaker, number: int) -> tuple[Speaker, bool]:
    """Take a message out of the queue; False if it is not there, as after it went into a round."""
    left = tuple(message for message in speaker.queue if message.number != number)
    return replace(speaker, queue=left), len(left) != len(speaker.queue)


def turn(
    speaker: Speaker,
    header: Header,
    last: Final | None,
    *,
    crowd: int,
    participation: float,
    rate_key: bytes,
    draw: Draw,
) -> tuple[Speaker, Turn | None]:
    """What the client does in the round of `header`; None if it stays away from this one.

    `last` is the newest record that the client knows, `crowd` the public number of clients that are
    expected to take part, `participation` the probability of taking part. Keep the new state even
    if nothing could be sent: its counter of messages must not come again.

    Raises GuardRefused for a round not after the last turn, or an epoch that is over.
    """
    if header.round <= speaker.round:
        raise GuardRefused(
            "the client has had its turn in this round",
            expected=f"a round after {speaker.round}",
            got=str(header.round),
            rule="turn.round",
            hint="send the same envelope again, not another",
        )
    shape = header.shape
    budget = speaker.budget.at(header.epoch)
    idle = replace(speaker, budget=budget, round=header.round, reservation=None)
    if not schedule.coin(participation, draw):
        return idle, None
    before = _schedule(header, last)
    odds = schedule.reserve_probability(shape, crowd, before)
    reservation = schedule.reserve(shape, draw) if schedule.coin(odds, draw) else None
    slot = _slot(speaker, header, last, before)
    # Both are made whichever is used, so that time and draws are the same.
    noise, cover_tag = draw(shape.datum_bytes), draw(RATE_TAG_BYTES)
    message_tag = rate_tag(rate_key, budget.used, header.epoch)

    after = replace(idle, reservation=reservation)
    spent = budget.next() if slot is not None and speaker.queue else None
    content = b""
    if slot is not None and spent is not None:
        message = speaker.queue[0]
        content = slots.fill(header, slot, message.datum)
        sent = Sent(message, header.round, slot, content)
        in_flight = (*speaker.in_flight, sent)
        after = replace(after, budget=spent, queue=speaker.queue[1:], in_flight=in_flight)
    elif slot is not None:
        content = slots.fill(header, slot, noise, dummy=True)
    vectors = slots.write(shape, slot, content) + schedule.write(reservation, shape)
    spoke = spent is not None
    return after, Turn(vectors, message_tag if spoke else cover_tag, slot, spoke)


def settle(
    speaker: Speaker, end: Final | Unfinalized
) -> tuple[Speaker, tuple[tuple[Message, Outcome], ...]]:
    """What became of the messages that were sent in the round that has ended.

    Whether the client was in is read from the signed record's bitmap only, never from receipts.
    """
    done = tuple(sent for sent in speaker.in_flight if sent.round == end.round)
    left = tuple(sent for sent in speaker.in_flight if sent.round != end.round)
    outcomes = tuple((sent.message, _outcome(sent, end)) for sent in done)
    return replace(speaker, in_flight=left), outcomes


def _outcome(sent: Sent, end: Final | Unfinalized) -> Outcome:
    if isinstance(end, Unfinalized):
        return Outcome.EXPOSED if end.aggregated else Outcome.UNPUBLISHED
    if not end.present:
        return Outcome.LATE
    at = sent.slot * len(sent.content)
    landed = end.payload[at : at + len(sent.content)] == sent.content
    return Outcome.LANDED if landed else Outcome.COLLIDED


def _schedule(header: Header, last: Final | None) -> bytes | None:
    """The scheduling vector that gives the slots of this round, if there is one and it is known.

    The header names it by its hash, or none by zeros, as after a round without a record.
    """
    if last is None or last.round != header.round - 1:
        return None
    vector = last.payload[header.shape.message_bytes :]
    return vector if blake3(vector).digest() == header.schedule_hash else None


def _slot(speaker: Speaker, header: Header, last: Final | None, before: bytes | None) -> int | None:
    # An entry that equals the reservation of a client that was not in is another client's.
    if before is None or last is None or not last.present or speaker.round != last.round:
        return None
    if speaker.reservation is None:
        return None
    return schedule.rank(speaker.reservation, before, header.shape)
