"""Compares two builds byte for byte; names the first file that differs and where it came from."""

from __future__ import annotations

import stat
import subprocess
from dataclasses import dataclass, replace
from pathlib import Path

from attestation.errors import AttestationError
from attestation.measure.pe import Pe
from release.build import cpio
from release.build.cpio import Entry
from release.build.tools import Tree
from release.errors import NotReproducible, ToolFailed
from release.origin import Origins, wheels_of

INITRD_LIMIT = 2 << 30
ONLY_FIRST, ONLY_SECOND = "only in the first build", "only in the second build"
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
    """What it takes to look into an image: the tools' zstd, and what tells whose a file is."""

    tools: Tree
    origins: Origins

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
                    source = {
                        ".linux": "the kernel package",
                        ".cmdline": "the kernel command line of mkosi.conf",
                    }
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
        origins = replace(self.origins, wheels=wheels_of(before) | wheels_of(after))

        def found(member: str, aspect: str) -> Difference:
            return Difference(name, member, aspect, origins.of(member))

        here, there = (
            {entry.name: entry for entry in before},
            {entry.name: entry for entry in after},
        )
        counts: Difference | None = None
        for one in sorted({**there, **here}.values(), key=lambda entry: _order(entry.name)):
            if one.name not in here or one.name not in there:
                return found(one.name, ONLY_FIRST if one.name in here else ONLY_SECOND)
            aspect = _aspect(here[one.name], there[one.name])
            if aspect.startswith("nlink") and stat.S_ISDIR(one.mode):
                # It follows from a folder inside that only one build has.
                counts = counts or found(one.name, aspect)
            elif aspect:
                return found(one.name, aspect)
        if counts is not None:
            return counts
        for one, two in zip(before, after, strict=False):
            if one.name != two.name:
                return found(one.name, "in another place of the archive")
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


def _loaded(image: Pe, name: str) -> bytes:
    loaded = image.loaded(name)
    return b"" if loaded is None else bytes(loaded[0])


def _order(name: str) -> tuple[str, ...]:
    """A folder before what is in it, and that before the folder's next neighbour."""
    return tuple(name.split("/"))


def _aspect(one: Entry, two: Entry) -> str:
    """How two members of one name differ first; empty if they don't."""
    for field in FIELDS:
        if getattr(one, field) != getattr(two, field):
            if field == "data":
                return f"content, {_where(one.data, two.data)}"
            return f"{field} {getattr(one, field)} and {getattr(two, field)}"
    return ""


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
