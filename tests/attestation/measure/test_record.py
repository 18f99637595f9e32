"""The measurement schema: round trip, canonical form, refusals."""

import hashlib
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from attestation.errors import (
    FileTooLarge,
    FileUnreadable,
    FirmwareRejected,
    MeasurementFormatError,
)
from attestation.measure import firmware, record, rtmr, tdvf
from attestation.measure.firmware import Model
from attestation.measure.record import Binding, BootProof, Measurement, Measurements
from attestation.measure.rtmr import BootPath
from attestation.measure.tdvf import HostProfile
from tests.attestation.measure import synthetic
from tests.attestation.measure.support import refused

ENTRY = Measurement(
    role="server",
    binding=Binding.MRTD_CFV,
    host_profile=HostProfile.UPSTREAM,
    boot_path=BootPath.KERNEL,
    mr_td=bytes(range(48)),
    rtmr1=b"\xab" * 48,
    rtmr2=b"\xcd" * 48,
    is_dev=False,
    boot_proof=BootProof.PASSED,
    model=Model.CONFIRMED,
    firmware_sha256=bytes(32),
    uki_sha256=b"\1" * 32,
)
ONE = Measurements((ENTRY,))


def document(**changes: Any) -> bytes:
    """A file with one entry, some fields changed; `...` removes a field."""
    entry = {**ENTRY.to_json(), **changes}
    entry = {name: value for name, value in entry.items() if value is not ...}
    return json.dumps({"schema": record.SCHEMA, "measurements": [entry]}).encode()


def test_canonical_bytes() -> None:
    text = ONE.dumps().decode("ascii")
    assert text.startswith('{\n  "measurements": [\n    {\n      "binding": "mrtd-cfv",\n')
    assert text.endswith('  "schema": "zipnet.measurements/1"\n}\n')
    assert '"rtmr0"' not in text
    assert '"is_dev": false' in text


digests = st.binary(min_size=48, max_size=48)
hashes = st.binary(min_size=32, max_size=32)
entries = st.builds(
    Measurement,
    role=st.from_regex(r"[a-z][a-z0-9-]{0,31}", fullmatch=True),
    binding=st.sampled_from(Binding),
    host_profile=st.sampled_from(HostProfile),
    boot_path=st.sampled_from(BootPath),
    mr_td=digests,
    rtmr1=digests,
    rtmr2=digests,
    is_dev=st.booleans(),
    boot_proof=st.sampled_from(BootProof),
    model=st.sampled_from(Model),
    firmware_sha256=hashes,
    uki_sha256=hashes,
    rtmr0=st.none() | digests,
)


@given(st.lists(entries, min_size=1, max_size=4, unique=True))
def test_round_trip(chosen: list[Measurement]) -> None:
    measurements = Measurements(tuple(chosen))
    again = Measurements.loads(measurements.dumps())
    assert again == measurements
    assert again.dumps() == measurements.dumps()


