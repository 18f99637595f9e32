"""Pinned keys, and private ones: where they come from, and who may read them."""

import json
import os
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from attestation.errors import FileUnreadable
from release import keys
from release.errors import ReleaseFormatError, ReleaseRejected
from tests.release.small import KEY, NOW, SIGNER, refused

ONE = {"name": "one", "key": "1" * 64, "demo": False, "not_before": "2026-01-01T00:00:00Z"}
TWO = {**ONE, "name": "two", "key": "2" * 64, "not_after": "2026-06-01T00:00:00Z"}


def written(path: Path, *entries: dict[str, Any]) -> Path:
    path.write_text(json.dumps(entries))
    return path


def test_the_pinned_keys_of_this_checkout() -> None:
    assert keys.pinned()


def test_pinned(tmp_path: Path) -> None:
    path = written(tmp_path / "keys.json", ONE, TWO)
    one, two = keys.pinned(path)
    assert (one.name, one.hex, one.demo, one.not_after) == ("one", "1" * 64, False, None)
    assert two.not_after == datetime(2026, 6, 1, tzinfo=UTC)
    assert keys.trusted("pinned", NOW, path) == (one, two)
    # Times of use are closed at their beginning and open at their end.
    assert keys.trusted("pinned", datetime(2026, 6, 1, tzinfo=UTC), path) == (one,)
    assert keys.trusted("pinned", datetime(2026, 1, 1, tzinfo=UTC), path) == (one, two)


def test_no_key_in_use(tmp_path: Path) -> None:
    path = written(tmp_path / "keys.json", TWO)
    for when in (datetime(2025, 1, 1, tzinfo=UTC), datetime(2027, 1, 1, tzinfo=UTC)):
        with refused(ReleaseRejected, "key.window", "2026-01-01T00:00:00Z"):
            keys.trusted("pinned", when, path)


def test_a_key_by_its_digits(tmp_path: Path) -> None:
    path = written(tmp_path / "keys.json", ONE, {**TWO, "demo": True})
    (given,) = keys.trusted("3" * 64, NOW, path)
    assert (given.name, given.public, given.demo) == ("given", b"\x33" * 32, False)
    # A demonstration key stays one, whoever names it, whenever.
    (demo,) = keys.trusted("2" * 64, NOW + timedelta(days=999), path)
    assert demo.demo


@pytest.mark.parametrize("text", ["", "3" * 63, "A" * 64, "release/1.0.0/key", "3" * 64 + "\n"])
def test_no_key(text: str) -> None:
    with refused(ReleaseFormatError, "key.format"):
        keys.trusted(text, NOW)


@pytest.mark.parametrize(
    ("entries", "rule"),
    [
        ([], "keys.value"),
        ({}, "keys.value"),
        ([1], "keys.fields"),
        ([{**ONE, "more": 1}], "keys.fields"),
        ([{"name": "one"}], "keys.fields"),
        ([{**ONE, "name": "One"}], "keys.value"),
        ([{**ONE, "key": "1"}], "keys.value"),
        ([{**ONE, "key": 1}], "keys.value"),
        ([{**ONE, "demo": 0}], "keys.value"),
        ([{**ONE, "not_before": None}], "keys.value"),
        ([{**ONE, "not_before": "2026-01-01"}], "keys.value"),
        ([{**ONE, "not_before": 1}], "keys.value"),
        ([{**TWO, "not_after": "2026-01-01T00:00:00Z"}], "keys.value"),
        ([ONE, ONE], "keys.duplicate"),
        ([ONE, {**TWO, "key": "1" * 64}], "keys.duplicate"),
    ],
)
def test_a_malformed_list(entries: object, rule: str) -> None:
    with refused(ReleaseFormatError, rule):
        keys.loads(json.dumps(entries).encode())


def test_generate(tmp_path: Path) -> None:
    path = tmp_path / "release.key"
    before = os.umask(0)
    try:
        made = keys.generate(path)
    finally:
        os.umask(before)
    assert path.stat().st_mode & 0o777 == 0o600
    assert keys.private(path).private_bytes_raw() == made.private_bytes_raw()
    with refused(FileUnreadable, "file.write"):
        keys.generate(path)
    assert keys.private(path).private_bytes_raw() == made.private_bytes_raw()


def test_a_key_that_others_may_read(tmp_path: Path) -> None:
    path = tmp_path / "release.key"
    path.write_text(KEY.private_bytes_raw().hex())
    for mode in (0o640, 0o604, 0o620):
        path.chmod(mode)
        with refused(ReleaseRejected, "key.mode", "chmod 600"):
            keys.private(path)
    path.chmod(0o400)
    assert keys.private(path).public_key().public_bytes_raw() == SIGNER.public


def test_a_key_from_the_environment() -> None:
    seed = KEY.private_bytes_raw().hex()
    found = keys.private(None, {keys.VARIABLE: seed + "\n"})
    assert found.public_key().public_bytes_raw() == SIGNER.public
    with refused(ReleaseFormatError, "key.format", "keygen"):
        keys.private(None, {})


@pytest.mark.parametrize("text", ["", "no key", "0" * 63, "-----BEGIN PRIVATE KEY-----\n"])
def test_what_holds_no_key(tmp_path: Path, text: str) -> None:
    path = tmp_path / "release.key"
    path.write_text(text)
    path.chmod(0o600)
    with refused(ReleaseFormatError, "key.format") as _:
        keys.private(path)
    with pytest.raises(ReleaseFormatError) as caught:
        keys.private(None, {keys.VARIABLE: "secret words"})
    assert "secret words" not in caught.value.diagnostics()


def test_no_secret_shows() -> None:
    assert KEY.private_bytes_raw().hex() not in repr(SIGNER)
