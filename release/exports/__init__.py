"""A release's measurements as other verifiers take them, one file for each role (and host profile).

What is of several roles in one file would let a client's image pass for a server's. Each export
says no more than the manifest does, and the signature covers all of them.
"""

from pathlib import Path

from release.exports import attested_tls, go_tdx_guest, trustee
from release.manifest import Manifest

FOLDER = "exports"


def files(manifest: Manifest) -> dict[str, bytes]:
    """Every export by its file name."""
    found = {}
    for entry in manifest.roles:
        measurements = entry.measurements.entries
        for profile, policy in go_tdx_guest.policies(measurements).items():
            found[f"policy-{entry.role}-{profile}.textproto"] = policy
        found[f"rvps-{entry.role}.json"] = trustee.message(measurements)
        found[f"measurements-{entry.role}.attested-tls.json"] = attested_tls.measurements_file(
            measurements, manifest.version
        )
    return found


def write(manifest: Manifest, folder: Path) -> None:
    """Write all exports to FOLDER in the release's folder."""
    target = folder / FOLDER
    target.mkdir()
    for name, data in files(manifest).items():
        (target / name).write_bytes(data)
