"""What applying a command brought about, for the shell around the machine."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum
from typing import TypeAlias

from zipnet.committee.state import Outcome as RoundOutcome
from zipnet.protocol.header import Header, SignedHeader
from zipnet.protocol.record import SignedRecord


@dataclass(frozen=True, slots=True)
class HeaderProposed:
    """A round was opened; every server of the header may sign it."""

    header: Header


@dataclass(frozen=True, slots=True)
class HeaderLive:
    """All servers have signed: clients may seal."""

    header: SignedHeader


@dataclass(frozen=True, slots=True)
class RoundFinal:
    """A record has all signatures."""

    record: SignedRecord


@dataclass(frozen=True, slots=True)
class RoundEnded:
    """A round ended without a record."""

    outcome: RoundOutcome


@dataclass(frozen=True, slots=True)
class ServerSuspended:
    """A server (id) was suspended by this rule."""

    server: bytes
    rule: str


@dataclass(frozen=True, slots=True)
class ServerGone:
    """A server (id) is no member any more."""

    server: bytes


@dataclass(frozen=True, slots=True)
class ListAccepted:
    """A list of measurements will be in force from this round on."""

    number: int
    from_round: int


@dataclass(frozen=True, slots=True)
class CheckpointDue:
    """The state after entry `seq`, for every server to sign and keep."""

    seq: int
    head: bytes
    digest: bytes
    snapshot: bytes = field(repr=False)


@dataclass(frozen=True, slots=True)
class CheckpointSigned:
    """All servers have signed the checkpoint at `seq`."""

    seq: int


@dataclass(frozen=True, slots=True)
class Recovered:
    """A new generation has begun."""

    generation: bytes


Event: TypeAlias = (
    HeaderProposed | HeaderLive | RoundFinal | RoundEnded | ServerSuspended | ServerGone
    | ListAccepted | CheckpointDue | CheckpointSigned | Recovered
)  # fmt: skip


class Verdict(StrEnum):
    """What became of a command."""

    APPLIED = "applied"
    DUPLICATE = "duplicate"  # these very bytes were applied or refused before
    REFUSED = "refused"


@dataclass(frozen=True, slots=True)
class Applied:
    """The result of one entry. `rule` and `detail` say why it was refused."""

    seq: int
    verdict: Verdict
    rule: str = ""
    detail: str = ""
    events: tuple[Event, ...] = ()
