"""Whose a file of an image is: packages, wheels, this repository, steps of the build."""

from pathlib import Path

import pytest

from release.build.cpio import Entry
from release.build.deb import Deb, Store
from release.errors import BuildRefused
from release.origin import STEPS, UNKNOWN, Origins, paths, wheels_of
from tests.release.build.support import build_deb, deb, described, needs, refused

SITE = "usr/lib/zipnet/lib/python3.13/site-packages"


def put(store: Store, path: Path) -> Deb:
    _, value = described(path, f"pool/{path.name}")
    store.path(value).parent.mkdir(parents=True, exist_ok=True)
    path.rename(store.path(value))
    return value


@pytest.fixture(scope="module")
def origins(tmp_path_factory: pytest.TempPathFactory) -> Origins:
    """Two packages, a tree of the base and of a role, and a wheel with a file beside its folder."""
    needs("dpkg-deb", "tar")
    folder = tmp_path_factory.mktemp("origins")
    store, pool = Store(folder / "store"), folder / "pool"
    pool.mkdir()
    module = "lib/modules/6.12/kernel/drivers/tdx-guest.ko.xz"
    debs = [
        put(
            store, build_deb(pool, "alpha", "1:2.0", {"etc/alpha": b"", "usr/lib/os-release": b""})
        ),
        put(store, build_deb(pool, "beta", "3", {"bin/beta": b"x", "lib/beta/one.py": b""})),
        put(store, build_deb(pool, "linux", "6.12", {module: b"", "lib/modules/6.12/m.dep": b""})),
        # Not in the store: passed over.
        deb("gamma"),
    ]
    for path in ("images/base/tree/etc/alpha", "images/server/tree/usr/lib/unit.service"):
        target = folder / "sources" / path
        target.parent.mkdir(parents=True)
        target.touch()
    return Origins(store, debs, folder / "sources", {f"{SITE}/_cffi.so": "cffi 2.0"})


@pytest.mark.parametrize(
    ("path", "origin"),
    [
        ("usr/bin/beta", "the package beta 3"),
        ("bin/beta", "the package beta 3"),
        # Byte code belongs to whom its source belongs.
        ("usr/lib/beta/__pycache__/one.cpython-313.pyc", "the package beta 3"),
        ("usr/lib/beta/two.py", UNKNOWN),
        ("usr/lib/zipnetwork", UNKNOWN),
        (
            "usr/lib/modules/6.12/kernel/drivers/tdx-guest.ko.xz",
            "the package linux 6.12, by KernelModules= of mkosi.conf",
        ),
        ("usr/lib/modules/6.12/m.dep", "the package linux 6.12"),
        # What lies in a tree of ours is laid over what packages ship.
        ("etc/alpha", "this repository: images/base/tree/etc/alpha"),
        (
            "usr/lib/unit.service",
            "this repository: images/server/tree/usr/lib/unit.service",
        ),
        (f"{SITE}/attestation/quote.py", "this repository: attestation/quote.py"),
        (f"{SITE}/zipnet/__pycache__/cli.cpython-313.pyc", "this repository: zipnet/cli.py"),
        (f"{SITE}/_cffi.so", "the wheel cffi 2.0"),
        (f"{SITE}/click/core.py", "the wheel click"),
        (f"{SITE}/click-8.1.8.dist-info/METADATA", "the wheel click"),
        ("usr/lib/zipnet/flavor", "this repository: release/build/stage.py"),
        ("usr/lib/zipnet/pyvenv.cfg", "this repository: images/base/finalize.sh"),
        ("usr/lib/os-release", "step mkosi: os-release, from base-files and ImageId="),
        ("etc/passwd", "step mkosi: systemd-sysusers"),
    ],
)
def test_of(origins: Origins, path: str, origin: str) -> None:
    assert origins.of(path) == origin


@pytest.mark.parametrize(
    ("name", "made"),
    [
        ("modules.dep", True),
        ("modules.dep.bin", True),
        ("modules.alias", True),
        ("modules.builtin.bin", True),
        ("modules.builtin.alias.bin", True),
        ("modules.builtin", False),
        ("modules.builtin.modinfo", False),
        ("modules.order", False),
    ],
)
def test_depmod(origins: Origins, name: str, made: bool) -> None:
    assert ("depmod" in origins.of(f"usr/lib/modules/6.12/{name}")) is made


def test_steps_say_what_to_look_at() -> None:
    assert all(text.startswith(("step ", "this ", "depmod ", "mkosi.conf")) for _, text in STEPS)


def member(name: str, data: bytes) -> Entry:
    return Entry(name, 0o100644, 0, 0, 0, 1, (0, 0), data)


def test_wheels_of() -> None:
    record = b'_cffi.so,sha256=x,9\ncffi/api.py,,\n"odd, name.py",,\n\n'
    found = wheels_of(
        [
            member(f"{SITE}/cffi-2.0.dist-info/RECORD", record),
            member(f"{SITE}/bad-1.dist-info/RECORD", b"\xff"),
            member("usr/lib/python3/dist-packages/six-1.dist-info/RECORD", b"six.py,,"),
            member(f"{SITE}/cffi/RECORD", b"other,,"),
        ]
    )
    assert found == {
        f"{SITE}/_cffi.so": "cffi 2.0",
        f"{SITE}/cffi/api.py": "cffi 2.0",
        f"{SITE}/odd, name.py": "cffi 2.0",
    }


def test_a_broken_package(tmp_path: Path) -> None:
    store = Store(tmp_path)
    store.path(deb()).parent.mkdir()
    store.path(deb()).write_bytes(b"bytes")
    with refused(BuildRefused, "can't be listed"):
        paths(store.path(deb()))
    with refused(BuildRefused, "can't be listed"):
        Origins(store, [deb()], tmp_path).of("init")
