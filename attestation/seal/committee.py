"""Any-trust sealing, the asker's side: data opens only with a contribution of every member.

The key is HKDF over all members' contributions, ascending by id (not their XOR: who answers last
would choose it). One honest member is enough for two things: nobody has the key but guests that the
list in force accepts, and no older copy passes as the newest. One missing member is enough that
nothing opens.

Pure functions: `committee_sealer` has the order of steps and asks, `committee_member` answers.

    nonces -> open_request | create_request | commit_request -> Asking.raw, to every member
    answers -> read(committee, asking, answers) -> open_blob | unsafe_open_older | create_blob |
                                                   committed

The order of a change is: the blob is durable, then every member knows its version and digest
(commit), then the data is used. A crash between the first two leaves a blob one version ahead,
which `open_blob` accepts and asks to commit; nothing of an uncommitted version was ever used.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace

from cryptography.exceptions import InvalidSignature, InvalidTag
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from attestation.errors import (
    PolicyError,
    SealFormatError,
    SealRefused,
    SealUnavailable,
)
from attestation.seal.committee_format import (
    AEAD_NONCE,
    ID,
    MAX_DATA,
    MAX_MEMBERS,
    MAX_NUMBER,
    NOTHING,
    Answer,
    Blob,
    Header,
    Op,
    Refusal,
    Released,
    Request,
    Seat,
)
from attestation.seal.committee_member import box_cipher, to_sign

KEY_DOMAIN = b"attestation/seal/committee/key/v1"
VERSION_DOMAIN = b"attestation/seal/committee/version/v1"
COMMITMENT_DOMAIN = b"attestation/seal/committee/commitment/v1"


@dataclass(frozen=True, slots=True)
class Committee:
    """An instance (its Ed25519 public key) and whom it asks: the Ed25519 key of each member id.

    All are 32 bytes; at most MAX_MEMBERS members. Raises PolicyError, rule `seal.committee`.
    """

    deployment: bytes
    instance: bytes
    keys: Mapping[bytes, bytes]

    def __post_init__(self) -> None:
        parts = (self.deployment, self.instance, *self.keys, *self.keys.values())
        if not 1 <= len(self.keys) <= MAX_MEMBERS or any(len(part) != ID for part in parts):
            raise PolicyError(
                "this is no sealing committee",
                expected=f"1 to {MAX_MEMBERS} members, ids and keys of {ID} bytes",
                got=f"{len(self.keys)} members",
                rule="seal.committee",
            )

    @property
    def ids(self) -> tuple[bytes, ...]:
        """The members, ascending."""
        return tuple(sorted(self.keys))


@dataclass(frozen=True, slots=True)
class Asking:
    """A request as it goes to every member: `raw` is its body and the bundle drawn for it.

    `ephemeral` is the secret of the ticket's dh_pub, for the answers.
    """

    request: Request
    raw: bytes = field(repr=False)
    ephemeral: X25519PrivateKey = field(repr=False)


@dataclass(frozen=True, slots=True)
class Opened:
    """Data, the blob that holds it, and what the next version needs.

    `version` is the newest that is known to anybody, `boots` what the members counted, in the order
    of `header.members`; `behind` are the members that don't know this blob yet: commit it to them
    before the data is used.
    """

    data: bytes = field(repr=False)
    header: Header
    raw: bytes = field(repr=False)
    key: bytes = field(repr=False)
    version: int
    boots: tuple[int, ...]
    behind: tuple[bytes, ...]


def check_blob(committee: Committee, blob: Blob) -> None:
    """Raise SealRefused unless the blob is of this instance and this very committee.

    Rules `seal.foreign`, `seal.members`: with fewer members than there are, or others, whoever
    has those could make a blob that opens.
    """
    header = blob.header
    for what, expected, got in (
        ("deployment", committee.deployment, header.deployment),
        ("instance", committee.instance, header.instance),
    ):
        if expected != got:
            raise SealRefused(
                f"the data was sealed for another {what}",
                expected=expected.hex(),
                got=got.hex(),
                rule="seal.foreign",
                hint="this disk belongs to another node: see which one was attached",
            )
    gone, new = set(header.ids) - set(committee.ids), set(committee.ids) - set(header.ids)
    if gone or new:
        raise SealRefused(
            "the data was sealed with another committee",
            expected=f"members {_names(committee.ids)}",
            got=f"not there any more: {_names(gone)}; not there then: {_names(new)}",
            rule="seal.members",
            hint="the data can't be had back: create a new key with the members of today",
        )


def open_request(committee: Committee, blob: Blob, nonces: Mapping[bytes, bytes | None]) -> Request:
    """Ask for what opens `blob`; None, or no entry, is a member that gave no nonce.

    Raises as `check_blob`; SealUnavailable, rule `seal.members`; SealFormatError, `seal.answer`.
    """
    check_blob(committee, blob)
    header = blob.header
    return Request(
        *(Op.OPEN, header.deployment, header.instance, header.key_id, header.list_number),
        *(header.version, blob.digest, _seats(committee, nonces)),
    )


def create_request(
    committee: Committee, key_id: bytes, list_number: int, nonces: Mapping[bytes, bytes | None]
) -> Request:
    """Ask for a key: a new one if `key_id` are 32 random bytes. `list_number` is that in force.

    Raises as `open_request` for its nonces; so does `commit_request`.
    """
    return Request(
        *(Op.CREATE, committee.deployment, committee.instance, key_id, list_number),
        *(0, NOTHING, _seats(committee, nonces)),
    )


def commit_request(
    committee: Committee, opened: Opened, nonces: Mapping[bytes, bytes | None]
) -> Request:
    """Tell all members the version and digest of a blob that is durable."""
    header = opened.header
    boots = dict(zip(header.ids, opened.boots, strict=True))
    seats = tuple(replace(seat, boot=boots[seat.member]) for seat in _seats(committee, nonces))
    return Request(
        *(Op.COMMIT, header.deployment, header.instance, header.key_id, header.list_number),
        *(header.version, hashlib.sha256(opened.raw).digest(), seats),
    )


def read(
    committee: Committee, asking: Asking, answers: Mapping[bytes, bytes | None]
) -> dict[bytes, Released]:
    """What each member released; None, or no entry, is no answer.

    Raises SealUnavailable, rule `seal.members`, naming those that are missing; else, naming the
    member, SealFormatError `seal.answer`, SealRefused `seal.signature`, and SealRefused by the rule
    that the member refuses by.
    """
    found = {
        member: _read_one(asking, member, committee.keys[member], raw)
        for member in committee.ids
        if (raw := answers.get(member)) is not None
    }
    _all_there(committee, found)
    return found


def open_blob(committee: Committee, blob: Blob, released: Mapping[bytes, Released]) -> Opened:
    """The data of a blob, if it is the newest that any member knows.

    Raises SealRefused, naming members: `seal.rollback` (one knows a newer version), `seal.fork`
    (one knows another blob of this version), `seal.behind` (one knows less than it was told),
    `seal.equivocation` (a contribution is not the one that the key was made of), and those of
    `check_blob`; SealFormatError `seal.damaged`.
    """
    check_blob(committee, blob)
    version, digest = blob.header.version, blob.digest
    newer = [m for m, one in released.items() if one.version > version]
    if newer:
        raise SealRefused(
            f"the sealed data is older than what {_names(newer)} knows",
            expected=f"version {max(released[m].version for m in newer)}",
            got=f"version {version}",
            rule="seal.rollback",
            hint="an old copy of the disk was put back: see who can do that",
        )
    others = [m for m, one in released.items() if one.version == version and one.digest != digest]
    if others:
        raise SealRefused(
            f"{_names(others)} knows other data of the same version",
            expected=released[others[0]].digest.hex(),
            got=digest.hex(),
            rule="seal.fork",
            hint="the disk was changed, or two copies of the node wrote",
        )
    forgotten = [m for m, one in released.items() if one.version < version - 1]
    if forgotten:
        raise SealRefused(
            f"{_names(forgotten)} does not know what it confirmed",
            expected=f"version {version}, or {version - 1}",
            got=f"version {min(released[m].version for m in forgotten)}",
            rule="seal.behind",
            hint="the member has lost its table, or lies: ask its operator; or create a new key",
        )
    behind = tuple(m for m in committee.ids if released[m].version < version)
    return _decrypted(blob, released, version, behind)


def unsafe_open_older(
    committee: Committee, blob: Blob, released: Mapping[bytes, Released]
) -> Opened:
    """The data of a blob whether or not it is the newest: what was used since is not in it.

    Nothing that must not be used twice may be taken from it. `reseal` then goes on from the newest
    version that any member knows, if `released` answers a `create_request` for the blob's key.
    Raises as `open_blob`, but not `seal.rollback`, `seal.fork` and `seal.behind`.
    """
    check_blob(committee, blob)
    newest = max(blob.header.version, *(one.version for one in released.values()))
    return _decrypted(blob, released, newest, ())


def create_blob(
    request: Request, released: Mapping[bytes, Released], data: bytes, nonce: bytes
) -> Opened:
    """Data under the key that `request` asked for, at the version after the newest known.

    `nonce` are 12 random bytes. Raises as `reseal`.
    """
    key = _key(request, released)
    newest = max(one.version for one in released.values())
    ids = sorted(released)
    header = Header(
        *(request.deployment, request.instance, request.key_id, request.list_number),
        *(
            max(newest, 1),
            tuple((m, _commitment(request, m, released[m].contribution)) for m in ids),
        ),
    )
    boots = tuple(released[member].boot for member in ids)
    return reseal(Opened(b"", header, b"", key, newest, boots, ()), data, nonce)


def reseal(opened: Opened, data: bytes, nonce: bytes) -> Opened:
    """Data as the version after the newest: write `raw`, then commit it, then use it.

    `nonce` are 12 random bytes. Raises SealRefused, rules `seal.size`, `seal.version`.
    """
    if len(data) > MAX_DATA:
        raise SealRefused(
            "the data is too large to be sealed",
            expected=f"at most {MAX_DATA} bytes",
            got=str(len(data)),
            rule="seal.size",
        )
    if opened.version >= MAX_NUMBER:
        raise SealRefused(
            "no version comes after the newest that a member claims to know",
            expected=f"less than {MAX_NUMBER}",
            got=str(opened.version),
            rule="seal.version",
            hint="a member lies, or did: give the node a new instance key",
        )
    header = replace(opened.header, version=opened.version + 1)
    # The associated data holds the size of the ciphertext: known before, as the tag has 16 bytes.
    draft = Blob(header, nonce, bytes(len(data) + 16))
    ciphertext = _cipher(opened.key, header.version).encrypt(nonce, data, draft.associated)
    raw = replace(draft, ciphertext=ciphertext).encode()
    return replace(
        opened, data=data, header=header, raw=raw, version=header.version, behind=header.ids
    )


def committed(opened: Opened, released: Mapping[bytes, Released]) -> Opened:
    """The same with nobody behind. Raises SealRefused, rule `seal.commit`, naming the member."""
    digest = hashlib.sha256(opened.raw).digest()
    for member, one in released.items():
        if (one.version, one.digest) != (opened.version, digest):
            raise SealRefused(
                f"{_names([member])} confirms something else",
                expected=f"version {opened.version}, {digest.hex()}",
                got=f"version {one.version}, {one.digest.hex()}",
                rule="seal.commit",
                hint="ask the member's operator",
            )
    return replace(opened, behind=())


def _decrypted(
    blob: Blob, released: Mapping[bytes, Released], version: int, behind: tuple[bytes, ...]
) -> Opened:
    header = blob.header
    for member, commitment in header.members:
        if _commitment(header, member, released[member].contribution) != commitment:
            raise SealRefused(
                f"{_names([member])} gives another contribution than before",
                expected=f"one with the commitment {commitment.hex()}",
                got="one with another",
                rule="seal.equivocation",
                hint="the member has lost its root, or lies; or the blob's header was changed",
            )
    key = _key(header, released)
    try:
        data = _cipher(key, header.version).decrypt(blob.nonce, blob.ciphertext, blob.associated)
    except InvalidTag as error:
        raise SealFormatError(
            "the sealed data was changed",
            expected="the bytes that were written",
            rule="seal.damaged",
            hint="restore the disk, or create a new key",
        ) from error
    boots = tuple(released[member].boot for member in header.ids)
    return Opened(data, header, blob.encode(), key, version, boots, behind)


def _names_of(header: Header | Request) -> bytes:
    return (
        header.deployment + header.instance + header.key_id + header.list_number.to_bytes(8, "big")
    )


def _key(header: Header | Request, released: Mapping[bytes, Released]) -> bytes:
    shares = b"".join(member + released[member].contribution for member in sorted(released))
    return HKDF(SHA256(), 32, None, KEY_DOMAIN + b"\0" + _names_of(header)).derive(shares)


def _cipher(key: bytes, version: int) -> ChaCha20Poly1305:
    info = VERSION_DOMAIN + b"\0" + version.to_bytes(8, "big")
    return ChaCha20Poly1305(HKDF(SHA256(), 32, None, info).derive(key))


def _commitment(header: Header | Request, member: bytes, contribution: bytes) -> bytes:
    parts = (COMMITMENT_DOMAIN, b"\0", _names_of(header), member, contribution)
    return hashlib.sha256(b"".join(parts)).digest()


def _seats(committee: Committee, nonces: Mapping[bytes, bytes | None]) -> tuple[Seat, ...]:
    """All members with their nonces.

    Raises SealUnavailable, rule `seal.members`; SealFormatError, rule `seal.answer`.
    """
    found = {m: nonce for m in committee.ids if (nonce := nonces.get(m)) is not None}
    _all_there(committee, found)
    for member, nonce in found.items():
        if len(nonce) != ID:
            raise SealFormatError(
                f"{_names([member])} gives no nonce",
                expected=f"{ID} bytes",
                got=str(len(nonce)),
                rule="seal.answer",
            )
    return tuple(Seat(member, nonce) for member, nonce in found.items())


def _all_there(committee: Committee, found: Iterable[bytes]) -> None:
    missing = set(committee.ids) - set(found)
    if missing:
        raise SealUnavailable(
            f"{_names(missing)} does not answer",
            expected=f"all of {_names(committee.ids)}",
            rule="seal.members",
            hint="nothing opens without every member: ask the operators of those",
        )


def _read_one(asking: Asking, member: bytes, key: bytes, raw: bytes) -> Released:
    try:
        answer = Answer.decode(raw)
        Ed25519PublicKey.from_public_bytes(key).verify(
            answer.signature, to_sign(member, asking.raw, answer)
        )
        if not isinstance(answer.content, Refusal):
            return _unboxed(asking, member, answer.content)
    except InvalidSignature as error:
        raise SealRefused(
            f"the answer is not signed by {_names([member])} for this request",
            expected=f"a signature by {key.hex()}",
            got="another, or over another request",
            rule="seal.signature",
            hint="somebody between answers for the member, or repeats an old answer",
        ) from error
    except SealFormatError as error:
        raise SealFormatError(
            f"{_names([member])}: {error.message}",
            expected=error.expected,
            got=error.got,
            rule=error.rule,
            hint=error.hint,
        ) from error
    raise SealRefused(
        f"{_names([member])} refuses: {answer.content.text}",
        rule=answer.content.rule,
        hint="the rule is the member's; its operator sees the same in the member's log",
    )


def _unboxed(asking: Asking, member: bytes, box: bytes) -> Released:
    public, sealed = box[:ID], box[ID:]
    own = asking.ephemeral.public_key().public_bytes_raw()
    try:
        shared = asking.ephemeral.exchange(X25519PublicKey.from_public_bytes(public))
        cipher = box_cipher(shared, asking.raw, member, public, own)
        plaintext = cipher.decrypt(bytes(AEAD_NONCE), sealed, None)
    except (InvalidTag, ValueError) as error:
        raise SealFormatError(
            "its box does not open",
            expected="one for this request's key",
            rule="seal.answer",
            hint="the member is broken, or lies",
        ) from error
    return Released.decode(plaintext)


def _names(members: Iterable[bytes]) -> str:
    """Members for people."""
    return ", ".join(f"member {member.hex()[:16]}" for member in sorted(members)) or "none"
