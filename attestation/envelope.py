"""DSSE envelopes signed by k of n Ed25519 keys (github.com/secure-systems-lab/dsse, v1.0.2).

    {"payload": base64, "payloadType": text, "signatures": [{"keyid": hex, "sig": base64}, ...]}

`keyid` is the public key itself, 64 lower-case hex digits. The signed bytes and the check of a
signature are securesystemslib's. Reading is ours, because its decoder passes over what is no
base64, later of two equal keys and unknown fields.

All that is signed here goes through this module: `refused` is the error that a reader raises, that
of lists unless another package names its own.
"""

import base64
import binascii
import json
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import load_pem_private_key
from securesystemslib.dsse import Envelope
from securesystemslib.exceptions import VerificationError
from securesystemslib.signer import (  # type: ignore[attr-defined]  # exported without saying so
    CryptoSigner,
    Signature,
    SSlibKey,
)

from attestation.errors import AllowListRejected, Explained, PolicyError

__all__ = [
    "Envelope",
    "Signature",
    "assemble",
    "fields",
    "has_signed",
    "load_json",
    "parse",
    "private_key",
    "shown",
    "sign",
    "verify",
]

# 1 MiB of payload in base64, and signatures.
MAX_BYTES = 3 << 19
MAX_SIGNATURES = 64

_KEYID = re.compile(r"[0-9a-f]{64}")


def private_key(raw: bytes) -> Ed25519PrivateKey | None:
    """The key in the content of a signer's file: 64 hex digits, or PEM (PKCS 8) without a password.

    None for anything else: nothing is said of bytes that may be a secret.
    """
    if re.fullmatch(rb"[0-9a-fA-F]{64}\s*", raw):
        return Ed25519PrivateKey.from_private_bytes(bytes.fromhex(raw.decode()))
    try:
        key = load_pem_private_key(raw, None)
    except (ValueError, TypeError, UnsupportedAlgorithm):
        return None
    return key if isinstance(key, Ed25519PrivateKey) else None


def sign(payload: bytes, payload_type: str, key: Ed25519PrivateKey) -> Signature:
    """One signature over a payload of this type, for `assemble`."""
    signer = CryptoSigner(key, _key(key.public_key()))
    return Envelope(payload, payload_type, {}).sign(signer)


def assemble(
    payload: bytes,
    payload_type: str,
    signatures: Iterable[Signature],
    refused: type[Explained] = AllowListRejected,
) -> bytes:
    """The envelope as canonical JSON: sorted keys and signers, two spaces of indent, ASCII.

    Raises `refused` if there is no signature, or two by one key.
    """
    ordered = sorted(signatures, key=lambda signature: str(signature.keyid))
    envelope = Envelope(payload, payload_type, _by_signer(ordered, refused))
    return json.dumps(envelope.to_dict(), indent=2, sort_keys=True).encode() + b"\n"


def parse(raw: bytes, payload_type: str, refused: type[Explained] = AllowListRejected) -> Envelope:
    """The envelope in `raw`, no signature checked. Raises `refused`."""
    if len(raw) > MAX_BYTES:
        raise _malformed("size", f"at most {MAX_BYTES} bytes", str(len(raw)), refused)
    names = {"payload", "payloadType", "signatures"}
    document = fields(load_json(raw, "envelope", refused), names, "envelope", refused=refused)
    if document["payloadType"] != payload_type:
        raise _malformed("payload-type", payload_type, shown(document["payloadType"]), refused)
    signatures = document["signatures"]
    if not isinstance(signatures, list):
        raise _malformed("fields", "a list of signatures", type(signatures).__name__, refused)
    if len(signatures) > MAX_SIGNATURES:
        raise _malformed("signatures", f"at most {MAX_SIGNATURES}", str(len(signatures)), refused)
    payload = _decode(document["payload"], refused)
    read = [_signature(value, refused) for value in signatures]
    return Envelope(payload, payload_type, _by_signer(read, refused))


def has_signed(envelope: Envelope, key: bytes) -> bool:
    """Whether the holder of this Ed25519 public key (32 bytes) signed the envelope."""
    try:
        envelope.verify([_key(Ed25519PublicKey.from_public_bytes(key))], 1)
    except VerificationError:
        return False
    return True


