"""Package locks: which files a build is made of, in `images/locks/NAME.lock` (docs/formats.md)."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from release.build.deb import Deb
from release.errors import LockError

SCHEMA = "zipnet.lock/1"
# 2025-01-01T00:00:00Z. Files younger than it get this mtime, so it only has to lie in the past. It
# is a constant of the lock, so that no commit, only a new lock, can move it and a measurement.
SOURCE_DATE_EPOCH = 1735689600
LIMIT = 4 << 20


@dataclass(frozen=True, slots=True)
class Lock:
    """The package sets of one group of suites.

    `timestamp` is when the newest index that they were resolved from was published, as snapshot
    services write it (YYYYMMDDTHHMMSSZ).
    """

    release: str
    timestamp: str
    source_date_epoch: int
    sets: tuple[tuple[str, tuple[Deb, ...]], ...]

    def packages(self, name: str) -> tuple[Deb, ...]:
        """The packages of a set. Raises LockError if the lock has no such set."""
        for known, debs in self.sets:
            if known == name:
                return debs
        raise LockError(
            f"the lock of {self.release} has no package set {name!r}",
            expected=", ".join(known for known, _ in self.sets),
            rule="--locked builds exactly what the lock names",
            hint="make a new lock with `python build.py lock`",
        )

    def dumps(self) -> bytes:
        """JSON with one package a line, so that a diff of two locks reads well."""
        head = {
            "schema": SCHEMA,
            "release": self.release,
            "timestamp": self.timestamp,
            "source_date_epoch": self.source_date_epoch,
        }
        lines = [f"  {json.dumps(name)}: {json.dumps(value)}," for name, value in head.items()]
        blocks = []
        for name, debs in self.sets:
            rows = ",\n".join(f"      {json.dumps(record(deb))}" for deb in sorted(debs))
            blocks.append(f"    {json.dumps(name)}: [\n{rows}\n    ]")
        body = ",\n".join(blocks)
        return ("{\n" + "\n".join(lines) + '\n  "sets": {\n' + body + "\n  }\n}\n").encode("ascii")

    @classmethod
    def loads(cls, raw: bytes) -> Lock:
        """Parse a lock. Raises LockError for anything that `dumps` would not write."""
        if len(raw) > LIMIT:
            raise LockError("a lock is too large", expected=f"at most {LIMIT} bytes")
        try:
            found = json.loads(raw.decode("ascii"), object_pairs_hook=_without_duplicates)
        except (ValueError, RecursionError) as error:
            raise LockError("a lock is not JSON", got=str(error)[:200]) from error
        expected = {"schema", "release", "timestamp", "source_date_epoch", "sets"}
        if not isinstance(found, dict) or set(found) != expected or found["schema"] != SCHEMA:
            raise LockError(
                "a lock has another schema",
                expected=f"{SCHEMA} with the fields {', '.join(sorted(expected))}",
                rule="unknown fields and schemas are refused",
                hint="make a new lock with `python build.py lock`",
            )
        _check(found, "release", r"[a-z]{2,20}(-[a-z]{2,20})?")
        _check(found, "timestamp", r"[0-9]{8}T[0-9]{6}Z")
        try:
            datetime.strptime(found["timestamp"], "%Y%m%dT%H%M%S%z")
        except ValueError as error:
            raise LockError("a lock's timestamp is malformed", got=found["timestamp"]) from error
        epoch, sets = found["source_date_epoch"], found["sets"]
        if not isinstance(epoch, int) or isinstance(epoch, bool) or not 0 < epoch < 1 << 32:
            raise LockError("a lock's source_date_epoch is not a time", got=repr(epoch)[:40])
        if not isinstance(sets, dict) or not sets:
            raise LockError("a lock has no package sets", rule="an empty lock locks nothing")
        return cls(
            release=found["release"],
            timestamp=found["timestamp"],
            source_date_epoch=epoch,
            sets=tuple((name, _set(name, debs)) for name, debs in sets.items()),
        )

    @classmethod
    def load(cls, path: Path) -> Lock:
        """Read a lock file. Raises LockError."""
        try:
            with path.open("rb") as file:
                raw = file.read(LIMIT + 1)
        except OSError as error:
            raise LockError(
                f"there is no lock {path.name}",
                got=f"{path}: {error.strerror}",
                rule="--locked builds exactly what the lock names",
                hint="make one with `python build.py lock` (and --distribution), or build without "
                "--locked",
            ) from error
        return cls.loads(raw)


def record(deb: Deb) -> dict[str, str | int]:
    """A package as a JSON object with sorted fields."""
    return {name: getattr(deb, name) for name in sorted(Deb.__slots__)}


def _check(found: Mapping[str, object], name: str, pattern: str) -> None:
    value = found[name]
    if not isinstance(value, str) or not re.fullmatch(pattern, value):
        raise LockError(f"a lock's {name} is malformed", expected=pattern, got=repr(value)[:80])


def _set(name: str, debs: object) -> tuple[Deb, ...]:
    if not re.fullmatch(r"[a-z][a-z0-9-]{0,40}", name):
        raise LockError("a package set's name is malformed", got=ascii(name)[:80])
    if not isinstance(debs, list) or not debs:
        raise LockError(f"the package set {name!r} is empty", rule="an empty set installs nothing")
    parsed = tuple(Deb.parse(item) for item in debs)
    if len({(d.name, d.architecture) for d in parsed}) != len(parsed):
        raise LockError(f"the package set {name!r} names a package twice")
    return parsed


def _without_duplicates(pairs: list[tuple[str, object]]) -> dict[str, object]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("a field stands twice")
    return found


def differences(locked: Iterable[Deb], current: Iterable[Deb]) -> list[str]:
    """One line for each package that is not the locked one, in the order of names."""
    before = {d.name: d for d in locked}
    after = {d.name: d for d in current}
    lines = []
    for name in sorted(before.keys() | after.keys()):
        old, new = before.get(name), after.get(name)
        if old is None and new is not None:
            lines.append(f"+ {name} {new.version}")
        elif new is None and old is not None:
            lines.append(f"- {name} {old.version}")
        elif old is not None and new is not None and old.version != new.version:
            lines.append(f"~ {name} {old.version} -> {new.version}")
        elif old is not None and new is not None and old.sha256 != new.sha256:
            lines.append(f"! {name} {new.version} has other bytes than the locked ones")
    return lines
