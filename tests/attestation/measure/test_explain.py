"""`explain`: which entry a TD is nearest to, and what the lists alone say about it."""

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from attestation.errors import EventLogRejected, PolicyError
from attestation.measure.explain import Candidate, Cause, nearest
from attestation.measure.record import Binding, BootProof, Measurement
from attestation.measure.rtmr import BootPath
from attestation.measure.tdvf import HostProfile
from attestation.providers.mock_log import SeparatorModel
from tests.attestation.measure import synthetic
from tests.attestation.measure.explain_support import (
    ENTRIES,
    FD,
    NOW,
    OTHER_FD,
    OTHER_UKI,
    OTHERS,
    ROM,
    UKI,
    booted,
    causes,
    event,
    known,
    measured,
    started,
    unmeasured,
    wanted,
    why,
)
from tests.attestation.measure.support import refused

CANONICAL = HostProfile.CANONICAL_24_04


@pytest.mark.parametrize("boot_path", BootPath)
@pytest.mark.parametrize("profile", HostProfile)
def test_match(profile: HostProfile, boot_path: BootPath) -> None:
    report, log = started(host_profile=profile, boot_path=boot_path)
    for options in ({}, {"log": log, "firmware": FD, "uki": UKI, "role": "server"}):
        (finding,) = why(report, wanted(*ENTRIES), **options)
        assert (finding.cause, finding.proved) == (Cause.MATCH, True)
        assert f"host {profile}, boot {boot_path}" in finding.message
        assert "RTMR0 is not pinned" in finding.proof
        assert (".profiles(" in finding.next) is (profile is CANONICAL)
        assert (".boot_paths(" in finding.next) is (boot_path is BootPath.ESP)


def test_unknown_says_what_to_give() -> None:
    report, log = started(OTHER_FD, OTHER_UKI)
    (finding,) = why(report, wanted(*ENTRIES))
    assert (finding.cause, finding.proved) == (Cause.UNKNOWN, False)
    assert finding.next.endswith("--log, --firmware and --uki")
    (finding,) = why(report, wanted(*ENTRIES), log=log)
    assert finding.next.endswith("--firmware and --uki")
    (finding,) = why(report, wanted(*ENTRIES), firmware=FD, uki=UKI)
    assert finding.next.endswith("--log")
    third = synthetic.uki({".cmdline": b"third"})
    (finding,) = why(
        report, wanted(*ENTRIES), log=log, firmware=unmeasured(FD)[:-1] + b"\1", uki=third
    )
    assert (finding.cause, finding.proved) == (Cause.UNKNOWN, False)
    assert finding.next.endswith("with --against")


def test_another_role() -> None:
    report, _ = started(OTHER_FD, OTHER_UKI)
    (finding,) = why(report, [*wanted(*ENTRIES), *known(*OTHERS)])
    assert (finding.cause, finding.proved, finding.entry) == (Cause.ROLE, True, 4)
    assert finding.message == "the image is the one for client, not for server"
    assert "MR_TD, RTMR1 and RTMR2" in finding.proof
    both = wanted(*ENTRIES, *OTHERS)
    assert causes(why(report, both)) == causes(why(report, both, role="client"))
    assert causes(why(report, both)) == [("match", True)]
    for listed in (both, wanted(*OTHERS)):
        (finding,) = why(report, listed, role="server")
        assert finding.message == "the image is the one for client, not for server"
        assert (finding.cause, finding.proved) == (Cause.ROLE, True)


def test_another_release() -> None:
    report, _ = started(OTHER_FD, OTHER_UKI)
    release = measured(OTHER_FD, OTHER_UKI)
    (finding,) = why(report, [*wanted(*ENTRIES), *known(*release)])
    assert (finding.cause, finding.proved) == (Cause.RELEASE, True)
    assert "known.json[0]" in finding.proof
    dev = [replace(entry, is_dev=True) for entry in release]
    assert causes(why(report, [*wanted(*ENTRIES), *known(*dev)])) == [("dev-image", True)]


