"""`Manifest`: what a release is, in one signed file; everything else in it follows from this.

The file is canonical JSON, as `dumps` writes it: sorted keys, two spaces of indent, ASCII, a
newline at the end, at most 1 MiB; any other text of the same value is refused, and so are other
fields and other schemas. docs/formats.md has the fields.

Images are outputs and published elsewhere; `files` are those that lie beside the manifest: all but
itself and its signature. A manifest that names a development image, or one without its boot proof,
can't be read and can't be made.
"""

import json
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any, NoReturn, TypeVar

from attestation.envelope import fields, load_json, shown
from attestation.errors import MeasurementFormatError
from attestation.measure.record import Binding, BootProof, Measurement, Measurements
from release.errors import ReleaseFormatError, ReleaseRejected

SCHEMA = "zipnet.release/1"
NAME, SIGNATURE, SUMS = "manifest.json", "manifest.json.dsse", "sha256sums.txt"
MAX_BYTES = 1 << 20
MAX_FILE = 16 << 20  # a published file
MAX_OUTPUT = 1 << 30  # an output of a build, images included
MAX_FILES = 256
MAX_ROLES = 8

VERSION = r"(0|[1-9][0-9]{0,4})(\.(0|[1-9][0-9]{0,4})){2}(rc[1-9][0-9]{0,3})?"
PART = r"[a-z0-9][a-z0-9.-]{0,79}"
_PATH = rf"({PART}/)?{PART}"
_DIGEST = r"[0-9a-f]{64}"
_ROLE = r"[a-z][a-z0-9-]{0,31}"
_WORD = r"[a-z]{2,20}"
_TOOL = r"[a-z0-9][a-z0-9.+-]{1,63}"
_TOOL_VERSION = r"[A-Za-z0-9.+:~-]{1,127}"

_Item = TypeVar("_Item")


@dataclass(frozen=True, slots=True, order=True)
class Output:
    """A file of a build: its name in the role's output folder, bytes, SHA-256 in hex."""

    name: str
    size: int
    sha256: str

    def __post_init__(self) -> None:
        _text(self.name, PART, "outputs.name")
        _integer(self.size, 1, MAX_OUTPUT, f"size of {self.name}")
        _text(self.sha256, _DIGEST, f"sha256 of {self.name}")


@dataclass(frozen=True, slots=True, order=True)
class File:
    """A published file: NAME or FOLDER/NAME in the release, bytes, SHA-256 in hex."""

    path: str
    size: int
    sha256: str

    def __post_init__(self) -> None:
        _text(self.path, _PATH, "files.path")
        if self.path in {NAME, SIGNATURE}:
            _refuse("files.path", "files beside the manifest and its signature", self.path)
        _integer(self.size, 1, MAX_FILE, f"size of {self.path}")
        _text(self.sha256, _DIGEST, f"sha256 of {self.path}")


@dataclass(frozen=True, slots=True)
class Locked:
    """A lock file by name, and its SHA-256 in hex."""

    file: str
    sha256: str

    def __post_init__(self) -> None:
        _text(self.file, PART, "locks.file")
        _text(self.sha256, _DIGEST, f"sha256 of {self.file}")


@dataclass(frozen=True, slots=True)
class Locks:
    """What all images were built from: their packages, the builder's tools, Python wheels."""

    images: Locked
    tools: Locked
    python: Locked


@dataclass(frozen=True, slots=True)
class Previous:
    """The release before, and the SHA-256 (hex) of its manifest."""

    version: str
    manifest_sha256: str

    def __post_init__(self) -> None:
        _text(self.version, VERSION, "previous.version")
        _text(self.manifest_sha256, _DIGEST, "previous.manifest_sha256")


