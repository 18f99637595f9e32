"""Bundles and the disk cache: what is believed of a file, and what a crash leaves."""

import json
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from attestation.collateral_cache import (
    FORMAT,
    Bundle,
    Ca,
    DiskCache,
    Platform,
    read_collateral,
)
from attestation.errors import (
    CollateralFormatError,
    CollateralRejected,
    FileTooLarge,
    FileUnreadable,
)
from attestation.files import write_whole
from tests.attestation.collateral.support import DAY, MONTH, PLATFORM, START, TEE, issued
from tests.attestation.measure.support import refused

GOOD = Bundle.of(issued())
CONTENT: dict[str, Any] = json.loads(GOOD.dumps())


def test_a_bundle() -> None:
    assert list(CONTENT) == ["format", "fmspc", "ca", "valid_from", "valid_until", "collateral"]
    assert (CONTENT["format"], CONTENT["fmspc"], CONTENT["ca"]) == (
        "tdx-collateral/1",
        "50806f000000",
        "platform",
    )
    assert CONTENT["valid_from"] == START.timestamp()
    assert CONTENT["valid_until"] == (START + MONTH).timestamp()
    assert Bundle.loads(GOOD.dumps()) == GOOD
    assert (GOOD.platform, GOOD.evaluation_number) == (PLATFORM, 17)
    assert [GOOD.is_valid(START + n * DAY) for n in (-1, 0, 29, 30)] == [False, True, True, False]


def test_the_bytes_that_were_signed_are_kept() -> None:
    odd = issued(tcb_info={"note": 'a \\u00e4 "x"'})
    assert Bundle.loads(Bundle.of(odd).dumps()).collateral == odd


def test_the_period_counts_every_part() -> None:
    dates = {"pck_crl": (START + DAY, START + 9 * DAY), "qe_identity": (START, START + 7 * DAY)}
    bundle = Bundle.of(issued(dates=dates))
    assert (bundle.valid_from, bundle.valid_until) == (START + DAY, START + 7 * DAY)
    mixed = Bundle.of(issued(qe_identity={"tcbEvaluationDataNumber": 16}))
    assert mixed.evaluation_number == 16


def test_either_form_of_collateral() -> None:
    assert read_collateral(GOOD.dumps()) == GOOD.collateral
    assert read_collateral(GOOD.collateral.dumps()) == GOOD.collateral
    with refused(CollateralFormatError, "bundle.format"):
        read_collateral(b'{"format": "tdx-collateral/2"}')
    with refused(CollateralFormatError, "fields"):
        read_collateral(b"{}")


@pytest.mark.parametrize(
    ("changes", "rule"),
    [
        ({"format": "tdx-collateral/2"}, "bundle.format"),
        ({"format": 1}, "bundle.format"),
        ({"format": None}, "bundle.format"),
        ({"collateral": None}, "bundle.collateral"),
        ({"collateral": []}, "bundle.collateral"),
        ({"collateral": {}}, "fields"),
        ({"more": 1}, "bundle.fields"),
        ({"ca": "processor"}, "bundle.header"),
        ({"fmspc": "00806f050000"}, "bundle.header"),
        ({"fmspc": "50806F000000"}, "bundle.header"),
        ({"valid_from": 0}, "bundle.header"),
        ({"valid_until": CONTENT["valid_until"] + 1}, "bundle.header"),
        ({"valid_until": float(CONTENT["valid_until"])}, "bundle.header"),
        ({"valid_until": str(CONTENT["valid_until"])}, "bundle.header"),
        ({"valid_until": [CONTENT["valid_until"]]}, "bundle.header"),
    ],
)
def test_bundles_that_are_none(changes: dict[str, Any], rule: str) -> None:
    with refused(CollateralFormatError, rule):
        Bundle.loads(json.dumps(CONTENT | changes).encode())


@pytest.mark.parametrize("name", ["fmspc", "ca", "valid_from", "valid_until"])
def test_no_member_may_be_missing(name: str) -> None:
    left = {key: value for key, value in CONTENT.items() if key != name}
    with refused(CollateralFormatError, "bundle.fields"):
        Bundle.loads(json.dumps(left).encode())


@pytest.mark.parametrize(
    ("raw", "rule"),
    [
        (b"", "json"),
        (b"[]", "json"),
        (GOOD.dumps()[:-9], "json"),
        (b"\xff", "text"),
        (b" " * (3 << 20), "size"),
        (GOOD.dumps().replace(b'"ca"', b'"ca": "platform", "ca"'), "duplicate-key"),
    ],
)
def test_files_that_are_no_bundle(raw: bytes, rule: str) -> None:
    with refused(CollateralFormatError, rule):
        Bundle.loads(raw)


def test_a_bundle_is_for_its_platform() -> None:
    with refused(CollateralRejected, "collateral.fmspc"):
        Bundle(Platform(bytes(6), Ca.PLATFORM), GOOD.collateral)
    with refused(CollateralRejected, "collateral.ca", "another PCK authority"):
        Bundle(Platform(PLATFORM.fmspc, Ca.PROCESSOR), GOOD.collateral)
    foreign = replace(GOOD.collateral, pck_crl_issuer_chain=TEE.pki.chain(["tcb-signer", "root"]))
    with refused(CollateralRejected, "collateral.ca", "not that of a PCK authority"):
        Bundle.of(foreign)


