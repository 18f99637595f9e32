"""Two builds of one tree are the same bytes; where they are not, the culprit is named."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import tempfile
from pathlib import Path

import pytest

from release.build.settings import Paths
from tests.image.conftest import QUICK, ROOT, Image, build, checkout


def test_check_reproducible_says_identical(client: Image, tmp_path: Path) -> None:
    call = build(
        *("--role", "client", *QUICK, "--check-reproducible", "--skip-boot-proof"),
        *("--out", tmp_path),
    )
    assert call.status == 0
    assert "client: identical" in call.err
    uki = tmp_path / "client/zipnet-client.efi"
    assert uki.read_bytes() == client.uki.read_bytes()


def test_a_planted_timestamp_is_named_with_its_package(tmp_path: Path) -> None:
    """A date, of the day only: it differs because the second build's clock really is another."""
    root = checkout(tmp_path / "checkout")
    script = root / "images/base/finalize.sh"
    script.write_text(script.read_text("utf-8") + "\ndate +%Y-%m-%d >> etc/services\n", "utf-8")
    call = build(
        *("--role", "client", *QUICK, "--check-reproducible", "--skip-boot-proof"),
        *("--out", tmp_path / "out"),
        root=root,
    )
    assert call.status == 2
    found = re.search(r"zipnet-client\.efi: etc/services: content.*", call.err)
    assert found, call.err
    assert "the package netbase" in found[0]


def test_locked_without_a_network_gives_the_same_image(server: Image, tmp_path: Path) -> None:
    """A lock made in this run, then a build from it that could not reach any mirror."""
    if os.geteuid() != 0:
        pytest.skip("taking the network away from a process group takes root here")
    root = checkout(tmp_path / "checkout")
    shutil.rmtree(root / "images/locks")
    assert build("lock", root=root).status == 0
    call = build(
        *("--role", "server", *QUICK, "--locked", "--skip-boot-proof", "--out", tmp_path / "out"),
        root=root,
        prefix=("unshare", "--net"),
    )
    assert call.status == 0
    uki = tmp_path / "out/server/zipnet-server.efi"
    assert uki.read_bytes() == server.uki.read_bytes()


def test_an_ordinary_user_gets_the_same_image(server: Image, tmp_path: Path) -> None:
    if os.geteuid() != 0:
        pytest.skip("only root can become another user")
    user = ("setpriv", "--reuid=65534", "--regid=65534", "--clear-groups")
    if subprocess.run([*user, "unshare", "--user", "true"], check=False).returncode:
        pytest.skip("ordinary users have no user namespaces on this host")
    with tempfile.TemporaryDirectory(dir="/var/tmp") as name:
        folder = Path(name)
        root = checkout(folder / "checkout")
        cache = Paths.of(ROOT).cache
        for part in ("debs", "runtimes"):
            shutil.copytree(cache / part, folder / "cache" / part, symlinks=True)
        for path in (folder, *folder.rglob("*")):
            os.chown(path, 65534, 65534, follow_symlinks=False)
        # The interpreter of this environment may lie where that user can't read.
        environment = (f"HOME={name}", f"ZIPNET_CACHE={folder / 'cache'}", "PATH=/usr/bin:/bin")
        command = [*user, "env", "-i", *environment, *pip_network(), "/usr/bin/python3", "build.py"]
        command += ["--role", "server", *QUICK, "--skip-boot-proof", "--out", str(folder / "out")]
        done = subprocess.run(command, cwd=root, check=False, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        uki = folder / "out/server/zipnet-server.efi"
        assert uki.read_bytes() == server.uki.read_bytes()


def pip_network() -> list[str]:
    """How this machine's pip reaches its index, if by the environment."""
    names = ("PIP_CERT", "PIP_FIND_LINKS", "PIP_INDEX_URL", "SSL_CERT_FILE", "http_proxy")
    return [f"{name}={os.environ[name]}" for name in names if name in os.environ]
