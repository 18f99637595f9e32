"""What moved between two releases, and which recorded inputs moved it. Pure.

A cause is an input that the manifests or the lists of packages record and that differs. It is
`sure` if whatever it changes is in what a register covers, and a possibility otherwise: another
version of a tool, or another commit, need not change a byte. A register that moved without a sure
cause is `unexplained`; nothing is guessed. docs/what-changes-a-measurement.md has the rules.
"""

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum

from attestation.measure.record import Measurement
from release.build.deb import Deb
from release.build.packages import Packages
from release.build.wheels import Wheel
from release.errors import BuildRefused
from release.manifest import Manifest, RoleEntry


class Register(StrEnum):
    """A register that lists of accepted measurements pin."""

    MR_TD = "MR_TD"
    RTMR1 = "RTMR1"
    RTMR2 = "RTMR2"


ALL = frozenset(Register)
FIELDS = {Register.MR_TD: "mr_td", Register.RTMR1: "rtmr1", Register.RTMR2: "rtmr2"}


class Kind(StrEnum):
    """Kinds of inputs, in the order in which they are told."""

    VERSION = "version"
    SOURCE = "source commit"
    DISTRIBUTION = "distribution"
    EPOCH = "source epoch"
    COMPRESSION = "zstd level"
    FIRMWARE = "base firmware"
    KERNEL = "kernel"
    STUB = "systemd stub"
    PACKAGE = "package"
    WHEEL = "wheel"
    TOOL = "tool"


class Status(StrEnum):
    """What became of the image of a role."""

    ADDED = "added"
    REMOVED = "removed"
    SAME = "same"
    MOVED = "moved"


@dataclass(frozen=True, slots=True)
class Cause:
    """An input that differs. `before` or `after` is empty for what is new or gone."""

    kind: Kind
    name: str
    before: str
    after: str
    registers: frozenset[Register] = ALL
    sure: bool = True


@dataclass(frozen=True, slots=True)
class RoleChange:
    """What happened to the image of one role; `compared` says if its packages could be.

    `causes` are those that may have moved a register in `moved`.
    """

    role: str
    status: Status
    moved: tuple[Register, ...] = ()
    causes: tuple[Cause, ...] = ()
    compared: bool = True

    @property
    def unexplained(self) -> tuple[Register, ...]:
        """The registers that moved without a sure cause."""
        known = {register for cause in self.causes if cause.sure for register in cause.registers}
        return tuple(register for register in self.moved if register not in known)


def between(
    manifest: Manifest,
    previous: Manifest,
    packages: Mapping[str, object],
    previous_packages: Mapping[str, object],
) -> tuple[RoleChange, ...]:
    """What changed for each role of either release, by name.

    `packages` are decoded packages.json documents by role. One of the previous release that this
    version can't read is passed over, and the change says so; one of this release raises
    BuildRefused.
    """
    new = {entry.role: entry for entry in manifest.roles}
    old = {entry.role: entry for entry in previous.roles}
    result = []
    for role in sorted({*new, *old}):
        if role not in old:
            result.append(RoleChange(role, Status.ADDED))
        elif role not in new:
            result.append(RoleChange(role, Status.REMOVED))
        else:
            after = _parse(packages[role])
            try:
                before = _parse(previous_packages[role]) if role in previous_packages else None
            except BuildRefused:
                before = None
            result.append(_role(new[role], old[role], _inputs(manifest, previous), after, before))
    return tuple(result)


def _role(
    new: RoleEntry,
    old: RoleEntry,
    shared: Sequence[Cause],
    after: Packages,
    before: Packages | None,
) -> RoleChange:
    moved = _moved(new.measurements.entries, old.measurements.entries)
    if not moved:
        return RoleChange(new.role, Status.SAME)
    causes = [*shared, *(_packages(after, before) if before is not None else ())]
    order = list(Kind)
    relevant = sorted(
        (cause for cause in causes if cause.registers & set(moved)),
        key=lambda cause: (order.index(cause.kind), cause.name),
    )
    return RoleChange(new.role, Status.MOVED, moved, tuple(relevant), before is not None)


def _moved(new: Iterable[Measurement], old: Iterable[Measurement]) -> tuple[Register, ...]:
    sets = [{(one.host_profile, one.boot_path): one for one in each} for each in (new, old)]
    places = {*sets[0], *sets[1]}
    return tuple(
        register
        for register, field in FIELDS.items()
        if any(
            getattr(sets[0].get(place), field, None) != getattr(sets[1].get(place), field, None)
            for place in places
        )
    )


def _inputs(new: Manifest, old: Manifest) -> tuple[Cause, ...]:
    """The causes that all roles share."""
    pairs = (
        (Kind.VERSION, old.version, new.version, True),
        (Kind.SOURCE, old.commit, new.commit, False),
        (Kind.DISTRIBUTION, "-".join(old.distribution), "-".join(new.distribution), True),
        (Kind.EPOCH, str(old.source_date_epoch), str(new.source_date_epoch), True),
        (Kind.COMPRESSION, str(old.compress_level), str(new.compress_level), True),
    )
    return tuple(
        Cause(kind, str(kind), before, after, ALL, sure)
        for kind, before, after, sure in pairs
        if before != after
    )


def _packages(new: Packages, old: Packages) -> tuple[Cause, ...]:
    found = [
        Cause(_kind(name), name, before, after)
        for name, before, after in _differences(new.packages, old.packages)
    ]
    found += (
        Cause(Kind.WHEEL, name, before, after)
        for name, before, after in _differences(new.wheels, old.wheels)
    )
    sets = [dict(each.builder) for each in (new, old)]
    # The emulator only shows the boot: it writes no byte of an image.
    for group in sorted({*sets[0], *sets[1]} - {"emulator"}):
        for name, before, after in _differences(sets[0].get(group, ()), sets[1].get(group, ())):
            found.append(_tool(group, name, before, after))
    return tuple(found)


def _kind(name: str) -> Kind:
    return Kind.KERNEL if name.startswith("linux-image-") else Kind.PACKAGE


def _tool(group: str, name: str, before: str, after: str) -> Cause:
    if group == "firmware":
        return Cause(Kind.FIRMWARE, name, before, after, frozenset({Register.MR_TD}))
    if name == "systemd-boot-efi":
        # Code of the image that is in none of the sections that it measures itself.
        touched = frozenset({Register.MR_TD, Register.RTMR1})
        return Cause(Kind.STUB, name, before, after, touched)
    return Cause(Kind.TOOL, name, before, after, ALL, sure=False)


def _differences(
    new: Iterable[Deb | Wheel], old: Iterable[Deb | Wheel]
) -> list[tuple[str, str, str]]:
    """Name, version before, version after of what differs in its bytes, by name."""
    after, before = _by_name(new), _by_name(old)
    found = []
    for name in sorted({*after, *before}):
        one, other = after.get(name), before.get(name)
        if one is None or other is None:
            found.append((name, other.version if other else "", one.version if one else ""))
        elif one.sha256 != other.sha256:
            same = " (other bytes)" if one.version == other.version else ""
            found.append((name, other.version, one.version + same))
    return found


def _by_name(items: Iterable[Deb | Wheel]) -> dict[str, Deb | Wheel]:
    return {item.name: item for item in items}


def _parse(document: object) -> Packages:
    """A decoded packages.json, through the one parser that there is. Raises BuildRefused."""
    return Packages.loads((json.dumps(document, indent=1, sort_keys=True) + "\n").encode())
