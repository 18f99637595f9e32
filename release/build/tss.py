"""tpm2-pytss and swtpm for the environment that runs this: `python -m release.build.tss`.

tpm2-pytss is published as source only and needs the headers and libraries of tpm2-tss. Where the
host has none, the packages of the host's own release are unpacked into the cache, nothing is
installed, and the extension is linked so that it finds the libraries there. The same goes for
swtpm, which gets a launcher in the environment. Made once per host release, Python and lock.
"""

from __future__ import annotations

import fcntl
import os
import platform
import shlex
import shutil
import sys
import sysconfig
import tempfile
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from attestation.errors import Explained
from release.build import mirror, pythonlock
from release.build.apt import AptRoot
from release.build.deb import Deb, Store
from release.build.process import run
from release.build.settings import Archive, Distribution, PackageSet, Paths, host_distribution
from release.build.tools import unpack
from release.build.wheels import PIP_NETWORK
from release.errors import HostError, ToolFailed

# Raise it when folders are made in another way, so that old ones are not taken for new ones.
RECIPE = "1"
# What tpm2-pytss links with. Its Feature API is left out: it would pull in curl and json-c.
MODULES = ("esys", "mu", "rc", "sys", "tctildr")
TCTIS = ("tcti-device", "tcti-mssim", "tcti-swtpm")
LIBRARIES = "usr/lib/x86_64-linux-gnu"
TSS = PackageSet("tss", ("libtss2-dev",))
SWTPM = PackageSet("swtpm", ("swtpm",))


@dataclass(frozen=True, slots=True)
class Host:
    """What this machine has of its own, and the release that the rest comes from."""

    distribution: Distribution
    codename: str
    tss: str | None
    swtpm: str | None

    @classmethod
    def look(cls, os_release: Path = Path("/etc/os-release")) -> Host:
        """Ask pkg-config, PATH and os-release. Raises HostError."""
        try:
            tss = run(["pkg-config", "--modversion", "tss2-esys"])[0]
        except (ToolFailed, HostError):
            tss = None
        # Not what an earlier run put into this environment.
        outside = [p for p in os.get_exec_path() if Path(p) != Path(sys.prefix) / "bin"]
        swtpm = shutil.which("swtpm", path=os.pathsep.join(outside))
        lines = os_release.read_text("utf-8").splitlines()
        fields = {k: v.strip('"') for k, _, v in (line.partition("=") for line in lines)}
        codename = fields.get("UBUNTU_CODENAME") or fields.get("VERSION_CODENAME", "")
        return cls(host_distribution(os_release), codename, tss, swtpm)

    def root(self, folder: Path) -> AptRoot:
        """An apt root for the host's own release, without its updates: the host may lack some."""
        archive = self.distribution.archives[0]
        return AptRoot(
            folder,
            (Archive(archive.name, (self.codename,), archive.components),),
            mirror.choose((), archive.name, None),
            Path("/") / self.distribution.keyring,
        )


def check_tools() -> None:
    """Raise HostError, naming everything that is missing to build the extension."""
    compilers = {os.environ.get("CC", "cc"), (sysconfig.get_config_var("CC") or "cc").split()[0]}
    wanted = [*sorted(compilers), "pkg-config", "apt-get", "dpkg-deb"]
    missing = [name for name in wanted if shutil.which(name) is None]
    header = Path(sysconfig.get_path("include")) / "Python.h"
    missing += [] if header.is_file() else [str(header)]
    missing += [] if platform.machine() == "x86_64" else [f"x86_64, this is {platform.machine()}"]
    if missing:
        raise HostError(
            "this machine can't build tpm2-pytss",
            expected=", ".join((*wanted, "Python.h")),
            got=f"without {', '.join(missing)}",
            rule="tpm2-pytss is published as source only",
            hint="install gcc, pkg-config and Python's headers (python3-dev)",
        )


def ensure(paths: Paths, host: Host, log: Path) -> Path:
    """The folder with `wheel/`, and with `tss/` and `swtpm/` where the host has none."""
    lock = paths.tpm_lock.read_text("ascii")
    kept = (RECIPE, sys.version, host.codename, host.tss or "", str(host.swtpm is None))
    target = paths.cache / f"tpm-{pythonlock.key(lock, *kept)}"
    paths.cache.mkdir(parents=True, exist_ok=True)
    with (paths.cache / "tpm.lock").open("w") as alone:
        fcntl.flock(alone, fcntl.LOCK_EX)
        if not target.is_dir():
            check_tools()
            print(f"Setting up: tpm2-pytss and swtpm, once, into {target}", file=sys.stderr)
            with tempfile.TemporaryDirectory(dir=paths.cache, prefix=".tpm-") as scratch:
                new = Path(scratch) / "new"
                new.mkdir()
                _unpack(new, host, paths.cache, log)
                _build(new, target, paths.tpm_lock, log)
                new.rename(target)
    return target


