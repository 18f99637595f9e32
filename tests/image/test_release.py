"""A release is built again, byte for byte, elsewhere; where that fails, the cause is named."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from release import rebuild
from release.bundle import INDEX, Bundle
from release.errors import ReleaseRejected
from release.manifest import Locked
from tests.image.conftest import Call
from tests.image.releases import Released, clone, commit, released

__all__ = ["released"]


def states(call: Call) -> dict[str, str]:
    found: dict[str, str] = {}
    for step in json.loads(call.out)["steps"]:
        found[step["step"]] = step["state"]
    return found


GOOD = dict.fromkeys(
    ("signature", "schema", "files", "sums", "measurements", "rebuild"), "good"
) | {"quote": "not asked"}


def test_a_rebuild_from_another_clone_is_identical(released: Released, tmp_path: Path) -> None:
    """Other folder, umask, time zone; `--vary` of the builder shifts the clock of all it runs."""
    elsewhere = clone(released.repository, tmp_path / "some other" / "longer path" / "clone")
    arguments = ("--artifacts", released.artifacts, "--rebuild", "--json")
    call = released.verify(elsewhere, *arguments)
    assert call.status == 0, call.out
    assert states(call) == GOOD


def test_from_a_bundle_without_a_network(released: Released, tmp_path: Path) -> None:
    if os.geteuid() != 0:
        pytest.skip("taking the network away from a process group takes root here")
    elsewhere = clone(released.repository, tmp_path / "clone")
    # No packages or trees of earlier builds either; only what runs the builder itself is kept.
    arguments = ("--rebuild", "--bundle", released.bundle, "--artifacts", released.artifacts)
    call = released.verify(
        elsewhere,
        *arguments,
        "--json",
        prefix=("unshare", "--net"),
        env={"ZIPNET_CACHE": str(tmp_path / "cache"), "PIP_NO_INDEX": "1"},
    )
    assert call.status == 0, call.out
    assert states(call) == GOOD


def test_a_bundle_that_lacks_a_file(released: Released, tmp_path: Path) -> None:
    elsewhere = clone(released.repository, tmp_path / "clone")
    item = next(i for i in Bundle.open(released.bundle).items if i.name.startswith("systemd_"))
    less = tmp_path / "less"
    left_out = shutil.ignore_patterns(item.sha256)
    shutil.copytree(released.bundle, less, ignore=left_out, copy_function=os.link)
    assert (less / INDEX).is_file()
    call = released.verify(elsewhere, "--rebuild", "--bundle", less, "--json")
    assert call.status == 3
    assert states(call)["rebuild"] == "failed"
    assert f"{item.name} can't be read" in call.err + call.out


def touched(root: Path) -> None:
    script = root / "images/base/finalize.sh"
    script.write_text(script.read_text("utf-8") + "\ntouch -d @86400 etc/services\n", "utf-8")


def another_epoch(root: Path) -> None:
    path = root / "images/locks/debian-trixie.lock"
    text = path.read_text("ascii")
    assert "1735689600" in text
    path.write_text(text.replace("1735689600", "1704067200", 1), "ascii")


def one_more_module(root: Path) -> None:
    path = root / "mkosi.conf"
    text = path.read_text("utf-8")
    assert text.count("\n        virtio_blk\n") == 1
    path.write_text(text.replace("\n        virtio_blk\n", "\n        virtio_blk\n        loop\n"))


@pytest.mark.parametrize(
    ("change", "inside", "origin"),
    [
        (touched, "etc/services: mtime 1735689600 and 86400", "the package netbase "),
        (
            another_epoch,
            ": mtime 1735689600 and 1704067200",
            "source epoch 1735689600 and 1704067200, by step mkosi",
        ),
        (one_more_module, "/kernel/drivers/block/loop.ko.xz: only in the rebuilt", "linux-image-"),
    ],
)
def test_what_breaks_it_is_named(
    released: Released, tmp_path: Path, change: Callable[[Path], None], inside: str, origin: str
) -> None:
    """Images that are not of the commit that the release names: a change lies between the two."""
    broken = clone(released.repository, tmp_path / "broken")
    change(broken)
    old = released.manifest
    lock = broken / "images/locks" / old.locks.images.file
    locked = Locked(lock.name, hashlib.sha256(lock.read_bytes()).hexdigest())
    claimed = replace(old, commit=commit(broken, "broken"), locks=replace(old.locks, images=locked))
    out = rebuild.rebuild(claimed, broken, tmp_path / "out", None, print)
    found = rebuild.compare(claimed, out, released.artifacts, sources=broken)
    with pytest.raises(ReleaseRejected) as caught:
        rebuild.require_identical(found)
    first = str(found[0])
    assert first in str(caught.value)
    assert first.startswith("client: zipnet-client.efi: ")
    assert inside in first
    assert origin in found[0].origin
    # With the published folder alone the path can't be told; what went in still can.
    blind = rebuild.compare(claimed, out, published=released.folder, sources=broken)
    assert blind[0].path_in_image is None
    if change is another_epoch:
        assert blind[0].origin == "source epoch 1735689600 and 1704067200"
