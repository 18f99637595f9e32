"""Fuzz target: envelopes, and the leaf that takes them."""

from tests.zipnet.protocol.support import SHAPE, h, header, nodes, roster, tree
from zipnet.errors import ZipnetError
from zipnet.protocol.envelope import Envelope, audit, seal_envelope
from zipnet.protocol.fold import LeafFold, TagSet, payload_xor

CLIENT, OTHER = nodes("client", 5)[:2]
ROSTER, TREE = roster(), tree()
HEADER = header(ROSTER, aggregators=TREE)
KEYS = {client.id: h(f"mac {client.name}") for client in (CLIENT, OTHER)}
GOOD = [
    seal_envelope(
        HEADER,
        client.id,
        client.id[:16],
        bytes(SHAPE.payload_bytes),
        KEYS[client.id],
        client.signer,
    )
    for client in (CLIENT, OTHER)
]
XOR = payload_xor()


def seeds() -> list[bytes]:
    return [*GOOD, bytes(len(GOOD[0]))]


def fuzz_one(data: bytes) -> None:
    try:
        envelope = Envelope.decode(data, SHAPE)
    except ZipnetError as error:
        error.diagnostics().encode()
    else:
        assert envelope.encode() == data
        try:
            audit(envelope, CLIENT.peer)
        except ZipnetError as error:
            error.diagnostics().encode()
    fold = LeafFold(HEADER, ROSTER, TREE, 0, KEYS, TagSet(9), XOR)
    try:
        fold.absorb(data)
    except ZipnetError as error:
        error.diagnostics().encode()
    else:
        # Nobody forges a MAC, and it covers all but the signature.
        assert data[:-64] in {good[:-64] for good in GOOD}
