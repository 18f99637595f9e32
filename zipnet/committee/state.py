"""The state of the committee's machine: plain data, changed only by `machine.apply`.

Whoever reads it from outside must not change it. Ids and keys are 32 bytes, times Unix
milliseconds unless a name says otherwise.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from enum import IntEnum

from zipnet.config import Config, ShuffleWindow
from zipnet.errors import CommandRefused
from zipnet.operators import Endorsement, OperatorSet
from zipnet.protocol.header import NO_HASH, Header
from zipnet.protocol.instance import Instance
from zipnet.protocol.record import SignedRecord
from zipnet.protocol.roster import MAX_RESUMES, EpochKey, Resume
from zipnet.protocol.shape import Shape
from zipnet.protocol.sheet import Sheet
from zipnet.protocol.tree import AggregatorTree

# How many entries back a command may be tied; within them each is taken once.
LOG_WINDOW = 2048
REFUSED_RING = 256
OUTCOME_RING = 64
BEACONS = 64
PENDING_LISTS = 4
MAX_OPERATOR_DOCUMENTS = 64
# Rounds from the acceptance of a list to its being in force: time to re-validate live peers.
LIST_DELAY = 4
# Rounds that clients wait at most for the next epoch, and registrations for being vouched for.
WAIT_ROUNDS = 8
PENDING_ROUNDS = 16
RESUMES_PER_ROUND = 4
MAX_LEAD_MS = 30_000
MAX_VOUCH_S = 31 * 86_400
CHECKPOINT_ROUNDS = 16


class Status(IntEnum):
    """Whether a server takes part."""

    ACTIVE = 1
    SUSPENDED = 2


class Phase(IntEnum):
    """What the round in flight waits for."""

    PROPOSED = 1  # every server's signature over the header
    LIVE = 2  # the aggregate
    COMMITTING = 3  # every server's commitment
    REVEALING = 4  # every server's partial
    SIGNING = 5  # every server's signature over the record


class Ending(IntEnum):
    """How a round ended. What was EXPOSED must count as read by whoever revealed last."""

    FINAL = 1
    UNSIGNED = 2
    NO_AGGREGATE = 3
    EXPOSED = 4


@dataclass(frozen=True, slots=True)
class Rules:
    """The configuration, and what follows from it."""

    config: Config
    window: ShuffleWindow
    shape: Shape
    operators: OperatorSet

    @classmethod
    def of(cls, config: Config) -> Rules:
        """The rules of a deployment. Raises ConfigRejected."""
        return cls(config, config.window, config.shape, OperatorSet.genesis(config))


@dataclass(slots=True)
class Server:
    """A server of the committee. `member` is its key in this epoch, `next_key` in the next."""

    peer: bytes
    id: bytes
    endorsement: Endorsement
    clock_ms: int
    status: Status = Status.ACTIVE
    member: EpochKey | None = None
    next_key: EpochKey | None = None
    bytes_used: int = 0
    resumes: int = 0  # since the last header
    resume_serial: int = 0
    last_resume: bytes = NO_HASH
    resumed_round: int = 0  # the first round that it may answer

    @property
    def operator(self) -> bytes:
        """The operator's Ed25519 key."""
        return self.endorsement.operator


@dataclass(frozen=True, slots=True)
class Voucher:
    """A server's word for a client's registration, until `not_after` (Unix seconds)."""

    registration: bytes
    not_after: int
    platform: bytes


@dataclass(slots=True)
class Client:
    """A registered client. `carrier` is the server that brought its registration."""

    id: bytes
    peer: bytes
    dh_pub: bytes
    registration: bytes
    carrier: bytes
    registered_round: int
    member: EpochKey | None = None
    next_key: EpochKey | None = None
    vouchers: dict[bytes, Voucher] = field(default_factory=dict)
    refusals: dict[bytes, str] = field(default_factory=dict)
    waiting_since: int = 0  # 0: not ready for the next epoch
    resumes: int = 0
    resume_serial: int = 0
    last_resume: bytes = NO_HASH


@dataclass(slots=True)
class Epoch:
    """The epoch in progress; `number` 0 before the first."""

    number: int = 0
    base_round: int = 0
    resumes: list[Resume] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class ListInForce:
    """A list of accepted measurements, with the first round in which it holds."""

    number: int
    digest: bytes
    envelope: bytes
    from_round: int


