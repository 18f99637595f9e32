"""Exports, each read back by its consumer's own rules."""

import base64
import json
import re
from pathlib import Path
from typing import Any

import pytest

from attestation.measure.record import Measurement
from attestation.measure.rtmr import BootPath
from attestation.measure.tdvf import HostProfile
from release import exports
from release.manifest import RoleEntry
from release.verify_files import Opened
from tests.release import textproto


@pytest.fixture
def files(released: Opened) -> dict[str, bytes]:
    return exports.files(released.manifest)


def _of(entry: RoleEntry, profile: HostProfile, path: BootPath) -> Measurement:
    (one,) = (
        each
        for each in entry.measurements.entries
        if (each.host_profile, each.boot_path) == (profile, path)
    )
    return one


def test_a_release_has_them_all(released: Opened, files: dict[str, bytes]) -> None:
    published = {file.path for file in released.manifest.files}
    assert {f"exports/{name}" for name in files} <= published
    for entry in released.manifest.roles:
        assert f"{entry.role}/mrtd.hex" in published
    for name, data in files.items():
        assert (released.folder / "exports" / name).read_bytes() == data


def test_written_once(released: Opened, tmp_path: Path) -> None:
    exports.write(released.manifest, tmp_path)
    with pytest.raises(FileExistsError):
        exports.write(released.manifest, tmp_path)


def test_go_tdx_guest(released: Opened, files: dict[str, bytes]) -> None:
    for entry in released.manifest.roles:
        for profile in HostProfile:
            one = _of(entry, profile, BootPath.KERNEL)
            text = files[f"policy-{entry.role}-{profile}.textproto"].decode("ascii")
            config = textproto.parse(text)
            # validate.go: `rtmrs` exactly 4 times, each empty (not checked) or 48 bytes.
            assert config["policy"]["td_quote_body_policy"] == {
                "any_mr_td": [one.mr_td],
                "rtmrs": [b"", one.rtmr1, one.rtmr2, bytes(48)],
                "enable_td_debug_check": True,
            }
            # check.go: check_crl without get_collateral is refused.
            assert config["root_of_trust"] == {"check_crl": True, "get_collateral": True}


@pytest.mark.parametrize(
    "text",
    [
        "polic { }",
        "policy { td_quote_body_policy { mr_td: 1 } }",
        'policy { td_quote_body_policy { mr_td: "" mr_td: "" } }',
        "policy {",
        "policy }",
    ],
)
def test_the_grammar_refuses(text: str) -> None:
    with pytest.raises(ValueError, match=r"unknown|token|string|twice|no "):
        textproto.parse(text)


def _rvps(raw: bytes) -> dict[str, Any]:
    """As rvps/src/lib.rs and its `sample` extractor read a message."""
    message = json.loads(raw)
    assert all(isinstance(message[name], str) for name in ("version", "type", "payload"))
    assert (message["version"], message["type"]) == ("0.1.0", "sample")
    values = json.loads(base64.b64decode(message["payload"], validate=True))
    assert isinstance(values, dict)
    return values


def test_trustee(released: Opened, files: dict[str, bytes]) -> None:
    for entry in released.manifest.roles:
        values = _rvps(files[f"rvps-{entry.role}.json"])
        assert set(values) == {"mr_td", "rtmr_1", "rtmr_2"}
        # As the default policy asks: `quote.body.NAME in query_reference_value("NAME")`.
        for one in entry.measurements.entries:
            assert one.mr_td.hex() in values["mr_td"]
            assert one.rtmr1.hex() in values["rtmr_1"]
            assert one.rtmr2.hex() in values["rtmr_2"]
        images = {one.mr_td.hex() for one in entry.measurements.entries}
        assert set(values["mr_td"]) == images


def _accepts(raw: bytes, registers: dict[int, bytes]) -> list[str]:
    """The records of a measurements file that fit, as attested-tls-proxy reads it."""
    found = []
    for record in json.loads(raw):
        assert record.keys() <= {"measurement_id", "attestation_type", "measurements"}
        # A record without `measurements` would accept everything.
        assert record["attestation_type"] == "dcap-tdx"
        assert record["measurements"]
        expected = {}
        for index, entry in record["measurements"].items():
            assert re.fullmatch("[0-4]", index)
            assert ("expected" in entry) != ("expected_any" in entry)
            values = [bytes.fromhex(text) for text in entry["expected_any"]]
            assert values
            assert all(len(value) == 48 for value in values)
            expected[int(index)] = values
        if all(registers[index] in values for index, values in expected.items()):
            found.append(record["measurement_id"])
    return found


def test_attested_tls(released: Opened, files: dict[str, bytes]) -> None:
    for entry in released.manifest.roles:
        raw = files[f"measurements-{entry.role}.attested-tls.json"]
        for one in entry.measurements.entries:
            quote = {0: one.mr_td, 1: b"h" * 48, 2: one.rtmr1, 3: one.rtmr2, 4: bytes(48)}
            name = f"zipnet-{entry.role}-1.2.3-{one.host_profile}-{one.boot_path}"
            assert _accepts(raw, quote) == [name]
            for register in (0, 2, 3, 4):
                assert _accepts(raw, quote | {register: b"x" * 48}) == []


def test_no_file_is_of_two_roles(released: Opened, files: dict[str, bytes]) -> None:
    for entry in released.manifest.roles:
        others = [
            one.mr_td.hex()
            for other in released.manifest.roles
            if other is not entry
            for one in other.measurements.entries
        ]
        for name, data in files.items():
            if f"-{entry.role}" in name:
                payload = json.loads(data).get("payload", "") if "rvps" in name else ""
                text = data.decode() + base64.b64decode(payload).decode()
                assert not any(value in text for value in others)
