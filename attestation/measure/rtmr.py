"""RTMR1 and RTMR2 of a TD that boots a unified kernel image, as sequences of events.

Event model: edk2 >= 202411 with Secure Boot on, systemd-stub >= 257, Linux EFI stub >= 6.9. None
of it depends on memory size, CPUs or ACPI tables.

Sources: edk2 OvmfPkg/Library/SecTpmMeasurementLib and SecurityPkg/Tcg/TdTcg2Dxe (PCR 2 to 6 go to
RTMR1, 8 to 15 to RTMR2), TCG "PC Client Platform Firmware Profile" 10.4.4 (actions and separator),
systemd src/boot/stub.c, src/boot/measure.c and src/boot/cpio.c, Linux
drivers/firmware/efi/libstub/efi-stub-helper.c.

The same events go to the PCRs of a TPM, so with `sha256` a software TPM checks the model.
"""

import hashlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from enum import StrEnum

from attestation.errors import UkiRejected
from attestation.measure import authenticode
from attestation.measure.authenticode import Algorithm
from attestation.measure.pe import Pe


class BootPath(StrEnum):
    """How the firmware came to the image: QEMU's `-kernel`, or a file on an unpartitioned disk."""

    KERNEL = "kernel"
    ESP = "esp"


# systemd src/fundamental/uki.c, in the order in which the stub measures them. Newer systemd knows
# more sections; those are refused, because it depends on the stub whether they count.
MEASURED_SECTIONS = (
    ".linux",
    ".osrel",
    ".cmdline",
    ".initrd",
    ".ucode",
    ".splash",
    ".dtb",
    ".uname",
    ".sbat",
    ".pcrpkey",
    ".profile",
    ".dtbauto",
    ".hwids",
)
_UNKNOWN_SECTIONS = (".efifw",)
_REQUIRED_SECTIONS = (".linux", ".cmdline", ".initrd")

# Sections that the stub also hands to user space, in this order, as files of `/.extra`.
_EXTRA_FILES = (
    (".pcrsig", "tpm2-pcr-signature.json"),
    (".pcrpkey", "tpm2-pcr-public-key.pem"),
    (".osrel", "os-release"),
    (".profile", "profile"),
)

_CALLING = b"Calling EFI Application from Boot Option"
_EXIT_CALLED = b"Exit Boot Services Invocation"
_EXIT_DONE = b"Exit Boot Services Returned with Success"
_SEPARATOR = bytes(4)
_MAX_CMDLINE = 2048  # COMMAND_LINE_SIZE of Linux on x86


@dataclass(frozen=True, slots=True)
class Event:
    """One extension: TPM register `pcr`, what was measured, and its digest (32 or 48 bytes)."""

    pcr: int
    description: str
    digest: bytes


def replay(events: Iterable[Event], algorithm: Algorithm = "sha384") -> bytes:
    """The value of a register that starts at zero and is extended with these events in order."""
    value = bytes(hashlib.new(algorithm).digest_size)
    for event in events:
        value = hashlib.new(algorithm, value + event.digest).digest()
    return value


def rtmr1(uki: bytes | Pe, boot_path: BootPath, algorithm: Algorithm = "sha384") -> bytes:
    """RTMR1 of a boot of `uki`. Raises PeFormatError, UkiRejected."""
    return replay(rtmr1_events(uki, boot_path, algorithm), algorithm)


def rtmr2(uki: bytes | Pe, algorithm: Algorithm = "sha384") -> bytes:
    """RTMR2 of a boot of `uki`. Raises PeFormatError, UkiRejected."""
    return replay(rtmr2_events(uki, algorithm), algorithm)


def rtmr1_events(
    uki: bytes | Pe, boot_path: BootPath, algorithm: Algorithm = "sha384"
) -> tuple[Event, ...]:
    """What the firmware measures about starting `uki`. Raises PeFormatError, UkiRejected.

    With `-kernel` QEMU's loader loads the image before the boot manager takes over. The disk of the
    `esp` path has no partition table and no other boot option fails before it.
    """
    image = _uki(uki)

    def event(pcr: int, description: str, data: bytes) -> Event:
        return Event(pcr, description, hashlib.new(algorithm, data).digest())

    load = Event(4, "UKI", authenticode.digest(image, algorithm))
    start = (
        event(4, _CALLING.decode(), _CALLING),
        # TdTcg2Dxe measures one for the register; with a TPM each of PCR 0 to 7 gets its own.
        event(4, "separator", _SEPARATOR),
    )
    leave = (
        event(5, _EXIT_CALLED.decode(), _EXIT_CALLED),
        event(5, _EXIT_DONE.decode(), _EXIT_DONE),
    )
    return (load, *start, *leave) if boot_path is BootPath.KERNEL else (*start, load, *leave)


def rtmr2_events(uki: bytes | Pe, algorithm: Algorithm = "sha384") -> tuple[Event, ...]:
    """What systemd-stub (PCR 11) and the kernel's EFI stub (PCR 9) measure about `uki`.

    Raises PeFormatError, UkiRejected.
    """
    image = _uki(uki)
    events = []
    for name in MEASURED_SECTIONS:
        loaded = image.loaded(name)
        if loaded is None:
            continue
        content, padding = loaded
        events.append(
            Event(11, f"{name} name", hashlib.new(algorithm, name.encode() + b"\0").digest())
        )
        events.append(Event(11, name, _hash((content, _zeros(padding)), algorithm)))
    options = load_options(_bytes(image, ".cmdline"))
    events.append(Event(9, "LoadOptions", hashlib.new(algorithm, options).digest()))
    events.append(Event(9, "initrd", _hash(_served_initrd(image), algorithm)))
    return tuple(events)


