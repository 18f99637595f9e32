"""Each type of event: what its digest must be of, and what is shown of it."""

import struct
from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st

from attestation.errors import EventLogRejected
from attestation.measure import eventlog_events as events
from attestation.measure.eventlog import Backing, backing, check_digests
from tests.attestation.measure.logs import GLOBAL, log_of, record, u16, u32, u64, variable
from tests.attestation.measure.support import refused

OPTION = variable("Boot0001", u32(1) + u16(4) + "UEFI disk".encode("utf-16-le") + bytes(6))
ORDER = variable("BootOrder", u16(1) + u16(0x1A))
NODES = (
    bytes.fromhex("02010c00d041030a00000000")  # ACPI
    + bytes.fromhex("010106000203")  # PCI function 2, device 3
    + b"\4\x08\x18\0" + bytes(4) + u64(0x100) + u64(0x2FF)
    + b"\4\6\x14\0" + bytes(range(16))
    + b"\4\7\x14\0" + bytes(range(16))
)  # fmt: skip
FILE = b"\4\4\x10\0" + "\\A.EFI".encode("utf-16-le")
END_OF_PATH = b"\x7f\xff\4\0"
PATH_GUID = UUID(bytes_le=bytes(range(16)))
FV_FILE = f"FvFile({PATH_GUID})"[:38]


def image(path: bytes, size: int = 4096) -> bytes:
    return u64(0x7F000000) + u64(size) + u64(0) + u64(len(path)) + path


# Type, data, what its digest is of, description. The digests of DATA types must be of that.
DATA = [
    (0x4, bytes(4), None, "00000000"),
    (0x5, b"action", None, "action"),
    (0x8, "1.0".encode("utf-16-le") + b"\0\0", None, "1.0"),
    (0x80000001, variable("SecureBoot", b"\1"), None, "SecureBoot, 1 bytes"),
    (0x80000001, variable("db", b"", bytes(16)), None, "db, 0 bytes"),
    (0x80000002, ORDER, u16(1) + u16(0x1A), "BootOrder: 0001 001a"),
    (0x80000002, OPTION, OPTION[32 + 16 :], "Boot0001: UEFI disk"),
    (0x80000002, variable("Driver00aB", b"\1"), b"\1", "Driver00aB, 1 bytes"),
    (0x80000006, bytes(92), None, "92 bytes"),
    (0x80000007, b"Exit Boot Services Invocation", None, "Exit Boot Services Invocation"),
    (0x8000000C, OPTION, None, "Boot0001: UEFI disk"),
    (0x800000E0, variable("db", bytes(48)), None, "db, 48 bytes"),
    (0xD, b"grub_cmd: set a=b\0", b"set a=b", "grub_cmd: set a=b"),
    (0xD, b"kernel_cmdline: x\0", b"x", "kernel_cmdline: x"),
    (0xD, b"module_cmdline: \0", b"", "module_cmdline: "),
]
CONTENT = [
    (0x6, u32(0x8F3B22ED) + u32(26) + b"LOADED_IMAGE::LoadOptions\0", "LOADED_IMAGE::LoadOptions"),
    (0x6, u32(0x8F3B22EC) + u32(13) + b"Linux initrd\0", "Linux initrd"),
    (0xA, b"ACPI DATA", "ACPI DATA"),
    (0xA, b"QEMU FW CFG\0" + b"bootorder".ljust(56, b"\0"), "fw_cfg bootorder"),
    (0xD, b"/boot/vmlinuz\0", "/boot/vmlinuz"),
    (0xD, b"MokList\0", "MokList"),
    (0xD, "Credentials initrd\0".encode("utf-16-le"), "Credentials initrd"),
    (0x80000003, image(FILE + END_OF_PATH), "4096 bytes from \\A.EFI"),
    (
        0x80000004,
        image(NODES + END_OF_PATH),
        f"4096 bytes from Path(2,1)/Pci(0x3,0x2)/Offset(0x100,0x2ff)/{FV_FILE}...",
    ),
    (0x80000005, image(NODES[-20:]), f"4096 bytes from Fv({PATH_GUID})"),
    (0x80000003, image(b""), "4096 bytes from no device path"),
    (0x80000009, u64(1) + bytes(24), "32 bytes"),
    (0x8000000A, b"\2Fv" + u64(0xFFE00000) + u64(131072), "Fv at 0xffe00000, 131072 bytes"),
    (0x8000000A, b"\2Fv", "Fv"),
    (0x8000000B, b"\x09TdxTable\0" + u64(1) + bytes(24), "TdxTable"),
    (0x80000010, b"HCRTM", "HCRTM"),
    (0x12345678, b"\xff\xfe", "2 bytes"),
]


@pytest.mark.parametrize(("kind", "data", "hashed", "description"), DATA)
def test_digest_of_the_data(kind: int, data: bytes, hashed: bytes | None, description: str) -> None:
    log = log_of(record(1, kind, data, hashed))
    (event,) = log.events
    assert backing(event) is Backing.DATA
    assert event.description == description
    check_digests(log)
    other = log_of(record(1, kind, data, b"something else"))
    with refused(EventLogRejected, "eventlog.digest", "event 0, register 1, "):
        check_digests(other)
    assert backing(other.events[0]) is Backing.DATA


