"""The nodes of a simulated deployment as their owners, and the hosts below them, see them."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Sequence
from dataclasses import dataclass, field
from itertools import count

from blake3 import blake3
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from zipnet.committee.events import Applied
from zipnet.config import ShuffleWindow
from zipnet.protocol.keyring import KeyRing
from zipnet.protocol.pads import KeystreamXor, Pair, keystream_xor
from zipnet.protocol.speaker import Message
from zipnet.protocol.speaker import Outcome as Fate
from zipnet.roles.client_core import ClientCore
from zipnet.roles.identity import Identity
from zipnet.roles.server_core import ServerCore

START_MS = 1_800_000_000_000


class Disk:
    """A store that keeps all that was ever written to it, as a hostile host would."""

    def __init__(self) -> None:
        self.records: list[bytes] = []

    def write(self, record: bytes) -> None:
        self.records.append(record)


class Ledger:
    """On which occasions each pad was used. A pad with two occasions is a two-time pad.

    It wraps the cipher of a node. What a client seals is an occasion of its own; a server may need
    a pad twice to compute one partial, so its occasion is the round.
    """

    def __init__(self) -> None:
        self.uses: dict[bytes, set[Hashable]] = {}
        self._calls = count()
        self._xor = keystream_xor()

    def xor(self, keys: Sequence[bytes], buffer: memoryview) -> None:
        """A cipher with which every call is an occasion of its own."""
        self._use(keys, buffer, next(self._calls))

    def within(self, occasion: Callable[[], Hashable]) -> KeystreamXor:
        """A cipher whose calls belong to the occasion of the moment."""
        return lambda keys, buffer: self._use(keys, buffer, occasion())

    def reused(self) -> int:
        return sum(len(occasions) > 1 for occasions in self.uses.values())

    def _use(self, keys: Sequence[bytes], buffer: memoryview, occasion: Hashable) -> None:
        for key in keys:
            self.uses.setdefault(blake3(key).digest(), set()).add(occasion)
        self._xor(keys, buffer)


def window(**changes: int) -> ShuffleWindow:
    """A small, quick window."""
    values = {
        "num_slots": 8,
        "num_sched_slots": 32,
        "round_period_ms": 1_000,
        "round_deadline_ms": 5_000,
        "fold_deadline_ms": 500,
        "min_participants": 2,
        "max_clients": 64,
        "epoch_rounds": 8,
        "messages_per_epoch": 8,
    }
    return ShuffleWindow(**{**values, **changes})


@dataclass(frozen=True)
class Backup:
    """A node's sealed state at one moment: the guard's record, the pairs and their own key."""

    guard: bytes | None
    epoch: int
    key: bytes
    pairs: tuple[bytes, ...]

    @classmethod
    def of(cls, core: ServerCore | ClientCore, disk: Disk) -> Backup:
        ring = core.keyring
        guard = disk.records[-1] if disk.records else None
        return cls(guard, ring.epoch, ring.key(ring.epoch) or b"", tuple(ring.export()))

    def ring(self, member: bytes) -> KeyRing:
        ring = KeyRing(member)
        if self.epoch:
            ring.restore(self.epoch, self.key, self.open())
        return ring

    def open(self) -> list[Pair]:
        """The pairs, as nobody but a thief would use them."""
        return [Pair.restore(raw) for raw in self.pairs]


@dataclass(eq=False)
class Site:
    """A server as its operator has it. `view` is the log that a lying bus shows to it alone."""

    name: str
    operator: Ed25519PrivateKey
    identity: Identity
    core: ServerCore
    disk: Disk
    ledger: Ledger
    skew_ms: int = 0
    down: bool = False
    serial: int = 1
    boot: int = 0
    view: list[bytes] | None = None
    applied: list[Applied] = field(default_factory=list)

    @property
    def id(self) -> bytes:
        return self.core.id

    def backup(self) -> Backup:
        return Backup.of(self.core, self.disk)


@dataclass(eq=False)
class User:
    """A client with its disk. `past` are the earlier boots: how many messages, and their fates."""

    identity: Identity
    core: ClientCore
    disk: Disk
    bundle: bytes
    gone: bool = False
    refusal: str = ""
    fates: list[tuple[int, Fate]] = field(default_factory=list)
    past: list[tuple[int, list[tuple[int, Fate]]]] = field(default_factory=list)

    @property
    def id(self) -> bytes:
        return self.core.id

    def backup(self) -> Backup:
        return Backup.of(self.core, self.disk)

    def hear(self, outcomes: Iterable[tuple[Message, Fate]]) -> None:
        self.fates += [(message.number, fate) for message, fate in outcomes]

    def reborn(self, core: ClientCore) -> None:
        """A new boot takes over; what the old one had not yet seen the end of is settled never."""
        speaker = self.core.speaker
        left = len(speaker.queue) + len(speaker.in_flight)
        self.past.append((speaker.submitted - left, self.fates))
        self.core, self.fates = core, []

    def settled(self) -> bool:
        """Whether each message has one fate, but for those that still wait for theirs."""
        speaker = self.core.speaker
        waiting = len(speaker.queue) + len(speaker.in_flight)
        boots = [*self.past, (speaker.submitted - waiting, self.fates)]
        return all(
            len(fates) == ended == len({number for number, _ in fates}) for ended, fates in boots
        )
