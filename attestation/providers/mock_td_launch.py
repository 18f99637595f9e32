"""What QEMU was started with, read from its command line: the files that a guest boots.

The virtual TDX computes MR_TD, RTMR1 and RTMR2 from the firmware and the image alone. So only
options are accepted that add nothing to these registers; -append, -initrd, -fw_cfg, -smbios, boot
ROMs of devices and all that is not known here are refused. Source of the options: QEMU, "System
Emulation"; of what becomes of them `attestation.measure.rtmr`.

MRCONFIGID is in a character device's id, `mock-td-` and 96 hex digits: outside TDX QEMU has no
other place for it.
"""

import os
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

from attestation.errors import ProviderFailed
from attestation.files import read_file

MAX_COMMAND = 1 << 20
MAX_SHOWN = 200

_ID = "mock-td-"
_CONFIG_ID = re.compile(rf"{_ID}([0-9a-f]{{96}})")
_SWITCHES = frozenset({"S", "daemonize", "no-reboot", "no-shutdown", "nodefaults", "snapshot"})
_SETTINGS = frozenset(
    {
        *("bios", "kernel", "machine", "accel", "cpu", "smp", "m", "L", "name", "pidfile"),
        *("device", "drive", "blockdev", "netdev", "chardev", "object"),
        *("display", "serial", "monitor", "mon", "qmp", "rtc", "D", "d"),
    }
)
# A machine's other properties name files to boot, or change the tables of the firmware.
_MACHINE = frozenset({"type", "accel", "kernel-irqchip", "smm", "hpet", "vmport"})
_DEVICES = frozenset(
    {
        *("virtio-blk-pci", "virtio-net-pci", "virtio-rng-pci", "virtio-serial-pci"),
        *("virtserialport", "vhost-vsock-pci", "isa-debugcon", "isa-debug-exit"),
    }
)
# It has a boot ROM unless it is told to have none.
_WITH_ROM = "virtio-net-pci"
_LOADER_SWITCHES = frozenset({"--inhibit-cache"})


@dataclass(frozen=True, slots=True)
class Launch:
    """What a command line says of the guest that it starts; MRCONFIGID has 48 bytes."""

    firmware: Path
    uki: Path
    mr_config_id: bytes

    @classmethod
    def of(cls, pid: int) -> "Launch":
        """That of a running process.

        Raises FileError; ProviderFailed (`mock-td.peer`), and as `parse` does.
        """
        if pid <= 0:  # what the kernel says of a process in another PID namespace
            _refuse("QEMU can't be seen from here", "a process of this host", pid, "peer")
        process = Path(f"/proc/{pid}")
        words = read_file(process / "cmdline", MAX_COMMAND).split(b"\0")[:-1]
        try:
            folder = (process / "cwd").readlink()
        except OSError as error:
            _refuse("QEMU's folder can't be read", "a process of ours", error.strerror, "peer")
        return cls.parse([os.fsdecode(word) for word in words], folder)

    @classmethod
    def parse(cls, words: Sequence[str], folder: Path) -> "Launch":
        """Read a command line, whose relative paths are below `folder`.

        The program may be started through a dynamic loader. Raises ProviderFailed with the rule
        `mock-td.command`, `mock-td.option`, `mock-td.device`, `mock-td.files` or
        `mock-td.config-id`.
        """
        given: dict[str, list[str]] = {}
        for name, value in _options(words):
            given.setdefault(name, []).append(value)
        _check(given)
        return cls(
            folder / _only_file(given, "bios"), folder / _only_file(given, "kernel"), _config(given)
        )


def shown(text: object) -> str:
    """A text of others for a log or an error: printable, and not long."""
    printable = str(text)
    printable = printable if printable.isprintable() else ascii(printable)
    return printable if len(printable) <= MAX_SHOWN else f"{printable[:MAX_SHOWN]}..."


def _options(words: Sequence[str]) -> Iterator[tuple[str, str]]:
    """The options by name, without dashes; a switch has an empty value."""
    rest = iter(words)
    program = next(rest, "")
    if Path(program).name.startswith(("ld-", "ld.")):
        # Its own options come first: --library-path LIST and the like.
        for program in rest:
            if not program.startswith("--"):
                break
            if program not in _LOADER_SWITCHES:
                next(rest, None)
    for word in rest:
        name = word[2:] if word.startswith("--") else word[1:]
        if not word.startswith("-") or name not in _SWITCHES | _SETTINGS:
            _refuse("QEMU has an option that is not known here", "run-qemu's", word, "option")
        value = "" if name in _SWITCHES else next(rest, None)
        if value is None:
            _refuse("the last option has no value", "one", word, "command")
        yield name, value


def _parts(value: str, implied: str = "") -> dict[str, str]:
    """An option's value by name: `a=b,c=d`, where two commas are one of a text.

    The first part may be the value of `implied` alone. A name that comes again is refused: which
    of the two counts is up to the option.
    """
    parts: dict[str, str] = {}
    for index, part in enumerate(value.replace(",,", "\0").split(",")):
        name, equals, text = part.replace("\0", ",").partition("=")
        if not equals and index == 0:
            name, text = implied, name
        if name in parts:
            _refuse("an option says a thing twice", f"one {shown(name)}", value, "command")
        parts[name] = text
    return parts


def _check(given: Mapping[str, Sequence[str]]) -> None:
    """Nothing but the firmware and the image counts for the registers."""
    for value in given.get("machine", ()):
        if others := _parts(value, "type").keys() - _MACHINE:
            _refuse("-machine has more than a type", "run-qemu's", ", ".join(others), "option")
    for value in given.get("drive", ()):
        if _parts(value).get("if") != "none":
            _refuse("-drive makes a device by itself", "if=none", value, "device")
    if "nodefaults" not in given:
        _refuse("QEMU adds devices with boot ROMs by itself", "-nodefaults", "none", "device")
    for value in given.get("device", ()):
        parts = _parts(value, "driver")
        driver = parts.get("driver", "")
        if driver not in _DEVICES:
            _refuse("a device may bring what is measured", "run-qemu's", driver, "device")
        if rom := parts.get("romfile", "the default" if driver == _WITH_ROM else ""):
            _refuse(f"{driver} has a boot ROM", "romfile=", rom, "device")


def _only_file(given: Mapping[str, Sequence[str]], name: str) -> str:
    files = given.get(name, ())
    if len(files) != 1 or not files[0]:
        _refuse("which files start is not clear", f"one -{name} FILE", len(files), "files")
    return files[0]


def _config(given: Mapping[str, Sequence[str]]) -> bytes:
    ids = [_parts(value, "backend").get("id", "") for value in given.get("chardev", ())]
    ours = [name for name in ids if name.startswith(_ID)]
    match = _CONFIG_ID.fullmatch(ours[0]) if len(ours) == 1 else None
    if match is None:
        wanted = f"one -chardev with the id {_ID} and 96 lower-case hex digits"
        _refuse("the guest has no MRCONFIGID", wanted, ", ".join(ours) or "none", "config-id")
    return bytes.fromhex(match[1])


def _refuse(message: str, expected: str, got: object, rule: str) -> NoReturn:
    raise ProviderFailed(
        message,
        expected=expected,
        got=shown(got),
        rule=f"mock-td.{rule}",
        hint="start the guest with `run-qemu --emulate --mock-td SOCKET`",
    )
