"""Fuzz target: a client's sealed state, and the pairs in it."""

from dataclasses import replace

from tests.zipnet.node.test_sealed_record import PAIRS, RECORD
from zipnet.errors import WireFormatError
from zipnet.node.sealed_record import SealedPairs, SealedRecord


def seeds() -> list[bytes]:
    return [RECORD.encode(), replace(RECORD, pairs=PAIRS.encode()).encode(), PAIRS.encode()]


def fuzz_one(data: bytes) -> None:
    for kind in (SealedRecord, SealedPairs):
        try:
            found = kind.decode(data)
        except WireFormatError as error:
            error.diagnostics().encode()
        else:
            assert found.encode() == data
