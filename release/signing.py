"""Signatures of releases: DSSE envelopes (`attestation.envelope`) by Ed25519 keys of publishers.

`manifest.json.dsse` has the exact bytes of `manifest.json` as its payload. An envelope is taken
only in its canonical form and only if *every* signature in it is good, so that no byte of it can
change unnoticed.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from attestation import envelope
from release.errors import ReleaseFormatError, ReleaseRejected
from release.keys import Key
from release.manifest import Manifest

PAYLOAD_TYPE = "application/vnd.zipnet.release+json"
MAX_BYTES = envelope.MAX_BYTES


@dataclass(frozen=True, slots=True)
class Signed:
    """A payload that all of `signers` signed; each of them is trusted."""

    payload: bytes
    signers: tuple[Key, ...]


def sign(payload: bytes, payload_type: str, key: Ed25519PrivateKey) -> bytes:
    """The envelope with one signature."""
    signature = envelope.sign(payload, payload_type, key)
    return envelope.assemble(payload, payload_type, [signature], ReleaseFormatError)


def sign_manifest(manifest: bytes, key: Ed25519PrivateKey) -> bytes:
    """The envelope of a manifest. Raises ReleaseFormatError: no one signs what no one can read."""
    Manifest.loads(manifest)
    return sign(manifest, PAYLOAD_TYPE, key)


def verify(raw: bytes, payload_type: str, keys: Sequence[Key]) -> Signed:
    """What one or more of these keys signed; signatures of others must be good too.

    Raises ReleaseFormatError for anything but a canonical envelope of this type, ReleaseRejected
    (`signature.bad`, `signature.key`).
    """
    signed = envelope.parse(raw, payload_type, ReleaseFormatError)
    signatures = tuple(signed.signatures.values())
    canonical = envelope.assemble(signed.payload, payload_type, signatures, ReleaseFormatError)
    if canonical != raw:
        raise ReleaseFormatError(
            "the envelope is malformed",
            expected="canonical JSON",
            got="another text of the same",
            rule="envelope.canonical",
            hint="do not use this release; fetch it again, or ask its publisher",
        )
    for signature in signatures:
        if not envelope.has_signed(signed, bytes.fromhex(signature.keyid)):
            raise ReleaseRejected(
                "a signature is not good",
                expected=f"one by {signature.keyid} over exactly these bytes",
                rule="signature.bad",
                hint="do not use this release; fetch it again, or ask its publisher",
            )
    signers = tuple(key for key in keys if key.hex in signed.signatures)
    if not signers:
        raise ReleaseRejected(
            "no key that you trust signed this",
            expected=" or ".join(key.hex for key in keys),
            got=", ".join(sorted(signed.signatures)),
            rule="signature.key",
            hint="if the publisher has a new key, get it from himself, never from the release",
        )
    return Signed(signed.payload, signers)
