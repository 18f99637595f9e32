"""The sizes of a round's vectors.

A payload is the message vector (`num_slots` slots of `slot_bytes`: datum ‖ tag) followed by the
scheduling vector (`num_sched_slots` entries of `sched_bytes`). Envelopes, aggregates, partials and
broadcasts all carry one payload of the same size.
"""

from dataclasses import dataclass

from zipnet.errors import WireFormatError
from zipnet.protocol.codec import Reader

TAG_LEN = 16
SCHED_BYTES = 2
MAX_SLOTS = 1 << 20
# What fits a bus message with room for headers; larger rounds need another transport.
MAX_PAYLOAD = 4 << 20


@dataclass(frozen=True, slots=True)
class Shape:
    """Counts and sizes in bytes. Raises WireFormatError for sizes that no round can have."""

    num_slots: int
    slot_bytes: int
    num_sched_slots: int
    sched_bytes: int = SCHED_BYTES
    tag_len: int = TAG_LEN

    def __post_init__(self) -> None:
        good = (
            1 <= self.num_slots <= MAX_SLOTS
            and self.num_slots <= self.num_sched_slots <= MAX_SLOTS
            and self.sched_bytes == SCHED_BYTES
            and self.tag_len == TAG_LEN
            and self.tag_len < self.slot_bytes
            and self.payload_bytes <= MAX_PAYLOAD
        )
        if not good:
            raise WireFormatError(
                "no round can have these sizes",
                expected=f"1 to {MAX_SLOTS} slots, at least as many scheduling slots of "
                f"{SCHED_BYTES} bytes, tags of {TAG_LEN}, {MAX_PAYLOAD} bytes in all",
                got=str(self),
                rule="shape",
                hint="use fewer slots or a smaller datum",
            )

    @property
    def message_bytes(self) -> int:
        """The size of the message vector."""
        return self.num_slots * self.slot_bytes

    @property
    def schedule_bytes(self) -> int:
        """The size of the scheduling vector."""
        return self.num_sched_slots * self.sched_bytes

    @property
    def payload_bytes(self) -> int:
        """The size of both."""
        return self.message_bytes + self.schedule_bytes

    @property
    def datum_bytes(self) -> int:
        """What a slot holds beside its tag."""
        return self.slot_bytes - self.tag_len

    def encode(self) -> bytes:
        """Five u32: as in the input of `header_hash`."""
        numbers = (
            self.num_slots,
            self.slot_bytes,
            self.num_sched_slots,
            self.sched_bytes,
            self.tag_len,
        )
        return b"".join(number.to_bytes(4, "big") for number in numbers)

    @classmethod
    def read(cls, reader: Reader) -> "Shape":
        """The next 20 bytes. Raises WireFormatError."""
        return cls(reader.u32(), reader.u32(), reader.u32(), reader.u32(), reader.u32())
