"""What return codes mean."""

import pytest

from attestation.errors import SealError, SealFormatError, SealRefused, SealUnavailable
from attestation.seal import tpm2_device as steps
from attestation.seal.tpm2_device import refusal

CODES: list[tuple[str, int, str, type[SealError]]] = [
    (steps.UNSEAL, 0x99D, "seal.pcr", SealRefused),
    (steps.UNSEAL, 0x128, "seal.pcr", SealRefused),
    (steps.POLICY_PCR, 0x1C4, "seal.pcr", SealRefused),
    (steps.POLICY_NV, 0x126, "seal.rollback", SealRefused),
    (steps.LOAD, 0x1DF, "seal.integrity", SealFormatError),
    (steps.LOAD, 0x2D5, "seal.object", SealFormatError),
    (steps.NV, 0x18B, "seal.counter-missing", SealRefused),
    (steps.NV, 0x14A, "seal.counter-missing", SealRefused),
    (steps.NV, 0x14B, "seal.nv-space", SealUnavailable),
    ("create-primary", 0x9A2, "seal.owner-auth", SealUnavailable),
    ("create-primary", 0x98E, "seal.owner-auth", SealUnavailable),
    ("create-primary", 0x902, "seal.tpm-memory", SealUnavailable),
    ("session", 0x903, "seal.tpm-memory", SealUnavailable),
    ("session", 0x905, "seal.tpm-memory", SealUnavailable),
    # The kernel's resource manager says the same from its own layer.
    ("session", 0xC0903, "seal.tpm-memory", SealUnavailable),
    (steps.NV, 0x920, "seal.tpm-busy", SealUnavailable),
    (steps.NV, 0x921, "seal.tpm-lockout", SealUnavailable),
    ("connect", 0x100, "seal.tpm-off", SealUnavailable),
    (steps.NV, 0x7001B, "seal.bus", SealRefused),
    ("connect", 0xA0008, "seal.tpm-connection", SealUnavailable),
    (steps.NV, 0x70008, "seal.tpm-connection", SealUnavailable),
    # The same code elsewhere means nothing of the kind.
    (steps.NV, 0x1C4, "seal.tpm", SealUnavailable),
    (steps.LOAD, 0x101, "seal.tpm", SealUnavailable),
    (steps.UNSEAL, 0x126, "seal.tpm", SealUnavailable),
]


@pytest.mark.parametrize(("step", "rc", "rule", "kind"), CODES)
def test_code(step: str, rc: int, rule: str, kind: type[SealError]) -> None:
    error = refusal(step, rc)
    assert (error.rule, type(error)) == (rule, kind)
    assert f"0x{rc:x}" in error.got
    assert step in error.got
    assert error.message
    assert error.hint


def test_places_in_a_command_do_not_matter() -> None:
    for place in range(16):
        for kind in (0, 0x40):
            assert refusal(steps.UNSEAL, 0x9D | place << 8 | kind).rule == "seal.pcr"
