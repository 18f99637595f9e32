"""Fuzz target: what the host of a virtual TDX reads from its guest."""

from attestation.providers.mock_td import IDLE, LEAD, REQUEST_SIZE
from attestation.providers.mock_td_host import take

REQUEST = LEAD + bytes(range(80))


def seeds() -> list[bytes]:
    return [REQUEST, REQUEST[:50] + IDLE + REQUEST, b"left" + REQUEST * 2, LEAD * 9]


def fuzz_one(data: bytes) -> None:
    received = bytearray(data)
    while (request := take(received)) is not None:
        nonce, report_data = request
        assert (len(nonce), len(report_data)) == (16, 64)
        assert LEAD + nonce + report_data in data
    # Nothing is kept but the beginning of a request.
    assert len(received) < REQUEST_SIZE
    assert data.endswith(bytes(received))
