"""TDVF metadata and MR_TD on synthetic firmware; the golden values are in test_golden.py."""

import hashlib
import struct
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from attestation.errors import AttestationError, FirmwareFormatError, FirmwareRejected
from attestation.measure import tdvf
from attestation.measure.tdvf import HostProfile, PageOrder, SectionType, Tdvf
from tests.attestation.measure import synthetic
from tests.attestation.measure.support import patched, refused

PAGE = tdvf.PAGE
SMALL = synthetic.Firmware().build()

# Offsets from the end of a synthetic image, see Firmware.metadata().
TABLE_LENGTH = -50
ENTRY_LENGTH = TABLE_LENGTH - 18
ENTRY_GUID = ENTRY_LENGTH + 2
ENTRY_BACK = ENTRY_LENGTH - 4
FIRST_LENGTH = ENTRY_BACK - 18


def reference(fd: bytes, order: PageOrder) -> bytes:
    """MR_TD spelled out chunk by chunk, as the TDX module specification describes it."""
    out = b""
    for section in Tdvf.parse(fd).sections:
        data = fd[section.data_offset : section.data_end].ljust(section.mem_size, b"\0")
        adds, extends = [], []
        for page in range(0, section.mem_size, 4096):
            gpa = section.gpa + page
            adds.append(b"MEM.PAGE.ADD\0\0\0\0" + gpa.to_bytes(8, "little") + bytes(104))
            chunks = b""
            for at in range(0, 4096, 256):
                header = b"MR.EXTEND\0\0\0\0\0\0\0" + (gpa + at).to_bytes(8, "little")
                chunks += header + bytes(104) + data[page + at : page + at + 256]
            extends.append(chunks if section.attributes & 1 else b"")
        if order is PageOrder.INTERLEAVED:
            out += b"".join(a + e for a, e in zip(adds, extends, strict=True))
        else:
            out += b"".join(adds) + b"".join(extends)
    return hashlib.sha384(out).digest()


def with_sections(*entries: tuple[int, int, int, int, int, int]) -> bytes:
    """A file without volumes: enough for the metadata parser."""
    image = synthetic.Firmware(sections=entries)
    return bytes(4 * PAGE) + image.metadata()


@pytest.mark.parametrize("order", PageOrder)
def test_mr_td_follows_the_specification(base: bytes, order: PageOrder) -> None:
    assert tdvf.mr_td(base, order) == reference(base, order)


def test_page_orders_and_profiles(base: bytes) -> None:
    assert tdvf.mr_td(base, PageOrder.INTERLEAVED) != tdvf.mr_td(base, PageOrder.TWO_PASS)
    assert HostProfile("upstream").page_order is PageOrder.INTERLEAVED
    assert HostProfile("canonical-24.04").page_order is PageOrder.TWO_PASS


def test_data_shorter_than_memory_is_padded_with_zeros() -> None:
    fd = with_sections((0, 100, PAGE, 2 * PAGE, 0, 1))
    assert tdvf.mr_td(fd, PageOrder.INTERLEAVED) == reference(fd, PageOrder.INTERLEAVED)


def test_pages_that_the_guest_adds_are_left_out() -> None:
    code = (0, PAGE, PAGE, PAGE, 0, 1)
    with_them = with_sections(code, (0, 0, 4 * PAGE, PAGE, 3, tdvf.PAGE_AUG))
    assert not Tdvf.parse(with_them).sections[1].measured
    for order in PageOrder:
        assert tdvf.mr_td(with_them, order) == tdvf.mr_td(with_sections(code), order)


def test_sections_are_read_in_order(base: bytes) -> None:
    parsed = Tdvf.parse(base)
    assert [s.name for s in parsed.sections] == ["BFV", "CFV", "TEMP_MEM", "TD_HOB"]
    assert parsed.of_type(SectionType.CFV) == (parsed.sections[synthetic.CFV_ENTRY],)
    assert parsed.size == len(base)
    assert [s.measured for s in parsed.sections] == [True, False, False, False]


@pytest.mark.parametrize("kind", [4, 5, 6, 7, 8, 0xFFFFFFFF])
def test_section_types_that_qemu_does_not_start(kind: int) -> None:
    fd = with_sections((0, PAGE, PAGE, PAGE, 0, 1), (0, 0, 4 * PAGE, PAGE, kind, 0))
    with refused(FirmwareRejected, "section-type"):
        tdvf.mr_td(fd, PageOrder.INTERLEAVED)


def test_measured_hob_depends_on_the_host() -> None:
    fd = with_sections((0, PAGE, PAGE, PAGE, 0, 1), (0, 0, 4 * PAGE, PAGE, 2, 1))
    with refused(FirmwareRejected, "measured-hob"):
        tdvf.mr_td(fd, PageOrder.INTERLEAVED)


