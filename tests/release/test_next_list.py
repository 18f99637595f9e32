"""The list after the one in force: what comes, what ends, and what no list may do."""

from dataclasses import replace

import pytest

from attestation.allowlist import AllowList, Entry, TcbPolicy
from attestation.measure.record import BootProof, Measurement, Measurements
from attestation.verify import TcbStatus
from release.errors import ReleaseRejected
from release.manifest import Manifest
from release.next_list import Plan, following
from release.verify_files import Opened
from tests.release.small import refused

NOW, LATER = 1_800_000_000, 1_900_000_000
DEPLOYMENT = b"d" * 32


def of(manifest: Manifest, role: str | None = None) -> list[Measurement]:
    return [
        one
        for entry in manifest.roles
        for one in entry.measurements.entries
        if role in {None, entry.role}
    ]


@pytest.fixture
def new(released: Opened) -> Manifest:
    return released.manifest


@pytest.fixture
def old(released: Opened) -> Manifest:
    """The release before, with other images of all roles."""
    roles = tuple(
        replace(
            entry,
            measurements=Measurements(
                tuple(
                    replace(one, mr_td=bytes(a ^ 1 for a in one.mr_td))
                    for one in entry.measurements.entries
                )
            ),
        )
        for entry in released.manifest.roles
    )
    return replace(released.manifest, version="1.2.2", roles=roles)


@pytest.fixture
def force(old: Manifest) -> AllowList:
    """The list in force: all of the old release."""
    tcb = TcbPolicy(grace=((TcbStatus("OutOfDate"), LATER),), min_evaluation_number=17)
    return AllowList(4, DEPLOYMENT, NOW - 9, tuple(map(Entry, of(old))), tcb)


def ends(made: AllowList) -> dict[Measurement, int | None]:
    return {entry.measurement: entry.retire_after for entry in made.entries}


def test_new_in_and_old_out_at_a_date(force: AllowList, old: Manifest, new: Manifest) -> None:
    made = following(force, Plan((old, new), {"1.2.2": LATER}), NOW)
    assert (made.number, made.deployment_id, made.issued_at) == (5, DEPLOYMENT, NOW)
    assert made.tcb == force.tcb
    assert ends(made) == dict.fromkeys(of(old), LATER) | dict.fromkeys(of(new))
    # Once the nodes have moved.
    last = following(made, Plan((old, new), revoke=("1.2.2",)), NOW + 9)
    assert (last.number, ends(last)) == (6, dict.fromkeys(of(new)))


def test_the_first_list(new: Manifest) -> None:
    made = following(None, Plan((new,), deployment_id=DEPLOYMENT), NOW)
    assert (made.number, made.tcb) == (1, TcbPolicy())
    assert following(None, Plan((new,), number=9, deployment_id=DEPLOYMENT), NOW).number == 9
    with refused(ReleaseRejected, "allow-list.deployment"):
        following(None, Plan((new,)), NOW)
    with refused(ReleaseRejected, "allow-list.empty"):
        following(None, Plan((), deployment_id=DEPLOYMENT), NOW)


def test_what_two_releases_have_stays(force: AllowList, old: Manifest) -> None:
    again = replace(old, version="1.2.3")
    made = following(force, Plan((old, again), {"1.2.2": LATER}), NOW)
    assert ends(made) == dict.fromkeys(of(old))
    with refused(ReleaseRejected, "allow-list.empty"):
        following(force, Plan((old, again), revoke=("1.2.2",)), NOW)


def test_an_entry_that_pins_rtmr0_is_not_widened(old: Manifest, new: Manifest) -> None:
    pinned = [replace(one, rtmr0=b"h" * 48) for one in of(old)]
    force = AllowList(1, DEPLOYMENT, 0, tuple(map(Entry, pinned)), TcbPolicy())
    made = following(force, Plan((old, new), {"1.2.2": LATER}), NOW)
    assert ends(made) == dict.fromkeys(pinned, LATER) | dict.fromkeys(of(new))


