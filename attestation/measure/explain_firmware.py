"""Which firmware, or which host, gives another MR_TD."""

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from attestation.errors import AttestationError, FirmwareFormatError
from attestation.measure import authenticode, tdvf, varstore
from attestation.measure import eventlog_events as types
from attestation.measure import firmware as binding
from attestation.measure.eventlog import EventLog
from attestation.measure.explain_types import NEXT, Candidate, Cause, Evidence, Finding
from attestation.measure.pe import Pe
from attestation.measure.tdvf import ATTRIBUTES_AT, MR_EXTEND, PageOrder, SectionType, Tdvf
from attestation.quote import TdReport

_SHA256_SIZE = 32


@dataclass(frozen=True, slots=True)
class _Variant:
    """A firmware that can be made from the given file, and its MR_TD for each page order."""

    what: str
    measured: bool  # the variable store
    mr_td: dict[PageOrder, bytes]
    image: bytes | None = None  # Authenticode SHA-256 to which it was bound here


def mr_td(report: TdReport, target: Candidate, entry: int, evidence: Evidence) -> Iterator[Finding]:
    """Why MR_TD is not the target's. Raises FirmwareFormatError, FirmwareRejected."""
    fd = evidence.firmware
    if fd is None:
        yield _unknown(
            "MR_TD is of no entry: another firmware, one whose store the host does not measure, or"
            " a host that adds pages in another order",
            "give the firmware of the release with --firmware",
            entry,
        )
        return
    order = target.measurement.host_profile.page_order
    variants = []
    for variant in _variants(fd, evidence):
        variants.append(variant)
        found = [o for o, value in variant.mr_td.items() if value == report.mr_td]
        if not found:
            continue
        is_targets = variant.mr_td[order] == target.measurement.mr_td
        if not is_targets:
            yield _firmware(variant, found[0], fd, evidence, entry)
        if order not in found:
            yield _page_order(variant, found[0], order, target, entry, is_targets)
        return
    yield _other(fd, target, variants, evidence.log, entry)


def _variants(fd: bytes, evidence: Evidence) -> Iterator[_Variant]:
    def variant(what: str, made: bytes, *, measured: bool, image: bytes | None = None) -> _Variant:
        return _Variant(what, measured, {o: tdvf.mr_td(made, o) for o in PageOrder}, image)

    stores = [section for section in Tdvf.parse(fd).of_type(SectionType.CFV) if section.measured]
    yield variant("the given firmware", fd, measured=bool(stores))
    if stores:
        plain = bytearray(fd)
        for section in stores:
            at = section.entry_offset + ATTRIBUTES_AT
            attributes = section.attributes & ~MR_EXTEND
            plain[at : at + 4] = attributes.to_bytes(4, "little")
        what = "the given firmware without MR_EXTEND on its variable store"
        yield variant(what, bytes(plain), measured=False)
    own = None if evidence.uki is None else authenticode.digest(evidence.uki)
    for image in sorted(_admitted(evidence.log) | ({own} if own else set())):
        try:
            bound = binding.bind_digests(fd, [image])
        except AttestationError:
            return  # a firmware that can't be bound explains nothing by this
        origin = "the given image" if image == own else f"the image {image.hex()} of the log's db"
        what = f"the given firmware, bound to {origin}"
        yield variant(what, bound, measured=True, image=image)


def _firmware(
    variant: _Variant, order: PageOrder, fd: bytes, evidence: Evidence, entry: int
) -> Finding:
    proof = f"MR_TD is that of {variant.what} ({_name(fd)}) in {order} order"
    if not variant.measured:
        return Finding(
            Cause.FIRMWARE_UNBOUND,
            "mr_td",
            "the TD started on a firmware whose variable store MR_TD does not cover: the host may"
            " put any Secure Boot policy there, and MR_TD names no image",
            proof,
            NEXT[Cause.FIRMWARE_UNBOUND],
            entry,
        )
    if variant.image is not None:
        return Finding(
            Cause.UKI,
            "mr_td",
            f"the firmware is bound to another image than the entry's: it admits"
            f" {variant.image.hex()} only",
            proof,
            NEXT[Cause.UKI],
            entry,
        )
    return Finding(
        Cause.FIRMWARE,
        "mr_td",
        f"the TD started on another firmware than the entry's; {_policy(fd, evidence.uki)}",
        proof,
        NEXT[Cause.FIRMWARE],
        entry,
    )


