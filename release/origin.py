"""Where a file of an image comes from: a package, a wheel, this repository, or a step of a build.

Packages and wheels are asked for their own lists of files, so what is named is what ships a path.
Only what no list has is told by its place.
"""

from __future__ import annotations

import csv
import io
import re
import tarfile
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from release.build.cpio import Entry
from release.build.deb import Deb, Store
from release.build.process import started
from release.errors import BuildRefused

RUNTIME = "usr/lib/zipnet/"
SITE = re.compile(re.escape(RUNTIME) + r"lib/python3\.[0-9]+/site-packages/")
RECORD = re.compile(SITE.pattern + r"([^/]+)-([^/-]+)\.dist-info/RECORD")
PROJECT_PACKAGES = ("attestation", "zipnet")
MODULE = re.compile(r"usr/lib/modules/[^/]+/.*\.ko(\.[a-z0-9]+)?")
# What a step makes or rewrites, whichever package ships a first version of it.
STEPS = (
    (
        r"usr/lib/modules/[^/]+/modules\.(?!builtin$|builtin\.modinfo$|order$).*",
        "depmod in images/base/finalize.sh, over the kernel modules that the image has",
    ),
    (r"usr/lib/zipnet/(flavor|role)", "this repository: release/build/stage.py"),
    (
        r"usr/lib/zipnet/(bin/python3|pyvenv\.cfg)|etc/machine-id|(etc|var)/\.updated",
        "this repository: images/base/finalize.sh",
    ),
    (r"(etc|usr/lib)/os-release", "step mkosi: os-release, from base-files and ImageId="),
    (r"etc/(passwd|group|shadow|gshadow|sub[ug]id)", "step mkosi: systemd-sysusers"),
    (r"etc/ld\.so\.cache", "step mkosi: ldconfig"),
    (r"etc/(hostname|localtime|locale\.conf|default/locale)", "mkosi.conf, [Content]"),
    (r"etc/systemd/system/.*", "step mkosi: presets, from images/*/tree/usr/lib/systemd"),
)
UNKNOWN = "no package: images/, a maintainer script or mkosi"


@dataclass(frozen=True, slots=True)
class Origins:
    """What it takes to say whose a path is.

    `sources` is the checkout that the image was built from, `wheels` maps paths of the image to
    "NAME VERSION" (see `wheels_of`). Packages that `store` does not hold are passed over.
    """

    store: Store
    debs: Sequence[Deb]
    sources: Path
    wheels: Mapping[str, str] = field(default_factory=dict)

    def of(self, path: str) -> str:
        """Whose file this is. Raises BuildRefused for a package that can't be listed."""
        source = _source(path)
        site = SITE.match(path)
        if site is not None:
            inside = source[site.end() :]
            top = inside.partition("/")[0]
            if top in PROJECT_PACKAGES:
                return f"this repository: {inside}"
            wheel = self.wheels.get(source) or self.wheels.get(path)
            return f"the wheel {wheel or top.partition('-')[0]}"
        for form, step in STEPS:
            if re.fullmatch(form, path):
                return step
        for folder in sorted((self.sources / "images").glob("*/tree")):
            if (folder / source).is_file():
                return f"this repository: {folder.relative_to(self.sources)}/{source}"
        for deb in self.debs:
            if self.store.path(deb).is_file() and {path, source} & paths(self.store.path(deb)):
                chosen = ", by KernelModules= of mkosi.conf" if MODULE.fullmatch(path) else ""
                return f"the package {deb.name} {deb.version}{chosen}"
        return UNKNOWN


def _source(path: str) -> str:
    """The source of byte code, which belongs to whom the source belongs; else the path itself."""
    folder, cached, file = path.rpartition("/__pycache__/")
    return f"{folder}/{file.partition('.')[0]}.py" if cached else path


def wheels_of(members: Iterable[Entry]) -> dict[str, str]:
    """Path in the image to "NAME VERSION", by the lists that installed wheels leave of themselves.

    A list that is no UTF-8 is passed over.
    """
    found = {}
    for member in members:
        match = RECORD.fullmatch(member.name)
        site = SITE.match(member.name)
        if match is None or site is None:
            continue
        try:
            rows = list(csv.reader(io.StringIO(member.data.decode("utf-8"))))
        except (UnicodeDecodeError, csv.Error):
            continue
        for row in rows:
            if row:
                found[site[0] + row[0]] = f"{match[1]} {match[2]}"
    return found


def paths(deb: Path) -> set[str]:
    """The paths that a package file ships, below /usr where the image has them so.

    Raises BuildRefused for a file that is no package.
    """
    with started(["dpkg-deb", "--fsys-tarfile", deb]) as process:
        assert process.stdout is not None
        raw = process.stdout.read()
    try:
        with tarfile.open(fileobj=io.BytesIO(raw)) as archive:
            names = [member.name.removeprefix("./") for member in archive]
    except tarfile.TarError as error:
        raise BuildRefused(
            f"the package {deb.name} can't be listed",
            got=str(error),
            rule="a package file holds an archive of its files",
            hint="remove it from the store; a build fetches it again",
        ) from error
    # Packages still name /bin and /lib; the image has them below /usr only.
    merged = (f"usr/{n}" for n in names if n.startswith(("bin/", "sbin/", "lib/", "lib64/")))
    return {*names, *merged}
