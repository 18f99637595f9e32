"""What is published beside records, and what is asked of servers: fixed structs, as in `protocol`.

Nothing in here is believed because of where it was read: headers, cards and notices carry
signatures, blobs their digests, requests whatever the log will check.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from enum import IntEnum

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from attestation.errors import Explained
from zipnet.committee.bodies import MAX_BUNDLE, MAX_COMMAND
from zipnet.committee.state import MAX_OPERATOR_DOCUMENTS
from zipnet.errors import Refused
from zipnet.operators import Endorsement
from zipnet.protocol.codec import Reader, sized, text
from zipnet.protocol.header import MAX_HEADER, SignedHeader
from zipnet.protocol.instance import Instance
from zipnet.protocol.roster import MAX_SERVERS
from zipnet.protocol.tree import MAX_TREE_BYTES, AggregatorTree

NOTICE = b"zipnet/sig/notice/v2"
OUTCOME = b"zipnet/sig/outcome/v2"
MAX_LIVE = 2 * MAX_HEADER + MAX_TREE_BYTES + 128
MAX_CARD = MAX_BUNDLE + 256
MAX_NOTICE = 4096
MAX_ANSWER = 1 << 16
MAX_DETAIL = 255


@dataclass(frozen=True, slots=True)
class LiveRound:
    """A live header and the digests of the blobs that belong to it.

    `sheet` and `accepted` (the list of measurements in force, as its envelope) are 32 bytes,
    `documents` the digests of the operators' documents since the configuration.
    """

    header: SignedHeader
    tree: AggregatorTree
    sheet: bytes
    accepted: bytes
    documents: tuple[bytes, ...]

    def encode(self) -> bytes:
        """u32 length and header, u32 length and tree, the digests."""
        return b"".join(
            (
                sized(self.header.encode(), 4),
                sized(self.tree.encode(), 4),
                self.sheet,
                self.accepted,
                sized(b"".join(self.documents), 2),
            )
        )

    @classmethod
    def decode(cls, raw: bytes) -> LiveRound:
        """All of `raw`, nothing checked. Raises WireFormatError."""
        reader = Reader(raw, "live-round", at_most=MAX_LIVE)
        header = SignedHeader.decode(reader.sized(4, 2 * MAX_HEADER))
        tree = AggregatorTree.decode(reader.sized(4, MAX_TREE_BYTES))
        sheet, accepted = reader.take(32), reader.take(32)
        documents = _digests(reader)
        reader.done()
        return cls(header, tree, sheet, accepted, documents)


@dataclass(frozen=True, slots=True)
class Card:
    """A server in the registry: its operator's endorsement and its newest ticket."""

    endorsement: Endorsement
    bundle: bytes

    def encode(self) -> bytes:
        """Endorsement, u16 length, bundle."""
        return self.endorsement.encode() + sized(self.bundle, 2)

    @classmethod
    def decode(cls, raw: bytes) -> Card:
        """All of `raw`, nothing checked. Raises WireFormatError."""
        reader = Reader(raw, "card", at_most=MAX_CARD)
        result = cls(Endorsement.read(reader), reader.sized(2, MAX_BUNDLE))
        reader.done()
        return result


@dataclass(frozen=True, slots=True)
class Notice:
    """What a server says to those who have seen no header yet.

    `beacon` is the one before the first record of a generation, zeros once it is too old;
    `accepted` is the digest of the blob with the list in force, zeros if there is none; `documents`
    as in `LiveRound`.
    """

    endorsement: Endorsement
    instance: Instance
    next_epoch: int
    beacon: bytes
    accepted: bytes
    documents: tuple[bytes, ...]
    signature: bytes = b""

    def statement(self) -> bytes:
        """What the server signs, under NOTICE and round 0."""
        return b"".join(
            (
                self.endorsement.encode(),
                self.instance.generation,
                self.next_epoch.to_bytes(8, "big"),
                self.beacon,
                self.accepted,
                sized(b"".join(self.documents), 2),
            )
        )

    def signed(self, key: Ed25519PrivateKey) -> Notice:
        """The same with its signature."""
        return replace(self, signature=self.instance.sign(key, NOTICE, 0, self.statement()))

    def verify(self) -> None:
        """Check the server's signature and the operator's. Raises Refused."""
        self.endorsement.verify(self.instance)
        self.instance.verify(self.endorsement.peer, self.signature, NOTICE, 0, self.statement())

    def encode(self) -> bytes:
        """Deployment id, statement, signature."""
        return self.instance.deployment_id + self.statement() + self.signature

    @classmethod
    def decode(cls, raw: bytes) -> Notice:
        """All of `raw`, nothing checked. Raises WireFormatError."""
        reader = Reader(raw, "notice", at_most=MAX_NOTICE)
        deployment_id = reader.take(32)
        endorsement, generation = Endorsement.read(reader), reader.take(32)
        result = cls(
            endorsement,
            Instance(deployment_id, generation),
            reader.u64(),
            reader.take(32),
            reader.take(32),
            _digests(reader),
            reader.take(64),
        )
        reader.done()
        return result


def _digests(reader: Reader) -> tuple[bytes, ...]:
    raw = reader.sized(2, 32 * MAX_OPERATOR_DOCUMENTS)
    if len(raw) % 32:
        raise reader.wrong("documents", "digests of 32 bytes", str(len(raw)))
    return tuple(raw[at : at + 32] for at in range(0, len(raw), 32))


