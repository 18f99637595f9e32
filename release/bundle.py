"""A bundle: every package and wheel that a locked build takes, kept with a release.

    BUNDLE/index.json            which files there are: schema zipnet.bundle/1, canonical JSON
    BUNDLE/sha256/AB/ABCDEF…     each file under the SHA-256 of its bytes

An index only says which files to look for. What a build may use is said by the lock alone, and
every byte is hashed against it before use.
"""

from __future__ import annotations

import json
import os
import re
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

from attestation.envelope import fields, load_json
from attestation.errors import FileError
from attestation.files import read_file
from release.build.deb import Deb, Store, digest
from release.build.lock import Lock
from release.build.settings import BUILDER_SETS
from release.errors import LockError, MirrorError, OutputRefused, ReleaseFormatError

SCHEMA = "zipnet.bundle/1"
INDEX = "index.json"
MAX_INDEX = 4 << 20
MAX_FILES = 10_000
MAX_SIZE = 1 << 30
CHUNK = 1 << 20
SHOWN = 8


class Kind(StrEnum):
    """What a file is for."""

    DEB = "deb"
    WHEEL = "wheel"


_NAMES = {
    Kind.DEB: r"[a-z0-9][A-Za-z0-9.+~%_-]{1,390}\.deb",
    Kind.WHEEL: r"[A-Za-z0-9][A-Za-z0-9._+-]{0,250}\.whl",
}


@dataclass(frozen=True, slots=True, order=True)
class Item:
    """A file of a bundle: its kind, usual name, SHA-256 in hex, bytes."""

    kind: Kind
    name: str
    sha256: str
    size: int

    @classmethod
    def parse(cls, value: object) -> Item:
        """An item in decoded JSON. Raises ReleaseFormatError."""
        found = fields(value, {*cls.__slots__}, "bundle", "file", ReleaseFormatError)
        kind, name = found["kind"], found["name"]
        if not isinstance(kind, str) or kind not in set(Kind):
            raise _malformed("kind", " or ".join(Kind), kind)
        if not isinstance(name, str) or not re.fullmatch(_NAMES[Kind(kind)], name):
            raise _malformed("name", _NAMES[Kind(kind)], name)
        sha256, size = found["sha256"], found["size"]
        if not isinstance(sha256, str) or not re.fullmatch(r"[0-9a-f]{64}", sha256):
            raise _malformed("sha256", "64 lower-case hex digits", sha256)
        if not isinstance(size, int) or isinstance(size, bool) or not 0 < size <= MAX_SIZE:
            raise _malformed("size", f"1 to {MAX_SIZE} bytes", size)
        return cls(Kind(kind), name, sha256, size)


def dumps(items: Iterable[Item]) -> bytes:
    """The canonical bytes of an index: items sorted, each once."""
    rows = [{name: getattr(i, name) for name in Item.__slots__} for i in sorted(set(items))]
    document = {"schema": SCHEMA, "files": rows}
    return json.dumps(document, indent=1, sort_keys=True).encode("ascii") + b"\n"


def loads(raw: bytes) -> tuple[Item, ...]:
    """The items of an index. Raises ReleaseFormatError for what `dumps` would not write."""
    if len(raw) > MAX_INDEX:
        raise _malformed("size", f"at most {MAX_INDEX} bytes", len(raw))
    value = load_json(raw, "bundle", ReleaseFormatError)
    found = fields(value, {"schema", "files"}, "bundle", "index", ReleaseFormatError)
    if found["schema"] != SCHEMA:
        raise _malformed("schema", SCHEMA, found["schema"])
    rows = found["files"]
    if not isinstance(rows, list) or len(rows) > MAX_FILES:
        raise _malformed("files", f"a list of at most {MAX_FILES}", type(rows).__name__)
    items = tuple(Item.parse(row) for row in rows)
    if dumps(items) != raw:
        raise _malformed(
            "canonical", "sorted items, one space of indent, each once", "another text"
        )
    return items


def write(folder: Path, locks: Sequence[Lock], store: Store, wheels: Sequence[Path]) -> int:
    """Make a bundle of all that the locks' builds take, and return its bytes.

    `store` must hold every package (MirrorError names those it lacks). Test-only sets are left out.
    The folder must be new or empty (OutputRefused).
    """
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise OutputRefused(
            f"{folder} is there already",
            rule="a bundle is written into a new or empty folder",
            hint="choose another folder, or remove it",
        )
    debs = sorted({deb for each in locks for deb in _used(each)})
    if missing := store.missing(debs):
        raise MirrorError(
            f"{len(missing)} packages are not in the store: {_named(d.file for d in missing)}",
            rule="a bundle has every package of its locks",
            hint="build with --locked first, which fetches them",
        )
    sources = [(Item(Kind.DEB, d.file, d.sha256, d.size), store.path(d)) for d in debs]
    for path in wheels:
        item = Item(Kind.WHEEL, path.name, digest(path), path.stat().st_size)
        sources.append((item, path))
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=".bundle-") as scratch:
        new = Path(scratch) / "new"
        for item, source in sources:
            _take(item, source, _place(new, item))
        (new / INDEX).write_bytes(dumps(item for item, _ in sources))
        new.chmod(0o755)
        if folder.exists():
            folder.rmdir()
        new.rename(folder)
    return sum(item.size for item, _ in sources)


