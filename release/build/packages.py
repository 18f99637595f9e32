"""`packages.json`: what is in an image and what made it, by name, version and hash."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NoReturn

from release.build import lock
from release.build.deb import Deb
from release.build.settings import COMPRESS_LEVEL, Flavor, Role
from release.build.wheels import Wheel
from release.errors import BuildRefused

SCHEMA = "zipnet.packages/2"
LIMIT = 4 << 20
_NAME = r"[a-z][a-z0-9-]{0,40}"
_WHEEL = {
    "name": r"[a-z0-9]([a-z0-9-]{0,126}[a-z0-9])?",
    "version": r"[A-Za-z0-9.+!]{1,127}",
    "sha256": r"[0-9a-f]{64}",
    "file": r"[A-Za-z0-9][A-Za-z0-9._+-]{0,250}\.whl",
}


@dataclass(frozen=True, slots=True)
class Packages:
    """The content of an image: its packages and wheels, and the sets of `.deb`s that built it.

    `source_date_epoch` is in Unix seconds, `compress_level` is zstd's, for the initrd.
    """

    role: Role
    flavor: Flavor
    distribution: str
    release: str
    source_date_epoch: int
    compress_level: int
    packages: tuple[Deb, ...]
    wheels: tuple[Wheel, ...]
    builder: tuple[tuple[str, tuple[Deb, ...]], ...]

    def dumps(self) -> bytes:
        """JSON with sorted keys; packages in the order of names."""
        document = {
            "schema": SCHEMA,
            "role": self.role,
            "flavor": self.flavor,
            "distribution": self.distribution,
            "release": self.release,
            "source_date_epoch": self.source_date_epoch,
            "compress_level": self.compress_level,
            "packages": [lock.record(deb) for deb in sorted(self.packages)],
            "wheels": [{name: getattr(wheel, name) for name in _WHEEL} for wheel in self.wheels],
            "builder": {
                name: [lock.record(deb) for deb in sorted(used)] for name, used in self.builder
            },
        }
        return (json.dumps(document, indent=1, sort_keys=True) + "\n").encode("ascii")

    @classmethod
    def loads(cls, raw: bytes) -> Packages:
        """Parse the file. Raises BuildRefused (LockError for a package) for anything but `dumps`'s.

        Only the canonical bytes are taken, so that two readers can't disagree about a file.
        """
        if len(raw) > LIMIT:
            _refuse("is too large", f"at most {LIMIT} bytes", str(len(raw)))
        try:
            found = json.loads(raw.decode("ascii"))
        except (ValueError, RecursionError) as error:
            _refuse("is not JSON", "ASCII JSON", str(error)[:200])
        fields = {"schema", *cls.__slots__}
        if not isinstance(found, dict) or found.get("schema") != SCHEMA or set(found) != fields:
            _refuse("has another schema", f"{SCHEMA} with the fields {', '.join(sorted(fields))}")
        for name in ("distribution", "release"):
            _match(name, found[name], r"[a-z]{2,20}")
        builder = found["builder"]
        if not isinstance(builder, dict) or not builder:
            _refuse("has no builder sets", "an object", ascii(builder)[:80])
        parsed = cls(
            role=Role(_match("role", found["role"], "|".join(Role))),
            flavor=Flavor(_match("flavor", found["flavor"], "|".join(Flavor))),
            distribution=found["distribution"],
            release=found["release"],
            source_date_epoch=_number("source_date_epoch", found["source_date_epoch"], 1 << 32),
            compress_level=_number("compress_level", found["compress_level"], COMPRESS_LEVEL + 1),
            packages=_debs("packages", found["packages"]),
            wheels=tuple(_wheel(each) for each in _list("wheels", found["wheels"])),
            builder=tuple(
                (_match("builder", name, _NAME), _debs(name, debs))
                for name, debs in builder.items()
            ),
        )
        if parsed.dumps() != raw:
            _refuse("is not in its canonical form", "sorted fields and packages, one space")
        return parsed

    def set_of(self, name: str) -> tuple[Deb, ...]:
        """A builder set. Raises BuildRefused if there is none of that name."""
        sets = dict(self.builder)
        if name not in sets:
            _refuse(f"has no builder set {name!r}", ", ".join(sets))
        return sets[name]


def _debs(name: str, value: object) -> tuple[Deb, ...]:
    return tuple(Deb.parse(each) for each in _list(name, value))


def _wheel(value: object) -> Wheel:
    if not isinstance(value, dict) or set(value) != set(_WHEEL):
        _refuse("has a malformed wheel", ", ".join(_WHEEL), ascii(value)[:80])
    return Wheel(**{name: _match(name, value[name], form) for name, form in _WHEEL.items()})


def _list(name: str, value: object) -> Sequence[object]:
    if not isinstance(value, list):
        _refuse(f"has no list of {name}", "a list", ascii(type(value)))
    return value


def _match(name: str, value: object, form: str) -> str:
    if not isinstance(value, str) or not re.fullmatch(form, value):
        _refuse(f"has a malformed {name}", form, ascii(value)[:80])
    return value


def _number(name: str, value: object, limit: int) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or not 0 < value < limit:
        _refuse(f"has a malformed {name}", f"1 to {limit - 1}", ascii(value)[:80])
    return value


def _refuse(what: str, expected: str = "", got: str = "") -> NoReturn:
    raise BuildRefused(
        f"packages.json {what}",
        expected=expected,
        got=got,
        rule="packages.json is exactly what the builder of this version writes",
        hint="rebuild, or use the release tooling of the version that wrote it",
    )
