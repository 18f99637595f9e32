"""`--check-reproducible`: a second build under other circumstances, compared with the first."""

from __future__ import annotations

import os
import shutil
import sys
from pathlib import Path

from release.build.compare import Comparison, require_identical
from release.build.pipeline import Builder, Request, Result
from release.build.process import run
from release.build.stage import INPUTS, PACKAGES
from release.origin import Origins

# Everything that a build reads from its checkout, and the builder itself.
COPIED = (*INPUTS, *PACKAGES, "release", "build.py", "pyproject.toml", "requirements.lock")
ELSEWHERE = {"TZ": "Pacific/Kiritimati", "LC_ALL": "C", "LANG": "C"}
UMASK = 0o077


def check(builder: Builder, request: Request, result: Result) -> None:
    """Build again from a copy with another path, umask, file modes, time zone and clock; compare.

    No cache of installed packages is used. Raises NotReproducible naming the first difference.
    """
    with builder.workspace() as work:
        copy = work / "a second checkout" / "at another, longer path"
        copy.mkdir(parents=True)
        _copy(builder.paths.root, copy)
        locks, out = work / "locks", work / "out"
        locks.mkdir()
        for name, found in result.locks():
            (locks / f"{name}.lock").write_bytes(found.dumps())
        with builder.steps.step("second build: other folder, umask, time zone, clock") as step:
            command = [sys.executable, "-P", str(copy / "build.py"), "--vary", "--locked"]
            command += [f"--locks={locks}", f"--out={out}", f"--flavor={request.flavor}"]
            command += [f"--compress-level={request.compress_level}"]
            command += [f"--distribution={request.distribution.name}"]
            command += [f"--role={role}" for role in request.roles]
            # The second build may not depend on this host's apt, which the first may not have used.
            command += [f"--mirror={n}={url}" for n, url in builder.supply.mirrors.bases]
            if request.skip_boot_proof:
                command.append("--skip-boot-proof")
            env = ELSEWHERE | {"ZIPNET_CACHE": str(builder.paths.cache)}
            run(command, log=step.log, env=env, umask=UMASK, echo=step.echo)
        with builder.steps.step("compare the two builds") as step:
            for each in result.built:
                origins = Origins(builder.supply.store, each.debs, builder.paths.root)
                comparison = Comparison(result.box.tools, origins)
                require_identical(comparison.folders(each.folder, out / each.role))
                step.note(f"{each.role}: identical")


def _copy(root: Path, copy: Path) -> None:
    for name in COPIED:
        source = root / name
        if source.is_dir():
            ignored = shutil.ignore_patterns("__pycache__")
            shutil.copytree(source, copy / name, symlinks=True, ignore=ignored)
        else:
            shutil.copy(source, copy / name)
    for parent, folders, files in os.walk(copy):
        for name in (*folders, *files):
            path = Path(parent, name)
            if not path.is_symlink():
                path.chmod(path.stat().st_mode | 0o020)
