"""Fuzz target: what a client does with a blob of receipts: check it, find its entry, open that."""

from tests.zipnet.protocol.support import INSTANCE, h, node, nodes
from zipnet.errors import WireFormatError, ZipnetError
from zipnet.protocol.receipts import (
    ENTRY,
    Receipt,
    Status,
    check_blob,
    find,
    join,
    open_receipt,
    receipt_tag,
    seal_receipt,
)

OWN, LEAF = node("client 0"), node("aggregator 0")
TAG = receipt_tag(h("client 0 receipts"), 7)


def seeds() -> list[bytes]:
    return [
        join(
            seal_receipt(
                Receipt(Status.TAKEN) if i % 2 else Receipt(Status.REFUSED, "envelope.mac"),
                INSTANCE,
                7,
                one.id,
                one.dh_pub,
                h(f"{one.name} receipts"),
                h(f"{one.name} ephemeral"),
                LEAF.signer,
            )
            for i, one in enumerate(nodes("client", clients))
        )
        for clients in (1, 5)
    ]


def fuzz_one(data: bytes) -> None:
    try:
        check_blob(data, -(-len(data) // ENTRY))
        entries = [data[at : at + ENTRY] for at in range(0, len(data), ENTRY)]
        assert join(reversed(entries)) == data
        assert all(find(data, entry[:16]) == entry for entry in entries)
    except WireFormatError as error:
        error.diagnostics().encode()
    # Whatever the order of a blob that was not checked.
    entry = find(data, TAG) or data[:ENTRY]
    try:
        open_receipt(entry, INSTANCE, 7, OWN.id, OWN.identity, LEAF.peer)
    except ZipnetError as error:
        error.diagnostics().encode()
