"""Fuzz target: manifests of releases, their signatures, and lists of sums and of keys."""

import tempfile
from functools import cache
from pathlib import Path

from release import keys, signing, sums
from release.errors import ReleaseError
from release.manifest import Manifest
from tests.release.small import KEY, SIGNER, World


@cache
def _released() -> tuple[bytes, bytes]:
    with tempfile.TemporaryDirectory() as name:
        made = World.create(Path(name)).make()
        return made.signed.payload, (made.folder / "sha256sums.txt").read_bytes()


def seeds() -> list[bytes]:
    manifest, listed = _released()
    pinned = b'[{"name":"a","key":"%s","demo":true,"not_before":"2026-01-01T00:00:00Z"}]'
    signed = signing.sign_manifest(manifest, KEY)
    return [manifest, listed, pinned % (b"0" * 64), signed]


def fuzz_one(data: bytes) -> None:
    try:
        manifest = Manifest.loads(data)
    except ReleaseError as error:
        error.diagnostics().encode()
    else:
        assert manifest.dumps() == data
        assert Manifest.loads(data) == manifest
        for entry in manifest.roles:
            assert manifest.role(entry.role) == entry
    try:
        assert signing.verify(data, signing.PAYLOAD_TYPE, [SIGNER]).payload in seeds()
    except ReleaseError as error:
        error.diagnostics().encode()
    try:
        found = sums.loads(data)
    except ReleaseError as error:
        error.diagnostics().encode()
    else:
        assert sums.dumps(found) == data
    try:
        listed = keys.loads(data)
    except ReleaseError as error:
        error.diagnostics().encode()
    else:
        assert all(len(key.public) == 32 for key in listed)
