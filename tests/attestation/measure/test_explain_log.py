"""Which event makes another RTMR1 or RTMR2: with a log, with the image, with both, with neither."""

import time
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from attestation.errors import PeFormatError, UkiRejected
from attestation.measure.eventlog import LogEvent
from attestation.measure.explain import Cause
from attestation.measure.rtmr import BootPath
from attestation.providers.mock_log import SeparatorModel
from tests.attestation.measure import synthetic
from tests.attestation.measure.explain_support import (
    ACTION,
    APPLICATION,
    BASE,
    DRIVER,
    ENTRIES,
    FD,
    GPT,
    OTHER_UKI,
    ROM,
    UKI,
    booted,
    causes,
    event,
    started,
    wanted,
    why,
)
from tests.attestation.measure.support import refused

LIST = wanted(*ENTRIES)
OWN = tuple(one.digest for one in started()[1].events if one.register > 1)
KERNEL = wanted(ENTRIES[0])
WITH_AND_WITHOUT = pytest.mark.parametrize("uki", [None, UKI])


def at(events: list[LogEvent], place: int, *more: LogEvent) -> list[LogEvent]:
    """Events of RTMR1 put before its `place`th."""
    numbers = [number for number, one in enumerate(events) if one.register == 2]
    index = numbers[place]
    return [*events[:index], *more, *events[index:]]


@WITH_AND_WITHOUT
@pytest.mark.parametrize("count", [1, 2, 3, 9])
def test_option_roms(count: int, uki: bytes | None) -> None:
    report, log = started(option_roms=(ROM,) * count)
    findings = why(report, LIST, log=log, uki=uki)
    assert causes(findings) == [("option-rom", True)] * count
    assert {finding.register for finding in findings} == {"rtmr1"}
    first = min(one.number for one in log.events if one.kind == DRIVER)
    assert f"event {first} EV_EFI_BOOT_SERVICES_DRIVER" in findings[0].message
    assert "Pci(0x2,0x0)" in findings[0].message
    assert findings[0].proof.startswith(f"without event {first}")
    assert findings[0].proof.endswith(f"what event {first} is, only the log says")


def test_without_a_log_an_option_rom_is_only_possible() -> None:
    report, _ = started(option_roms=(ROM,))
    for uki in (None, UKI):
        (finding,) = why(report, LIST, uki=uki)
        assert (finding.cause, finding.register, finding.proved) == (Cause.UNKNOWN, "rtmr1", False)
        assert "--log" in finding.next


@pytest.mark.parametrize("boot_path", BootPath)
def test_an_older_edk2(boot_path: BootPath) -> None:
    report, log = started(separators=SeparatorModel.OLDER, boot_path=boot_path)
    for options in ({"log": log}, {"log": log, "uki": UKI}, {"uki": UKI}):
        (finding,) = why(report, LIST, **options)
        assert (finding.cause, finding.proved) == (Cause.SEPARATOR_MODEL, True)
        assert finding.proof.startswith("with a separator, the TD's events give exactly RTMR1 of")
        narrow = why(report, KERNEL, **options)
        expected = [("separator-model", True)]
        if boot_path is BootPath.ESP:
            expected.insert(0, ("boot-path", True))
        assert causes(narrow) == expected
    assert causes(why(report, LIST)) == [("unknown", False)]


@WITH_AND_WITHOUT
def test_a_separator_more(uki: bytes | None) -> None:
    report, log = started()
    report, log = booted(report, at([*log.events], 2, event(1, 4, bytes(4))))
    (finding,) = why(report, LIST, log=log, uki=uki)
    assert (finding.cause, finding.proved) == (Cause.SEPARATOR_MODEL, True)
    assert "one separator more" in finding.message


@WITH_AND_WITHOUT
def test_events_of_another_kind(uki: bytes | None) -> None:
    report, log = started()
    gpt, failed = event(1, GPT, b"EFI PART"), event(1, APPLICATION, b"", b"\1" * 48)
    report, log = booted(report, at([*log.events], 1, gpt, failed))
    findings = why(report, LIST, log=log, uki=uki)
    assert causes(findings) == [("extra-event", True)] * 2
    assert "EV_EFI_GPT_EVENT" in findings[0].message
    assert "only the log says" not in findings[0].proof  # its digest is that of its data
    assert "only the log says" in findings[1].proof


