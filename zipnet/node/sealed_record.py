r"""What a client has in its seal: who it is, and its pairs of the epoch that runs.

    "zipnet sealed state 1\n" (22) ‖ role (u8) ‖ binding of the instance (32) ‖ Ed25519 seed (32) ‖
    X25519 secret (32) ‖ key of the journal (32) ‖ u16 length ‖ pairs

    pairs: nothing, or epoch (u64) ‖ own public epoch key (32) ‖ tags (u32) ‖ u16 count ‖
           count x 109 bytes (`zipnet.protocol.pads.Pair`), by the other node's id

`tags` is how many of the epoch's rate-limit tags may have been used, from the first on. The pairs
are read on their own: a client whose pairs are damaged still knows who it is.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from itertools import pairwise

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

from attestation.bundle import Role
from zipnet.errors import WireFormatError
from zipnet.protocol.codec import Reader, sized
from zipnet.protocol.instance import Instance
from zipnet.protocol.keyring import KeyRing
from zipnet.protocol.pads import PAIR_BYTES, Pair
from zipnet.protocol.roster import MAX_SERVERS
from zipnet.roles.identity import Draw, Identity

VERSION = b"zipnet sealed state 1\n"
MAX_PAIRS = 8 + 32 + 4 + 2 + MAX_SERVERS * PAIR_BYTES
MAX_RECORD = len(VERSION) + 1 + 4 * 32 + 2 + MAX_PAIRS


@dataclass(frozen=True, slots=True)
class SealedPairs:
    """The pairs of one epoch as they stood when they were sealed, and the key they are made with.

    `tags` counts the rate-limit tags that whoever had them before may have used.
    Raises WireFormatError for an epoch 0, no pair, or pairs out of order.
    """

    epoch: int
    key: bytes
    tags: int
    pairs: tuple[bytes, ...] = field(repr=False)

    def __post_init__(self) -> None:
        others = [Pair.restore(raw).server for raw in self.pairs]
        if not self.epoch or not others or any(a >= b for a, b in pairwise(others)):
            raise WireFormatError(
                "these are no pairs of an epoch",
                expected="an epoch from 1 on, and a pair for each server, ids ascending",
                got=f"epoch {self.epoch}, {len(others)} pairs",
                rule="sealed-pairs.order",
            )

    @classmethod
    def of(cls, ring: KeyRing, tags: int) -> SealedPairs:
        """Those of a ring that has opened an epoch, as they stand."""
        key = ring.key(ring.epoch)
        assert key is not None
        return cls(ring.epoch, key, tags, tuple(ring.export()))

    def ring(self, client: bytes) -> KeyRing:
        """The ring of the client with this id. Raises WireFormatError if they are another's."""
        pairs = [Pair.restore(raw) for raw in self.pairs]
        if any(pair.client != client for pair in pairs):
            raise WireFormatError(
                "the pairs are another client's",
                expected=client.hex(),
                got=pairs[0].client.hex(),
                rule="sealed-pairs.client",
            )
        made = KeyRing(client)
        made.restore(self.epoch, self.key, pairs)
        return made

    def encode(self) -> bytes:
        """As at the top of this module."""
        head = self.epoch.to_bytes(8, "big") + self.key + self.tags.to_bytes(4, "big")
        return head + len(self.pairs).to_bytes(2, "big") + b"".join(self.pairs)

    @classmethod
    def decode(cls, raw: bytes) -> SealedPairs:
        """All of `raw`. Raises WireFormatError."""
        reader = Reader(raw, "sealed-pairs", at_most=MAX_PAIRS)
        epoch, key, tags = reader.u64(), reader.take(32), reader.u32()
        pairs = reader.many(2, MAX_SERVERS, lambda r: r.take(PAIR_BYTES))
        reader.done()
        return cls(epoch, key, tags, pairs)


@dataclass(frozen=True, slots=True)
class SealedRecord:
    """A node's sealed state. Secrets are the keys' 32 raw bytes; `pairs` is not parsed yet."""

    role: Role
    binding: bytes
    signing: bytes = field(repr=False)
    dh: bytes = field(repr=False)
    journal: bytes = field(repr=False)
    pairs: bytes = field(default=b"", repr=False)

    @classmethod
    def fresh(cls, role: Role, instance: Instance, draw: Draw) -> SealedRecord:
        """That of a node which nobody has met."""
        return cls(role, instance.binding, draw(32), draw(32), draw(32))

    @property
    def identity(self) -> Identity:
        """The keys that name this node."""
        return Identity(
            Ed25519PrivateKey.from_private_bytes(self.signing),
            X25519PrivateKey.from_private_bytes(self.dh),
        )

    def without_pairs(self, instance: Instance) -> SealedRecord:
        """The same node, which knows nothing of an epoch of this instance."""
        return replace(self, binding=instance.binding, pairs=b"")

    def encode(self) -> bytes:
        """As at the top of this module."""
        return b"".join(
            (
                VERSION,
                bytes([self.role]),
                self.binding,
                self.signing,
                self.dh,
                self.journal,
                sized(self.pairs, 2),
            )
        )

    @classmethod
    def decode(cls, raw: bytes) -> SealedRecord:
        """All of `raw`, but for what is in `pairs`. Raises WireFormatError."""
        reader = Reader(raw, "sealed-state", at_most=MAX_RECORD)
        reader.expect("version", VERSION)
        role = reader.u8()
        if role not in set(Role):
            raise reader.wrong("role", f"1 to {max(Role)}", str(role))
        result = cls(
            Role(role),
            *(reader.take(32), reader.take(32), reader.take(32), reader.take(32)),
            reader.sized(2, MAX_PAIRS),
        )
        reader.done()
        return result
