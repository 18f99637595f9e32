"""Fuzz target: headers and signed headers."""

from tests.zipnet.protocol.support import header, roster, signed
from zipnet.errors import ZipnetError
from zipnet.protocol.header import Header, SignedHeader


def seeds() -> list[bytes]:
    one, other = header(), header(roster(3, 5))
    return [one.encode(), signed(one).encode(), other.encode(), signed(other).encode()]


def fuzz_one(data: bytes) -> None:
    for kind in (Header, SignedHeader):
        try:
            decoded = kind.decode(data)
        except ZipnetError as error:
            error.diagnostics().encode()
        else:
            assert decoded.encode() == data
