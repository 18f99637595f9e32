"""RTMR1 and RTMR2: the event model, the served initrd, the refusals."""

import hashlib
import subprocess
from pathlib import Path
from shutil import which

import pytest
from hypothesis import given
from hypothesis import strategies as st

from attestation.errors import PeFormatError, UkiRejected
from attestation.measure import authenticode, rtmr
from attestation.measure.rtmr import BootPath, Event
from tests.attestation.measure import synthetic
from tests.attestation.measure.support import refused, vectors

GOLDEN = vectors("rtmr.json")
UKI = synthetic.uki()


def sha(data: bytes) -> bytes:
    return hashlib.sha384(data).digest()


def test_rtmr1_of_both_boot_paths() -> None:
    golden = {name: bytes.fromhex(value) for name, value in GOLDEN["events"].items()}
    calling, separator, called, done = golden
    load = "UKI"
    expected = {
        BootPath.KERNEL: [load, calling, separator, called, done],
        BootPath.ESP: [calling, separator, load, called, done],
    }
    golden[load] = authenticode.digest(UKI, "sha384")
    for path, names in expected.items():
        events = rtmr.rtmr1_events(UKI, path)
        assert [event.description for event in events] == names
        assert [event.digest for event in events] == [golden[name] for name in names]
        value = bytes(48)
        for name in names:
            value = sha(value + golden[name])
        assert rtmr.rtmr1(UKI, path) == value


def test_load_options_of_a_real_quote() -> None:
    golden = GOLDEN["load_options"]
    digest = sha(rtmr.load_options(golden["cmdline"].encode()))
    assert digest.hex() == golden["digest"]
    assert rtmr.replay([Event(9, "LoadOptions", digest)]).hex() == golden["rtmr2"]


@pytest.mark.parametrize(
    ("section", "text"),
    [
        (b"a b", "a b"),
        (b" \t\n a\tb\x7fc \n\0", "a b c"),
        (b"a\0b", "a"),
        ("ü\U0001f600".encode(), "ü\U0001f600"),
        (b"a\x01\x01b", "a  b"),
    ],
)
def test_load_options(section: bytes, text: str) -> None:
    assert rtmr.load_options(section) == text.encode("utf-16-le") + b"\0\0"


def test_rtmr2_events_in_the_order_of_the_stub() -> None:
    parts = synthetic.UKI_SECTIONS
    events = rtmr.rtmr2_events(UKI)
    measured = [".linux", ".osrel", ".cmdline", ".initrd", ".uname", ".sbat"]
    expected = []
    for name in measured:
        expected += [sha(name.encode() + b"\0"), sha(parts[name])]
    expected.append(sha("console=ttyS0 panic=-1".encode("utf-16-le") + b"\0\0"))
    served = parts[".initrd"] + bytes(-len(parts[".initrd"]) % 4)
    expected.append(sha(served + rtmr.cpio("os-release", parts[".osrel"])))
    assert [event.digest for event in events] == expected
    assert {event.pcr for event in events[:-2]} == {11}
    assert [event.pcr for event in events[-2:]] == [9, 9]
    assert rtmr.rtmr2(UKI) == rtmr.replay(events)


def test_all_sections_and_extra_files() -> None:
    extra: dict[str, bytes | None] = {
        ".ucode": b"micro",
        ".splash": b"BM",
        ".dtb": b"d",
        ".pcrsig": b"{}",
        ".pcrpkey": b"PEM",
        ".profile": b"ID=x",
        ".dtbauto": b"da",
        ".hwids": b"h",
    }
    events = rtmr.rtmr2_events(synthetic.uki(extra))
    names = [event.description for event in events if event.pcr == 11]
    assert names[1::2] == list(rtmr.MEASURED_SECTIONS)
    assert ".pcrsig" not in names
    parts = [b"micro", synthetic.UKI_SECTIONS[".initrd"]]
    for section, file in (
        (".pcrsig", "tpm2-pcr-signature.json"),
        (".pcrpkey", "tpm2-pcr-public-key.pem"),
        (".osrel", "os-release"),
        (".profile", "profile"),
    ):
        content = extra.get(section) or synthetic.UKI_SECTIONS[section]
        parts.append(rtmr.cpio(file, content))
    served = b"".join(part + bytes(-len(part) % 4) for part in parts)
    assert events[-1].digest == sha(served)


def test_a_single_part_is_served_as_it_is() -> None:
    events = rtmr.rtmr2_events(synthetic.uki({".osrel": None}))
    assert events[-1].digest == sha(synthetic.UKI_SECTIONS[".initrd"])


