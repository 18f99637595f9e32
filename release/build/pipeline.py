"""From a request to measured appliances: the order of the steps, and what each hands on."""

from __future__ import annotations

import errno
import json
import os
import re
import shutil
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from attestation.measure import firmware
from attestation.measure.firmware import Model
from attestation.measure.record import BootProof, Measurements, measure_image
from attestation.measure.rtmr import BootPath
from attestation.measure.tdvf import HostProfile
from release.build import mkosi as mkosi_module
from release.build import outputs, proof, tools, wheels
from release.build.console import Steps
from release.build.deb import Deb, digest
from release.build.emulator import Emulator
from release.build.lock import Lock
from release.build.mkosi import Mkosi
from release.build.packages import Packages
from release.build.process import full_disk
from release.build.sbom import sbom
from release.build.settings import (
    BUILDER_SETS,
    COMPRESS_LEVEL,
    DISTRIBUTIONS,
    Distribution,
    Flavor,
    PackageSet,
    Paths,
    Role,
)
from release.build.stage import stage
from release.build.supply import TOOLS_LOCK, Supply, age, base_firmware
from release.build.tools import Tree
from release.errors import HostError

# A build's own files, without its cache: staging, package pool, mkosi's workspace, outputs.
WORK_SPACE = 1500 << 20
SHOWN = 6
KEPT_LOGS = 30


@dataclass(frozen=True, slots=True)
class Request:
    """What to build.

    `vary` makes the second build of a comparison: its clock is shifted, it uses no cache, and it
    has no boot proof of its own, for it only counts if its bytes are those that were proved.
    """

    roles: tuple[Role, ...]
    distribution: Distribution
    flavor: Flavor
    out: Path
    compress_level: int = COMPRESS_LEVEL
    skip_boot_proof: bool = False
    vary: bool = False


@dataclass(frozen=True, slots=True)
class Toolbox:
    """The builder's programs and base firmware, and the packages that they came from."""

    mkosi: Tree
    tools: Tree
    emulator: Emulator
    base: bytes
    lock: Lock

    def used(self) -> tuple[tuple[str, tuple[Deb, ...]], ...]:
        """What an image's bytes and proof were made with."""
        return tuple((name, self.lock.packages(name)) for name in BUILDER_SETS)


@dataclass(frozen=True, slots=True)
class Built:
    """One finished appliance. `model` is `unconfirmed` for a firmware this version doesn't know."""

    role: Role
    folder: Path
    measurements: Measurements
    model: Model
    boot_proof: BootProof
    debs: tuple[Deb, ...]

    def upstream(self) -> tuple[bytes, bytes, bytes]:
        """MR_TD, RTMR1 and RTMR2 of the default host profile and boot path."""
        return _upstream(self.measurements)

    def to_json(self) -> dict[str, object]:
        """What `build.py --json` prints of it."""
        mr_td, rtmr1, rtmr2 = self.upstream()
        return {
            "role": self.role,
            "folder": str(self.folder),
            "mr_td": mr_td.hex(),
            "rtmr1": rtmr1.hex(),
            "rtmr2": rtmr2.hex(),
            "model": self.model,
            "boot_proof": self.boot_proof,
            "files": {
                p.name: {"sha256": digest(p), "size": p.stat().st_size}
                for p in sorted(self.folder.iterdir())
            },
        }


@dataclass(frozen=True, slots=True)
class Result:
    """What a build made, and the package sets that it made it from."""

    built: tuple[Built, ...]
    box: Toolbox
    images: Lock

    def locks(self) -> tuple[tuple[str, Lock], ...]:
        """The locks that build exactly this again, with the names of their files."""
        return (TOOLS_LOCK, self.box.lock), (self.images.release, self.images)


def _upstream(found: Measurements) -> tuple[bytes, bytes, bytes]:
    for entry in found.entries:
        if entry.host_profile is HostProfile.UPSTREAM and entry.boot_path is BootPath.KERNEL:
            return entry.mr_td, entry.rtmr1, entry.rtmr2
    raise AssertionError("measure_image covers every profile and path")


