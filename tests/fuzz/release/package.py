"""Fuzz target: package records, as JSON."""

import json
import re
from dataclasses import asdict

from release.build.deb import Deb
from release.errors import ReleaseError
from tests.release.build.support import deb


def seeds() -> list[bytes]:
    debs = [deb(), deb("libstdc++6", "1:2~rc1+b1", architecture="all", archive="ubuntu")]
    return [json.dumps(asdict(value)).encode() for value in debs]


def fuzz_one(data: bytes) -> None:
    try:
        record = json.loads(data)
    except (ValueError, RecursionError):
        return
    try:
        value = Deb.parse(record)
    except ReleaseError as error:
        error.diagnostics().encode()
        return
    assert Deb.parse(asdict(value)) == value
    # It goes into URLs, command lines and file names.
    assert re.fullmatch(r"[a-z0-9][!-~]*", value.name + value.version + value.path)
    assert "/" not in value.file
    assert ".." not in value.path.split("/")