def _used(found: Lock) -> Iterator[Deb]:
    builder = any(name in BUILDER_SETS for name, _ in found.sets)
    for name, debs in found.sets:
        if not builder or name in BUILDER_SETS:
            yield from debs


@dataclass(frozen=True, slots=True)
class Bundle:
    """The files of a bundle, as its index names them. Bytes are checked when they are taken."""

    folder: Path
    items: tuple[Item, ...]

    @classmethod
    def open(cls, folder: Path) -> Bundle:
        """Read the index. Raises ReleaseFormatError, and MirrorError if there is none."""
        try:
            raw = read_file(folder / INDEX, MAX_INDEX)
        except FileError as error:
            raise MirrorError(
                f"{folder} is no bundle",
                got=error.got or error.message,
                rule=f"a bundle has an {INDEX}",
                hint="name the folder that `release make --bundle` wrote",
            ) from error
        return cls(folder, loads(raw))

    def has(self, sha256: str) -> bool:
        """Whether the index names a file of this SHA-256 (hex)."""
        return any(item.sha256 == sha256 for item in self.items)

    def debs(self, wanted: Sequence[Deb], store: Store) -> int:
        """Put packages into `store`; return the bytes that were not there before.

        Raises MirrorError that names every package that the bundle lacks, also if the store has it
        from elsewhere, and LockError for bytes that are not the locked ones.
        """
        listed = {item.sha256 for item in self.items}
        self.require(deb.file for deb in wanted if deb.sha256 not in listed)
        debs = list(dict.fromkeys(wanted))
        before = sum(deb.size for deb in store.missing(debs))
        for deb in debs:
            item = Item(Kind.DEB, deb.file, deb.sha256, deb.size)
            with tempfile.TemporaryDirectory(dir=_made(store.folder), prefix=".fetch-") as scratch:
                copy = Path(scratch) / deb.sha256
                _take(item, _place(self.folder, item), copy)
                _made(store.path(deb).parent)
                copy.replace(store.path(deb))
        return before

    def wheels(self, pins: dict[str, tuple[str, frozenset[str]]], folder: Path) -> None:
        """Lay out under their names in `folder` all wheels whose hashes `pins` allows.

        Raises MirrorError for a pinned package without any, LockError for other bytes.
        """
        allowed = {sha256: name for name, (_, hashes) in pins.items() for sha256 in hashes}
        found = [i for i in self.items if i.kind is Kind.WHEEL and i.sha256 in allowed]
        have = {allowed[item.sha256] for item in found}
        self.require(f"{name} {pins[name][0]}" for name in sorted(pins) if name not in have)
        folder.mkdir(parents=True, exist_ok=True)
        for item in found:
            _take(item, _place(self.folder, item), folder / item.name)

    def require(self, missing: Iterable[str]) -> None:
        """Raise MirrorError if anything is named here as missing."""
        names = list(missing)
        if names:
            raise MirrorError(
                f"the bundle {self.folder} lacks {_named(names)}",
                rule="a bundle has every package and wheel of its locks",
                hint="use the bundle of this very release, or build without --bundle",
            )


def _take(item: Item, source: Path, target: Path) -> None:
    """Copy a file and hash the copy: it is what is used, whatever becomes of the source."""
    _made(target.parent)
    try:
        # Not through a link, nor from anything but a file: a bundle can come from anybody.
        handle = os.open(source, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
        with os.fdopen(handle, "rb") as one, target.open("xb") as other:
            left = item.size + 1
            while left and (data := one.read(min(left, CHUNK))):
                other.write(data)
                left -= len(data)
    except OSError as error:
        raise MirrorError(
            f"{item.name} can't be read",
            got=f"{source}: {error.strerror}",
            rule="a bundle has every file that its index names",
            hint="copy the bundle again",
        ) from error
    got = digest(target)
    if target.stat().st_size != item.size or got != item.sha256:
        target.unlink()
        raise LockError(
            f"{item.name} has other bytes than the locked ones",
            expected=f"{item.sha256}, {item.size} bytes",
            got=got,
            rule="a build uses exactly the bytes that its lock names",
            hint="copy the bundle again, or fetch it from its publisher",
        )
    target.chmod(0o644)


def _place(folder: Path, item: Item) -> Path:
    return folder / "sha256" / item.sha256[:2] / item.sha256


def _made(folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def _named(names: Iterable[str]) -> str:
    found = list(names)
    return ", ".join(found[:SHOWN]) + (" …" if len(found) > SHOWN else "")


def _malformed(what: str, expected: str, got: object) -> ReleaseFormatError:
    return ReleaseFormatError(
        f"the bundle's index is malformed: {what}",
        expected=expected,
        got=ascii(got)[:80],
        rule=f"bundle.{what}",
        hint="make it again with `release make --bundle`",
    )
