"""Fuzz target: blobs that a committee sealed."""

from dataclasses import replace

from attestation.errors import SealError, SealFormatError
from attestation.seal.committee import Committee, check_blob, unsafe_open_older
from attestation.seal.committee_format import Blob, Released
from tests.attestation.seal.test_committee_format import BLOB


def seeds() -> list[bytes]:
    two = ((b"a" * 32, b"b" * 32), (b"b" * 32, b"c" * 32))
    return [
        BLOB.encode(),
        replace(BLOB, header=replace(BLOB.header, members=two), ciphertext=bytes(16)).encode(),
    ]


def fuzz_one(data: bytes) -> None:
    try:
        blob = Blob.parse(data)
    except SealFormatError as error:
        _explained(error, "seal.damaged")
        return
    assert blob.encode() == data
    header = blob.header
    keys = dict.fromkeys(header.ids, bytes(32))
    committee = Committee(header.deployment, header.instance, keys)
    check_blob(committee, blob)
    released = dict.fromkeys(header.ids, Released(bytes(32), 1, bytes(32), 1))
    try:
        unsafe_open_older(committee, blob, released)
    except SealError as error:
        _explained(error, "seal.equivocation", "seal.damaged")
    else:
        raise AssertionError("nobody sealed this")


def _explained(error: SealError, *rules: str) -> None:
    assert error.rule in rules
    error.diagnostics().encode("ascii")
