"""Fuzz target: what a receipt says once it is open."""

from zipnet.errors import WireFormatError
from zipnet.protocol.receipts import Receipt, Status


def seeds() -> list[bytes]:
    return [
        Receipt(Status.ABSENT).encode(),
        Receipt(Status.LATE).encode(),
        Receipt(Status.REFUSED, "x" * 48).encode(),
    ]


def fuzz_one(data: bytes) -> None:
    try:
        receipt = Receipt.decode(data)
    except WireFormatError as error:
        error.diagnostics().encode()
        return
    assert receipt.encode() == data
