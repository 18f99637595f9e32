"""Fuzz target: bitmaps, epoch keys, Resumes, which travel inside of other messages."""

from tests.zipnet.protocol.support import h
from zipnet.errors import ZipnetError
from zipnet.protocol.codec import Reader
from zipnet.protocol.roster import EpochKey, Resume, bitmap, places


def seeds() -> list[bytes]:
    key = EpochKey(h("id"), 3, 4, h("key"), h("a") + h("b"))
    return [key.encode(), Resume(7, h("node"), h("nonce")).encode(), b"\x0b\1\2", b"\0"]


def fuzz_one(data: bytes) -> None:
    for kind in (EpochKey, Resume):
        reader = Reader(data, "fuzz", at_most=4096)
        try:
            decoded = kind.read(reader)
            reader.done()
        except ZipnetError as error:
            error.diagnostics().encode()
        else:
            assert decoded.encode() == data
    clients, bits = data[:1] or b"\0", data[1:]
    try:
        found = places(bits, clients[0])
    except ZipnetError as error:
        error.diagnostics().encode()
    else:
        assert bitmap(found, clients[0]) == bits
