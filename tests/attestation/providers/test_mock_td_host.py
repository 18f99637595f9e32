"""The host's end of the virtual TDX, with other processes as its guests."""

import os
import shutil
import socket
import stat
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from attestation.errors import FileUnreadable
from attestation.measure import record, rtmr, tdvf
from attestation.measure.rtmr import BootPath
from attestation.measure.tdvf import HostProfile
from attestation.providers import mock_td_host
from attestation.providers.mock_td import IDLE, LEAD, QUOTED, REFUSED, REQUEST_SIZE
from attestation.providers.mock_td_host import Measurer, MockTdHost, take
from attestation.providers.mock_td_launch import Launch
from attestation.quote import Quote
from tests.attestation.measure.support import refused
from tests.attestation.mock_support import COLLATERAL, NOW, TEE, VERIFIER
from tests.attestation.providers.mock_td_support import Qemu, files, options, qemu

CONFIG = bytes(range(48))
NONCE = b"n" * 16
REPORT_DATA = b"r" * 64


class Service:
    """A running service, and the lines that it said."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.socket = folder / "socket"
        self.lines: list[str] = []


@pytest.fixture
def service(tmp_path: Path) -> Iterator[Service]:
    service = Service(tmp_path)
    with MockTdHost(TEE, service.socket, service.lines.append):
        yield service


def test_a_guest_is_measured(service: Service) -> None:
    fd, uki = files(service.folder / "out")
    with qemu(service.folder, service.socket, options(fd, uki, CONFIG)) as guest:
        nonce, status, raw = guest.ask(NONCE, REPORT_DATA)
        assert (nonce, status) == (NONCE, QUOTED)
        pid = guest.process.pid
    body = Quote.parse(raw).body
    assert (body.report_data, body.mr_config_id) == (REPORT_DATA, CONFIG)
    assert body.mr_td == tdvf.mr_td(fd.read_bytes(), HostProfile.UPSTREAM.page_order)
    assert body.rtmr1 == rtmr.rtmr1(uki.read_bytes(), BootPath.KERNEL)
    assert body.rtmr2 == rtmr.rtmr2(uki.read_bytes())
    assert body.rtmr3 == bytes(48)
    VERIFIER.verify(raw, COLLATERAL, NOW)
    (line,) = service.lines
    assert line == (
        f"guest {pid}: firmware {fd}, image {uki}, "
        f"mr_td {body.mr_td.hex()}, mrconfigid {CONFIG.hex()}"
    )


def test_relative_paths_are_those_of_the_guest(service: Service) -> None:
    files(service.folder / "out")
    words = options("out/x.fd", "out/x.efi", CONFIG)
    with qemu(service.folder, service.socket, words) as guest:
        assert guest.ask(NONCE, REPORT_DATA)[1] == QUOTED


def test_several_at_once(service: Service) -> None:
    one, two = files(service.folder / "one"), files(service.folder / "two", b"other")
    with (
        qemu(service.folder, service.socket, options(*one, CONFIG)) as first,
        qemu(service.folder, service.socket, options(*two, bytes(48))) as second,
    ):
        bodies = [Quote.parse(g.ask(NONCE, REPORT_DATA)[2]).body for g in (second, first, second)]
    assert bodies[0] == bodies[2]
    assert bodies[0].mr_td != bodies[1].mr_td
    assert [body.mr_config_id for body in bodies] == [bytes(48), CONFIG, bytes(48)]


def test_a_running_guest_keeps_what_it_was_started_with(service: Service) -> None:
    fd, uki = files(service.folder / "out")
    with qemu(service.folder, service.socket, options(fd, uki, CONFIG)) as guest:
        before = guest.ask(NONCE, REPORT_DATA)
        shutil.rmtree(service.folder / "out")
        files(service.folder / "out", b"a later build")
        assert guest.ask(NONCE, REPORT_DATA) == before


def says_no(service: Service, guest: Qemu, words: str) -> None:
    for _ in range(2):
        nonce, status, text = guest.ask(NONCE, REPORT_DATA)
        assert (nonce, status) == (NONCE, REFUSED)
        assert words in text.decode()
    (line,) = service.lines
    assert line.startswith(f"guest {guest.process.pid}: refused: ")
    assert words in line


@pytest.mark.parametrize(
    ("more", "rule"),
    [
        (["-append", "evil=1"], "mock-td.option"),
        (["-initrd", "x"], "mock-td.option"),
        (["-fw_cfg", "name=opt/x,string=y"], "mock-td.option"),
        (["-smbios", "type=11,value=x"], "mock-td.option"),
        (["-device", "virtio-net-pci"], "mock-td.device"),
        (["-device", "virtio-blk-pci,romfile=x"], "mock-td.device"),
        (["-kernel", "other"], "mock-td.files"),
        (["-chardev", f"null,id=mock-td-{bytes(48).hex()}"], "mock-td.config-id"),
    ],
    ids=" ".join,
)
def test_a_guest_that_is_not_measured(service: Service, more: list[str], rule: str) -> None:
    words = [*options(*files(service.folder / "out"), CONFIG), *more]
    with qemu(service.folder, service.socket, words) as guest:
        says_no(service, guest, f"{rule}: ")


def test_files_that_can_not_be_measured(service: Service) -> None:
    fd, uki = files(service.folder / "out")
    with qemu(service.folder, service.socket, options(uki, uki, CONFIG)) as guest:
        says_no(service, guest, "tdvf")
    service.lines.clear()
    with qemu(service.folder, service.socket, options(fd, "absent", CONFIG)) as guest:
        says_no(service, guest, "file.read: ")


def test_a_peer_that_is_no_emulator(service: Service) -> None:
    with socket.socket(socket.AF_UNIX) as peer:
        peer.settimeout(10)
        peer.connect(str(service.socket))
        peer.sendall(LEAD + NONCE + REPORT_DATA)
        assert peer.recv(4096)[4:21] == NONCE + bytes([REFUSED])
    (line,) = service.lines
    assert line.startswith(f"guest {os.getpid()}: refused: ")


def test_a_guest_that_starts_anew(service: Service) -> None:
    """After half a request, and with bytes that are none before it."""
    words = options(*files(service.folder / "out"), CONFIG)
    with qemu(service.folder, service.socket, words) as guest:
        guest.send(b"what was left" + LEAD + b"o" * 16 + b"half")
        guest.send(IDLE + LEAD + NONCE + REPORT_DATA)
        assert guest.receive()[0] == b"o" * 16
        nonce, status, raw = guest.receive()
        assert (nonce, status) == (NONCE, QUOTED)
        assert Quote.parse(raw).body.report_data == REPORT_DATA


def test_too_many(service: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mock_td_host, "MAX_GUESTS", 1)
    path = service.folder / "small"
    said: list[str] = []
    with MockTdHost(TEE, path, said.append), socket.socket(socket.AF_UNIX) as first:
        first.settimeout(10)
        first.connect(str(path))
        first.sendall(LEAD + NONCE + REPORT_DATA)
        assert first.recv(1)
        with socket.socket(socket.AF_UNIX) as second:
            second.settimeout(10)
            second.connect(str(path))
            assert second.recv(1) == b""
    assert said[1:] == ["one guest too many: there are 1"]


def test_the_socket(tmp_path: Path) -> None:
    path = tmp_path / "socket"
    with MockTdHost(TEE, path, print):
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
        with refused(FileUnreadable, "listen"):
            MockTdHost(TEE, path, print)
        assert path.exists()
    assert not path.exists()


def test_a_stale_socket_is_replaced(tmp_path: Path) -> None:
    path = tmp_path / "socket"
    with socket.socket(socket.AF_UNIX) as crashed:
        crashed.bind(str(path))
    assert path.is_socket()
    with MockTdHost(TEE, path, print):
        assert path.is_socket()


@pytest.mark.parametrize("name", ["file", "absent/socket", "x" * 120])
def test_where_it_can_not_listen(tmp_path: Path, name: str) -> None:
    (tmp_path / "file").write_bytes(b"kept")
    with refused(FileUnreadable, "listen"):
        MockTdHost(TEE, tmp_path / name, print)
    assert (tmp_path / "file").read_bytes() == b"kept"


def test_measured_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fd, uki = files(tmp_path / "out")
    measurer, launch = Measurer(TEE), Launch(fd, uki, CONFIG)
    guest = measurer.guest(launch)
    assert measurer.guest(launch).service is guest.service
    assert measurer.guest(Launch(fd, uki, bytes(48))).service is not guest.service
    uki.write_bytes(uki.read_bytes() + b"\0")
    assert measurer.guest(launch).service is not guest.service
    monkeypatch.setattr(mock_td_host, "MAX_CACHED", 1)
    last = measurer.guest(launch)
    for number in range(3):
        measurer.guest(Launch(fd, uki, bytes([number]) * 48))
    assert measurer.guest(launch).service is not last.service


def test_it_is_what_the_builder_writes(tmp_path: Path) -> None:
    """A list made of measurements.json accepts these registers."""
    fd, uki = files(tmp_path / "out")
    body = Quote.parse(Measurer(TEE).guest(Launch(fd, uki, CONFIG)).service.quote(bytes(64))).body
    entries = record.measure_image(
        "server",
        fd.read_bytes(),
        uki.read_bytes(),
        is_dev=True,
        boot_proof=record.BootProof.SKIPPED,
    ).entries
    registers = [(e.mr_td, e.rtmr1, e.rtmr2) for e in entries]
    assert (body.mr_td, body.rtmr1, body.rtmr2) in registers


@given(
    junk=st.lists(st.binary(max_size=20), max_size=3),
    cuts=st.lists(st.integers(0, 300), max_size=5),
)
def test_requests_are_found_however_they_arrive(junk: list[bytes], cuts: list[int]) -> None:
    stream = b"".join(part + LEAD + NONCE + REPORT_DATA for part in junk)
    if any(LEAD[:4] in part for part in junk):
        return
    received, found = bytearray(), []
    edges = [0, *sorted(cut for cut in cuts if cut < len(stream)), len(stream)]
    for start, end in pairwise(edges):
        received += stream[start:end]
        while (request := take(received)) is not None:
            found.append(request)
        assert len(received) < REQUEST_SIZE
    assert found == [(NONCE, REPORT_DATA)] * len(junk)
