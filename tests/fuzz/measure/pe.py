"""Fuzz target: PE parsing, Authenticode, RTMR prediction."""

from attestation.errors import AttestationError
from attestation.measure import authenticode, rtmr
from attestation.measure.pe import Pe
from tests.attestation.measure import synthetic


def seeds() -> list[bytes]:
    parts: list[tuple[str, bytes, int | None]] = [(".text", b"code", None)]
    return [
        synthetic.uki({".ucode": b"u", ".pcrsig": b"{}"}),
        synthetic.pe(parts, magic=0x10B),
        synthetic.pe(parts, certificate=b"signature", gap=8),
    ]


def fuzz_one(data: bytes) -> None:
    try:
        image = Pe.parse(data)
    except AttestationError:
        return
    assert len(authenticode.digest(image)) == 32
    try:
        rtmr.rtmr1(image, rtmr.BootPath.KERNEL)
        rtmr.rtmr2(image)
    except AttestationError:
        return
