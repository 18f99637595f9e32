"""Debian packages as values, and the local store that holds their files by SHA-256."""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import tempfile
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from release.build.mirror import Mirrors
from release.build.process import run
from release.errors import LockError, MirrorError, ToolFailed

APT_HELPER = "/usr/lib/apt/apt-helper"
# One command line holds so many downloads; the kernel's limit on arguments is far above.
BATCH = 200


@dataclass(frozen=True, slots=True, order=True)
class Deb:
    """One package file. `path` is relative to the base URL of `archive`; `size` is in bytes."""

    name: str
    version: str
    architecture: str
    sha256: str
    size: int
    archive: str
    path: str

    PATTERNS = {  # noqa: RUF012 - a slotted class attribute, never assigned to
        "name": r"[a-z0-9][a-z0-9.+-]{1,127}",
        "version": r"[A-Za-z0-9.+:~-]{1,127}",
        "architecture": r"all|amd64",
        "sha256": r"[0-9a-f]{64}",
        "archive": r"debian|debian-security|ubuntu",
        "path": r"pool/[A-Za-z0-9._+~%:/-]{1,300}\.deb",
    }

    @classmethod
    def parse(cls, record: object) -> Deb:
        """Take a package from decoded JSON. Raises LockError, naming the bad field."""
        if not isinstance(record, dict) or set(record) != set(cls.__slots__):
            raise LockError(
                "a package record has other fields than it should",
                expected=", ".join(cls.__slots__),
                # Names only, in ASCII: what nests deep enough, or is no Unicode, can't be shown.
                got=ascii(list(record) if isinstance(record, dict) else type(record))[:200],
                rule="a record has exactly the fields of docs/formats.md",
            )
        for field, pattern in cls.PATTERNS.items():
            value = record[field]
            if not isinstance(value, str) or not re.fullmatch(pattern, value) or "/../" in value:
                raise LockError(
                    f"a package record's {field} is malformed",
                    expected=pattern,
                    got=repr(value)[:120],
                    rule="a record has exactly the fields of docs/formats.md",
                )
        size = record["size"]
        if not isinstance(size, int) or isinstance(size, bool) or not 0 < size < 1 << 32:
            raise LockError("a package's size is not a byte count", got=repr(size)[:40])
        return cls(**record)

    @property
    def file(self) -> str:
        """The name that apt gives the file in its cache."""
        version = self.version.replace(":", "%3a")
        return f"{self.name}_{version}_{self.architecture}.deb"


def digest(path: Path) -> str:
    """SHA-256 of a file, in lower-case hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@dataclass(frozen=True, slots=True)
class Store:
    """Package files by the SHA-256 of their bytes; what is in it has been checked once."""

    folder: Path

    def path(self, deb: Deb) -> Path:
        """Where a package lies, or would lie."""
        return self.folder / deb.sha256[:2] / f"{deb.sha256}.deb"

    def missing(self, debs: Iterable[Deb]) -> list[Deb]:
        """Packages that are not here, or not with their size."""
        return [d for d in debs if not _has_size(self.path(d), d.size)]

    def fetch(self, debs: Sequence[Deb], mirrors: Mirrors, timestamp: str, log: Path) -> int:
        """Have all of `debs` here, and return the bytes that were fetched.

        Each is looked for in the store, on the mirror, on the snapshot service, in that order.
        Raises MirrorError that names every package that is in none of them.
        """
        wanted = list(dict.fromkeys(self.missing(debs)))
        self.folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=self.folder, prefix=".fetch-") as name:
            folder = Path(name)
            left = wanted
            for place in range(2 if mirrors.snapshot is not None else 1):
                left = self._fetch_from(place, left, mirrors, timestamp, folder, log)
        if left:
            raise MirrorError(
                f"{len(left)} packages can't be had: "
                + ", ".join(f"{d.name} {d.version}" for d in left[:8])
                + (" …" if len(left) > 8 else ""),
                expected="each in the local store, on the mirror or on a snapshot service",
                rule="a build uses exactly the bytes that it resolved or that its lock names",
                hint="see the log; for a lock older than the mirror pass --snapshot URL, or make "
                "a new lock with `python build.py lock`",
            )
        return sum(d.size for d in wanted)

    def _fetch_from(
        self,
        place: int,
        debs: Sequence[Deb],
        mirrors: Mirrors,
        timestamp: str,
        folder: Path,
        log: Path,
    ) -> list[Deb]:
        left: list[Deb] = []
        for begin in range(0, len(debs), BATCH):
            batch = debs[begin : begin + BATCH]
            arguments: list[str | Path] = []
            for deb in batch:
                url = mirrors.locations(deb.archive, deb.path, timestamp)[place]
                arguments += [url, folder / deb.sha256, f"SHA256:{deb.sha256}"]
            # One missing file fails the whole call; what did arrive is taken all the same.
            with suppress(ToolFailed):
                run([APT_HELPER, *PLAIN_DOWNLOADS, "download-file", *arguments], log=log)
            left += [deb for deb in batch if not self._take(deb, folder / deb.sha256)]
        return left

    def _take(self, deb: Deb, path: Path) -> bool:
        if path.is_symlink():
            # apt does not copy what file:// URLs name, and the store must not change with them.
            source = path.resolve()
            path.unlink()
            shutil.copyfile(source, path)
        if not _has_size(path, deb.size) or digest(path) != deb.sha256:
            return False
        target = self.path(deb)
        target.parent.mkdir(parents=True, exist_ok=True)
        path.chmod(0o644)
        path.replace(target)
        return True

    def pool(self, debs: Iterable[Deb], folder: Path) -> None:
        """Lay the packages out in `folder` under their usual names, each hashed once more."""
        folder.mkdir(parents=True)
        for deb in debs:
            source = self.path(deb)
            got = digest(source)
            if got != deb.sha256:
                source.unlink()
                raise LockError(
                    f"the stored file of {deb.name} {deb.version} has changed",
                    expected=deb.sha256,
                    got=got,
                    rule="a build uses exactly the bytes that it resolved or that its lock names",
                    hint="it has been removed from the store; run the build again",
                )
            try:
                os.link(source, folder / deb.file)
            except OSError:
                shutil.copyfile(source, folder / deb.file)


# As root apt would drop to a user of its own, who may not write where we download to.
PLAIN_DOWNLOADS = ("-o", "APT::Sandbox::User=root", "-o", "Acquire::Retries=3")


def _has_size(path: Path, size: int) -> bool:
    try:
        return path.stat().st_size == size
    except OSError:
        return False
