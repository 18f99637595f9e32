"""One generation of one deployment, and the signatures that are bound to it.

Every signature is Ed25519 (RFC 8032) over

    domain ‖ 0x00 ‖ deployment id (32) ‖ generation (32) ‖ round (u64, big endian) ‖ body

so that none is good in another deployment, another generation, another round or as another kind of
message. `round` is 0 where a message is about no round; rounds begin with 1.
"""

from dataclasses import dataclass, field

from blake3 import blake3
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from zipnet.errors import ConfigRejected, Refused

GENERATION = "zipnet/committee-generation/v2"
BINDING = "zipnet/generation/v2"
MIN_SECRET = 16
MAX_ROUND = (1 << 63) - 1


@dataclass(frozen=True, slots=True)
class Instance:
    """The two ids that everything is bound to (32 bytes each).

    `binding` takes the place of the deployment id in the key schedule and in `header_hash`, so that
    a new generation has new pads.
    """

    deployment_id: bytes
    generation: bytes
    binding: bytes = field(init=False, repr=False)

    def __post_init__(self) -> None:
        for name in ("deployment_id", "generation"):
            if len(getattr(self, name)) != 32:
                raise ConfigRejected(f"the {name} is wrong", expected="32 bytes", rule="id-size")
        ids = self.deployment_id + self.generation
        object.__setattr__(self, "binding", blake3(ids, derive_key_context=BINDING).digest())

    def statement(self, domain: bytes, round_number: int, body: bytes) -> bytes:
        """The bytes that a signature of kind `domain` covers."""
        number = round_number.to_bytes(8, "big")
        return b"".join((domain, b"\0", self.deployment_id, self.generation, number, body))

    def sign(self, key: Ed25519PrivateKey, domain: bytes, round_number: int, body: bytes) -> bytes:
        """The signature, 64 bytes."""
        return key.sign(self.statement(domain, round_number, body))

    def verify(
        self, peer: bytes, signature: bytes, domain: bytes, round_number: int, body: bytes
    ) -> None:
        """Check a signature by the Ed25519 key `peer` (32 bytes). Raises Refused."""
        if not self.has_signed(peer, signature, domain, round_number, body):
            raise Refused(
                "a signature does not verify",
                expected=f"{domain.decode()} by {peer.hex()} for round {round_number}",
                got=signature.hex()[:32],
                rule="signature",
                hint="it was made for other bytes, another round, generation or deployment",
            )

    def has_signed(
        self, peer: bytes, signature: bytes, domain: bytes, round_number: int, body: bytes
    ) -> bool:
        """Whether the holder of the Ed25519 key `peer` made this signature."""
        try:
            public = Ed25519PublicKey.from_public_bytes(peer)
            public.verify(signature, self.statement(domain, round_number, body))
        except (InvalidSignature, ValueError):
            return False
        return True


def generation(committee_id: bytes, secret: bytes, counter: int) -> bytes:
    """The generation (32 bytes) that a committee secret opens; `counter` grows with each.

    BLAKE3.derive_key(GENERATION)(committee id ‖ u64 counter ‖ secret). Raises ConfigRejected for a
    secret below 128 bits.
    """
    if len(secret) < MIN_SECRET:
        raise ConfigRejected(
            "the committee secret is too short",
            expected=f"at least {MIN_SECRET} bytes",
            got=str(len(secret)),
            rule="committee-secret",
            hint="draw one with a random generator and give it to all operators",
        )
    material = committee_id + counter.to_bytes(8, "big") + secret
    return blake3(material, derive_key_context=GENERATION).digest()
