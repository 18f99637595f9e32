"""Watching a serial port, and how QEMU is started."""

import os
import re
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from release.build import emulator, proof
from release.build.emulator import LINE_LIMIT, NOTHING_TO_BOOT, Boot, Emulator, watch
from release.build.settings import Role
from release.build.tools import Tree
from release.errors import HostError
from tests.release.build.support import program, refused, strings, vectors

UNTIL = re.compile(r"^wanted \d")
CASES: list[dict[str, Any]] = vectors("consoles.json")["cases"]


@pytest.fixture
def pipe() -> Iterator[tuple[int, int]]:
    ends = os.pipe()
    yield ends
    for end in ends:
        with suppress(OSError):
            os.close(end)


def said(pipe: tuple[int, int], data: bytes, limit: float = 30, *, close: bool = True) -> Boot:
    os.write(pipe[1], data)
    if close:
        os.close(pipe[1])
    return watch(pipe[0], UNTIL, time.monotonic(), limit)


def test_whole_lines(pipe: tuple[int, int]) -> None:
    boot = said(pipe, b"one\r\n\r\ntwo\nwanted 1 and more\nnever read\n")
    assert boot.lines == ("one", "", "two", "wanted 1 and more")
    assert boot.matched == "wanted 1 and more"
    assert 0 <= boot.seconds < 30


def test_an_unfinished_line(pipe: tuple[int, int]) -> None:
    # A prompt has no line end: it matches although the port stays open.
    boot = said(pipe, b"one\nwanted 7", close=False)
    assert (boot.lines, boot.matched) == (("one", "wanted 7"), "wanted 7")


