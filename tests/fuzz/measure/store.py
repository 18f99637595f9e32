"""Fuzz target: variable store, signature lists, policy."""

from contextlib import suppress

from attestation.errors import AttestationError
from attestation.measure import firmware, policy, varstore
from tests.attestation.measure import synthetic


def seeds() -> list[bytes]:
    plain = synthetic.store()
    return [plain, firmware.write_policy(plain, [bytes(32), b"\1" * 32])]


def fuzz_one(data: bytes) -> None:
    with suppress(AttestationError):
        varstore.signatures(data)
    try:
        store = varstore.parse(data)
    except AttestationError:
        return
    for variable in store.variables:
        with suppress(AttestationError):
            varstore.signatures(variable.data)
    try:
        digests = policy.read(data)
    except AttestationError:
        return
    assert policy.write(data, digests) == data
