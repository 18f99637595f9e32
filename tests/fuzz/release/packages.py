"""Fuzz target: packages.json."""

from release.build.packages import Packages
from release.errors import ReleaseError
from tests.release.build.test_packages import PACKAGES


def seeds() -> list[bytes]:
    return [PACKAGES.dumps()]


def fuzz_one(data: bytes) -> None:
    try:
        found = Packages.loads(data)
    except ReleaseError as error:
        error.diagnostics().encode()
        return
    assert found.dumps() == data
