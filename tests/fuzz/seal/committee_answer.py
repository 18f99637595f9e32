"""Fuzz target: what a member of a sealing committee, or whoever is between, may answer."""

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

from attestation.errors import SealError, SealFormatError
from attestation.seal.committee import Asking, Committee, read
from attestation.seal.committee_format import Answer, Refusal, Released
from tests.attestation.seal.test_committee_format import REQUEST

KEY = Ed25519PrivateKey.from_private_bytes(b"\x0f" * 32).public_key().public_bytes_raw()
OWN = X25519PrivateKey.from_private_bytes(b"\x0e" * 32)


def seeds() -> list[bytes]:
    return [
        Answer(bytes(128), bytes(64)).encode(),
        Answer(Refusal("retired", "the image is retired"), bytes(64)).encode(),
        Released(bytes(32), 1, b"d" * 32, 1).encode(),
        Released(bytes(32), 0, bytes(32), 1).encode(),
    ]


def fuzz_one(data: bytes) -> None:
    for kind in (Answer, Released):
        try:
            assert kind.decode(data).encode() == data
        except SealFormatError as error:
            _explained(error, "seal.answer")
    member = REQUEST.seats[0].member
    committee = Committee(REQUEST.deployment, REQUEST.instance, {member: KEY})
    try:
        read(committee, Asking(REQUEST, REQUEST.encode(), OWN), {member: data})
    except SealError as error:
        _explained(error, "seal.answer", "seal.signature")
    else:
        raise AssertionError("nobody signed this")


def _explained(error: SealError, *rules: str) -> None:
    assert error.rule in rules
    error.diagnostics().encode("ascii")
