"""What sealing asks of a TPM, and what the TPM's refusals mean: by return code, never by message.

Source: TCG "Trusted Platform Module Library" 1.59, part 2, 6.6 (return codes); TCG "TSS 2.0
Overview and Common Structures", 3 (layers above the TPM).
"""

from __future__ import annotations

from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Protocol

from attestation.errors import SealError, SealFormatError, SealRefused, SealUnavailable
from attestation.seal.tpm2_policy import Pcrs


class Tpm(Protocol):
    """A conversation with one TPM, by sessions that only the holder of `srk_name`'s key can hold.

    All methods raise SealError, as `refusal` reads the TPM's return code.
    """

    @property
    def srk_name(self) -> bytes:
        """The Name of the storage root key: the same until the TPM is cleared."""
        ...

    def ek_name(self) -> bytes | None:
        """The Name of a key of the endorsement hierarchy, which clearing keeps; None if locked."""
        ...

    def pcr_digest(self, pcrs: Pcrs) -> bytes:
        """SHA-256 of the registers' values, in ascending order."""
        ...

    def extend(self, pcr: int, digest: bytes) -> None:
        """Extend a register with a SHA-256 digest."""
        ...

    def counter(self, index: int) -> int | None:
        """The value of our counter at an NV index; None if it is not there or never counted."""
        ...

    def define_counter(self, index: int) -> int:
        """Make our counter if it is not there, count once, and return its value."""
        ...

    def increment(self, index: int) -> None:
        """Count by one; durable when it returns."""
        ...

    def create(self, secret: bytes, policy: bytes) -> tuple[bytes, bytes]:
        """TPMT_PUBLIC, and the contents of TPM2B_PRIVATE, of an object that this policy opens."""
        ...

    def open(
        self,
        public: bytes,
        private: bytes,
        pcrs: Pcrs,
        pcr_digest: bytes,
        index: int,
        value: int,
        *,
        count: bool,
    ) -> bytes:
        """The secret in an object, under `tpm2_policy.policy` of the four that follow it.

        With `count` the counter moves once the TPM has taken the object as its own, not before: who
        can only write files must not make it count.
        """
        ...


class Device(Protocol):
    """A TPM, or the way to it."""

    def connect(self) -> AbstractContextManager[Tpm]:
        """A new conversation; afterwards nothing of it is left in the TPM."""
        ...


@dataclass(frozen=True, slots=True)
class _Meaning:
    rule: str
    message: str
    hint: str
    kind: type[SealError] = SealUnavailable


# Steps of a conversation whose refusals mean something of their own.
LOAD, POLICY_PCR, POLICY_NV, UNSEAL, NV = "load", "policy-pcr", "policy-nv", "unseal", "nv"

_VALUE, _HANDLE, _AUTH_FAIL, _POLICY_FAIL, _INTEGRITY = 0x84, 0x8B, 0x8E, 0x9D, 0x9F
_BAD_AUTH = 0xA2
_POLICY, _PCR_CHANGED, NV_UNINITIALIZED, _NV_SPACE = 0x126, 0x128, 0x14A, 0x14B
_ESYS_LAYER, _ESYS_RSP_AUTH_FAILED = 7, 27
# The rule of a counter that is not there, or never counted.
NO_COUNTER = "seal.counter-missing"

