"""The local engine under kill -9: what was answered is there, once."""

import asyncio
import random
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from tests.zipnet.network.conformance import take
from tests.zipnet.network.crash_child import WRITERS
from zipnet.network.local import LocalNetwork

ROOT = Path(__file__).resolve().parents[3]
SEED = 20
# Answers to wait for before the kill; with none, it comes while the engine opens.
KILLS = (300, 0, 1, 900, 0, 40, 2000, 150)


@dataclass(slots=True)
class Answered:
    """What children said that they were answered, over all runs."""

    log: dict[str, int] = field(default_factory=dict)
    table: dict[str, int] = field(default_factory=dict)
    blobs: set[str] = field(default_factory=set)

    def add(self, line: str) -> None:
        match line.split():
            case ["log", key, seq]:
                self.log[key] = int(seq)
            case ["table", key, number]:
                self.table[key] = int(number)
            case ["blob", digest]:
                self.blobs.add(digest)
            case _:
                raise AssertionError(line)


def write_and_kill(folder: Path, number: int, answers: int, delay: float) -> list[str]:
    """Whole lines of a child that is killed after so many of them, and so many seconds more."""
    command = [sys.executable, "-m", "tests.zipnet.network.crash_child", str(folder), str(number)]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as child:
        assert child.stdout is not None
        lines = [child.stdout.readline() for _ in range(answers)]
        time.sleep(delay)
        child.kill()
        lines += child.stdout.readlines()
        assert child.wait() == -9
    return lines


async def check(folder: Path, answered: Answered, number: int) -> None:
    network = await LocalNetwork.open(folder)
    try:
        log, table = await network.log("l"), await network.table("t")
        blobs = await network.blobs("b")
        first, last = await log.bounds()
        entries = await take(log.read(), last)
        assert first == 1
        assert [entry.seq for entry in entries] == list(range(1, last + 1))
        stored = {entry.key: entry.seq for entry in entries}
        assert len(stored) == last
        assert all(entry.data == entry.key.encode() * 20 for entry in entries)
        assert answered.log.items() <= stored.items()
        for key, seq in answered.log.items():
            assert await log.append(b"retry", key=key) == seq
        # Of each writer one append was under way: committed or not, its retry makes it one.
        for writer in range(WRITERS):
            told = sum(key.startswith(f"{number}-{writer}-") for key in answered.log)
            key = f"{number}-{writer}-{told}"
            seq = await log.append(key.encode() * 20, key=key)
            assert seq == stored.get(key, last + 1)
            last = max(last, seq)
        assert await log.bounds() == (1, last)
        for key, least in answered.table.items():
            item = await table.get(key)
            assert item is not None
            assert item.value is not None
            assert int(item.value) >= least
        for digest in answered.blobs:
            assert await blobs.get(bytes.fromhex(digest))
    finally:
        await network.close()


@pytest.mark.slow
def test_what_was_answered_survives_kill_9(tmp_path: Path) -> None:
    draw = random.Random(SEED)
    answered = Answered()
    for number, answers in enumerate(KILLS):
        # A child needs some tenths of a second before it opens the engine.
        delay = draw.uniform(0, 0.02) if answers else draw.uniform(0.1, 0.4)
        for line in write_and_kill(tmp_path, number, answers, delay):
            answered.add(line)
        asyncio.run(check(tmp_path, answered, number))
    assert len(answered.log) > sum(KILLS) / 2
    assert answered.table
    assert answered.blobs
