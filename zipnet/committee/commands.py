"""Commands: the entries of the committee's log.

A command is a frame around a body, signed by its author's peer key:

    u16 wire version ‖ u8 kind ‖ author (32) ‖ deployment id (32) ‖ generation (32) ‖ u64 round ‖
    u64 log seq ‖ log head (32) ‖ u64 clock in Unix ms ‖ body ‖ Ed25519 signature (64)

`round` is the round that the command is about, 0 for kinds about none. `log seq` and `log head` are
an entry that the author has applied, and the chain's head after it: they tie the command to this
log and to its recent past. The signature is over all before it, under the domain COMMAND.
"""

from __future__ import annotations

from dataclasses import dataclass

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from zipnet.committee.bodies import ABOUT_A_ROUND, BODIES, MAX_COMMAND, Body
from zipnet.errors import WireFormatError
from zipnet.protocol.codec import Reader
from zipnet.protocol.header import WIRE_VERSION
from zipnet.protocol.instance import Instance

COMMAND = b"zipnet/sig/command/v2"
MAX_CLOCK_MS = 253_402_300_799_000  # the end of the year 9999
_SIGNATURE = 64


@dataclass(frozen=True, slots=True)
class Command:
    """One command, its signature not yet checked. Fields as in the frame."""

    author: bytes
    instance: Instance
    round: int
    seq: int
    head: bytes
    clock_ms: int
    body: Body
    signature: bytes

    def signed_part(self) -> bytes:
        """The frame without its signature."""
        return b"".join(
            (
                WIRE_VERSION.to_bytes(2, "big"),
                self.body.KIND.to_bytes(1, "big"),
                self.author,
                self.instance.deployment_id,
                self.instance.generation,
                self.round.to_bytes(8, "big"),
                self.seq.to_bytes(8, "big"),
                self.head,
                self.clock_ms.to_bytes(8, "big"),
                self.body.encode(),
            )
        )

    def encode(self) -> bytes:
        """The bytes of the log entry."""
        return self.signed_part() + self.signature

    @classmethod
    def make(
        cls,
        key: Ed25519PrivateKey,
        instance: Instance,
        body: Body,
        *,
        round_number: int,
        seq: int,
        head: bytes,
        clock_ms: int,
    ) -> bytes:
        """The encoded command of this author."""
        author = key.public_key().public_bytes_raw()
        bare = cls(author, instance, round_number, seq, head, clock_ms, body, b"")
        part = bare.signed_part()
        return part + instance.sign(key, COMMAND, round_number, part)

    @classmethod
    def decode(cls, raw: bytes) -> Command:
        """The command in `raw`, all of it. Raises WireFormatError."""
        reader = Reader(raw, "command", at_most=MAX_COMMAND)
        reader.expect("wire-version", WIRE_VERSION.to_bytes(2, "big"))
        kind = reader.u8()
        author, deployment_id, generation = reader.take(32), reader.take(32), reader.take(32)
        round_number, seq, head, clock = reader.u64(), reader.u64(), reader.take(32), reader.u64()
        if clock > MAX_CLOCK_MS:
            raise reader.wrong("clock", f"at most {MAX_CLOCK_MS}", str(clock))
        if kind not in BODIES:
            raise reader.wrong("kind", f"1 to {max(BODIES)}", str(kind))
        if (round_number > 0) != (kind in ABOUT_A_ROUND):
            raise reader.wrong("round", "a round exactly for kinds about one", str(round_number))
        body = BODIES[kind](reader)
        signature = reader.take(_SIGNATURE)
        reader.done()
        instance = Instance(deployment_id, generation)
        return cls(author, instance, round_number, seq, head, clock, body, signature)

    def check_signature(self, raw: bytes) -> None:
        """Check the author's signature over `raw`, from which this was decoded. Raises Refused."""
        part = raw[:-_SIGNATURE]
        self.instance.verify(self.author, self.signature, COMMAND, self.round, part)


def kind_name(raw: bytes) -> str:
    """What kind of command `raw` claims to be, for a log line. Never raises."""
    try:
        return type(Command.decode(raw).body).__name__
    except WireFormatError:
        return "unreadable"
