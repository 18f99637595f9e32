"""The servers' end of a round: commit to a partial, reveal it, add all up (Algorithm 3).

A server's partial is the XOR of its pads with the clients that are in the aggregate. Each commits
to its own before any is revealed, so that none can choose its partial by those of others.
"""

import hmac
from collections.abc import Sequence

from blake3 import blake3

from zipnet.errors import Refused
from zipnet.protocol.instance import Instance
from zipnet.protocol.shape import Shape

PARTIAL = "zipnet/partial/v2"


def commitment(
    instance: Instance, round_number: int, aggregate_digest: bytes, server_id: bytes, partial: bytes
) -> bytes:
    """32 bytes that fix a server's partial for one aggregate of one round.

    BLAKE3.derive_key(PARTIAL)(binding ‖ u64 round ‖ aggregate's digest ‖ server id ‖ partial). It
    hides the partial, which nobody can guess.
    """
    number = round_number.to_bytes(8, "big")
    material = (instance.binding, number, aggregate_digest, server_id, partial)
    return blake3(b"".join(material), derive_key_context=PARTIAL).digest()


def check_reveal(
    committed: bytes,
    instance: Instance,
    round_number: int,
    aggregate_digest: bytes,
    server_id: bytes,
    partial: bytes,
    shape: Shape,
) -> None:
    """Check a revealed partial: its size, and that it is what was committed to. Raises Refused."""
    if len(partial) != shape.payload_bytes:
        raise Refused(
            "the partial has the wrong size",
            expected=f"{shape.payload_bytes} bytes",
            got=str(len(partial)),
            rule="reveal.size",
            hint="the server works with another shape",
        )
    made = commitment(instance, round_number, aggregate_digest, server_id, partial)
    if not hmac.compare_digest(made, committed):
        raise Refused(
            "the partial is not what the server has committed to",
            expected=committed.hex(),
            got=made.hex(),
            rule="reveal.commitment",
            hint="the server changed its mind after it had seen others, or is broken",
        )


def finalize(aggregate_payload: bytes, partials: Sequence[bytes]) -> bytes:
    """The broadcast: the XOR of the aggregate's payload and one partial of each server.

    Raises Refused if there is none or one has another size. That partials are all there and right
    is for the caller to know; the broadcast of wrong ones shows it in the tags of its slots.
    """
    if not partials:
        raise Refused(
            "nothing to unblind with",
            expected="a partial of each server",
            got="none",
            rule="finalize.partials",
        )
    size = len(aggregate_payload)
    result = int.from_bytes(aggregate_payload, "little")
    for partial in partials:
        if len(partial) != size:
            raise Refused(
                "a partial is not of the size of the aggregate",
                expected=f"{size} bytes",
                got=str(len(partial)),
                rule="finalize.size",
            )
        result ^= int.from_bytes(partial, "little")
    return result.to_bytes(size, "little")
