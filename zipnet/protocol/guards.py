"""What a node must never do twice, whoever asks, and whatever it forgets in between.

* A client seals once a round. Two envelopes under one pad XOR to their contents; two under other
  headers still show who was in both.
* A server signs one header a round, and answers one aggregate. Two partials, for P and for P
  without x, XOR to x's pad.

Each function returns the bytes that may leave only after `store.write` has returned, so that no
crash lies between what a node has said and what it knows that it has said. The same question gets
the same answer: a retry is no second one.

A guard that is restored from an old copy knows nothing of what came later. Against that a node that
restarts has `Resume` put a fresh nonce into the log and into its pads: `check_resumed`.
"""

from dataclasses import dataclass, replace
from typing import Protocol

from blake3 import blake3

from zipnet.errors import GuardRefused
from zipnet.protocol.codec import Reader
from zipnet.protocol.header import NO_HASH
from zipnet.protocol.instance import Instance
from zipnet.protocol.roster import Resume
from zipnet.protocol.unblind import commitment

CLIENT_GUARD = b"zipnet/guard/client/v2\0"
SERVER_GUARD = b"zipnet/guard/server/v2\0"
ENVELOPE = "zipnet/guard/envelope/v2"


class Store(Protocol):
    """Where a node's guard is kept: what it lost it must not act on."""

    def write(self, record: bytes) -> None:
        """Replace the record; returns when it is durable, raises if it may not be."""


@dataclass(frozen=True, slots=True)
class ClientGuard:
    """The last envelope of a client: `round` 0 if there was none. 127 bytes.

    `binding` is that of the instance: the guard of another one says nothing.
    """

    binding: bytes
    round: int = 0
    header: bytes = NO_HASH
    envelope: bytes = NO_HASH

    def encode(self) -> bytes:
        """The record, of constant size."""
        number = self.round.to_bytes(8, "big")
        return CLIENT_GUARD + self.binding + number + self.header + self.envelope

    @classmethod
    def decode(cls, raw: bytes) -> "ClientGuard":
        """The guard in `raw`, all of it. Raises WireFormatError."""
        reader = Reader(raw, "client-guard", at_most=len(CLIENT_GUARD) + 104)
        reader.expect("version", CLIENT_GUARD)
        return cls(reader.take(32), reader.u64(), reader.take(32), reader.take(32))


@dataclass(frozen=True, slots=True)
class Answer:
    """What a server answers in a round: hashes of the aggregate and of its participants' bitmap.

    `header` is the header's id, `commitment` that to the partial; 32 bytes each.
    """

    round: int = 0
    header: bytes = NO_HASH
    aggregate: bytes = NO_HASH
    participants: bytes = NO_HASH
    commitment: bytes = NO_HASH

    def encode(self) -> bytes:
        """136 bytes."""
        number = self.round.to_bytes(8, "big")
        return number + self.header + self.aggregate + self.participants + self.commitment

    @classmethod
    def read(cls, reader: Reader) -> "Answer":
        """The next answer. Raises WireFormatError."""
        return cls(reader.u64(), reader.take(32), reader.take(32), reader.take(32), reader.take(32))


@dataclass(frozen=True, slots=True)
class ServerGuard:
    """The last header that a server signed (its round and id), and its last answer. 231 bytes."""

    binding: bytes
    round: int = 0
    header: bytes = NO_HASH
    answer: Answer = Answer()

    def encode(self) -> bytes:
        """The record, of constant size."""
        number = self.round.to_bytes(8, "big")
        return SERVER_GUARD + self.binding + number + self.header + self.answer.encode()

    @classmethod
    def decode(cls, raw: bytes) -> "ServerGuard":
        """The guard in `raw`, all of it. Raises WireFormatError."""
        reader = Reader(raw, "server-guard", at_most=len(SERVER_GUARD) + 208)
        reader.expect("version", SERVER_GUARD)
        return cls(reader.take(32), reader.u64(), reader.take(32), Answer.read(reader))


def check_binding(guard: ClientGuard | ServerGuard, binding: bytes) -> None:
    """Refuse a restored guard of another deployment or generation. Raises GuardRefused."""
    if guard.binding != binding:
        raise GuardRefused(
            "the guard is of another instance",
            expected=binding.hex(),
            got=guard.binding.hex(),
            rule="binding",
            hint="start with new epoch keys and an empty guard",
        )