def server_topic(server: bytes) -> str:
    """Where the server with this id answers, on the channel `register`."""
    return f"server.{server.hex()[:16]}"


def server_topics() -> str:
    """The pattern of all `server_topic`."""
    return "server.*"


def submit_topic(peer: bytes, sender: bytes) -> str:
    """Where the aggregator `peer` takes what `sender` submits, on the channel `submit`.

    Both are peer keys. Whoever guards the bus lets each sender use its own topics only.
    """
    return f"node.{peer.hex()[:16]}.{sender.hex()[:16]}"


def submit_pattern(peer: bytes) -> str:
    """All that is submitted to the aggregator with this peer key."""
    return f"node.{peer.hex()[:16]}.*"


def submit_topics(sender: bytes) -> str:
    """All topics of the sender with this peer key."""
    return f"node.*.{sender.hex()[:16]}"


def card_key(instance: Instance, server_id: bytes) -> str:
    """Where a server's card is. One for each generation, since endorsements are for one."""
    return f"{instance.generation.hex()}/{server_id.hex()}"


def receipts_key(round_number: int, leaf: int) -> str:
    """Where the receipts of a round at the leaf of this place in the tree are, in their table."""
    return f"{round_number}/{leaf}"


class Ask(IntEnum):
    """What is asked of a server; the body that follows the byte."""

    REGISTER = 1  # bodies.Register
    EPOCH_KEY = 2  # roster.EpochKey
    RESUME = 3  # bodies.ResumeNode
    RETIRE = 4  # bodies.Retire
    STATUS = 5  # client id (32)
    PROVE = 6  # challenge (32): the answer is a bundle
    AGGREGATE = 7  # the root's aggregate
    ALLOW_LIST = 9  # bodies.RotateAllowList
    OPERATORS = 10  # bodies.ChangeOperators
    DISMISS = 11  # operators.Dismissal
    RENEW = 12  # bodies.Renew
    ADMISSION = 13  # a client's bundle: empty if it is good now
    SEALING = 14  # as `attestation.seal.committee_format`: NONCE_ASK or a request
    OUTCOME = 8  # u64 round: the answer is a byte of `state.Ending` and a signature of it, or empty


@dataclass(frozen=True, slots=True)
class Request:
    """One question."""

    ask: Ask
    body: bytes

    def encode(self) -> bytes:
        """One byte, then the body."""
        return bytes([self.ask]) + self.body

    @classmethod
    def decode(cls, raw: bytes) -> Request:
        """All of `raw`. Raises WireFormatError."""
        reader = Reader(raw, "request", at_most=MAX_COMMAND)
        kind = reader.u8()
        if kind not in set(Ask):
            raise reader.wrong("ask", f"1 to {max(Ask)}", str(kind))
        return cls(Ask(kind), raw[1:])


@dataclass(frozen=True, slots=True)
class Answer:
    """Yes with content, or no with the rule and what it says."""

    rule: str = ""
    detail: str = ""
    content: bytes = b""

    @classmethod
    def refusal(cls, error: Explained) -> Answer:
        """No, for the reason of this error."""
        return cls(_ascii(error.rule or type(error).__name__), _ascii(str(error)))

    def encode(self) -> bytes:
        """Rule and detail, each with a length byte; u32 length, content."""
        return text(self.rule) + text(self.detail) + sized(self.content, 4)

    @classmethod
    def decode(cls, raw: bytes) -> Answer:
        """All of `raw`. Raises WireFormatError."""
        reader = Reader(raw, "answer", at_most=MAX_ANSWER)
        result = cls(reader.text(MAX_DETAIL), reader.text(MAX_DETAIL), reader.sized(4, MAX_ANSWER))
        reader.done()
        return result

    def content_or_raise(self, who: str) -> bytes:
        """The content. Raises Refused, with the reason that `who` gave."""
        if self.rule:
            raise Refused(
                f"{who} refuses: {self.detail}",
                rule=self.rule,
                hint="the rule names what that side checked",
            )
        return self.content


@dataclass(frozen=True, slots=True)
class ClientStatus:
    """How the log sees a client. `refusals` pairs server ids with rules."""

    registered: bool
    member: bool
    key_serial: int  # of its key for the next epoch, 0 for none
    refusals: tuple[tuple[bytes, str], ...]

    def encode(self) -> bytes:
        """Two flags, u64, refusals with a u16 count."""
        entries = b"".join(server + text(rule) for server, rule in self.refusals)
        head = bytes([self.registered, self.member]) + self.key_serial.to_bytes(8, "big")
        return head + len(self.refusals).to_bytes(2, "big") + entries

    @classmethod
    def decode(cls, raw: bytes) -> ClientStatus:
        """All of `raw`. Raises WireFormatError."""
        reader = Reader(raw, "client-status", at_most=MAX_ANSWER)
        registered, member, serial = reader.flag(), reader.flag(), reader.u64()
        refusals = reader.many(2, MAX_SERVERS, lambda r: (r.take(32), r.text(MAX_DETAIL)))
        reader.done()
        return cls(registered, member, serial, refusals)


def _ascii(value: str) -> str:
    """Printable ASCII, short enough for an answer."""
    kept = "".join(c if " " <= c <= "~" else "?" for c in value)
    return kept[:MAX_DETAIL]
