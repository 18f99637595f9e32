"""What programs read: messages and whole broadcasts, and what a leaf says of envelopes."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Generic, TypeVar

from zipnet.datum import ShuffleDatum, decode_exact
from zipnet.errors import DatumRejected
from zipnet.protocol import slots
from zipnet.protocol.receipts import Status
from zipnet.protocol.record import Record
from zipnet.roles.reader import RecordReader
from zipnet.roles.receipt_reader import ReceiptReader

D = TypeVar("D", bound=ShuffleDatum)
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class LeafReceipt:
    """What an aggregator says of this client's envelope in a round; `rule` only if refused."""

    round: int
    status: Status
    rule: str = ""


@dataclass(frozen=True, slots=True)
class Message(Generic[T]):
    """A datum in a final record. Two in one round have no order but that of their slots."""

    round: int
    slot: int
    datum: T


@dataclass(frozen=True, slots=True)
class Broadcast(Generic[T]):
    """All of a final record. `garbled` are slots that collided, or hold no datum of this type.

    `time_ms` is the committee's clock when the round opened, `clients` how many envelopes are in.
    """

    round: int
    time_ms: int
    clients: int
    messages: tuple[Message[T], ...]
    garbled: tuple[int, ...]


class Reader(Generic[D]):
    """The messages of a deployment in order, as they become final. Made by `Zipnet[Note].read`.

    Dummies are left out. Slots without a message of this type are in `garbled` of `broadcasts`.
    Iterating raises Protocol where a record is missing or can't be verified.
    """

    def __init__(self, records: RecordReader, kind: type[D]) -> None:
        self._records = records
        self._kind = kind
        self._messages = self._each()

    def __aiter__(self) -> AsyncIterator[Message[D]]:
        return self._messages

    async def broadcasts(self) -> AsyncIterator[Broadcast[D]]:
        """The same, a whole record at a time."""
        async for record in self._records:
            yield _broadcast(record, self._kind)

    async def _each(self) -> AsyncIterator[Message[D]]:
        async for broadcast in self.broadcasts():
            for message in broadcast.messages:
                yield message


def _broadcast(record: Record, kind: type[D]) -> Broadcast[D]:
    header = record.header
    messages, garbled = [], []
    for number, slot in enumerate(slots.read_slots(record.payload, header)):
        if slot.kind is slots.Kind.GARBLED:
            garbled.append(number)
        elif slot.kind is slots.Kind.MESSAGE:
            try:
                datum = decode_exact(kind, slot.datum)
            except DatumRejected:
                garbled.append(number)  # any client can write any bytes into its slot
                continue
            messages.append(Message(header.round, number, datum))
    clients = int.from_bytes(record.participants).bit_count()
    return Broadcast(header.round, header.time_ms, clients, tuple(messages), tuple(garbled))


class Receipts:
    """What the node's aggregator says of each of its envelopes, from now on.

    It explains; what became of a message says the `Receipt` that `send` returns.
    """

    def __init__(self, reader: ReceiptReader) -> None:
        self._reader = reader

    def __aiter__(self) -> Receipts:
        return self

    async def __anext__(self) -> LeafReceipt:
        number, found = await anext(self._reader)
        return LeafReceipt(number, found.status, found.rule)