def load_options(cmdline: bytes) -> bytes:
    """The kernel's load options for a `.cmdline` section: UTF-16 with a NUL at the end.

    As systemd's mangle_stub_cmdline(): control characters become spaces, outer spaces go.
    Raises UkiRejected if the command line is empty, too long or not UTF-8.
    """
    cmdline = cmdline.split(b"\0", 1)[0]
    if len(cmdline) >= _MAX_CMDLINE:
        raise UkiRejected(
            "command line of the image is too long: the kernel would cut it off",
            expected=f"less than {_MAX_CMDLINE} bytes",
            got=str(len(cmdline)),
            rule="cmdline-size",
        )
    try:
        text = cmdline.decode()
    except UnicodeDecodeError as error:
        raise UkiRejected(
            "command line of the image is not UTF-8",
            expected="UTF-8",
            got=f"{cmdline[error.start : error.end]!r} at {error.start}",
            rule="cmdline-encoding",
        ) from error
    text = "".join(" " if char <= " " or char == "\x7f" else char for char in text).strip(" ")
    if not text:
        raise UkiRejected(
            "image has an empty command line",
            expected="text, so that a host can't give one of its own",
            rule="empty-cmdline",
        )
    return text.encode("utf-16-le") + b"\0\0"


def cpio(name: str, content: bytes) -> bytes:
    """The newc archive in which systemd-stub hands over `/.extra/<name>` (src/boot/cpio.c)."""
    directory = _cpio_entry(".extra", 0o040555, 1, b"")
    file = _cpio_entry(f".extra/{name}", 0o100444, 2, content)
    # The one upper-case digit is systemd's: the trailer is a literal there.
    trailer = b"070701" + b"0" * 32 + b"00000001" + b"0" * 48 + b"0000000B" + b"0" * 8
    return directory + file + trailer + b"TRAILER!!!\0\0\0\0"


def _cpio_entry(path: str, mode: int, inode: int, content: bytes) -> bytes:
    name = path.encode() + b"\0"
    # inode, mode, uid, gid, nlink, mtime, size, 4 device numbers, name size, checksum
    fields = (inode, mode, 0, 0, 1, 0, len(content), 0, 0, 0, 0, len(name), 0)
    entry = b"070701" + b"".join(b"%08x" % field for field in fields) + name
    entry += bytes(-len(entry) % 4)
    return entry + content + bytes(-len(content) % 4)


def _served_initrd(image: Pe) -> Iterator[bytes | memoryview]:
    """The initrd that the kernel gets, in pieces: microcode, initrd, the `/.extra` archives."""
    parts: list[tuple[bytes | memoryview, int]] = []
    for name in (".ucode", ".initrd"):
        loaded = image.loaded(name)
        if loaded is not None:
            parts.append(loaded)
    for section, name in _EXTRA_FILES:
        content = _bytes(image, section)
        if content:
            parts.append((cpio(name, content), 0))
    for part, padding in parts:
        yield part
        # A single part is served as it is; several are padded to multiples of 4.
        align = -(len(part) + padding) % 4 if len(parts) > 1 else 0
        yield _zeros(padding + align)


def _bytes(image: Pe, name: str) -> bytes:
    loaded = image.loaded(name)
    return b"" if loaded is None else bytes(loaded[0]) + _zeros(loaded[1])


def _hash(parts: Iterable[bytes | memoryview], algorithm: Algorithm) -> bytes:
    state = hashlib.new(algorithm)
    for part in parts:
        state.update(part)
    return state.digest()


def _zeros(count: int) -> bytes:
    """Memory behind a section's data. Alignment only: ukify never leaves more than a page."""
    if count > 1 << 20:
        raise UkiRejected(
            "section is far larger in memory than in the file",
            expected=f"at most {1 << 20} bytes more",
            got=str(count),
            rule="section-padding",
        )
    return bytes(count)


def _uki(uki: bytes | Pe) -> Pe:
    """A PE image that systemd-stub boots in the one way that the model covers."""
    image = uki if isinstance(uki, Pe) else Pe.parse(uki)
    names = [section.name for section in image.sections]
    if names.count(".profile") > 1:
        raise UkiRejected(
            "image has several profiles: which one boots is the host's choice",
            expected="at most one .profile section",
            got=str(names.count(".profile")),
            rule="multi-profile",
        )
    for name in _REQUIRED_SECTIONS:
        if image.loaded(name) is None:
            raise UkiRejected(
                f"image has no section {name}: not a unified kernel image",
                expected=" ".join(_REQUIRED_SECTIONS),
                got=" ".join(names),
                rule="missing-section",
                hint="addons and bare kernels are not supported",
            )
    for name in _UNKNOWN_SECTIONS:
        if name in names:
            raise UkiRejected(
                f"image has a section {name}, which only newer versions of systemd-stub measure",
                expected="the sections of systemd 257",
                got=name,
                rule="unknown-section",
            )
    return image
