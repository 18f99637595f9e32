"""The part of a verification that needs the published files and a key, nothing else.

`opened` does it all in the one order that is safe: nothing is parsed before its signature is good,
no file is looked at that the manifest does not bound.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

from attestation.envelope import load_json
from attestation.files import read_file
from attestation.measure.record import Measurements
from release import manifest as manifest_module
from release import provenance, signing, sums
from release.collect import upstream
from release.errors import ReleaseFormatError, ReleaseRejected
from release.keys import Key
from release.manifest import NAME, SIGNATURE, SUMS, Manifest
from release.signing import Signed

# Of entries in a release's folder, listed or not.
MAX_ENTRIES = 2 * manifest_module.MAX_FILES


@dataclass(frozen=True, slots=True)
class Opened:
    """A release whose files are whole and signed by one of the keys that were given."""

    folder: Path
    manifest: Manifest
    signed: Signed


def opened(folder: Path, keys: Sequence[Key]) -> Opened:
    """Check signature, schema, files and sums. Raises ReleaseError, FileError."""
    signed = check_signature(folder, keys)
    manifest = Manifest.loads(signed.payload)
    check_files(folder, manifest, keys)
    check_sums(folder, manifest)
    return Opened(folder, manifest, signed)


def check_signature(folder: Path, keys: Sequence[Key]) -> Signed:
    """The manifest's bytes, signed. Raises ReleaseRejected, ReleaseFormatError, FileError."""
    signed = signing.verify(
        read_file(folder / SIGNATURE, signing.MAX_BYTES), signing.PAYLOAD_TYPE, keys
    )
    raw = read_file(folder / NAME, manifest_module.MAX_BYTES)
    if raw != signed.payload:
        _refuse(f"{NAME} is not what was signed", "payload", _digest(signed.payload), _digest(raw))
    return signed


def check_files(folder: Path, manifest: Manifest, keys: Sequence[Key]) -> str:
    """Check that the folder holds exactly the manifest's files, and that they agree with it.

    Returns what was found. Raises ReleaseRejected, ReleaseFormatError, FileError.
    """
    listed = {file.path for file in manifest.files}
    there = _entries(folder) - {NAME, SIGNATURE}
    for path in sorted(listed ^ there):
        if path in there:
            _refuse(f"{_shown(path)} is not in the manifest", "unlisted", "only listed files", "it")
        _refuse(f"{path} is missing", "missing", "every file of the manifest", "none")
    for file in manifest.files:
        raw = read_file(folder / file.path, file.size)
        if len(raw) != file.size or _digest(raw) != file.sha256:
            wanted = f"{file.size} bytes, SHA-256 {file.sha256}"
            got = f"{len(raw)} bytes, SHA-256 {_digest(raw)}"
            _refuse(f"{file.path} was changed", "file", wanted, got)
    for required in (SUMS, provenance.NAME):
        if required not in listed:
            _refuse(f"{required} is missing", "missing", "it in the manifest", "none")
    raw = read_file(folder / provenance.NAME, signing.MAX_BYTES)
    provenance.check(raw, manifest, keys)
    _check_roles(folder, manifest, listed)
    return f"{len(listed) + 2} files, none missing, changed or unlisted"


def _check_roles(folder: Path, manifest: Manifest, listed: set[str]) -> None:
    """What lies beside the manifest for those who read no manifest is what it says."""
    for entry in manifest.roles:
        for name, wanted in (
            ("measurements.json", entry.measurements.dumps()),
            ("mrtd.hex", _mr_td(entry.measurements)),
        ):
            path = f"{entry.role}/{name}"
            if path not in listed:
                _refuse(f"{path} is missing", "missing", "it in the manifest", "none")
            if read_file(folder / path, manifest_module.MAX_FILE) != wanted:
                _refuse(f"{path} and the manifest disagree", "measurement", "the same", "others")


def _mr_td(measurements: Measurements) -> bytes:
    return upstream(measurements).hex().encode()


def check_sums(folder: Path, manifest: Manifest) -> str:
    """Check that sha256sums.txt has exactly the manifest's digests of the other files.

    Returns what was found. Raises ReleaseRejected, ReleaseFormatError, FileError.
    """
    found = sums.loads(read_file(folder / SUMS, sums.MAX_BYTES))
    wanted = {file.path: file.sha256 for file in manifest.files if file.path != SUMS}
    if found != wanted:
        path = min(dict(found.items() ^ wanted.items()))
        got = found.get(path, "none")
        _refuse(f"{SUMS} has another sum of {path}", "sums", wanted.get(path, "none"), got)
    return f"{len(found)} sums, those of the manifest"


def load_packages(folder: Path, manifest: Manifest) -> dict[str, object]:
    """The decoded packages.json of each role, in a folder that was checked.

    Raises ReleaseFormatError, FileError.
    """
    return {
        entry.role: load_json(
            read_file(folder / entry.role / "packages.json", manifest_module.MAX_FILE),
            "packages",
            ReleaseFormatError,
        )
        for entry in manifest.roles
    }


def _entries(folder: Path) -> set[str]:
    """The files in a release's folder and the folders in it. Raises ReleaseRejected, FileError."""
    found: set[str] = set()
    for path in _listed(folder):
        if path.is_dir() and not path.is_symlink():
            found.update(f"{path.name}/{inside.name}" for inside in _listed(path))
        else:
            found.add(path.name)
        if len(found) > MAX_ENTRIES:
            _refuse("the folder holds too much", "unlisted", f"at most {MAX_ENTRIES} files", "more")
    for name in found:
        path = folder / name
        if path.is_symlink() or not path.is_file():
            _refuse(f"{_shown(name)} is no regular file", "kind", "regular files", "another")
    return found


def _listed(folder: Path) -> list[Path]:
    try:
        return sorted(folder.iterdir())
    except OSError as error:
        _refuse(f"{_shown(str(folder))} can't be listed", "folder", "a folder", str(error.strerror))


def _digest(raw: bytes) -> str:
    return hashlib.sha256(raw).hexdigest()


def _shown(name: str) -> str:
    return ascii(name)[1:-1][:120]


def _refuse(message: str, rule: str, expected: str, got: str) -> NoReturn:
    raise ReleaseRejected(
        message,
        expected=expected,
        got=got,
        rule=f"release.{rule}",
        hint="do not use this release; fetch it again, or ask its publisher",
    )
