"""Runs `build.py` in a private environment with the locked dependencies, and makes it at first use.

The standard library only: this is what runs on a machine that has nothing but Python and pip.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from release.build import pythonlock

EXIT_HOST = 3
READY = "zipnet-ready"


def enter(script: Path, cache: Path) -> None:
    """Return if this process has the dependencies; else replace it by one that does."""
    group = "dev" if sys.argv[1:2] in (["test"], ["lock"]) else "build"
    environment = ensure(script.parent, cache, group)
    if Path(sys.prefix).resolve() == environment.resolve():
        return
    python = environment / "bin" / "python"
    # -P keeps the script's folder off the import path; the script puts it there itself.
    os.execv(python, [str(python), "-P", str(script), *sys.argv[1:]])


def ensure(root: Path, cache: Path, group: str) -> Path:
    """The folder of a virtual environment with the locked dependencies of a group."""
    try:
        requirements = pythonlock.upto(root / "requirements.lock", group)
        count = len(pythonlock.pins(requirements))
    except (OSError, ValueError) as error:
        _stop(f"the lock of the Python dependencies can't be used: {error}", "restore it from git")
    name = f"python-{group}-{pythonlock.key(requirements, sys.version)}"
    environment = cache / name
    if (environment / READY).exists():
        return environment
    cache.mkdir(parents=True, exist_ok=True)
    with (cache / f"{name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (environment / READY).exists():
            print(
                f"Setting up: {count} locked Python packages, once, into {environment}",
                file=sys.stderr,
            )
            _create(environment, requirements)
    return environment


def _create(environment: Path, requirements: str) -> None:
    shutil.rmtree(environment, ignore_errors=True)
    with contextlib.ExitStack() as stack:
        stack.callback(_discard_unless_ready, environment)
        _run(
            [sys.executable, "-m", "venv", str(environment)],
            "Python's venv module does not work here; on Debian and Ubuntu install python3-venv",
        )
        with tempfile.NamedTemporaryFile("w", suffix=".txt", encoding="ascii") as file:
            file.write(requirements)
            file.flush()
            pip = [str(environment / "bin" / "python"), "-m", "pip", "--quiet", "install"]
            options = ["--disable-pip-version-check", "--require-hashes", "--no-deps"]
            _run(
                [*pip, *options, "-r", file.name],
                "check the network and the package index that pip is configured for",
            )
        (environment / READY).touch()


def _discard_unless_ready(environment: Path) -> None:
    if not (environment / READY).exists():
        shutil.rmtree(environment, ignore_errors=True)


def _run(command: list[str], hint: str) -> None:
    env = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    done = subprocess.run(
        command, check=False, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, env=env
    )
    if done.returncode:
        tail = done.stdout.decode("utf-8", "replace").strip().splitlines()[-15:]
        _stop("\n  | ".join([f"{' '.join(command[1:4])} failed", *tail]), hint)


def _stop(message: str, hint: str) -> None:
    print(f"Error: {message}\n  next: {hint}", file=sys.stderr)
    raise SystemExit(EXIT_HOST)
