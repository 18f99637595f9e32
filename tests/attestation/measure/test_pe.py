"""PE parsing and the Authenticode hash."""

import hashlib
import struct
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from attestation.errors import PeFormatError
from attestation.measure import authenticode
from attestation.measure.pe import Pe
from tests.attestation.measure import synthetic
from tests.attestation.measure.support import patched, refused

PARTS: list[tuple[str, bytes, int | None]] = [
    (".text", b"code" * 9, None),
    (".bss", b"", 4096),
    (".linux", b"kernel", 100),
]
PLAIN = synthetic.pe(PARTS)
SIGNED = synthetic.pe(PARTS, certificate=b"signature here!!")
OPTIONAL = 0x40 + 24
TABLE = OPTIONAL + 112 + 16 * 8
SECURITY = OPTIONAL + 112 + 32


def reference(data: bytes, magic: int = 0x20B) -> bytes:
    """The hash as the Authenticode specification words it, for images without gaps."""
    pe = Pe.parse(data)
    security = OPTIONAL + (112 if magic == 0x20B else 96) + 32
    end = len(data) - pe.certificates
    kept = data[: OPTIONAL + 64] + data[OPTIONAL + 68 : security] + data[security + 8 : end]
    return hashlib.sha256(kept).digest()


def test_headers() -> None:
    pe = Pe.parse(SIGNED)
    assert [(s.name, s.virtual_size, s.raw_size) for s in pe.sections] == [
        (".text", 36, 48),
        (".bss", 4096, 0),
        (".linux", 100, 16),
    ]
    assert (pe.checksum, pe.security_entry, pe.certificates) == (OPTIONAL + 64, SECURITY, 16)


def test_sections_by_name() -> None:
    pe = Pe.parse(PLAIN)
    found = pe.section(".linux")
    assert found is not None
    assert bytes(found) == b"kernel".ljust(16, b"\0")
    assert pe.section(".initrd") is None


def test_sections_as_loaded() -> None:
    pe = Pe.parse(PLAIN)
    text, linux, bss = (pe.loaded(name) for name in (".text", ".linux", ".bss"))
    assert text is not None
    assert (bytes(text[0]), text[1]) == (b"code" * 9, 0)
    assert linux is not None
    assert (len(linux[0]), linux[1]) == (16, 84)
    assert bss is not None
    assert (len(bss[0]), bss[1]) == (0, 4096)
    assert pe.loaded(".initrd") is None
    assert Pe.parse(synthetic.pe([(".a", b"x", 0)])).loaded(".a") is None


def test_duplicate_sections() -> None:
    pe = Pe.parse(synthetic.pe([(".linux", b"a", None), (".linux", b"b", None)]))
    for ask in (pe.section, pe.loaded):
        with refused(PeFormatError, "pe.duplicate-section"):
            ask(".linux")


@pytest.mark.parametrize(
    ("change", "rule"),
    [
        (lambda _: b"", "pe.dos-header"),
        (lambda _: b"MZ", "pe.dos-header"),
        (lambda d: b"\x7fELF" + d, "pe.dos-header"),
        (patched(0x3C, b"\xff\xff\xff\xff"), "pe.signature"),
        (patched(0x40, b"NE\0\0"), "pe.signature"),
        (lambda d: d[: OPTIONAL + 1], "pe.signature"),
        (patched(OPTIONAL, b"\x07\1"), "pe.magic"),
        (patched(0x46, b"\0\0"), "pe.section-table"),
        (patched(0x46, b"\x61\0"), "pe.section-table"),
        (lambda d: d[: TABLE + 40], "pe.section-table"),
        (patched(0x54, b"\0\0"), "pe.optional-header"),
        (patched(0x54, b"\xff\0"), "pe.optional-header"),
        (patched(OPTIONAL + 108, b"\x11"), "pe.optional-header"),
        (patched(OPTIONAL + 108, b"\x0f"), "pe.optional-header"),
        (patched(OPTIONAL + 60, struct.pack("<I", TABLE)), "pe.headers-size"),
        (patched(OPTIONAL + 60, b"\xff\xff\xff\xff"), "pe.headers-size"),
        (lambda d: d[:570], "pe.section-range"),
        (patched(TABLE + 16, b"\xff\xff\xff\xff"), "pe.section-range"),
        (patched(TABLE + 20, b"\xff\xff\xff\xff"), "pe.section-range"),
        (patched(TABLE + 20, bytes(4)), "pe.section-range"),
        (patched(TABLE + 12, bytes(4)), "pe.section-range"),
        (patched(TABLE + 20, struct.pack("<I", 500)), "pe.section-overlap"),
        (patched(TABLE + 80 + 20, struct.pack("<I", 0x200 + 47)), "pe.section-overlap"),
        (patched(SECURITY, bytes(4)), "pe.certificate-table"),
        (patched(SECURITY, struct.pack("<I", len(SIGNED) - 15)), "pe.certificate-table"),
        (patched(SECURITY + 4, b"\x08"), "pe.certificate-table"),
        (patched(SECURITY + 4, b"\xff\xff\xff\xff"), "pe.certificate-table"),
        (patched(SECURITY, struct.pack("<II", 0x220, len(SIGNED) - 0x220)), "pe.certificate-table"),
        (lambda d: d + b"more", "pe.certificate-table"),
    ],
)
def test_images_that_lie(change: Callable[[bytes], bytes], rule: str) -> None:
    with refused(PeFormatError, rule):
        Pe.parse(change(SIGNED))


