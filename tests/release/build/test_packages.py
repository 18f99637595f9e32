"""packages.json: round trip, and everything that is not what the builder writes."""

import json
from dataclasses import replace
from typing import Any

import pytest

from release.build.lock import SOURCE_DATE_EPOCH
from release.build.packages import LIMIT, SCHEMA, Packages
from release.build.settings import Flavor, Role
from release.build.wheels import Wheel
from release.errors import BuildRefused, LockError
from tests.release.build.support import deb, refused

PACKAGES = Packages(
    role=Role.SERVER,
    flavor=Flavor.MOCK,
    distribution="debian",
    release="trixie",
    source_date_epoch=SOURCE_DATE_EPOCH,
    compress_level=3,
    packages=(deb("alpha"), deb("beta")),
    wheels=(Wheel("click", "8.1.8", "0" * 64, "click-8.1.8-py3-none-any.whl"),),
    builder=(("mkosi", (deb("mkosi"),)), ("tools", (deb("apt"), deb("zstd")))),
)
DOCUMENT: dict[str, Any] = json.loads(PACKAGES.dumps())


def encoded(document: object) -> bytes:
    return (json.dumps(document, indent=1, sort_keys=True) + "\n").encode()


def test_round_trip() -> None:
    raw = PACKAGES.dumps()
    assert Packages.loads(raw) == PACKAGES
    assert encoded(DOCUMENT) == raw
    assert DOCUMENT["schema"] == SCHEMA
    assert PACKAGES.set_of("mkosi") == (deb("mkosi"),)


def test_order_does_not_show() -> None:
    turned = replace(PACKAGES, packages=PACKAGES.packages[::-1], builder=PACKAGES.builder[::-1])
    assert turned.dumps() == PACKAGES.dumps()


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"schema": "zipnet.packages/1"}, "another schema"),
        ({"more": 1}, "another schema"),
        ({"role": "king"}, "malformed role"),
        ({"flavor": 1}, "malformed flavor"),
        ({"distribution": "Debian"}, "malformed distribution"),
        ({"release": "trixie\n"}, "malformed release"),
        ({"source_date_epoch": 1 << 32}, "malformed source_date_epoch"),
        ({"source_date_epoch": True}, "malformed source_date_epoch"),
        ({"compress_level": 20}, "malformed compress_level"),
        ({"compress_level": 0}, "malformed compress_level"),
        ({"packages": {}}, "no list of packages"),
        ({"packages": DOCUMENT["packages"][::-1]}, "canonical"),
        ({"wheels": [{"name": "click"}]}, "malformed wheel"),
        ({"wheels": [DOCUMENT["wheels"][0] | {"file": "../click.whl"}]}, "malformed file"),
        ({"builder": []}, "no builder sets"),
        ({"builder": {"Tools": []}}, "malformed builder"),
    ],
)
def test_refused(change: dict[str, object], words: str) -> None:
    with refused(BuildRefused, words):
        Packages.loads(encoded(DOCUMENT | change))


def test_a_malformed_package() -> None:
    with refused(LockError, "a package record has other fields"):
        Packages.loads(encoded(DOCUMENT | {"packages": [{}]}))


@pytest.mark.parametrize(
    ("raw", "words"),
    [
        (b"", "is not JSON"),
        (b"[" * 100_000, "is not JSON"),
        (b"[]", "another schema"),
        (b" " * (LIMIT + 1), "too large"),
        (PACKAGES.dumps() + b"\n", "canonical"),
        (PACKAGES.dumps().replace(b'"role"', b'"role": "client", "role"', 1), "canonical"),
    ],
)
def test_other_bytes(raw: bytes, words: str) -> None:
    with refused(BuildRefused, words):
        Packages.loads(raw)


def test_no_such_set() -> None:
    with refused(BuildRefused, "no builder set 'emulator'"):
        PACKAGES.set_of("emulator")
