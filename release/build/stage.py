"""The staging folder that mkosi reads: a copy of the inputs with fixed modes, and the runtime.

What is staged is what can be in an image: never documentation, tests, `release/` or `build.py`.
"""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from release.build.lock import SOURCE_DATE_EPOCH
from release.build.settings import Flavor, Role
from release.build.wheels import Runtime

INPUTS = ("mkosi.conf", "mkosi.conf.d", "images")
PACKAGES = ("attestation", "zipnet")
# The software TEE signs whatever it is told; production images don't hold it.
MOCK_ONLY = (
    "attestation/commands/mock_pki.py",
    "attestation/commands/mock_td.py",
    "attestation/providers/mock.py",
    "attestation/providers/mock_folder.py",
    "attestation/providers/mock_log.py",
    "attestation/providers/mock_pki.py",
    "attestation/providers/mock_server.py",
    "attestation/providers/mock_td.py",
    "attestation/providers/mock_td_host.py",
    "attestation/providers/mock_td_launch.py",
    "attestation/unsafe_mock_tdx.py",
    "zipnet/demo.py",
    "zipnet/unsafe_programs.py",
)
RUNTIME = "runtime"
TIMES = (SOURCE_DATE_EPOCH, SOURCE_DATE_EPOCH)


def stage(root: Path, folder: Path, role: Role, flavor: Flavor, runtime: Runtime) -> None:
    """Fill `folder` (which must not exist) with everything that mkosi reads."""
    folder.mkdir(parents=True)
    for name in INPUTS:
        source = root / name
        if source.is_dir():
            shutil.copytree(
                source, folder / name, symlinks=True, ignore=shutil.ignore_patterns("locks")
            )
        else:
            shutil.copyfile(source, folder / name)
    # finalize.sh moves it to the folder that the image's own Python version asks for.
    site = folder / RUNTIME / "lib" / "python" / "site-packages"
    shutil.copytree(runtime.site_packages, site, symlinks=True)
    for name in PACKAGES:
        for source in sorted((root / name).rglob("*")):
            path = source.relative_to(root)
            if source.suffix != ".py" and source.name != "py.typed":
                continue
            if flavor is Flavor.PRODUCTION and path.as_posix() in MOCK_ONLY:
                continue
            (site / path).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(source, site / path)
    (folder / RUNTIME / "flavor").write_text(f"{flavor}\n", "ascii")
    (folder / RUNTIME / "role").write_text(f"{role}\n", "ascii")
    normalize(folder)


def normalize(folder: Path) -> None:
    """Give every folder 755 and every file 755 or 644, and all the same time of change.

    Whatever the checkout's umask and clock were: mkosi leaves a time before its source epoch as is.
    """
    for parent, folders, files in os.walk(folder):
        for name in folders:
            path = Path(parent, name)
            # A mask is a link to /dev/null: following it would change the host.
            if not path.is_symlink():
                path.chmod(0o755)
            os.utime(path, TIMES, follow_symlinks=False)
        for name in files:
            path = Path(parent, name)
            if not path.is_symlink():
                path.chmod(0o755 if path.stat().st_mode & 0o100 else 0o644)
            os.utime(path, TIMES, follow_symlinks=False)
    folder.chmod(0o755)
    os.utime(folder, TIMES)
