"""The builder's own programs, unpacked from locked packages into folders; nothing is installed.

A tree is what `dpkg-deb --extract` makes of a package set: no maintainer script runs, the host is
not touched, and root and ordinary users get the same files. Programs of a tree run either in
mkosi's sandbox (tools) or by the tree's own dynamic linker (emulator), so they don't see the
host's libraries.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import tempfile
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from release.build.deb import Deb, Store
from release.build.process import run
from release.errors import HostError

# Raise it when trees are made in another way, so that old ones are not taken for new ones.
RECIPE = "2"
LIBRARIES = ("usr/lib/x86_64-linux-gnu", "usr/lib/x86_64-linux-gnu/swtpm")
FIRMWARE = "usr/share/ovmf/OVMF.inteltdx.ms.fd"


def key(debs: Iterable[Deb]) -> str:
    """A short digest that names a package set's content."""
    text = "\n".join([RECIPE, *sorted(d.sha256 for d in debs)])
    return hashlib.sha256(text.encode()).hexdigest()[:16]


@dataclass(frozen=True, slots=True)
class Tree:
    """An unpacked package set."""

    folder: Path

    def file(self, path: str) -> Path:
        """A file of the tree. Raises HostError if the packages don't hold it (any more)."""
        found = self.folder / path
        if not found.is_file():
            raise HostError(
                f"the package set in {self.folder.name} has no {path}",
                rule="the packages still lay out their files as this builder knows them",
                hint="build with --locked, which uses the packages this version was made with",
            )
        return found

    def command(self, program: str) -> list[str | Path]:
        """The beginning of a command line that runs a program with the tree's own libraries."""
        return [
            self.file("usr/lib64/ld-linux-x86-64.so.2"),
            "--library-path",
            ":".join(str(self.folder / path) for path in LIBRARIES),
            self.file(program),
        ]


def unpack(name: str, debs: tuple[Deb, ...], store: Store, trees: Path, log: Path) -> Tree:
    """The tree of a package set, made if it is not there; complete or absent, never half."""
    target = trees / f"{name}-{key(debs)}"
    if target.is_dir():
        # `prune` keeps what was used last.
        os.utime(target)
        return Tree(target)
    trees.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=trees, prefix=f".{name}-") as scratch:
        pool, folder = Path(scratch) / "pool", Path(scratch) / "tree"
        store.pool(debs, pool)
        folder.mkdir()
        for deb in sorted(debs):
            run(["dpkg-deb", "--extract", pool / deb.file, folder], log=log)
        if name == "tools":
            # mkosi binds the host's resolver settings over it.
            (folder / "etc/resolv.conf").touch()
        folder.chmod(0o755)
        os.utime(folder)
        try:
            folder.rename(target)
        except OSError:
            # Another build finished the same tree first.
            if not target.is_dir():
                raise
    return Tree(target)


def prune(trees: Path, keep: int = 3) -> None:
    """Remove old trees of each kind; the last `keep` of a kind that were used stay."""
    kinds: dict[str, list[Path]] = {}
    for path in trees.glob("*-*"):
        if path.is_dir() and not path.name.startswith("."):
            kinds.setdefault(path.name.rpartition("-")[0], []).append(path)
    for paths in kinds.values():
        for path in sorted(paths, key=os.path.getmtime, reverse=True)[keep:]:
            shutil.rmtree(path, ignore_errors=True)
