"""What `attestation.measure.explain` takes and says: candidates, evidence, findings."""

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum

from attestation.measure.eventlog import EventLog
from attestation.measure.pe import Pe
from attestation.measure.record import Measurement

REGISTERS = ("mr_td", "rtmr1", "rtmr2")


class Cause(StrEnum):
    """Which input makes a TD measure otherwise, or be refused all the same."""

    MATCH = "match"
    DEBUG = "debug"
    SECURE_BOOT = "secure-boot"  # off: the firmware starts anything
    ROLE = "role"
    DEV_IMAGE = "dev-image"
    RELEASE = "release"
    UKI = "uki"
    FIRMWARE = "firmware"
    FIRMWARE_UNBOUND = "firmware-unbound"  # MR_TD does not cover the variable store
    PAGE_ORDER = "page-order"
    BOOT_PATH = "boot-path"
    SEPARATOR_MODEL = "separator-model"
    OPTION_ROM = "option-rom"
    EXTRA_EVENT = "extra-event"
    MISSING_EVENT = "missing-event"
    RTMR0 = "rtmr0"
    RTMR3 = "rtmr3"
    BOOT_PROOF = "boot-proof"
    FUTURE = "future"
    RETIRED = "retired"
    UNKNOWN = "unknown"


# Nothing below counts before what stands above is put right.
_ORDER = (*(cause for cause in Cause if cause is not Cause.MATCH), Cause.MATCH)

NEXT: Mapping[Cause, str] = {
    Cause.DEBUG: "start the TD without debug=on, and ask for a new quote",
    Cause.SECURE_BOOT: "start the TD with the .fd of the release, which has a policy of its own",
    Cause.ROLE: "boot the image of the expected role, or ask for the role that runs",
    Cause.DEV_IMAGE: "build and boot the production image; this one is for mock deployments",
    Cause.RELEASE: "boot the wanted release, or have the operators list this one",
    Cause.UKI: "start the image of the release, and compare the hashes of the two files",
    Cause.FIRMWARE: "start the TD with the .fd that was built together with the image",
    Cause.FIRMWARE_UNBOUND: "start the TD with the .fd of the release (-bios), not with the stock"
    " firmware",
    Cause.PAGE_ORDER: "run the TD on a host of a listed profile, or list this host's profile",
    Cause.BOOT_PATH: "start the TD in the listed way (-kernel, or a disk), or list this boot path",
    Cause.SEPARATOR_MODEL: "start the TD with the firmware of the release: its edk2 is newer",
    Cause.OPTION_ROM: "start the TD with romfile= for each device, and without fw_cfg"
    " X-PciMmio64Mb",
    Cause.EXTRA_EVENT: "find out where this comes from, and start the TD without it",
    Cause.MISSING_EVENT: "start the TD with the firmware of the release",
    Cause.RTMR0: "give the TD the memory, CPUs and devices of the entry; or `attestation record`"
    " what this host shape gives",
    Cause.RTMR3: "find out what runs in this TD",
    Cause.BOOT_PROOF: "build again with the boot proof and list that measurement",
    Cause.FUTURE: "wait, or boot the release in force",
    Cause.RETIRED: "boot the newer release",
    Cause.UNKNOWN: "measure the files of the release again: `attestation measure`",
    Cause.MATCH: "verify the quote itself: `attestation verify`",
}


@dataclass(frozen=True, slots=True)
class Finding:
    """One cause. `proof` says what was computed and came out equal; empty if nothing did.

    `register` is the field of the TD report that shows it, `next` what to do, `entry` the index of
    the candidate that it speaks about.
    """

    cause: Cause
    register: str
    message: str
    proof: str
    next: str
    entry: int | None = None

    @property
    def proved(self) -> bool:
        """Whether this is shown and not only possible."""
        return bool(self.proof)


@dataclass(frozen=True, slots=True)
class Candidate:
    """A measurement, and where it was read: `source` and the `index` there.

    `wanted` ones are what the TD was to measure as; the others are known besides. Times are Unix
    seconds; without `retire_after` there is no end.
    """

    measurement: Measurement
    source: str
    index: int
    wanted: bool = True
    not_before: int = 0
    retire_after: int | None = None

    @property
    def name(self) -> str:
        """The entry for people."""
        found = self.measurement
        kind = f"{found.role}, host {found.host_profile}, boot {found.boot_path}"
        return f"{self.source}[{self.index}] ({kind}{', dev' if found.is_dev else ''})"


@dataclass(frozen=True, slots=True)
class Evidence:
    """What is at hand besides the quote; `log` must have been checked against it."""

    log: EventLog | None = None
    firmware: bytes | None = None
    uki: Pe | None = None


def ordered(findings: list[Finding]) -> tuple[Finding, ...]:
    """What must be put right first, first; of one cause the proved first."""
    return tuple(sorted(findings, key=lambda f: (_ORDER.index(f.cause), not f.proved)))
