"""Receipts: what a leaf aggregator tells each client about its envelope, and nobody else.

Each round has one entry, 177 bytes, for *every* member of the roster, whatever became of it:

    entry     = tag (16) ‖ ephemeral public key (32) ‖ ChaCha20-Poly1305(plaintext; AAD = tag)
    plaintext = status (u8) ‖ rule (48, ASCII, zero padded) ‖ signature (64)
    tag       = keyed BLAKE3(receipt key)(u64 round)[:16]
    key       = HKDF-SHA256(salt "zipnet/receipt/v2", IKM = X25519(ephemeral, client's identity),
                info = binding ‖ u64 round ‖ client id ‖ ephemeral public ‖ client public)

The nonce is zero: each key seals one plaintext. The signature is that of the entry's maker over
client id ‖ status ‖ rule. A blob is entries sorted by tag, so that a client finds its own without
telling which. Receipts explain; whether a client was in a round says only the signed record.
"""

from bisect import bisect_left
from collections.abc import Iterable
from dataclasses import dataclass
from enum import IntEnum

from blake3 import blake3
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from zipnet.errors import Refused, WireFormatError
from zipnet.protocol.codec import Reader
from zipnet.protocol.instance import Instance

SEAL = b"zipnet/receipt/v2"
SIGN_RECEIPT = b"zipnet/sig/receipt/v2"
RECEIPT_TAG_LEN = 16
MAX_RULE = 48
RECEIPT = 1 + MAX_RULE
ENTRY = RECEIPT_TAG_LEN + 32 + RECEIPT + 64 + 16


class Status(IntEnum):
    """What a leaf did with a client's envelope."""

    ABSENT = 0
    TAKEN = 1
    LATE = 2
    REFUSED = 3


@dataclass(frozen=True, slots=True)
class Receipt:
    """A status and, if the envelope was refused, the rule (at most 48 printable ASCII).

    Raises WireFormatError.
    """

    status: Status
    rule: str = ""

    def __post_init__(self) -> None:
        good = len(self.rule) <= MAX_RULE and all(" " <= letter <= "~" for letter in self.rule)
        if not good or bool(self.rule) != (self.status is Status.REFUSED):
            raise WireFormatError(
                "this is no receipt",
                expected=f"1 to {MAX_RULE} printable ASCII if refused, else no rule",
                got=f"{self.status.name} {ascii(self.rule)[:80]}",
                rule="receipt.rule",
            )

    def encode(self) -> bytes:
        """49 bytes: the status, then the rule with zeros after it."""
        return bytes((self.status,)) + self.rule.encode("ascii").ljust(MAX_RULE, b"\0")

    @classmethod
    def decode(cls, raw: bytes) -> "Receipt":
        """The receipt in `raw`, all of it. Raises WireFormatError."""
        reader = Reader(raw, "receipt", at_most=RECEIPT)
        status = reader.u8()
        if status > max(Status):
            raise reader.wrong("status", f"0 to {max(Status)}", str(status))
        rule = reader.take(MAX_RULE).rstrip(b"\0")
        # Latin-1 reads any byte, for the constructor to refuse.
        return cls(Status(status), rule.decode("latin-1"))


def receipt_tag(receipt_key: bytes, round_number: int) -> bytes:
    """What leads a client's entry of this round; `receipt_key` is that of client and leaf."""
    return blake3(round_number.to_bytes(8, "big"), key=receipt_key).digest(RECEIPT_TAG_LEN)


