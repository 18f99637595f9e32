"""Signatures of releases: what is taken, and what is not."""

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from securesystemslib.dsse import Envelope
from securesystemslib.signer import SSlibKey  # type: ignore[attr-defined]  # not said to be exported

from attestation import envelope
from release import signing
from release.errors import ReleaseFormatError, ReleaseRejected
from release.keys import Key
from release.signing import PAYLOAD_TYPE
from release.verify_files import Opened
from tests.release.small import KEY, OTHER_KEY, SIGNER, refused

PAYLOAD = b'{"a": 1}\n'
OTHER = Key("other", OTHER_KEY.public_key().public_bytes_raw())
SIGNED = signing.sign(PAYLOAD, PAYLOAD_TYPE, KEY)


def both(payload: bytes = PAYLOAD) -> bytes:
    signatures = [envelope.sign(payload, PAYLOAD_TYPE, key) for key in (KEY, OTHER_KEY)]
    return envelope.assemble(payload, PAYLOAD_TYPE, signatures)


def test_round_trip() -> None:
    found = signing.verify(SIGNED, PAYLOAD_TYPE, [OTHER, SIGNER])
    assert found.payload == PAYLOAD
    assert found.signers == (SIGNER,)
    assert signing.verify(both(), PAYLOAD_TYPE, [OTHER, SIGNER]).signers == (OTHER, SIGNER)
    assert signing.verify(both(), PAYLOAD_TYPE, [OTHER]).signers == (OTHER,)


def test_a_public_library_agrees(released: Opened) -> None:
    raw = (released.folder / "manifest.json.dsse").read_bytes()
    found = Envelope.from_dict(json.loads(raw))
    key = SSlibKey.from_crypto(KEY.public_key(), keyid=SIGNER.hex)
    assert found.verify([key], 1)
    assert found.payload == (released.folder / "manifest.json").read_bytes()
    assert found.payload_type == "application/vnd.zipnet.release+json"


def test_another_key() -> None:
    with refused(ReleaseRejected, "signature.key", OTHER.hex, SIGNER.hex):
        signing.verify(SIGNED, PAYLOAD_TYPE, [OTHER])
    with refused(ReleaseRejected, "signature.key"):
        signing.verify(SIGNED, PAYLOAD_TYPE, [])


def test_every_signature_is_good() -> None:
    document: dict[str, Any] = json.loads(both())
    good = [signature["sig"] for signature in document["signatures"]]
    document["signatures"][0]["sig"] = good[1]
    raw = json.dumps(document, indent=2, sort_keys=True).encode() + b"\n"
    keys = [Key("x", bytes.fromhex(document["signatures"][1]["keyid"]))]
    with refused(ReleaseRejected, "signature.bad"):
        signing.verify(raw, PAYLOAD_TYPE, keys)


def test_another_type() -> None:
    other = signing.sign(PAYLOAD, "application/vnd.in-toto+json", KEY)
    with refused(ReleaseFormatError, "envelope.payload-type"):
        signing.verify(other, PAYLOAD_TYPE, [SIGNER])


def test_one_text_only() -> None:
    for other in (SIGNED + b"\n", SIGNED.replace(b": ", b":"), b" " + SIGNED):
        with refused(ReleaseFormatError, "envelope.canonical"):
            signing.verify(other, PAYLOAD_TYPE, [SIGNER])


@pytest.mark.parametrize(
    ("raw", "rule"),
    [
        (b"", "envelope.json"),
        (b"{}", "envelope.fields"),
        (b" " * (envelope.MAX_BYTES + 1), "envelope.size"),
        (SIGNED.replace(b'"sig":', b'"more": 1, "sig":'), "envelope.fields"),
        (SIGNED.replace(b'"keyid": "', b'"keyid": "A'), "envelope.keyid"),
    ],
)
def test_the_strict_reader_raises_our_errors(raw: bytes, rule: str) -> None:
    with refused(ReleaseFormatError, rule):
        signing.verify(raw, PAYLOAD_TYPE, [SIGNER])


def test_no_one_signs_what_is_no_manifest() -> None:
    with refused(ReleaseFormatError, "manifest.schema"):
        signing.sign_manifest(PAYLOAD, KEY)


@given(st.integers(0, len(SIGNED) - 1), st.integers(1, 255))
def test_any_other_byte_is_refused(at: int, change: int) -> None:
    raw = bytearray(SIGNED)
    raw[at] ^= change
    with pytest.raises((ReleaseFormatError, ReleaseRejected)):
        signing.verify(bytes(raw), PAYLOAD_TYPE, [SIGNER])


def test_files_are_apart(tmp_path: Path, released: Opened) -> None:
    # The signature of one release does not fit the manifest of another.
    other = released.signed.payload.replace(b'"retirement_days": 30', b'"retirement_days": 31')
    assert other != released.signed.payload
    raw = signing.sign_manifest(other, KEY)
    assert signing.verify(raw, PAYLOAD_TYPE, [SIGNER]).payload == other
