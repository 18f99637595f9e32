"""Which tests need real servers of the bus, and so have a tox environment of their own."""

from __future__ import annotations

import pytest

FOLDERS = ("tests/e2e/", "tests/zipnet/network/")
BUS = "test_nats_"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        path = item.path.as_posix()
        if item.path.name.startswith(BUS) or any(folder in path for folder in FOLDERS):
            item.add_marker(pytest.mark.network)
