"""Pads: the keystreams that a client and each of its servers share, and the ratchet of their keys.

    z        = X25519(own secret, other's key)                        all zero is refused
    prk      = HKDF-Extract("zipnet/dh/v2" 00 binding, z)
    ss_base  = HKDF-Expand(prk, "zipnet/pair/v2" 00 ‖ u16 wire ‖ u64 base round ‖ binding ‖
                                client id ‖ server id ‖ client key ‖ server key, 32)
    ss_(r+1) = HKDF-Extract("zipnet/ratchet/v1", ss_r)                ss_base is ss_(base round)
    ss_r     = HKDF-Extract("zipnet/resume/v1", ss_r ‖ node id ‖ nonce)   for each Resume at r
    key      = HKDF-Expand(ss_r, LABEL 00 ‖ u16 wire ‖ u64 round ‖ binding ‖ header_hash ‖
                                 schedule_hash ‖ client id ‖ server id, 32)
    pad      = AES-256-CTR(key, IV 0), as many bytes as the vector has

HKDF is RFC 5869 over SHA-256, CTR that of SP 800-38A with one 128-bit counter, X25519 RFC 7748.
Each key makes one pad, so the IV may be constant. Keying HMAC with a public label and giving it the
secret as message takes HMAC to be a dual PRF. Pads carry no integrity.

A Pair holds its secret in a bytearray that is overwritten. Python can't erase the rest: what HMAC
and X25519 return are immutable objects whose memory is reused at some later time, and the cipher
library keeps an expanded key until its context is freed.
"""

import hmac
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.ciphers import Cipher
from cryptography.hazmat.primitives.ciphers.algorithms import AES256
from cryptography.hazmat.primitives.ciphers.modes import CTR, ECB

from zipnet.errors import GuardRefused, Refused
from zipnet.protocol.codec import Reader
from zipnet.protocol.header import WIRE_VERSION, Header
from zipnet.protocol.roster import Member, Resume
from zipnet.protocol.shape import Shape

DH = b"zipnet/dh/v2"
PAIR = b"zipnet/pair/v2"
RATCHET = b"zipnet/ratchet/v1"
RESUME_MIX = b"zipnet/resume/v1"
MESSAGE_PAD = b"zipnet/pad/msg/v1"
SCHEDULE_PAD = b"zipnet/pad/sched/v1"
# How many rounds the ratchet goes forward at once: it can't go back, so a far round is an attack.
MAX_SKIP = 4096
PAIR_VERSION = 1
PAIR_BYTES = 109

# XORs the keystreams of keys, 32 bytes each, into a buffer in place.
KeystreamXor = Callable[[Sequence[bytes], memoryview], None]

_FROM_ZERO = CTR(bytes(16))
# A pass over a large buffer drives all else from the nearest cache: expanding the keys of several
# passes at once, beforehand, takes half the time. A context has about 1 KB.
_CONTEXTS = 64


def xor_in_place(keys: Sequence[bytes], buffer: memoryview) -> None:
    """XOR the keystreams into `buffer`, which is input and output of the cipher at once."""
    for at in range(0, len(keys), _CONTEXTS):
        some = keys[at : at + _CONTEXTS]
        for stream in [Cipher(AES256(key), _FROM_ZERO).encryptor() for key in some]:
            stream.update_into(buffer, buffer)


def xor_by_copy(keys: Sequence[bytes], buffer: memoryview) -> None:
    """XOR the keystreams into `buffer` by way of a second one."""
    for key in keys:
        buffer[:] = Cipher(AES256(key), _FROM_ZERO).encryptor().update(buffer)


def keystream_xor(
    candidates: Sequence[KeystreamXor] = (xor_in_place, xor_by_copy),
) -> KeystreamXor:
    """The first candidate that gives the keystream, tested now: call it once at start.

    No cipher library promises that output may be input. Raises GuardRefused if none is right.
    """
    for candidate in candidates:
        if _is_right(candidate):
            return candidate
    raise GuardRefused(
        "AES-256-CTR gives a wrong keystream on this machine",
        expected="what AES-256-ECB gives for the counter blocks",
        rule="keystream",
        hint="reinstall the cryptography package; nothing may be sealed until then",
    )