@pytest.mark.parametrize(
    ("data", "rule", "where"),
    [
        (b"", "record.json", "file"),
        (b"\xff", "record.json", "file"),
        (b"[" * 100_000, "record.json", "file"),
        (b"9" * 10_000, "record.json", "file"),
        (b'{"schema": 1, "schema": 2}', "record.duplicate-key", "object"),
        (b"[]", "record.fields", "file"),
        (b"{}", "record.fields", "file"),
        (ONE.dumps().replace(b"/1", b"/2"), "record.schema", "schema"),
        (b'{"schema": "zipnet.measurements/1", "measurements": {}}', "record.type", "measurements"),
        (
            b'{"schema": "zipnet.measurements/1", "measurements": []}',
            "record.empty",
            "measurements",
        ),
        (
            b'{"schema": "zipnet.measurements/1", "measurements": ["x"]}',
            "record.type",
            "measurements[0]",
        ),
        (document(extra=1), "record.fields", "measurements[0]"),
        (document(rtmr2=...), "record.fields", "measurements[0]"),
        (document(role=""), "record.value", "measurements[0]: role"),
        (document(role="Server"), "record.value", "measurements[0]: role"),
        (document(role="a" * 33), "record.value", "measurements[0]: role"),
        (document(role="server\n"), "record.value", "measurements[0]: role"),
        (document(role=7), "record.value", "measurements[0]: role"),
        (document(role="\ud800"), "record.value", "measurements[0]: role"),
        (document(binding="mrtd"), "record.value", "measurements[0].binding"),
        (document(model=None), "record.value", "measurements[0].model"),
        (document(host_profile=["upstream"]), "record.value", "measurements[0].host_profile"),
        (document(is_dev=0), "record.value", "measurements[0]: is_dev"),
        (document(mr_td="AB" * 48), "record.digest", "measurements[0].mr_td"),
        (document(mr_td="ab" * 47), "record.digest", "measurements[0].mr_td"),
        (document(mr_td="ab" * 48 + "\n"), "record.digest", "measurements[0].mr_td"),
        (document(mr_td=3), "record.digest", "measurements[0].mr_td"),
        (document(rtmr0=None), "record.digest", "measurements[0].rtmr0"),
        (document(uki_sha256="00" * 48), "record.digest", "measurements[0].uki_sha256"),
        (b" " * (record.MAX_BYTES + 1), "record.size", "file"),
    ],
)
def test_files_that_break_the_schema(data: bytes, rule: str, where: str) -> None:
    with refused(MeasurementFormatError, rule, where):
        Measurements.loads(data)


def test_repetition() -> None:
    with refused(MeasurementFormatError, "record.duplicate"):
        Measurements((ENTRY, replace(ENTRY, is_dev=True), ENTRY))


@pytest.mark.parametrize(
    "change",
    [
        {"mr_td": b"short"},
        {"rtmr1": None},
        {"rtmr0": "00" * 48},
        {"binding": "mrtd-cfv"},
        {"is_dev": 1},
    ],
)
def test_values_are_checked_on_construction(change: dict[str, Any]) -> None:
    with refused(MeasurementFormatError, "record.value"):
        replace(ENTRY, **change)


def test_rtmr0_is_optional() -> None:
    pinned = Measurements((replace(ENTRY, rtmr0=b"\2" * 48),))
    assert Measurements.loads(pinned.dumps()).entries[0].rtmr0 == b"\2" * 48


def test_files(tmp_path: Path) -> None:
    path = tmp_path / "measurements.json"
    with refused(FileUnreadable, "file.read"):
        Measurements.load(path)
    path.write_bytes(ONE.dumps())
    assert Measurements.load(path) == ONE
    path.write_bytes(bytes(record.MAX_BYTES + 1))
    with refused(FileTooLarge, "file.size"):
        Measurements.load(path)
    with refused(FileUnreadable, "file.kind"):
        Measurements.load(tmp_path)


def test_measure_image(base: bytes, uki: bytes) -> None:
    bound = firmware.bind(base, uki)
    measured = record.measure_image(
        "client", bound, uki, is_dev=True, boot_proof=BootProof.SKIPPED
    ).entries
    assert [(m.host_profile, m.boot_path) for m in measured] == [
        (profile, path) for profile in HostProfile for path in BootPath
    ]
    for entry in measured:
        assert entry.mr_td == tdvf.mr_td(bound, entry.host_profile.page_order)
        assert entry.rtmr1 == rtmr.rtmr1(uki, entry.boot_path)
        assert entry.rtmr2 == rtmr.rtmr2(uki)
        assert entry.firmware_sha256 == hashlib.sha256(bound).digest()
        assert entry.uki_sha256 == hashlib.sha256(uki).digest()
        assert (entry.role, entry.is_dev, entry.boot_proof, entry.model, entry.binding) == (
            "client",
            True,
            BootProof.SKIPPED,
            Model.UNCONFIRMED,
            Binding.MRTD_CFV,
        )


def test_measure_image_wants_the_right_firmware(base: bytes, uki: bytes) -> None:
    with refused(FirmwareRejected, "not-bound"):
        record.measure_image("server", base, uki, is_dev=False, boot_proof=BootProof.PASSED)
    bound = firmware.bind(base, synthetic.uki({".cmdline": b"other"}))
    with refused(FirmwareRejected, "other-image"):
        record.measure_image("server", bound, uki, is_dev=False, boot_proof=BootProof.PASSED)
