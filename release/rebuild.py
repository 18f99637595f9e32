"""Builds the images of a release again from its commit, and tells where they differ from it.

The second build is made unlike the first on purpose: from a fresh copy of the commit, under another
umask, time zone and clock, and without installed packages of earlier builds. It has no boot proof
of its own: it only counts where its bytes are those that were proved.
"""

from __future__ import annotations

import os
import sys
import tempfile
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from attestation.errors import AttestationError
from attestation.measure import firmware
from attestation.measure.record import Measurements
from release.build import lock
from release.build.again import ELSEWHERE, UMASK
from release.build.compare import ONLY_FIRST, ONLY_SECOND, Comparison
from release.build.deb import Store, digest
from release.build.packages import Packages
from release.build.process import TAIL, run, started
from release.build.settings import Paths
from release.build.tools import unpack
from release.build.wheels import PIP_NETWORK
from release.errors import BuildRefused, HostError, ReleaseRejected, ToolFailed
from release.manifest import Locked, Manifest, Output, RoleEntry
from release.origin import Origins

ROOT = Path(__file__).resolve().parents[1]
# Where this user's builds find their cache; and packages, unless a bundle has them.
CACHE = ("XDG_CACHE_HOME", "ZIPNET_CACHE")
SOURCES = (*PIP_NETWORK, "ZIPNET_SNAPSHOT")
REFUSED = 2
PACKAGES = "packages.json"
ONLY = {ONLY_FIRST: "missing from the rebuilt image", ONLY_SECOND: "only in the rebuilt image"}
# Files that are computed from the image and firmware alone.
DERIVED = ("measurements.json", "mrtd.hex", "sha256sums.txt", "sbom.cdx.json")


@dataclass(frozen=True, slots=True)
class Difference:
    """An output of a role that is not the release's, where in it, and whose doing that is."""

    role: str
    file: str
    path_in_image: str | None
    origin: str
    detail: str

    def __str__(self) -> str:
        inside = f": {self.path_in_image}" if self.path_in_image else ""
        return f"{self.role}: {self.file}{inside}: {self.detail} (from {self.origin})"


def rebuild(
    manifest: Manifest,
    checkout: Path,
    out: Path,
    bundle: Path | None,
    said: Callable[[str], None],
) -> Path:
    """Build the roles of a release from its commit into `out/ROLE`; return `out`.

    `checkout` is any clone that has the commit; what is checked out there does not matter. With a
    `bundle` no mirror and no index is asked. Raises HostError without the commit, ReleaseRejected
    if the commit's locks are not the release's, BuildRefused or ToolFailed if the build fails.
    """
    with tempfile.TemporaryDirectory(prefix="zipnet-rebuild-") as name:
        sources = Path(name) / "the commit, elsewhere"
        export(checkout, manifest.commit, sources)
        for locked, path in _locks(manifest, sources):
            _check_lock(locked, path)
        said(f"building {', '.join(e.role for e in manifest.roles)} from {manifest.commit}")
        command = [sys.executable, "-P", "-m", "release.build", "--locked", "--vary"]
        command += [f"--role={entry.role}" for entry in manifest.roles]
        command += [f"--distribution={manifest.distribution[0]}", f"--out={out.absolute()}"]
        command += [f"--compress-level={manifest.compress_level}"]
        command += [] if bundle is None else [f"--bundle={bundle.absolute()}"]
        wanted = CACHE if bundle is not None else (*CACHE, *SOURCES)
        settings = {name: os.environ[name] for name in wanted if name in os.environ}
        python = {"PYTHONPATH": str(sources), "PYTHONDONTWRITEBYTECODE": "1"}
        _build(command, ELSEWHERE | settings | python, sources, said)
    return out


def export(checkout: Path, commit: str, folder: Path) -> None:
    """The files of a commit in a new folder. Raises HostError if there is no such commit."""
    folder.mkdir(parents=True)
    archive = folder.parent / "commit.tar"
    git = ["git", "-C", str(checkout.absolute()), "-c", "core.autocrlf=false"]
    try:
        run([*git, "archive", "--format=tar", f"--output={archive}", commit])
    except ToolFailed as error:
        raise HostError(
            f"the commit {commit} is not in {checkout}",
            got=error.tail[-1] if error.tail else "",
            rule="a rebuild starts from the commit of the release",
            hint="run it in a clone of the repository, after `git fetch --tags`",
        ) from error
    run(["tar", "--extract", f"--file={archive}", f"--directory={folder}"])
    archive.unlink()