def seal_once(
    guard: ClientGuard, round_number: int, header_id: bytes, envelope: bytes, store: Store
) -> tuple[ClientGuard, bytes]:
    """The envelope to send, once `store` has the round.

    The last envelope again is a retry and comes back as it is. Where its bytes were lost in a
    crash, the client is absent from the round. Raises GuardRefused for any other envelope of this
    or an earlier round, and what the store raises.
    """
    digest = blake3(envelope, derive_key_context=ENVELOPE).digest()
    after = replace(guard, round=round_number, header=header_id, envelope=digest)
    if after == guard:
        return guard, envelope
    if round_number <= guard.round:
        raise _refused("sealed", "a client seals once a round", guard.round, round_number)
    store.write(after.encode())
    return after, envelope


def sign_header_once(
    guard: ServerGuard, round_number: int, header_id: bytes, store: Store
) -> tuple[ServerGuard, bytes]:
    """The header id that the server may sign, once `store` has it.

    The last one again is a retry. Raises GuardRefused for another one of this or an earlier round,
    and what the store raises.
    """
    after = replace(guard, round=round_number, header=header_id)
    if after == guard:
        return guard, header_id
    if round_number <= guard.round:
        raise _refused("signed", "a server signs one header a round", guard.round, round_number)
    store.write(after.encode())
    return after, header_id


def answer_once(guard: ServerGuard, answer: Answer, store: Store) -> tuple[ServerGuard, bytes]:
    """The commitment to publish, once `store` has the whole answer.

    The last answer again is a retry. Raises GuardRefused for a header that this server has not
    signed last, for another aggregate, bitmap or partial in an answered round, and what the store
    raises.
    """
    if guard.answer == answer and answer.round:
        return guard, answer.commitment
    if answer.round <= guard.answer.round:
        raise _refused(
            "answered", "a server answers one aggregate a round", guard.answer.round, answer.round
        )
    if (answer.round, answer.header) != (guard.round, guard.header):
        raise GuardRefused(
            "the aggregate is under a header that this server has not signed",
            expected=f"round {guard.round}, header {guard.header.hex()[:16]}",
            got=f"round {answer.round}, header {answer.header.hex()[:16]}",
            rule="answer.header",
            hint="the round is over, or was opened without this server",
        )
    after = replace(guard, answer=answer)
    store.write(after.encode())
    return after, answer.commitment


def reveal(guard: ServerGuard, instance: Instance, server_id: bytes, partial: bytes) -> bytes:
    """The partial, if it is the one that the guard's answer commits to. Raises GuardRefused."""
    kept = guard.answer
    made = commitment(instance, kept.round, kept.aggregate, server_id, partial)
    if made != kept.commitment:
        raise GuardRefused(
            "a server reveals only what it has committed to",
            expected=f"commitment {kept.commitment.hex()[:16]} of round {kept.round}",
            got=made.hex()[:16],
            rule="revealed",
            hint="the partial is of another round or aggregate, or its pads were damaged",
        )
    return partial


def check_resumed(own: bytes | None, last: Resume | None, round_number: int) -> None:
    """Refuse to act in a round as a clone, or with what was signed before the own restart.

    `own` is the nonce of this node's Resume (None: it has not restarted in this epoch), `last` the
    last Resume in its name in the log. Raises GuardRefused.
    """
    found = last.nonce if last is not None else None
    if own != found:
        raise GuardRefused(
            "the log has another Resume in this node's name than its own",
            expected="none" if own is None else own.hex()[:16],
            got="none" if found is None else found.hex()[:16],
            rule="fenced",
            hint="wait for the own Resume; if there is another, a clone of this node is running",
        )
    if last is not None and round_number < last.round:
        raise GuardRefused(
            "the round began before this node's restart",
            expected=f"round {last.round} or later",
            got=str(round_number),
            rule="resumed-later",
            hint="the node answers in the next round",
        )


def _refused(rule: str, what: str, last: int, got: int) -> GuardRefused:
    return GuardRefused(
        what,
        expected=f"the same bytes for round {last}, or a later round",
        got=f"other bytes for round {got}",
        rule=rule,
        hint="someone asks twice, or this node's state is older than what it has said",
    )
