"""Which events of a boot make another RTMR1 or RTMR2.

An edit of the log (an event less, a separator more, the image at another place) whose replay is the
entry's value proves that nothing else differs. What an event is called, and its type, are the log's
own words unless its digest is that of its data: only the digest is measured.
"""

import hashlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from difflib import SequenceMatcher
from itertools import combinations

from attestation.measure import eventlog_events as types
from attestation.measure import rtmr
from attestation.measure.eventlog import Backing, LogEvent, backing
from attestation.measure.explain_types import NEXT, Candidate, Cause, Evidence, Finding
from attestation.measure.pe import Pe
from attestation.measure.rtmr import BootPath
from attestation.quote import TdReport

Target = tuple[int, Candidate]  # with the index of the candidate

_SEPARATOR = hashlib.sha384(bytes(4)).digest()
_MAX_SEARCHED = 48  # events; the search takes a second then
_MAX_COMPARED = 512

_OLD_EDK2 = "an edk2 before edk2-stable202411 measures no separator into RTMR1"


@dataclass(frozen=True, slots=True)
class _Edit:
    """How the log gets to be that of an entry: `extra` out, `missing` in, the image moved."""

    path: BootPath
    extra: tuple[LogEvent, ...]
    missing: tuple[str, ...]
    moved: bool = False
    places: int = 0

    @property
    def cost(self) -> tuple[int, int]:
        """Events that change, then places where."""
        return len(self.extra) + len(self.missing) + self.moved, self.places


def rtmr1(
    report: TdReport, targets: Mapping[BootPath, Target], evidence: Evidence
) -> Iterator[Finding]:
    """Why RTMR1 is none of the targets', which are entries of one image by boot path.

    Raises PeFormatError, UkiRejected.
    """
    uki, log = evidence.uki, evidence.log
    entry = next(iter(targets.values()))[0]
    predicted = {} if uki is None else {path: rtmr.rtmr1_events(uki, path) for path in BootPath}
    values = {path: rtmr.replay(events) for path, events in predicted.items()}
    is_own = any(values.get(path) == c.measurement.rtmr1 for path, (_, c) in targets.items())
    started = next((path for path, value in values.items() if value == report.rtmr1), None)
    if started is not None and uki is not None:
        yield _started(started, targets, uki, is_own=is_own)
        return
    edit = None
    if log is not None:
        events = log.of_rtmr(1)
        wanted = {c.measurement.rtmr1: path for path, (_, c) in targets.items()}
        edit = _compared(predicted, events, targets) if is_own else _searched(events, wanted)
    elif is_own:
        edit = _old_separators(predicted, report.rtmr1)
    if edit is not None:
        yield from _named(edit, targets)
        return
    yield Finding(
        Cause.UNKNOWN,
        "rtmr1",
        "RTMR1 is of no entry: another image, another boot path, an option ROM, or a firmware with"
        " another event model",
        "",
        "give the TD's event log with --log, and the image of the release with --uki",
        entry,
    )


def rtmr2(report: TdReport, target: Target, evidence: Evidence) -> Iterator[Finding]:
    """Why RTMR2 is not the target's. Raises PeFormatError, UkiRejected."""
    entry, candidate = target
    uki, log = evidence.uki, evidence.log
    predicted = () if uki is None else rtmr.rtmr2_events(uki)
    value = rtmr.replay(predicted)
    is_own = uki is not None and value == candidate.measurement.rtmr2
    if uki is not None and value == report.rtmr2:
        yield Finding(
            Cause.UKI,
            "rtmr2",
            "the TD booted the given image, which is not the entry's",
            f"RTMR2 is that of the given image ({_name(uki)})",
            "start the image of the release; to see what differs, give that one with --uki",
            entry,
        )
        return
    events = () if log is None else log.of_rtmr(2)
    if is_own and uki is not None and log is not None and len(events) <= _MAX_COMPARED:
        yield _contents(predicted, events, uki, entry)
        return
    path = candidate.measurement.boot_path
    wanted = {} if is_own else {candidate.measurement.rtmr2: path}
    edit = _searched(events, wanted)
    if edit is not None:
        yield from _named(edit, {path: target}, "rtmr2")
        return
    yield Finding(
        Cause.UKI,
        "rtmr2",
        "RTMR2 is of no entry: another image or command line, or files beside the image",
        "",
        "give the image of the release with --uki and the TD's event log with --log",
        entry,
    )


