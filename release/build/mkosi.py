"""mkosi on a staged folder and a local package pool: no network, no host settings, pinned tools."""

from __future__ import annotations

import json
import os
import re
import shutil
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from release.build.process import run
from release.build.settings import Distribution, Role
from release.build.stage import RUNTIME
from release.build.tools import Tree
from release.errors import BuildRefused, ToolFailed

# mkosi only warns about settings it does not know or finds in the wrong section: a typo would pass.
SUSPICIOUS = re.compile(
    r"(Unknown (setting|section)|should be configured in|has been deprecated|is deprecated)"
)
SYSTEM_PYTHON = Path("/usr/bin/python3")
FAKE_CLOCK = "+400d"


@dataclass(frozen=True, slots=True)
class Outputs:
    """What mkosi leaves: the UKI, its kernel, and the names of the packages that went in."""

    uki: Path
    kernel: Path
    manifest: Path


@dataclass(frozen=True, slots=True)
class Mkosi:
    """How to start mkosi: its own tree, the tools it runs, and which distribution it installs."""

    mkosi: Tree
    tools: Tree
    distribution: Distribution
    source_date_epoch: int
    compress_level: int

    def _command(self, stage: Path, role: Role) -> list[str | Path]:
        python = SYSTEM_PYTHON if SYSTEM_PYTHON.exists() else Path(sys.executable)
        return [
            python,
            "-m",
            "mkosi",
            "--directory",
            stage,
            "--profile",
            str(role),
            "--distribution",
            self.distribution.name,
            "--release",
            self.distribution.release,
            "--tools-tree",
            self.tools.folder,
            "--source-date-epoch",
            str(self.source_date_epoch),
            "--compress-level",
            str(self.compress_level),
            "--extra-tree",
            f"{RUNTIME}:/usr/lib/zipnet",
        ]

    def _run(self, command: Sequence[str | Path], log: Path, work: Path, echo: bool) -> list[str]:
        site = self.mkosi.folder / "usr/lib/python3/dist-packages"
        self.mkosi.file("usr/lib/python3/dist-packages/mkosi/__main__.py")
        # Not the inherited environment: mkosi hands PATH and more on to what it runs.
        env = {
            "PATH": "/usr/sbin:/usr/bin:/sbin:/bin",
            "PYTHONPATH": str(site),
            "TMPDIR": str(work),
        }
        try:
            lines = run(command, log=log, env=env, echo=echo)
        except ToolFailed as error:
            raise _explained(error) from error
        wrong = [line for line in lines if SUSPICIOUS.search(line)]
        if wrong:
            raise BuildRefused(
                "mkosi doubts its configuration",
                got=wrong[0][:300],
                rule="a setting that mkosi only warns about is an error",
                hint=f"correct it in mkosi.conf, mkosi.conf.d/ or images/; the log is {log}",
            )
        return lines

    def build(
        self,
        stage: Path,
        role: Role,
        *,
        pool: Path,
        work: Path,
        log: Path,
        cache: Path | None = None,
        vary: bool = False,
        echo: bool = False,
    ) -> Outputs:
        """Build the image of a role.

        `cache` holds the installed packages between builds of one package set. `vary` shifts the
        clock of all that runs in the sandbox, which must not show in the result.
        """
        sandbox = work / "sandbox"
        sources = sandbox / "etc/apt/sources.list.d"
        sources.mkdir(parents=True)
        # mkosi leaves this file alone if it exists; the pool is then the only source.
        (sources / "mkosi.sources").write_text("# packages come from the local pool\n", "ascii")
        out, scratch = work / "mkosi-out", work / "mkosi-work"
        out.mkdir()
        scratch.mkdir()
        command = self._command(stage, role)
        command += ["--sandbox-tree", sandbox, "--package-directory", pool, "--force"]
        command += ["--output-directory", out, "--workspace-directory", scratch]
        command += ["--package-cache-directory", work / "mkosi-packages"]
        (work / "mkosi-packages").mkdir()
        if cache is not None:
            cache.mkdir(parents=True, exist_ok=True)
            command += ["--incremental=yes", "--cache-directory", cache]
        if vary:
            command += self._shifted_clock()
        command.append("build")
        self._run(command, log, scratch, echo)
        name = f"zipnet-{role}"
        found = Outputs(out / f"{name}.efi", out / f"{name}.vmlinuz", out / f"{name}.manifest")
        for path in (found.uki, found.kernel, found.manifest):
            if not path.is_file():
                raise BuildRefused(
                    f"mkosi made no {path.name}",
                    rule="a role has a drop-in in mkosi.conf.d/ that names its image",
                    hint=f"the log is {log}",
                )
        return found

    def _shifted_clock(self) -> list[str | Path]:
        library = "usr/lib/x86_64-linux-gnu/faketime/libfaketime.so.1"
        self.tools.file(library)
        return [
            "--environment",
            f"LD_PRELOAD=/{library}",
            "--environment",
            f"FAKETIME={FAKE_CLOCK}",
        ]

    def packages(self, stage: Path, role: Role, *, work: Path, log: Path) -> tuple[str, ...]:
        """The packages that the configuration of a role names. Raises BuildRefused without any."""
        command = [*self._command(stage, role), "--json", "summary"]
        text = "\n".join(self._run(command, log, work, echo=False))
        try:
            names = json.loads(text[text.index("{") :])["Images"][-1]["Packages"]
            found = tuple(sorted(str(name) for name in names))
        except (ValueError, LookupError, TypeError) as error:
            raise BuildRefused(
                "mkosi's summary has another form than this builder knows",
                got=str(error)[:200],
                rule="the packages of an image are read from mkosi itself",
                hint=f"the log is {log}; --locked uses the mkosi this version was made with",
            ) from error
        if not found:
            raise BuildRefused("an image without packages", rule="an empty list is an error")
        return found

    def summary(self, stage: Path, role: Role, *, work: Path, log: Path) -> str:
        """The resolved configuration as mkosi prints it; nothing is built or fetched."""
        lines = self._run([*self._command(stage, role), "summary"], log, work, echo=False)
        return "\n".join(lines) + "\n"


def _explained(error: ToolFailed) -> ToolFailed:
    text = "\n".join(error.tail)
    if re.search(r"unshare|user namespace|uid_map|newuidmap|/etc/subuid", text, re.IGNORECASE):
        return ToolFailed(
            error.message,
            tail=error.tail,
            log=error.log,
            hint="mkosi needs user namespaces: run as root, or allow unprivileged ones "
            "(`python build.py doctor` says how)",
        )
    return error


def prune(caches: Path, role: Role, keep: Path) -> None:
    """Remove the installed-package caches of a role that belong to other package sets."""
    for path in caches.glob(f"{role}-*"):
        if path != keep:
            shutil.rmtree(path, ignore_errors=True)


def remove(folder: Path) -> None:
    """Remove a work folder; files of a user-namespace build can belong to other user ids."""
    shutil.rmtree(folder, ignore_errors=True)
    if folder.exists() and os.geteuid() != 0:
        run(["unshare", "--map-auto", "--map-root-user", "rm", "-rf", "--", folder])
