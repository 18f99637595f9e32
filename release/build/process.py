"""Programs that the build runs: output to a log, no inherited environment, nothing left behind."""

from __future__ import annotations

import os
import signal
import subprocess
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from release.errors import HostError, ToolFailed

# What a program may inherit: where it finds the user's home, proxies and certificate bundle.
# Everything else (PYTHONPATH, LD_*, PIP_*, locale, ...) would make the host part of the result.
INHERITED = (
    "HOME",
    "TMPDIR",
    "http_proxy",
    "https_proxy",
    "no_proxy",
    "HTTP_PROXY",
    "HTTPS_PROXY",
    "NO_PROXY",
    "SSL_CERT_FILE",
)
PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
TAIL = 15
STOP_SECONDS = 5


def environment(extra: Mapping[str, str] | None = None) -> dict[str, str]:
    """A small, fixed environment, with `extra` on top."""
    env = {name: os.environ[name] for name in INHERITED if name in os.environ}
    return env | {"PATH": PATH, "LANG": "C.UTF-8", "TERM": "dumb"} | dict(extra or {})


@contextmanager
def started(
    command: Sequence[str | Path],
    *,
    env: Mapping[str, str] | None = None,
    cwd: Path | None = None,
    umask: int = -1,
) -> Iterator[subprocess.Popen[bytes]]:
    """Start a program in a process group of its own; on the way out the whole group is gone.

    Standard error goes where standard output goes. Raises HostError if there is no such program.
    """
    arguments = [os.fspath(part) for part in command]
    try:
        process = subprocess.Popen(
            arguments,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            env=environment(env),
            cwd=cwd,
            start_new_session=True,
            umask=umask,
        )
    except OSError as error:
        raise HostError(
            f"cannot start {arguments[0]}",
            got=error.strerror or str(error),
            rule="every program the build runs is on this machine",
            hint="run `python build.py doctor`, which lists what is missing",
        ) from error
    try:
        yield process
    finally:
        _stop(process)


def _stop(process: subprocess.Popen[bytes]) -> None:
    if process.poll() is None:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGTERM)
        with suppress(subprocess.TimeoutExpired):
            process.wait(STOP_SECONDS)
    # What is left of the group: a program that ignores SIGTERM, or children that outlived it.
    with suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, signal.SIGKILL)
    with suppress(subprocess.TimeoutExpired):
        process.wait(STOP_SECONDS)
    if process.stdout is not None:
        process.stdout.close()


def run(
    command: Sequence[str | Path],
    *,
    log: Path | None = None,
    env: Mapping[str, str] | None = None,
    cwd: Path | None = None,
    umask: int = -1,
    echo: bool = False,
    hint: str = "",
) -> list[str]:
    """Run a program to its end and return its lines; they also go to the end of `log`.

    Raises ToolFailed with the last lines if it ends with another status than 0, HostError if they
    say that the disk is full.
    """
    lines: list[str] = []
    tail: deque[str] = deque(maxlen=TAIL)
    sink = log.open("ab") if log is not None else None
    try:
        with started(command, env=env, cwd=cwd, umask=umask) as process:
            assert process.stdout is not None
            for raw in process.stdout:
                if sink is not None:
                    sink.write(raw)
                    sink.flush()
                line = raw.decode("utf-8", "replace").rstrip()
                lines.append(line)
                if line:
                    tail.append(line[:300])
                if echo:
                    os.write(2, b"    " + raw)
            status = process.wait()
    finally:
        if sink is not None:
            sink.close()
    if status and any("No space left on device" in line for line in tail):
        raise full_disk(f"No space left on device, while {Path(os.fspath(command[0])).name} ran")
    if status:
        name = Path(os.fspath(command[0])).name
        raise ToolFailed(f"{name} ended with status {status}", tail=tuple(tail), log=log, hint=hint)
    return lines


def full_disk(got: str) -> HostError:
    """The error that says so."""
    return HostError(
        "the disk is full",
        got=got,
        rule="a build needs about 2 GiB beside its cache",
        hint="free some space, or point ZIPNET_CACHE or --out to another disk",
    )
