"""Fuzz target: files of sealed data."""

from contextlib import suppress

from attestation.errors import SealFormatError
from attestation.seal.tpm2_blob import Blob, Header
from attestation.seal.tpm2_policy import PUBLIC_SIZE, Pcrs


def seeds() -> list[bytes]:
    return [
        Blob(
            Header(
                *(name, 0x01500A01, 7, Pcrs.parse(pcrs), bytes(32)),
                *(bytes(PUBLIC_SIZE), bytes(private)),
            ),
            bytes(12),
            bytes(16 + size),
        ).encode()
        for name, pcrs, private, size in (
            ("node", "sha256:7,11", 158, 64),
            ("a" * 32, "sha256:0,1,2,3,4,5,6,23", 1, 0),
        )
    ]


def fuzz_one(data: bytes) -> None:
    try:
        blob = Blob.parse(data)
    except SealFormatError as error:
        error.diagnostics().encode("ascii")
        return
    assert blob.encode() == data
    with suppress(SealFormatError):
        blob.decrypt(bytes(32))
