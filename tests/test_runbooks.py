"""Runbooks: each page has its parts and a test, and every command in it is one that there is."""

from __future__ import annotations

import ast
import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import click
import pytest

from release.build.cli import cli as build
from zipnet.cli import main as zipnet

ROOT = Path(__file__).resolve().parents[1]
FOLDER = ROOT / "docs/runbooks"
PAGES = sorted(path for path in FOLDER.glob("*.md") if path.name != "README.md")
SECTIONS = ["Before you start", "Steps", "How to go back", "What can't be undone"]
# What else is on a host; each with what must follow it.
OTHERS = {
    "export": r"[A-Z_]+=\S+",
    "journalctl": r"-u zipnet-server@\S+ (-n \d+|-g \w+)",
    "od": r"-An -v -tx1",
    "openssl": r"(rand -hex \d+|genpkey -algorithm ed25519 -out \S+|"
    r"pkey -in \S+ -pubout -outform DER)",
    "run-qemu": r"--tdx --mrconfigid \w+( --forward \d+:\d+)+( --state \S+)?",
    "systemctl": r"(start|stop|restart|disable --now) zipnet-(server|aggregator|client)@\S+",
    "tail": r"-c 32",
    "truncate": r"-s 1M \S+",
    "tr": r"-d  \\n",
    "umask": r"077",
}


def blocks(path: Path) -> Iterator[str]:
    """The lines of a page's code."""
    for block in re.findall(r"^ *```sh\n(.*?)^ *```$", path.read_text(), re.MULTILINE | re.DOTALL):
        yield from (line.strip() for line in block.splitlines() if line.strip())


def parse(command: click.Command, words: list[str]) -> None:
    """Check words against a command line, whatever the values. Raises UsageError."""
    context = click.Context(command)
    if isinstance(command, click.Group) and words and not words[0].startswith("-"):
        found = command.get_command(context, words[0])
        assert found is not None, f"there is no {words[0]}"
        parse(found, words[1:])
        return
    given, rest, _ = command.make_parser(context).parse_args(list(words))
    assert not rest, f"too many words: {rest}"
    if given.get("version"):
        return
    # What was not given is no str, in some versions of click something that is true.
    there = {name for name, value in given.items() if isinstance(value, str | list | tuple)}
    missing = {one.name for one in command.params if one.required} - there
    assert not missing, f"missing: {missing}"


def test_the_index_names_all() -> None:
    linked = re.findall(r"\]\(([a-z-]+\.md)\)", (FOLDER / "README.md").read_text())
    assert sorted(linked) == [path.name for path in PAGES]


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.stem)
def test_a_page_has_its_parts(path: Path) -> None:
    text = path.read_text()
    assert re.findall(r"^## (.+)$", text, re.MULTILINE) == SECTIONS
    assert "\n**When:**" in text
    for target in re.findall(r"\]\(([^)]+)\)", text):
        assert (FOLDER / target).is_file(), target


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.stem)
def test_a_page_has_a_test(path: Path) -> None:
    found = re.findall(r"^Test: `(\S+)::(\w+)`$", path.read_text(), re.MULTILINE)
    assert len(found) == 1
    (file, name) = found[0]
    tree = ast.parse((ROOT / file).read_text())
    assert name == f"test_{path.stem.replace('-', '_')}"
    assert name in {one.name for one in tree.body if isinstance(one, ast.FunctionDef)}


@pytest.mark.parametrize("path", [*PAGES, FOLDER / "README.md"], ids=lambda path: path.stem)
def test_commands_are_there(path: Path) -> None:
    lines = list(blocks(path))
    assert lines or path.stem == "README"
    for line in lines:
        check(line)


def check(line: str) -> None:
    """Check one line of a page, each command of a pipe."""
    *before, line = line.split(" | ")
    for one in before:
        check(one)
    words = shlex.split(line)
    if ">" in words:
        assert len(words) == words.index(">") + 2, line
        words = words[: words.index(">")]
    program = words[0].rpartition("/")[2]
    if program == "zipnet":
        parse(zipnet, words[1:])
    elif words[:2] == ["python", "build.py"]:
        parse(build, words[2:])
    else:
        assert program in OTHERS, line
        assert re.fullmatch(OTHERS[program], " ".join(words[1:])), line


@pytest.mark.parametrize(
    "line",
    [
        "zipnet status --jsn",
        "zipnet sttus",
        "zipnet admin allow-list push",
        "zipnet admin allow-list push A B",
        "zipnet admin server add --peer PEER",
        "rm -rf STATE",
        "systemctl kill zipnet-server@x",
    ],
)
def test_what_is_not_there(line: str) -> None:
    with pytest.raises((AssertionError, click.UsageError)):
        check(line)