def _locks(manifest: Manifest, sources: Path) -> Iterator[tuple[Locked, Path]]:
    paths = Paths(sources, sources)
    yield manifest.locks.images, paths.locks / manifest.locks.images.file
    yield manifest.locks.tools, paths.locks / manifest.locks.tools.file
    yield manifest.locks.python, sources / manifest.locks.python.file


def _check_lock(locked: Locked, path: Path) -> None:
    got = digest(path) if path.is_file() else "no such file"
    if got != locked.sha256:
        raise ReleaseRejected(
            f"{locked.file} of the commit is not the release's",
            expected=locked.sha256,
            got=got,
            rule="rebuild.lock",
            hint="the release was not made from the commit that it names: ask its publisher",
        )


def _build(
    command: list[str], env: dict[str, str], folder: Path, said: Callable[[str], None]
) -> None:
    tail: deque[str] = deque(maxlen=TAIL)
    with started(command, env=env, cwd=folder, umask=UMASK) as process:
        assert process.stdout is not None
        for raw in process.stdout:
            if line := raw.decode("utf-8", "replace").rstrip():
                tail.append(line[:300])
                said(line[:300])
        status = process.wait()
    if status == REFUSED:
        raise BuildRefused(
            "the builder of the release's commit refuses to build it",
            got="\n".join(tail),
            rule="rebuild.build",
            hint="its last lines name the check that failed",
        )
    if status:
        raise ToolFailed(f"the builder ended with status {status}", tail=tuple(tail))


def compare(
    manifest: Manifest,
    rebuilt: Path,
    reference: Path | None = None,
    *,
    published: Path | None = None,
    sources: Path = ROOT,
) -> list[Difference]:
    """How the folders `rebuilt/ROLE` differ from the release; empty if they are identical.

    The first of each role is the cause as far as it can be told. `reference` holds artefacts of the
    release, as ROLE/NAME or NAME; `published` is the folder of the release; of either only files
    with the manifest's hashes are looked at. `sources` is a checkout, to tell whose a file is.
    Raises HostError or BuildRefused where the images can't be looked into.
    """
    folders = tuple(folder for folder in (reference, published) if folder is not None)
    return [
        difference
        for entry in manifest.roles
        for difference in _Role(entry, rebuilt / entry.role, folders, sources).differences()
    ]