def verify(envelope: Envelope, keys: Sequence[bytes], k: int) -> None:
    """Check that `k` of the operators with these public keys (32 bytes each) signed the envelope.

    Signatures by others don't count. Raises AllowListRejected, and PolicyError for keys and a `k`
    that no envelope, or every one, would satisfy.
    """
    if any(len(key) != 32 for key in keys) or len(set(keys)) != len(keys):
        raise PolicyError(
            "the operators' keys are wrong",
            expected="distinct keys of 32 bytes",
            got=", ".join(key.hex() for key in keys),
            rule="operator-keys",
            hint="name each operator's Ed25519 public key once",
        )
    if not 1 <= k <= len(keys):
        raise PolicyError(
            "the number of signers that a list needs is wrong",
            expected=f"1 to {len(keys)}, the number of operators",
            got=str(k),
            rule="threshold",
            hint="set k in the configuration of the deployment",
        )
    signed = [key.hex() for key in keys if has_signed(envelope, key)]
    if len(signed) < k:
        claimed = [key.hex() for key in keys if key.hex() in envelope.signatures]
        bad = sorted(set(claimed) - set(signed))
        raise AllowListRejected(
            "too few operators signed the list",
            expected=f"{k} of {len(keys)} operators",
            got=f"{len(signed)} ({', '.join(signed) or 'none'})"
            + (f"; bad signatures by {', '.join(bad)}" if bad else ""),
            rule="signers",
            hint="collect the missing signatures over exactly this list",
        )


def load_json(raw: bytes, what: str, refused: type[Explained] = AllowListRejected) -> object:
    """The JSON value in `raw`, each key once. Raises `refused`; `what` leads its rules."""
    try:
        return json.loads(
            raw.decode(), object_pairs_hook=lambda pairs: _object(pairs, what, refused)
        )
    except (ValueError, RecursionError) as error:
        raise refused(
            f"the {what} is not JSON",
            expected="UTF-8 JSON",
            got=ascii(str(error))[:120],
            rule=f"{what}.json",
            hint="fetch the file again, and check that it is the right one",
        ) from None


def fields(
    value: object,
    names: set[str],
    what: str,
    where: str = "",
    refused: type[Explained] = AllowListRejected,
) -> dict[str, Any]:
    """`value`, if it is an object with exactly these fields. Raises `refused`."""
    if not isinstance(value, dict) or value.keys() != names:
        got = type(value).__name__
        if isinstance(value, dict):
            missing, unknown = sorted(names - value.keys()), sorted(value.keys() - names)
            got = f"missing {missing}, unknown {ascii(unknown)[:120]}"
        raise refused(
            f"{where or what} has other fields",
            expected=f"exactly {', '.join(sorted(names))}",
            got=got,
            rule=f"{what}.fields",
            hint="run the release that knows this schema",
        )
    return value


def shown(value: object) -> str:
    """A decoded JSON value for an error message, short and ASCII.

    Scalars only: what a hostile file nests deep enough can't be shown either.
    """
    if not isinstance(value, str | int | float | None):
        return type(value).__name__
    text = ascii(value)
    return text if len(text) <= 80 else f"{text[:80]}..."


def _key(key: Ed25519PublicKey) -> SSlibKey:
    return SSlibKey.from_crypto(key, keyid=key.public_bytes_raw().hex())


def _by_signer(signatures: Iterable[Signature], refused: type[Explained]) -> dict[str, Signature]:
    result: dict[str, Signature] = {}
    for signature in signatures:
        if signature.keyid in result:
            raise _malformed("duplicate-signer", "one signature a key", signature.keyid, refused)
        result[signature.keyid] = signature
    if not result:
        raise _malformed("signatures", "one or more", "none", refused)
    return result


def _signature(value: object, refused: type[Explained]) -> Signature:
    entry = fields(value, {"keyid", "sig"}, "envelope", "a signature", refused)
    keyid = entry["keyid"]
    if not isinstance(keyid, str) or not _KEYID.fullmatch(keyid):
        raise _malformed("keyid", "a public key, 64 lower-case hex digits", shown(keyid), refused)
    signature = _decode(entry["sig"], refused)
    if len(signature) != 64:
        raise _malformed("signature-size", "64 bytes", str(len(signature)), refused)
    return Signature(keyid, signature.hex())


def _decode(value: object, refused: type[Explained]) -> bytes:
    """Base64 with padding, in the one form that an encoder writes."""
    try:
        if isinstance(value, str):
            decoded = base64.b64decode(value.encode("ascii"), validate=True)
            if base64.b64encode(decoded).decode() == value:
                return decoded
    except (binascii.Error, UnicodeEncodeError):
        pass
    raise _malformed("base64", "canonical base64", shown(value), refused)


def _object(pairs: list[tuple[str, Any]], what: str, refused: type[Explained]) -> dict[str, Any]:
    """A JSON object, whose keys must differ: readers disagree about which of two counts."""
    result = dict(pairs)
    if len(result) != len(pairs):
        name, count = Counter(name for name, _ in pairs).most_common(1)[0]
        raise refused(
            f"the {what} has a key twice",
            expected="each key once",
            got=f"{ascii(name)[:80]} {count} times",
            rule=f"{what}.duplicate-key",
            hint="the file was tampered with, or not written by this project",
        )
    return result


def _malformed(rule: str, expected: str, got: str, refused: type[Explained]) -> Explained:
    return refused(
        "the envelope is malformed",
        expected=expected,
        got=got,
        rule=f"envelope.{rule}",
        hint="fetch it again; an envelope is made by `assemble` only",
    )