def secure_boot_off(events: Iterable[LogEvent]) -> LogEvent | None:
    """The event by which a firmware measures that Secure Boot is off."""
    for event in events:
        parsed = types.variable(event.data)
        if (
            event.kind == types.EV_EFI_VARIABLE_DRIVER_CONFIG
            and parsed is not None
            and (parsed.vendor, parsed.name) == (types.GLOBAL_VARIABLE, "SecureBoot")
            and not any(parsed.value)
        ):
            return event
    return None


def shown(event: LogEvent) -> str:
    """An event for people."""
    return f"event {event.number} {event.name} ({event.description})"


def _started(
    path: BootPath, targets: Mapping[BootPath, Target], uki: Pe, *, is_own: bool
) -> Finding:
    entry, target = next(iter(targets.values()))
    proof = f"RTMR1 is that of the given image ({_name(uki)}) for boot path {path}"
    if is_own:
        proof += f"; for {target.measurement.boot_path} it is that of {target.name}"
        cause, message = Cause.BOOT_PATH, f"the image was started by boot path {path}"
    else:
        cause, message = Cause.UKI, "the TD started the given image, which is not the entry's"
    return Finding(cause, "rtmr1", message, proof, NEXT[cause], entry)


def _old_separators(
    predicted: Mapping[BootPath, Sequence[rtmr.Event]], value: bytes
) -> _Edit | None:
    """Without a log: the one edit that can be foreseen."""
    for path, events in predicted.items():
        if rtmr.replay(e for e in events if e.digest != _SEPARATOR) == value:
            return _Edit(path, (), ("separator",))
    return None


def _compared(
    predicted: Mapping[BootPath, Sequence[rtmr.Event]],
    events: Sequence[LogEvent],
    targets: Mapping[BootPath, Target],
) -> _Edit | None:
    """The smallest difference between the log and what the image is known to give."""
    if len(events) > _MAX_COMPARED:
        return None
    edits = [_difference(model, events, path) for path, model in predicted.items()]
    return min(edits, key=lambda edit: (edit.cost, edit.path not in targets))


def _difference(
    predicted: Sequence[rtmr.Event], events: Sequence[LogEvent], path: BootPath = BootPath.KERNEL
) -> _Edit:
    matcher = SequenceMatcher(
        None, [e.digest for e in predicted], [e.digest for e in events], autojunk=False
    )
    extra: list[LogEvent] = []
    missing: list[str] = []
    changes = [code for code in matcher.get_opcodes() if code[0] != "equal"]
    for _, i1, i2, j1, j2 in changes:
        missing += [event.description for event in predicted[i1:i2]]
        extra += events[j1:j2]
    return _Edit(path, tuple(extra), tuple(missing), places=len(changes))


def _searched(events: Sequence[LogEvent], wanted: Mapping[bytes, BootPath]) -> _Edit | None:
    """The smallest edit whose replay is a wanted value."""
    if not wanted or len(events) > _MAX_SEARCHED:
        return None
    found: list[_Edit] = []
    for extra, inserted, moved, digests in _edits(events):
        path = wanted.get(_replay(digests))
        if path is not None:
            found.append(_Edit(path, extra, ("separator",) if inserted else (), moved))
    return min(found, key=lambda edit: edit.cost, default=None)


def _edits(
    events: Sequence[LogEvent],
) -> Iterator[tuple[tuple[LogEvent, ...], bool, bool, list[bytes]]]:
    """What goes out, whether a separator comes in, whether the image moves, and the result."""
    drivers = tuple(e for e in events if e.kind == types.EV_EFI_BOOT_SERVICES_DRIVER)
    for extra in dict.fromkeys([(), drivers, *((event,) for event in events)]):
        rest = [event for event in events if event not in extra]
        digests = [event.digest for event in rest]
        images = [e.digest for e in rest if e.kind == types.EV_EFI_BOOT_SERVICES_APPLICATION]
        yield extra, False, False, digests
        for inserted in _inserted(digests, _SEPARATOR):
            yield extra, True, False, inserted
        for image in images[:1]:
            others = list(digests)
            others.remove(image)
            for moved in _inserted(others, image):
                yield extra, False, True, moved
                # Not for each single event: that would take minutes.
                for both in _inserted(moved, _SEPARATOR) if extra in {(), drivers} else ():
                    yield extra, True, True, both
    for extra in combinations(events, 2):
        yield extra, False, False, [event.digest for event in events if event not in extra]


