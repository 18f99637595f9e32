"""newc archives: round trip, a reference archive, and malformed ones."""

import base64
import zlib
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from release.build import cpio
from release.build.cpio import Entry
from release.errors import BuildRefused
from tests.release.build.support import refused, vectors

MEMBERS = {"init": (0o100755, b"#!/bin/sh\n"), "etc": (0o40755, b""), "a": (0o120777, b"init")}
ARCHIVE = cpio.write(MEMBERS)


def read(archive: bytes) -> list[Entry]:
    return list(cpio.read(archive))


names = st.text(
    st.characters(exclude_characters="\0", exclude_categories=["Cs"]), min_size=1, max_size=40
).filter(lambda name: name != cpio.TRAILER)


@given(st.dictionaries(names, st.tuples(st.integers(0, 0o177777), st.binary(max_size=50))))
def test_round_trip(members: dict[str, tuple[int, bytes]]) -> None:
    entries = read(cpio.write(members))
    assert {e.name: (e.mode, e.data) for e in entries} == members
    assert {(e.uid, e.gid, e.mtime, e.nlink, e.device) for e in entries} <= {(0, 0, 0, 1, (0, 0))}


def test_what_cpio_writes() -> None:
    archive = zlib.decompress(base64.b64decode(vectors("cpio.json")["zlib_base64"]))
    entries = read(archive)
    # Of two hard links the first comes without, the second with the content.
    assert [(e.name, e.mode, e.nlink, e.data) for e in entries] == [
        ("folder", 0o40755, 2, b""),
        ("folder/file", 0o100640, 2, b""),
        ("folder/hard", 0o100640, 2, b"content"),
        ("folder/link", 0o120777, 1, b"file"),
    ]
    assert {(e.uid, e.gid, e.mtime) for e in entries} == {(3, 4, 1735689600)}


def test_names_that_are_not_unicode() -> None:
    archive = cpio.write({"name": (0o100644, b"")}).replace(b"name\0", b"na\xffe\0")
    assert read(archive)[0].name == "na\udcffe"


def test_what_follows_the_trailer_is_not_read() -> None:
    assert read(ARCHIVE + b"anything") == read(ARCHIVE)


def field(archive: bytes, index: int, value: bytes) -> bytes:
    at = 6 + 8 * index
    return archive[:at] + value + archive[at + 8 :]


SIZE, NAME_SIZE = 6, 11


@pytest.mark.parametrize(
    "archive",
    [
        b"",
        b"070701",
        ARCHIVE[:109],
        ARCHIVE[:-140],
        b"070702" + ARCHIVE[6:],
        b"\x1f\x8b" + ARCHIVE[2:],
        ARCHIVE[1:],
        field(ARCHIVE, SIZE, b"FFFFFFFF"),
        field(ARCHIVE, SIZE, b"0000000G"),
        field(ARCHIVE, SIZE, b"-0000075"),
        field(ARCHIVE, SIZE, b"+0000009"),
        field(ARCHIVE, SIZE, b"   00009"),
        field(ARCHIVE, SIZE, b"0_000009"),
        field(ARCHIVE, SIZE, b"0x000009"),
        field(ARCHIVE, NAME_SIZE, b"00000000"),
        field(ARCHIVE, NAME_SIZE, b"00000001"),
        field(ARCHIVE, NAME_SIZE, b"00001001"),
        field(ARCHIVE, NAME_SIZE, b"FFFFFFFF"),
        field(ARCHIVE, NAME_SIZE, b"-0000001"),
    ],
)
def test_malformed(archive: bytes) -> None:
    with refused(BuildRefused, "an initrd is not a newc cpio archive", "as mkosi writes it"):
        # Bounded: a size that leads backwards must not go round for ever.
        for count, _ in enumerate(cpio.read(archive)):
            assert count < 10


def test_where_it_is_malformed() -> None:
    starts = [at for at in range(len(ARCHIVE)) if ARCHIVE.startswith(cpio.MAGIC, at)]
    for previous, at in pairwise(starts):
        with refused(BuildRefused, f"a malformed member at offset {at}"):
            read(ARCHIVE[:at] + b"x" + ARCHIVE[at + 1 :])
        assert previous < at
