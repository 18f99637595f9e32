"""What commands say, each with its own fixed struct. `commands` has the frame around them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar, TypeAlias

from zipnet.operators import Dismissal, Endorsement
from zipnet.protocol.codec import Reader, sized, text
from zipnet.protocol.roster import EpochKey
from zipnet.protocol.shape import MAX_PAYLOAD
from zipnet.protocol.tree import MAX_TREE_BYTES, AggregatorTree

SIGN_CHECKPOINT = b"zipnet/sig/checkpoint/v2"
RETIRE = b"zipnet/sig/retire/v2"
MAX_BATCH = 256
MAX_DOCUMENT = 1 << 18
MAX_BUNDLE = 20_000
MAX_TREES = 8
MAX_RULE = 64
MAX_COMMAND = MAX_PAYLOAD + (1 << 16)
_SIGNATURE = 64


@dataclass(frozen=True, slots=True)
class Join:
    """A server enters, or enters anew: endorsed by its operator, with a key for the next epoch."""

    KIND: ClassVar[int] = 1
    endorsement: Endorsement
    key: EpochKey
    nonce: bytes

    def encode(self) -> bytes:
        """Endorsement, epoch key, 32 fresh random bytes."""
        return self.endorsement.encode() + self.key.encode() + self.nonce

    @classmethod
    def read(cls, reader: Reader) -> Join:
        """Raises WireFormatError."""
        return cls(Endorsement.read(reader), EpochKey.read(reader), reader.take(32))


@dataclass(frozen=True, slots=True)
class Leave:
    """The author leaves for good; or, with a dismissal, its operator sends another server away."""

    KIND: ClassVar[int] = 2
    dismissal: Dismissal | None = None

    def encode(self) -> bytes:
        """A flag, then the dismissal if there is one."""
        return b"\0" if self.dismissal is None else b"\1" + self.dismissal.encode()

    @classmethod
    def read(cls, reader: Reader) -> Leave:
        """Raises WireFormatError."""
        return cls(Dismissal.read(reader) if reader.flag() else None)


@dataclass(frozen=True, slots=True)
class Suspend:
    """The author steps back until its next Resume."""

    KIND: ClassVar[int] = 3

    def encode(self) -> bytes:
        """Nothing."""
        return b""

    @classmethod
    def read(cls, reader: Reader) -> Suspend:  # noqa: ARG003  # as all bodies
        """Takes nothing."""
        return cls()


@dataclass(frozen=True, slots=True)
class ResumeNode:
    """A node that restarted mixes `nonce` into its pair secrets from the next header on.

    Signed by the node's own peer key under `roster.RESUME`, round 0, over node ‖ nonce ‖ serial.
    """

    KIND: ClassVar[int] = 4
    node: bytes
    nonce: bytes
    serial: int
    signature: bytes

    def statement(self) -> bytes:
        """What the node signs."""
        return self.node + self.nonce + self.serial.to_bytes(8, "big")

    def encode(self) -> bytes:
        """The statement, then its signature."""
        return self.statement() + self.signature

    @classmethod
    def read(cls, reader: Reader) -> ResumeNode:
        """Raises WireFormatError."""
        return cls(reader.take(32), reader.take(32), reader.u64(), reader.take(_SIGNATURE))


@dataclass(frozen=True, slots=True)
class ChangeOperators:
    """The next operators' document (`zipnet.operators`), as its DSSE envelope."""

    KIND: ClassVar[int] = 5
    document: bytes

    def encode(self) -> bytes:
        """u32 length, envelope."""
        return sized(self.document, 4)

    @classmethod
    def read(cls, reader: Reader) -> ChangeOperators:
        """Raises WireFormatError."""
        return cls(reader.sized(4, MAX_DOCUMENT))


@dataclass(frozen=True, slots=True)
class Register:
    """A client's bundle (`attestation.bundle`) and its key for the next epoch."""

    KIND: ClassVar[int] = 6
    bundle: bytes
    key: EpochKey

    def encode(self) -> bytes:
        """u16 length, bundle, epoch key."""
        return sized(self.bundle, 2) + self.key.encode()

    @classmethod
    def read(cls, reader: Reader) -> Register:
        """Raises WireFormatError."""
        return cls(reader.sized(2, MAX_BUNDLE), EpochKey.read(reader))


@dataclass(frozen=True, slots=True)
class Renew:
    """A newer bundle of a registered client, which stays where it is meanwhile."""

    KIND: ClassVar[int] = 23
    bundle: bytes

    def encode(self) -> bytes:
        """u16 length, bundle."""
        return sized(self.bundle, 2)

    @classmethod
    def read(cls, reader: Reader) -> Renew:
        """Raises WireFormatError."""
        return cls(reader.sized(2, MAX_BUNDLE))


