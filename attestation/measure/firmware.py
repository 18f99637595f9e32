"""Binding an image into a TDX firmware, and telling what a firmware is.

`bind` writes a Secure Boot policy that admits one image into the firmware's variable store (the
CFV) and makes the host measure it, so that MR_TD names the image. `audit` refuses a firmware in
which such a policy could be got around. A malformed variable store must never leave this module:
the firmware drops it and boots with Secure Boot off.
"""

import hashlib
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from uuid import UUID

from attestation.errors import FirmwareFormatError, FirmwareRejected
from attestation.measure import authenticode, varstore, volume
from attestation.measure import policy as secure_boot
from attestation.measure.pe import Pe
from attestation.measure.tdvf import ATTRIBUTES_AT, MR_EXTEND, Section, SectionType, Tdvf

# edk2 PR 11568: without this check a TD boots any unsigned `-kernel` by the legacy loader.
LOADER_GUARD = b"Running in confidential VM, not using insecure legacy linux kernel loader"
SECURE_BOOT_MARK = "SecureBootEnable".encode("utf-16-le")

# Modules with which a console user, always "physically present", could remove the policy.
_FORBIDDEN = {
    "loadable-uiapp": (UUID("462caa21-7614-4503-836e-8ab6f4662331"), "UiApp"),
    "loadable-shell": (UUID("7c04a583-9e3e-4f1c-ad65-e05268d0b4d1"), "Shell"),
}
_NOTABLE = {
    *(guid for guid, _ in _FORBIDDEN.values()),
    UUID("f0e6a44f-7195-41c3-ac64-54f202cd0a21"),  # SecureBootConfigDxe
    UUID("eec25bdc-67f2-4d95-b1d5-f81b2039d11d"),  # BootManagerMenuApp
}


class Model(StrEnum):
    """Whether the event model of `rtmr` is known to fit the code of a firmware.

    Known from its source and from emulated boots with a software TPM, not yet from TDX hardware.
    """

    CONFIRMED = "confirmed"
    UNCONFIRMED = "unconfirmed"


# `code_digest` of each firmware that the event model was checked for.
KNOWN_MODELS = {
    bytes.fromhex("5e26b2ce434c95f1f993657dd7a44d092bef23e6c4e32d4e27faccf879ec5f9b"): (
        "Debian ovmf-inteltdx 2026.08+ds-2 OVMF.inteltdx.ms.fd"
    ),
}


@dataclass(frozen=True, slots=True)
class Placement:
    """Where a notable module lies, and whether a TD can load it."""

    name: str
    guid: str
    volume: str
    loadable: bool


@dataclass(frozen=True, slots=True)
class Audit:
    """What a firmware that passed the audit is; digests in hex, sizes in bytes, all JSON-able.

    `policy` lists the hashes that its variable store admits, None unless `bind` wrote the store.
    """

    sha256: str
    code_sha256: str
    model: Model
    secure_boot: bool
    loader_guard: bool
    modules: tuple[Placement, ...]
    store_size: int
    store_variables: tuple[str, ...]
    cfv_measured: bool
    policy: tuple[str, ...] | None


def audit(fd: bytes) -> Audit:
    """Check that a policy in this firmware's store holds in a TD, and describe the firmware.

    Raises FirmwareFormatError for broken TDVF or volumes. Raises FirmwareRejected with one of the
    rules `bfv-not-measured`, `opaque-section`, `no-secure-boot`, `no-loader-guard`,
    `loadable-uiapp`, `loadable-shell`, `no-cfv`, `several-cfv`, `malformed-store` and
    `store-too-small`.
    """
    tdvf = Tdvf.parse(fd)
    found = _modules(fd, tdvf)
    loadable = [module for module in found if module.loadable]
    if not any(SECURE_BOOT_MARK in module.body for module in loadable):
        raise FirmwareRejected(
            "firmware is built without Secure Boot",
            expected="a module with the variable SecureBootEnable",
            got="none that a TD loads",
            rule="no-secure-boot",
            hint="use an OVMF built with SECURE_BOOT_ENABLE, such as Debian's ovmf-inteltdx",
        )
    if not any(LOADER_GUARD in module.body for module in loadable):
        raise FirmwareRejected(
            "firmware has no guard against unsigned kernels in a confidential VM",
            expected=f"a module that says {LOADER_GUARD.decode()!r}",
            got="none that a TD loads",
            rule="no-loader-guard",
            hint="use edk2-stable202511 or later",
        )
    for rule, (guid, name) in _FORBIDDEN.items():
        if any(module.guid == guid or module.name == name for module in loadable):
            raise FirmwareRejected(
                f"{name} is in a volume that a TD loads: it can switch Secure Boot off",
                expected="absent, or in the volume for plain VMs only",
                got=f"module {guid}",
                rule=rule,
                hint="use an OVMF for Intel TDX later than edk2-stable202511",
            )
    cfv = _cfv(tdvf)
    store = _checked_store(fd, cfv)
    digest = code_digest(fd)
    try:
        admitted = secure_boot.read(_data(fd, cfv))
    except FirmwareRejected:
        admitted = ()
    return Audit(
        sha256=hashlib.sha256(fd).hexdigest(),
        code_sha256=digest.hex(),
        model=Model.CONFIRMED if digest in KNOWN_MODELS else Model.UNCONFIRMED,
        secure_boot=True,
        loader_guard=True,
        modules=tuple(
            Placement(m.name, str(m.guid), _volume_name(m.volume), m.loadable)
            for m in found
            if m.guid in _NOTABLE
        ),
        store_size=store.end - store.start,
        store_variables=tuple(sorted(variable.name for variable in store.variables)),
        cfv_measured=cfv.measured,
        policy=tuple(value.hex() for value in admitted) or None,
    )


