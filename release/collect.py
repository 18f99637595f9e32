"""Takes what `build.py` left in `out/ROLE/` into a release, or says why it can't be released.

Nothing is believed: sums are checked, registers computed from the firmware and the image, packages
compared with the locks.
"""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

from attestation.files import read_file
from attestation.measure.record import BootProof, Measurements, measure_image
from attestation.measure.rtmr import BootPath
from attestation.measure.tdvf import HostProfile
from release import sums
from release.build import outputs, pythonlock
from release.build.lock import Lock
from release.build.packages import Packages
from release.build.settings import Flavor, Paths, Role
from release.build.supply import TOOLS_LOCK
from release.errors import NotReleasable
from release.manifest import MAX_OUTPUT, Locked, Locks, Output, RoleEntry

# What wrote bytes of the image or proved it: package sets of the builder, and the package in each.
TOOLS = {
    "mkosi": ("mkosi",),
    "tools": ("systemd-ukify", "zstd"),
    "firmware": ("ovmf-inteltdx",),
    "emulator": ("qemu-system-x86",),
}
PUBLISHED = ("measurements.json", "mrtd.hex", "packages.json", "sbom.cdx.json")


@dataclass(frozen=True, slots=True)
class Collected:
    """One image as it goes into a release; `files` are those that lie beside the manifest."""

    entry: RoleEntry
    packages: Packages
    files: tuple[tuple[str, bytes], ...]


def collect(folder: Path, role: Role, compress_level: int) -> Collected:
    """The build of a role in its output folder.

    Raises NotReleasable by the rule that it breaks, ReleaseFormatError, BuildRefused, and
    AttestationError for files that can't be read or measured.
    """
    names = outputs.names(role)
    there = {path.name for path in folder.iterdir()} if folder.is_dir() else set()
    if there != names:
        _refuse(role, "outputs", ", ".join(sorted(names)), ", ".join(sorted(there)) or "nothing")
    data = {name: read_file(folder / name, MAX_OUTPUT) for name in sorted(names)}
    digests = {name: hashlib.sha256(raw).hexdigest() for name, raw in data.items()}
    listed = sums.loads(data[outputs.SUMS])
    actual = {name: digest for name, digest in digests.items() if name != outputs.SUMS}
    if listed != actual:
        wrong = sorted(dict(listed.items() ^ actual.items()))
        _refuse(role, "sums", f"the files of {outputs.SUMS}", f"others: {', '.join(wrong)}")
    packages = Packages.loads(data["packages.json"])
    _check_build(role, packages, compress_level)
    measurements = _measured(role, data)
    return Collected(
        RoleEntry(
            str(role),
            tuple(Output(name, len(data[name]), digests[name]) for name in sorted(data)),
            measurements,
        ),
        packages,
        tuple((name, data[name]) for name in PUBLISHED),
    )


def _check_build(role: Role, packages: Packages, compress_level: int) -> None:
    if packages.role is not role:
        _refuse(role, "role", role, packages.role)
    if packages.flavor is not Flavor.PRODUCTION:
        _refuse(role, "flavor", Flavor.PRODUCTION, packages.flavor)
    if packages.compress_level != compress_level:
        _refuse(role, "compress-level", str(compress_level), str(packages.compress_level))


def _measured(role: Role, data: dict[str, bytes]) -> Measurements:
    """The measurements on file, if they are those of the firmware and image beside them."""
    found = Measurements.loads(data["measurements.json"])
    if any(entry.is_dev for entry in found.entries):
        _refuse(role, "is-dev", "a production image", "is_dev true")
    if any(entry.boot_proof is not BootProof.PASSED for entry in found.entries):
        _refuse(role, "boot-proof", "boot_proof passed", "boot_proof skipped")
    firmware, image = data[f"zipnet-{role}.fd"], data[f"zipnet-{role}.efi"]
    computed = measure_image(role, firmware, image, is_dev=False, boot_proof=BootProof.PASSED)
    if data["measurements.json"] != computed.dumps():
        _refuse(role, "measurements", "those of its firmware and image", "others")
    if data["mrtd.hex"] != upstream(computed).hex().encode():
        _refuse(role, "mrtd", upstream(computed).hex(), ascii(data["mrtd.hex"])[:120])
    return computed


def upstream(measurements: Measurements) -> bytes:
    """MR_TD (48 bytes) for the default host profile and boot path."""
    for entry in measurements.entries:
        if entry.host_profile is HostProfile.UPSTREAM and entry.boot_path is BootPath.KERNEL:
            return entry.mr_td
    raise AssertionError("measure_image covers every profile and path")


def tools(packages: Packages) -> tuple[tuple[str, str], ...]:
    """Names and versions of what made an image. Raises NotReleasable, BuildRefused."""
    found = {}
    for group, names in TOOLS.items():
        versions = {deb.name: deb.version for deb in packages.set_of(group)}
        for name in names:
            if name not in versions:
                _refuse(packages.role, "tools", f"{name} in the set {group}", "none")
            found[name] = versions[name]
    return tuple(sorted(found.items()))


def locked(paths: Paths, built: Sequence[Collected]) -> Locks:
    """The checkout's locks, if every image is made of exactly what they name.

    Raises NotReleasable (`make.same`, `make.locks`), LockError.
    """
    first = built[0].packages
    for one in built:
        for what in ("distribution", "release", "source_date_epoch"):
            wanted, got = getattr(first, what), getattr(one.packages, what)
            if got != wanted:
                _refuse(one.packages.role, "same", f"{what} {wanted} as {first.role}", str(got))
    files = (
        paths.locks / f"{first.distribution}-{first.release}.lock",
        paths.locks / f"{TOOLS_LOCK}.lock",
        paths.python_lock,
    )
    images, box = Lock.load(files[0]), Lock.load(files[1])
    pins = pythonlock.pins(pythonlock.read(files[2])["runtime"])
    for one in built:
        _check_locked(one.packages, images, box, pins)
    return Locks(*(Locked(f.name, hashlib.sha256(f.read_bytes()).hexdigest()) for f in files))


def _check_locked(
    found: Packages, images: Lock, box: Lock, pins: Mapping[str, tuple[str, frozenset[str]]]
) -> None:
    role = found.role
    if found.source_date_epoch != images.source_date_epoch:
        _unlocked(role, "source epoch")
    if sorted(found.packages) != sorted(images.packages(role)):
        _unlocked(role, "packages")
    for group, debs in found.builder:
        if sorted(debs) != sorted(box.packages(group)):
            _unlocked(role, f"builder's {group}")
    for wheel in found.wheels:
        version, hashes = pins.get(wheel.name, ("", frozenset()))
        if wheel.version != version or wheel.sha256 not in hashes:
            _unlocked(role, f"wheel {wheel.name}")


def _unlocked(role: str, what: str) -> NoReturn:
    _refuse(role, "locks", f"the {what} of the locks", "another")


_HINTS = {
    "outputs": "build the role again: `python build.py --role all --locked`",
    "flavor": "build without --flavor: development images are for mock deployments only",
    "is-dev": "build without --flavor: development images are for mock deployments only",
    "boot-proof": "build without --skip-boot-proof",
    "compress-level": "build without --compress-level",
    "locks": "build with --locked, or commit the locks that `python build.py lock` writes",
}


def _refuse(role: str, rule: str, expected: str, got: str) -> NoReturn:
    raise NotReleasable(
        f"{role}: its build can't be released: {rule}",
        expected=expected,
        got=got,
        rule=f"make.{rule}",
        hint=_HINTS.get(rule, "build the role again"),
    )
