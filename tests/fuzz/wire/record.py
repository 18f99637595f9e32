"""Fuzz target: records and signed records."""

from tests.zipnet.protocol.support import header, peers, record, roster, signed_record
from zipnet.errors import ZipnetError
from zipnet.protocol.record import Record, SignedRecord

ONE = record()
GOOD = signed_record(ONE).encode()
PEERS = peers(ONE.header)


def seeds() -> list[bytes]:
    other = record(header(roster(3, 5)), present=())
    return [ONE.encode(), GOOD, other.encode(), signed_record(other).encode()]


def fuzz_one(data: bytes) -> None:
    try:
        one = Record.decode(data)
    except ZipnetError as error:
        error.diagnostics().encode()
    else:
        assert one.encode() == data
        assert one.messages + one.schedule == one.payload
    try:
        signed = SignedRecord.decode(data)
    except ZipnetError as error:
        error.diagnostics().encode()
        return
    assert signed.encode() == data
    try:
        signed.verify(PEERS)
    except ZipnetError as error:
        error.diagnostics().encode()
    else:
        assert data == GOOD
