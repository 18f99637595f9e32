"""Fuzz target: the record of a TPM's keys."""

from attestation.errors import SealFormatError
from attestation.seal.tpm2_folder import Pin

NAME = b"\0\x0b" + bytes(range(32))


def seeds() -> list[bytes]:
    return [Pin(NAME, NAME).encode(), Pin(NAME, None).encode()]


def fuzz_one(data: bytes) -> None:
    try:
        pin = Pin.parse(data)
    except SealFormatError as error:
        error.diagnostics().encode("ascii")
        return
    assert pin.encode() == data
