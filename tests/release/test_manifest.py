"""The manifest: round trip, and everything that is not exactly one."""

import json
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from attestation.measure.record import BootProof, Measurements
from release.build.settings import Role
from release.errors import ReleaseFormatError, ReleaseRejected
from release.manifest import MAX_BYTES, SCHEMA, File, Manifest, Output, Previous, RoleEntry
from release.verify_files import Opened
from tests.release import small
from tests.release.small import altered, refused

Change = Callable[[dict[str, Any]], object]


def test_round_trip(released: Opened) -> None:
    raw = released.signed.payload
    manifest = Manifest.loads(raw)
    assert manifest == released.manifest
    assert manifest.dumps() == raw
    assert altered(raw, lambda _: None) == raw
    document = json.loads(raw)
    assert document["schema"] == SCHEMA
    assert document["distribution"] == {"name": "debian", "release": "trixie"}
    assert raw.endswith(b"\n")
    raw.decode("ascii")


def test_the_release_before(released: Opened) -> None:
    manifest = replace(released.manifest, previous=Previous("1.2.2", "a" * 64))
    assert Manifest.loads(manifest.dumps()) == manifest


def test_roles(released: Opened) -> None:
    assert released.manifest.role("server").image.name == "zipnet-server.efi"
    assert released.manifest.role("server").firmware.name == "zipnet-server.fd"
    with refused(ReleaseRejected, "release.role", "king"):
        released.manifest.role("king")


def _set(name: str, value: object) -> Change:
    def change(document: dict[str, Any]) -> None:
        *path, last = name.split("/")
        inside: Any = document
        for part in path:
            inside = inside[int(part) if part.isdecimal() else part]
        inside[int(last) if last.isdecimal() else last] = value

    return change


def _without(name: str) -> Change:
    return lambda document: document.pop(name)


def _twice(name: str) -> Change:
    return lambda document: document[name].append(document[name][-1])


@pytest.mark.parametrize(
    ("change", "rule", "word"),
    [
        (_set("schema", "zipnet.release/2"), "schema", "zipnet.release/1"),
        (_set("schema", 1), "schema", "zipnet.release/1"),
        (_without("schema"), "schema", "zipnet.release/1"),
        (_without("commit"), "fields", "commit"),
        (_set("more", 1), "fields", "more"),
        (_set("locks/more", {}), "fields", "more"),
        (_set("files/0/more", 1), "fields", "more"),
        (_set("roles/client/more", 1), "fields", "roles.client"),
        (_set("version", "1.2"), "value", "version"),
        (_set("version", 1), "value", "version"),
        (_set("commit", "f" * 39), "value", "commit"),
        (_set("source_date_epoch", True), "value", "source_date_epoch"),
        (_set("source_date_epoch", 1 << 32), "value", "source_date_epoch"),
        (_set("source_date_epoch", 1.0), "value", "source_date_epoch"),
        (_set("compress_level", 20), "value", "compress_level"),
        (_set("retirement_days", -1), "value", "retirement_days"),
        (_set("distribution", []), "fields", "distribution"),
        (_set("distribution/name", "De bian"), "value", "distribution"),
        (_set("locks/images/file", "images/locks/a.lock"), "value", "locks.file"),
        (_set("locks/images/sha256", "F" * 64), "value", "debian-trixie.lock"),
        (_set("tools", {}), "value", "tools"),
        (_set("tools", []), "value", "tools"),
        (_set("tools/zstd", ""), "value", "zstd"),
        (_set("roles", {}), "value", "roles"),
        (_set("roles/client", []), "fields", "roles.client"),
        (_set("roles/client/outputs/0/name", "../x"), "value", "outputs.name"),
        (_set("roles/client/outputs/0/size", 0), "value", "measurements.json"),
        (_set("roles/client/outputs", []), "output-missing", "zipnet-client.efi"),
        (_set("roles/client/measurements", []), "measurement", "measurements"),
        (_set("roles/client/measurements", {}), "value", "measurements"),
        (_set("roles/client/measurements/0/mr_td", "0"), "measurement", "mr_td"),
        (_set("roles/client/measurements/0/is_dev", True), "is-dev", "client"),
        (_set("roles/client/measurements/0/boot_proof", "skipped"), "boot-proof", "client"),
        (_set("roles/client/measurements/0/binding", "mrtd+rtmr"), "binding", "client"),
        (_set("roles/client/measurements/0/role", "server"), "role", "client"),
        (_set("roles/client/measurements/0/uki_sha256", "0" * 64), "other-image", ".efi"),
        (_set("roles/client/measurements/0/firmware_sha256", "0" * 64), "other-image", ".fd"),
        (_set("files", {}), "value", "files"),
        (_set("files/0/path", "a/b/c"), "value", "files.path"),
        (_set("files/0/path", "/etc/passwd"), "value", "files.path"),
        (_set("files/0/path", "../notes.md"), "value", "files.path"),
        (_set("files/0/path", "a\\b"), "value", "files.path"),
        (_set("files/0/path", ".hidden"), "value", "files.path"),
        (_set("files/0/path", "manifest.json"), "value", "files.path"),
        (_set("files/0/path", "\ud800"), "value", "files.path"),
        (_set("files/0/size", 1 << 30), "value", "size"),
        (_set("files/0/sha256", "0" * 64), "stale", "aggregator/measurements.json"),
        (_set("files", [{"path": "x", "size": 1, "sha256": "0" * 64}] * 300), "value", "files"),
        (_twice("files"), "duplicate", "twice"),
        (lambda document: document["files"].reverse(), "order", "files"),
        (lambda document: document["roles"]["client"]["outputs"].reverse(), "order", "client"),
        (_set("previous", {"version": "1.0.0"}), "fields", "previous"),
        (_set("previous", {"version": "1.2.3", "manifest_sha256": "0" * 64}), "value", "previous"),
        (_set("previous", "1.0.0"), "fields", "previous"),
    ],
)
def test_refused(released: Opened, change: Change, rule: str, word: str) -> None:
    with refused(ReleaseFormatError, f"manifest.{rule}", word):
        Manifest.loads(altered(released.signed.payload, change))