@pytest.mark.parametrize(("magic", "certificate"), [(0x10B, b""), (0x10B, b"s" * 8), (0x20B, b"")])
def test_hash_of_both_header_kinds(magic: int, certificate: bytes) -> None:
    data = synthetic.pe(PARTS, magic=magic, certificate=certificate)
    assert authenticode.digest(data) == reference(data, magic)


def test_hash_without_a_security_directory() -> None:
    data = synthetic.pe(PARTS, directories=4)
    pe = Pe.parse(data)
    assert pe.security_entry is None
    kept = data[: OPTIONAL + 64] + data[OPTIONAL + 68 :]
    assert authenticode.digest(pe) == hashlib.sha256(kept).digest()


def test_sections_are_hashed_in_file_order() -> None:
    """The table lists the second section first."""
    first, second = TABLE, TABLE + 80
    swapped = PLAIN[:first] + PLAIN[second : second + 40] + PLAIN[first + 40 : second]
    swapped += PLAIN[first : first + 40] + PLAIN[second + 40 :]
    assert authenticode.digest(swapped) == reference(swapped)


def test_trailing_bytes_count_from_the_number_of_hashed_bytes() -> None:
    """With a gap before the sections the firmware hashes the end of the last section twice."""
    data = synthetic.pe(PARTS, gap=32, trailing=b"tail")
    pe = Pe.parse(data)
    headers = data[: OPTIONAL + 64] + data[OPTIONAL + 68 : SECURITY]
    headers += data[SECURITY + 8 : pe.headers_size]
    content = data[pe.headers_size + 32 : -4]
    expected = hashlib.sha256(headers + content + data[pe.headers_size + len(content) :])
    assert authenticode.digest(data) == expected.digest()


def test_sha384_is_the_same_bytes() -> None:
    kept = PLAIN[: OPTIONAL + 64] + PLAIN[OPTIONAL + 68 : SECURITY] + PLAIN[SECURITY + 8 :]
    assert authenticode.digest(PLAIN, "sha384") == hashlib.sha384(kept).digest()


@given(st.binary(min_size=4, max_size=4), st.binary(min_size=1, max_size=64))
def test_checksum_and_certificates_do_not_count(checksum: bytes, certificate: bytes) -> None:
    signed = synthetic.pe(PARTS, certificate=certificate)
    assert authenticode.digest(patched(OPTIONAL + 64, checksum)(signed)) == (
        authenticode.digest(PLAIN)
    )


@given(st.integers(0, len(PLAIN) - 1), st.integers(1, 255))
def test_every_other_byte_counts(at: int, bits: int) -> None:
    skipped = (*range(OPTIONAL + 64, OPTIONAL + 68), *range(SECURITY, SECURITY + 8))
    changed = patched(at, bytes([PLAIN[at] ^ bits]))(PLAIN)
    try:
        same = authenticode.digest(changed) == authenticode.digest(PLAIN)
    except PeFormatError:
        return
    assert same == (at in skipped)


def test_pefile_and_virt_firmware_agree() -> None:
    pefile = pytest.importorskip("pefile", reason="virt-firmware is not installed")
    peutils = pytest.importorskip("virt.peutils.pesign", reason="virt-firmware is not installed")
    for data in (PLAIN, SIGNED, synthetic.uki()):
        theirs = peutils.pe_authenticode_hash(pefile.PE(data=data))
        assert theirs == authenticode.digest(data)