def test_a_line_in_pieces(pipe: tuple[int, int], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(emulator, "READ", 3)
    boot = said(pipe, b"\x1b[31mone\x1b[0m\nwan\x1b[1mted 12\n")
    assert boot.lines[0] == "one"
    assert boot.matched is not None
    assert boot.matched.startswith("wanted 1")


def test_the_end_without_a_match(pipe: tuple[int, int]) -> None:
    boot = said(pipe, b"one\ntwo")
    assert (boot.lines, boot.matched) == (("one", "two"), None)


def test_silence(pipe: tuple[int, int]) -> None:
    boot = said(pipe, b"")
    assert (boot.lines, boot.matched, boot.refused) == ((), None, False)


def test_the_time_is_up(pipe: tuple[int, int]) -> None:
    boot = said(pipe, b"one\ntwo", limit=0.05, close=False)
    assert (boot.lines, boot.matched) == (("one", "two"), None)
    assert boot.seconds >= 0.05


def test_stopped_by_another_thread(pipe: tuple[int, int]) -> None:
    stop = threading.Event()
    stop.set()
    os.write(pipe[1], b"wanted 1\n")
    assert watch(pipe[0], UNTIL, time.monotonic(), 30, stop).matched is None


def test_waiting_is_in_short_parts(pipe: tuple[int, int], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(emulator, "POLL", 0.001)
    boot = said(pipe, b"one", limit=0.02, close=False)
    assert (boot.lines, boot.matched) == (("one",), None)
    assert boot.seconds >= 0.02


def test_the_time_was_up_before(pipe: tuple[int, int]) -> None:
    os.write(pipe[1], b"wanted 1\n")
    assert watch(pipe[0], UNTIL, time.monotonic() - 10, 10).matched is None


def test_a_flood(pipe: tuple[int, int], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(emulator, "TRANSCRIPT_LIMIT", 1000)
    monkeypatch.setattr(emulator, "READ", 100)
    boot = said(pipe, b"noise\n" * 500 + b"wanted 1\n", close=False)
    assert boot.matched is None
    assert sum(len(line) + 1 for line in boot.lines) <= 1100


def test_an_endless_line(pipe: tuple[int, int], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(emulator, "LINE_LIMIT", 100)
    boot = said(pipe, b"x" * 5000 + b"\nwanted 1\n")
    assert len(boot.lines[0]) == 100
    assert boot.matched == "wanted 1"


@pytest.mark.parametrize(
    ("raw", "text"),
    [
        (b"plain\ttext", "plain\ttext"),
        (b"\x1b[2J\x1b[01;01H\x1b[=3hBdsDxe: x", "BdsDxe: x"),
        (b"\x1b[0m\x1b[35m\x1b[40mOVMF\x1b[0m", "OVMF"),
        (b"\x1b]0;title\x07text", "text"),
        (b"\x1b]104\x1b\\text", "text"),
        (b"\x1b[!p\x1b]104\x07\x1b[?7l\x1b[1G\x1b[0Jtext", "text"),
        (b"\x1bctext", "text"),
        (b"\x1b(B\x1b)0\x1b#8text", "text"),
        (b"\x1bP+q544e\x1b\\text", "text"),
        (b"a\x00b\x08c\x7f\rd", "abcd"),
        (b"caf\xc3\xa9 \xff", "café \ufffd"),
        (b"\x1b", ""),
        (b"\x1b[", ""),
        (b"\xe2\x80\xae.exe", ".exe"),
    ],
)
def test_terminal_control_is_removed(raw: bytes, text: str) -> None:
    assert emulator._clean(raw) == text


@given(st.binary(max_size=200))
def test_clean_lines_are_printable(raw: bytes) -> None:
    text = emulator._clean(raw)
    assert all(c.isprintable() or c == "\t" for c in text)
    assert len(text) <= LINE_LIMIT
    text.encode()


@pytest.mark.parametrize("case", CASES, ids=lambda case: str(case["what"])[:50])
def test_what_a_console_means(case: dict[str, Any], pipe: tuple[int, int]) -> None:
    lines = tuple(case["lines"])
    boot = Boot(lines, None, 1.0)
    assert boot.refused is case["refused"]
    assert boot.kernel_ran is case["kernel"]
    # The same, as bytes of a terminal: colours, cursor, carriage returns.
    raw = b"\x1b[2J\x1b[01;01H" + b"".join(b"\x1b[0m%s\r\n" % line.encode() for line in lines)
    os.write(pipe[1], raw)
    os.close(pipe[1])
    seen = watch(pipe[0], proof.announced(Role.SERVER), time.monotonic(), 30)
    assert (seen.matched is not None) is case["announced"]
    assert seen.refused is case["refused"]


def test_a_console_is_stopped_at_the_firmwares_last_word(pipe: tuple[int, int]) -> None:
    os.write(pipe[1], "\r\n".join(CASES[1]["lines"]).encode())
    boot = watch(pipe[0], NOTHING_TO_BOOT, time.monotonic(), 30)
    assert boot.matched == "BdsDxe: No bootable option or device was found."
    assert boot.refused


def test_tail() -> None:
    lines = ("", *map(str, range(30)), " ")
    assert Boot(lines, None, 0).tail() == tuple(map(str, range(15, 30)))
    assert Boot(lines, None, 0).tail(2) == ("28", "29")


@pytest.fixture
def fake(tmp_path: Path) -> Emulator:
    """An emulator tree whose QEMU is a script."""
    program(tmp_path / "usr/lib64", "ld-linux-x86-64.so.2", 'shift 2; exec "$@"')
    program(
        tmp_path / "usr/bin",
        "qemu-system-x86_64",
        'printf "%s\\n" "$@" "$QEMU_MODULE_DIR" "$MORE" wanted\\ 1; exec sleep 1000',
    )
    return Emulator(Tree(tmp_path))


def test_boot(fake: Emulator, tmp_path: Path) -> None:
    boot = fake.boot(
        ["-bios", tmp_path / "x.fd"], UNTIL, machine="q35,smm=on", memory_mib=512, env={"MORE": "+"}
    )
    assert boot.matched == "wanted 1"
    words = list(boot.lines)
    pairs = dict(pairwise(words))
    assert pairs["-machine"] == "q35,smm=on"
    assert pairs["-m"] == "512"
    assert pairs["-smp"] == "1"
    assert (pairs["-accel"], pairs["-cpu"]) == ("tcg", "max")
    assert pairs["-serial"] == "stdio"
    assert pairs["-bios"] == str(tmp_path / "x.fd")
    assert words[-3:] == [str(tmp_path / "usr/lib/x86_64-linux-gnu/qemu"), "+", "wanted 1"]
    assert "-nodefaults" in words
    assert "-netdev" not in words


def test_command_names_files_of_the_tree_only(fake: Emulator, tmp_path: Path) -> None:
    words = strings(fake.command())
    places = [words[i + 1] for i, word in enumerate(words) if word == "-L"]
    assert len(places) == 3
    assert all(place.startswith(str(tmp_path)) for place in places)


def test_no_qemu(tmp_path: Path) -> None:
    program(tmp_path / "usr/lib64", "ld-linux-x86-64.so.2", "")
    with refused(HostError, "has no usr/bin/qemu-system-x86_64"):
        Emulator(Tree(tmp_path)).boot([], UNTIL)
