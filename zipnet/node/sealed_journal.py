r"""The journal of a sealed client: its last guard, written before each envelope leaves.

    record: nonce (12) ‖ ChaCha20-Poly1305(guard), AAD "zipnet/node/journal/v1" 00 ‖
            binding of the instance

in one of two slots (`zipnet.node.slots`). The key comes out of the seal, where it is from the first
start on. A whole seal for each round would ask all servers each time; this asks nobody. So an old
copy of it can be put back: against that a client that restarts has a Resume.
"""

from __future__ import annotations

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305

from zipnet.errors import GuardRefused, StateDamaged, WireFormatError
from zipnet.node.slots import TwoSlots
from zipnet.protocol.codec import Reader
from zipnet.protocol.guards import ClientGuard, check_binding
from zipnet.protocol.instance import Instance
from zipnet.roles.identity import Draw

DOMAIN = b"zipnet/node/journal/v1\0"
NONCE = 12
TAG = 16
MAX_GUARD = 1024
MAX_ENTRY = NONCE + MAX_GUARD + TAG


class Journal:
    """A client's `Store` of guards. `key` has 32 bytes; `draw` makes nonces."""

    __slots__ = ("_cipher", "_draw", "_instance", "_slots")

    def __init__(self, slots: TwoSlots, key: bytes, instance: Instance, draw: Draw) -> None:
        self._slots = slots
        self._cipher = ChaCha20Poly1305(key)
        self._instance = instance
        self._draw = draw

    def read(self) -> ClientGuard | None:
        """The last guard; None if there is none.

        Raises StateDamaged: `slots.damaged`, and `journal.damaged` for one that this client has not
        written in this generation, or that was altered.
        """
        raw = self._slots.read()
        if raw is None:
            return None
        try:
            reader = Reader(raw, "journal", at_most=MAX_ENTRY)
            nonce = reader.take(NONCE)
            guard = ClientGuard.decode(self._cipher.decrypt(nonce, raw[NONCE:], self._associated))
            check_binding(guard, self._instance.binding)
        except (InvalidTag, WireFormatError, GuardRefused) as error:
            raise StateDamaged(
                "the journal of guards is damaged, or another node's",
                expected="one that this client has written in this generation",
                got=str(error) or "another key, or altered bytes",
                rule="journal.damaged",
                hint="the client takes new epoch keys: the next epoch is its first",
            ) from error
        return guard

    def write(self, record: bytes) -> None:
        """As `Store.write`. Raises StateDamaged for one that does not fit, OSError."""
        nonce = self._draw(NONCE)
        self._slots.write(nonce + self._cipher.encrypt(nonce, record, self._associated))

    @property
    def _associated(self) -> bytes:
        return DOMAIN + self._instance.binding
