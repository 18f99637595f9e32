"""The sealer that forgets."""

from attestation.errors import SealUnavailable
from attestation.seal.memory import MemorySealer
from tests.attestation.seal.conformance import refused


def test_nothing_is_left_after_close() -> None:
    sealer = MemorySealer()
    sealer.seal("node", b"a secret")
    sealer.close()
    sealer.close()
    for attempt in (lambda: sealer.unseal("node"), lambda: sealer.seal("node", b"")):
        with refused("seal.closed", SealUnavailable):
            attempt()


def test_two_sealers_share_nothing() -> None:
    one, other = MemorySealer(), MemorySealer()
    one.seal("node", b"one")
    other.seal("node", b"other")
    assert one.unseal("node") == b"one"
