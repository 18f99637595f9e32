"""What all tests need: signals that work, and a mark on those that need servers of the bus."""

from __future__ import annotations

import signal

import pytest

FOLDERS = ("tests/e2e/", "tests/zipnet/network/")
BUS = "test_nats_"


def pytest_configure() -> None:
    # Who is started in the background ignores SIGINT, and so would all programs that tests start.
    signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        path = item.path.as_posix()
        if item.path.name.startswith(BUS) or any(folder in path for folder in FOLDERS):
            item.add_marker(pytest.mark.network)
