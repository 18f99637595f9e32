"""Keys of those who sign releases: the pinned public ones, and a publisher's own private one.

`release/keys.json`: a JSON list of objects, each a `name`, a `key` (Ed25519, 64 lower-case hex
digits), `demo` (whether it is for demonstration: whoever wants to can have the private half),
`not_before` and, optionally, `not_after`: times of use, YYYY-MM-DDTHH:MM:SSZ.

A private key is PEM (PKCS 8, no password) or 64 hex digits, in a file that only its owner may read
or in ZIPNET_RELEASE_KEY; never an argument, which every user of a host can see.
"""

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NoReturn

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
)

from attestation.envelope import fields, load_json, private_key, shown
from attestation.files import read_file, unwritable
from release.errors import ReleaseFormatError, ReleaseRejected

PINNED = Path(__file__).with_name("keys.json")
VARIABLE = "ZIPNET_RELEASE_KEY"
MAX_BYTES = 1 << 16
MAX_PRIVATE = 4096

_HEX = re.compile(r"[0-9a-f]{64}")
_NAME = re.compile(r"[a-z0-9][a-z0-9 .-]{0,63}")
_TIME = "%Y-%m-%dT%H:%M:%SZ"


@dataclass(frozen=True, slots=True)
class Key:
    """A public key (32 bytes) that a release may be signed by, and when it may be relied on."""

    name: str
    public: bytes
    demo: bool = False
    not_before: datetime | None = None
    not_after: datetime | None = None

    @property
    def hex(self) -> str:
        """The key as it is written everywhere, its keyid in an envelope too."""
        return self.public.hex()

    def check(self, now: datetime) -> None:
        """Raise ReleaseRejected (`key.window`) unless the key may be relied on at `now`."""
        early = self.not_before is not None and now < self.not_before
        if early or (self.not_after is not None and now >= self.not_after):
            raise ReleaseRejected(
                f"the key {self.name!r} is not in use now",
                expected=f"a time from {_shown(self.not_before)} to {_shown(self.not_after)}",
                got=_shown(now),
                rule="key.window",
                hint="use the pinned keys of a newer checkout",
            )


def _shown(when: datetime | None) -> str:
    return "any" if when is None else when.astimezone(UTC).strftime(_TIME)


def loads(raw: bytes) -> tuple[Key, ...]:
    """The keys in the bytes of a keys.json, one or more. Raises ReleaseFormatError."""
    value = load_json(raw, "keys", ReleaseFormatError)
    if not isinstance(value, list) or not value:
        _refuse("a list of one key or more", shown(value))
    keys = tuple(map(_key, value))
    for what in ("name", "public"):
        if len({getattr(key, what) for key in keys}) != len(keys):
            _refuse(f"each {what} once", "a repetition", "duplicate")
    return keys


def pinned(path: Path = PINNED) -> tuple[Key, ...]:
    """The keys that this checkout pins. Raises FileError, ReleaseFormatError."""
    return loads(read_file(path, MAX_BYTES))


def trusted(text: str, now: datetime, path: Path = PINNED) -> tuple[Key, ...]:
    """The keys that `--key` names: `pinned`, those in use at `now`, or one as 64 hex digits.

    A key given by its digits is known as demo if a pinned one says so. Raises FileError,
    ReleaseFormatError, and ReleaseRejected if there is no key to trust.
    """
    known = pinned(path)
    if text == "pinned":
        good = tuple(key for key in known if _in_use(key, now))
        if not good:
            known[0].check(now)
        return good
    if not _HEX.fullmatch(text):
        raise ReleaseFormatError(
            "this is no public key",
            expected="`pinned`, or 64 lower-case hex digits",
            got=shown(text),
            rule="key.format",
            hint="get the publisher's key from himself, never from the release",
        )
    public = bytes.fromhex(text)
    return (next((key for key in known if key.public == public), Key("given", public)),)


def _in_use(key: Key, now: datetime) -> bool:
    try:
        key.check(now)
    except ReleaseRejected:
        return False
    return True


def generate(path: Path) -> Ed25519PrivateKey:
    """Make a private key and write it to a new file that only its owner may read.

    Raises FileUnreadable; what is there is never replaced.
    """
    key = Ed25519PrivateKey.generate()
    pem = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    try:
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW
        with os.fdopen(os.open(path, flags, 0o600), "wb") as file:
            # Whatever the umask left of the mode.
            os.fchmod(file.fileno(), 0o600)
            file.write(pem)
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        raise unwritable(path, error) from error
    return key


def private(path: Path | None, environment: Mapping[str, str] = os.environ) -> Ed25519PrivateKey:
    """The private key in a file, or without one in the environment.

    Raises FileError, ReleaseFormatError, and ReleaseRejected (`key.mode`) for a file that others
    may read or write.
    """
    if path is not None:
        raw = read_file(path, MAX_PRIVATE)
        if path.stat().st_mode & 0o077:
            raise ReleaseRejected(
                f"others may use the key in {path}",
                expected="mode 600",
                got=f"{path.stat().st_mode & 0o777:o}",
                rule="key.mode",
                hint=f"`chmod 600 {path}`; if others had access to it, make a new key",
            )
    else:
        raw = environment.get(VARIABLE, "").encode(errors="replace")
    key = private_key(raw)
    if key is None:
        raise ReleaseFormatError(
            f"{path or VARIABLE} holds no Ed25519 private key",
            expected="PEM (PKCS 8) without a password, or 64 hex digits",
            got="other bytes" if raw else "nothing",
            rule="key.format",
            hint="`python -m release keygen FILE` makes one",
        )
    return key


_FIELDS = {"name", "key", "demo", "not_before", "not_after"}


def _key(value: object) -> Key:
    given: object = value
    if isinstance(value, dict):
        given = {"not_after": None, **value}
    entry = fields(given, _FIELDS, "keys", "a key", ReleaseFormatError)
    name, public, demo = entry["name"], entry["key"], entry["demo"]
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        _refuse("a name of lower-case letters, digits, ' ', '.', '-'", shown(name))
    if not isinstance(public, str) or not _HEX.fullmatch(public):
        _refuse("a key of 64 lower-case hex digits", shown(public))
    if not isinstance(demo, bool):
        _refuse("demo true or false", shown(demo))
    begin, end = _time(entry, "not_before"), _time(entry, "not_after")
    if begin is None or (end is not None and end <= begin):
        _refuse("not_before, and not_after later than it", shown(entry["not_after"]))
    return Key(name, bytes.fromhex(public), demo, begin, end)


def _time(entry: Mapping[str, Any], name: str) -> datetime | None:
    value = entry[name]
    if value is None:
        return None
    try:
        return datetime.strptime(value, _TIME).replace(tzinfo=UTC)
    except (TypeError, ValueError):
        _refuse(f"{name} as YYYY-MM-DDTHH:MM:SSZ", shown(value))


def _refuse(expected: str, got: str, rule: str = "value") -> NoReturn:
    raise ReleaseFormatError(
        "the list of pinned keys is malformed",
        expected=expected,
        got=got,
        rule=f"keys.{rule}",
        hint="take release/keys.json from a checkout that you trust",
    )