_OTHER_STATE = _Meaning(
    "seal.pcr",
    "the machine is in another state than the data was sealed for",
    "another image, another Secure Boot policy, or the gate of this boot is closed: boot what "
    "sealed it, or seal anew (after an image change the data is gone by design)",
    SealRefused,
)
_DAMAGED = _Meaning(
    "seal.integrity",
    "the sealed key was changed",
    "the file is damaged: restore it, or seal anew",
    SealFormatError,
)
_ROLLBACK = _Meaning(
    "seal.rollback",
    "the counter is not where the data was sealed for",
    "something newer was sealed: restore that, or seal anew",
    SealRefused,
)
_NO_COUNTER = _Meaning(
    NO_COUNTER,
    "the counter that keeps old data out is not in the TPM",
    "somebody removed it, and the data with it: seal anew",
    SealRefused,
)
_AUTHORIZATION = _Meaning(
    "seal.owner-auth",
    "the TPM wants a password, or the bus altered a command",
    "sealing needs an owner hierarchy without a password; if it has none, something sits between "
    "this machine and its TPM",
)
_MEMORY = _Meaning(
    "seal.tpm-memory",
    "the TPM has no room for another object or session",
    "use the resource manager (device:/dev/tpmrm0), or see what left objects in the TPM",
)
_BY_STEP: dict[tuple[str, int], _Meaning] = {
    (LOAD, _INTEGRITY): _DAMAGED,
    (POLICY_PCR, _VALUE): _OTHER_STATE,
    (POLICY_NV, _POLICY): _ROLLBACK,
    (NV, _HANDLE): _NO_COUNTER,
    (NV, NV_UNINITIALIZED): _NO_COUNTER,
    (UNSEAL, _POLICY_FAIL): _OTHER_STATE,
    (UNSEAL, _PCR_CHANGED): _OTHER_STATE,
}
_ANYWHERE: dict[int, _Meaning] = {
    _AUTH_FAIL: _AUTHORIZATION,
    _BAD_AUTH: _AUTHORIZATION,
    _NV_SPACE: _Meaning(
        "seal.nv-space",
        "the TPM has no room for a counter",
        "undefine NV indices that nothing uses",
    ),
    0x100: _Meaning(
        "seal.tpm-off", "the TPM was not started", "the firmware starts it: look at its settings"
    ),
    0x902: _MEMORY,
    0x903: _MEMORY,
    0x905: _MEMORY,
    0x920: _Meaning("seal.tpm-busy", "the TPM limits writes to its memory", "try again later"),
    0x921: _Meaning(
        "seal.tpm-lockout", "the TPM is in lockout", "wait, or reset the lockout as its owner"
    ),
}
_BUS = _Meaning(
    "seal.bus",
    "an answer of the TPM has a wrong HMAC: it is not the TPM's",
    "something between this machine and its TPM alters what they say",
    SealRefused,
)
_LAYER = _Meaning(
    "seal.tpm-connection",
    "the TPM can't be reached",
    "check the device and its permissions (device:/dev/tpmrm0 is for root and the group tss)",
)
_OTHER = _Meaning("seal.tpm", "the TPM refused", "look up the return code (tpm2_rc_decode)")
_BAD_OBJECT = _Meaning(
    "seal.object",
    "the TPM can't take the sealed key",
    "the file is damaged: restore it, or seal anew",
    SealFormatError,
)


def code(rc: int) -> int:
    """A return code of the TPM without the number of the handle, parameter or session."""
    return rc & 0xBF if rc & 0x80 else rc & 0xFFF


def refusal(step: str, rc: int) -> SealError:
    """The error that a return code stands for, where a step of a conversation got it."""
    meaning = _meaning(step, rc)
    return meaning.kind(
        meaning.message,
        got=f"return code 0x{rc:x} at {step}",
        rule=meaning.rule,
        hint=meaning.hint,
    )


def _meaning(step: str, rc: int) -> _Meaning:
    layer = rc >> 16 & 0xFF
    if layer == _ESYS_LAYER and rc & 0xFFFF == _ESYS_RSP_AUTH_FAILED:
        return _BUS
    # Resource managers answer in the TPM's own codes, from layers of theirs.
    if layer not in (0, 11, 12):
        return _LAYER
    found = _BY_STEP.get((step, code(rc))) or _ANYWHERE.get(code(rc))
    if found is None:
        # Codes with 0x80 complain about what was passed in, and that is the file's.
        found = _BAD_OBJECT if step == LOAD and rc & 0x80 else _OTHER
    return found
