"""Fuzz target: what a guest finds on the port of the virtual TDX."""

from attestation.errors import ProviderFailed
from attestation.providers.mock_td import MAX_ANSWER, QUOTED, REFUSED, answer
from attestation.providers.mock_td_host import frame

NONCE = bytes(range(16))


def seeds() -> list[bytes]:
    return [
        frame(NONCE, QUOTED, b"quote"),
        frame(bytes(16), QUOTED, b"another's") + frame(NONCE, REFUSED, b"no"),
        frame(NONCE, 2, b""),
        NONCE,
    ]


def fuzz_one(data: bytes) -> None:
    try:
        found = answer(data, NONCE)
    except ProviderFailed as error:
        error.diagnostics().encode()
        return
    if found is not None:
        status, content = found
        assert frame(NONCE, status, content) in data
        assert len(content) < MAX_ANSWER
