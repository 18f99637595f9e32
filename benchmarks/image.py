"""What an image build costs: `python -m benchmarks.image` (or `build.py test -e bench`).

All figures of one run are taken on one machine in that run. Ratios are against bare mkosi doing the
same content with the same tools and packages; budgets are those of the project. The boot proof is
left out, since its time is the emulated boot of the image.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from math import inf, isfinite
from pathlib import Path
from statistics import median

import click
from rich.console import Console
from rich.table import Table

from release.build.deb import Deb
from release.build.mirror import choose
from release.build.mkosi import Mkosi
from release.build.settings import DISTRIBUTIONS, Flavor, Paths, Role
from release.build.stage import stage
from release.build.supply import Supply
from release.build.wheels import install

ROOT = Path(__file__).resolve().parents[1]
DISTRIBUTION = DISTRIBUTIONS["debian"]
MIB = 1 << 20
QUICK = 3


@dataclass(frozen=True, slots=True)
class Figure:
    """One measured value against its limit, in `unit`."""

    name: str
    value: float
    limit: float
    unit: str

    @property
    def good(self) -> bool:
        return self.value <= self.limit


def seconds(action: Callable[[], object]) -> float:
    begin = time.perf_counter()
    action()
    return time.perf_counter() - begin


def build(out: Path, *arguments: str, root: Path = ROOT, cache: Path | None = None) -> None:
    """Call build.py as a user does, without the boot proof unless asked for."""
    command = [sys.executable, str(root / "build.py"), "--out", str(out), *arguments]
    env = None if cache is None else os.environ | {"ZIPNET_CACHE": str(cache)}
    subprocess.run(command, check=True, capture_output=True, cwd=root, env=env)


@contextmanager
def bare(work: Path) -> Iterator[Callable[..., None]]:
    """Bare mkosi on the staged server role, with the trees and packages that build.py used last."""
    paths = Paths.of(ROOT)
    supply = Supply(paths.cache, paths.locks, choose((), "debian", None), locked=False)
    log = work / "bare.log"
    found = supply.tools(log, refresh=False)
    packages = json.loads((work / "warm/server/packages.json").read_bytes())
    debs = [Deb.parse(record) for record in packages["packages"]]
    runtime = install(paths.python_lock, DISTRIBUTION, paths.cache / "runtimes", log)
    stage(ROOT, work / "stage", Role.SERVER, Flavor.PRODUCTION, runtime)
    supply.store.pool(debs, work / "pool")
    runner = Mkosi(
        supply.tree(found, "mkosi", log),
        supply.tree(found, "tools", log),
        DISTRIBUTION,
        packages["source_date_epoch"],
        QUICK,
    )

    def once(cache: Path | None = None) -> None:
        scratch = Path(tempfile.mkdtemp(dir=work))
        runner.build(
            work / "stage",
            Role.SERVER,
            pool=work / "pool",
            work=scratch,
            log=log,
            cache=cache,
        )
        shutil.rmtree(scratch)

    yield once


def figures(runs: int, fresh: bool) -> Iterator[Figure]:
    """All figures, as they come."""
    quick = ("--role", "server", "--compress-level", str(QUICK), "--skip-boot-proof")
    with tempfile.TemporaryDirectory(dir="/var/tmp", prefix="zipnet-bench-") as name:
        work = Path(name)
        build(work / "warm", *quick)
        with bare(work) as once:
            build(work / "warm", *quick, "--locked")
            once(work / "mkosi-cache")
            plain, warm = [], []
            for _ in range(runs):
                mkosi, cached = seconds(once), seconds(lambda: once(work / "mkosi-cache"))
                plain.append(seconds(lambda: build(work / "warm", *quick)) / mkosi)
                warm.append(seconds(lambda: build(work / "warm", *quick, "--locked")) / cached)
        yield Figure("warm build / bare mkosi", median(plain), 1.15, "x")
        # What measuring and describing cost beside the fastest that mkosi can be; no limit.
        yield Figure("warm locked build / mkosi with its cache", median(warm), inf, "x")
        yield from after_a_change(work)
        yield from measuring(work)
        yield from sizes(work)
        if fresh:
            took = seconds(lambda: build(work / "fresh", "--role", "server", cache=work / "cache"))
            yield Figure("fresh machine, everything, -19, with proof", took, 300, "s")


def after_a_change(work: Path) -> Iterator[Figure]:
    """A rebuild after a change in our Python only, and whether it equals a full build."""
    copy = work / "checkout"
    ignored = shutil.ignore_patterns(".git", ".tox", "out", "__pycache__")
    shutil.copytree(ROOT, copy, symlinks=True, ignore=ignored)
    changed = copy / "zipnet" / "preflight.py"
    changed.write_text(changed.read_text("utf-8") + "\n# one more line\n", "utf-8")
    quick = ("--role", "server", "--compress-level", str(QUICK), "--skip-boot-proof")
    took = seconds(lambda: build(work / "changed", *quick, root=copy))
    yield Figure("rebuild after a change in Python", took, 15, "s")
    build(work / "changed-full", *quick, "--vary", root=copy)
    one, two = (work / n / "server/zipnet-server.efi" for n in ("changed", "changed-full"))
    yield Figure(
        "… bytes differing from a full build", float(one.read_bytes() != two.read_bytes()), 0, ""
    )


def measuring(work: Path) -> Iterator[Figure]:
    """`attestation measure` as a process, on an image padded to 60 MiB."""
    image = work / "warm/server"
    big = work / "big.efi"
    data = (image / "zipnet-server.efi").read_bytes()
    big.write_bytes(data + bytes(max(0, 60 * MIB - len(data))))
    firmware = image / "zipnet-server.fd"
    command = [sys.executable, "-m", "attestation", "measure", str(firmware), str(big)]
    took = seconds(lambda: subprocess.run(command, check=True, capture_output=True, cwd=ROOT))
    yield Figure("attestation measure, 60 MiB UKI", took, 1, "s")


def sizes(work: Path) -> Iterator[Figure]:
    """UKIs at zstd -19."""
    build(work / "release", "--role", "all", "--skip-boot-proof")
    for role, limit in ((Role.SERVER, 45), (Role.CLIENT, 45), (Role.AGGREGATOR, 60)):
        size = (work / "release" / role / f"zipnet-{role}.efi").stat().st_size / MIB
        yield Figure(f"UKI of the {role} at zstd -19", size, limit, "MiB")


@click.command()
@click.option("--runs", default=3, show_default=True, help="Builds of each kind; medians count.")
@click.option("--fresh", is_flag=True, help="Also build once with an empty cache.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def main(runs: int, fresh: bool, as_json: bool) -> None:
    """Measure image builds; exit 2 if a figure is over its limit."""
    console = Console(stderr=True)
    found = []
    with console.status("building"):
        for figure in figures(runs, fresh):
            found.append(figure)
            console.print(f"{figure.name}: {figure.value:.2f} {figure.unit}", highlight=False)
    if as_json:
        rows = [{**asdict(f), "limit": f.limit if isfinite(f.limit) else None} for f in found]
        click.echo(json.dumps({"schema": "zipnet.benchmark/1", "figures": rows}, indent=2))
    else:
        table = Table("figure", "value", "limit", "unit", "", box=None)
        for f in found:
            verdict = "ok" if f.good else "OVER"
            table.add_row(f.name, f"{f.value:.2f}", f"{f.limit:g}", f.unit, verdict)
        Console().print(table)
    sys.exit(0 if all(f.good for f in found) else 2)


if __name__ == "__main__":
    main()