def test_a_step_less() -> None:
    """Before ExitBootServices: nothing that could be guessed, but the image says what comes."""
    report, log = started()
    report, log = booted(report, [one for one in log.events if b"Exit Boot" not in one.data])
    findings = why(report, LIST, log=log, uki=UKI)
    assert causes(findings) == [("missing-event", True)] * 2
    assert findings[0].message == "the log lacks an event: Exit Boot Services Invocation"
    assert findings[0].proof.startswith("with 'Exit Boot Services Invocation', 'Exit Boot")
    assert causes(why(report, LIST, log=log)) == [("unknown", False)]


def test_boot_path() -> None:
    report, log = started(boot_path=BootPath.ESP)
    for options in ({"log": log}, {"log": log, "uki": UKI}, {"uki": UKI}):
        (finding,) = why(report, KERNEL, **options)
        assert (finding.cause, finding.register, finding.proved) == (
            Cause.BOOT_PATH,
            "rtmr1",
            True,
        )
    rom, log = started(boot_path=BootPath.ESP, option_roms=(ROM,))
    (finding,) = why(rom, LIST, log=log, uki=UKI)
    assert finding.cause is Cause.OPTION_ROM
    findings = why(rom, KERNEL, log=log, uki=UKI)
    assert causes(findings) == [("boot-path", True), ("option-rom", True)]


def test_an_esp_boot_of_another_image_is_still_an_esp_boot() -> None:
    report, log = started(FD, OTHER_UKI, boot_path=BootPath.ESP)
    findings = why(report, KERNEL, log=log, uki=UKI)
    assert causes(findings) == [("uki", True), ("uki", True), ("boot-path", True)]
    assert {f.register for f in findings} == {"rtmr1", "rtmr2"}
    started_it = why(report, KERNEL, uki=OTHER_UKI)
    assert causes(started_it) == [("uki", True)] * 2
    assert "for boot path esp" in started_it[1].proof


def test_another_image_without_its_event() -> None:
    """The image that was to start is missing, and nothing is in its place."""
    report, log = started()
    report, log = booted(report, [one for one in log.events if one.kind != APPLICATION])
    (finding,) = why(report, LIST, log=log, uki=UKI)
    assert (finding.cause, finding.message) == (
        Cause.UKI,
        "the firmware started another image: nothing",
    )


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({".cmdline": b"console=ttyS0 panic=-2\n"}, ".cmdline, LoadOptions"),
        ({".osrel": b"ID=zipneT\n"}, ".osrel, initrd"),
        ({".initrd": b"070701 initrd?"}, ".initrd, initrd"),
        ({".linux": b"MZ Kernel"}, ".linux"),
        ({".uname": None}, ".uname"),
        ({".cmdline": b"a", ".linux": b"MZ other"}, ".linux, .cmdline, LoadOptions"),
    ],
)
def test_the_section_that_differs(changes: dict[str, bytes | None], named: str) -> None:
    report, log = started(FD, synthetic.uki(changes))
    findings = why(report, LIST, log=log, uki=UKI)
    assert causes(findings) == [("uki", True)] * 2
    by_register = {finding.register: finding for finding in findings}
    assert by_register["rtmr2"].message == f"the image differs from the release's in {named}"
    assert "nowhere else" in by_register["rtmr2"].proof
    assert "EV_EFI_BOOT_SERVICES_APPLICATION" in by_register["rtmr1"].message


def test_a_section_more() -> None:
    """It counts as something beside the image, which it is to the release."""
    report, log = started(FD, synthetic.uki({".splash": b"logo"}))
    findings = why(report, LIST, log=log, uki=UKI)
    assert causes(findings) == [("uki", True), ("extra-event", True)]
    assert ".splash" in findings[1].message