def bind(base: bytes, uki: bytes) -> bytes:
    """The firmware that starts exactly this UKI, and whose MR_TD says so; same size as `base`.

    Raises as `audit`, and PeFormatError.
    """
    return bind_digests(base, [authenticode.digest(uki)])


def bind_digests(base: bytes, digests: Sequence[bytes]) -> bytes:
    """Bind to Authenticode SHA-256 hashes (32 bytes each): sorted, each once, at least one.

    Raises as `audit`, and FirmwareRejected with rule `empty-policy`, `digest-size`,
    `cfv-not-measured` or `read-back`.
    """
    audit(base)
    cfv = _cfv(Tdvf.parse(base))
    bound = bytearray(base)
    bound[cfv.data_offset : cfv.data_end] = secure_boot.write(_data(base, cfv), digests)
    _set_attributes(bound, cfv, cfv.attributes | MR_EXTEND)
    result = bytes(bound)
    # The store fails open, so the output is read back before anyone can boot it.
    audit(result)
    if policy(result) != tuple(sorted(set(digests))):
        raise FirmwareRejected(
            "bound firmware does not read back as the policy that was written",
            expected=" ".join(sorted(digest.hex() for digest in set(digests))),
            rule="read-back",
            hint="this is a defect of the writer: report it, do not use the output",
        )
    return result


def write_policy(store: bytes, digests: Sequence[bytes]) -> bytes:
    """The policy of `bind_digests` in a bare variable store image (OVMF_VARS*.fd).

    Nothing measures such a file: it is for virtual machines with separate CODE and VARS flash.
    """
    written = secure_boot.write(store, digests)
    secure_boot.read(written)
    return written


def policy(fd: bytes) -> tuple[bytes, ...]:
    """The Authenticode SHA-256 hashes that a bound firmware admits, sorted.

    Raises FirmwareRejected with rule `cfv-not-measured`, `malformed-store` or `not-bound`.
    """
    cfv = _cfv(Tdvf.parse(fd))
    _checked_store(fd, cfv)
    admitted = secure_boot.read(_data(fd, cfv))
    if not cfv.measured:
        raise FirmwareRejected(
            "MR_TD does not cover the variable store of this firmware",
            expected="MR_EXTEND on the CFV section",
            got=f"attributes {cfv.attributes:#x}",
            rule="cfv-not-measured",
            hint="bind the firmware to the image first",
        )
    return admitted


def check_bound(fd: bytes, uki: bytes | Pe) -> Audit:
    """Audit a firmware and refuse it unless it is bound to exactly this UKI.

    Raises as `audit` and `policy`, FirmwareRejected with rule `other-image`, and PeFormatError.
    """
    result = audit(fd)
    admitted = policy(fd)
    wanted = authenticode.digest(uki)
    if admitted != (wanted,):
        raise FirmwareRejected(
            "firmware is bound to something other than this image",
            expected=wanted.hex(),
            got=" ".join(digest.hex() for digest in admitted),
            rule="other-image",
            hint="use the firmware and the image of one build",
        )
    return result


def code_digest(fd: bytes) -> bytes:
    """SHA-256 of a firmware without its configuration: base and bound firmware give the same.

    The content of CFV sections counts as zero and their MR_EXTEND attribute as not set.
    """
    code = bytearray(fd)
    for section in Tdvf.parse(fd).of_type(SectionType.CFV):
        code[section.data_offset : section.data_end] = bytes(section.raw_size)
        _set_attributes(code, section, section.attributes & ~MR_EXTEND)
    return hashlib.sha256(code).digest()


def _set_attributes(fd: bytearray, section: Section, attributes: int) -> None:
    struct.pack_into("<I", fd, section.entry_offset + ATTRIBUTES_AT, attributes)


def _data(fd: bytes, section: Section) -> bytes:
    return fd[section.data_offset : section.data_end]


def _modules(fd: bytes, tdvf: Tdvf) -> tuple[volume.Module, ...]:
    code = tdvf.of_type(SectionType.BFV)
    if not code or not all(section.measured for section in code):
        raise FirmwareRejected(
            "MR_TD does not cover the code of this firmware",
            expected="MR_EXTEND on every BFV section",
            got=f"{sum(s.measured for s in code)} of {len(code)} sections",
            rule="bfv-not-measured",
        )
    return tuple(module for section in code for module in volume.modules(_data(fd, section)))


def _cfv(tdvf: Tdvf) -> Section:
    sections = tdvf.of_type(SectionType.CFV)
    if not sections:
        raise FirmwareRejected(
            "firmware has no configuration volume that could hold a policy",
            expected="one CFV section",
            got="none",
            rule="no-cfv",
        )
    if len(sections) > 1:
        raise FirmwareRejected(
            "firmware has several configuration volumes: which one counts is unknown",
            expected="one CFV section",
            got=str(len(sections)),
            rule="several-cfv",
        )
    return sections[0]


def _checked_store(fd: bytes, cfv: Section) -> varstore.VariableStore:
    try:
        store = varstore.parse(_data(fd, cfv))
    except FirmwareFormatError as error:
        raise FirmwareRejected(
            f"a TD would drop this variable store and boot with Secure Boot off: {error.message}",
            expected=error.expected,
            got=error.got,
            rule="malformed-store",
            hint="take the firmware from its package again",
        ) from error
    # The smallest policy; a larger one is checked when it is written.
    secure_boot.write(_data(fd, cfv), [bytes(32)])
    return store


def _volume_name(guid: UUID | None) -> str:
    return {volume.DXEFV: "DXEFV", volume.NCCFV: "NCCFV"}.get(guid, str(guid)) if guid else ""
