"""What a build leaves in `out/ROLE/`: all or nothing, and never over somebody else's files."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from jinja2 import Environment, PackageLoader, StrictUndefined

from attestation.measure.record import Measurements
from release.build.deb import digest
from release.build.settings import Role
from release.errors import OutputRefused

SUMS = "sha256sums.txt"
# What run-qemu offers if nothing is said; neither value shows in a pinned register.
MEMORY, CPUS = "2G", 2


def names(role: Role) -> frozenset[str]:
    """The files of an output folder (docs/formats.md)."""
    image = f"zipnet-{role}"
    fixed = ("mrtd.hex", "measurements.json", "packages.json", "sbom.cdx.json", "run-qemu", SUMS)
    return frozenset((f"{image}.efi", f"{image}.fd", *fixed))


def check(out: Path, roles: Sequence[Role]) -> None:
    """Raise OutputRefused if writing to `out` would touch anything that a build did not write."""
    nearest = next(p for p in (out, *out.parents) if p.is_symlink() or p.exists())
    if not nearest.is_dir():
        raise _refused(f"{nearest} is not a folder", str(nearest))
    for role in roles:
        folder = out / role
        if folder.is_symlink() or (folder.exists() and not folder.is_dir()):
            raise _refused(f"{folder} is not a folder", str(folder))
        if folder.is_dir():
            foreign = sorted(
                p.name
                for p in folder.iterdir()
                if p.name not in names(role) or p.is_symlink() or not p.is_file()
            )
            if foreign:
                raise _refused(f"{folder} holds files that no build wrote", ", ".join(foreign[:5]))


def _refused(message: str, got: str) -> OutputRefused:
    return OutputRefused(
        message,
        got=got,
        rule="a build replaces only what a build wrote",
        hint="move it away, or choose another folder with --out",
    )


@contextmanager
def replacing(out: Path, role: Role) -> Iterator[Path]:
    """Yield a fresh folder that takes the place of `out/ROLE` if the body ends well."""
    check(out, [role])
    created = [p for p in (out, *out.parents) if not p.exists()]
    out.mkdir(parents=True, exist_ok=True)
    target = out / role
    scratch = Path(tempfile.mkdtemp(dir=out, prefix=f".{role}-"))
    old = scratch / "old"
    try:
        folder = scratch / "new"
        folder.mkdir(mode=0o755)
        yield folder
        check(out, [role])
        if target.exists():
            target.rename(old)
        folder.rename(target)
    finally:
        # Interrupted between the two: what was there comes back.
        if old.exists() and not target.exists():
            old.rename(target)
        shutil.rmtree(scratch, ignore_errors=True)
        for path in created:
            if any(path.iterdir()):
                break
            path.rmdir()


def run_qemu(role: Role) -> bytes:
    """The script that boots the image beside it."""
    environment = Environment(
        loader=PackageLoader("release.build"),
        undefined=StrictUndefined,
        keep_trailing_newline=True,
        # A shell's ${#name} would begin a comment.
        comment_start_string="<#",
        comment_end_string="#>",
        autoescape=False,  # noqa: S701 - a shell script, from values of ours
    )
    template = environment.get_template("run-qemu.j2")
    return template.render(image=f"zipnet-{role}", memory=MEMORY, cpus=CPUS).encode("ascii")


def write(folder: Path, files: dict[str, bytes], measurements: Measurements, upstream: str) -> None:
    """Write everything but the UKI and firmware, which are there, and the sums over all of it."""
    files = files | {
        "measurements.json": measurements.dumps(),
        # 96 digits and no newline: a newline in it has bricked other systems' key providers.
        "mrtd.hex": upstream.encode("ascii"),
    }
    for name, data in files.items():
        (folder / name).write_bytes(data)
    for path in folder.iterdir():
        path.chmod(0o755 if path.name == "run-qemu" else 0o644)
    sums = [f"{digest(path)}  {path.name}\n" for path in sorted(folder.iterdir())]
    (folder / SUMS).write_text("".join(sums), "ascii")
    (folder / SUMS).chmod(0o644)
