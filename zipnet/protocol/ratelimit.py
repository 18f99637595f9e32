"""How many messages a client may send in an epoch: a pseudorandom tag for each.

    key = BLAKE3.derive_key("zipnet/rate-limit/v2")(identity X25519 secret ‖ binding)
    tag = keyed BLAKE3(key)(u64 counter ‖ u64 epoch)[:16]

A client has as many tags in an epoch as it may send messages, and leaf aggregators refuse a tag
that they have seen. Envelopes without a message carry 16 random bytes: without the key nobody can
tell them from a tag. A tag that shows twice would tell that its client has sent a message, so a
counter is never used again, whatever became of its envelope.
"""

from dataclasses import dataclass, replace

from blake3 import blake3

from zipnet.errors import ConfigRejected, GuardRefused
from zipnet.protocol.envelope import RATE_TAG_BYTES

KEY = "zipnet/rate-limit/v2"


def rate_key(dh_secret: bytes, binding: bytes) -> bytes:
    """The key of a client's tags (32 bytes), from its identity X25519 secret (32 bytes)."""
    return blake3(dh_secret + binding, derive_key_context=KEY).digest()


def rate_tag(key: bytes, counter: int, epoch: int) -> bytes:
    """The tag of the message with this number in this epoch, 16 bytes; numbers start at 0."""
    material = counter.to_bytes(8, "big") + epoch.to_bytes(8, "big")
    return blake3(material, key=key).digest(RATE_TAG_BYTES)


@dataclass(frozen=True, slots=True)
class Budget:
    """What a client has used of its `limit` of messages in an epoch.

    A client that restarts within an epoch and has not kept `used` takes `spent`. Raises
    ConfigRejected for a limit below 1.
    """

    epoch: int
    limit: int
    used: int = 0

    def __post_init__(self) -> None:
        if self.limit < 1 or not 0 <= self.used <= self.limit:
            raise ConfigRejected(
                "this is no budget of messages",
                expected="a limit of at least 1, and at most that used",
                got=f"{self.used} of {self.limit}",
                rule="budget",
            )

    @classmethod
    def spent(cls, epoch: int, limit: int) -> "Budget":
        """A budget with nothing left until the next epoch."""
        return cls(epoch, limit, limit)

    def at(self, epoch: int) -> "Budget":
        """The budget in this epoch: the same one or a fresh one. Raises GuardRefused."""
        if epoch < self.epoch:
            raise GuardRefused(
                "the epoch is over",
                expected=f"epoch {self.epoch} or later",
                got=str(epoch),
                rule="budget.epoch",
                hint="its tags may have been used; an old header is being replayed",
            )
        return self if epoch == self.epoch else Budget(epoch, self.limit)

    def next(self) -> "Budget | None":
        """The budget after one more message, whose number is `used`; None if none is left."""
        return replace(self, used=self.used + 1) if self.used < self.limit else None
