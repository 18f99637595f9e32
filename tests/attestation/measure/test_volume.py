"""Walking firmware volumes: what is found, what a TD can load, what is refused."""

import lzma
import struct
from collections.abc import Callable
from uuid import UUID

import pytest

from attestation.errors import FirmwareFormatError, FirmwareRejected
from attestation.measure import volume
from tests.attestation.measure import synthetic as make
from tests.attestation.measure.support import patched, refused

A, B = UUID(int=0xA), UUID(int=0xB)


def loadable(region: bytes) -> dict[UUID, bool]:
    return {m.guid: m.loadable for m in volume.modules(region) if m.type == 0x07}


def two(first: UUID, second: UUID) -> bytes:
    """A stream with two volumes of these names, A in the first and B in the second."""
    return make.sections(
        make.section(0x17, make.fv([make.driver(A)], name=first)),
        make.section(0x17, make.fv([make.driver(B)], name=second)),
    )


def test_modules_of_plain_and_packed_volumes() -> None:
    region = make.fv([make.driver(A, name="Alpha")]) + make.main_volume(
        make.lzma_section(two(volume.DXEFV, volume.NCCFV))
    )
    found = volume.modules(region)
    assert [(m.guid, m.name, m.volume, m.loadable) for m in found if m.type == 7] == [
        (A, "Alpha", None, True),
        (A, "Driver", volume.DXEFV, True),
        (B, "Driver", volume.NCCFV, False),
    ]
    assert found[0].body.startswith(make.section(0x10, b"MZcode"))
    assert [m.body for m in found if m.type == 0x0B] == [b""]


def test_a_td_starts_the_first_volume_whatever_its_name() -> None:
    region = make.main_volume(two(volume.NCCFV, volume.NCCFV))
    assert loadable(region) == {A: True, B: False}


def test_the_name_means_nothing_further_inside() -> None:
    inside = make.file(UUID(int=1), 0x0B, two(volume.DXEFV, volume.NCCFV))
    region = make.main_volume(make.section(0x17, make.fv([inside], name=volume.DXEFV)))
    assert loadable(region) == {A: True, B: True}


def test_nothing_in_the_spare_volume_is_loadable() -> None:
    inside = make.file(UUID(int=1), 0x0B, two(volume.DXEFV, volume.DXEFV))
    spare = make.section(0x17, make.fv([inside], name=volume.NCCFV))
    first = make.section(0x17, make.fv([make.driver(make.DRIVER)], name=volume.DXEFV))
    region = make.main_volume(make.sections(first, spare))
    assert loadable(region) == {make.DRIVER: True, A: False, B: False}


def test_large_files_and_sections() -> None:
    body = make.section(0x17, make.fv([make.driver(A)]), large=True)
    assert loadable(make.fv([make.file(B, 0x0B, body, large=True)])) == {A: True}


def test_padding_and_raw_files_are_not_looked_into() -> None:
    junk = b"\1\0\0\2junk"
    region = make.fv([make.file(A, 0xF0, junk), make.file(B, 0x01, junk)], size=256)
    assert [m.type for m in volume.modules(region)] == [0xF0, 0x01]


def with_header(offset: int, new: bytes) -> Callable[[bytes], bytes]:
    """A change in a volume's header, with its checksum made right again."""

    def change(data: bytes) -> bytes:
        changed = patched(offset, new)(data)
        return make.sum16_fixed(changed[:0x48], 50) + changed[0x48:]

    return change


NAMED = make.fv([make.driver(A)], name=B, size=256)
FIRST = 0x48 + 24


