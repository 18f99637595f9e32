"""The Secure Boot policy of a bound firmware: it starts the named images and nothing else.

PK and KEK hold a certificate type without a key (EFI_CERT_EXTERNAL_MANAGEMENT, UEFI specification
32.4.1), so nobody can sign a change and there is no key to leak. `db` lists the Authenticode
SHA-256 of each image; `dbx` is kept non-empty with the hash of nothing. All bytes are fixed, so a
third party can rebuild a bound firmware from its base and the hash alone.
"""

import hashlib
from collections.abc import Sequence
from uuid import UUID

from attestation.errors import FirmwareFormatError, FirmwareRejected
from attestation.measure import varstore
from attestation.measure.varstore import Variable

OWNER = UUID("b6d7b0b5-2c35-4f0c-9d0f-7d3a5f2a1c01")  # changing it changes every MR_TD

_GLOBAL = UUID("8be4df61-93ca-11d2-aa0d-00e098032b8c")
_IMAGE_SECURITY = UUID("d719b2cb-3d3a-4596-a3bc-dad00e67656f")
_SECURE_BOOT_ENABLE = UUID("f0a30bc7-af08-4556-99c4-001009c93a44")
_EXTERNAL_MANAGEMENT = UUID("452e8ced-dfff-4b8c-ae01-5118862e682c")
_SHA256 = UUID("c1c41626-504c-4092-aca9-41f936934328")

# Non-volatile, boot-service and runtime access; the first also time-based authenticated.
_AUTHENTICATED, _PLAIN = 0x27, 0x03
_EPOCH = bytes.fromhex("da070101") + bytes(12)  # EFI_TIME of 2010-01-01T00:00:00Z


def variables(digests: Sequence[bytes]) -> tuple[Variable, ...]:
    """The variables that admit exactly these Authenticode SHA-256 hashes (32 bytes each).

    Order and repetition do not matter. Raises FirmwareRejected (`empty-policy`, `digest-size`).
    """
    admitted = sorted(set(digests))
    if not admitted:
        raise FirmwareRejected(
            "a policy must name the image that it admits",
            expected="at least one Authenticode SHA-256",
            got="none",
            rule="empty-policy",
        )
    if any(len(digest) != 32 for digest in admitted):
        raise FirmwareRejected(
            "not an Authenticode SHA-256",
            expected="32 bytes",
            got=" ".join(str(len(digest)) for digest in admitted),
            rule="digest-size",
        )
    nobody = varstore.signature_list(_EXTERNAL_MANAGEMENT, OWNER, [b"\0"])
    allowed = varstore.signature_list(_SHA256, OWNER, admitted)
    forbidden = varstore.signature_list(_SHA256, OWNER, [hashlib.sha256().digest()])
    return (
        Variable("PK", _GLOBAL, _AUTHENTICATED, nobody, _EPOCH),
        Variable("KEK", _GLOBAL, _AUTHENTICATED, nobody, _EPOCH),
        Variable("db", _IMAGE_SECURITY, _AUTHENTICATED, allowed, _EPOCH),
        Variable("dbx", _IMAGE_SECURITY, _AUTHENTICATED, forbidden, _EPOCH),
        Variable("SecureBootEnable", _SECURE_BOOT_ENABLE, _PLAIN, b"\1"),
    )


def write(store: bytes, digests: Sequence[bytes]) -> bytes:
    """A variable store volume with this policy and nothing else in it.

    Raises FirmwareFormatError for a malformed store, FirmwareRejected as `variables` and
    `varstore.write` do.
    """
    return varstore.write(store, variables(digests))


def read(store: bytes) -> tuple[bytes, ...]:
    """The hashes that a store written by `write` admits, sorted.

    Raises FirmwareFormatError for a malformed store, FirmwareRejected (rule `not-bound`) for any
    store that `write` would not have produced byte for byte.
    """
    found = varstore.parse(store)
    digests = _database(found)
    if not digests or varstore.write(store, variables(digests)) != store:
        raise FirmwareRejected(
            "variable store does not hold a policy of ours",
            expected="PK, KEK, db, dbx and SecureBootEnable exactly as `bind` writes them",
            got=", ".join(sorted(v.name for v in found.variables)) or "no variables",
            rule="not-bound",
            hint="bind the firmware to the image first",
        )
    return digests


def _database(store: varstore.VariableStore) -> tuple[bytes, ...]:
    """The SHA-256 entries of `db`; none if it is missing, doubled or broken."""
    databases = [v.data for v in store.variables if (v.name, v.vendor) == ("db", _IMAGE_SECURITY)]
    try:
        entries = [entry for data in databases for entry in varstore.signatures(data)]
    except FirmwareFormatError:
        return ()
    return tuple(hash_ for kind, _, hash_ in entries if kind == _SHA256 and len(hash_) == 32)
