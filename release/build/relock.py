"""Writes `requirements.lock` from pyproject.toml, by uv's resolver, for every platform."""

from __future__ import annotations

import re
import sys
import tempfile
from pathlib import Path

from release.build import pythonlock
from release.build.process import run

HEADER = """\
# Every Python dependency of zipnet, pinned and hashed. Written by `python build.py lock --python`.
# An ordinary pip requirements file; the groups are explained in release/build/pythonlock.py.
"""


def relock(root: Path, log: Path) -> int:
    """Resolve anew and write the lock; return how many packages it pins. Raises ToolFailed."""
    with tempfile.TemporaryDirectory() as name:
        full = _compile(root, "dev", None, Path(name), log)
        constraint = Path(name) / "full.txt"
        constraint.write_text(full, "ascii")
        groups = {
            "runtime": _compile(root, None, constraint, Path(name), log),
            "build": _compile(root, "build", constraint, Path(name), log),
            "dev": full,
        }
    seen: set[str] = set()
    parts = [HEADER]
    for group in pythonlock.GROUPS:
        parts.append(f"{pythonlock.MARK}{group}\n")
        for entry in re.split(r"(?<!\\)\n", groups[group]):
            package = entry.partition("==")[0]
            if entry.strip() and package not in seen:
                seen.add(package)
                parts.append(f"{entry}\n")
    (root / "requirements.lock").write_text("".join(parts), "ascii")
    return len(seen)


def _compile(
    root: Path, extra: str | None, constraint: Path | None, folder: Path, log: Path
) -> str:
    target = folder / f"{extra}.txt"
    options = ["--universal", "--generate-hashes", "--no-header", "--no-annotate", "--quiet"]
    options += ["--no-emit-index-url", "--output-file", str(target)]
    options += ["--extra", extra] if extra else []
    options += ["--constraint", str(constraint)] if constraint else []
    uv = [sys.executable, "-m", "uv", "pip", "compile", *options, str(root / "pyproject.toml")]
    run(uv, log=log, hint="check the network and uv's own index settings (UV_DEFAULT_INDEX)")
    return target.read_text("ascii")
