"""`python -m tests.e2e.faulty BOOK ROLE ...`: as `tests.e2e.child`, and what must not happen does.

CLOCK_MS in the environment is by how much the clock is wrong. Where the file exists that DIE names,
a client removes it and dies between its guard's write and the envelope's departure.
"""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path
from typing import Any
from unittest import mock

from tests.e2e.book import Book
from tests.e2e.child import noted
from zipnet.cli import main
from zipnet.node import service_roles
from zipnet.roles.client import ClientRole

CLOCK_MS, DIE = "ZIPNET_E2E_CLOCK_MS", "ZIPNET_E2E_DIE"


def with_a_wrong_clock(off_ms: int) -> None:
    right = service_roles.clock

    def wrong() -> int:
        return right() + off_ms

    mock.patch.object(service_roles, "clock", wrong).start()


def dying_once_sealed(order: Path) -> None:
    submit = ClientRole._submit

    async def dying(role: ClientRole, *sealed: Any) -> None:
        if order.exists():
            order.unlink()
            os.kill(os.getpid(), signal.SIGKILL)
        await submit(role, *sealed)

    mock.patch.object(ClientRole, "_submit", dying).start()


if __name__ == "__main__":
    noted(Book(Path(sys.argv[1])))
    with_a_wrong_clock(int(os.environ.get(CLOCK_MS, "0")))
    dying_once_sealed(Path(os.environ.get(DIE, "/nonexistent")))
    main(sys.argv[2:])
