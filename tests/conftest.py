"""What all tests need: signals that work, and marks on those that need a bus, or machines."""

from __future__ import annotations

import signal

import pytest

FOLDERS = ("tests/e2e/", "tests/zipnet/network/")
BUS = "test_nats_"
GUESTS = "tests/e2e/appliances/"


def pytest_configure() -> None:
    # Who is started in the background ignores SIGINT, and so would all programs that tests start.
    signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        path = item.path.as_posix()
        if GUESTS in path:
            item.add_marker(pytest.mark.guest)
        elif item.path.name.startswith(BUS) or any(folder in path for folder in FOLDERS):
            item.add_marker(pytest.mark.network)
