"""What a client submits: its padded payload, a MAC for its leaf, a signature for blame.

    u16 wire ‖ deployment id ‖ generation ‖ u64 round ‖ header id ‖ client id ‖ rate tag (16) ‖
    payload ‖ MAC (32) ‖ signature (64)

    digest = BLAKE3.derive_key(ENVELOPE)(all before the MAC)
    MAC = keyed BLAKE3 of all before it, under a key that only client and leaf know
    signature = Ed25519 by the client's peer key over the digest, under SIGN_ENVELOPE

A leaf checks the MAC of every envelope and no signature: that is for `audit`, after a disrupted
round. The MAC does not cover the signature, so a wrong one convicts nobody: whoever carried the
envelope may have changed it.
"""

import hmac
from dataclasses import dataclass, field

from blake3 import blake3
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

from zipnet.errors import Refused, WireFormatError
from zipnet.protocol.codec import Reader
from zipnet.protocol.header import WIRE_VERSION, Header
from zipnet.protocol.instance import Instance
from zipnet.protocol.pads import exchange
from zipnet.protocol.shape import Shape

ENVELOPE = "zipnet/envelope/v2"
SIGN_ENVELOPE = b"zipnet/sig/envelope/v2"
LEAF_MAC = "zipnet/leaf/mac/v2"
LEAF_RECEIPT = "zipnet/leaf/receipt/v2"
RATE_TAG_BYTES = 16
# Where things are: all envelopes of a round begin with the same 106 bytes.
ROUND_AT = 2 + 32 + 32
HEADER_AT = ROUND_AT + 8
CLIENT_AT = HEADER_AT + 32
RATE_TAG_AT = CLIENT_AT + 32
PAYLOAD_AT = RATE_TAG_AT + RATE_TAG_BYTES
MAC_BYTES = 32
TRAILER_BYTES = MAC_BYTES + 64


@dataclass(frozen=True, slots=True)
class LeafKeys:
    """What a client shares with its leaf, 32 bytes each: for MACs, and for tags of receipts."""

    mac: bytes = field(repr=False)
    receipt: bytes = field(repr=False)


def leaf_keys(
    own: X25519PrivateKey, other: bytes, instance: Instance, client_id: bytes, leaf_dh_pub: bytes
) -> LeafKeys:
    """The keys of a client and a leaf, from the identity secret of one and the key of the other.

    Each is BLAKE3.derive_key(LEAF_MAC or LEAF_RECEIPT)(X25519 ‖ deployment id ‖ generation ‖
    client id ‖ leaf's key). Raises Refused if the exchange yields zero.
    """
    secret = exchange(own, other)
    material = b"".join(
        (secret, instance.deployment_id, instance.generation, client_id, leaf_dh_pub)
    )
    return LeafKeys(
        blake3(material, derive_key_context=LEAF_MAC).digest(),
        blake3(material, derive_key_context=LEAF_RECEIPT).digest(),
    )


def envelope_bytes(shape: Shape) -> int:
    """The size of every envelope of a round."""
    return PAYLOAD_AT + shape.payload_bytes + TRAILER_BYTES


def common_prefix(header: Header) -> bytes:
    """The bytes with which every envelope under this header begins (CLIENT_AT of them)."""
    return _prefix(header.instance, header.round, header.id)


def _prefix(instance: Instance, round_number: int, header_id: bytes) -> bytes:
    return b"".join(
        (
            WIRE_VERSION.to_bytes(2, "big"),
            instance.deployment_id,
            instance.generation,
            round_number.to_bytes(8, "big"),
            header_id,
        )
    )


def authenticate(raw: bytes, mac_key: bytes) -> bytes:
    """The MAC (32 bytes) of an encoded envelope, if it is right. Raises Refused.

    `raw` must be of the size of an envelope; nothing else is checked. Time is linear in the size.
    """
    mac = blake3(memoryview(raw)[:-TRAILER_BYTES], key=mac_key).digest()
    if not hmac.compare_digest(mac, raw[-TRAILER_BYTES : MAC_BYTES - TRAILER_BYTES]):
        raise Refused(
            "the MAC of the envelope is wrong",
            expected="one under the key that this client and this leaf share",
            rule="envelope.mac",
            hint="the client knows another key of the leaf, or the envelope was altered",
        )
    return mac


@dataclass(frozen=True, slots=True)
class Envelope:
    """One client's part in one round. `digest` follows from all but MAC and signature."""

    instance: Instance
    round: int
    header_id: bytes
    client: bytes
    rate_tag: bytes = field(repr=False)
    payload: bytes = field(repr=False)
    mac: bytes = field(repr=False)
    signature: bytes = field(repr=False)
    digest: bytes = field(init=False, repr=False)

    def __post_init__(self) -> None:
        digest = blake3(self._body(), derive_key_context=ENVELOPE).digest()
        object.__setattr__(self, "digest", digest)

    def _body(self) -> bytes:
        prefix = _prefix(self.instance, self.round, self.header_id)
        return b"".join((prefix, self.client, self.rate_tag, self.payload))

    def encode(self) -> bytes:
        """As at the top of this module."""
        return b"".join((self._body(), self.mac, self.signature))

    @classmethod
    def decode(cls, raw: bytes, shape: Shape) -> "Envelope":
        """The envelope in `raw`, all of it; neither MAC nor signature checked.

        Raises WireFormatError.
        """
        check_frame(raw, shape)
        reader = Reader(raw, "envelope", at_most=len(raw))
        reader.take(2)
        return cls(
            instance=Instance(reader.take(32), reader.take(32)),
            round=reader.u64(),
            header_id=reader.take(32),
            client=reader.take(32),
            rate_tag=reader.take(RATE_TAG_BYTES),
            payload=reader.take(shape.payload_bytes),
            mac=reader.take(MAC_BYTES),
            signature=reader.take(64),
        )


def check_frame(raw: bytes, shape: Shape) -> None:
    """Refuse what has another size or wire version. Raises WireFormatError."""
    if len(raw) != envelope_bytes(shape):
        raise WireFormatError(
            "the envelope has the wrong size",
            expected=f"{envelope_bytes(shape)} bytes",
            got=str(len(raw)),
            rule="envelope.size",
            hint="the sender works with another shape",
        )
    reader = Reader(raw, "envelope", at_most=len(raw))
    reader.expect("wire-version", WIRE_VERSION.to_bytes(2, "big"))


def seal_envelope(
    header: Header,
    client: bytes,
    rate_tag: bytes,
    payload: bytes | bytearray,
    mac_key: bytes,
    peer_key: Ed25519PrivateKey,
) -> bytes:
    """The encoded envelope, with its MAC and signature, of a payload that is already padded."""
    body = b"".join((common_prefix(header), client, rate_tag, payload))
    digest = blake3(body, derive_key_context=ENVELOPE).digest()
    mac = blake3(body, key=mac_key).digest()
    signature = header.instance.sign(peer_key, SIGN_ENVELOPE, header.round, digest)
    return b"".join((body, mac, signature))


def audit(envelope: Envelope, peer: bytes) -> None:
    """Check the signature by the client's peer key (32 bytes). Raises Refused.

    One that verifies proves to anybody that the holder of the key made this envelope.
    """
    envelope.instance.verify(
        peer, envelope.signature, SIGN_ENVELOPE, envelope.round, envelope.digest
    )