@dataclass(frozen=True, slots=True)
class Builder:
    """Runs the steps of one call of `build.py`."""

    paths: Paths
    supply: Supply
    steps: Steps

    @contextmanager
    def workspace(self) -> Iterator[Path]:
        """A folder for everything half-done, gone afterwards.

        Raises HostError on a full disk, and for a cache whose path apt's files can't express.
        """
        parent = self.paths.cache / "work"
        if re.search(r"[\s\"]", str(parent)):
            raise HostError(
                "the path of the cache has blanks or quotes",
                got=str(self.paths.cache),
                rule="apt's source files hold paths without blanks",
                hint="point ZIPNET_CACHE to another folder",
            )
        parent.mkdir(parents=True, exist_ok=True)
        _forget(self.paths.cache / "logs")
        free = shutil.disk_usage(parent).free
        if free < WORK_SPACE:
            raise HostError(
                "the disk is too full for a build",
                expected=f"{WORK_SPACE >> 20} MiB free in {parent}",
                got=f"{free >> 20} MiB",
                rule="a build does not start what it can't finish",
                hint="free some space, or point ZIPNET_CACHE to another disk",
            )
        _sweep(parent)
        work = Path(tempfile.mkdtemp(dir=parent, prefix=f"{os.getpid()}-"))
        try:
            yield work
        finally:
            mkosi_module.remove(work)

    def toolbox(self) -> Toolbox:
        """Resolve, announce, fetch and unpack the builder's own programs."""
        with self.steps.step(
            "tools: package indices" if not self.supply.locked else "tools: lock"
        ) as step:
            found = self.supply.tools(step.log)
            remark = None if self.supply.locked else age(found)
            if remark:
                step.note(remark)
            self._say_differences(step.note, TOOLS_LOCK, found, BUILDER_SETS)
        store = self.supply.store
        sets = {n: found.packages(n) for n in BUILDER_SETS}
        with self.steps.step("tools: fetch and unpack") as step:
            missing = [d for debs in sets.values() for d in store.missing(debs)]
            if missing:
                size = sum(d.size for d in missing) / 1e6
                step.say(f"fetching {len(missing)} packages, {size:.0f} MB, into {store.folder};")
                step.say("they are unpacked below it, nothing is installed on this host")
            step.say(", ".join(f"{n}: {_version(n, debs)}" for n, debs in sets.items()))
            trees = {name: self.supply.tree(found, name, step.log) for name in sets}
            tools.prune(self.paths.cache / "trees")
        return Toolbox(
            mkosi=trees["mkosi"],
            tools=trees["tools"],
            emulator=Emulator(trees["emulator"]),
            base=base_firmware(trees["firmware"]),
            lock=found,
        )

    def _say_differences(
        self, note: Callable[[str], None], name: str, found: Lock, sets: Sequence[str]
    ) -> None:
        lines = self.supply.compared(name, found, sets)
        for line in lines[:SHOWN]:
            note(f"differs from the lock: {line}" if line[:1] in "+-~!" else line)
        if len(lines) > SHOWN:
            note(f"… and {len(lines) - SHOWN} more (build.py lock would take them over)")

    def package_sets(
        self, request: Request, box: Toolbox, staged: dict[Role, Path], work: Path, log: Path
    ) -> list[PackageSet]:
        """What mkosi's configuration asks for, by role; mkosi itself reads it."""
        runner = self._mkosi(request, box, 0)
        return [
            PackageSet(str(role), runner.packages(folder, role, work=work, log=log), essential=True)
            for role, folder in staged.items()
        ]

    def _mkosi(self, request: Request, box: Toolbox, epoch: int) -> Mkosi:
        level = request.compress_level
        return Mkosi(box.mkosi, box.tools, request.distribution, epoch, level)

    def print_config(self, request: Request) -> str:
        """Mkosi's resolved configuration of the requested roles; nothing is built."""
        with self.workspace() as work:
            box = self.toolbox()
            parts = []
            with self.steps.step("configuration") as step:
                empty = work / "no-runtime"
                empty.mkdir()
                for role in request.roles:
                    folder = work / f"stage-{role}"
                    runtime = wheels.Runtime(empty, ())
                    stage(self.paths.root, folder, role, request.flavor, runtime)
                    runner = self._mkosi(request, box, 0)
                    parts.append(runner.summary(folder, role, work=work, log=step.log))
            return "".join(parts)

    def resolve(self, request: Request, box: Toolbox, staged: dict[Role, Path], work: Path) -> Lock:
        """The packages of all requested images."""
        distribution = request.distribution
        name = f"{distribution.name}-{distribution.release}"
        with self.steps.step(f"packages of {name}") as step:
            wanted = self.package_sets(request, box, staged, work, step.log)
            fresh = distribution is DISTRIBUTIONS["debian"]
            found = self.supply.images(distribution, wanted, box.tools, step.log, refresh=not fresh)
            self._say_differences(step.note, name, found, [group.name for group in wanted])
            debs = sorted({deb for group in wanted for deb in found.packages(group.name)})
            size = self.supply.fetch(debs, found.timestamp, step.log)
            step.note(f"{len(debs)} packages" + (f", {size / 1e6:.0f} MB fetched" if size else ""))
        return found

    def stage_all(self, request: Request, work: Path) -> tuple[dict[Role, Path], wheels.Runtime]:
        """Stage every requested role."""
        with self.steps.step("runtime: locked wheels") as step:
            runtime = wheels.install(
                self.paths.python_lock,
                request.distribution,
                self.paths.cache / "runtimes",
                step.log,
                self.supply.bundle,
            )
            staged = {}
            for role in request.roles:
                # The second build of a comparison lives at a longer path.
                name = f"{'another/place/for/the/' if request.vary else ''}stage-{role}"
                staged[role] = work / name
                staged[role].parent.mkdir(parents=True, exist_ok=True)
                stage(self.paths.root, staged[role], role, request.flavor, runtime)
        return staged, runtime

    def build(self, request: Request) -> Result:
        """Build every requested role; one that fails leaves its folder in `out` as it was."""
        outputs.check(request.out, request.roles)
        with self.workspace() as work:
            box = self.toolbox()
            staged, runtime = self.stage_all(request, work)
            found = self.resolve(request, box, staged, work)
            built = tuple(
                self._build_role(request, role, box, found, staged[role], runtime, work / role)
                for role in request.roles
            )
            return Result(built, box, found)

    def _build_role(
        self,
        request: Request,
        role: Role,
        box: Toolbox,
        found: Lock,
        staged: Path,
        runtime: wheels.Runtime,
        work: Path,
    ) -> Built:
        work.mkdir()
        debs = found.packages(role)
        epoch = found.source_date_epoch
        with self.steps.step(f"{role}: image") as step:
            self.supply.store.pool(debs, work / "pool")
            caches = self.paths.cache / "images"
            cache = caches / f"{role}-{tools.key((*debs, *box.lock.packages('tools')))}"
            made = self._mkosi(request, box, epoch).build(
                staged,
                role,
                pool=work / "pool",
                work=work,
                log=step.log,
                cache=None if request.vary else cache,
                vary=request.vary,
                echo=step.echo,
            )
            mkosi_module.prune(caches, role, cache)
        with outputs.replacing(request.out, role) as folder:
            image = f"zipnet-{role}"
            uki, bound = folder / f"{image}.efi", folder / f"{image}.fd"
            with self.steps.step(f"{role}: bind and measure") as step:
                shutil.copyfile(made.uki, uki)
                data = uki.read_bytes()
                bound.write_bytes(firmware.bind(box.base, data))
            boot_proof = self._prove(request, role, box, bound, uki, made.kernel, work)
            with self.steps.step(f"{role}: outputs") as step:
                is_dev = request.flavor is Flavor.MOCK
                measured = measure_image(
                    role, bound.read_bytes(), data, is_dev=is_dev, boot_proof=boot_proof
                )
                mr_td = _upstream(measured)[0].hex()
                content = Packages(
                    role=role,
                    flavor=request.flavor,
                    distribution=request.distribution.name,
                    release=request.distribution.release,
                    source_date_epoch=epoch,
                    compress_level=request.compress_level,
                    packages=debs,
                    wheels=runtime.wheels,
                    builder=box.used(),
                )
                files = {
                    "packages.json": content.dumps(),
                    "sbom.cdx.json": sbom(
                        image,
                        self.paths.version(),
                        digest(uki),
                        debs,
                        runtime.wheels,
                        request.distribution,
                        epoch,
                    ),
                    "run-qemu": outputs.run_qemu(role),
                }
                outputs.write(folder, files, measured, mr_td)
                model = measured.entries[0].model
                step.note(f"MR_TD  {mr_td}")
                if model is Model.UNCONFIRMED:
                    step.note("model: unconfirmed: this firmware is new to this version; it passed")
                    step.note("the audit; `python build.py test -e image` compares it with a TPM")
        return Built(role, request.out / role, measured, model, boot_proof, debs)

    def _prove(
        self,
        request: Request,
        role: Role,
        box: Toolbox,
        bound: Path,
        uki: Path,
        kernel: Path,
        work: Path,
    ) -> BootProof:
        if request.skip_boot_proof:
            with self.steps.step(f"{role}: boot proof SKIPPED") as step:
                step.note("WARNING: nothing shows that this firmware enforces its policy;")
                step.note(
                    "measurements.json records it, and peers refuse it outside mock deployments"
                )
            return BootProof.SKIPPED
        if request.vary:
            return BootProof.PASSED
        with self.steps.step(f"{role}: boot proof") as step:
            proof.prove(box.emulator, bound, role, uki, kernel, work, step.log, step.note)
        return BootProof.PASSED

    def lock(self, request: Request) -> list[Path]:
        """Write the locks of the builder's tools and of the distribution's images."""
        with self.workspace() as work:
            box = self.toolbox()
            staged, _ = self.stage_all(request, work)
            found = self.resolve(request, box, staged, work)
            self.supply.locks.mkdir(parents=True, exist_ok=True)
            written = []
            for name, each in ((TOOLS_LOCK, box.lock), (found.release, found)):
                path = self.supply.lock_path(name)
                scratch = path.with_suffix(".new")
                try:
                    scratch.write_bytes(each.dumps())
                    scratch.replace(path)
                finally:
                    scratch.unlink(missing_ok=True)
                written.append(path)
            return written