def keystream(key: bytes, size: int) -> bytes:
    """The first `size` bytes of the keystream, from AES on single blocks: slow, for comparison."""
    blocks = b"".join(i.to_bytes(16, "big") for i in range(-(-size // 16)))
    # Single blocks are what CTR is defined by; ECB as a mode would hide nothing.
    return Cipher(AES256(key), ECB()).encryptor().update(blocks)[:size]  # noqa: S305


def _is_right(candidate: KeystreamXor) -> bool:
    keys = (bytes(range(32)), bytes(range(7, 39)))
    # Ragged ends, and enough blocks for every width in which libraries encrypt several at once.
    for size in (1, 16, 33, 1000, 16_411):
        before = bytes(i * 7 & 0xFF for i in range(size + 6))
        after = bytearray(before)
        try:
            candidate(keys, memoryview(after)[3:-3])
        except Exception:  # whatever it is, this candidate is out
            return False
        pads = [bytes(3) + keystream(key, size) + bytes(3) for key in keys]
        if after != bytes(a ^ b ^ c for a, b, c in zip(before, *pads, strict=True)):
            return False
    return True


def extract(salt: bytes, secret: bytes | bytearray) -> bytes:
    """HKDF-Extract (RFC 5869, 2.2)."""
    return hmac.digest(salt, secret, "sha256")


def expand(secret: bytes | bytearray, info: bytes) -> bytes:
    """HKDF-Expand (RFC 5869, 2.3) to 32 bytes: its first block."""
    return hmac.digest(secret, info + b"\1", "sha256")


def exchange(own: X25519PrivateKey, key: bytes) -> bytes:
    """X25519, 32 bytes. Raises Refused for a key of small order: its result would be public."""
    peer = X25519PublicKey.from_public_bytes(key)
    try:
        return own.exchange(peer)
    except ValueError as error:
        raise Refused(
            "the key exchange gives zero",
            expected="a key that is no point of small order",
            got=key.hex(),
            rule="dh-zero",
            hint="reject the registration: only a faulty or hostile member has such a key",
        ) from error


def check_point(key: bytes) -> None:
    """Refuse an X25519 key with which every exchange gives zero. Raises Refused.

    Any scalar shows it: points of small order give zero with all of them (RFC 7748, 6.1).
    """
    exchange(X25519PrivateKey.from_private_bytes(bytes(32)), key)


def pair_base(
    binding: bytes, shared: bytes, client: Member, server: Member, base_round: int
) -> bytes:
    """ss_base of what `exchange` gave."""
    fields = (
        PAIR + b"\0",
        WIRE_VERSION.to_bytes(2, "big"),
        base_round.to_bytes(8, "big"),
        binding,
        client.id,
        server.id,
        client.key,
        server.key,
    )
    return expand(extract(DH + b"\0" + binding, shared), b"".join(fields))


def ratchet(secret: bytes | bytearray, rounds: int) -> bytes:
    """The secret so many rounds later."""
    for _ in range(rounds):
        secret = extract(RATCHET, secret)
    return bytes(secret)


def mix(secret: bytes, resume: Resume) -> bytes:
    """The secret after a Resume, in the same round."""
    return extract(RESUME_MIX, secret + resume.node + resume.nonce)


def pad_info(
    label: bytes, binding: bytes, header_hash: bytes, schedule_hash: bytes, round_number: int
) -> bytes:
    """What the info of a label's keys begins with in one round, whatever the pair."""
    number = WIRE_VERSION.to_bytes(2, "big") + round_number.to_bytes(8, "big")
    return b"".join((label, b"\0", number, binding, header_hash, schedule_hash))


def pad_key(
    label: bytes,
    secret: bytes | bytearray,
    binding: bytes,
    header_hash: bytes,
    schedule_hash: bytes,
    round_number: int,
    client: bytes,
    server: bytes,
) -> bytes:
    """One pad's key, 32 bytes."""
    info = pad_info(label, binding, header_hash, schedule_hash, round_number)
    return expand(secret, info + client + server)


@dataclass(frozen=True, slots=True)
class RoundInfo:
    """`pad_info` of both labels for one header: made once, used for all pairs."""

    round: int
    message: bytes
    schedule: bytes

    @classmethod
    def of(cls, header: Header) -> "RoundInfo":
        """That of `header`."""
        bound = (header.instance.binding, header.hash, header.schedule_hash, header.round)
        return cls(header.round, pad_info(MESSAGE_PAD, *bound), pad_info(SCHEDULE_PAD, *bound))


@dataclass(frozen=True, slots=True)
class PadKeys:
    """The keys of one pair's two pads in one round, 32 bytes each."""

    message: bytes = field(repr=False)
    schedule: bytes = field(repr=False)

    def apply(self, xor: KeystreamXor, payload: bytearray | memoryview, shape: Shape) -> None:
        """XOR both pads into `payload`, which has `shape.payload_bytes`. Raises Refused."""
        if len(payload) != shape.payload_bytes:
            raise Refused(
                "the payload has another size than the round",
                expected=f"{shape.payload_bytes} bytes",
                got=str(len(payload)),
                rule="payload-size",
            )
        view = memoryview(payload)
        xor((self.message,), view[: shape.message_bytes])
        xor((self.schedule,), view[shape.message_bytes :])


class Pair:
    """The secret of a client and a server as it stands at `round`. Either end holds the same.

    `client` and `server` are ids. After `erase` everything raises GuardRefused.
    """

    __slots__ = ("_mixed", "_secret", "client", "round", "server")

    def __init__(
        self, client: bytes, server: bytes, round_number: int, secret: bytes, mixed: int = 0
    ) -> None:
        self.client = client
        self.server = server
        self.round = round_number
        self._secret = bytearray(secret)
        # How many of this pair's Resumes are in the secret already.
        self._mixed = mixed

    def __repr__(self) -> str:
        return f"Pair({self.client.hex()[:16]}, {self.server.hex()[:16]}, round {self.round})"

    def advance(self, round_number: int, resumes: Sequence[Resume]) -> None:
        """Ratchet to `round_number`, mixing in each Resume when its round is reached.

        `resumes` are the epoch's, all that are known, in log order; those of other nodes and later
        rounds are passed over. The same call again changes nothing, and neither does an error.
        Raises Refused for an earlier round, for one more than MAX_SKIP ahead, and for Resumes that
        contradict what is mixed in: then this end can't make the pads of the other any more.
        """
        secret: bytes | bytearray = self._live()
        if round_number == self.round and not resumes and not self._mixed:
            return  # the common case: a server asks this of every pair in every round
        if round_number < self.round:
            raise self._passed(round_number)
        if round_number - self.round > MAX_SKIP:
            raise Refused(
                "the round is too far ahead",
                expected=f"at most {self.round + MAX_SKIP}",
                got=str(round_number),
                rule="ratchet.max-skip",
                hint="take a new epoch key if the round is right",
            )
        at = self.round
        for resume in self._unmixed(round_number, resumes):
            secret = mix(ratchet(secret, resume.round - at), resume)
            at = resume.round
            self._mixed += 1
        self._secret[:] = ratchet(secret, round_number - at)
        self.round = round_number

    def keys(self, header: Header) -> PadKeys:
        """The keys of the header's round. Raises Refused if the pair stands at another."""
        return PadKeys(*self.pad_keys(RoundInfo.of(header)))

    def pad_keys(self, info: RoundInfo) -> tuple[bytes, bytes]:
        """As `keys`, for who has many pairs: the message and the scheduling key."""
        self.check_round(info.round)
        ends = self.client + self.server
        return expand(self._secret, info.message + ends), expand(self._secret, info.schedule + ends)

    def check_round(self, round_number: int) -> None:
        """Refuse any round but the one where the pair stands. Raises Refused."""
        self._live()
        if round_number < self.round:
            raise self._passed(round_number)
        if round_number > self.round:
            raise Refused(
                "the pair has not been brought to this round",
                expected=str(self.round),
                got=str(round_number),
                rule="ratchet.behind",
                hint="advance it, with the epoch's Resumes, first",
            )

    def step(self) -> None:
        """Go to the next round; the keys of this one can't be had again."""
        self._secret[:] = extract(RATCHET, self._live())
        self.round += 1

    def erase(self) -> None:
        """Overwrite the secret."""
        self._secret[:] = bytes(len(self._secret))
        self._secret = bytearray()

    def export(self) -> bytes:
        """The state, secret included, for sealing: PAIR_BYTES bytes."""
        head = PAIR_VERSION.to_bytes(1, "big") + self.round.to_bytes(8, "big")
        return b"".join(
            (head, self._mixed.to_bytes(4, "big"), self.client, self.server, self._live())
        )

    @classmethod
    def restore(cls, raw: bytes) -> "Pair":
        """What `export` gave. Raises WireFormatError for anything else."""
        reader = Reader(raw, "pair", at_most=PAIR_BYTES)
        reader.expect("version", PAIR_VERSION.to_bytes(1, "big"))
        round_number, mixed = reader.u64(), reader.u32()
        client, server, secret = reader.take(32), reader.take(32), reader.take(32)
        reader.done()
        return cls(client, server, round_number, secret, mixed)

    def _live(self) -> bytearray:
        if not self._secret:
            raise GuardRefused(
                "the pair's secret is erased",
                rule="erased",
                hint="a new one comes with the next epoch",
            )
        return self._secret

    def _unmixed(self, round_number: int, resumes: Sequence[Resume]) -> list[Resume]:
        ends = (self.client, self.server)
        mine = [each for each in resumes if each.node in ends and each.round <= round_number]
        if len(mine) < self._mixed:
            raise Refused(
                "the list lacks Resumes that are mixed in",
                expected=f"at least {self._mixed} of this pair",
                got=str(len(mine)),
                rule="resume.missing",
                hint="the log was cut back, or the list is of another epoch",
            )
        new = mine[self._mixed :]
        at = self.round
        for resume in new:
            if resume.round < at:
                raise Refused(
                    "a Resume was missed",
                    expected=f"round {at} or later",
                    got=str(resume.round),
                    rule="resume.missed",
                    hint="the pair went on without it: take a new epoch key",
                )
            at = resume.round
        return new

    def _passed(self, round_number: int) -> Refused:
        return Refused(
            "the pair has left this round behind",
            expected=f"round {self.round} or later",
            got=str(round_number),
            rule="ratchet.backward",
            hint="a round is sealed and answered once",
        )


def pair_secret(
    binding: bytes, own: X25519PrivateKey, client: Member, server: Member, base_round: int
) -> Pair:
    """The pair at `base_round`; `own` is the epoch secret of either end.

    Raises Refused if it is that of neither, or if the other end's key is of small order.
    """
    mine = own.public_key().public_bytes_raw()
    if mine not in (client.key, server.key):
        raise Refused(
            "the epoch key is that of neither end",
            expected=f"{client.key.hex()} or {server.key.hex()}",
            got=mine.hex(),
            rule="pair.own-key",
            hint="the roster has another epoch key of this node: the secret is of another epoch",
        )
    shared = exchange(own, server.key if mine == client.key else client.key)
    base = pair_base(binding, shared, client, server, base_round)
    return Pair(client.id, server.id, base_round, base)
