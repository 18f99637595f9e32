"""Writes guards into a node's state until it is killed, and says what was acknowledged.

    python -m tests.zipnet.node.state_child FILE

Lines are `boot NUMBER IDENTITY` and `guard ROUND`.
"""

import os
import sys
from itertools import count
from pathlib import Path

from attestation.bundle import Role
from tests.zipnet.protocol.support import INSTANCE, h
from zipnet.network.group import Tip
from zipnet.node.state import UnsafePlainState
from zipnet.protocol.guards import ServerGuard, sign_header_once


def main(path: Path) -> None:
    state = UnsafePlainState.open(path, Role.SERVER, INSTANCE, os.urandom)
    os.write(1, f"boot {state.boot_epoch} {state.identity.peer.hex()}\n".encode())
    guard = state.server_guard or ServerGuard(INSTANCE.binding)
    for number in count(guard.round + 1):
        state.seen(Tip(number * 10, h(f"head {number}")))
        guard, _ = sign_header_once(guard, number, h(f"header {number}"), state)
        os.write(1, f"guard {number}\n".encode())


if __name__ == "__main__":
    main(Path(sys.argv[1]))
