"""Audit and bind on synthetic firmware."""

import hashlib
import json
import struct
from collections.abc import Callable
from dataclasses import asdict

import pytest

from attestation.errors import FirmwareRejected, PeFormatError
from attestation.measure import authenticode, firmware, policy, tdvf, varstore, volume
from attestation.measure.firmware import Model
from attestation.measure.tdvf import PageOrder
from tests.attestation.measure import synthetic
from tests.attestation.measure.support import patched, refused
from tests.attestation.measure.synthetic import Firmware, driver

UKI = synthetic.uki()
DIGEST = authenticode.digest(UKI)


def without_attribute(fd: bytes) -> bytes:
    at = synthetic.entry_offset(fd, synthetic.CFV_ENTRY) + tdvf.ATTRIBUTES_AT
    return patched(at, bytes(4))(fd)


def test_audit_describes_the_firmware(base: bytes) -> None:
    audit = firmware.audit(base)
    assert audit.sha256 == hashlib.sha256(base).hexdigest()
    assert (audit.model, audit.cfv_measured, audit.policy) == (Model.UNCONFIRMED, False, None)
    assert [(m.name, m.volume, m.loadable) for m in audit.modules] == [
        ("SecureBootConfigDxe", "DXEFV", True),
        ("UiApp", "NCCFV", False),
    ]
    assert json.loads(json.dumps(asdict(audit)))["store_variables"] == []


def test_bind_reads_back(base: bytes) -> None:
    bound = firmware.bind(base, UKI)
    assert len(bound) == len(base)
    assert firmware.policy(bound) == (DIGEST,)
    audit = firmware.check_bound(bound, UKI)
    assert audit.policy == (DIGEST.hex(),)
    assert audit.cfv_measured
    assert set(audit.store_variables) == {"PK", "KEK", "db", "dbx", "SecureBootEnable"}


def test_bind_is_deterministic_and_replaces_what_was_bound(base: bytes) -> None:
    bound = firmware.bind_digests(base, [DIGEST])
    assert firmware.bind(base, UKI) == bound
    other = firmware.bind_digests(base, [bytes(32), bytes(32)])
    assert firmware.bind(other, UKI) == bound
    assert firmware.bind_digests(base, [DIGEST, bytes(32)]) == (
        firmware.bind_digests(base, [bytes(32), DIGEST, DIGEST])
    )


def test_mr_td_names_the_image_only_through_the_attribute(base: bytes) -> None:
    one, other = (firmware.bind_digests(base, [bytes([n]) * 32]) for n in (1, 2))
    for order in PageOrder:
        values = {tdvf.mr_td(fd, order) for fd in (base, one, other)}
        assert len(values) == 3
        assert {tdvf.mr_td(without_attribute(fd), order) for fd in (one, other)} == {
            tdvf.mr_td(base, order)
        }


def test_bound_firmware_differs_in_the_hash_only(base: bytes) -> None:
    one, other = (firmware.bind_digests(base, [bytes([n]) * 32]) for n in (1, 2))
    different = [at for at in range(len(one)) if one[at] != other[at]]
    assert len(different) == 32
    assert different == list(range(different[0], different[0] + 32))


def test_code_digest_ignores_the_configuration(base: bytes) -> None:
    digest = firmware.code_digest(base)
    assert firmware.code_digest(firmware.bind(base, UKI)) == digest
    code = tdvf.Tdvf.parse(base).sections[0].data_offset
    assert firmware.code_digest(patched(code, b"x")(base)) != digest


