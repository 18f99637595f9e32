"""Compares two builds byte for byte; names the first file that differs and where it came from."""

from __future__ import annotations

import io
import subprocess
import tarfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from attestation.errors import AttestationError
from attestation.measure.pe import Pe
from release.build import cpio
from release.build.deb import Deb, Store
from release.build.process import started
from release.build.tools import Tree
from release.errors import BuildRefused, NotReproducible, ToolFailed

RUNTIME_FOLDER = "usr/lib/zipnet/"
PROJECT_PACKAGES = ("attestation", "zipnet")
INITRD_LIMIT = 2 << 30
FIELDS = ("mode", "uid", "gid", "mtime", "nlink", "device", "data")


@dataclass(frozen=True, slots=True)
class Difference:
    """Where two builds differ first: which output, which part of it, and whose file that is."""

    output: str
    inside: str
    aspect: str
    package: str

    def __str__(self) -> str:
        where = f"{self.output}: {self.inside}" if self.inside else self.output
        return f"{where}: {self.aspect}" + (f" (from {self.package})" if self.package else "")


@dataclass(frozen=True, slots=True)
class Comparison:
    """What it takes to look into an image: the tools' zstd, and the packages that made it."""

    tools: Tree
    store: Store
    debs: Sequence[Deb]
    project: str

    def folders(self, first: Path, second: Path) -> Difference | None:
        """The first difference of two output folders in the order of names, None if identical."""
        names = sorted({p.name for folder in (first, second) for p in folder.iterdir()})
        # The UKI is the cause of most other differences, so it is looked at before them.
        for name in sorted(names, key=lambda n: not n.endswith(".efi")):
            one, two = first / name, second / name
            if not one.is_file() or not two.is_file():
                return Difference(name, "", f"only in one of the builds ({first}, {second})", "")
            before, after = one.read_bytes(), two.read_bytes()
            if before == after:
                continue
            if name.endswith(".efi"):
                return self.ukis(name, before, after)
            return Difference(name, "", _where(before, after), "")
        return None

    def ukis(self, name: str, first: bytes, second: bytes) -> Difference:
        """The first difference of two UKIs that are known to differ."""
        try:
            one, two = Pe.parse(first), Pe.parse(second)
            order = [s.name for s in one.sections]
            if order != [s.name for s in two.sections]:
                return Difference(name, "", "the sections differ", "ukify")
            for section in order:
                # As loaded: ukify pads a section in the file, and zstd would trip over that.
                before, after = _loaded(one, section), _loaded(two, section)
                if before != after:
                    if section == ".initrd":
                        return self.initrds(name, before, after)
                    source = {".linux": "the kernel package", ".cmdline": "mkosi.conf"}
                    return Difference(
                        name,
                        section,
                        _where(before, after),
                        source.get(section, "mkosi"),
                    )
        except AttestationError as error:
            return Difference(name, "", f"not comparable inside: {error}", "")
        return Difference(name, "", f"PE headers: {_where(first, second)}", "ukify")

    def initrds(self, name: str, first: bytes, second: bytes) -> Difference:
        """The first differing member of two compressed initrds."""
        before = list(cpio.read(self._decompressed(first)))
        after = list(cpio.read(self._decompressed(second)))
        for one, two in zip(before, after, strict=False):
            if one.name != two.name:
                # Which of the two the other build lacks; both are there if the order differs.
                there = {entry.name for entry in after}
                here = {entry.name for entry in before}
                for missing in (one.name, two.name):
                    if missing not in there & here:
                        aspect = "only in one of the builds"
                        return Difference(name, missing, aspect, self.owner(missing))
                aspect = "in another place of the archive"
                return Difference(name, one.name, aspect, self.owner(one.name))
            for field in FIELDS:
                if getattr(one, field) != getattr(two, field):
                    aspect = (
                        f"content, {_where(one.data, two.data)}"
                        if field == "data"
                        else f"{field} {getattr(one, field)} and {getattr(two, field)}"
                    )
                    return Difference(name, one.name, aspect, self.owner(one.name))
        if len(before) != len(after):
            longer = max(before, after, key=len)[min(len(before), len(after))]
            return Difference(
                name, longer.name, "only in one of the builds", self.owner(longer.name)
            )
        return Difference(
            name, ".initrd", "same members, compressed differently", "zstd of the tools"
        )

    def _decompressed(self, data: bytes) -> bytes:
        # Debian's zstd is dynamically linked, so it runs with its own tree's libraries.
        command = [str(part) for part in self.tools.command("usr/bin/zstd")]
        done = subprocess.run(
            [*command, "-d", "-c", "-q"], input=data, capture_output=True, check=False, timeout=300
        )
        if done.returncode or len(done.stdout) > INITRD_LIMIT:
            raise ToolFailed(
                "zstd can't unpack an initrd",
                tail=tuple(done.stderr.decode("utf-8", "replace").splitlines()[-3:]),
            )
        return done.stdout

    def owner(self, path: str) -> str:
        """Where a file of the image came from: project, wheel, package, or a step of the build."""
        if path.startswith(RUNTIME_FOLDER):
            inside = path.partition("/site-packages/")[2]
            top = inside.partition("/")[0]
            if not top or top in PROJECT_PACKAGES:
                return f"{self.project} (this project)"
            return f"the wheel {top.partition('-')[0]}"
        variants = {path}
        if "/__pycache__/" in path:
            folder, _, file = path.rpartition("/__pycache__/")
            variants.add(f"{folder}/{file.partition('.')[0]}.py")
        for deb in self.debs:
            if variants & self._files(deb):
                return f"the package {deb.name} {deb.version}"
        return "no package: images/, a maintainer script or mkosi"

    def _files(self, deb: Deb) -> set[str]:
        with started(["dpkg-deb", "--fsys-tarfile", self.store.path(deb)]) as process:
            assert process.stdout is not None
            raw = process.stdout.read()
        try:
            with tarfile.open(fileobj=io.BytesIO(raw)) as archive:
                names = [member.name.removeprefix("./") for member in archive]
        except tarfile.TarError as error:
            raise BuildRefused(f"the package {deb.file} can't be listed", got=str(error)) from error
        # Packages still name /bin and /lib; the image has them below /usr only.
        merged = (f"usr/{n}" for n in names if n.startswith(("bin/", "sbin/", "lib/", "lib64/")))
        return {*names, *merged}


def _loaded(image: Pe, name: str) -> bytes:
    loaded = image.loaded(name)
    return b"" if loaded is None else bytes(loaded[0])


def _where(first: bytes, second: bytes) -> str:
    """The offset of the first differing byte, by halving."""
    low, high = 0, min(len(first), len(second))
    if first[:high] == second[:high]:
        return f"sizes {len(first)} and {len(second)}"
    while high - low > 1:
        middle = (low + high) // 2
        if first[low:middle] == second[low:middle]:
            low = middle
        else:
            high = middle
    return f"first at offset {low}"


def require_identical(difference: Difference | None) -> None:
    """Raise NotReproducible if there is a difference."""
    if difference is not None:
        raise NotReproducible(
            "two builds of this tree differ",
            got=str(difference),
            rule="the same tree and lock give the same bytes",
            hint="remove the cause: a time, a path, an order or a host setting that gets into it",
        )
