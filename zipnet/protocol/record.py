"""What a finished round leaves: the broadcast, with everything that shows how it came about.

    header ‖ u32 clients ‖ bitmap ‖ aggregate's digest (32) ‖ a commitment (32) for each server, in
    the header's order ‖ payload

Its hash, BLAKE3.derive_key(RECORD) of that, is what the next header names as the previous record
and what every server signs. A record is final with the signatures of all servers of its header.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field

from blake3 import blake3
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from zipnet.errors import Refused, WireFormatError
from zipnet.protocol.codec import Reader
from zipnet.protocol.header import MAX_HEADER, Header
from zipnet.protocol.roster import MAX_CLIENTS, MAX_SERVERS, bitmap_bytes, check_bitmap
from zipnet.protocol.shape import MAX_PAYLOAD

RECORD = "zipnet/record/v2"
SIGN_RECORD = b"zipnet/sig/record/v2"
MAX_RECORD = MAX_HEADER + 4 + bitmap_bytes(MAX_CLIENTS) + 32 + 32 * MAX_SERVERS + MAX_PAYLOAD
MAX_SIGNED_RECORD = MAX_RECORD + 64 * MAX_SERVERS


@dataclass(frozen=True, slots=True)
class Record:
    """The outcome of one round. `hash` follows from the rest.

    `aggregate` is the digest of the aggregate that was unblinded, `commitments` those to the
    partials, one for each of the header's servers. Raises WireFormatError for fields that do not
    fit the header or each other.
    """

    header: Header
    clients: int
    participants: bytes
    aggregate: bytes
    commitments: tuple[bytes, ...]
    payload: bytes = field(repr=False)
    hash: bytes = field(init=False, repr=False)

    def __post_init__(self) -> None:
        check_bitmap(self.participants, self.clients)
        for rule, expected, got in (
            ("commitments", len(self.header.servers), len(self.commitments)),
            ("payload", self.header.shape.payload_bytes, len(self.payload)),
        ):
            if got != expected:
                raise WireFormatError(
                    "the record does not fit its header",
                    expected=str(expected),
                    got=str(got),
                    rule=f"record.{rule}",
                )
        digest = blake3(self.encode(), derive_key_context=RECORD).digest()
        object.__setattr__(self, "hash", digest)

    @property
    def messages(self) -> bytes:
        """The message vector."""
        return self.payload[: self.header.shape.message_bytes]

    @property
    def schedule(self) -> bytes:
        """The scheduling vector."""
        return self.payload[self.header.shape.message_bytes :]

    def schedule_hash(self) -> bytes:
        """BLAKE3 of the scheduling vector: what the next header names if it follows this one."""
        return blake3(self.schedule).digest()

    def follows(self, previous_hash: bytes) -> None:
        """Check that this record comes right after that one. Raises Refused."""
        if self.header.previous_record != previous_hash:
            raise Refused(
                "the record does not follow the one before",
                expected=previous_hash.hex(),
                got=self.header.previous_record.hex(),
                rule="record.previous",
                hint="fetch the records between, or ask other servers for theirs",
            )

    def sign(self, key: Ed25519PrivateKey) -> bytes:
        """One server's signature over the hash."""
        return self.header.instance.sign(key, SIGN_RECORD, self.header.round, self.hash)

    def encode(self) -> bytes:
        """As at the top of this module."""
        return b"".join(
            (
                self.header.encode(),
                self.clients.to_bytes(4, "big"),
                self.participants,
                self.aggregate,
                *self.commitments,
                self.payload,
            )
        )

    @classmethod
    def read(cls, reader: Reader) -> "Record":
        """The next record. Raises WireFormatError."""
        header = Header.read(reader)
        clients = reader.u32()
        if clients > MAX_CLIENTS:
            raise reader.wrong("clients", f"at most {MAX_CLIENTS}", str(clients))
        participants, aggregate = reader.take(bitmap_bytes(clients)), reader.take(32)
        commitments = tuple(reader.take(32) for _ in header.servers)
        payload = reader.take(header.shape.payload_bytes)
        return cls(header, clients, participants, aggregate, commitments, payload)

    @classmethod
    def decode(cls, raw: bytes) -> "Record":
        """The record in `raw`, all of it. Raises WireFormatError."""
        reader = Reader(raw, "record", at_most=MAX_RECORD)
        result = cls.read(reader)
        reader.done()
        return result


@dataclass(frozen=True, slots=True)
class SignedRecord:
    """A record with one signature for each of its header's servers, in their order."""

    record: Record
    signatures: tuple[bytes, ...]

    def encode(self) -> bytes:
        """The record, then 64 bytes for each server."""
        return self.record.encode() + b"".join(self.signatures)

    @classmethod
    def decode(cls, raw: bytes) -> "SignedRecord":
        """The record in `raw`, all of it, no signature checked. Raises WireFormatError."""
        reader = Reader(raw, "signed-record", at_most=MAX_SIGNED_RECORD)
        record = Record.read(reader)
        signatures = tuple(reader.take(64) for _ in record.header.servers)
        reader.done()
        return cls(record, signatures)

    def verify(self, peers: Mapping[bytes, bytes]) -> None:
        """Check that every server signed; `peers` maps server ids to Ed25519 keys. Raises Refused.

        Whether these are the *right* servers is for the caller to know.
        """
        header = self.record.header
        if len(self.signatures) != len(header.servers):
            raise Refused(
                "the record is not signed by all servers of its header",
                expected=f"{len(header.servers)} signatures",
                got=str(len(self.signatures)),
                rule="record.signatures",
            )
        for server, signature in zip(header.servers, self.signatures, strict=True):
            if server not in peers:
                raise Refused(
                    "the record names a server that is not known",
                    expected=", ".join(sorted(known.hex()[:16] for known in peers)),
                    got=server.hex()[:16],
                    rule="record.unknown-server",
                )
            header.instance.verify(
                peers[server], signature, SIGN_RECORD, header.round, self.record.hash
            )