@dataclass(frozen=True, slots=True)
class EpochKeys:
    """Members' keys for the next epoch."""

    KIND: ClassVar[int] = 7
    keys: tuple[EpochKey, ...]

    def encode(self) -> bytes:
        """u16 count, keys."""
        return len(self.keys).to_bytes(2, "big") + b"".join(key.encode() for key in self.keys)

    @classmethod
    def read(cls, reader: Reader) -> EpochKeys:
        """Raises WireFormatError."""
        return cls(reader.many(2, MAX_BATCH, EpochKey.read))


@dataclass(frozen=True, slots=True)
class Voucher:
    """One server's word for one registration, until `not_after` (Unix seconds).

    `platform` names the machine that the client runs on (a hash of its PPID), zeros if unknown.
    """

    client: bytes
    registration: bytes
    not_after: int
    platform: bytes

    def encode(self) -> bytes:
        """104 bytes."""
        return self.client + self.registration + self.not_after.to_bytes(8, "big") + self.platform

    @classmethod
    def read(cls, reader: Reader) -> Voucher:
        """Raises WireFormatError."""
        return cls(reader.take(32), reader.take(32), reader.u64(), reader.take(32))


@dataclass(frozen=True, slots=True)
class Vouch:
    """The author has validated these clients' tickets."""

    KIND: ClassVar[int] = 8
    vouchers: tuple[Voucher, ...]

    def encode(self) -> bytes:
        """u16 count, vouchers."""
        head = len(self.vouchers).to_bytes(2, "big")
        return head + b"".join(voucher.encode() for voucher in self.vouchers)

    @classmethod
    def read(cls, reader: Reader) -> Vouch:
        """Raises WireFormatError."""
        return cls(reader.many(2, MAX_BATCH, Voucher.read))


@dataclass(frozen=True, slots=True)
class Refuse:
    """The author does not, or no longer, vouch for this client; `rule` says why."""

    KIND: ClassVar[int] = 9
    client: bytes
    rule: str

    def encode(self) -> bytes:
        """Client id, u8 length, ASCII."""
        return self.client + text(self.rule)

    @classmethod
    def read(cls, reader: Reader) -> Refuse:
        """Raises WireFormatError."""
        return cls(reader.take(32), reader.text(MAX_RULE))


@dataclass(frozen=True, slots=True)
class Retire:
    """A client goes: signed by its peer key under RETIRE, round 0, over client ‖ registration."""

    KIND: ClassVar[int] = 10
    client: bytes
    registration: bytes
    signature: bytes

    def encode(self) -> bytes:
        """128 bytes."""
        return self.client + self.registration + self.signature

    @classmethod
    def read(cls, reader: Reader) -> Retire:
        """Raises WireFormatError."""
        return cls(reader.take(32), reader.take(32), reader.take(_SIGNATURE))


@dataclass(frozen=True, slots=True)
class ProposeHeader:
    """Open the round of the frame. Everything in the header follows from the state."""

    KIND: ClassVar[int] = 11

    def encode(self) -> bytes:
        """Nothing."""
        return b""

    @classmethod
    def read(cls, reader: Reader) -> ProposeHeader:  # noqa: ARG003  # as all bodies
        """Takes nothing."""
        return cls()


@dataclass(frozen=True, slots=True)
class SignHeader:
    """The author's signature over the header of the round (`Header.sign`)."""

    KIND: ClassVar[int] = 12
    header_id: bytes
    signature: bytes

    def encode(self) -> bytes:
        """96 bytes."""
        return self.header_id + self.signature

    @classmethod
    def read(cls, reader: Reader) -> SignHeader:
        """Raises WireFormatError."""
        return cls(reader.take(32), reader.take(_SIGNATURE))


@dataclass(frozen=True, slots=True)
class SubmitAggregate:
    """The root aggregator's sum, encoded and signed by it (`protocol.aggregate`)."""

    KIND: ClassVar[int] = 13
    aggregate: bytes

    def encode(self) -> bytes:
        """u32 length, aggregate."""
        return sized(self.aggregate, 4)

    @classmethod
    def read(cls, reader: Reader) -> SubmitAggregate:
        """Raises WireFormatError."""
        return cls(reader.sized(4, MAX_COMMAND))


@dataclass(frozen=True, slots=True)
class CommitPartial:
    """The author's commitment to its partial (`protocol.unblind`)."""

    KIND: ClassVar[int] = 14
    commitment: bytes

    def encode(self) -> bytes:
        """32 bytes."""
        return self.commitment

    @classmethod
    def read(cls, reader: Reader) -> CommitPartial:
        """Raises WireFormatError."""
        return cls(reader.take(32))


@dataclass(frozen=True, slots=True)
class RevealPartial:
    """The partial that the author committed to."""

    KIND: ClassVar[int] = 15
    partial: bytes

    def encode(self) -> bytes:
        """u32 length, payload."""
        return sized(self.partial, 4)

    @classmethod
    def read(cls, reader: Reader) -> RevealPartial:
        """Raises WireFormatError."""
        return cls(reader.sized(4, MAX_PAYLOAD))


