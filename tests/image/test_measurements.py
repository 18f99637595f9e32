"""What a build's MR_TD names: the image, and nothing but the image."""

from __future__ import annotations

from pathlib import Path

import pytest

from attestation.measure import authenticode, firmware, tdvf
from attestation.measure.record import Binding, BootProof, Measurements
from attestation.measure.tdvf import ATTRIBUTES_AT, MR_EXTEND, HostProfile, SectionType, Tdvf
from release.build.settings import Role
from tests.image.conftest import QUICK, Image, Toolbox, build, checkout


def unmeasured(fd: bytes) -> bytes:
    """The firmware with the policy in its store, but without the attribute that measures it."""
    (cfv,) = Tdvf.parse(fd).of_type(SectionType.CFV)
    at = cfv.entry_offset + ATTRIBUTES_AT
    assert fd[at] & MR_EXTEND
    return fd[:at] + bytes([fd[at] & ~MR_EXTEND]) + fd[at + 1 :]


def test_roles_differ_and_only_because_the_store_is_measured(
    images: dict[Role, Image], toolbox: Toolbox
) -> None:
    assert len({image.mr_td for image in images.values()}) == len(Role)
    for profile in HostProfile:
        stock = tdvf.mr_td(toolbox.base, profile.page_order)
        for image in images.values():
            bare = unmeasured(image.firmware.read_bytes())
            assert tdvf.mr_td(bare, profile.page_order) == stock


def test_firmware_can_be_rebuilt_from_the_stock_file_and_the_hash(
    images: dict[Role, Image], toolbox: Toolbox
) -> None:
    for image in images.values():
        digest = authenticode.digest(image.uki.read_bytes(), "sha256")
        assert firmware.bind_digests(toolbox.base, [digest]) == image.firmware.read_bytes()


@pytest.fixture(scope="module")
def other(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return checkout(tmp_path_factory.mktemp("other") / "checkout")


def test_docs_and_tests_move_no_measurement(other: Path, server: Image, tmp_path: Path) -> None:
    (other / "README.md").write_text("another text\n", "utf-8")
    (other / "docs" / "added.md").write_text("more\n", "utf-8")
    (other / "tests" / "test_added.py").write_text("assert True\n", "utf-8")
    arguments = ("--role", "server", *QUICK, "--skip-boot-proof", "--out", tmp_path)
    build(*arguments, "--json", root=other).json()
    assert (tmp_path / "server/mrtd.hex").read_text("ascii") == server.mr_td


@pytest.mark.parametrize(
    ("role", "path"),
    [
        (Role.SERVER, "images/base/appliance@.service"),
        (Role.CLIENT, "zipnet/preflight.py"),
    ],
)
def test_one_byte_of_content_moves_mr_td(
    role: Role, path: str, images: dict[Role, Image], tmp_path: Path
) -> None:
    changed = checkout(tmp_path / "checkout")
    content = (changed / path).read_bytes()
    assert b"zipnet" in content
    (changed / path).write_bytes(content.replace(b"zipnet", b"zipneT", 1))
    out = tmp_path / "out"
    arguments = ("--role", role, *QUICK, "--skip-boot-proof", "--out", out, "--json")
    build(*arguments, root=changed).json()
    assert (out / role / "mrtd.hex").read_text("ascii") != images[role].mr_td


def test_skipping_the_proof_is_loud_and_recorded(tmp_path: Path) -> None:
    call = build("--role", "server", *QUICK, "--skip-boot-proof", "--out", tmp_path)
    assert call.status == 0
    assert "boot proof SKIPPED" in call.err
    assert "WARNING" in call.err
    found = Measurements.load(tmp_path / "server/measurements.json")
    assert {entry.boot_proof for entry in found.entries} == {BootProof.SKIPPED}


def test_records(images: dict[Role, Image], mock_server: Image) -> None:
    for image in (*images.values(), mock_server):
        found = Measurements.load(image.folder / "measurements.json")
        assert len(found.entries) == 4
        assert {entry.is_dev for entry in found.entries} == {image is mock_server}
        assert {entry.binding for entry in found.entries} == {Binding.MRTD_CFV}
        assert {entry.boot_proof for entry in found.entries} == {BootProof.PASSED}
        assert image.mr_td in {entry.mr_td.hex() for entry in found.entries}
    assert mock_server.mr_td != images[Role.SERVER].mr_td
