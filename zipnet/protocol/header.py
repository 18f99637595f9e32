"""The header of a round: what it binds, its hash (for the pads) and its id (for signatures).

    header_hash = BLAKE3.derive_key("zipnet/header/v2")(
        u16 wire ‖ u64 round ‖ u64 epoch ‖ u32 num_slots ‖ u32 slot_bytes ‖ u32 num_sched_slots ‖
        u32 sched_bytes ‖ u32 tag_len ‖ binding ‖ u16 n_servers ‖ sorted server ids ‖ roster_hash ‖
        schedule_hash)
    header_id = BLAKE3.derive_key("zipnet/header-id/v2")(
        header_hash ‖ previous record's hash ‖ u64 log_seq ‖ log head ‖ generation ‖
        u64 list number ‖ list hash ‖ tree hash ‖ u64 base round ‖ resumes hash ‖ u64 time in ms)

`binding` is that of `protocol.instance`; times are Unix milliseconds.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise

from blake3 import blake3
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from zipnet.errors import Refused, WireFormatError
from zipnet.protocol.codec import Reader
from zipnet.protocol.instance import Instance
from zipnet.protocol.roster import MAX_SERVERS
from zipnet.protocol.shape import Shape

WIRE_VERSION = 2
HEADER = "zipnet/header/v2"
HEADER_ID = "zipnet/header-id/v2"
SIGN_HEADER = b"zipnet/sig/header/v2"
NO_HASH = bytes(32)
MAX_HEADER = 8192


def header_hash(
    binding: bytes,
    round_number: int,
    epoch: int,
    shape: Shape,
    servers: Sequence[bytes],
    roster_hash: bytes,
    schedule_hash: bytes,
) -> bytes:
    """The hash that the pads are bound to (32 bytes); `servers` are ids, sorted."""
    fields = (
        WIRE_VERSION.to_bytes(2, "big"),
        round_number.to_bytes(8, "big"),
        epoch.to_bytes(8, "big"),
        shape.encode(),
        binding,
        len(servers).to_bytes(2, "big"),
        *servers,
        roster_hash,
        schedule_hash,
    )
    return blake3(b"".join(fields), derive_key_context=HEADER).digest()


@dataclass(frozen=True, slots=True)
class Header:
    """One proposed round. `hash` and `id` follow from the rest. Raises WireFormatError."""

    instance: Instance
    round: int
    epoch: int
    shape: Shape
    servers: tuple[bytes, ...]
    roster_hash: bytes
    schedule_hash: bytes
    previous_record: bytes
    log_seq: int
    log_head: bytes
    list_number: int
    list_hash: bytes
    tree_hash: bytes
    base_round: int
    resumes_hash: bytes
    time_ms: int
    hash: bytes = field(init=False, repr=False)
    id: bytes = field(init=False, repr=False)

    def __post_init__(self) -> None:
        if not 1 <= len(self.servers) <= MAX_SERVERS or any(
            a >= b for a, b in pairwise(self.servers)
        ):
            raise WireFormatError(
                "the header's servers are wrong",
                expected=f"1 to {MAX_SERVERS} ids, ascending, each once",
                got=str(len(self.servers)),
                rule="header.servers",
            )
        if not 1 <= self.base_round <= self.round:
            raise WireFormatError(
                "the header's rounds are wrong",
                expected=f"a base round from 1 to {self.round}",
                got=str(self.base_round),
                rule="header.base-round",
            )
        inner = header_hash(
            self.instance.binding,
            self.round,
            self.epoch,
            self.shape,
            self.servers,
            self.roster_hash,
            self.schedule_hash,
        )
        object.__setattr__(self, "hash", inner)
        more = inner + self._beside_hash()
        object.__setattr__(self, "id", blake3(more, derive_key_context=HEADER_ID).digest())

    def _beside_hash(self) -> bytes:
        return b"".join(
            (
                self.previous_record,
                self.log_seq.to_bytes(8, "big"),
                self.log_head,
                self.instance.generation,
                self.list_number.to_bytes(8, "big"),
                self.list_hash,
                self.tree_hash,
                self.base_round.to_bytes(8, "big"),
                self.resumes_hash,
                self.time_ms.to_bytes(8, "big"),
            )
        )

    def encode(self) -> bytes:
        """All fields: those of the hash, then those of the id; deployment and generation whole."""
        return b"".join(
            (
                WIRE_VERSION.to_bytes(2, "big"),
                self.instance.deployment_id,
                self.round.to_bytes(8, "big"),
                self.epoch.to_bytes(8, "big"),
                self.shape.encode(),
                len(self.servers).to_bytes(2, "big"),
                *self.servers,
                self.roster_hash,
                self.schedule_hash,
                self._beside_hash(),
            )
        )

    @classmethod
    def read(cls, reader: Reader) -> "Header":
        """The next header. Raises WireFormatError."""
        reader.expect("wire-version", WIRE_VERSION.to_bytes(2, "big"))
        deployment_id = reader.take(32)
        round_number, epoch = reader.u64(), reader.u64()
        shape = Shape.read(reader)
        servers = reader.many(2, MAX_SERVERS, lambda r: r.take(32))
        roster_hash, schedule_hash, previous = reader.take(32), reader.take(32), reader.take(32)
        log_seq, log_head, generation = reader.u64(), reader.take(32), reader.take(32)
        return cls(
            instance=Instance(deployment_id, generation),
            round=round_number,
            epoch=epoch,
            shape=shape,
            servers=servers,
            roster_hash=roster_hash,
            schedule_hash=schedule_hash,
            previous_record=previous,
            log_seq=log_seq,
            log_head=log_head,
            list_number=reader.u64(),
            list_hash=reader.take(32),
            tree_hash=reader.take(32),
            base_round=reader.u64(),
            resumes_hash=reader.take(32),
            time_ms=reader.u64(),
        )

    @classmethod
    def decode(cls, raw: bytes) -> "Header":
        """The header in `raw`, all of it. Raises WireFormatError."""
        reader = Reader(raw, "header", at_most=MAX_HEADER)
        result = cls.read(reader)
        reader.done()
        return result

    def sign(self, key: Ed25519PrivateKey) -> bytes:
        """One server's signature over the id."""
        return self.instance.sign(key, SIGN_HEADER, self.round, self.id)