@pytest.mark.parametrize(("kind", "data", "description"), CONTENT)
def test_digest_of_something_else(kind: int, data: bytes, description: str) -> None:
    log = log_of(record(1, kind, data, b"something else"))
    assert backing(log.events[0]) is Backing.CONTENT
    assert log.events[0].description == description
    check_digests(log)


@pytest.mark.parametrize(
    "data",
    [
        b"",
        OPTION + b"\0",
        OPTION[:-1],
        variable("Boot0001", b"\1", bytes(16)),
        variable("Boot001", b"\1"),
        variable("Boot000G", b"\1"),
        variable("BootOrder\n", b"\1"),
        GLOBAL + u64(1) + u64(0) + b"\0\xd8",
        GLOBAL + u64(2**63) + u64(2**63),
    ],
)
def test_a_boot_variable_of_no_such_form(data: bytes) -> None:
    """Its digest leaves the name out, so the form is all that can be checked of it."""
    log = log_of(record(1, events.EV_EFI_VARIABLE_BOOT, data, b"\1"))
    with refused(EventLogRejected, "eventlog.digest", "event 0"):
        check_digests(log)


def test_a_text_of_grub_without_its_end() -> None:
    with refused(EventLogRejected, "eventlog.digest", "event 0"):
        check_digests(log_of(record(3, 0xD, b"grub_cmd: x", b"x")))


def test_what_is_not_extended_has_no_digest() -> None:
    raw = record(1, 3, b"StartupLocality\0\3")
    zeros = raw[:14] + bytes(48) + raw[62:]
    check_digests(log_of(zeros))
    assert backing(log_of(zeros).events[0]) is Backing.CONTENT
    with refused(EventLogRejected, "eventlog.digest", "EV_NO_ACTION"):
        check_digests(log_of(raw))


# systemd's stub: name and content of a section, under the same data.
def section(name: str, content: bytes, register: int = 3) -> tuple[bytes, bytes]:
    data = f"{name}\0".encode("utf-16-le")
    return (
        record(register, 0xD, data, f"{name}\0".encode()),
        record(register, 0xD, data, content),
    )


def test_sections_of_an_image() -> None:
    first, second = section(".linux", b"kernel"), section(".cmdline", b"quiet")
    log = log_of(*first, *second)
    check_digests(log)
    assert [backing(event) for event in log.events] == [Backing.DATA, Backing.CONTENT] * 2
    assert [event.description for event in log.events] == [".linux"] * 2 + [".cmdline"] * 2


KERNEL, OPTIONS = section(".linux", b"kernel"), section(".cmdline", b"quiet")


@pytest.mark.parametrize(
    ("records", "number"),
    [
        ((KERNEL[1], *OPTIONS), 0),  # content without its name
        ((KERNEL[1], KERNEL[0]), 0),
        ((*KERNEL, KERNEL[1]), 2),
        ((KERNEL[0], OPTIONS[1], KERNEL[1]), 1),
        ((KERNEL[0], section(".linux", b"kernel", 2)[1]), 1),  # of another register
    ],
)
def test_sections_out_of_order(records: tuple[bytes, ...], number: int) -> None:
    with refused(EventLogRejected, "eventlog.digest", f"event {number}, "):
        check_digests(log_of(*records))


# For people.
def test_names() -> None:
    assert events.name(0x4) == "EV_SEPARATOR"
    assert events.name(0x0) == "EV_PREBOOT_CERT"
    assert events.name(0x800000E0) == "EV_EFI_VARIABLE_AUTHORITY"
    assert events.name(0xDEAD) == "0xdead"


def test_descriptions_are_short_and_printable() -> None:
    assert events.describe(0x5, b"a" * 100) == "a" * 100
    assert events.describe(0x5, b"a" * 101) == "a" * 97 + "..."
    assert events.describe(0x5, b"a\x1b[31mb") == "7 bytes"
    assert events.describe(0x5, b"one\ntwo\0") == "one.two"
    assert events.describe(0x80000001, variable("\x1b\u2028x", b"")) == "..x, 0 bytes"
    assert events.describe(0x80000001, b"short") == "5 bytes, no variable"
    assert events.describe(0x80000004, b"short") == "5 bytes, no image"
    assert events.describe(0x8000000A, b"") == "0 bytes"


def test_device_paths_that_lie() -> None:
    for path in (b"\1\1\3\0", b"\1\1\0\0" * 100, b"\1\1\xff\xff", b"\1"):
        assert events.describe(0x80000004, image(path)) == "4096 bytes from no device path"
    many = events.describe(0x80000004, image(b"\1\2\4\0" * 10_000))
    assert many.startswith("4096 bytes from Path(1,2)/Path(1,2)/")
    assert len(many) == 100
    # A length that is larger than the data is no more than the data.
    cut = struct.pack("<QQQQ", 0, 1, 0, 2**64 - 1) + FILE
    assert events.describe(0x80000004, cut) == "1 bytes from \\A.EFI"


KINDS = sorted({row[0] for row in DATA} | {row[0] for row in CONTENT})


@given(st.sampled_from(KINDS), st.binary(max_size=200))
def test_any_data(kind: int, data: bytes) -> None:
    text = events.describe(kind, data)
    assert text.isascii()
    assert text.isprintable() or text == ""
    assert len(text) <= 100
    rule = events.hashed(kind, data)
    assert rule.content is None or len(rule.content) <= max(len(data), 14)
