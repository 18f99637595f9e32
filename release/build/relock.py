"""Writes `requirements.lock` and `requirements-tpm.lock` from pyproject.toml, by uv's resolver.

For every platform. The second file has what the extra `tpm` adds: it is built from source, against
libraries of the host, and so can't be in a file that installs anywhere.
"""

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


TPM_HEADER = """\
# What the extra `tpm` adds to requirements.lock. Written by `python build.py lock --python`.
"""


def relock(root: Path, log: Path) -> int:
    """Resolve anew and write the locks; return how many packages they pin. Raises ToolFailed."""
    with tempfile.TemporaryDirectory() as name:
        full = _compile(root, ("dev",), None, Path(name), log)
        constraint = Path(name) / "full.txt"
        constraint.write_text(full, "ascii")
        groups = {
            "runtime": _compile(root, (), constraint, Path(name), log),
            "build": _compile(root, ("build",), constraint, Path(name), log),
            "dev": full,
        }
        tpm = _compile(root, ("dev", "tpm"), constraint, Path(name), log)
    seen: set[str] = set()
    parts = [HEADER]
    for group in pythonlock.GROUPS:
        parts.append(f"{pythonlock.MARK}{group}\n")
        # A package can be there twice, in versions for different Pythons.
        before = frozenset(seen)
        for entry in re.split(r"(?<!\\)\n", groups[group]):
            package = entry.partition("==")[0]
            if entry.strip() and package not in before:
                seen.add(package)
                parts.append(f"{entry}\n")
    more = [
        f"{entry}\n"
        for entry in re.split(r"(?<!\\)\n", tpm)
        if entry.strip() and entry.partition("==")[0] not in seen
    ]
    (root / "requirements.lock").write_text("".join(parts), "ascii")
    (root / "requirements-tpm.lock").write_text("".join((TPM_HEADER, *more)), "ascii")
    return len(seen) + len(more)


def _compile(
    root: Path, extras: tuple[str, ...], constraint: Path | None, folder: Path, log: Path
) -> str:
    target = folder / f"compiled-{'-'.join(extras)}.txt"
    options = ["--universal", "--generate-hashes", "--no-header", "--no-annotate", "--quiet"]
    options += ["--no-emit-index-url", "--output-file", str(target)]
    options += [part for extra in extras for part in ("--extra", extra)]
    options += ["--constraint", str(constraint)] if constraint else []
    uv = [sys.executable, "-m", "uv", "pip", "compile", *options, str(root / "pyproject.toml")]
    run(uv, log=log, hint="check the network and uv's own index settings (UV_DEFAULT_INDEX)")
    return target.read_text("ascii")
