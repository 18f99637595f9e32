"""`explain` names the input that was changed: real files of builds, measured by a software TDX."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from attestation.allowlist import AllowList, Entry, TcbPolicy
from attestation.commands.explain import explain_command
from attestation.commands.group import ExplainedGroup
from attestation.measure import firmware
from attestation.measure.pe import Pe
from attestation.measure.record import Measurements
from attestation.measure.rtmr import BootPath
from attestation.measure.tdvf import HostProfile
from attestation.providers.mock import MockQuoteService, MockTee
from attestation.providers.mock_log import SeparatorModel
from release.build.settings import Role
from tests.image.conftest import QUICK, Image, Toolbox, build, checkout
from tests.image.test_measurements import unmeasured

TEE = MockTee(b"explain")
AT = 1_800_000_000
PROGRAM = ExplainedGroup("attestation", commands=[explain_command])


@dataclass(frozen=True, slots=True)
class Td:
    """A TD that was started: its quote and its event log, as files."""

    folder: Path

    @classmethod
    def start(cls, folder: Path, fd: bytes, uki: bytes, **inputs: Any) -> Td:
        service = MockQuoteService(TEE, fd, uki, **inputs)
        (folder / "quote.bin").write_bytes(service.quote(bytes(64)))
        (folder / "ccel.bin").write_bytes(service.event_log())
        return cls(folder)

    @property
    def log(self) -> tuple[str, ...]:
        return ("--log", str(self.folder / "ccel.bin"))

    def explain(self, *arguments: str | Path) -> tuple[list[tuple[str, bool]], str]:
        """Cause and whether it is proved, for each finding; and the findings as text."""
        command = ["explain", str(self.folder / "quote.bin"), *map(str, arguments)]
        command += ["--at", "2027-01-15T08:00:00Z"]
        result = CliRunner().invoke(PROGRAM, [*command, "--json"])
        found = json.loads(result.stdout)["findings"]
        text = CliRunner().invoke(PROGRAM, command)
        causes = [(finding["cause"], finding["proved"]) for finding in found]
        assert result.exit_code == text.exit_code == (0 if causes == [("match", True)] else 2)
        for finding in found:
            assert f"{finding['cause']}: {finding['message']}\n" in text.stdout
            assert f"  proof: {finding['proof']}\n" in text.stdout or not finding["proved"]
        return causes, text.stdout


def against(*images: Image) -> tuple[str, ...]:
    paths = [str(image.folder / "measurements.json") for image in images]
    return tuple(part for path in paths for part in ("--against", path))


def given(image: Image) -> tuple[str, ...]:
    return ("--firmware", str(image.firmware), "--uki", str(image.uki))


@pytest.fixture(scope="module")
def fd(server: Image) -> bytes:
    return server.firmware.read_bytes()


@pytest.fixture(scope="module")
def uki(server: Image) -> bytes:
    return server.uki.read_bytes()


@pytest.fixture(scope="module")
def release(tmp_path_factory: pytest.TempPathFactory, server: Image) -> Image:
    """A release with one word of a unit file changed."""
    folder = tmp_path_factory.mktemp("release")
    changed = checkout(folder / "checkout")
    path = changed / "images/base/appliance@.service"
    path.write_bytes(path.read_bytes().replace(b"zipnet", b"zipneT", 1))
    out = folder / "out"
    arguments = ("--role", "server", *QUICK, "--skip-boot-proof", "--out", out, "--json")
    build(*arguments, root=changed).json()
    return Image(Role.SERVER, out / "server")


@pytest.fixture
def narrow(server: Image, tmp_path: Path) -> tuple[str, ...]:
    """The server's measurements for hosts of profile upstream that use -kernel, and no others."""
    entries = Measurements.load(server.folder / "measurements.json").entries
    kept = [e for e in entries if (e.host_profile, e.boot_path) == ("upstream", "kernel")]
    path = tmp_path / "narrow.json"
    path.write_bytes(Measurements(tuple(kept)).dumps())
    return ("--against", str(path))