def _inserted(digests: Sequence[bytes], digest: bytes) -> Iterator[list[bytes]]:
    for at in range(len(digests) + 1):
        yield [*digests[:at], digest, *digests[at:]]


def _named(
    edit: _Edit, targets: Mapping[BootPath, Target], register: str = "rtmr1"
) -> Iterator[Finding]:
    """A finding for each part of an edit."""
    entry, target = targets.get(edit.path, next(iter(targets.values())))
    proof = f"{_steps(edit)}, the TD's events give exactly {register.upper()} of {target.name}"

    def finding(cause: Cause, message: str, event: LogEvent | None = None) -> Finding:
        word = ""
        if event is not None and backing(event) is Backing.CONTENT:
            word = f"; what event {event.number} is, only the log says"
        return Finding(cause, register, message, proof + word, NEXT[cause], entry)

    extra, missing = list(edit.extra), list(edit.missing)
    if "UKI" in missing:
        missing.remove("UKI")
        images = [e for e in extra if e.kind == types.EV_EFI_BOOT_SERVICES_APPLICATION]
        extra = [event for event in extra if event not in images[:1]]
        other = shown(images[0]) if images else "nothing"
        yield finding(Cause.UKI, f"the firmware started another image: {other}")
    if edit.moved or edit.path not in targets:
        yield finding(
            Cause.BOOT_PATH, "the firmware started the image at another point, by another boot path"
        )
    if "separator" in missing:
        missing.remove("separator")
        yield finding(Cause.SEPARATOR_MODEL, f"RTMR1 lacks the separator: {_OLD_EDK2}")
    for event in extra:
        if event.digest == _SEPARATOR:
            yield finding(Cause.SEPARATOR_MODEL, f"RTMR1 has one separator more: {shown(event)}")
        elif event.kind == types.EV_EFI_BOOT_SERVICES_DRIVER:
            message = f"a driver of a device ran before the image: {shown(event)}"
            yield finding(Cause.OPTION_ROM, message, event)
        else:
            message = f"something else was measured: {shown(event)}"
            yield finding(Cause.EXTRA_EVENT, message, event)
    for name in missing:
        yield finding(Cause.MISSING_EVENT, f"the log lacks an event: {name}")


def _steps(edit: _Edit) -> str:
    steps = []
    if edit.extra:
        steps.append("without " + ", ".join(f"event {event.number}" for event in edit.extra))
    if edit.missing:
        names = {"UKI": "the image of the release", "separator": "a separator"}
        steps.append("with " + ", ".join(names.get(name, f"'{name}'") for name in edit.missing))
    if edit.moved:
        steps.append("with the image at another place")
    return " and ".join(steps) or "in the order of the other boot path"


def _contents(
    predicted: Sequence[rtmr.Event], events: Sequence[LogEvent], uki: Pe, entry: int
) -> Finding:
    """The parts of the image in which the log differs from the release's."""
    edit = _difference(predicted, events)
    known = (
        f"RTMR2 of the given image ({_name(uki)}) is the entry's, the log replays to the quote's"
    )
    extra = ", ".join(map(shown, edit.extra))
    if not edit.missing:
        return Finding(
            Cause.EXTRA_EVENT,
            "rtmr2",
            f"something beside the image was measured: {extra}",
            f"{known}; without these events they are equal",
            NEXT[Cause.EXTRA_EVENT],
            entry,
        )
    names = dict.fromkeys(name.removesuffix(" name") for name in edit.missing)
    return Finding(
        Cause.UKI,
        "rtmr2",
        f"the image differs from the release's in {', '.join(names)}",
        f"{known}; they differ in {extra or 'what the log lacks'}, and nowhere else",
        NEXT[Cause.UKI],
        entry,
    )


def _replay(digests: Iterable[bytes]) -> bytes:
    return rtmr.replay(rtmr.Event(0, "", digest) for digest in digests)


def _name(uki: Pe) -> str:
    return f"sha256 {hashlib.sha256(uki.data).hexdigest()[:16]}"
