"""`requirements.lock`: every Python dependency, pinned and hashed, in three nested groups.

The file is an ordinary pip requirements file. Lines `# group: NAME` divide it: `runtime` is what
images install, `build` what the builder adds, `dev` what tests and benchmarks add. This module is
used before any dependency is installed, so it needs the standard library only.
"""

from __future__ import annotations

import hashlib
import re
from pathlib import Path

GROUPS = ("runtime", "build", "dev")
MARK = "# group: "


def read(path: Path) -> dict[str, str]:
    """The requirement lines of each group. Raises ValueError if a group is missing or misplaced."""
    groups: dict[str, list[str]] = {}
    current: list[str] = []
    for line in path.read_text("ascii").splitlines():
        if line.startswith(MARK):
            current = groups.setdefault(line.removeprefix(MARK).strip(), [])
        elif not line.lstrip().startswith("#"):
            if line.strip() and not groups:
                raise ValueError(f"{path.name} has a requirement outside of the groups")
            current.append(line)
    if tuple(groups) != GROUPS:
        raise ValueError(f"{path.name} has the groups {tuple(groups)}, expected {GROUPS}")
    return {name: "\n".join(lines) + "\n" for name, lines in groups.items()}


def upto(path: Path, group: str) -> str:
    """The requirements of a group and of those that it builds on."""
    groups = read(path)
    return "".join(groups[name] for name in GROUPS[: GROUPS.index(group) + 1])


def key(requirements: str, *more: str) -> str:
    """A short digest that names an installation of these requirements."""
    return hashlib.sha256("\0".join((requirements, *more)).encode()).hexdigest()[:16]


def pins(requirements: str) -> dict[str, tuple[str, frozenset[str]]]:
    """Name to (version, SHA-256 hashes). Raises ValueError for an entry without a pin or hash."""
    found: dict[str, tuple[str, frozenset[str]]] = {}
    for entry in re.split(r"(?<!\\)\n", requirements):
        if not entry.strip():
            continue
        match = re.match(r"([a-z0-9][a-z0-9._-]*)(?:\[[^\]]*\])?==([A-Za-z0-9.+!]+)", entry)
        hashes = re.findall(r"--hash=sha256:([0-9a-f]{64})", entry)
        if match is None or not hashes:
            raise ValueError(f"not a pinned and hashed requirement: {entry[:80]!r}")
        found[match[1]] = (match[2], frozenset(hashes))
    return found
