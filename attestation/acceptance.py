"""What a policy accepts as code, and which of it a TD report matches, or how it fails to.

Accepted is always a triple of MR_TD, RTMR1 and RTMR2, except where `UnsafeFirmwareOnly` says not.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from attestation.allowlist import AllowList, Entry, TcbPolicy, Window
from attestation.bundle import Role
from attestation.errors import PolicyError, TicketRejected
from attestation.measure.record import Binding, BootProof, Measurement, Measurements
from attestation.measure.rtmr import BootPath
from attestation.measure.tdvf import HostProfile
from attestation.moments import moment
from attestation.quote import Quote, TdReport


@dataclass(frozen=True, slots=True)
class UnsafeFirmwareOnly:
    """Accept every image that boots on a firmware of this MR_TD (48 bytes).

    MR_TD covers firmware pages only, and a stock firmware boots anything, so this names no code
    unless the firmware's policy is known to. Raises PolicyError for another length.
    """

    mr_td: bytes

    def __post_init__(self) -> None:
        register(self.mr_td, "MR_TD")


@dataclass(frozen=True, slots=True)
class Accepted:
    """One alternative: registers of 48 bytes (None: any value), and where they come from."""

    mr_td: bytes
    rtmr1: bytes | None = None
    rtmr2: bytes | None = None
    rtmr0: bytes | None = None
    entry: Entry | None = None
    tcb: TcbPolicy | None = None

    @classmethod
    def of_entry(cls, entry: Entry, tcb: TcbPolicy | None = None) -> "Accepted":
        """The triple of a measurement; `tcb` is the policy of the list that holds it."""
        found = entry.measurement
        return cls(found.mr_td, found.rtmr1, found.rtmr2, found.rtmr0, entry, tcb)


@dataclass(frozen=True, slots=True)
class Scope:
    """Which entries count: host profiles, boot paths, and whether this is a mock deployment."""

    profiles: frozenset[HostProfile]
    boot_paths: frozenset[BootPath]
    mock: bool


def alternatives(source: object) -> tuple[Accepted, ...]:
    """What an argument of `require_mrtd` accepts. Raises PolicyError."""
    match source:
        case Measurement():
            return (Accepted.of_entry(Entry(source)),)
        case Measurements():
            return tuple(Accepted.of_entry(Entry(entry)) for entry in source.entries)
        case AllowList():
            return tuple(Accepted.of_entry(entry, source.tcb) for entry in source.entries)
        case UnsafeFirmwareOnly():
            return (Accepted(source.mr_td),)
    bare = isinstance(source, bytes | bytearray | str)
    raise PolicyError(
        "an MR_TD alone names a firmware, not an image" if bare else "this is no measurement",
        expected="Measurements, a Measurement or an AllowList",
        got=type(source).__name__,
        rule="bare-mrtd" if bare else "measurement-type",
        hint="Measurements.load(path of measurements.json); if every image on that firmware is"
        " meant, UnsafeFirmwareOnly(mr_td)",
    )


def own(source: Measurement | Quote) -> Accepted:
    """What accepts peers that measure as this TD, or as the measurement of this process, does."""
    if isinstance(source, Measurement):
        return Accepted.of_entry(Entry(source))
    body = source.body
    return Accepted(body.mr_td, body.rtmr1, body.rtmr2)


def register(value: object, name: str) -> bytes:
    """`value`, if it is 48 bytes. Raises PolicyError."""
    if not isinstance(value, bytes) or len(value) != 48:
        raise PolicyError(
            f"{name} is wrong",
            expected="48 bytes",
            got=f"{len(value)} bytes" if isinstance(value, bytes) else type(value).__name__,
            rule="register",
            hint="bytes.fromhex(...) of 96 digits",
        )
    return value


def usable(accepted: Iterable[Accepted], scope: Scope) -> bool:
    """Whether any report could ever match."""
    return any(
        one.entry is None or not any(check(one.entry.measurement, scope) for check in _ENTRY_CHECKS)
        for one in accepted
    )


def matching(
    accepted: Iterable[Accepted], body: TdReport, role: Role, scope: Scope, now: int
) -> tuple[Accepted, ...]:
    """The alternatives that a report matches at `now` (Unix seconds), one at least.

    Raises TicketRejected by the rule at which the closest alternative fails.
    """
    everything = tuple(accepted)
    named = [one for one in everything if one.mr_td == body.mr_td]
    if not named:
        raise _unknown(everything, body)
    refusals = [_refusal(one, body, role, scope, now) for one in named]
    found = tuple(one for one, refusal in zip(named, refusals, strict=True) if refusal is None)
    if not found:
        raise max((r for r in refusals if r is not None), key=lambda r: r.checks_passed).error
    return found


@dataclass(frozen=True, slots=True)
class _Refusal:
    checks_passed: int
    error: TicketRejected


def _refusal(one: Accepted, body: TdReport, role: Role, scope: Scope, now: int) -> _Refusal | None:
    for passed, error in enumerate(_checks(one, body, role, scope, now)):
        if error is not None:
            return _Refusal(passed, error)
    return None


def _checks(
    one: Accepted, body: TdReport, role: Role, scope: Scope, now: int
) -> Iterator[TicketRejected | None]:
    yield _register_differs("rtmr1", one.rtmr1, body.rtmr1, one)
    yield _register_differs("rtmr2", one.rtmr2, body.rtmr2, one)
    yield _register_differs("rtmr0", one.rtmr0, body.rtmr0, one)
    if one.entry is not None:
        yield _image_role(one.entry.measurement, role)
        for check in _ENTRY_CHECKS:
            yield check(one.entry.measurement, scope)
        yield _window(one.entry, now)


_HINTS = {
    "rtmr0": "the host gave the TD other memory, CPUs or ACPI tables than the entry pins",
    "rtmr1": "the firmware is right, but it started the image in another way, or another image:"
    " compare boot path and option ROMs",
    "rtmr2": "the firmware is right, but it started another image, or with another command line",
}


def _register_differs(
    name: str, expected: bytes | None, got: bytes, one: Accepted
) -> TicketRejected | None:
    if expected is None or expected == got:
        return None
    return TicketRejected(
        f"MR_TD is that of {_name(one)}, but {name.upper()} differs",
        expected=expected.hex(),
        got=got.hex(),
        rule=name,
        hint=_HINTS[name],
    )


def _image_role(found: Measurement, role: Role) -> TicketRejected | None:
    # A sealer is any listed image that asks for its key.
    if role is Role.SEALER or found.role == role.name.lower():
        return None
    return TicketRejected(
        "the image is made for another role",
        expected=role.name.lower(),
        got=found.role,
        rule="image-role",
        hint="boot the image of the role that the ticket claims",
    )


def _profile(found: Measurement, scope: Scope) -> TicketRejected | None:
    if found.host_profile in scope.profiles:
        return None
    return TicketRejected(
        "the image runs on hosts of another profile",
        expected=" or ".join(sorted(scope.profiles)),
        got=found.host_profile,
        rule="host-profile",
        hint=f'to admit such hosts: .profiles("{found.host_profile}")',
    )


def _boot_path(found: Measurement, scope: Scope) -> TicketRejected | None:
    if found.boot_path in scope.boot_paths:
        return None
    return TicketRejected(
        "the image was started in another way",
        expected=" or ".join(sorted(scope.boot_paths)),
        got=found.boot_path,
        rule="boot-path",
        hint=f'to admit such boots: .boot_paths("{found.boot_path}")',
    )


def _process(found: Measurement, scope: Scope) -> TicketRejected | None:
    if found.binding is not Binding.PROCESS or scope.mock:
        return None
    return TicketRejected(
        "the entry names a program on a host, not an image",
        expected=f"{Binding.MRTD_CFV} or {Binding.MRTD_RTMR}",
        got=found.binding,
        rule="process",
        hint="such entries are for mock deployments",
    )


def _dev_image(found: Measurement, scope: Scope) -> TicketRejected | None:
    if not found.is_dev or scope.mock:
        return None
    return TicketRejected(
        "the image is a development image",
        expected="a production image",
        got=f"the development image for {found.role}",
        rule="dev-image",
        hint="build and boot the production image; this one is for mock deployments",
    )


def _boot_proof(found: Measurement, scope: Scope) -> TicketRejected | None:
    if found.boot_proof is BootProof.PASSED or scope.mock:
        return None
    return TicketRejected(
        "nobody saw the image's firmware refuse other images",
        expected=BootProof.PASSED,
        got=found.boot_proof,
        rule="boot-proof",
        hint="build again with the boot proof and list that measurement",
    )


_ENTRY_CHECKS = (_profile, _boot_path, _process, _dev_image, _boot_proof)


def _window(entry: Entry, now: int) -> TicketRejected | None:
    state = entry.window(now)
    if state is Window.OPEN:
        return None
    role = entry.measurement.role
    if state is Window.EARLY:
        return TicketRejected(
            f"the image for {role} is not accepted yet",
            expected=f"a time from {moment(entry.not_before).isoformat()}",
            got=moment(now).isoformat(),
            rule="not-yet-valid",
            hint="wait, or boot the release in force",
        )
    return TicketRejected(
        f"the image for {role} is retired",
        expected=f"a time before {moment(entry.retire_after or 0).isoformat()}",
        got=moment(now).isoformat(),
        rule="retired",
        hint="boot the newer release",
    )


def _unknown(accepted: tuple[Accepted, ...], body: TdReport) -> TicketRejected:
    known = sorted({one.mr_td.hex() for one in accepted})
    same = next((one for one in accepted if one.rtmr2 == body.rtmr2), None)
    if same is not None:
        hint = (
            f"RTMR2 is that of {_name(same)}: the same image on another firmware, or on a host of"
            " a profile that the measurements lack"
        )
    else:
        hint = (
            "no accepted image measures like this; if it is a release, add its measurements.json,"
            " or let the operators list it"
        )
    return TicketRejected(
        "MR_TD is unknown",
        expected=" or ".join(known[:3]) + (f" or {len(known) - 3} more" if len(known) > 3 else ""),
        got=body.mr_td.hex(),
        rule="mrtd",
        hint=hint,
    )


def _name(one: Accepted) -> str:
    if one.entry is None:
        return "an accepted TD"
    found = one.entry.measurement
    kind = "development image" if found.is_dev else "image"
    return f"the {kind} for {found.role} ({found.host_profile}, {found.boot_path})"