def test_known_code_is_confirmed(base: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(firmware.KNOWN_MODELS, firmware.code_digest(base), "this one")
    assert firmware.audit(firmware.bind(base, UKI)).model is Model.CONFIRMED


GUARD = driver(text=firmware.LOADER_GUARD)
SECURE = driver(text=firmware.SECURE_BOOT_MARK)
BOTH = (GUARD, SECURE)
ONE_PAGE = synthetic.PAGE


def sections(*changes: tuple[int, int, object]) -> Firmware:
    """Firmware with single metadata fields (entry, field, value) changed."""
    image = Firmware()
    entries = [list(entry) for entry in image.default_sections()]
    for entry, index, value in changes:
        assert isinstance(value, int)
        entries[entry][index] = value
    image.sections = [(e[0], e[1], e[2], e[3], e[4], e[5]) for e in entries]
    return image


def two_cfvs() -> Firmware:
    image = Firmware()
    first, cfv, *rest = image.default_sections()
    half = cfv[1] // 2
    image.sections = [
        first,
        (0, half, cfv[2], half, 1, 0),
        (half, half, cfv[2] + half, half, 1, 0),
        *rest,
    ]
    return image


def no_cfv() -> Firmware:
    image = Firmware()
    image.sections = [entry for entry in image.default_sections() if entry[4] != 1]
    return image


def flawed(change: Callable[[bytes], bytes]) -> Firmware:
    return Firmware(store=change(synthetic.store()))


@pytest.mark.parametrize(
    ("image", "rule"),
    [
        (Firmware(loadable=(GUARD,)), "no-secure-boot"),
        (Firmware(loadable=(GUARD,), spare=(SECURE,)), "no-secure-boot"),
        (Firmware(loadable=(SECURE,)), "no-loader-guard"),
        (Firmware(loadable=(SECURE,), spare=(GUARD,)), "no-loader-guard"),
        (Firmware(loadable=(*BOTH, driver(synthetic.UIAPP))), "loadable-uiapp"),
        (Firmware(loadable=(*BOTH, driver(name="UiApp"))), "loadable-uiapp"),
        (Firmware(loadable=(*BOTH, driver(synthetic.SHELL))), "loadable-shell"),
        (Firmware(loadable=(*BOTH, driver(name="Shell"))), "loadable-shell"),
        (Firmware(inner=synthetic.section(0x01, b"?")), "opaque-section"),
        (sections((0, 5, 0)), "bfv-not-measured"),
        (sections((0, 5, 3)), "bfv-not-measured"),
        (no_cfv(), "no-cfv"),
        (two_cfvs(), "several-cfv"),
        (flawed(lambda s: b"\xff" * len(s)), "malformed-store"),
        (flawed(patched(50, b"\0\0")), "malformed-store"),
        (flawed(patched(0x48 + 20, b"\0")), "malformed-store"),
        (Firmware(store=synthetic.store(size=ONE_PAGE) + b"\xff" * ONE_PAGE), "malformed-store"),
    ],
)
def test_what_the_audit_refuses(image: Firmware, rule: str) -> None:
    fd = image.build()
    with refused(FirmwareRejected, rule):
        firmware.audit(fd)
    with refused(FirmwareRejected, rule):
        firmware.bind(fd, UKI)


def test_a_firmware_without_code_sections() -> None:
    image = Firmware()
    image.sections = [entry for entry in image.default_sections() if entry[4] != 0]
    with refused(FirmwareRejected, "bfv-not-measured"):
        firmware.audit(image.build())


def test_a_mark_in_a_packed_file_of_volumes_does_not_count() -> None:
    """The file that holds both volumes, unpacked, also holds the spare volume's bytes."""
    inner = synthetic.sections(
        synthetic.section(0x17, synthetic.fv((SECURE,), name=volume.DXEFV)),
        synthetic.section(0x17, synthetic.fv((GUARD,), name=volume.NCCFV)),
    )
    with refused(FirmwareRejected, "no-loader-guard"):
        firmware.audit(Firmware(inner=inner).build())


@pytest.mark.parametrize("room", [0, 500 - 4])
def test_store_too_small(room: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Flash blocks are smaller here, so that a store can be."""
    monkeypatch.setattr(varstore, "_BLOCK", 4)
    with refused(FirmwareRejected, "store-too-small"):
        firmware.audit(Firmware(store=synthetic.store(area=room)).build())


def test_store_too_small_for_many_digests(base: bytes) -> None:
    with refused(FirmwareRejected, "store-too-small"):
        firmware.bind_digests(base, [struct.pack("<32B", *[n] * 32) for n in range(120)])


def test_fail_open_store_is_never_emitted(base: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    """Case s1 of the boot matrix: if the writer had a defect, its output would not leave bind()."""
    write = policy.write

    def broken(store: bytes, digests: list[bytes]) -> bytes:
        return patched(50, b"\0\0")(write(store, digests))

    monkeypatch.setattr(policy, "write", broken)
    with refused(FirmwareRejected, "malformed-store"):
        firmware.bind(base, UKI)


def test_output_that_reads_back_differently(base: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    write = policy.write
    monkeypatch.setattr(policy, "write", lambda store, _: write(store, [bytes(32)]))
    with refused(FirmwareRejected, "read-back"):
        firmware.bind(base, UKI)


def test_a_cfv_that_the_guest_adds_cannot_be_measured() -> None:
    fd = sections((synthetic.CFV_ENTRY, 5, tdvf.PAGE_AUG)).build()
    firmware.audit(fd)
    with refused(FirmwareRejected, "cfv-not-measured"):
        firmware.bind(fd, UKI)


def test_bind_wants_an_image(base: bytes) -> None:
    with refused(PeFormatError, "pe.dos-header"):
        firmware.bind(base, b"no image")
    with refused(FirmwareRejected, "empty-policy"):
        firmware.bind_digests(base, [])


def test_check_bound_refuses_everything_else(base: bytes) -> None:
    bound = firmware.bind(base, UKI)
    with refused(FirmwareRejected, "not-bound"):
        firmware.check_bound(base, UKI)
    with refused(FirmwareRejected, "cfv-not-measured"):
        firmware.check_bound(without_attribute(bound), UKI)
    with refused(FirmwareRejected, "other-image"):
        firmware.check_bound(bound, synthetic.uki({".cmdline": b"evil=1"}))
    with refused(FirmwareRejected, "other-image"):
        firmware.check_bound(firmware.bind_digests(base, [DIGEST, bytes(32)]), UKI)
    with refused(FirmwareRejected, "malformed-store"):
        firmware.check_bound(patched(50, b"\0\0")(bound), UKI)
