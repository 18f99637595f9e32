"""Fuzz target: TDVF metadata, MR_TD, audit and bind."""

from attestation.errors import AttestationError
from attestation.measure import firmware, tdvf
from tests.attestation.measure import synthetic


def seeds() -> list[bytes]:
    base = synthetic.Firmware().build()
    return [base, firmware.bind_digests(base, [bytes(32)])]


def fuzz_one(data: bytes) -> None:
    for order in tdvf.PageOrder:
        try:
            tdvf.mr_td(data, order)
        except AttestationError:
            return
    try:
        bound = firmware.bind_digests(data, [b"\1" * 32])
    except AttestationError:
        return
    assert firmware.policy(bound) == (b"\1" * 32,)
    assert firmware.code_digest(bound) == firmware.code_digest(data)
