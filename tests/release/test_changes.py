"""What moved between two releases, and why."""

import json
from dataclasses import replace
from typing import Any

import pytest

from attestation.measure.record import Measurements
from release.build.settings import Role
from release.changes import ALL, Cause, Kind, Register, RoleChange, Status, between
from release.errors import BuildRefused
from release.manifest import Manifest
from release.verify_files import Opened
from tests.release import small
from tests.release.build.support import deb
from tests.release.small import TOOLS, WHEEL

NEW = "client"


def documents(**changes: Any) -> dict[str, object]:
    return {str(role): json.loads(small.packages(role, **changes).dumps()) for role in Role}


def moved(manifest: Manifest, **registers: Any) -> Manifest:
    """The manifest with other registers for the client, and nothing else changed."""
    roles = [
        replace(
            entry,
            measurements=Measurements(
                tuple(replace(one, **registers) for one in entry.measurements.entries)
            ),
        )
        if entry.role == NEW
        else entry
        for entry in manifest.roles
    ]
    return replace(manifest, roles=tuple(roles))


def compare(
    new: Manifest, old: Manifest, before: dict[str, object] | None = None, **changes: Any
) -> RoleChange:
    """The change of the client; `changes` are to the packages that it had before."""
    found = between(new, old, documents(), documents(**changes) if before is None else before)
    assert [change.role for change in found] == sorted({*map(str, Role)})
    return next(change for change in found if change.role == NEW)


@pytest.fixture
def everything(released: Opened) -> Manifest:
    """The release before, of which every register of the client was another."""
    return moved(released.manifest, mr_td=b"m" * 48, rtmr1=b"1" * 48, rtmr2=b"2" * 48)


def test_nothing(released: Opened) -> None:
    found = between(released.manifest, released.manifest, documents(), documents())
    assert {change.status for change in found} == {Status.SAME}
    assert not any(change.moved or change.causes for change in found)


def test_roles_come_and_go(released: Opened) -> None:
    manifest = released.manifest
    fewer = replace(manifest, roles=manifest.roles[1:])
    role = manifest.roles[0].role
    added = {c.role: c.status for c in between(manifest, fewer, documents(), documents())}
    removed = {c.role: c.status for c in between(fewer, manifest, documents(), documents())}
    assert (added.pop(role), removed.pop(role)) == (Status.ADDED, Status.REMOVED)
    assert {*added.values(), *removed.values()} == {Status.SAME}


def test_no_known_reason_is_said(released: Opened, everything: Manifest) -> None:
    found = compare(released.manifest, everything)
    assert (found.moved, found.causes) == (tuple(Register), ())
    assert found.unexplained == tuple(Register)


def test_another_commit_is_only_a_possibility(released: Opened, everything: Manifest) -> None:
    found = compare(released.manifest, replace(everything, commit="0" * 40))
    (cause,) = found.causes
    assert (cause.kind, cause.sure) == (Kind.SOURCE, False)
    assert (cause.before, cause.after) == ("0" * 40, released.manifest.commit)
    assert found.unexplained == tuple(Register)


@pytest.mark.parametrize(
    ("change", "kind", "before", "after"),
    [
        ({"version": "1.2.2"}, Kind.VERSION, "1.2.2", "1.2.3"),
        ({"source_date_epoch": 7}, Kind.EPOCH, "7", "1735689600"),
        ({"compress_level": 3}, Kind.COMPRESSION, "3", "19"),
        ({"distribution": ("ubuntu", "noble")}, Kind.DISTRIBUTION, "ubuntu-noble", "debian-trixie"),
    ],
)
def test_inputs_of_the_manifest(
    released: Opened,
    everything: Manifest,
    change: dict[str, Any],
    kind: Kind,
    before: str,
    after: str,
) -> None:
    found = compare(released.manifest, replace(everything, **change))
    assert found.causes == (Cause(kind, str(kind), before, after),)
    assert found.unexplained == ()


BASE, OWN = deb("base"), deb(f"only-{NEW}", data=NEW.encode())
FIRMWARE = (deb("ovmf-inteltdx", "2025.11-1", b"older"),)
STUB = deb("systemd-boot-efi", "256", b"stub")


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"packages": (OWN,)}, Cause(Kind.PACKAGE, "base", "", "1.0")),
        ({"packages": (BASE, OWN, deb("curl"))}, Cause(Kind.PACKAGE, "curl", "1.0", "")),
        (
            {"packages": (deb("base", "0.9", b"x"), OWN)},
            Cause(Kind.PACKAGE, "base", "0.9", "1.0"),
        ),
        (
            {"packages": (deb("base", data=b"x"), OWN)},
            Cause(Kind.PACKAGE, "base", "1.0", "1.0 (other bytes)"),
        ),
        (
            {"packages": (BASE, OWN, deb("linux-image-6.1-cloud-amd64", "6.1.9"))},
            Cause(Kind.KERNEL, "linux-image-6.1-cloud-amd64", "6.1.9", ""),
        ),
        (
            {"wheels": (replace(WHEEL, version="8.2.0", sha256="0" * 64),)},
            Cause(Kind.WHEEL, "click", "8.2.0", "8.3.0"),
        ),
        (
            {"builder": tuple((TOOLS | {"firmware": FIRMWARE}).items())},
            Cause(
                Kind.FIRMWARE,
                "ovmf-inteltdx",
                "2025.11-1",
                "2026.02-1",
                frozenset({Register.MR_TD}),
            ),
        ),
        (
            {"builder": tuple((TOOLS | {"tools": (*TOOLS["tools"], STUB)}).items())},
            Cause(
                Kind.STUB,
                "systemd-boot-efi",
                "256",
                "",
                frozenset({Register.MR_TD, Register.RTMR1}),
            ),
        ),
        (
            {"builder": tuple((TOOLS | {"mkosi": (deb("mkosi", "25", b"x"),)}).items())},
            Cause(Kind.TOOL, "mkosi", "25", "26-1", ALL, sure=False),
        ),
    ],
)
def test_inputs_of_an_image(
    released: Opened, everything: Manifest, change: dict[str, Any], expected: Cause
) -> None:
    changed = compare(released.manifest, everything, **change)
    assert changed.causes == (expected,)
    missing = ALL - expected.registers if expected.sure else ALL
    assert set(changed.unexplained) == missing


def test_the_emulator_writes_no_byte_of_an_image(released: Opened, everything: Manifest) -> None:
    emulator = (deb("qemu-system-x86", "1:10.0", b"x"),)
    builder = tuple((TOOLS | {"emulator": emulator}).items())
    assert compare(released.manifest, everything, builder=builder).causes == ()


def test_only_causes_of_what_moved(released: Opened) -> None:
    old = moved(released.manifest, rtmr2=b"2" * 48)
    builder = tuple((TOOLS | {"firmware": FIRMWARE}).items())
    found = compare(released.manifest, old, builder=builder)
    assert (found.moved, found.causes) == ((Register.RTMR2,), ())
    assert found.unexplained == (Register.RTMR2,)


def test_a_list_of_the_release_before_that_is_no_longer_read(
    released: Opened, everything: Manifest
) -> None:
    for before in ({}, {NEW: {"schema": "zipnet.packages/1"}}):
        found = compare(released.manifest, everything, dict(before))
        assert not found.compared
        assert found.unexplained == tuple(Register)
    with pytest.raises(BuildRefused):
        between(released.manifest, everything, {str(role): {} for role in Role}, documents())
