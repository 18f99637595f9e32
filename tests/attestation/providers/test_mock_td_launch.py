"""QEMU's command line as the virtual TDX reads it, and all that it doesn't measure."""

import contextlib
import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from attestation.errors import FileUnreadable, ProviderFailed
from attestation.providers.mock_td_launch import MAX_SHOWN, Launch, shown
from tests.attestation.measure.support import refused

CONFIG = "0f" * 48
FOLDER = Path("/home/someone")
DEVICES = [
    *("-nodefaults", "-display", "none", "-no-reboot", "-serial", "mon:stdio", "-smp", "2"),
    *("-machine", "q35", "-accel", "tcg", "-cpu", "max", "-m", "2G"),
    *("-netdev", "user,id=net0,hostfwd=tcp:127.0.0.1:1-:2,hostfwd=tcp:127.0.0.1:3-:4"),
    *("-device", "virtio-net-pci,netdev=net0,romfile="),
    *("-drive", "if=none,id=state,format=raw,file.locking=on,file=/a,,b=c,,,,d"),
    *("-device", "virtio-blk-pci,drive=state,serial=zipnet-state"),
    *("-qmp", "unix:/tmp/qmp,server=on,wait=off"),
    *("-device", "virtio-serial-pci"),
    *("-device", f"virtserialport,chardev=mock-td-{CONFIG},name=org.zipnet.mock-td"),
]
CHARDEV = ["-chardev", f"socket,id=mock-td-{CONFIG},path=/tmp/a,,id=b"]
FILES = ["-bios", "/out/x.fd", "-kernel", "/out/x.efi"]
QEMU = ["qemu-system-x86_64"]
WHOLE = [*QEMU, *DEVICES, *CHARDEV, *FILES]


def parse(words: list[str]) -> Launch:
    return Launch.parse(words, FOLDER)


def test_run_qemus() -> None:
    wanted = Launch(Path("/out/x.fd"), Path("/out/x.efi"), bytes.fromhex(CONFIG))
    assert parse(WHOLE) == wanted
    assert parse([*QEMU, *FILES, *CHARDEV, *DEVICES]) == wanted
    assert (
        parse([word.replace("-", "--", 1) if word[0] == "-" else word for word in WHOLE]) == wanted
    )


@pytest.mark.parametrize(
    "loader",
    [
        ["/lib64/ld-linux-x86-64.so.2", "--library-path", "/a:/b"],
        ["/lib64/ld-linux-x86-64.so.2", "--inhibit-cache", "--argv0", "qemu"],
        ["ld.so"],
    ],
)
def test_through_a_loader(loader: list[str]) -> None:
    assert parse([*loader, *WHOLE]) == parse(WHOLE)


def test_relative_paths() -> None:
    launch = parse([*QEMU, *DEVICES, *CHARDEV, "-bios", "x.fd", "-kernel", "../x.efi"])
    assert (launch.firmware, launch.uki) == (FOLDER / "x.fd", FOLDER / "../x.efi")


@pytest.mark.parametrize("option", ["append", "initrd", "fw_cfg", "smbios", "option-rom"])
def test_what_is_measured_but_not_here(option: str) -> None:
    for dashes in ("-", "--"):
        with refused(ProviderFailed, "mock-td.option"):
            parse([*WHOLE, dashes + option, "x"])