def _version(name: str, debs: Sequence[Deb]) -> str:
    names = {"mkosi": "mkosi", "firmware": "ovmf-inteltdx", "emulator": "qemu-system-x86"}
    for deb in debs:
        if deb.name == names.get(name):
            return f"{deb.name} {deb.version}"
    return f"{len(debs)} packages"


def _forget(logs: Path) -> None:
    """Remove all but the newest logs; their names begin with the time."""
    for path in sorted(logs.glob("*-*"))[:-KEPT_LOGS]:
        shutil.rmtree(path, ignore_errors=True)


def _sweep(parent: Path) -> None:
    """Remove what builds left that were killed: folders of processes that are no more."""
    for path in parent.iterdir():
        pid = path.name.partition("-")[0]
        if pid.isdecimal() and not Path("/proc", pid).exists():
            mkosi_module.remove(path)


def explain_os_error(error: OSError) -> HostError:
    """An error of the operating system as one of ours."""
    if error.errno == errno.ENOSPC:
        return full_disk(str(error))
    return HostError(
        "the operating system refused something that the build needs",
        got=str(error),
        hint="run `python build.py doctor`",
    )


def as_json(built: Sequence[Built], timings: Sequence[tuple[str, float]]) -> str:
    """The machine-readable result of a build."""
    document = {
        "schema": "zipnet.build/1",
        "images": [each.to_json() for each in built],
        "steps": [{"step": title, "seconds": round(s, 2)} for title, s in timings],
    }
    return json.dumps(document, indent=2)