@dataclass(slots=True)
class Round:
    """The round in flight. Dictionaries are by server id."""

    header: Header
    sheet: Sheet
    tree: AggregatorTree
    not_before: int  # when an honest server may sign the header: rounds keep their period
    phase: Phase
    phase_since: int
    header_signatures: dict[bytes, bytes] = field(default_factory=dict)
    aggregate: bytes = b""
    commitments: dict[bytes, bytes] = field(default_factory=dict)
    partials: dict[bytes, bytes] = field(default_factory=dict)
    record: SignedRecord | None = None
    record_signatures: dict[bytes, bytes] = field(default_factory=dict)
    votes: set[bytes] = field(default_factory=set)


@dataclass(frozen=True, slots=True)
class Outcome:
    """How a round ended, and which servers (ids) were missing."""

    round: int
    ending: Ending
    missing: tuple[bytes, ...]


@dataclass(frozen=True, slots=True)
class Refusal:
    """A command that changed nothing: where it stands, who wrote it, which rule it broke."""

    seq: int
    author: bytes
    kind: int
    rule: str


@dataclass(frozen=True, slots=True)
class SignedCheckpoint:
    """A state (its digest, after entry `seq`) and what servers signed of it, by server id."""

    seq: int
    head: bytes
    digest: bytes
    servers: tuple[bytes, ...]
    signatures: tuple[tuple[bytes, bytes], ...]

    @property
    def complete(self) -> bool:
        """Whether all servers of that moment signed."""
        return len(self.signatures) == len(self.servers)


@dataclass(slots=True)
class State:
    """Everything. `ring` holds, by entry, the hash of its bytes and the chain's head after it."""

    rules: Rules
    instance: Instance
    counter: int = 0
    seq: int = 0
    head: bytes = NO_HASH
    ring: deque[tuple[bytes, bytes]] = field(default_factory=lambda: deque(maxlen=LOG_WINDOW))
    seen: set[bytes] = field(default_factory=set)
    recovering: bytes = b""  # digest of the checkpoint that a Recover must name
    time_ms: int = 0
    quota_since: int = 0  # when the counting of bytes began
    operators: OperatorSet = field(init=False)
    operator_documents: list[bytes] = field(default_factory=list)  # from the first, as envelopes
    serials: dict[bytes, int] = field(default_factory=dict)  # by operator: void up to this one
    servers: dict[bytes, Server] = field(default_factory=dict)  # by peer key
    clients: dict[bytes, Client] = field(default_factory=dict)  # by client id
    epoch: Epoch = field(default_factory=Epoch)
    allow_list: ListInForce | None = None
    pending_lists: list[ListInForce] = field(default_factory=list)
    trees: tuple[AggregatorTree, ...] = ()
    tree_at: int = 0
    tree_votes: dict[bytes, bytes] = field(default_factory=dict)
    next_round: int = 1
    opened_ms: int = 0  # machine time of the last header
    current: Round | None = None
    previous_record: bytes = NO_HASH
    schedule_hash: bytes = NO_HASH
    last_record: SignedRecord | None = None
    first_beacon: bytes = NO_HASH
    beacons: deque[bytes] = field(default_factory=lambda: deque(maxlen=BEACONS))
    outcomes: deque[Outcome] = field(default_factory=lambda: deque(maxlen=OUTCOME_RING))
    refused: deque[Refusal] = field(default_factory=lambda: deque(maxlen=REFUSED_RING))
    pending_checkpoint: SignedCheckpoint | None = None
    checkpoint: SignedCheckpoint | None = None

    def __post_init__(self) -> None:
        self.operators = self.rules.operators

    def server(self, server_id: bytes) -> Server | None:
        """The server with this id."""
        return next((s for s in self.servers.values() if s.id == server_id), None)

    def active(self) -> list[Server]:
        """The servers that take part, by id."""
        found = [s for s in self.servers.values() if s.status is Status.ACTIVE]
        return sorted(found, key=lambda server: server.id)

    def next_epoch(self) -> int:
        """The epoch that members' next keys are for."""
        return self.epoch.number + 1


def may_resume(state: State, node: Server | Client) -> bool:
    """Whether there is room for one more Resume of this node before the next header."""
    return node.resumes < RESUMES_PER_ROUND and len(state.epoch.resumes) < MAX_RESUMES


def refused(
    rule: str, message: str, *, expected: str = "", got: str = "", hint: str = ""
) -> CommandRefused:
    """The error of a handler, raised before it changes anything."""
    return CommandRefused(message, expected=expected, got=got, rule=rule, hint=hint)
