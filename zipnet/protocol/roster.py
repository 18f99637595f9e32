"""Who is in a round: the roster, its hash and bitmaps over it; epoch keys and Resumes.

Members are sorted by id, and that order is the order of bits. A bitmap has one bit a client: bit
`i` is bit `i mod 8`, counted from the least significant, of byte `i div 8`. Bits beyond the last
client are zero.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise

from blake3 import blake3

from zipnet.errors import Refused, WireFormatError
from zipnet.protocol.codec import Reader
from zipnet.protocol.instance import Instance

ROSTER = "zipnet/roster/v2"
RESUMES = "zipnet/resumes/v2"
EPOCH_KEY = b"zipnet/sig/epoch-key/v2"
RESUME = b"zipnet/sig/resume/v2"
MAX_SERVERS = 64
MAX_CLIENTS = 1 << 20
MAX_RESUMES = 1 << 16


@dataclass(frozen=True, slots=True)
class Member:
    """A client or server in an epoch: its id and its X25519 epoch key, 32 bytes each."""

    id: bytes
    key: bytes


@dataclass(frozen=True, slots=True)
class Roster:
    """Clients and servers of a round, each sorted by id without repetition.

    Raises WireFormatError for another order.
    """

    clients: tuple[Member, ...]
    servers: tuple[Member, ...]

    def __post_init__(self) -> None:
        for name in ("clients", "servers"):
            ids = [member.id for member in getattr(self, name)]
            if any(a >= b for a, b in pairwise(ids)):
                raise WireFormatError(
                    f"the roster's {name} are out of order",
                    expected="ascending ids, each once",
                    rule="roster.order",
                )

    @classmethod
    def of(cls, clients: Iterable[Member], servers: Iterable[Member]) -> "Roster":
        """The roster of these members, in whatever order. Raises WireFormatError."""

        def by_id(member: Member) -> bytes:
            return member.id

        return cls(tuple(sorted(clients, key=by_id)), tuple(sorted(servers, key=by_id)))

    def hash(self) -> bytes:
        """BLAKE3.derive_key(ROSTER) of u32 count, (id, key)... for clients, then for servers."""
        hasher = blake3(derive_key_context=ROSTER)
        for members in (self.clients, self.servers):
            hasher.update(len(members).to_bytes(4, "big"))
            hasher.update(b"".join(member.id + member.key for member in members))
        return hasher.digest()

    def index(self) -> dict[bytes, int]:
        """Client id to its place in bitmaps."""
        return {member.id: i for i, member in enumerate(self.clients)}


def bitmap_bytes(clients: int) -> int:
    """The size of a bitmap over so many clients."""
    return (clients + 7) // 8


def bitmap(places: Iterable[int], clients: int) -> bytes:
    """The bitmap with these bits. Raises Refused for a place beyond the roster."""
    result = bytearray(bitmap_bytes(clients))
    for place in places:
        if not 0 <= place < clients:
            raise Refused(
                "no client has this place in the roster",
                expected=f"0 to {clients - 1}",
                got=str(place),
                rule="bitmap.place",
            )
        result[place >> 3] |= 1 << (place & 7)
    return bytes(result)


def places(bits: bytes, clients: int) -> list[int]:
    """The places whose bits are set, ascending. Raises WireFormatError for a wrong bitmap."""
    check_bitmap(bits, clients)
    return [
        (at << 3) + bit
        for at, byte in enumerate(bits)
        if byte
        for bit in range(8)
        if byte >> bit & 1
    ]


def check_bitmap(bits: bytes, clients: int) -> None:
    """Refuse a bitmap of another size, or with a bit beyond the roster. Raises WireFormatError."""
    padding = -clients % 8
    if len(bits) != bitmap_bytes(clients) or (padding and bits[-1] >> (8 - padding)):
        raise WireFormatError(
            "this is no bitmap of the roster",
            expected=f"{bitmap_bytes(clients)} bytes, zero beyond client {clients - 1}",
            got=bits.hex()[:64],
            rule="bitmap",
            hint="the sender used another roster",
        )


@dataclass(frozen=True, slots=True)
class EpochKey:
    """A member's X25519 key for one epoch, signed by its peer key. 144 bytes on the wire.

    Of two for one epoch the one with the greater `serial` holds.
    """

    member: bytes
    epoch: int
    serial: int
    key: bytes
    signature: bytes

    @staticmethod
    def body(member: bytes, epoch: int, serial: int, key: bytes) -> bytes:
        """What the peer signs, under the domain EPOCH_KEY and round 0."""
        return member + epoch.to_bytes(8, "big") + serial.to_bytes(8, "big") + key

    def verify(self, instance: Instance, peer: bytes) -> None:
        """Check the signature by the member's peer key. Raises Refused."""
        body = self.body(self.member, self.epoch, self.serial, self.key)
        instance.verify(peer, self.signature, EPOCH_KEY, 0, body)

    def encode(self) -> bytes:
        """The body, then the signature."""
        return self.body(self.member, self.epoch, self.serial, self.key) + self.signature

    @classmethod
    def read(cls, reader: Reader) -> "EpochKey":
        """The next 144 bytes. Raises WireFormatError."""
        return cls(reader.take(32), reader.u64(), reader.u64(), reader.take(32), reader.take(64))


@dataclass(frozen=True, slots=True)
class Resume:
    """From `round` on, the pair secrets of this node have `nonce` mixed in. 72 bytes."""

    round: int
    node: bytes
    nonce: bytes

    def encode(self) -> bytes:
        """u64 round, node id, nonce."""
        return self.round.to_bytes(8, "big") + self.node + self.nonce

    @classmethod
    def read(cls, reader: Reader) -> "Resume":
        """The next 72 bytes. Raises WireFormatError."""
        return cls(reader.u64(), reader.take(32), reader.take(32))


def resumes_hash(resumes: Sequence[Resume]) -> bytes:
    """BLAKE3.derive_key(RESUMES) of the epoch's Resumes in log order."""
    hasher = blake3(derive_key_context=RESUMES)
    hasher.update(len(resumes).to_bytes(4, "big"))
    hasher.update(b"".join(resume.encode() for resume in resumes))
    return hasher.digest()
