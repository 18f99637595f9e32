"""The log of the software TDX: its registers are the replay, its inputs the only difference."""

import pytest

from attestation.measure import authenticode, firmware, rtmr
from attestation.measure.eventlog import (
    Backing,
    EventLog,
    backing,
    check_digests,
    check_registers,
)
from attestation.measure.rtmr import BootPath
from attestation.providers.mock import MockQuoteService, MockTee
from attestation.providers.mock_log import SeparatorModel
from attestation.quote import Quote
from tests.attestation.measure import synthetic

TEE = MockTee(b"log")
UKI = synthetic.uki({".profile": b"ID=main\n"})
FD = firmware.bind(synthetic.Firmware().build(), UKI)
ENABLED = "SecureBootEnable\0".encode("utf-16-le") + b"\1"
ROM = synthetic.pe([(".text", b"option rom", None)])


@pytest.mark.parametrize("separators", SeparatorModel)
@pytest.mark.parametrize("boot_path", BootPath)
@pytest.mark.parametrize("roms", [(), (ROM, ROM)])
def test_registers_are_the_replay(
    roms: tuple[bytes, ...], boot_path: BootPath, separators: SeparatorModel
) -> None:
    service = MockQuoteService(
        TEE, FD, UKI, boot_path=boot_path, option_roms=roms, separators=separators
    )
    log = EventLog.parse(service.event_log())
    check_digests(log)
    check_registers(log, Quote.parse(service.quote(bytes(64))).body)
    assert log.rtmr(2) == rtmr.rtmr2(UKI)
    plain = not roms and separators is SeparatorModel.STABLE202411
    assert (log.rtmr(1) == rtmr.rtmr1(UKI, boot_path)) is plain
    names = [event.name for event in log.events]
    assert names.count("EV_SEPARATOR") == 2
    assert names.count("EV_EFI_BOOT_SERVICES_DRIVER") == len(roms)


def test_what_the_events_say() -> None:
    log = EventLog.parse(MockQuoteService(TEE, FD, UKI, option_roms=[ROM]).event_log())
    said = [event.description for event in log.events]
    assert said[1:6] == [
        "SecureBoot, 1 bytes",
        "PK, 45 bytes",
        "KEK, 45 bytes",
        "db, 76 bytes",
        "dbx, 76 bytes",
    ]
    assert "Pci(0x2,0x0)/Offset(0x0," in said[7]
    assert said[8].endswith("/kernel")
    assert said[9] == "Calling EFI Application from Boot Option"
    assert ".cmdline" in said
    assert said[-2:] == ["LOADED_IMAGE::LoadOptions", "Linux initrd"]
    (rom,) = [event for event in log.events if event.name == "EV_EFI_BOOT_SERVICES_DRIVER"]
    assert rom.digest == authenticode.digest(ROM, "sha384")
    assert backing(rom) is Backing.CONTENT
    assert {event.register for event in log.events} == {1, 2, 3}


def test_the_disk_of_an_esp_boot() -> None:
    log = EventLog.parse(MockQuoteService(TEE, FD, UKI, boot_path=BootPath.ESP).event_log())
    assert any(r"\EFI\BOOT\BOOTX64.EFI" in event.description for event in log.events)


@pytest.mark.parametrize(
    "fd",
    [
        synthetic.Firmware().build(),  # no keys
        b"\1" + FD[1:],  # a store that the firmware drops
        FD.replace(ENABLED, ENABLED[:-1] + b"\0"),
    ],
)
def test_secure_boot_off(fd: bytes) -> None:
    """Whatever the policy was: it is not in force then, and the log says so."""
    assert fd != FD
    log = EventLog.parse(MockQuoteService(TEE, fd, UKI).event_log())
    (event,) = [e for e in log.events if e.description.startswith("SecureBoot,")]
    assert event.data[-1] == 0
    on = EventLog.parse(MockQuoteService(TEE, FD, UKI).event_log())
    assert next(e for e in on.events if e.description.startswith("SecureBoot,")).data[-1] == 1
