"""Package sets for a build: what the mirror has now, or exactly what a lock names."""

from __future__ import annotations

import fcntl
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from release.build import lock
from release.build.apt import AptRoot
from release.build.deb import Deb, Store
from release.build.lock import Lock
from release.build.mirror import Mirrors
from release.build.settings import (
    DEBIAN_KEYRING,
    DISTRIBUTIONS,
    SID,
    SID_SETS,
    TRIXIE_SETS,
    Distribution,
    PackageSet,
)
from release.build.tools import FIRMWARE, Tree, unpack
from release.bundle import Bundle
from release.errors import LockError

TOOLS_LOCK = "tools"
Group = tuple[str, tuple[Deb, ...]]
STALE_DAYS = 10


@dataclass(frozen=True, slots=True)
class Supply:
    """Resolves and fetches package sets. With `locked`, no index is read, only `locks`.

    With a `bundle`, packages come from it alone: `mirrors` are not asked, nor is what earlier
    builds left taken for what the bundle lacks.
    """

    cache: Path
    locks: Path
    mirrors: Mirrors
    locked: bool
    bundle: Bundle | None = None

    @property
    def store(self) -> Store:
        """The package files."""
        return Store(self.cache / "debs")

    def lock_path(self, name: str) -> Path:
        """The file of a lock."""
        return self.locks / f"{name}.lock"

    @contextmanager
    def _alone(self) -> Iterator[Path]:
        """Apt's state is shared by all builds of this user: one at a time."""
        folder = self.cache / "apt"
        folder.mkdir(parents=True, exist_ok=True)
        with (folder / "lock").open("w") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            yield folder

    def tools(self, log: Path, *, refresh: bool = True) -> Lock:
        """The builder's own package sets: tools from trixie, the rest from sid."""
        if self.locked:
            return Lock.load(self.lock_path(TOOLS_LOCK))
        keyring = Path("/") / DEBIAN_KEYRING
        with self._alone() as folder:
            stable = AptRoot(
                folder / "debian-trixie", DISTRIBUTIONS["debian"].archives, self.mirrors, keyring
            )
            sid = AptRoot(folder / "debian-sid", (SID,), self.mirrors, keyring)

            def resolved(group: tuple[AptRoot, tuple[PackageSet, ...]]) -> list[Group]:
                root, wanted = group
                if refresh:
                    root.prepare()
                    root.update(log)
                return [(each.name, root.resolve(each, log)) for each in wanted]

            with ThreadPoolExecutor(max_workers=2) as pool:
                groups = list(pool.map(resolved, ((stable, TRIXIE_SETS), (sid, SID_SETS))))
            return Lock(
                release=SID.suites[0],
                timestamp=_timestamp(max(stable.released(), sid.released())),
                source_date_epoch=lock.SOURCE_DATE_EPOCH,
                sets=tuple(each for group in groups for each in group),
            )

    def images(
        self,
        distribution: Distribution,
        wanted: Sequence[PackageSet],
        tools: Tree,
        log: Path,
        *,
        refresh: bool = True,
    ) -> Lock:
        """The package sets of images of a distribution.

        Without `refresh` from the index that is there: `tools` has just fetched Debian's.
        """
        name = f"{distribution.name}-{distribution.release}"
        if self.locked:
            found = Lock.load(self.lock_path(name))
            for group in wanted:
                _require(group, found)
            return found
        keyring = Path("/") / distribution.keyring
        if not keyring.is_file():
            keyring = tools.file(distribution.keyring)
        with self._alone() as folder:
            root = AptRoot(folder / name, distribution.archives, self.mirrors, keyring)
            root.prepare()
            if refresh:
                root.update(log)
            return Lock(
                release=name,
                timestamp=_timestamp(root.released()),
                source_date_epoch=lock.SOURCE_DATE_EPOCH,
                sets=tuple((group.name, root.resolve(group, log)) for group in wanted),
            )

    def fetch(self, debs: Sequence[Deb], timestamp: str, log: Path) -> int:
        """Have packages in the store; return the bytes that were not there. Raises MirrorError."""
        if self.bundle is not None:
            return self.bundle.debs(debs, self.store)
        return self.store.fetch(debs, self.mirrors, timestamp, log)

    def tree(self, found: Lock, name: str, log: Path) -> Tree:
        """The unpacked tree of one of the builder's package sets."""
        debs = found.packages(name)
        self.fetch(debs, found.timestamp, log)
        return unpack(name, debs, self.store, self.cache / "trees", log)

    def compared(self, name: str, found: Lock, sets: Sequence[str]) -> list[str]:
        """How packages differ from the lock on file, one line each; says so if there is none."""
        path = self.lock_path(name)
        if self.locked:
            return []
        if not path.exists():
            return [f"there is no lock {path.name}: nothing to compare with"]
        locked = dict(Lock.load(path).sets)
        lines = [
            line
            for group in sets
            for line in lock.differences(locked.get(group, ()), found.packages(group))
        ]
        return list(dict.fromkeys(lines))


def base_firmware(tree: Tree) -> bytes:
    """The TDX firmware that images are bound into."""
    return tree.file(FIRMWARE).read_bytes()


def age(found: Lock) -> str | None:
    """A remark on an index that is older than a mirror's should be."""
    published = datetime.strptime(found.timestamp, "%Y%m%dT%H%M%SZ").replace(tzinfo=UTC)
    days = (datetime.now(UTC) - published).days
    return f"the mirror's newest index is {days} days old" if days > STALE_DAYS else None


def _timestamp(moment: datetime) -> str:
    return moment.strftime("%Y%m%dT%H%M%SZ")


def _require(wanted: PackageSet, found: Lock) -> None:
    names = {deb.name for deb in found.packages(wanted.name)}
    missing = sorted(set(wanted.packages) - names)
    if missing:
        raise LockError(
            f"the lock of {wanted.name!r} lacks packages that mkosi.conf asks for",
            got=", ".join(missing),
            rule="--locked builds exactly what the lock names",
            hint="make a new lock with `python build.py lock`",
        )