def test_sections_are_measured_as_loaded() -> None:
    """Memory longer than the file data is zero; file padding beyond the memory is not measured."""
    parts = [(name, data, None) for name, data in synthetic.UKI_SECTIONS.items()]
    parts = [part for part in parts if part[0] != ".uname"]
    events = rtmr.rtmr2_events(synthetic.pe([*parts, (".uname", b"6.12", 100)]))
    assert sha(b"6.12" + bytes(96)) in [event.digest for event in events]


def test_sha256_for_a_software_tpm() -> None:
    events = rtmr.rtmr1_events(UKI, BootPath.KERNEL, "sha256")
    assert events[0].digest == authenticode.digest(UKI)
    value = bytes(32)
    for event in events:
        value = hashlib.sha256(value + event.digest).digest()
    assert rtmr.rtmr1(UKI, BootPath.KERNEL, "sha256") == value
    assert len(rtmr.rtmr2(UKI, "sha256")) == 32


def test_cpio_layout() -> None:
    archive = rtmr.cpio("profile", b"12345")
    directory, file = archive[:120], archive[120 : 120 + 128 + 8]
    zeros = "00000000"
    head = "070701" + "00000001" + "0000416d" + zeros * 2 + "00000001" + zeros * 6
    assert directory == (head + "00000007" + zeros + ".extra").encode() + b"\0\0\0\0"
    head = "070701" + "00000002" + "00008124" + zeros * 2 + "00000001" + zeros + "00000005"
    assert file == (
        (head + zeros * 4 + "0000000f" + zeros + ".extra/profile").encode()
        + bytes(4)
        + b"12345\0\0\0"
    )
    head = "070701" + zeros * 4 + "00000001" + zeros * 6 + "0000000B" + zeros
    assert archive[256:] == head.encode() + b"TRAILER!!!\0\0\0\0"


@pytest.mark.skipif(which("cpio") is None, reason="cpio is not installed")
def test_cpio_reads_the_archive(tmp_path: Path) -> None:
    subprocess.run(
        ["cpio", "--extract", "--quiet"],
        input=rtmr.cpio("os-release", b"ID=zipnet\n"),
        cwd=tmp_path,
        check=True,
    )
    assert (tmp_path / ".extra" / "os-release").read_bytes() == b"ID=zipnet\n"


@pytest.mark.parametrize(
    ("changes", "rule"),
    [
        ({".linux": None}, "missing-section"),
        ({".cmdline": None}, "missing-section"),
        ({".initrd": None}, "missing-section"),
        ({".initrd": b""}, "missing-section"),
        ({".efifw": b"x"}, "unknown-section"),
        ({".cmdline": b"\xff\xfe"}, "cmdline-encoding"),
        ({".cmdline": b" \n\0"}, "empty-cmdline"),
        ({".cmdline": b"x" * 2048}, "cmdline-size"),
    ],
)
def test_images_that_cannot_be_predicted(changes: dict[str, bytes | None], rule: str) -> None:
    with refused(UkiRejected, rule):
        rtmr.rtmr2(synthetic.uki(changes))


def test_several_profiles_and_duplicates() -> None:
    parts: list[tuple[str, bytes, int | None]] = [
        (name, data, None) for name, data in synthetic.UKI_SECTIONS.items()
    ]
    profiles = synthetic.pe([*parts, (".profile", b"a", None), (".profile", b"b", None)])
    with refused(UkiRejected, "multi-profile"):
        rtmr.rtmr1(profiles, BootPath.ESP)
    with refused(PeFormatError, "pe.duplicate-section"):
        rtmr.rtmr1(synthetic.pe([*parts, (".cmdline", b"evil", None)]), BootPath.ESP)


def test_sections_that_are_all_memory() -> None:
    parts = [(name, data, None) for name, data in synthetic.UKI_SECTIONS.items()]
    with refused(UkiRejected, "section-padding"):
        rtmr.rtmr2(synthetic.pe([*parts, (".splash", b"x", 0xFFFFFFFF)]))


@given(st.sampled_from([".linux", ".cmdline", ".initrd", ".osrel"]), st.binary(min_size=1))
def test_every_section_counts(name: str, content: bytes) -> None:
    try:
        value = rtmr.rtmr2(synthetic.uki({name: content}))
    except UkiRejected:
        assert name == ".cmdline"
        return
    assert (value == rtmr.rtmr2(UKI)) == (content == synthetic.UKI_SECTIONS[name])
