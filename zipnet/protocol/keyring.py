"""A member's epoch secrets, and the pairs that are made of them when an epoch begins.

A member always has a key for the next epoch in the log. At the first header of an epoch it derives
its pairs with everybody on the other side and forgets the secret: from then on only the ratchets
are left, and they don't run backwards.
"""

from collections.abc import Iterable, Sequence

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

from zipnet.errors import Refused
from zipnet.protocol.header import NO_HASH
from zipnet.protocol.instance import Instance
from zipnet.protocol.pads import Pair, pair_secret
from zipnet.protocol.precompute import advance_all
from zipnet.protocol.roster import EPOCH_KEY, EpochKey, Member, Resume


class KeyRing:
    """The secrets of one node in one generation. `epoch` is that of its pairs, 0 for none yet."""

    __slots__ = ("_key", "_member", "_pairs", "_secrets", "epoch")

    def __init__(self, member: bytes) -> None:
        self._member = member
        self._secrets: dict[int, X25519PrivateKey] = {}
        self._pairs: dict[bytes, Pair] = {}
        self._key = NO_HASH
        self.epoch = 0

    def __repr__(self) -> str:
        return f"KeyRing({self._member.hex()[:16]}, epoch {self.epoch}, {len(self._pairs)} pairs)"

    def offer(
        self,
        instance: Instance,
        epoch: int,
        serial: int,
        secret: X25519PrivateKey,
        identity: Ed25519PrivateKey,
    ) -> EpochKey:
        """Keep `secret` for `epoch`, in place of an earlier one; returns the key, signed."""
        key = secret.public_key().public_bytes_raw()
        body = EpochKey.body(self._member, epoch, serial, key)
        self._secrets[epoch] = secret
        signature = instance.sign(identity, EPOCH_KEY, 0, body)
        return EpochKey(self._member, epoch, serial, key, signature)

    def key(self, epoch: int) -> bytes | None:
        """This node's own public key in this epoch, if it still has what belongs to it."""
        if epoch == self.epoch and epoch:
            return self._key
        secret = self._secrets.get(epoch)
        return None if secret is None else secret.public_key().public_bytes_raw()

    def open(
        self,
        instance: Instance,
        epoch: int,
        base_round: int,
        others: Iterable[Member],
        *,
        server: bool,
    ) -> None:
        """Derive the pairs of `epoch` with all `others`, and forget its secret and older ones.

        `server` says on which side this node stands. Raises Refused if there is no secret for the
        epoch, or if a key is of small order; then nothing has changed.
        """
        own = self._secrets.get(epoch)
        if own is None:
            raise Refused(
                "this node has no secret for the epoch",
                expected=f"one of epoch {', '.join(map(str, self._secrets)) or 'none'}",
                got=str(epoch),
                rule="epoch.no-secret",
                hint="post a key for the next epoch and wait for it",
            )
        me = Member(self._member, own.public_key().public_bytes_raw())
        pairs = {}
        for other in others:
            client, servant = (other, me) if server else (me, other)
            pairs[other.id] = pair_secret(instance.binding, own, client, servant, base_round)
        self.close()
        self._pairs, self._key, self.epoch = pairs, me.key, epoch
        self._secrets = {later: kept for later, kept in self._secrets.items() if later > epoch}

    def pairs(
        self, others: Sequence[bytes], round_number: int, resumes: Sequence[Resume]
    ) -> list[Pair]:
        """The pairs with these nodes, all of them brought to the round. Raises Refused.

        Pairs that this round does not need are brought there too: a ratchet that lags behind would
        keep the pads of rounds that are over.
        """
        missing = [other.hex()[:16] for other in others if other not in self._pairs]
        if missing:
            raise Refused(
                "there is no pair with a node of this round",
                expected=f"the {len(self._pairs)} nodes of epoch {self.epoch}",
                got=", ".join(missing[:4]),
                rule="epoch.no-pair",
                hint="the node joined later, or this one did: wait for the next epoch",
            )
        advance_all(list(self._pairs.values()), round_number, resumes)
        return [self._pairs[other] for other in others]

    def export(self) -> list[bytes]:
        """All pairs, for sealing, ordered by the other node's id.

        Secrets of coming epochs are not in it: a node that restarts posts a new key, so that an
        old copy of it has none that anybody knows.
        """
        return [self._pairs[other].export() for other in sorted(self._pairs)]

    def restore(self, epoch: int, key: bytes, pairs: Iterable[Pair]) -> None:
        """Take over pairs that were sealed, and the own public key that they were made with.

        This node must then send a Resume before it acts.
        """
        self._pairs = {
            pair.server if pair.client == self._member else pair.client: pair for pair in pairs
        }
        self._key, self.epoch = key, epoch

    def close(self) -> None:
        """Overwrite the pairs, as far as Python can."""
        for pair in self._pairs.values():
            pair.erase()
        self._pairs = {}
        self.epoch = 0