def test_nothing_is_wrong(server: Image, fd: bytes, uki: bytes, tmp_path: Path) -> None:
    for boot_path in BootPath:
        for profile in HostProfile:
            td = Td.start(tmp_path, fd, uki, host_profile=profile, boot_path=boot_path)
            causes, text = td.explain(*against(server), *given(server), *td.log)
            assert causes == [("match", True)]
            assert text.startswith("match\n")


def test_page_order_of_the_host(
    server: Image, fd: bytes, uki: bytes, narrow: tuple[str, ...], tmp_path: Path
) -> None:
    td = Td.start(tmp_path, fd, uki, host_profile=HostProfile.CANONICAL_24_04)
    causes, text = td.explain(*narrow, "--firmware", server.firmware)
    assert causes == [("page-order", True)]
    assert "the host adds pages in two-pass order" in text
    causes, text = td.explain(*narrow, *against(server))
    assert causes == [("page-order", True)]
    assert "canonical-24.04" in text
    assert td.explain(*narrow)[0] == [("firmware", False)]


def test_stock_firmware(
    server: Image, uki: bytes, toolbox: Toolbox, fd: bytes, tmp_path: Path
) -> None:
    """And the bound one with its attribute off: MR_TD can't tell them apart, RTMR0 could."""
    for started in (toolbox.base, unmeasured(fd)):
        td = Td.start(tmp_path, started, uki)
        causes, text = td.explain(*against(server), *given(server))
        assert causes == [("firmware-unbound", True)]
        assert "without MR_EXTEND on its variable store" in text
    (tmp_path / "stock.fd").write_bytes(toolbox.base)
    causes, _ = td.explain(*against(server), "--firmware", tmp_path / "stock.fd")
    assert causes == [("firmware-unbound", True)]
    assert td.explain(*against(server))[0] == [("firmware", False)]


@pytest.mark.parametrize(
    ("section", "named"),
    [
        (".cmdline", ".cmdline, LoadOptions"),
        (".osrel", ".osrel, initrd"),
        (".initrd", ".initrd, initrd"),
        (".linux", ".linux"),
    ],
)
def test_one_byte_of_a_section(
    section: str, named: str, server: Image, uki: bytes, toolbox: Toolbox, tmp_path: Path
) -> None:
    """A whole image with its own firmware: only the log says where they differ."""
    (place,) = [part for part in Pe.parse(uki).sections if part.name == section]
    at = place.raw_offset + place.virtual_size // 2
    changed = uki[:at] + bytes([uki[at] ^ 1]) + uki[at + 1 :]
    td = Td.start(tmp_path, firmware.bind(toolbox.base, changed), changed)
    causes, text = td.explain(*against(server), *given(server), *td.log)
    assert causes == [("uki", True)] * 3
    assert f"uki: the image differs from the release's in {named}\n" in text
    assert "the firmware started another image" in text
    assert "the firmware is bound to another image" in text
    assert td.explain(*against(server), *given(server))[0] == [("unknown", False)]
    (tmp_path / "started.efi").write_bytes(changed)
    causes, text = td.explain(*against(server), "--uki", tmp_path / "started.efi")
    assert causes == [("uki", True)] * 2
    assert "the TD booted the given image" in text


def test_another_role(server: Image, client: Image, tmp_path: Path) -> None:
    td = Td.start(tmp_path, client.firmware.read_bytes(), client.uki.read_bytes())
    causes, text = td.explain(*against(server, client))
    assert causes == [("role", True)]
    assert "role: the image is the one for client, not for server\n" in text
    assert td.explain(*against(client), "--role", "server")[0] == [("role", True)]
    assert td.explain(*against(client), "--role", "client")[0] == [("match", True)]