@dataclass(frozen=True, slots=True)
class RoleEntry:
    """The image of a role: all files of its build, and what a TD that boots it measures as."""

    role: str
    outputs: tuple[Output, ...]
    measurements: Measurements

    def __post_init__(self) -> None:
        _text(self.role, _ROLE, "role")
        _distinct((output.name for output in self.outputs), f"outputs of {self.role}")
        if tuple(sorted(self.outputs)) != self.outputs:
            _refuse(f"outputs of {self.role}", "sorted by name", "another order", "order")
        for index, entry in enumerate(self.measurements.entries):
            self._check(entry, f"{self.role}.measurements[{index}]")

    def _check(self, entry: Measurement, where: str) -> None:
        if entry.role != self.role:
            _refuse(where, f"role {self.role}", entry.role, "role")
        if entry.is_dev:
            _refuse(where, "a production image", "is_dev", "is-dev")
        if entry.boot_proof is not BootProof.PASSED:
            _refuse(where, "boot_proof passed", str(entry.boot_proof), "boot-proof")
        if entry.binding is not Binding.MRTD_CFV:
            _refuse(where, f"binding {Binding.MRTD_CFV}", str(entry.binding), "binding")
        for output, digest in (
            (self.image, entry.uki_sha256),
            (self.firmware, entry.firmware_sha256),
        ):
            if output.sha256 != digest.hex():
                _refuse(f"{where}: {output.name}", output.sha256, digest.hex(), "other-image")

    @property
    def image(self) -> Output:
        """The UKI. Raises ReleaseFormatError if the build has none."""
        return self.output(f"zipnet-{self.role}.efi")

    @property
    def firmware(self) -> Output:
        """The bound firmware. Raises ReleaseFormatError if the build has none."""
        return self.output(f"zipnet-{self.role}.fd")

    def output(self, name: str) -> Output:
        """The output of this name. Raises ReleaseFormatError if there is none."""
        found = next((output for output in self.outputs if output.name == name), None)
        if found is None:
            _refuse(f"outputs of {self.role}", f"a file {name}", "none", "output-missing")
        return found


@dataclass(frozen=True, slots=True)
class Manifest:
    """A release. Raises ReleaseFormatError for values that break the schema.

    `commit` has 40 hex digits, `source_date_epoch` is in Unix seconds, `distribution` is (name,
    release), `tools` are (name, version) of what made the bytes. The previous release is still to
    be accepted for `retirement_days`.
    """

    version: str
    commit: str
    source_date_epoch: int
    distribution: tuple[str, str]
    locks: Locks
    tools: tuple[tuple[str, str], ...]
    compress_level: int
    roles: tuple[RoleEntry, ...]
    files: tuple[File, ...] = field(default=())
    previous: Previous | None = None
    retirement_days: int = 0

    def __post_init__(self) -> None:
        _text(self.version, VERSION, "version")
        _text(self.commit, r"[0-9a-f]{40}", "commit")
        _integer(self.source_date_epoch, 1, (1 << 32) - 1, "source_date_epoch")
        for name in self.distribution:
            _text(name, _WORD, "distribution")
        _integer(self.compress_level, 1, 19, "compress_level")
        _integer(self.retirement_days, 0, 3650, "retirement_days")
        _bounded(self.tools, 1, 32, "tools")
        for name, version in self.tools:
            _text(name, _TOOL, "tools")
            _text(version, _TOOL_VERSION, f"version of {name}")
        _bounded(self.roles, 1, MAX_ROLES, "roles")
        _bounded(self.files, 0, MAX_FILES, "files")
        for what, names in (
            ("tools", [name for name, _ in self.tools]),
            ("roles", [entry.role for entry in self.roles]),
            ("files", [file.path for file in self.files]),
        ):
            _distinct(names, what)
            if sorted(names) != names:
                _refuse(what, "sorted by name", "another order", "order")
        if self.previous is not None and self.previous.version == self.version:
            _refuse("previous.version", "another release", self.version, "value")
        self._check_published()

    def _check_published(self) -> None:
        """An output that is also published has one size and one digest."""
        known = {
            f"{entry.role}/{output.name}": (output.size, output.sha256)
            for entry in self.roles
            for output in entry.outputs
        }
        for file in self.files:
            wanted = known.get(file.path, (file.size, file.sha256))
            if wanted != (file.size, file.sha256):
                _refuse(f"files: {file.path}", wanted[1], file.sha256, "stale")

    def role(self, name: str) -> RoleEntry:
        """The entry of a role. Raises ReleaseRejected if the release has none."""
        for entry in self.roles:
            if entry.role == name:
                return entry
        raise ReleaseRejected(
            f"release {self.version} has no image for {ascii(name)[:40]}",
            expected=" or ".join(entry.role for entry in self.roles),
            rule="release.role",
            hint="name a role of this release",
        )

    def dumps(self) -> bytes:
        """The canonical bytes."""
        document = {
            "schema": SCHEMA,
            "version": self.version,
            "commit": self.commit,
            "source_date_epoch": self.source_date_epoch,
            "distribution": dict(zip(("name", "release"), self.distribution, strict=True)),
            "locks": {
                name: _plain(getattr(self.locks, name)) for name in ("images", "tools", "python")
            },
            "tools": dict(self.tools),
            "compress_level": self.compress_level,
            "roles": {
                entry.role: {
                    "outputs": [_plain(output) for output in entry.outputs],
                    "measurements": [one.to_json() for one in entry.measurements.entries],
                }
                for entry in self.roles
            },
            "files": [_plain(file) for file in self.files],
            "previous": None if self.previous is None else _plain(self.previous),
            "retirement_days": self.retirement_days,
        }
        return json.dumps(document, indent=2, sort_keys=True, ensure_ascii=True).encode() + b"\n"

    @classmethod
    def loads(cls, raw: bytes) -> "Manifest":
        """The manifest in these bytes. Raises ReleaseFormatError."""
        if len(raw) > MAX_BYTES:
            _refuse("manifest", f"at most {MAX_BYTES} bytes", str(len(raw)), "size")
        value = load_json(raw, "manifest", ReleaseFormatError)
        # Before the fields: another schema has others, and which it is tells what to do.
        if isinstance(value, dict) and value.get("schema") != SCHEMA:
            _refuse("schema", SCHEMA, shown(value.get("schema")), "schema")
        document = _fields(value, cls, "manifest", {"schema"})
        distribution = _object(document["distribution"], {"name", "release"}, "distribution")
        locks = _fields(document["locks"], Locks, "locks")
        previous = document["previous"]
        result = cls(
            version=document["version"],
            commit=document["commit"],
            source_date_epoch=document["source_date_epoch"],
            distribution=(distribution["name"], distribution["release"]),
            locks=Locks(**{name: _flat(locks[name], Locked, name) for name in locks}),
            tools=tuple(_mapping(document["tools"], "tools").items()),
            compress_level=document["compress_level"],
            roles=tuple(
                _role(name, value) for name, value in _mapping(document["roles"], "roles").items()
            ),
            files=_items(document["files"], lambda v: _flat(v, File, "files"), "files"),
            previous=None if previous is None else _flat(previous, Previous, "previous"),
            retirement_days=document["retirement_days"],
        )
        if result.dumps() != raw:
            _refuse("manifest", "canonical JSON", "another text of the same", "canonical")
        return result


