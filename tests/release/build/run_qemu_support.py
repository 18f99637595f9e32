"""Running the rendered run-qemu script, in every shell that this host has."""

import os
import shlex
import shutil
import subprocess
from pathlib import Path

from release.build import outputs
from release.build.settings import Role

SHELLS = [shell for shell in ("dash", "bash", "busybox") if shutil.which(shell)]


def interpreter(name: str) -> list[str]:
    """How to start a shell as a POSIX shell."""
    return {"bash": ["bash", "--posix"], "busybox": ["busybox", "sh"]}.get(name, [name])


def output(parent: Path) -> Path:
    """An output folder, its name no easy one."""
    folder = parent / "it's an out, put"
    folder.mkdir()
    (folder / "run-qemu").write_bytes(outputs.run_qemu(Role.SERVER))
    (folder / "run-qemu").chmod(0o755)
    for end in ("fd", "efi"):
        (folder / f"zipnet-server.{end}").write_bytes(b"x")
    return folder


def run(
    folder: Path, *arguments: str, shell: list[str] | None = None, qemu: str | Path = ""
) -> subprocess.CompletedProcess[str]:
    environment = {"PATH": os.environ["PATH"]}
    if qemu:
        environment["QEMU"] = str(qemu)
    command = [*(shell or ["sh"]), str(folder / "run-qemu"), *arguments]
    return subprocess.run(
        command,
        capture_output=True,
        text=True,
        check=False,
        env=environment,
        cwd="/",
        stdin=subprocess.DEVNULL,
    )


def printed(folder: Path, *arguments: str, shell: list[str] | None = None) -> list[str]:
    done = run(folder, *arguments, "--print", shell=shell)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.count("\n") == 1
    return shlex.split(done.stdout)


def value(words: list[str], option: str) -> str:
    assert words.count(option) == 1
    return words[words.index(option) + 1]
