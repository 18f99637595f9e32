"""Writes into an engine until it is killed, and says on standard output what was answered.

    python -m tests.zipnet.network.crash_child FOLDER RUN

Lines are `log KEY SEQ`, `table KEY NUMBER`, `blob DIGEST`.
"""

import asyncio
import os
import sys
from itertools import count
from pathlib import Path

from zipnet.network.base import Blobs, Log, Table
from zipnet.network.local import LocalNetwork

WRITERS = 8


def say(*words: object) -> None:
    # One system call: a line is told whole or not at all.
    os.write(1, (" ".join(map(str, words)) + "\n").encode())


async def write_log(log: Log, prefix: str) -> None:
    for number in count():
        key = f"{prefix}-{number}"
        say("log", key, await log.append(key.encode() * 20, key=key))


async def write_table(table: Table, run: int) -> None:
    for number in count(run << 32):
        await table.put(f"k{number % 3}", b"%d" % number)
        say("table", f"k{number % 3}", number)


async def write_blobs(blobs: Blobs, run: int) -> None:
    for number in count():
        digest = await blobs.put(b"%d %d " % (run, number) * 3000)
        say("blob", digest.hex())
        await asyncio.sleep(0.002)


async def main(folder: Path, run: int) -> None:
    network = await LocalNetwork.open(folder)
    log = await network.log("l")
    await asyncio.gather(
        *(write_log(log, f"{run}-{writer}") for writer in range(WRITERS)),
        write_table(await network.table("t"), run),
        write_blobs(await network.blobs("b"), run),
    )


if __name__ == "__main__":
    asyncio.run(main(Path(sys.argv[1]), int(sys.argv[2])))
