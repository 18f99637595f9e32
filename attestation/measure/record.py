"""`Measurement`: the one schema for what a TD of one image on one kind of host measures as.

A file of them is canonical JSON: sorted keys, two spaces of indent, ASCII, a newline at the end,
`{"schema": "zipnet.measurements/1", "measurements": [...]}`. Digests are lower-case hex.
"""

import hashlib
import json
import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, fields
from enum import StrEnum
from pathlib import Path
from typing import Any, NoReturn

from attestation.errors import MeasurementFormatError
from attestation.files import read_file
from attestation.measure import firmware, rtmr, tdvf
from attestation.measure.firmware import Model
from attestation.measure.pe import Pe
from attestation.measure.rtmr import BootPath
from attestation.measure.tdvf import HostProfile

SCHEMA = "zipnet.measurements/1"
MAX_BYTES = 1 << 20

_ROLE = re.compile(r"[a-z][a-z0-9-]{0,31}")


class Binding(StrEnum):
    """What names the image: MR_TD itself, MR_TD with the RTMRs, or a process digest (mock)."""

    MRTD_CFV = "mrtd-cfv"
    MRTD_RTMR = "mrtd+rtmr"
    PROCESS = "process"


class BootProof(StrEnum):
    """Whether the builder saw this firmware start this image and refuse changed ones."""

    PASSED = "passed"
    SKIPPED = "skipped"


@dataclass(frozen=True, slots=True)
class Measurement:
    """One accepted triple, where it holds, and how far it was proved. Registers are 48 bytes.

    `rtmr0` is None where it is not pinned. Raises MeasurementFormatError for values of a wrong
    type, length or form.
    """

    role: str
    binding: Binding
    host_profile: HostProfile
    boot_path: BootPath
    mr_td: bytes
    rtmr1: bytes
    rtmr2: bytes
    is_dev: bool
    boot_proof: BootProof
    model: Model
    firmware_sha256: bytes
    uki_sha256: bytes
    rtmr0: bytes | None = None

    def __post_init__(self) -> None:
        if not isinstance(self.role, str) or not _ROLE.fullmatch(self.role):
            _refuse("role", "lower-case letters, digits and '-', up to 32", self.role, "value")
        for name, kind in _ENUMS.items():
            if not isinstance(getattr(self, name), kind):
                _refuse(name, " or ".join(kind), getattr(self, name), "value")
        if not isinstance(self.is_dev, bool):
            _refuse("is_dev", "true or false", self.is_dev, "value")
        for name, size in _DIGESTS.items():
            value = getattr(self, name)
            if value is None and name == "rtmr0":
                continue
            if not isinstance(value, bytes) or len(value) != size:
                _refuse(name, f"{size} bytes", value, "value")

    def to_json(self) -> dict[str, Any]:
        """The JSON object, without `rtmr0` if there is none."""
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        return {
            name: value.hex() if isinstance(value, bytes) else value
            for name, value in values.items()
            if value is not None
        }

    @classmethod
    def from_json(cls, value: object, where: str = "measurement") -> "Measurement":
        """The measurement in a decoded JSON value; `where` leads error messages."""
        if not isinstance(value, dict):
            _refuse(where, "an object", value, "type")
        names = {field.name for field in fields(cls)}
        missing, unknown = sorted(names - value.keys() - {"rtmr0"}), sorted(value.keys() - names)
        if missing or unknown:
            _refuse(
                where,
                f"the fields of {SCHEMA}",
                f"missing {missing}, unknown {unknown}",
                "fields",
            )
        arguments = dict(value)
        for name, kind in _ENUMS.items():
            arguments[name] = _enum(value[name], kind, f"{where}.{name}")
        for name, size in _DIGESTS.items():
            if name in value:
                arguments[name] = _digest(value[name], size, f"{where}.{name}")
        try:
            return cls(**arguments)
        except MeasurementFormatError as error:
            raise MeasurementFormatError(
                f"{where}: {error.message}",
                expected=error.expected,
                got=error.got,
                rule=error.rule,
            ) from error


_ENUMS: Mapping[str, type[StrEnum]] = {
    "binding": Binding,
    "host_profile": HostProfile,
    "boot_path": BootPath,
    "boot_proof": BootProof,
    "model": Model,
}
_DIGESTS = {
    "mr_td": 48,
    "rtmr0": 48,
    "rtmr1": 48,
    "rtmr2": 48,
    "firmware_sha256": 32,
    "uki_sha256": 32,
}


