"""A release of the client image, made once a run from a fresh clone, at zstd -3."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from rich.console import Console

from release import make
from release.build.console import Steps
from release.build.settings import Paths, Role
from release.keys import Key
from release.manifest import Manifest
from tests.image.conftest import BUILD_LIMIT, QUICK, ROOT, Call, Image, build, checkout

KEY = Ed25519PrivateKey.from_private_bytes(b"image tests only".ljust(32, b"."))
LEVEL = int(QUICK[1])
WHO = ("-c", "user.name=Test", "-c", "user.email=test@example.org")


@dataclass(frozen=True, slots=True)
class Released:
    """The repository that it was made from, the builder's outputs, the release, its bundle."""

    repository: Path
    artifacts: Path
    folder: Path
    bundle: Path
    manifest: Manifest

    @property
    def image(self) -> Image:
        return Image(Role.CLIENT, self.artifacts / "client")

    def verify(
        self,
        clone: Path,
        *arguments: str | Path,
        prefix: Sequence[str] = (),
        env: dict[str, str] | None = None,
    ) -> Call:
        """`python -m release verify` of a clone, under another umask and time zone."""
        command = [*prefix, sys.executable, "-B", "-m", "release", "verify", str(self.folder)]
        command += ["--key", KEY.public_key().public_bytes_raw().hex()]
        done = subprocess.run(
            [*command, *map(str, arguments)],
            cwd=clone,
            env=os.environ | {"TZ": "America/St_Johns", "LC_ALL": "C"} | (env or {}),
            umask=0o077,
            capture_output=True,
            text=True,
            check=False,
            timeout=BUILD_LIMIT,
        )
        sys.stderr.write(done.stderr)
        return Call(done.returncode, done.stdout, done.stderr)


def git(folder: Path, *arguments: str) -> str:
    command = ["git", "-C", str(folder), *WHO, *arguments]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()


def clone(repository: Path, target: Path) -> Path:
    """A fresh clone."""
    target.parent.mkdir(parents=True, exist_ok=True)
    source = repository.as_uri()
    subprocess.run(["git", "clone", "--quiet", source, str(target)], check=True)
    return target


def commit(folder: Path, message: str) -> str:
    """Commit everything; the commit."""
    git(folder, "add", "--all")
    git(folder, "commit", "--quiet", "--allow-empty", "--message", message)
    return git(folder, "rev-parse", "HEAD")


def _first(folder: Path) -> Path:
    """A clone of this repository with the changes of its work tree, and locks that fit them."""
    found = clone(ROOT, folder)
    for path in found.iterdir():
        if path.name != ".git":
            shutil.rmtree(path) if path.is_dir() else path.unlink()
    checkout(found)
    assert build("lock", root=found).status == 0
    commit(found, "as it is")
    return found


@pytest.fixture(scope="session")
def released(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Released]:
    base = tmp_path_factory.mktemp("release")
    repository = _first(base / "first")
    artifacts, kept = base / "out", base / "bundle"
    arguments = ("--role", "client", *QUICK, "--locked", "--out", artifacts, "--json")
    build(*arguments, root=repository).json()
    paths = Paths.of(repository)
    request = make.Request(
        version=paths.version(),
        out=artifacts,
        to=base / "releases",
        key=KEY,
        signer=Key("given", KEY.public_key().public_bytes_raw()),
        roles=(Role.CLIENT,),
        compress_level=LEVEL,
        bundle=kept,
    )
    steps = Steps(Console(stderr=True, soft_wrap=True), base / "logs")
    made = make.make(paths, request, steps)
    yield Released(repository, artifacts, made.folder, kept, made.manifest)
    # More than 100 MB.
    shutil.rmtree(kept)
