"""Fuzz target: what a server keeps as a member of the sealing committee."""

from blake3 import blake3

from attestation.seal.committee_member import Known
from zipnet.errors import StateDamaged
from zipnet.node.sealed_root import CHECK, decode, encode


def seeds() -> list[bytes]:
    known = {bytes(64): Known(1, bytes(32), 1), b"\1" * 64: Known(7, b"\2" * 32, 3, anew=True)}
    return [encode(bytes(32), {}), encode(bytes(range(32)), known)]


def fuzz_one(data: bytes) -> None:
    # With a right check, or hardly anything is behind it.
    for raw in (data, data[:-32] + blake3(data[:-32], derive_key_context=CHECK).digest()):
        try:
            root, known = decode(raw)
        except StateDamaged as error:
            error.diagnostics().encode()
        else:
            assert encode(root, known) == raw