@dataclass(frozen=True, slots=True)
class SignRecord:
    """The author's signature over the record of the round (`protocol.record`)."""

    KIND: ClassVar[int] = 16
    record_hash: bytes
    signature: bytes

    def encode(self) -> bytes:
        """96 bytes."""
        return self.record_hash + self.signature

    @classmethod
    def read(cls, reader: Reader) -> SignRecord:
        """Raises WireFormatError."""
        return cls(reader.take(32), reader.take(_SIGNATURE))


@dataclass(frozen=True, slots=True)
class TimeoutRound:
    """A vote to give the round up, because it stayed in this phase beyond the deadline."""

    KIND: ClassVar[int] = 17
    phase: int

    def encode(self) -> bytes:
        """One byte, as in `state.Phase`."""
        return self.phase.to_bytes(1, "big")

    @classmethod
    def read(cls, reader: Reader) -> TimeoutRound:
        """Raises WireFormatError."""
        return cls(reader.u8())


@dataclass(frozen=True, slots=True)
class RotateAllowList:
    """The next list of accepted measurements (`attestation.allowlist`), as its DSSE envelope."""

    KIND: ClassVar[int] = 18
    envelope: bytes

    def encode(self) -> bytes:
        """u32 length, envelope."""
        return sized(self.envelope, 4)

    @classmethod
    def read(cls, reader: Reader) -> RotateAllowList:
        """Raises WireFormatError."""
        return cls(reader.sized(4, MAX_DOCUMENT))


@dataclass(frozen=True, slots=True)
class Assign:
    """A vote for these aggregator trees, the first in use, the others to fall back to."""

    KIND: ClassVar[int] = 19
    trees: tuple[AggregatorTree, ...]

    def encode(self) -> bytes:
        """u8 count, each tree with its u32 length."""
        head = len(self.trees).to_bytes(1, "big")
        return head + b"".join(sized(tree.encode(), 4) for tree in self.trees)

    @classmethod
    def read(cls, reader: Reader) -> Assign:
        """Raises WireFormatError."""
        raw = reader.many(1, MAX_TREES, lambda r: r.sized(4, MAX_TREE_BYTES))
        return cls(tuple(map(AggregatorTree.decode, raw)))


@dataclass(frozen=True, slots=True)
class Tick:
    """Nothing but the author's clock, in the frame."""

    KIND: ClassVar[int] = 20

    def encode(self) -> bytes:
        """Nothing."""
        return b""

    @classmethod
    def read(cls, reader: Reader) -> Tick:  # noqa: ARG003  # as all bodies
        """Takes nothing."""
        return cls()


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """The author's signature over the state after entry `seq`: digest and chain head."""

    KIND: ClassVar[int] = 21
    seq: int
    head: bytes
    digest: bytes
    signature: bytes

    @staticmethod
    def body(seq: int, head: bytes, digest: bytes) -> bytes:
        """What a server signs, under SIGN_CHECKPOINT and round 0."""
        return seq.to_bytes(8, "big") + head + digest

    def encode(self) -> bytes:
        """136 bytes."""
        return self.body(self.seq, self.head, self.digest) + self.signature

    @classmethod
    def read(cls, reader: Reader) -> Checkpoint:
        """Raises WireFormatError."""
        return cls(reader.u64(), reader.take(32), reader.take(32), reader.take(_SIGNATURE))


@dataclass(frozen=True, slots=True)
class Recover:
    """First entry of a new generation's log: the operators' recovery document (DSSE)."""

    KIND: ClassVar[int] = 22
    document: bytes

    def encode(self) -> bytes:
        """u32 length, envelope."""
        return sized(self.document, 4)

    @classmethod
    def read(cls, reader: Reader) -> Recover:
        """Raises WireFormatError."""
        return cls(reader.sized(4, MAX_DOCUMENT))


Body: TypeAlias = (
    Join | Leave | Suspend | ResumeNode | ChangeOperators | Register | EpochKeys | Vouch | Refuse
    | Retire | ProposeHeader | SignHeader | SubmitAggregate | CommitPartial | RevealPartial
    | SignRecord | TimeoutRound | RotateAllowList | Assign | Tick | Checkpoint | Recover | Renew
)  # fmt: skip
BODIES: dict[int, Callable[[Reader], Body]] = {
    body.KIND: body.read
    for body in (
        Join, Leave, Suspend, ResumeNode, ChangeOperators, Register, EpochKeys, Vouch, Refuse,
        Retire, ProposeHeader, SignHeader, SubmitAggregate, CommitPartial, RevealPartial,
        SignRecord, TimeoutRound, RotateAllowList, Assign, Tick, Checkpoint, Recover, Renew,
    )
}  # fmt: skip
ABOUT_A_ROUND = frozenset(
    kind.KIND
    for kind in (
        ProposeHeader,
        SignHeader,
        SubmitAggregate,
        CommitPartial,
        RevealPartial,
        SignRecord,
        TimeoutRound,
    )
)