@pytest.mark.parametrize(
    ("change", "rule"),
    [
        (lambda v: v + b"\xff" * 8, "volume.header"),
        (lambda v: v[:40], "volume.header"),
        (patched(40, b"_FVX"), "volume.header"),
        (with_header(16, bytes(16)), "volume.header"),
        (with_header(48, b"\x47\0"), "volume.header"),
        (with_header(48, b"\x10\0"), "volume.header"),
        (with_header(48, b"\xfe\xff"), "volume.header"),
        (with_header(32, struct.pack("<Q", 257)), "volume.length"),
        (lambda v: v[:-1], "volume.length"),
        (patched(50, b"\0\0"), "volume.checksum"),
        (with_header(44, bytes(4)), "volume.erase-polarity"),
        (with_header(52, b"\x08\0"), "volume.extended"),
        (with_header(52, b"\xff\xff"), "volume.extended"),
        (patched(0x48 + 16, bytes(4)), "volume.extended"),
        (patched(0x48 + 16, b"\xff\xff\xff\xff"), "volume.extended"),
        (patched(FIRST, b"\1"), "volume.file-checksum"),
        (patched(FIRST + 20, b"\x17\0\0"), "volume.file-size"),
        (patched(FIRST + 20, b"\xff\xff\xff"), "volume.file-size"),
        (patched(FIRST + 23, b"\xf0"), "volume.file-state"),
        (patched(-8, b"\0"), "volume.file-size"),
        (lambda _: make.fv([make.driver(A)], size=0x90)[:-1] + b"\0", "volume.file-header"),
        (patched(FIRST + 24, b"\xff\xff\x0f"), "volume.section-size"),
        (patched(FIRST + 24, bytes(3)), "volume.section-size"),
    ],
)
def test_volumes_that_lie(change: Callable[[bytes], bytes], rule: str) -> None:
    with refused(FirmwareFormatError, rule):
        volume.modules(change(NAMED))


def packed(body: bytes) -> bytes:
    return make.section(0x02, volume.LZMA_SECTION.bytes_le + struct.pack("<HH", 24, 1) + body)


@pytest.mark.parametrize(
    ("section", "rule"),
    [
        (packed(b"not lzma at all"), "volume.lzma"),
        (packed(make.lzma_section(bytes(99))[24:-4]), "volume.lzma"),
        (packed(b"\x5d" + b"\xff" * 20), "volume.lzma"),
        (make.section(0x02, b"short"), "volume.guided-section"),
        (make.lzma_section(bytes((128 << 20) + 1)), "volume.lzma-size"),
    ],
    ids=["junk", "truncated", "huge-dictionary", "short", "bomb"],
)
def test_packed_sections_that_lie(section: bytes, rule: str) -> None:
    with refused(FirmwareFormatError, rule):
        volume.modules(make.main_volume(section))


@pytest.mark.parametrize(
    "section",
    [
        make.section(0x01, bytes(8)),
        make.section(0x03, bytes(8)),
        make.lzma_section(b"", guid=UUID("a31280ad-481e-41b6-95e8-127f4c984779")),
    ],
)
def test_what_cannot_be_looked_into(section: bytes) -> None:
    with refused(FirmwareRejected, "opaque-section"):
        volume.modules(make.main_volume(section))


def test_nesting_of_volumes() -> None:
    region = make.fv([make.driver(A)])
    for _ in range(9):
        region = make.main_volume(make.section(0x17, region))
    with refused(FirmwareFormatError, "volume.nesting"):
        volume.modules(region)


def test_nesting_of_packed_sections() -> None:
    stream = b""
    for _ in range(17):
        stream = make.lzma_section(stream)
    with refused(FirmwareFormatError, "volume.lzma-count"):
        volume.modules(make.main_volume(stream))


@pytest.mark.parametrize(
    "region",
    [
        make.fv([]) * 65537,
        make.fv([make.file(A, 0x07, b"\4\0\0\x19" * 65536)]),
        make.fv([make.file(A, 0xF0, b"")]) * 32769,
    ],
    ids=["volumes", "sections", "files"],
)
def test_number_of_parts(region: bytes) -> None:
    with refused(FirmwareFormatError, "volume.part-count"):
        volume.modules(region)


def test_an_lzma_stream_of_unknown_length_is_fine() -> None:
    stream = make.section(0x17, make.fv([make.driver(A)]))
    alone = lzma.compress(stream, lzma.FORMAT_ALONE, filters=make.LZMA_FILTERS)
    assert alone[5:13] == b"\xff" * 8
    known = alone[:5] + struct.pack("<Q", len(stream)) + alone[13:]
    for variant in (alone, known):
        assert loadable(make.main_volume(packed(variant))) == {A: True}
