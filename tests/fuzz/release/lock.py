"""Fuzz target: package locks."""

from release.build.lock import Lock, differences
from release.errors import ReleaseError
from tests.release.build.support import TIMESTAMP, deb


def seeds() -> list[bytes]:
    one = Lock("sid", TIMESTAMP, 1, (("mkosi", (deb(),)),))
    two = Lock("debian-trixie", TIMESTAMP, 1, (("a", (deb(), deb("beta", "1:2"))), ("b", (deb(),))))
    return [one.dumps(), two.dumps()]


def fuzz_one(data: bytes) -> None:
    try:
        lock = Lock.loads(data)
    except ReleaseError as error:
        error.diagnostics().encode()
        return
    again = Lock.loads(lock.dumps())
    assert again.dumps() == lock.dumps()
    for name, debs in lock.sets:
        assert differences(debs, again.packages(name)) == []