def seal_receipt(
    receipt: Receipt,
    instance: Instance,
    round_number: int,
    client: bytes,
    dh_pub: bytes,
    receipt_key: bytes,
    ephemeral: bytes,
    maker: Ed25519PrivateKey,
) -> bytes:
    """The entry for a client (its id and identity X25519 key), `ENTRY` bytes.

    `ephemeral` is 32 random bytes that are used for nothing else. Raises Refused for a client key
    that gives an all-zero secret.
    """
    tag = receipt_tag(receipt_key, round_number)
    own = X25519PrivateKey.from_private_bytes(ephemeral)
    public = own.public_key().public_bytes_raw()
    body = receipt.encode()
    plaintext = body + instance.sign(maker, SIGN_RECEIPT, round_number, client + body)
    info = _info(instance, round_number, client, public, dh_pub)
    return tag + public + _cipher(own, dh_pub, info).encrypt(bytes(12), plaintext, tag)


def open_receipt(
    entry: bytes,
    instance: Instance,
    round_number: int,
    client: bytes,
    own: X25519PrivateKey,
    maker: bytes,
) -> Receipt:
    """What the entry says; `own` is the client's identity secret, `maker` the leaf's peer key.

    Raises WireFormatError for bytes that are no entry, Refused for one of another client or round,
    a damaged one, or one that `maker` did not sign.
    """
    reader = Reader(entry, "receipt-entry", at_most=ENTRY)
    tag, public, sealed = (
        reader.take(RECEIPT_TAG_LEN), reader.take(32), reader.take(RECEIPT + 64 + 16)
    )  # fmt: skip
    dh_pub = own.public_key().public_bytes_raw()
    info = _info(instance, round_number, client, public, dh_pub)
    try:
        plaintext = _cipher(own, public, info).decrypt(bytes(12), sealed, tag)
    except InvalidTag:
        raise Refused(
            "the receipt does not open",
            expected=f"a receipt for {client.hex()[:16]} in round {round_number}",
            got=tag.hex(),
            rule="receipt.open",
            hint="it is for another client or round, or was damaged; the record says who was in",
        ) from None
    body, signature = plaintext[:RECEIPT], plaintext[RECEIPT:]
    instance.verify(maker, signature, SIGN_RECEIPT, round_number, client + body)
    return Receipt.decode(body)


def join(entries: Iterable[bytes]) -> bytes:
    """The blob of these entries, of one leaf or of several. Raises as `check_blob`."""
    parts = sorted(entries)
    blob = b"".join(parts)
    check_blob(blob, len(parts))
    return blob


def check_blob(blob: bytes, clients: int) -> None:
    """Refuse what is not one entry each for so many clients, by ascending tags.

    Raises WireFormatError.
    """
    reader = Reader(blob, "receipts", at_most=clients * ENTRY)
    last = b""
    for _ in range(clients):
        tag = reader.take(ENTRY)[:RECEIPT_TAG_LEN]
        if tag <= last:
            raise reader.wrong("order", f"a tag above {last.hex()}", tag.hex())
        last = tag


def find(blob: bytes, tag: bytes) -> bytes | None:
    """The entry with this tag in a blob that `check_blob` accepts, by bisection."""

    def tag_of(place: int) -> bytes:
        return blob[place * ENTRY : place * ENTRY + RECEIPT_TAG_LEN]

    place = bisect_left(range(len(blob) // ENTRY), tag, key=tag_of)
    entry = blob[place * ENTRY : (place + 1) * ENTRY]
    return entry if entry[:RECEIPT_TAG_LEN] == tag and len(entry) == ENTRY else None


def _info(
    instance: Instance, round_number: int, client: bytes, ephemeral: bytes, dh_pub: bytes
) -> bytes:
    return instance.binding + round_number.to_bytes(8, "big") + client + ephemeral + dh_pub


def _cipher(own: X25519PrivateKey, other: bytes, info: bytes) -> ChaCha20Poly1305:
    try:
        secret = own.exchange(X25519PublicKey.from_public_bytes(other))
    except ValueError:
        raise Refused(
            "an X25519 key gives no secret",
            expected="a key that is not of small order",
            got=other.hex(),
            rule="dh-zero",
        ) from None
    return ChaCha20Poly1305(HKDF(SHA256(), 32, salt=SEAL, info=info).derive(secret))