@dataclass(frozen=True, slots=True)
class SignedHeader:
    """A header with one signature for each of its servers, in their order."""

    header: Header
    signatures: tuple[bytes, ...]

    def encode(self) -> bytes:
        """The header, then 64 bytes for each server."""
        return self.header.encode() + b"".join(self.signatures)

    @classmethod
    def decode(cls, raw: bytes) -> "SignedHeader":
        """The header in `raw`, all of it, no signature checked. Raises WireFormatError."""
        reader = Reader(raw, "signed-header", at_most=MAX_HEADER)
        header = Header.read(reader)
        signatures = tuple(reader.take(64) for _ in header.servers)
        reader.done()
        return cls(header, signatures)

    def verify(self, peers: Mapping[bytes, bytes]) -> None:
        """Check that every server signed; `peers` maps server ids to Ed25519 keys. Raises Refused.

        Whether these are the *right* servers is for the caller to know.
        """
        if len(self.signatures) != len(self.header.servers):
            raise Refused(
                "the header is not signed by all of its servers",
                expected=f"{len(self.header.servers)} signatures",
                got=str(len(self.signatures)),
                rule="header.signatures",
            )
        for server, signature in zip(self.header.servers, self.signatures, strict=True):
            if server not in peers:
                raise Refused(
                    "the header names a server that is not known",
                    expected=", ".join(sorted(known.hex()[:16] for known in peers)),
                    got=server.hex()[:16],
                    rule="header.unknown-server",
                )
            header = self.header
            header.instance.verify(peers[server], signature, SIGN_HEADER, header.round, header.id)