@pytest.mark.parametrize(
    ("knobs", "rule"),
    [
        ({"evaluation_number": 16}, "collateral.rollback"),
        ({"tcb_info": {"tcbEvaluationDataNumber": 16}}, "collateral.rollback"),
        ({"qe_identity": {"tcbEvaluationDataNumber": 16}}, "collateral.rollback"),
        *(
            ({"dates": {part: (START - DAY, START + MONTH)}}, "collateral.older")
            for part in ("tcb_info", "qe_identity", "root_ca_crl", "pck_crl")
        ),
    ],
)
def test_what_does_not_follow(knobs: dict[str, Any], rule: str) -> None:
    with refused(CollateralRejected, rule):
        Bundle.of(issued(**knobs)).check_follows(GOOD)


def test_what_follows() -> None:
    GOOD.check_follows(GOOD)
    Bundle.of(issued(START + DAY, evaluation_number=18)).check_follows(GOOD)


# --- on disk -----------------------------------------------------------------------------------


@pytest.fixture
def cache(tmp_path: Path) -> DiskCache:
    return DiskCache.open(tmp_path / "state" / "collateral")


def file_of(cache: DiskCache) -> Path:
    return cache.folder / "50806f000000-platform.json"


def test_store_and_load(cache: DiskCache) -> None:
    assert cache.folder.stat().st_mode & 0o777 == 0o700
    assert cache.load(PLATFORM) is None
    cache.store(GOOD)
    assert cache.load(PLATFORM) == GOOD
    assert cache.load(replace(PLATFORM, ca=Ca.PROCESSOR)) is None
    newer = Bundle.of(issued(START + DAY))
    cache.store(newer)
    assert DiskCache.open(cache.folder).load(PLATFORM) == newer
    assert [path.name for path in cache.folder.iterdir()] == [file_of(cache).name]


def test_a_file_of_another_platform(cache: DiskCache) -> None:
    cache.store(GOOD)
    other = Platform(bytes(6), Ca.PLATFORM)
    file_of(cache).rename(cache.folder / "000000000000-platform.json")
    with refused(CollateralRejected, "cache.platform"):
        cache.load(other)


def test_damaged_files(cache: DiskCache) -> None:
    cache.store(GOOD)
    whole = file_of(cache).read_bytes()
    for content in (whole[:100], b"", whole.replace(b"50806f", b"50806e")):
        file_of(cache).write_bytes(content)
        with pytest.raises(CollateralFormatError):
            cache.load(PLATFORM)
    file_of(cache).write_bytes(b" " * (3 << 20))
    with refused(FileTooLarge, "file.size"):
        cache.load(PLATFORM)
    aside = cache.set_aside(PLATFORM)
    assert cache.load(PLATFORM) is None
    assert aside.name == "50806f000000-platform.json.damaged"
    cache.store(GOOD)
    assert cache.set_aside(PLATFORM) == aside  # one a platform is kept
    with refused(FileUnreadable, "file.write"):
        cache.set_aside(PLATFORM)


def fail(*arguments: object) -> None:
    raise OSError(28, "No space left on device")


@pytest.mark.parametrize("step", ["fsync", "replace"])
def test_a_crash_before_the_file_is_whole(
    cache: DiskCache, step: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache.store(GOOD)
    with monkeypatch.context() as patch:
        patch.setattr(os, step, fail)
        with refused(FileUnreadable, "file.write", "No space left"):
            cache.store(Bundle.of(issued(START + DAY)))
    assert cache.load(PLATFORM) == GOOD
    assert [path.name for path in cache.folder.iterdir()] == [file_of(cache).name]


def test_what_a_killed_writer_leaves(cache: DiskCache, monkeypatch: pytest.MonkeyPatch) -> None:
    cache.store(GOOD)
    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", fail)
        patch.setattr(Path, "unlink", fail)  # nobody is left to clean up
        with refused(FileUnreadable, "file.write"):
            cache.store(Bundle.of(issued(START + DAY)))
    assert len(list(cache.folder.iterdir())) == 2
    again = DiskCache.open(cache.folder)
    assert again.load(PLATFORM) == GOOD
    assert [path.name for path in cache.folder.iterdir()] == [file_of(cache).name]


def test_order_of_writing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Contents reach the disk before the name does, and the name before the caller goes on."""
    steps: list[str] = []

    def noted(name: str) -> Callable[..., Any]:
        real = getattr(os, name)

        def call(*arguments: Any) -> Any:
            kind = ""
            if name == "fsync":
                kind = " folder" if os.path.isdir(f"/proc/self/fd/{arguments[0]}") else " file"  # noqa: PTH112
            steps.append(name + kind)
            return real(*arguments)

        return call

    for name in ("fsync", "replace"):
        monkeypatch.setattr(os, name, noted(name))
    write_whole(tmp_path / "file", b"data")
    assert steps == ["fsync file", "replace", "fsync folder"]
    assert (tmp_path / "file").read_bytes() == b"data"


def test_folders_that_are_refused(tmp_path: Path) -> None:
    shared = tmp_path / "shared"
    shared.mkdir()
    shared.chmod(0o777)
    with refused(FileUnreadable, "cache.folder"):
        DiskCache.open(shared)
    file = tmp_path / "file"
    file.write_bytes(b"")
    with refused(FileUnreadable, "file.write"):
        DiskCache.open(file)
    with refused(FileUnreadable, "file.write"):
        write_whole(tmp_path / "missing" / "file", b"")


def test_the_format_has_a_name() -> None:
    assert FORMAT == "tdx-collateral/1"
