"""Fuzz target: cpio archives."""

from release.build import cpio
from release.errors import ReleaseError

MEMBERS = {"init": (0o100755, b"#!/bin/sh\n"), "etc": (0o40755, b""), "link": (0o120777, b"init")}


def seeds() -> list[bytes]:
    return [cpio.write(MEMBERS), cpio.write({})]


def fuzz_one(data: bytes) -> None:
    total = 0
    try:
        for entry in cpio.read(data):
            total += cpio.HEADER + len(entry.data)
            # Every member is somewhere in the archive, and none of them twice.
            assert total <= len(data)
    except ReleaseError as error:
        error.diagnostics().encode()
