"""The CycloneDX bill of materials of an image, the same bytes for the same content."""

from __future__ import annotations

import json
from collections.abc import Sequence
from datetime import UTC, datetime
from uuid import UUID, uuid5

from cyclonedx.model import HashAlgorithm, HashType
from cyclonedx.model.bom import Bom
from cyclonedx.model.component import Component, ComponentType
from cyclonedx.output.json import JsonV1Dot6
from packageurl import PackageURL

from release.build.deb import Deb
from release.build.settings import Distribution
from release.build.wheels import Wheel

# Serial numbers are name-based (RFC 9562, version 5) in a namespace of our own.
NAMESPACE = UUID("5f0e6a52-3c0b-5b6e-9a0e-2f6a1b7c9d10")


def sbom(
    image: str,
    version: str,
    uki_sha256: str,
    debs: Sequence[Deb],
    wheels: Sequence[Wheel],
    distribution: Distribution,
    epoch: int,
) -> bytes:
    """CycloneDX 1.6 JSON of an image's packages and wheels; hashes are of the package files."""
    root = Component(
        name=image,
        version=version,
        type=ComponentType.OPERATING_SYSTEM,
        bom_ref=image,
        hashes=[HashType(alg=HashAlgorithm.SHA_256, content=uki_sha256)],
    )
    bom = Bom(
        serial_number=uuid5(NAMESPACE, f"{image}\0{version}\0{uki_sha256}"),
        components=[
            *(_deb(deb, distribution) for deb in debs),
            *(_component(PackageURL("pypi", None, w.name, w.version), w.sha256) for w in wheels),
        ],
    )
    bom.metadata.component = root
    bom.metadata.timestamp = datetime.fromtimestamp(epoch, UTC)
    # The library's note about itself would make the bytes depend on its version.
    bom.metadata.tools.components.clear()
    bom.metadata.tools.tools.clear()
    bom.register_dependency(root, bom.components)
    document = json.loads(JsonV1Dot6(bom).output_as_string())
    return (json.dumps(document, indent=2, sort_keys=True) + "\n").encode()


def _deb(deb: Deb, distribution: Distribution) -> Component:
    qualifiers = {"arch": deb.architecture, "distro": distribution.release}
    purl = PackageURL("deb", distribution.name, deb.name, deb.version, qualifiers)
    return _component(purl, deb.sha256)


def _component(purl: PackageURL, sha256: str) -> Component:
    return Component(
        name=purl.name,
        version=purl.version,
        type=ComponentType.LIBRARY,
        purl=purl,
        bom_ref=purl.to_string(),
        hashes=[HashType(alg=HashAlgorithm.SHA_256, content=sha256)],
    )