def test_another_release(server: Image, release: Image, client: Image, tmp_path: Path) -> None:
    td = Td.start(tmp_path, release.firmware.read_bytes(), release.uki.read_bytes())
    causes, text = td.explain(*against(server, client, release))
    assert causes == [("release", True)]
    assert f"{release.folder / 'measurements.json'}[0]" in text
    causes, text = td.explain(*against(server), *given(server), *td.log)
    assert causes == [("uki", True)] * 3
    assert "differs from the release's in .initrd, initrd\n" in text
    # Its builder skipped the proof.
    assert td.explain(*against(release))[0] == [("boot-proof", True), ("match", True)]


def test_boot_path(
    server: Image, fd: bytes, uki: bytes, narrow: tuple[str, ...], tmp_path: Path
) -> None:
    td = Td.start(tmp_path, fd, uki, boot_path=BootPath.ESP)
    image = ("--uki", str(server.uki))
    for more in (td.log, image, (*td.log, *image), against(server)):
        assert td.explain(*narrow, *more)[0] == [("boot-path", True)]
    assert td.explain(*narrow)[0] == [("unknown", False)]


def test_separator_model(server: Image, fd: bytes, uki: bytes, tmp_path: Path) -> None:
    td = Td.start(tmp_path, fd, uki, separators=SeparatorModel.OLDER)
    image = ("--uki", str(server.uki))
    for more in (td.log, image, (*td.log, *image)):
        causes, text = td.explain(*against(server), *more)
        assert causes == [("separator-model", True)]
        assert "before edk2-stable202411" in text


def test_option_rom(
    server: Image,
    fd: bytes,
    uki: bytes,
    toolbox: Toolbox,
    narrow: tuple[str, ...],
    tmp_path: Path,
) -> None:
    rom = toolbox.shell.read_bytes()
    td = Td.start(tmp_path, fd, uki, option_roms=[rom])
    for more in (td.log, (*td.log, "--uki", str(server.uki))):
        causes, text = td.explain(*against(server), *more)
        assert causes == [("option-rom", True)]
        assert "EV_EFI_BOOT_SERVICES_DRIVER" in text
        assert "Pci(0x2,0x0)" in text
        assert "only the log says" in text
    assert td.explain(*against(server), "--uki", server.uki)[0] == [("unknown", False)]
    both = Td.start(tmp_path, fd, uki, option_roms=[rom], boot_path=BootPath.ESP)
    assert both.explain(*narrow, *both.log)[0] == [("boot-path", True), ("option-rom", True)]
    assert both.explain(*against(server), *both.log)[0] == [("option-rom", True)]


def test_debug(server: Image, fd: bytes, uki: bytes, tmp_path: Path) -> None:
    td = Td.start(tmp_path, fd, uki, attributes=1 << 28 | 1)
    assert td.explain(*against(server), *td.log)[0] == [("debug", True)]


@pytest.mark.parametrize(
    ("window", "cause"), [((0, AT), "retired"), ((AT + 1, None), "future"), ((AT, AT + 1), None)]
)
def test_window(
    window: tuple[int, int | None],
    cause: str | None,
    server: Image,
    fd: bytes,
    uki: bytes,
    tmp_path: Path,
) -> None:
    measured = Measurements.load(server.folder / "measurements.json").entries
    entries = tuple(Entry(entry, *window) for entry in measured)
    path = tmp_path / "list.json"
    path.write_bytes(AllowList(1, bytes(32), 0, entries, TcbPolicy()).dumps())
    td = Td.start(tmp_path, fd, uki)
    expected = [("match", True)] if cause is None else [(cause, True), ("match", True)]
    assert td.explain("--against", path)[0] == expected


def test_development_image(server: Image, mock_server: Image, tmp_path: Path) -> None:
    td = Td.start(tmp_path, mock_server.firmware.read_bytes(), mock_server.uki.read_bytes())
    assert td.explain(*against(server, mock_server))[0] == [("dev-image", True)]
    assert td.explain(*against(mock_server))[0] == [("dev-image", True), ("match", True)]
