"""One record in two slots: whatever happens to a write, what was acknowledged is there."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.zipnet.protocol.support import refused
from zipnet.errors import StateDamaged
from zipnet.node.slots import HEAD, TwoSlots

SIZE = HEAD + 40
OLD, NEW = b"what was acknowledged", b"what comes next, and is longer"


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "record"


@pytest.fixture
def slots(path: Path) -> Iterator[TwoSlots]:
    made = TwoSlots(path, SIZE)
    yield made
    made.close()


def found(path: Path) -> bytes | None:
    slots = TwoSlots(path, SIZE)
    try:
        return slots.read()
    finally:
        slots.close()


def image(path: Path, *records: bytes) -> bytes:
    """The file after these writes."""
    slots = TwoSlots(path, SIZE, lambda _descriptor: None)
    slots.read()
    for record in records:
        slots.write(record)
    slots.close()
    return path.read_bytes().ljust(2 * SIZE, b"\0")


def test_a_file_without_a_record(path: Path, slots: TwoSlots) -> None:
    assert slots.read() is None
    path.write_bytes(bytes(2 * SIZE))
    assert slots.read() is None


def test_the_newest_record_wins(path: Path) -> None:
    for number in range(1, 6):
        image(path, b"record %d" % number)
        assert found(path) == b"record %d" % number


@pytest.mark.parametrize("record", [b"", b"\0", b"x" * (SIZE - HEAD)])
def test_records_of_any_size_that_fits(path: Path, record: bytes) -> None:
    image(path, OLD, record)
    assert found(path) == record


def test_a_record_that_is_too_large_changes_nothing(path: Path, slots: TwoSlots) -> None:
    slots.read()
    slots.write(OLD)
    with refused(StateDamaged, "slots.size"):
        slots.write(bytes(SIZE - HEAD + 1))
    assert slots.read() == found(path) == OLD


@pytest.mark.parametrize("before", [(OLD,), (NEW, OLD), (OLD, NEW, OLD)])
def test_a_write_torn_at_any_byte(path: Path, before: tuple[bytes, ...]) -> None:
    old = image(path, *before)
    new = image(path, NEW)
    at = (len(before) + 1) % 2 * SIZE
    changed = {place for place in range(2 * SIZE) if old[place] != new[place]}
    assert changed <= set(range(at, at + SIZE))
    whole = max(changed) + 1 - at
    for cut in range(SIZE + 1):
        torn = old[:at] + new[at : at + cut] + old[at + cut : at + SIZE] + old[at + SIZE :]
        path.write_bytes(torn)
        assert found(path) == (NEW if cut >= whole else OLD), cut
        # Whatever was torn, the next record is the one that is found.
        image(path, b"after")
        assert found(path) == b"after", cut


def test_a_write_of_which_any_part_is_lost(path: Path) -> None:
    """Sectors reach the disk in any order: here any one byte of the new slot is still the old."""
    old = image(path, OLD, OLD)
    new = image(path, NEW)
    for at in range(SIZE, 2 * SIZE):
        if old[at] != new[at]:
            path.write_bytes(new[:at] + old[at : at + 1] + new[at + 1 :])
            assert found(path) == OLD, at


def test_a_file_cut_at_any_byte(path: Path) -> None:
    """The newest record is in the second slot, its end at the end of the file."""
    whole = image(path, b"first", OLD, NEW).rstrip(b"\0")
    for cut in range(len(whole)):
        path.write_bytes(whole[:cut])
        if cut >= HEAD + len(OLD):
            assert found(path) == OLD
        elif cut == 0:
            assert found(path) is None
        else:
            with refused(StateDamaged, "slots.damaged"):
                found(path)
    path.write_bytes(whole)
    assert found(path) == NEW


@pytest.mark.parametrize("bit", range(8))
def test_a_flipped_bit_anywhere_in_the_newest(path: Path, bit: int) -> None:
    whole = image(path, b"first", OLD, NEW)
    for at in range(SIZE, SIZE + HEAD + len(NEW)):
        flipped = bytearray(whole)
        flipped[at] ^= 1 << bit
        path.write_bytes(flipped)
        assert found(path) == OLD, at


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.integers(0, HEAD + len(OLD) - 1), st.integers(0, HEAD + len(NEW) - 1))
def test_both_slots_bad(path: Path, first: int, second: int) -> None:
    path.unlink(missing_ok=True)
    whole = bytearray(image(path, b"first", OLD, NEW))
    whole[first] ^= 1
    whole[SIZE + second] ^= 1
    path.write_bytes(whole)
    with refused(StateDamaged, "slots.damaged"):
        found(path)


def test_slots_that_changed_places(path: Path) -> None:
    """A copy of one slot in the place of the other is no record of that place."""
    whole = image(path, OLD, NEW)
    first, second = whole[:SIZE], whole[SIZE:]
    path.write_bytes(second + first)
    with refused(StateDamaged, "slots.damaged"):
        found(path)
    path.write_bytes(first + first)
    assert found(path) == NEW
    path.write_bytes(second + second)
    assert found(path) == OLD


def test_counters_go_up_over_restarts(path: Path) -> None:
    """Else a write after a restart would replace the newest record, not the oldest."""
    for number in range(1, 8):
        before = path.read_bytes().ljust(2 * SIZE, b"\0") if path.exists() else bytes(2 * SIZE)
        after = image(path, b"record %d" % number)
        kept = (number + 1) % 2 * SIZE
        assert after[kept : kept + SIZE] == before[kept : kept + SIZE]


def test_what_the_disk_did_not_take_is_not_written(path: Path) -> None:
    broken = False

    def sync(descriptor: int) -> None:
        if broken:
            raise OSError(5, "Input/output error")
        os.fsync(descriptor)

    slots = TwoSlots(path, SIZE, sync)
    slots.read()
    slots.write(b"first")
    slots.write(OLD)
    kept = path.read_bytes().ljust(2 * SIZE, b"\0")[:SIZE]
    broken = True
    for _ in range(3):
        with pytest.raises(OSError, match="Input/output"):
            slots.write(NEW)
        # Every attempt goes to the same slot: the last record that is durable stays.
        assert path.read_bytes()[:SIZE] == kept
    broken = False
    slots.write(NEW)
    slots.close()
    assert path.read_bytes()[:SIZE] == kept
    assert found(path) == NEW


@pytest.mark.parametrize("step", [1, 7, 64])
def test_a_disk_that_takes_a_part_at_a_time(
    path: Path, monkeypatch: pytest.MonkeyPatch, step: int
) -> None:
    whole = os.pwrite

    def part(descriptor: int, data: memoryview, at: int) -> int:
        return whole(descriptor, data[:step], at)

    monkeypatch.setattr(os, "pwrite", part)
    image(path, OLD, NEW)
    assert found(path) == NEW


@pytest.mark.parametrize("taken", [0, 1, HEAD, HEAD + 5])
def test_a_disk_that_is_full(path: Path, monkeypatch: pytest.MonkeyPatch, taken: int) -> None:
    slots = TwoSlots(path, SIZE)
    slots.read()
    slots.write(b"first")
    slots.write(OLD)
    monkeypatch.setattr(os, "pwrite", filling(taken))
    with pytest.raises(OSError, match="No space"):
        slots.write(NEW)
    monkeypatch.undo()
    assert slots.read() == OLD
    slots.write(NEW)
    assert slots.read() == NEW
    slots.close()


def filling(left: int) -> Callable[[int, memoryview, int], int]:
    whole = os.pwrite

    def write(descriptor: int, data: memoryview, at: int) -> int:
        nonlocal left
        if left == 0:
            raise OSError(28, "No space left on device")
        done = whole(descriptor, data[:left], at)
        left -= done
        return done

    return write


def test_a_closed_file_takes_nothing(path: Path) -> None:
    """Not even where another file has got its number meanwhile."""
    slots = TwoSlots(path, SIZE)
    slots.read()
    slots.close()
    slots.close()
    other = path.with_name("other").open("w+b")
    with pytest.raises(OSError, match="descriptor"):
        slots.write(OLD)
    other.close()
    assert path.with_name("other").read_bytes() == b""


def test_links_are_not_followed(path: Path, tmp_path: Path) -> None:
    path.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(OSError, match="symbolic"):
        TwoSlots(path, SIZE)


def test_slots_within_a_larger_file(path: Path) -> None:
    path.write_bytes(bytes(16 * SIZE))
    descriptor = os.open(path, os.O_RDWR)
    first = TwoSlots(path, SIZE, fd=descriptor)
    second = TwoSlots(path, SIZE, fd=descriptor, at=5 * SIZE)
    for record in (OLD, NEW):
        assert second.read() != record
        second.write(record)
        assert first.read() is None
    first.close()
    second.close()
    os.close(descriptor)  # still there: it is not theirs
    raw = path.read_bytes()
    assert not any(raw[: 5 * SIZE] + raw[7 * SIZE :])
    descriptor = os.open(path, os.O_RDWR)
    assert TwoSlots(path, SIZE, fd=descriptor, at=5 * SIZE).read() == NEW
    os.close(descriptor)


def test_a_counter_that_has_no_successor(path: Path, slots: TwoSlots) -> None:
    """Anybody who has the file can make one: it is none."""
    slots.read()
    slots.write(OLD)
    forged = TwoSlots(path, SIZE)
    forged._counter = (1 << 64) - 3
    forged.write(NEW)
    forged.close()
    assert slots.read() == OLD
    slots.write(NEW)
    assert slots.read() == NEW
