"""Fuzz target: the command line of a process, as /proc shows it."""

import os
from pathlib import Path

from attestation.errors import ProviderFailed
from attestation.providers.mock_td_launch import Launch

WORDS = (
    *(b"/lib/ld-linux-x86-64.so.2", b"--library-path", b"/a:/b", b"qemu-system-x86_64"),
    *(b"-nodefaults", b"-machine", b"q35,accel=tcg", b"-bios", b"x.fd", b"-kernel", b"x.efi"),
    *(b"-drive", b"if=none,file=a,,b", b"-device", b"virtio-net-pci,romfile="),
    *(b"-chardev", b"socket,path=x,id=mock-td-" + b"0" * 96),
)


def seeds() -> list[bytes]:
    return [b"\0".join(WORDS), b"\0".join(WORDS[3:]), b"\0".join((*WORDS, b"-append", b"x"))]


def fuzz_one(data: bytes) -> None:
    try:
        launch = Launch.parse([os.fsdecode(word) for word in data.split(b"\0")], Path("/"))
    except ProviderFailed as error:
        error.diagnostics().encode()
        return
    assert len(launch.mr_config_id) == 48
    assert launch.firmware.is_absolute()