def test_page_order_and_boot_path_by_other_entries() -> None:
    report, _ = started(host_profile=CANONICAL, boot_path=BootPath.ESP)
    listed = [*wanted(ENTRIES[0]), *known(*ENTRIES)]
    assert causes(why(report, listed)) == [("page-order", True), ("boot-path", True)]
    release = [replace(entry, uki_sha256=bytes(32)) for entry in ENTRIES]
    expected = [("release", True), ("page-order", True), ("boot-path", True)]
    assert causes(why(report, [*wanted(ENTRIES[0]), *known(*release)])) == expected
    # Each is listed, but not together: the nearest is that of the same host.
    two = [*wanted(ENTRIES[0], ENTRIES[3]), *known(*ENTRIES)]
    mixed, _ = started(host_profile=CANONICAL)
    (finding,) = why(mixed, two)
    assert finding.cause is Cause.BOOT_PATH


def test_the_firmware_of_another_entry() -> None:
    other = synthetic.Firmware(spare=()).build()
    found = [
        replace(entry, firmware_sha256=b"\1" * 32, mr_td=b"\2" * 48, host_profile=host)
        for entry, host in zip(ENTRIES, [*HostProfile] * 2, strict=True)
    ]
    report = replace(started()[0], mr_td=b"\2" * 48)
    findings = why(report, [*wanted(ENTRIES[0]), *known(found[0])], firmware=other)
    assert causes(findings) == [("firmware", True)]
    assert "of another entry" in findings[0].message


def test_an_mr_td_that_names_no_image_names_no_role() -> None:
    """An entry without bound firmware says nothing unless RTMR1 or RTMR2 is its."""
    report = replace(started()[0], rtmr1=b"\1" * 48, rtmr2=b"\2" * 48, mr_td=b"\3" * 48)
    loose = replace(OTHERS[0], binding=Binding.MRTD_RTMR, mr_td=b"\3" * 48)
    assert causes(why(report, [*wanted(*ENTRIES), *known(loose)])) == [("unknown", False)]
    bound = replace(loose, binding=Binding.MRTD_CFV)
    findings = why(report, [*wanted(*ENTRIES), *known(bound)])
    assert causes(findings) == [("role", True), ("uki", False)]
    # As a wanted entry it is the nearest all the same.
    assert causes(why(report, wanted(ENTRIES[0], loose))) == [("uki", False)]


def test_the_nearest_is_of_the_release_that_was_given() -> None:
    report = replace(started()[0], mr_td=bytes(48), rtmr1=bytes(48), rtmr2=bytes(48))
    listed = wanted(*ENTRIES, *OTHERS)
    assert nearest(report, listed) == 0
    assert nearest(report, listed, uki=OTHER_UKI) == 4
    assert nearest(report, listed, firmware=OTHER_FD, uki=OTHER_UKI) == 4
    assert nearest(report, listed, role="client") == 4


def test_lists_that_contradict_each_other() -> None:
    wrong = replace(ENTRIES[0], mr_td=bytes(48))
    (finding,) = why(started()[0], [*wanted(wrong), *known(ENTRIES[0])])
    assert (finding.cause, finding.proved) == (Cause.UNKNOWN, True)
    assert "contradict" in finding.message


def test_debug_is_all_that_counts() -> None:
    report, log = started(OTHER_FD, OTHER_UKI, attributes=1 | 1 << 28)
    assert causes(why(report, wanted(*ENTRIES), log=log)) == [("debug", True)]
    report, _ = started(attributes=2)
    assert causes(why(report, wanted(*ENTRIES))) == [("debug", True)]


def test_a_log_that_explains_nothing_is_refused_first() -> None:
    report, log = started(attributes=1)
    _, other = started(OTHER_FD, OTHER_UKI)
    with refused(EventLogRejected, "eventlog.rtmr0"):
        why(report, wanted(*ENTRIES), log=other)
    changed = [*log.events]
    changed[1] = replace(changed[1], data=changed[1].data[:-1] + b"\0")
    with refused(EventLogRejected, "eventlog.digest"):
        why(*booted(report, changed)[:1], wanted(*ENTRIES), log=booted(report, changed)[1])


def test_rtmr3_comes_on_top() -> None:
    report = replace(started()[0], rtmr3=b"\1" * 48)
    assert causes(why(report, wanted(*ENTRIES))) == [("rtmr3", True), ("match", True)]


