"""Provenance of a release: an in-toto Statement v1 with the SLSA v1 predicate, signed.

`provenance.intoto.json` is one DSSE envelope with the type of in-toto's payloads, so that tools of
others read it as it is. The statement follows from the manifest, byte by byte: its form is part of
the manifest's schema. Sources: github.com/in-toto/attestation (spec/v1), slsa.dev/spec/v1.0.
"""

import json
from collections.abc import Sequence
from typing import Any

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from release import signing
from release.errors import ReleaseRejected
from release.keys import Key
from release.manifest import Locked, Manifest

NAME = "provenance.intoto.json"
PAYLOAD_TYPE = "application/vnd.in-toto+json"
STATEMENT = "https://in-toto.io/Statement/v1"
PREDICATE = "https://slsa.dev/provenance/v1"
BUILD_TYPE = "urn:zipnet:image-build:1"
BUILDER = "urn:zipnet:build.py"


def statement(manifest: Manifest) -> bytes:
    """Where the images and firmwares of a release come from; its `files` don't matter."""
    distribution, release = manifest.distribution
    document = {
        "_type": STATEMENT,
        "subject": [
            {"name": output.name, "digest": {"sha256": output.sha256}}
            for entry in manifest.roles
            for output in (entry.image, entry.firmware)
        ],
        "predicateType": PREDICATE,
        "predicate": {
            "buildDefinition": {
                "buildType": BUILD_TYPE,
                "externalParameters": {
                    "commit": manifest.commit,
                    "distribution": f"{distribution}-{release}",
                    "flavor": "production",
                    "roles": [entry.role for entry in manifest.roles],
                },
                "internalParameters": {
                    "compressLevel": manifest.compress_level,
                    "sourceDateEpoch": manifest.source_date_epoch,
                },
                "resolvedDependencies": [
                    {"name": "source", "digest": {"gitCommit": manifest.commit}},
                    *map(_dependency, (manifest.locks.images, manifest.locks.tools)),
                    _dependency(manifest.locks.python),
                ],
            },
            "runDetails": {"builder": {"id": BUILDER, "version": dict(manifest.tools)}},
        },
    }
    return json.dumps(document, indent=2, sort_keys=True).encode() + b"\n"


def _dependency(lock: Locked) -> dict[str, Any]:
    return {"name": lock.file, "digest": {"sha256": lock.sha256}}


def sign(manifest: Manifest, key: Ed25519PrivateKey) -> bytes:
    """The signed statement."""
    return signing.sign(statement(manifest), PAYLOAD_TYPE, key)


def check(raw: bytes, manifest: Manifest, keys: Sequence[Key]) -> None:
    """Raise ReleaseRejected or ReleaseFormatError unless this is the manifest's provenance."""
    if signing.verify(raw, PAYLOAD_TYPE, keys).payload != statement(manifest):
        raise ReleaseRejected(
            f"{NAME} states another origin than the manifest",
            expected="the images, commit and locks of the manifest",
            got="others",
            rule="release.provenance",
            hint="do not use this release; ask its publisher",
        )