def test_an_end_is_never_moved_to_later(force: AllowList, old: Manifest, new: Manifest) -> None:
    made = following(force, Plan((old, new), {"1.2.2": LATER}), NOW)
    later = following(made, Plan((old, new), {"1.2.2": LATER + 1}), NOW)
    assert ends(later) == ends(made)
    earlier = following(made, Plan((old, new), {"1.2.2": LATER - 1}), NOW)
    assert set(ends(earlier).values()) == {LATER - 1, None}


def test_one_mr_td_is_revoked(force: AllowList, old: Manifest, new: Manifest) -> None:
    both = following(force, Plan((old, new)), NOW)
    bad = of(old, "server")[0].mr_td
    made = following(both, Plan((), revoke=(bad.hex(),)), NOW)
    assert made.entries == tuple(e for e in both.entries if e.measurement.mr_td != bad)
    with refused(ReleaseRejected, "allow-list.revoke"):
        following(both, Plan((), revoke=("0" * 96,)), NOW)


def test_no_live_image_of_a_role_is_left(force: AllowList, old: Manifest, new: Manifest) -> None:
    servers = tuple({one.mr_td.hex() for one in of(old, "server")})
    # Its successor runs nowhere yet.
    with refused(ReleaseRejected, "allow-list.drops-live", "server"):
        following(force, Plan((new,), revoke=servers), NOW)
    with refused(ReleaseRejected, "allow-list.drops-live"):
        following(force, Plan((old, new), revoke=("1.2.2",)), NOW)
    with refused(ReleaseRejected, "allow-list.retires-live"):
        following(force, Plan((old,), {"1.2.2": LATER}), NOW)
    both = following(force, Plan((old, new)), NOW)
    with refused(ReleaseRejected, "allow-list.retires-live"):
        following(both, Plan((old, new), {"1.2.2": LATER, "1.2.3": LATER}), NOW)


def test_what_is_over_counts_for_nothing(force: AllowList, old: Manifest, new: Manifest) -> None:
    over = replace(force, entries=tuple(Entry(one, 0, NOW) for one in of(old)))
    made = following(over, Plan((old, new), revoke=("1.2.2",)), NOW)
    assert ends(made) == dict.fromkeys(of(new))


@pytest.mark.parametrize("number", [1, 4])
def test_numbers_go_up(force: AllowList, old: Manifest, number: int) -> None:
    with refused(ReleaseRejected, "allow-list.number", "above 4"):
        following(force, Plan((old,), number=number), NOW)
    assert following(force, Plan((old,), number=6), NOW).number == 6


def test_what_production_does_not_take(force: AllowList, new: Manifest) -> None:
    (one, *_) = force.entries
    for rule, bad in (
        ("is-dev", replace(one.measurement, is_dev=True)),
        ("boot-proof", replace(one.measurement, boot_proof=BootProof.SKIPPED)),
    ):
        before = replace(force, entries=(*force.entries, Entry(bad)))
        with refused(ReleaseRejected, f"allow-list.{rule}", bad.mr_td.hex()):
            following(before, Plan((new,)), NOW)


def test_plans_that_make_no_sense(force: AllowList, old: Manifest, new: Manifest) -> None:
    for rule, plan in (
        ("release-twice", Plan((old, old))),
        ("unknown-release", Plan((new,), {"1.2.2": LATER})),
        ("unknown-release", Plan((new,), revoke=("1.2.2",))),
        ("retire-revoke", Plan((old, new), {"1.2.2": LATER}, ("1.2.2",))),
        ("retire-past", Plan((old, new), {"1.2.2": NOW})),
        ("deployment", Plan((new,), deployment_id=bytes(32))),
    ):
        with refused(ReleaseRejected, f"allow-list.{rule}"):
            following(force, plan, NOW)
