"""What a TPM must find before it opens sealed data, as digests and bytes: no TPM is needed.

Source: TCG "Trusted Platform Module Library" 1.59, part 1, 19.7 (policies), 16 (names); part 2 for
structures and attributes; part 3, 23.7 (PolicyPCR) and 23.9 (PolicyNV). All integers are big
endian, all digests SHA-256.
"""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass
from typing import Self

from attestation.errors import SealRefused

SHA256 = (0x000B).to_bytes(2, "big")  # TPM_ALG_SHA256
DIGEST = 32
PCRS = 24
# One TPM2_PCR_Read returns no more (TPML_DIGEST).
MAX_PCRS = 8
SELECT = PCRS // 8

_CC_POLICY_NV = (0x149).to_bytes(4, "big")
_CC_POLICY_PCR = (0x17F).to_bytes(4, "big")
_EQUAL = bytes(2)  # TPM_EO_EQ

COUNTER_SIZE = 8
# TPMA_NV: OWNERWRITE, AUTHWRITE, COUNTER, OWNERREAD, AUTHREAD, NO_DA. Whoever has the device may
# count on: that costs the data, it never brings older data back.
COUNTER_ATTRIBUTES = 1 << 1 | 1 << 2 | 1 << 4 | 1 << 17 | 1 << 18 | 1 << 25
_WRITTEN = 1 << 29
# TPMA_OBJECT: FIXEDTPM, FIXEDPARENT, NODA. Not USERWITHAUTH: its password is empty, and would do
# instead of the policy.
OBJECT_ATTRIBUTES = 1 << 1 | 1 << 4 | 1 << 10
_KEYED_HASH = (0x0008).to_bytes(2, "big")
_NO_SCHEME = (0x0010).to_bytes(2, "big")
PUBLIC_SIZE = 2 + 2 + 4 + 2 * (2 + DIGEST) + 2


@dataclass(frozen=True, slots=True)
class Pcrs:
    """Registers of the SHA-256 bank, as the three bytes of a TPMS_PCR_SELECTION."""

    select: bytes

    @classmethod
    def parse(cls, text: str) -> Self:
        """`sha256:7,11`. Raises SealRefused, rule `seal.pcr-selection`."""
        match = re.fullmatch(r"sha256:([0-9]{1,2}(?:,[0-9]{1,2})*)", text)
        found = {int(part) for part in match[1].split(",")} if match else set[int]()
        if not 0 < len(found) <= MAX_PCRS or max(found) >= PCRS:
            raise SealRefused(
                "this selects no registers to seal for",
                expected=f"sha256: and 1 to {MAX_PCRS} numbers below {PCRS}",
                got=ascii(text)[:80],
                rule="seal.pcr-selection",
            )
        return cls(sum(1 << number for number in found).to_bytes(SELECT, "little"))

    @property
    def numbers(self) -> tuple[int, ...]:
        """The registers, ascending."""
        bits = int.from_bytes(self.select, "little")
        return tuple(number for number in range(PCRS) if bits >> number & 1)

    def __str__(self) -> str:
        return f"sha256:{','.join(map(str, self.numbers))}"


def counter_name(index: int, *, written: bool = True) -> bytes:
    """The Name of our counter at an NV index: it stands for its attributes too."""
    attributes = COUNTER_ATTRIBUTES | (_WRITTEN if written else 0)
    public = index.to_bytes(4, "big") + SHA256 + attributes.to_bytes(4, "big")
    public += bytes(2) + COUNTER_SIZE.to_bytes(2, "big")
    return SHA256 + hashlib.sha256(public).digest()


def policy(pcrs: Pcrs, pcr_digest: bytes, index: int, value: int) -> bytes:
    """The digest of: the registers have these values, and the counter is exactly at `value`.

    `pcr_digest` is the hash of the registers' values, in ascending order.
    """
    selection = (1).to_bytes(4, "big") + SHA256 + bytes([SELECT]) + pcrs.select
    state = hashlib.sha256(bytes(DIGEST) + _CC_POLICY_PCR + selection + pcr_digest).digest()
    # The operand, the offset 0, the comparison.
    compared = hashlib.sha256(value.to_bytes(COUNTER_SIZE, "big") + bytes(2) + _EQUAL).digest()
    return hashlib.sha256(state + _CC_POLICY_NV + compared + counter_name(index)).digest()


def public_start(policy_digest: bytes) -> bytes:
    """The TPMT_PUBLIC of an object that only this policy opens, without its last field `unique`."""
    head = _KEYED_HASH + SHA256 + OBJECT_ATTRIBUTES.to_bytes(4, "big")
    return head + len(policy_digest).to_bytes(2, "big") + policy_digest + _NO_SCHEME