def _page_order(
    variant: _Variant,
    found: PageOrder,
    order: PageOrder,
    target: Candidate,
    entry: int,
    is_targets: bool,
) -> Finding:
    proof = f"MR_TD is that of {variant.what} in {found} order"
    if is_targets:
        proof += f"; in {order} order it is that of {target.name}"
    return Finding(
        Cause.PAGE_ORDER,
        "mr_td",
        f"the host adds pages in {found} order, the entry is for hosts with {order} order",
        proof,
        NEXT[Cause.PAGE_ORDER],
        entry,
    )


def _other(
    fd: bytes,
    target: Candidate,
    variants: Sequence[_Variant],
    log: EventLog | None,
    entry: int,
) -> Finding:
    """MR_TD is nothing that can be made from the given file."""
    order = target.measurement.host_profile.page_order
    own = next((v.what for v in variants if v.mr_td[order] == target.measurement.mr_td), None)
    if own is None:
        return _unknown(
            f"the given firmware ({_name(fd)}) has neither the quote's MR_TD nor the entry's",
            "give the .fd of the release, or the one that the host starts, with --firmware",
            entry,
        )
    logged = _logged_store(log)
    stores = {
        hashlib.sha384(fd[section.data_offset : section.data_end]).digest()
        for section in Tdvf.parse(fd).of_type(SectionType.CFV)
    }
    if own == variants[0].what and logged and not logged & stores:
        return Finding(
            Cause.FIRMWARE,
            "mr_td",
            "the TD started on another firmware than the entry's: its variable store has another"
            " content",
            f"the entry's MR_TD is that of {own}; the log, which replays to the quote's RTMR0, has"
            f" the store {_short(logged)}, the file has {_short(stores)}",
            NEXT[Cause.FIRMWARE],
            entry,
        )
    return _unknown(
        f"the entry's MR_TD is that of {own}, but the quote's is that in neither page order, with"
        " or without a measured store: another firmware, or a host that measures in a third way",
        "give the firmware that the host starts with --firmware",
        entry,
    )


def _unknown(message: str, then: str, entry: int) -> Finding:
    return Finding(Cause.FIRMWARE, "mr_td", message, "", then, entry)


def _admitted(log: EventLog | None) -> set[bytes]:
    """The images (Authenticode SHA-256) in the `db` that the firmware measured."""
    found: set[bytes] = set()
    for event in () if log is None else log.of_rtmr(0):
        parsed = types.variable(event.data)
        if (
            event.kind == types.EV_EFI_VARIABLE_DRIVER_CONFIG
            and parsed is not None
            and parsed.name == "db"
        ):
            try:
                listed = varstore.signatures(parsed.value)
            except FirmwareFormatError:
                continue
            found |= {payload for _, _, payload in listed if len(payload) == _SHA256_SIZE}
    # A stock firmware admits certificates, or any number of images; ours admits one.
    return found if len(found) == 1 else set()


def _logged_store(log: EventLog | None) -> set[bytes]:
    events = () if log is None else log.of_rtmr(0)
    return {e.digest for e in events if e.kind == types.EV_EFI_PLATFORM_FIRMWARE_BLOB2}


def _policy(fd: bytes, uki: Pe | None) -> str:
    """What a firmware with a measured store admits."""
    try:
        admitted = binding.policy(fd)
    except AttestationError as error:
        return f"its store admits no single image ({error.message})"
    names = " ".join(value.hex() for value in admitted)
    if uki is None:
        return f"it admits {names}"
    own = admitted == (authenticode.digest(uki),)
    return f"it admits {'the given image' if own else f'{names}, not the given image'}"


def _name(fd: bytes) -> str:
    known = binding.KNOWN_MODELS.get(binding.code_digest(fd))
    return f"sha256 {hashlib.sha256(fd).hexdigest()[:16]}" + (f", {known}" if known else "")


def _short(values: set[bytes]) -> str:
    return " ".join(sorted(value.hex()[:16] for value in values)) or "none"