@dataclass(frozen=True, slots=True)
class Measurements:
    """A non-empty set of distinct measurements, in file order."""

    entries: tuple[Measurement, ...]

    def __post_init__(self) -> None:
        if not self.entries:
            _refuse("measurements", "at least one entry", "none", "empty")
        for index, entry in enumerate(self.entries):
            if entry in self.entries[:index]:
                _refuse(f"measurements[{index}]", "distinct entries", "a repetition", "duplicate")

    @classmethod
    def load(cls, path: Path) -> "Measurements":
        """Read a file. Raises FileError, MeasurementFormatError."""
        return cls.loads(read_file(path, MAX_BYTES))

    @classmethod
    def loads(cls, data: bytes) -> "Measurements":
        """Parse the bytes of a file, canonical or not. Raises MeasurementFormatError."""
        if len(data) > MAX_BYTES:
            _refuse("file", f"at most {MAX_BYTES} bytes", len(data), "size")
        try:
            document = json.loads(data.decode(), object_pairs_hook=_object)
        except (ValueError, RecursionError) as error:
            raise MeasurementFormatError(
                "file is not JSON", expected="UTF-8 JSON", got=str(error), rule="record.json"
            ) from error
        if not isinstance(document, dict) or document.keys() != {"schema", "measurements"}:
            _refuse("file", "an object with schema and measurements", document, "fields")
        if document["schema"] != SCHEMA:
            _refuse("schema", SCHEMA, document["schema"], "schema")
        entries = document["measurements"]
        if not isinstance(entries, list):
            _refuse("measurements", "a list", entries, "type")
        return cls(
            tuple(
                Measurement.from_json(entry, f"measurements[{index}]")
                for index, entry in enumerate(entries)
            )
        )

    def dumps(self) -> bytes:
        """The canonical bytes."""
        document = {"schema": SCHEMA, "measurements": [entry.to_json() for entry in self.entries]}
        return json.dumps(document, indent=2, sort_keys=True, ensure_ascii=True).encode() + b"\n"


def measure_image(
    role: str, fd: bytes, uki: bytes, *, is_dev: bool, boot_proof: BootProof
) -> Measurements:
    """The measurements of a bound firmware with its image: every host profile and boot path.

    Raises as `firmware.check_bound`, `tdvf.mr_td`, `rtmr.rtmr1` and `rtmr.rtmr2` do, and
    MeasurementFormatError for a role that is none.
    """
    image = Pe.parse(uki)
    uki_sha256 = hashlib.sha256(uki).digest()
    mr_td = {profile: tdvf.mr_td(fd, profile.page_order) for profile in HostProfile}
    audit = firmware.check_bound(fd, image)
    first = {path: rtmr.rtmr1(image, path) for path in BootPath}
    second = rtmr.rtmr2(image)
    return Measurements(
        tuple(
            Measurement(
                role=role,
                binding=Binding.MRTD_CFV,
                host_profile=profile,
                boot_path=path,
                mr_td=mr_td[profile],
                rtmr1=first[path],
                rtmr2=second,
                is_dev=is_dev,
                boot_proof=boot_proof,
                model=audit.model,
                firmware_sha256=bytes.fromhex(audit.sha256),
                uki_sha256=uki_sha256,
            )
            for profile in HostProfile
            for path in BootPath
        )
    )


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """A JSON object, whose keys must differ: readers disagree about which of two counts."""
    result = dict(pairs)
    if len(result) != len(pairs):
        name, count = Counter(name for name, _ in pairs).most_common(1)[0]
        _refuse("object", "each key once", f"{name} {count} times", "duplicate-key")
    return result


def _enum(value: object, kind: type[StrEnum], where: str) -> StrEnum:
    if not isinstance(value, str) or value not in set(kind):
        _refuse(where, " or ".join(kind), value, "value")
    return kind(value)


def _digest(value: object, size: int, where: str) -> bytes:
    if not isinstance(value, str) or not re.fullmatch(f"[0-9a-f]{{{2 * size}}}", value):
        _refuse(where, f"{2 * size} lower-case hex digits", value, "digest")
    return bytes.fromhex(value)


def _refuse(where: str, expected: str, got: object, rule: str) -> NoReturn:
    # Scalars only: what a hostile file nests deep enough can't be shown either. ASCII, because a
    # lone surrogate can't be printed.
    shown = ascii(got) if isinstance(got, str | int | float | None) else type(got).__name__
    if isinstance(got, bytes):
        shown = f"{len(got)} bytes"
    raise MeasurementFormatError(
        f"{where} is wrong",
        expected=expected,
        got=shown if len(shown) <= 120 else f"{shown[:120]}...",
        rule=f"record.{rule}",
    )
