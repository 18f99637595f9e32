"""Images of the mock flavour, a QEMU, a bus, and a software TEE: shared by all tests here."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from release.build.emulator import Emulator
from release.build.mirror import choose
from release.build.settings import Paths
from release.build.supply import Supply
from tests.e2e.appliances.vm import Image
from tests.e2e.process import ROOT
from tests.zipnet.network.nats_cluster import Cluster

QUICK = ("--flavor", "mock", "--compress-level", "3", "--skip-boot-proof", "--json")
BUILD_S = 900


def build(role: str, out: Path, root: Path = ROOT) -> dict[str, Image]:
    """Call build.py as a user does; the images by their role."""
    command = [sys.executable, str(root / "build.py"), "--role", role, *QUICK, "--out", str(out)]
    done = subprocess.run(
        command, cwd=root, capture_output=True, text=True, check=False, timeout=BUILD_S
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)["images"]
    return {one["role"]: Image(one["role"], Path(one["folder"])) for one in found}


@pytest.fixture(scope="session")
def images(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Image]:
    """All three roles: their boot policy is proved elsewhere, on the production images."""
    return build("all", tmp_path_factory.mktemp("images") / "out")


@pytest.fixture(scope="session")
def qemu(images: dict[str, Image], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The builder's QEMU as one program, as a host would have it; images were built with it."""
    folder = tmp_path_factory.mktemp("bin")
    paths = Paths.of(ROOT)
    supply = Supply(paths.cache, paths.locks, choose((), "debian", None), locked=False)
    log = folder / "log"
    tree = Emulator(supply.tree(supply.tools(log, refresh=False), "emulator", log)).tree
    data = [f"-L {tree.folder}/{part}" for part in ("usr/share/qemu", "usr/share/seabios")]
    command = " ".join(map(str, (*tree.command("usr/bin/qemu-system-x86_64"), *data)))
    modules = tree.folder / "usr/lib/x86_64-linux-gnu/qemu"
    path = folder / "qemu-system-x86_64"
    path.write_text(f'#!/bin/sh\nQEMU_MODULE_DIR={modules} exec {command} "$@"\n', "utf-8")
    path.chmod(0o755)
    return path


@pytest.fixture(scope="module")
def bus(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    with Cluster(tmp_path_factory.mktemp("bus"), nodes=1) as made:
        yield made
