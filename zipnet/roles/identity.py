"""The keys that name a node."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

# Random bytes, as many as asked for; `secrets.token_bytes` outside of tests.
Draw = Callable[[int], bytes]


@dataclass(frozen=True, slots=True)
class Identity:
    """A peer key (Ed25519) that signs, and an identity key (X25519) that ids derive from."""

    signing: Ed25519PrivateKey = field(repr=False)
    dh: X25519PrivateKey = field(repr=False)

    @classmethod
    def fresh(cls, draw: Draw) -> Identity:
        """New keys."""
        return cls(
            Ed25519PrivateKey.from_private_bytes(draw(32)),
            X25519PrivateKey.from_private_bytes(draw(32)),
        )

    @property
    def peer(self) -> bytes:
        """The public peer key, 32 bytes."""
        return self.signing.public_key().public_bytes_raw()

    @property
    def dh_pub(self) -> bytes:
        """The public identity key, 32 bytes."""
        return self.dh.public_key().public_bytes_raw()