def test_pinned_rtmr0() -> None:
    report, log = started()
    pinned = replace(ENTRIES[0], rtmr0=report.rtmr0)
    (finding,) = why(report, wanted(pinned))
    assert finding.cause is Cause.MATCH
    assert finding.proof.endswith("and RTMR0 too")
    other = replace(ENTRIES[0], rtmr0=bytes(48))
    (finding,) = why(report, wanted(other))
    assert (finding.cause, finding.proved) == (Cause.RTMR0, True)
    assert "--log names" in finding.next
    (finding,) = why(report, wanted(other), log=log)
    assert "EV_EFI_PLATFORM_FIRMWARE_BLOB2" in finding.message
    assert "more" not in finding.message
    assert "--log" not in finding.next
    # An entry without the pin is nearer.
    assert causes(why(report, wanted(other, ENTRIES[0]))) == [("match", True)]
    report, log = booted(report, [*log.events, *(event(0, 4, bytes(4)) for _ in range(18))])
    (finding,) = why(report, wanted(other), log=log)
    assert finding.message.endswith("and 1 more")


@pytest.mark.parametrize(
    ("changes", "window", "cause", "proof"),
    [
        ({"is_dev": True}, (0, None), "dev-image", "has is_dev"),
        ({"boot_proof": BootProof.SKIPPED}, (0, None), "boot-proof", "boot_proof skipped"),
        ({}, (NOW + 1, None), "future", "from 2027-01-15T08:00:01+00:00"),
        ({}, (0, NOW), "retired", "until 2027-01-15T08:00:00+00:00"),
        ({}, (NOW, NOW + 1), None, ""),
    ],
)
def test_entries_that_nobody_accepts(
    changes: dict[str, object], window: tuple[int, int | None], cause: str | None, proof: str
) -> None:
    entry: Measurement = replace(ENTRIES[0], **changes)  # type: ignore[arg-type]
    listed = [Candidate(entry, "list.json", 0, True, *window)]
    findings = why(started()[0], listed)
    assert causes(findings) == ([(cause, True)] if cause else []) + [("match", True)]
    assert proof in findings[0].proof
    # Also where something else has to be put right before.
    report, log = started(option_roms=(ROM,))
    expected = [("option-rom", True)] + ([(cause, True)] if cause else [])
    assert set(causes(why(report, listed, log=log))) == set(expected)
    # But nothing is said of an entry that the quote has nothing to do with.
    assert causes(why(started(OTHER_FD, OTHER_UKI)[0], listed)) == [("unknown", False)]


def test_secure_boot_off() -> None:
    """A firmware drops a store that it finds broken, and starts anything."""
    fd = b"\1" + FD[1:]
    report, log = started(fd)
    findings = why(report, wanted(*ENTRIES), log=log, firmware=fd)
    assert causes(findings) == [("secure-boot", True), ("firmware", True)]
    assert "SecureBoot" in findings[0].proof
    assert "its store admits no single image" in findings[1].message


def test_there_must_be_an_image_to_compare_with() -> None:
    process = replace(ENTRIES[0], binding=Binding.PROCESS)
    for listed in ([], wanted(process)):
        with refused(PolicyError, "explain.candidates"):
            why(started()[0], listed)
    assert causes(why(started()[0], wanted(process, ENTRIES[0]))) == [("match", True)]


@given(
    profile=st.sampled_from(HostProfile),
    boot_path=st.sampled_from(BootPath),
    roms=st.integers(0, 3),
    separators=st.sampled_from(SeparatorModel),
    bound=st.booleans(),
    image=st.sampled_from([None, UKI]),
)
def test_every_combination_of_inputs(
    profile: HostProfile,
    boot_path: BootPath,
    roms: int,
    separators: SeparatorModel,
    bound: bool,
    image: bytes | None,
) -> None:
    """All that was changed is named, nothing else is, and all of it is proved."""
    report, log = started(
        FD if bound else unmeasured(FD),
        host_profile=profile,
        boot_path=boot_path,
        option_roms=(ROM,) * roms,
        separators=separators,
    )
    changed = {
        "firmware-unbound": not bound,
        "page-order": profile is CANONICAL,
        "boot-path": boot_path is BootPath.ESP,
        "separator-model": separators is SeparatorModel.OLDER,
        "option-rom": roms > 0,
    }
    findings = why(report, wanted(ENTRIES[0]), log=log, firmware=FD, uki=image)
    expected = {cause for cause, was in changed.items() if was} or {"match"}
    assert {finding.cause.value for finding in findings} == expected
    assert all(finding.proved for finding in findings)
    assert [f.cause for f in findings].count(Cause.OPTION_ROM) == roms