@dataclass(frozen=True, slots=True)
class _Role:
    """One role of the release, its rebuilt folder, and where files of the release may lie."""

    entry: RoleEntry
    folder: Path
    references: tuple[Path, ...]
    sources: Path

    def differences(self) -> Iterator[Difference]:
        wanted = {output.name: output for output in self.entry.outputs}
        got = {p.name for p in self.folder.iterdir()} if self.folder.is_dir() else set()
        different = {
            name
            for name, output in wanted.items()
            if name in got and digest(self.folder / name) != output.sha256
        }
        image, bound = self.entry.image.name, self.entry.firmware.name
        if image in different:
            yield self._image(image)
        if bound in different:
            yield self._firmware(bound, image if image in different else "")
        for name in sorted(different - {image, bound}):
            yield self._other(name, [n for n in (image, bound) if n in different])
        for name in sorted(wanted.keys() ^ got):
            here = "only the rebuilt folder has it" if name in got else "was not rebuilt"
            yield Difference(self.entry.role, name, None, "the builder", here)

    def _reference(self, name: str) -> bytes | None:
        """The release's own bytes of an output, if they are at hand."""
        output = self.entry.output(name)
        for folder in self.references:
            for path in (folder / self.entry.role / name, folder / name):
                if _is(path, output):
                    return path.read_bytes()
        return None

    def _image(self, name: str) -> Difference:
        role, inputs = self.entry.role, self._inputs()
        because = f"; {PACKAGES}: {inputs[0]}" if inputs else ""
        before = self._reference(name)
        if before is None:
            origin = inputs[0] if inputs else self._from_registers()
            detail = "differs; an artefact of the release (--artifacts) would tell the file"
            return Difference(role, name, None, origin, detail)
        found = self._comparison().ukis(name, before, (self.folder / name).read_bytes())
        origin = found.package
        if inputs and inputs[0].startswith("source epoch") and found.aspect.startswith("mtime"):
            origin, because = f"{inputs[0]}, by step mkosi", ""
        aspect = ONLY.get(found.aspect, found.aspect)
        return Difference(role, name, found.inside or None, origin, aspect + because)

    def _firmware(self, name: str, image: str) -> Difference:
        rebuilt, before = (self.folder / name).read_bytes(), self._reference(name)
        detail = "differs"
        if before is not None:
            try:
                base = firmware.code_digest(rebuilt) != firmware.code_digest(before)
                policy = firmware.policy(rebuilt) != firmware.policy(before)
            except AttestationError as error:
                return Difference(self.entry.role, name, None, "step bind", str(error))
            if base:
                origin = self._package("firmware", "ovmf-inteltdx")
                return Difference(self.entry.role, name, None, origin, "another firmware code")
            detail = "another policy" if policy else "another variable store"
        origin = f"firmware policy, which names the hash of {image}" if image else "firmware policy"
        return Difference(self.entry.role, name, None, origin, detail)

    def _other(self, name: str, causes: list[str]) -> Difference:
        inputs = self._inputs() if name == PACKAGES else []
        if inputs:
            more = f" and {len(inputs) - 1} more" if len(inputs) > 1 else ""
            return Difference(self.entry.role, name, None, inputs[0], f"other inputs{more}")
        origin = "the builder of the commit"
        if name in DERIVED and causes:
            origin = " and ".join(causes)
        return Difference(self.entry.role, name, None, origin, "differs")

    def _packages(self) -> Packages:
        return Packages.loads((self.folder / PACKAGES).read_bytes())

    def _inputs(self) -> list[str]:
        """What the two builds took that differs, one line each."""
        raw = self._reference(PACKAGES)
        if raw is None:
            return []
        before, after = Packages.loads(raw), self._packages()
        return list(_changes(before, after))

    def _from_registers(self) -> str:
        """What the measurements tell of an image whose bytes are not at hand."""
        try:
            rebuilt = Measurements.load(self.folder / "measurements.json")
        except AttestationError:
            return "unknown"
        known = {entry.rtmr2 for entry in self.entry.measurements.entries}
        if {entry.rtmr2 for entry in rebuilt.entries} == known:
            return "systemd's stub or ukify: RTMR2, and so every section, is the same"
        return "a section: RTMR2 differs"

    def _package(self, group: str, name: str) -> str:
        for deb in self._packages().set_of(group):
            if deb.name == name:
                return f"the package {deb.name} {deb.version}"
        return f"the package {name}"

    def _comparison(self) -> Comparison:
        rebuilt = self._packages()
        debs = rebuilt.packages
        if (raw := self._reference(PACKAGES)) is not None:
            debs = tuple(dict.fromkeys((*debs, *Packages.loads(raw).packages)))
        cache = Paths.of(self.sources).cache
        store = Store(cache / "debs")
        with tempfile.NamedTemporaryFile(prefix="zipnet-unpack-") as log:
            trees = cache / "trees"
            tools = unpack("tools", rebuilt.set_of("tools"), store, trees, Path(log.name))
        return Comparison(tools, Origins(store, debs, self.sources))


def _is(path: Path, output: Output) -> bool:
    return path.is_file() and path.stat().st_size == output.size and digest(path) == output.sha256


def _changes(before: Packages, after: Packages) -> Iterator[str]:
    for name, what in (("source_date_epoch", "source epoch"), ("compress_level", "zstd level")):
        one, two = getattr(before, name), getattr(after, name)
        if one != two:
            yield f"{what} {one} and {two}"
    for line in lock.differences(before.packages, after.packages):
        yield f"package {line}"
    one, two = (frozenset((w.name, w.version, w.sha256) for w in p.wheels) for p in (before, after))
    for name, version, _ in sorted(one ^ two):
        yield f"wheel {name} {version}"
    sets = dict(before.builder)
    for name, debs in after.builder:
        for line in lock.differences(sets.get(name, ()), debs):
            yield f"builder's {name} {line}"


def require_identical(differences: list[Difference]) -> None:
    """Raise ReleaseRejected that names the first difference, if there is one."""
    if differences:
        more = f"; and {len(differences) - 1} more files" if len(differences) > 1 else ""
        raise ReleaseRejected(
            "the rebuilt images are not the release's",
            got=f"{differences[0]}{more}",
            rule="rebuild.identical",
            hint="do not use the release until its publisher has explained this difference",
        )