@pytest.mark.parametrize(
    ("entries", "rule"),
    [
        ([(0, PAGE, PAGE + 1, PAGE, 0, 1)], "tdvf.section-alignment"),
        ([(0, PAGE, PAGE, PAGE + 1, 0, 1)], "tdvf.section-alignment"),
        ([(0, PAGE, (1 << 64) - PAGE, PAGE, 0, 1)], "tdvf.section-address"),
        ([(0, 2 * PAGE, PAGE, PAGE, 0, 1)], "tdvf.section-memory"),
        ([(4 * PAGE, 2 * PAGE, PAGE, 2 * PAGE, 0, 1)], "tdvf.section-range"),
        ([(0xFFFFFFFF, 1, PAGE, PAGE, 0, 1)], "tdvf.section-range"),
        ([(0, 0, PAGE, PAGE, 0, 1)], "tdvf.section-data"),
        ([(0, 0, PAGE, PAGE, 1, 1)], "tdvf.section-data"),
        ([(0, PAGE, PAGE, PAGE, 2, 0)], "tdvf.section-data"),
        ([(0, PAGE, PAGE, PAGE, 3, 0)], "tdvf.section-data"),
        ([(0, 1, PAGE, 1 << 40, 0, 1)], "tdvf.total-size"),
        (
            [(0, PAGE, PAGE, 2 * PAGE, 0, 1), (PAGE, PAGE, 2 * PAGE, PAGE, 1, 0)],
            "tdvf.section-overlap",
        ),
        (
            [(0, PAGE, PAGE, PAGE, 0, 1), (PAGE - 1, PAGE, 2 * PAGE, PAGE, 1, 0)],
            "tdvf.section-overlap",
        ),
    ],
)
def test_sections_that_lie(entries: list[tuple[int, int, int, int, int, int]], rule: str) -> None:
    with refused(FirmwareFormatError, rule):
        Tdvf.parse(with_sections(*entries))


@pytest.mark.parametrize(
    ("change", "rule"),
    [
        (lambda _: b"", "tdvf.footer"),
        (lambda fd: fd[:40], "tdvf.footer"),
        (lambda fd: fd[:-1], "tdvf.footer"),
        (patched(-48, bytes(16)), "tdvf.footer"),
        (patched(TABLE_LENGTH, b"\xff\xff"), "tdvf.table-length"),
        (patched(TABLE_LENGTH, b"\x11\0"), "tdvf.table-length"),
        (patched(TABLE_LENGTH, b"\x12\0"), "tdvf.metadata-entry"),
        (patched(ENTRY_LENGTH, b"\x11\0"), "tdvf.table-entry"),
        (patched(ENTRY_LENGTH, b"\xff\xff"), "tdvf.table-entry"),
        (patched(ENTRY_LENGTH, b"\x17\0"), "tdvf.table-entry"),
        (patched(FIRST_LENGTH, b"\x19\0"), "tdvf.table-entry"),
        (patched(ENTRY_GUID, bytes(16)), "tdvf.metadata-entry"),
        (patched(ENTRY_BACK, bytes(4)), "tdvf.descriptor-range"),
        (patched(ENTRY_BACK, b"\xff\xff\xff\xff"), "tdvf.descriptor-range"),
        (patched(ENTRY_BACK, struct.pack("<I", 8)), "tdvf.descriptor-range"),
        (patched(ENTRY_BACK, struct.pack("<I", 64)), "tdvf.descriptor-signature"),
    ],
)
def test_tables_that_lie(base: bytes, change: Callable[[bytes], bytes], rule: str) -> None:
    with refused(FirmwareFormatError, rule):
        Tdvf.parse(change(base))


def test_two_metadata_entries(base: bytes) -> None:
    """The second entry's GUID in place of the other's: which of two counts would be a guess."""
    twice = struct.pack("<H", 22) + tdvf.METADATA_ENTRY.bytes_le
    fd = patched(TABLE_LENGTH, struct.pack("<H", 18 + 22 + 22))(patched(FIRST_LENGTH, twice)(base))
    with refused(FirmwareFormatError, "tdvf.metadata-entry"):
        Tdvf.parse(fd)


@pytest.mark.parametrize(
    ("field", "value", "rule"),
    [
        (0, b"TDVE", "tdvf.descriptor-signature"),
        (8, b"\2\0\0\0", "tdvf.descriptor-signature"),
        (12, bytes(4), "tdvf.descriptor-length"),
        (12, b"\5\0\0\0", "tdvf.descriptor-length"),
        (4, b"\x91\0\0\0", "tdvf.descriptor-length"),
    ],
)
def test_descriptors_that_lie(base: bytes, field: int, value: bytes, rule: str) -> None:
    start = synthetic.entry_offset(base, 0) - 16
    with refused(FirmwareFormatError, rule):
        Tdvf.parse(patched(start + field, value)(base))


def test_descriptor_that_runs_past_the_end(base: bytes) -> None:
    """64 sections are allowed, but there is no room for them."""
    start = synthetic.entry_offset(base, 0) - 16
    fd = patched(start, b"TDVF" + struct.pack("<III", 16 + 32 * 64, 1, 64))(base)
    with refused(FirmwareFormatError, "tdvf.descriptor-range"):
        Tdvf.parse(fd)


@given(st.data())
def test_every_measured_byte_counts(data: st.DataObject) -> None:
    code = Tdvf.parse(SMALL).sections[0]
    # Not the metadata itself: changing that changes, or breaks, what is measured.
    at = data.draw(st.integers(code.data_offset, code.entry_offset - 17))
    changed = patched(at, bytes([SMALL[at] ^ data.draw(st.integers(1, 255))]))(SMALL)
    for order in PageOrder:
        assert tdvf.mr_td(changed, order) != tdvf.mr_td(SMALL, order)


@given(st.integers(0, synthetic.STORE_SIZE - 1), st.integers(1, 255))
def test_unmeasured_bytes_do_not_count(at: int, bits: int) -> None:
    changed = patched(at, bytes([SMALL[at] ^ bits]))(SMALL)
    order = PageOrder.INTERLEAVED
    assert tdvf.mr_td(changed, order) == tdvf.mr_td(SMALL, order)


@given(st.integers(0, len(SMALL)))
def test_truncation(size: int) -> None:
    if size < len(SMALL):
        with pytest.raises(AttestationError):
            Tdvf.parse(SMALL[:size])
