"""The keys by which a server acts on its own node of the bus, all derived from its signing key.

Nobody has to keep or hand over a further secret. None of them is the signing key itself: what a
nats-server makes them sign can be mistaken for no statement of the protocol.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from blake3 import blake3
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from zipnet.network.nkeys import Kind, public_of
from zipnet.roles.identity import Identity

ISSUER = "zipnet/nats/issuer/v1"
RESPONDER = "zipnet/nats/responder/v1"
SYSTEM = "zipnet/nats/system/v1"


@dataclass(frozen=True, slots=True)
class BusKeys:
    """`issuer` signs admissions, `responder` is asked for them, `system` disconnects clients."""

    issuer: Ed25519PrivateKey = field(repr=False)
    responder: Ed25519PrivateKey = field(repr=False)
    system: Ed25519PrivateKey = field(repr=False)
    user: str  # the node's own nkey, as a member

    @classmethod
    def of(cls, identity: Identity) -> BusKeys:
        """Those of a server: BLAKE3.derive_key(context)(Ed25519 seed) is the seed of each."""
        seed = identity.signing.private_bytes_raw()

        def derived(context: str) -> Ed25519PrivateKey:
            raw = blake3(seed, derive_key_context=context).digest()
            return Ed25519PrivateKey.from_private_bytes(raw)

        return cls(
            derived(ISSUER),
            derived(RESPONDER),
            derived(SYSTEM),
            public_of(Kind.USER, identity.signing),
        )

    @property
    def public(self) -> dict[str, str]:
        """The public halves as NATS writes them, by what they are for."""
        return {
            "issuer": public_of(Kind.ACCOUNT, self.issuer),
            "responder": public_of(Kind.USER, self.responder),
            "system": public_of(Kind.USER, self.system),
            "user": self.user,
        }
