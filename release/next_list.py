"""The list after the one in force: new images in, old ones out at a date, bad ones out now. Pure.

A list may not take the ground from under those who run: for each role, an image that is accepted
now stays accepted, and one stays without an end. So a change of images takes two lists, one that
adds, and one that drops once the nodes have moved.
"""

import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import NoReturn

from attestation.allowlist import AllowList, Entry, TcbPolicy, Window
from attestation.measure.record import BootProof, Measurement
from release.errors import ReleaseRejected
from release.manifest import Manifest

_MR_TD = re.compile(r"[0-9a-f]{96}")


@dataclass(frozen=True, slots=True)
class Plan:
    """What to change. `retire` maps versions to Unix seconds; `revoke` has versions and MR_TDs.

    Versions are of `releases`; an MR_TD has 96 hex digits. `number` and `deployment_id` (32 bytes)
    are None if they follow from the list before.
    """

    releases: tuple[Manifest, ...]
    retire: Mapping[str, int] = field(default_factory=dict)
    revoke: tuple[str, ...] = ()
    number: int | None = None
    deployment_id: bytes | None = None


def following(previous: AllowList | None, plan: Plan, now: int) -> AllowList:
    """The list after `previous` (None: the first one), issued at `now` in Unix seconds.

    Raises ReleaseRejected by the rule `allow-list.…` that the plan breaks, AllowListRejected.
    """
    _check_plan(plan, now)
    number, deployment_id = _identity(previous, plan)
    before = () if previous is None else previous.entries
    entries = [_retired(entry, plan) for entry in (*before, *_added(before, plan))]
    gone = _revoked(entries, plan)
    kept = tuple(entry for entry in entries if entry.measurement not in gone)
    _check_entries(before, kept, now)
    tcb = TcbPolicy() if previous is None else previous.tcb
    return AllowList(number, deployment_id, now, kept, tcb)


def _check_plan(plan: Plan, now: int) -> None:
    known = [release.version for release in plan.releases]
    if len(set(known)) != len(known):
        _refuse("release-twice", "each release once", ", ".join(known))
    named = {*plan.retire, *(one for one in plan.revoke if not _MR_TD.fullmatch(one))}
    if unknown := sorted(named - set(known)):
        _refuse("unknown-release", ", ".join(known) or "a --release", ascii(unknown[0])[:100])
    if both := sorted(set(plan.retire) & set(plan.revoke)):
        _refuse("retire-revoke", "one of both", both[0])
    for version, when in plan.retire.items():
        if when <= now:
            _refuse("retire-past", f"{version} to end after {now}", str(when))


def _identity(previous: AllowList | None, plan: Plan) -> tuple[int, bytes]:
    deployment_id = plan.deployment_id
    if previous is None:
        if deployment_id is None:
            _refuse("deployment", "--deployment for a first list", "none")
        return (1 if plan.number is None else plan.number), deployment_id
    if deployment_id not in {None, previous.deployment_id}:
        assert deployment_id is not None
        _refuse("deployment", previous.deployment_id.hex(), deployment_id.hex())
    number = previous.number + 1 if plan.number is None else plan.number
    if number <= previous.number:
        _refuse("number", f"a number above {previous.number}", str(number))
    return number, previous.deployment_id


def _added(before: Sequence[Entry], plan: Plan) -> list[Entry]:
    """Entries for what is not on the list. One that pins RTMR0 is there: it is not widened."""
    there = {_unpinned(entry.measurement) for entry in before}
    wanted = dict.fromkeys(
        one for release in plan.releases for one in _measurements(release) if one not in there
    )
    return [Entry(one) for one in wanted]


def _retired(entry: Entry, plan: Plan) -> Entry:
    """The entry with its end, if all releases here that have its image retire."""
    owners = _owners(entry, plan)
    if not owners or not owners <= set(plan.retire):
        return entry
    ends = [plan.retire[version] for version in owners]
    if entry.retire_after is not None:
        # An end that operators have signed is never moved to later.
        return replace(entry, retire_after=min(entry.retire_after, max(ends)))
    return replace(entry, retire_after=max(ends))


def _revoked(entries: Collection[Entry], plan: Plan) -> set[Measurement]:
    """What goes now, whoever else has it. Raises ReleaseRejected if that is nothing."""
    gone = set()
    for name in plan.revoke:
        matching = {
            entry.measurement
            for entry in entries
            if name == entry.measurement.mr_td.hex() or name in _owners(entry, plan)
        }
        if not matching:
            _refuse("revoke", "an MR_TD of the list, or a release", name)
        gone |= matching
    return gone


def _owners(entry: Entry, plan: Plan) -> set[str]:
    image = _unpinned(entry.measurement)
    return {release.version for release in plan.releases if image in _measurements(release)}


def _measurements(release: Manifest) -> list[Measurement]:
    return [_unpinned(one) for entry in release.roles for one in entry.measurements.entries]


def _unpinned(measurement: Measurement) -> Measurement:
    return replace(measurement, rtmr0=None)


def _check_entries(before: Sequence[Entry], after: Sequence[Entry], now: int) -> None:
    if not after:
        _refuse("empty", "one entry or more", "none")
    for entry in after:
        one = entry.measurement
        if one.is_dev:
            _refuse("is-dev", "images of production", f"{one.role} {one.mr_td.hex()}, is_dev")
        if one.boot_proof is not BootProof.PASSED:
            _refuse("boot-proof", "boot_proof passed", f"{one.role} {one.mr_td.hex()}")
    live = _live(before, now)
    for role in sorted({entry.measurement.role for entry in live}):
        was = {entry.measurement for entry in live if entry.measurement.role == role}
        left = {entry.measurement for entry in _live(after, now)}
        if not was & left:
            _refuse("drops-live", f"an image of {role} that is accepted now to stay", "none")
    for role in sorted({entry.measurement.role for entry in (*live, *after)}):
        ends = [entry.retire_after for entry in after if entry.measurement.role == role]
        if None not in ends:
            _refuse("retires-live", f"an image of {role} without an end", f"{len(ends)} that end")


def _live(entries: Sequence[Entry], now: int) -> list[Entry]:
    return [entry for entry in entries if entry.window(now) is Window.OPEN]


_HINTS = {
    "drops-live": "sign a list that adds the new image first, and revoke when nodes run it",
    "retires-live": "add the image that follows it with --release",
    "unknown-release": "name the folder of every version with --release",
    "is-dev": "revoke it by its MR_TD; mock deployments use `zipnet admin allow-list new`",
    "number": "leave --number out",
    "retire-past": "use --revoke for what ends now",
}


def _refuse(rule: str, expected: str, got: str) -> NoReturn:
    raise ReleaseRejected(
        f"this list would be wrong: {rule}",
        expected=expected,
        got=got,
        rule=f"allow-list.{rule}",
        hint=_HINTS.get(rule, "check the options"),
    )