@pytest.mark.parametrize(
    ("raw", "rule"),
    [
        (b"", "json"),
        (b"[]", "fields"),
        (b"{}", "schema"),
        (b"\xff", "json"),
        (b"[" * 100_000, "json"),
        (b" " * (MAX_BYTES + 1), "size"),
        (b'{"a": 1, "a": 2}', "duplicate-key"),
    ],
)
def test_other_bytes(raw: bytes, rule: str) -> None:
    with refused(ReleaseFormatError, f"manifest.{rule}"):
        Manifest.loads(raw)


def test_a_role_twice(released: Opened) -> None:
    raw = released.signed.payload
    again = raw.replace(b'    "server": {', b'    "client": {')
    with refused(ReleaseFormatError, "manifest.duplicate-key", "client"):
        Manifest.loads(again)


def test_one_text_only(released: Opened) -> None:
    raw = released.signed.payload
    for other in (raw + b"\n", raw[:-1], raw.replace(b": ", b":", 1), json.dumps(json.loads(raw))):
        given = other.encode() if isinstance(other, str) else other
        with refused(ReleaseFormatError, "manifest.canonical"):
            Manifest.loads(given)


def test_values_are_checked_without_a_file() -> None:
    entry = small.measurements(Role.CLIENT)
    unproved = small.measurements(Role.CLIENT, proof=BootProof.SKIPPED)
    outputs = tuple(
        Output(name, 1, digest.hex())
        for name, digest in (
            ("zipnet-client.efi", entry.entries[0].uki_sha256),
            ("zipnet-client.fd", entry.entries[0].firmware_sha256),
        )
    )
    RoleEntry("client", outputs, entry)
    with refused(ReleaseFormatError, "manifest.boot-proof"):
        RoleEntry("client", outputs, unproved)
    with refused(ReleaseFormatError, "manifest.role"):
        RoleEntry("server", outputs, Measurements(entry.entries[:1]))
    with refused(ReleaseFormatError, "manifest.value"):
        File("a", 1, "A" * 64)


@given(st.data())
def test_a_changed_byte_is_read_or_refused(released: Opened, data: st.DataObject) -> None:
    raw = bytearray(released.signed.payload)
    at = data.draw(st.integers(0, len(raw) - 1))
    raw[at] ^= data.draw(st.integers(1, 255))
    try:
        manifest = Manifest.loads(bytes(raw))
    except ReleaseFormatError as error:
        error.diagnostics().encode()
        return
    assert manifest.dumps() == bytes(raw)