@WITH_AND_WITHOUT
def test_files_beside_the_image(uki: bytes | None) -> None:
    report, log = started()
    extra = event(2, 0xD, "credentials\0".encode("utf-16-le"), b"\1" * 48)
    report, log = booted(report, [*log.events, extra])
    (finding,) = why(report, LIST, log=log, uki=uki)
    assert (finding.cause, finding.register, finding.proved) == (Cause.EXTRA_EVENT, "rtmr2", True)
    assert "credentials" in finding.message


def test_another_image_that_nobody_has() -> None:
    report, log = started(FD, OTHER_UKI)
    third = synthetic.uki({".cmdline": b"third"})
    for options in ({}, {"log": log}, {"uki": UKI}, {"uki": third}, {"log": log, "uki": third}):
        (finding,) = why(report, LIST, **options)
        assert (finding.cause, finding.register, finding.proved) == (Cause.UKI, "rtmr2", False)
        assert "--uki" in finding.next


@pytest.mark.parametrize(("count", "proved"), [(43, True), (44, False)])
def test_the_search_is_bounded(count: int, proved: bool) -> None:
    """48 events of RTMR1 with the entry's five."""
    report, log = started()
    drivers = [event(1, DRIVER, b"", bytes([number]) * 48) for number in range(count)]
    report, log = booted(report, at([*log.events], 0, *drivers))
    findings = why(report, LIST, log=log)
    assert causes(findings) == ([("option-rom", True)] * count if proved else [("unknown", False)])


def test_a_search_in_vain_ends_soon() -> None:
    report, log = started()
    more = [event(1, ACTION, b"%d" % number) for number in range(43)]
    report, log = booted(report, at([*log.events], 0, *more))
    begin = time.monotonic()
    assert causes(why(report, LIST, log=log)) == [("unknown", False)]
    assert time.monotonic() - begin < 10  # half a second on the machine that this was written on


def test_the_comparison_is_bounded() -> None:
    report, log = started()
    for register, more in ((1, 508), (2, 500)):
        extra = [event(register, ACTION, b"%d" % number) for number in range(more)]
        found, long = booted(report, [*log.events, *extra])
        assert not any(finding.proved for finding in why(found, LIST, log=long, uki=UKI))


@given(
    st.lists(
        st.tuples(
            st.integers(0, 2),
            st.sampled_from([4, 0xA, 0xD, GPT, APPLICATION, DRIVER]),
            st.sampled_from([b"", bytes(4), b"\xff\xfe", b"x" * 33, *OWN]),
        ),
        max_size=14,
    ),
    st.sampled_from([None, UKI, OTHER_UKI]),
    st.sampled_from([None, FD, BASE]),
)
def test_any_log(
    measured: list[tuple[int, int, bytes]], uki: bytes | None, fd: bytes | None
) -> None:
    """Whatever a log says, nothing is called equal that is not, and a proof is one of an entry."""
    events = [
        event(register, kind, data, data[:48] if kind in {APPLICATION, DRIVER} else None)
        for register, kind, data in measured
        if kind not in {APPLICATION, DRIVER} or len(data) == 48
    ]
    report, log = booted(started()[0], events)
    findings = why(report, LIST, log=log, uki=uki, firmware=fd)
    assert findings
    equal = {report.rtmr1} <= {one.rtmr1 for one in ENTRIES} and report.rtmr2 == ENTRIES[0].rtmr2
    assert (Cause.MATCH in {finding.cause for finding in findings}) is equal


def test_files_that_are_no_image() -> None:
    report, _ = started(option_roms=(ROM,))
    with refused(PeFormatError, "pe.dos-header"):
        why(report, LIST, uki=b"junk")
    with refused(UkiRejected, "missing-section"):
        why(report, LIST, uki=ROM)


def test_nothing_is_invented_for_a_base_firmware_without_store() -> None:
    report, log = started(BASE)
    findings = why(replace(report, mr_td=ENTRIES[0].mr_td), LIST, log=log)
    assert causes(findings) == [("secure-boot", True), ("match", True)]
