"""Fuzz target: the index of a bundle."""

from release import bundle
from release.bundle import Item, Kind
from release.errors import ReleaseError


def seeds() -> list[bytes]:
    deb = Item(Kind.DEB, "alpha_1%3a2_amd64.deb", "0" * 64, 5)
    wheel = Item(Kind.WHEEL, "click-8.1.8-py3-none-any.whl", "1" * 64, 1 << 20)
    return [bundle.dumps([]), bundle.dumps([deb]), bundle.dumps([deb, wheel])]


def fuzz_one(data: bytes) -> None:
    try:
        items = bundle.loads(data)
    except ReleaseError as error:
        error.diagnostics().encode()
        return
    assert bundle.dumps(items) == data
    assert all("/" not in item.name for item in items)
