"""`python -m tests.e2e.child BOOK ROLE ...`: `zipnet ROLE ...` that notes its pads in a book."""

from __future__ import annotations

import itertools
import os
import secrets
import sys
import threading
from pathlib import Path
from typing import Any

from tests.e2e.book import Book
from zipnet.cli import main
from zipnet.node import service_roles
from zipnet.protocol.pads import KeystreamXor
from zipnet.roles.server import Server


def end_with_the_parent() -> None:
    """Leave nothing behind, should whoever started this process be killed."""

    def wait() -> None:
        # Not through `sys.stdin`, whose lock the interpreter wants when it ends.
        while os.read(0, 1):
            pass
        os._exit(1)

    threading.Thread(target=wait, daemon=True).start()


def noted(book: Book) -> None:
    """Put the book below whatever role this process plays."""
    end_with_the_parent()
    boot, calls = secrets.token_bytes(16), itertools.count()

    def each_call() -> KeystreamXor:
        # What a client seals is an occasion of its own.
        return book.cipher(lambda: boot + next(calls).to_bytes(8, "big"))

    def serving(*words: Any) -> Server:
        role = Server(*words)

        def occasion() -> bytes:
            # To compute one partial a server may need a pad twice.
            current = role.state.current
            return boot + (current.header.id if current else b"")

        role._set.xor = book.cipher(occasion)
        return role

    vars(service_roles).update(keystream_xor=each_call, Server=serving)


if __name__ == "__main__":
    noted(Book(Path(sys.argv[1])))
    main(sys.argv[2:])