@pytest.mark.parametrize(
    ("words", "rule"),
    [
        (["-readconfig", "f"], "option"),
        (["-acpitable", "file=f"], "option"),
        (["-pflash", "f"], "option"),
        (["-hda", "f"], "option"),
        (["-set", "machine.firmware=f"], "option"),
        (["-global", "virtio-blk-pci.romfile=f"], "option"),
        (["-vga", "std"], "option"),
        (["-bios=f"], "option"),
        (["disk.img"], "option"),
        ([""], "option"),
        (["-"], "option"),
        (["---bios", "f"], "option"),
        (["-machine", "q35,firmware=f"], "option"),
        (["-machine", "kernel=f"], "option"),
        (["-machine", "append=f"], "option"),
        (["-machine", "initrd=f,type=q35"], "option"),
        (["-machine", "q35,pflash0=f"], "option"),
        (["-drive", "if=pflash,file=f"], "device"),
        (["-drive", "file=f"], "device"),
        (["-drive", "if=none,if=pflash,file=f"], "command"),
        (["-device", "e1000"], "device"),
        (["-device", "loader,file=f,addr=0"], "device"),
        (["-device", '{"driver":"virtio-blk-pci"}'], "device"),
        (["-device", "virtio-blk-pci,romfile=f"], "device"),
        (["-device", "virtio-blk-pci,romfile=,romfile=f"], "command"),
        (["-device", "virtio-net-pci,netdev=net0"], "device"),
        (["-device", "virtio-net-pci,romfile=f"], "device"),
        (["-device", "addr=1,driver=virtio-net-pci"], "device"),
        (["-device", ""], "device"),
        (["-bios", "/out/x.fd"], "files"),
        (["-kernel", "/out/x.efi"], "files"),
        (["-cpu"], "command"),
        (CHARDEV, "config-id"),
        (["-chardev", "socket,path=/x,id=mock-td-"], "config-id"),
    ],
    ids=" ".join,
)
def test_refused(words: list[str], rule: str) -> None:
    with refused(ProviderFailed, f"mock-td.{rule}"):
        parse([*WHOLE, *words])


@pytest.mark.parametrize(
    ("words", "rule"),
    [
        ([], "device"),
        (QEMU, "device"),
        ([*QEMU, "-nodefaults"], "files"),
        ([*QEMU, "-nodefaults", "-kernel", "k", *CHARDEV], "files"),
        ([*QEMU, "-nodefaults", "-bios", "b", *CHARDEV], "files"),
        ([*QEMU, "-nodefaults", "-bios", "", "-kernel", "k", *CHARDEV], "files"),
        ([*QEMU, *FILES, *CHARDEV], "device"),
        ([*QEMU, "-nodefaults", *FILES], "config-id"),
        (["ld-linux.so", "--library-path"], "device"),
        ([*QEMU, *QEMU, *DEVICES, *CHARDEV, *FILES], "option"),
    ],
    ids=" ".join,
)
def test_lacking(words: list[str], rule: str) -> None:
    with refused(ProviderFailed, f"mock-td.{rule}"):
        parse(words)


@pytest.mark.parametrize(
    "name",
    [
        "mock-td",
        "mock-td-" + "0" * 95,
        "mock-td-" + "0" * 97,
        "mock-td-" + "0F" * 48,
        "mock-td-" + "0g" * 48,
        f"x-mock-td-{CONFIG}",
        f"mock-td-{CONFIG}\n",
    ],
)
def test_ids_without_a_register(name: str) -> None:
    with refused(ProviderFailed, "mock-td.config-id"):
        parse([*QEMU, *DEVICES, *FILES, "-chardev", f"socket,path=/x,id={name}"])


def test_other_devices_of_characters() -> None:
    assert parse([*WHOLE, "-chardev", "stdio,id=out", "-chardev", "null"]) == parse(WHOLE)


def test_of_this_process() -> None:
    """A test runner is no QEMU."""
    with pytest.raises(ProviderFailed) as caught:
        Launch.of(os.getpid())
    assert caught.value.rule in ("mock-td.option", "mock-td.device")


def test_of_no_process() -> None:
    with refused(ProviderFailed, "mock-td.peer"):
        Launch.of(0)
    with refused(FileUnreadable, "file.read"):
        Launch.of(1 << 30)


def test_shown() -> None:
    assert shown("a b") == "a b"
    assert shown("\x1b[2J\udcff").isprintable()
    assert len(shown("x" * 1000)) == MAX_SHOWN + 3


@given(st.lists(st.sampled_from([*WHOLE, "-", "", "-append", "ld-x"]) | st.text(), max_size=50))
def test_any_command_line(words: list[str]) -> None:
    with contextlib.suppress(ProviderFailed):
        assert len(parse(words).mr_config_id) == 48
