r"""What a server needs to begin a generation that is not the first one, in one file.

"zipnet recovery 1\n" (18) ‖ u32 length ‖ pointer to the old generation's last checkpoint ‖
u32 length ‖ the operators' document ‖ u32 length ‖ the checkpoint's snapshot
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace

from zipnet.committee.machine import Machine
from zipnet.committee.state import Rules
from zipnet.errors import BlobMissing
from zipnet.network.base import Network
from zipnet.network.group import LATEST, Pointer, verify_checkpoint
from zipnet.network.places import Places
from zipnet.operators import MAX_BYTES, RecoveryDocument
from zipnet.protocol.codec import Reader, sized
from zipnet.protocol.instance import Instance

VERSION = b"zipnet recovery 1\n"
MAX_FILE = 1 << 30
MAX_POINTER = 8192
# In its envelope a document grows by base64 and signatures.
MAX_DOCUMENT = 4 * MAX_BYTES


@dataclass(frozen=True, slots=True)
class Reopening:
    """The last checkpoint that all servers signed, and the document that leads on from it."""

    pointer: Pointer
    document: bytes
    snapshot: bytes = field(repr=False)

    def encode(self) -> bytes:
        """As at the top of this module."""
        parts = (self.pointer.encode(), self.document, self.snapshot)
        return VERSION + b"".join(sized(part, 4) for part in parts)

    @classmethod
    def decode(cls, raw: bytes) -> Reopening:
        """All of `raw`, nothing checked. Raises WireFormatError."""
        reader = Reader(raw, "recovery", at_most=MAX_FILE)
        reader.expect("version", VERSION)
        pointer = Pointer.decode(reader.sized(4, MAX_POINTER))
        result = cls(pointer, reader.sized(4, MAX_DOCUMENT), reader.sized(4, MAX_FILE))
        reader.done()
        return result

    @property
    def unverified(self) -> RecoveryDocument:
        """What the document says, whoever signed it. Raises DocumentRejected."""
        return RecoveryDocument.unverified(self.document)

    def machine(self, rules: Rules, deployment_id: bytes) -> Machine:
        """The machine before the first entry of the new generation's log.

        Whether the document is good, that machine decides. Raises SnapshotRejected, Refused and
        DocumentRejected for a checkpoint that the old generation's servers have not signed.
        """
        old = Instance(deployment_id, self.unverified.old_generation)
        verify_checkpoint(rules, old, self.pointer.checkpoint, self.snapshot)
        return Machine.reopen(rules, self.snapshot)


def kept_checkpoint(raw: bytes, rules: Rules, deployment_id: bytes) -> Reopening:
    """The checkpoint that a server has kept in a file, verified, and yet without a document.

    Raises WireFormatError, and as `verify_checkpoint`.
    """
    found = replace(Reopening.decode(raw), document=b"")
    generation = Machine.restore(rules, found.snapshot).state.instance.generation
    old = Instance(deployment_id, generation)
    verify_checkpoint(rules, old, found.pointer.checkpoint, found.snapshot)
    return found


async def last_checkpoint(network: Network, rules: Rules, instance: Instance) -> Reopening:
    """The newest checkpoint of a generation, verified, and yet without a document.

    Raises BlobMissing if there is none, EngineError, and as `verify_checkpoint`.
    """
    places = Places.of(instance.deployment_id)
    item = await (await network.table(places.log(instance))).get(LATEST)
    if item is None or item.value is None:
        raise BlobMissing(
            "the network has no checkpoint of this generation",
            expected="one that all servers signed, as after every sixteenth record",
            got=f"none of generation {instance.generation.hex()}",
            rule="checkpoint.none",
            hint="name the generation that the servers were in: --generation",
        )
    pointer = Pointer.decode(item.value)
    raw = await (await network.blobs(places.blobs)).get(pointer.blob)
    verify_checkpoint(rules, instance, pointer.checkpoint, raw)
    return Reopening(pointer, b"", raw)