def _unpack(new: Path, host: Host, cache: Path, log: Path) -> None:
    wanted = [*((TSS,) if host.tss is None else ()), *((SWTPM,) if host.swtpm is None else ())]
    if not wanted:
        return
    root = host.root(cache / "apt" / f"host-{host.codename}")
    root.prepare()
    root.update(log)
    store, now = Store(cache / "debs"), datetime.now(UTC).strftime("%Y%m%dT%H%M%SZ")
    for group in wanted:
        debs = tuple(deb for deb in root.resolve(group, log) if _belongs(deb, group))
        store.fetch(debs, root.mirrors, now, log)
        unpack(group.name, debs, store, new, log).folder.rename(new / group.name)


def _belongs(deb: Deb, group: PackageSet) -> bool:
    """What goes beside the host's own libraries: they are of the same release."""
    if group is SWTPM:
        return deb.name != "libc6"
    parts = ("dev", *MODULES, *TCTIS)
    return deb.name.removeprefix("libtss2-").startswith(parts) and deb.name.startswith("libtss2-")


def _build(new: Path, target: Path, lock: Path, log: Path) -> None:
    env = {name: os.environ[name] for name in PIP_NETWORK if name in os.environ}
    if (new / "tss").is_dir():
        described = new / "pkgconfig"
        described.mkdir()
        for module in MODULES:
            name = f"tss2-{module}.pc"
            shutil.copy(new / "tss" / LIBRARIES / "pkgconfig" / name, described / name)
        env["PKG_CONFIG_LIBDIR"] = str(described)
        env["PKG_CONFIG_SYSROOT_DIR"] = str(new / "tss")
        # RPATH, not RUNPATH: libraries that these load are looked for in the same place.
        path = target / "tss" / LIBRARIES
        env["LDFLAGS"] = f"-Wl,-rpath,{path},--disable-new-dtags"
    pip = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check", "wheel"]
    options = ["--no-deps", "--no-build-isolation", "--no-cache-dir", "--require-hashes"]
    run(
        [*pip, *options, "--wheel-dir", new / "wheel", "-r", lock],
        log=log,
        env=env,
        hint=f"check the network and the package index of pip; what the compiler said is in {log}",
    )


def install(folder: Path, host: Host, log: Path) -> None:
    """Put the wheel, and a launcher of swtpm where the host has none, into this environment."""
    if sys.prefix == sys.base_prefix:
        raise HostError(
            "this is no virtual environment",
            got=sys.prefix,
            rule="nothing is installed on the host",
            hint="run `python build.py test -e tpm`",
        )
    (wheel,) = (folder / "wheel").iterdir()
    pip = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check", "install"]
    run([*pip, "--no-deps", "--no-index", "--force-reinstall", wheel], log=log)
    launcher = Path(sys.prefix) / "bin" / "swtpm"
    launcher.unlink(missing_ok=True)
    if host.swtpm is None:
        tree = folder / "swtpm"
        # Older releases have some libraries in /lib.
        places = [tree / LIBRARIES.removeprefix("usr/"), tree / LIBRARIES]
        search = ":".join(map(str, (*places, tree / LIBRARIES / "swtpm")))
        program = shlex.quote(str(tree / "usr/bin/swtpm"))
        text = f'#!/bin/sh\nLD_LIBRARY_PATH={shlex.quote(search)} exec {program} "$@"\n'
        launcher.write_text(text, "utf-8")
        launcher.chmod(0o755)


def main(root: Path) -> int:
    """Prepare this environment; 0, or the exit code of what went wrong."""
    paths = Paths.of(root)
    log = paths.cache / "logs" / "tpm.log"
    log.parent.mkdir(parents=True, exist_ok=True)
    try:
        host = Host.look()
        install(ensure(paths, host, log), host, log)
    except Explained as error:
        print(f"error: {error.diagnostics()}", file=sys.stderr)
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main(Path(__file__).resolve().parents[2]))