def _role(name: str, value: object) -> RoleEntry:
    entry = _object(value, {"outputs", "measurements"}, f"roles.{ascii(name)[1:-1][:40]}")
    measurements = entry["measurements"]
    if not isinstance(measurements, list) or len(measurements) > 64:
        _refuse("measurements", "a list of at most 64", type(measurements).__name__)
    try:
        parsed = Measurements(tuple(Measurement.from_json(one) for one in measurements))
    except MeasurementFormatError as error:
        raise ReleaseFormatError(
            f"the manifest is malformed: {error.message}",
            expected=error.expected,
            got=error.got,
            rule="manifest.measurement",
        ) from error
    outputs = _items(entry["outputs"], lambda v: _flat(v, Output, "outputs"), "outputs")
    return RoleEntry(name, outputs, parsed)


def _plain(value: Any) -> dict[str, Any]:
    return {name: getattr(value, name) for name in value.__slots__}


def _flat(value: object, kind: type[_Item], where: str) -> _Item:
    return kind(**_fields(value, kind, where))


def _fields(
    value: object, kind: type[Any], where: str, more: set[str] | None = None
) -> dict[str, Any]:
    return _object(value, {*kind.__slots__, *(more or ())}, where)


def _object(value: object, names: set[str], where: str) -> dict[str, Any]:
    return fields(value, names, "manifest", where, ReleaseFormatError)


def _mapping(value: object, where: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        _refuse(where, "an object", type(value).__name__)
    return value


def _items(value: object, parse: Callable[[object], _Item], where: str) -> tuple[_Item, ...]:
    if not isinstance(value, list) or len(value) > MAX_FILES:
        _refuse(where, f"a list of at most {MAX_FILES}", type(value).__name__)
    return tuple(parse(item) for item in value)


def _bounded(value: tuple[Any, ...], low: int, high: int, where: str) -> None:
    if not low <= len(value) <= high:
        _refuse(where, f"{low} to {high} entries", str(len(value)))


def _distinct(names: Iterable[str], where: str) -> None:
    seen: set[str] = set()
    for name in names:
        if name in seen:
            _refuse(where, "each name once", f"{name} twice", "duplicate")
        seen.add(name)


def _text(value: object, pattern: str, where: str) -> None:
    if not isinstance(value, str) or not re.fullmatch(pattern, value):
        _refuse(where, pattern, shown(value))


def _integer(value: object, low: int, high: int, where: str) -> None:
    # Not isinstance: a bool is an int.
    if type(value) is not int or not low <= value <= high:
        _refuse(where, f"a whole number, {low} to {high}", shown(value))


def _refuse(where: str, expected: str, got: str, rule: str = "value") -> NoReturn:
    raise ReleaseFormatError(
        f"the manifest is malformed: {where}",
        expected=expected,
        got=got,
        rule=f"manifest.{rule}",
        hint="use the release of this project that knows the schema, or make the release again"
        if rule == "schema"
        else "do not use this release; fetch it again, or ask its publisher",
    )
