"""Package sets from a mirror or from a lock, by a real apt and a small archive."""

from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from release.build import supply as supply_module
from release.build.deb import Deb
from release.build.lock import SOURCE_DATE_EPOCH, Lock
from release.build.settings import PackageSet
from release.build.supply import age, base_firmware
from release.build.tools import Tree
from release.errors import HostError, LockError, MirrorError
from tests.release.build.support import TIMESTAMP, deb, refused
from tests.release.build.world import World

SERVER = PackageSet("server", ("systemd",), essential=True)


def names(debs: Sequence[Deb]) -> list[str]:
    return [d.name for d in debs]


def write(small: World, lock: Lock, name: str) -> None:
    (small.paths.locks / f"{name}.lock").write_bytes(lock.dumps())


def test_tools(small: World, log: Path) -> None:
    found = small.supply().tools(log)
    assert (found.release, found.timestamp) == ("sid", TIMESTAMP)
    assert found.source_date_epoch == SOURCE_DATE_EPOCH
    assert {name: names(debs) for name, debs in found.sets} == {
        "tools": ["base-files", "fake-tools"],
        "mkosi": ["mkosi"],
        "firmware": ["ovmf-inteltdx"],
        "emulator": ["qemu-system-x86"],
    }
    assert Lock.loads(found.dumps()) == found
    # Indices that are there can be used again without the mirror.
    assert small.supply().tools(log, refresh=False) == found


def test_images(small: World, log: Path, tmp_path: Path) -> None:
    found = small.supply().images(small.distribution, [SERVER], Tree(tmp_path), log)
    assert (found.release, found.timestamp) == ("debian-trixie", TIMESTAMP)
    assert names(found.packages("server")) == ["base-files", "libsystemd", "systemd"]


def test_keyring_of_the_distribution_from_the_tools(
    small: World, log: Path, tmp_path: Path
) -> None:
    # Ubuntu's keyring on Debian: the tools carry it.
    inside = replace(small.distribution, keyring="usr/share/keyrings/other.gpg")
    tools = Tree(tmp_path / "tools")
    with refused(HostError, "has no usr/share/keyrings/other.gpg"):
        small.supply().images(inside, [SERVER], tools, log)
    path = tools.folder / inside.keyring
    path.parent.mkdir(parents=True)
    path.write_bytes(small.repository.keyring.read_bytes())
    assert small.supply().images(inside, [SERVER], tools, log).packages("server")


def test_tree(small: World, log: Path) -> None:
    supply = small.supply()
    found = supply.tools(log)
    firmware = base_firmware(supply.tree(found, "firmware", log))
    assert firmware[-32:] == bytes(32)
    assert supply.store.missing(found.packages("firmware")) == []
    with refused(LockError, "has no package set 'images'"):
        supply.tree(found, "images", log)


def test_locked_reads_no_index(small: World, log: Path, tmp_path: Path) -> None:
    found = small.supply().tools(log)
    images = small.supply().images(small.distribution, [SERVER], Tree(tmp_path), log)
    write(small, found, "tools")
    write(small, images, "debian-trixie")
    nowhere = tuple((n, f"file://{tmp_path}/nowhere") for n in ("debian", "debian-security"))
    locked = replace(
        small.supply(locked=True), mirrors=replace(small.repository.mirrors, bases=nowhere)
    )
    log.unlink()
    assert locked.tools(log) == found
    assert locked.images(small.distribution, [SERVER], Tree(tmp_path), log) == images
    assert not log.exists()
    assert locked.compared("tools", found, ("tools",)) == []
    with refused(MirrorError, "1 packages can't be had: mkosi 27.1-1"):
        locked.tree(found, "mkosi", log)


def test_locked_without_a_lock(small: World, log: Path, tmp_path: Path) -> None:
    locked = small.supply(locked=True)
    with refused(LockError, "there is no lock tools.lock") as caught:
        locked.tools(log)
    assert "python build.py lock" in caught[0].hint
    with refused(LockError, "there is no lock debian-trixie.lock"):
        locked.images(small.distribution, [SERVER], Tree(tmp_path), log)


def test_a_lock_that_lacks_a_package(small: World, log: Path, tmp_path: Path) -> None:
    images = small.supply().images(small.distribution, [SERVER], Tree(tmp_path), log)
    write(small, images, "debian-trixie")
    more = PackageSet("server", ("systemd", "python3", "openssl"), essential=True)
    with refused(LockError, "the lock of 'server' lacks packages that mkosi.conf asks for") as c:
        small.supply(locked=True).images(small.distribution, [more], Tree(tmp_path), log)
    assert c[0].got == "openssl, python3"
    other = PackageSet("client", ("systemd",))
    with refused(LockError, "no package set 'client'"):
        small.supply(locked=True).images(small.distribution, [other], Tree(tmp_path), log)


def test_compared(small: World) -> None:
    now = Lock("sid", TIMESTAMP, 1, (("tools", (deb("aa", "2"),)), ("mkosi", (deb("aa", "2"),))))
    supply = small.supply()
    assert supply.compared("tools", now, ("tools",)) == [
        "there is no lock tools.lock: nothing to compare with"
    ]
    then = replace(now, sets=(("tools", (deb("aa", "1"),)), ("mkosi", (deb("aa", "1"),))))
    write(small, then, "tools")
    # The same difference in two sets is one line.
    assert supply.compared("tools", now, ("tools", "mkosi")) == ["~ aa 1 -> 2"]
    write(small, now, "tools")
    assert supply.compared("tools", now, ("tools", "mkosi")) == []
    write(small, replace(now, sets=now.sets[:1]), "tools")
    assert supply.compared("tools", now, ("tools", "mkosi")) == ["+ aa 2"]


def test_a_broken_lock_on_file(small: World) -> None:
    (small.paths.locks / "tools.lock").write_bytes(b"{}")
    with refused(LockError, "a lock has another schema"):
        small.supply().compared("tools", Lock("sid", TIMESTAMP, 1, ()), ())


@pytest.mark.parametrize(
    ("days", "remark"),
    [
        (0, None),
        (supply_module.STALE_DAYS, None),
        (supply_module.STALE_DAYS + 1, "the mirror's newest index is 11 days old"),
        (400, "the mirror's newest index is 400 days old"),
    ],
)
def test_age(days: int, remark: str | None) -> None:
    moment = datetime.now(UTC) - timedelta(days=days, minutes=5)
    assert age(Lock("sid", f"{moment:%Y%m%dT%H%M%SZ}", 1, ())) == remark
