"""What an aggregator hands on: the XOR of envelopes, and whose envelopes they were.

    u16 wire ‖ deployment id ‖ generation ‖ u64 round ‖ header id ‖ aggregator's peer key ‖
    u32 clients ‖ bitmap ‖ tags hash ‖ payload ‖ signature (64)

`clients` is the size of the roster that the bitmap is over. The signature is that of the aggregator
over `digest` = BLAKE3.derive_key(AGGREGATE) of all that comes before it.
"""

from dataclasses import dataclass, field

from blake3 import blake3
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from zipnet.errors import Refused
from zipnet.protocol.codec import Reader
from zipnet.protocol.header import WIRE_VERSION, Header
from zipnet.protocol.instance import Instance
from zipnet.protocol.roster import MAX_CLIENTS, bitmap_bytes, check_bitmap
from zipnet.protocol.shape import Shape

AGGREGATE = "zipnet/aggregate/v2"
SIGN_AGGREGATE = b"zipnet/sig/aggregate/v2"
# All but bitmap and payload.
FIXED_BYTES = 2 + 32 + 32 + 8 + 32 + 32 + 4 + 32 + 64


@dataclass(frozen=True, slots=True)
class Aggregate:
    """The sum of the envelopes whose bits are set. `digest` follows from all but the signature.

    `aggregator` is an Ed25519 key. Raises WireFormatError for a bitmap that is none of `clients`.
    """

    instance: Instance
    round: int
    header_id: bytes
    aggregator: bytes
    clients: int
    participants: bytes
    tags_hash: bytes
    payload: bytes = field(repr=False)
    signature: bytes = field(repr=False)
    digest: bytes = field(init=False, repr=False)

    def __post_init__(self) -> None:
        check_bitmap(self.participants, self.clients)
        digest = blake3(self._body(), derive_key_context=AGGREGATE).digest()
        object.__setattr__(self, "digest", digest)

    @classmethod
    def sign(
        cls,
        header: Header,
        key: Ed25519PrivateKey,
        clients: int,
        participants: bytes,
        tags_hash: bytes,
        payload: bytes,
    ) -> "Aggregate":
        """The aggregate of the holder of `key`, signed. Raises WireFormatError."""
        at = header.instance, header.round, header.id, key.public_key().public_bytes_raw()
        bare = cls(*at, clients, participants, tags_hash, payload, b"")
        signature = header.instance.sign(key, SIGN_AGGREGATE, header.round, bare.digest)
        return cls(*at, clients, participants, tags_hash, payload, signature)

    def verify(self) -> None:
        """Check the signature of the aggregator it names; is it the right one? Raises Refused."""
        self.instance.verify(
            self.aggregator, self.signature, SIGN_AGGREGATE, self.round, self.digest
        )

    def check_round(self, header: Header, clients: int) -> None:
        """Check that it is for this header and a roster of so many clients. Raises Refused."""
        for rule, expected, got in (
            ("instance", header.instance.binding.hex(), self.instance.binding.hex()),
            ("round", str(header.round), str(self.round)),
            ("header", header.id.hex(), self.header_id.hex()),
            ("roster", f"{clients} clients", f"{self.clients} clients"),
            ("size", f"{header.shape.payload_bytes} bytes", f"{len(self.payload)} bytes"),
        ):
            if got != expected:
                raise Refused(
                    "the aggregate is not for this round",
                    expected=expected,
                    got=got,
                    rule=f"aggregate.{rule}",
                    hint="the aggregator works under another header, or is late",
                )

    def count(self) -> int:
        """How many clients are in it."""
        return int.from_bytes(self.participants, "big").bit_count()

    def _body(self) -> bytes:
        return b"".join(
            (
                WIRE_VERSION.to_bytes(2, "big"),
                self.instance.deployment_id,
                self.instance.generation,
                self.round.to_bytes(8, "big"),
                self.header_id,
                self.aggregator,
                self.clients.to_bytes(4, "big"),
                self.participants,
                self.tags_hash,
                self.payload,
            )
        )

    def encode(self) -> bytes:
        """As at the top of this module; of one size for one roster and shape."""
        return self._body() + self.signature

    @classmethod
    def decode(cls, raw: bytes, shape: Shape) -> "Aggregate":
        """The aggregate in `raw`, all of it, no signature checked. Raises WireFormatError."""
        most = FIXED_BYTES + bitmap_bytes(MAX_CLIENTS) + shape.payload_bytes
        reader = Reader(raw, "aggregate", at_most=most)
        reader.expect("wire-version", WIRE_VERSION.to_bytes(2, "big"))
        instance = Instance(reader.take(32), reader.take(32))
        round_number, header_id, aggregator = reader.u64(), reader.take(32), reader.take(32)
        clients = reader.u32()
        if clients > MAX_CLIENTS:
            raise reader.wrong("clients", f"at most {MAX_CLIENTS}", str(clients))
        participants = reader.take(bitmap_bytes(clients))
        tags_hash, payload = reader.take(32), reader.take(shape.payload_bytes)
        signature = reader.take(64)
        reader.done()
        return cls(
            instance,
            round_number,
            header_id,
            aggregator,
            clients,
            participants,
            tags_hash,
            payload,
            signature,
        )
