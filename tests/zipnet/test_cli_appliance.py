"""The command of the guest: what it prints on the console, and how it ends."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import CliRunner

from attestation.errors import FileUnreadable, ProviderFailed
from attestation.providers.mock import MockTee
from attestation.providers.mock_td import MockTdProvider
from attestation.providers.tsm import TsmProvider
from attestation.quote import Quote
from tests.zipnet.test_preflight import put
from zipnet import __version__, preflight
from zipnet.cli import main
from zipnet.commands import appliance
from zipnet.commands.appliance import NO_TEE, start
from zipnet.errors import NoTdx
from zipnet.node import service
from zipnet.node.appliance import Machine, console, own_quote, provider_of
from zipnet.node.service_notify import Readiness
from zipnet.preflight import Role, look

TEE = MockTee(b"\x07" * 32)
PORT = "sys/class/virtio-ports/vport1p1/name"


def image(root: Path, role: Role, flavor: bytes = b"production\n") -> Path:
    return put(root, {preflight.ROLE: f"{role}\n".encode(), preflight.FLAVOR: flavor})


def tdx(root: Path) -> Path:
    put(root, {preflight.TDX_DEVICE: b"", f"{preflight.RTMR_FOLDER}/rtmr0": b"\1" * 48})
    (root / preflight.TSM_REPORT).mkdir(parents=True)
    return root


def printed(root: Path, capsys: pytest.CaptureFixture[str]) -> tuple[int, list[str]]:
    code = start(root)
    captured = capsys.readouterr()
    # Everything is for the console, in order.
    assert captured.err == ""
    return code, captured.out.splitlines()


@pytest.mark.parametrize("role", list(Role))
def test_without_tdx(role: Role, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, lines = printed(image(tmp_path, role), capsys)
    assert code == NO_TEE
    assert lines[0] == f"zipnet {role} {__version__}: preflight"
    # One plain line, the last one but for what to do next.
    found = [line for line in lines if not line.startswith(" ")][1:]
    assert len(found) == 1
    assert found[0].startswith(f"zipnet {role}: no TDX on this machine: a")
    assert found[0].endswith("so it stops here")
    assert lines[-1].startswith("  next: boot this image as a TD")
    assert ("as a service on a host" in lines[-1]) == (role is Role.AGGREGATOR)


@pytest.mark.parametrize("raw", [None, b"", b"gateway\n", b"\xff"])
def test_no_appliance(tmp_path: Path, raw: bytes | None) -> None:
    put(tmp_path, {} if raw is None else {preflight.ROLE: raw})
    with pytest.raises(FileUnreadable) as caught:
        start(tmp_path)
    assert (caught.value.rule, caught.value.exit_code) == ("appliance.role", 3)


def test_facts(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    put(
        image(tmp_path, Role.SERVER),
        {
            preflight.SECURE_BOOT: b"\6\0\0\0\1",
            preflight.LOCKDOWN: b"none integrity [confidentiality]",
            "proc/uptime": b"4.57 1",
            "proc/meminfo": b"MemTotal: 2097152 kB\nMemAvailable: 1048576 kB\n",
            "proc/net/udp": b"header\n 0: 00000000:0044 00000000:0000 07 0 0\n",
        },
    )
    _, lines = printed(tmp_path, capsys)
    assert lines[1:-2] == [
        "  flavor         production",
        "  tdx guest      no",
        "  configfs-tsm   absent",
        "  secure boot    on",
        "  lockdown       confidentiality",
        "  listening      udp/68",
        "  memory         1024 of 2048 MiB used",
        "  time           4.6 s since the kernel started",
        "  registers      none visible",
    ]


def test_unknown_facts(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    _, lines = printed(image(tmp_path, Role.SERVER), capsys)
    assert "  secure boot    unknown" in lines
    assert "  lockdown       unknown" in lines
    assert "  listening      nothing" in lines
    assert not any("memory" in line or "  time" in line for line in lines)


def test_mock_prints_its_event_log(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    log = bytes(range(256)) * 3
    put(image(tmp_path, Role.SERVER, b"mock\n"), {preflight.EVENT_LOG: log})
    code, lines = printed(tmp_path, capsys)
    found = [line.removeprefix("zipnet-event-log ") for line in lines if "event-log" in line]
    assert found[-1] == f"end of {preflight.EVENT_LOG}"
    assert base64.b64decode("".join(found[:-1])) == log
    assert max(map(len, found)) <= 120
    # Without its TEE it says how to have one.
    assert code == NO_TEE
    assert "no virtual TDX on this machine" in lines[-2]
    assert "run-qemu --emulate --mock-td" in lines[-1]


@pytest.mark.parametrize("flavor", [b"production\n", b"", b"mocking\n"])
def test_other_flavors_do_not(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], flavor: bytes
) -> None:
    put(image(tmp_path, Role.SERVER, flavor), {preflight.EVENT_LOG: b"log"})
    _, lines = printed(tmp_path, capsys)
    assert not any("event-log" in line for line in lines)


def test_what_quotes(tmp_path: Path) -> None:
    """TDX in a production image, in a mock image the mock's port: each that, whatever else."""
    for name, flavor, files, kind in (
        ("production", b"production\n", {PORT: b"org.zipnet.mock-td\n"}, TsmProvider),
        ("mock", b"mock\n", {PORT: b"org.zipnet.mock-td\n"}, MockTdProvider),
        ("mock without", b"mock\n", {}, None),
    ):
        root = put(image(tdx(tmp_path / name), Role.CLIENT, flavor), files)
        if kind is not None:
            assert type(provider_of(Role.CLIENT, look(root), root)) is kind
            continue
        with pytest.raises(NoTdx) as caught:
            provider_of(Role.CLIENT, look(root), root)
        assert caught.value.rule == "mock-td.none"


class Quoting:
    def quote(self, report_data: bytes) -> bytes:
        return TEE.quote(report_data, body={"mr_td": b"\xab" * 48, "mr_config_id": b"\xcd" * 48})


def test_it_begins(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    begun: list[Machine] = []

    def run(node: Callable[..., object], readiness: Readiness) -> int:
        begun.extend(node.args)  # type: ignore[attr-defined]
        readiness.ready("waits for its operator on port 7744")
        readiness.status("1 round\nof \x1b[2J many")
        readiness.status("1 round\nof \x1b[2J many")
        readiness.status("x" * 1000)
        readiness.stopping()
        return 0

    provider = Quoting()
    monkeypatch.setattr(appliance, "provider_of", lambda *_words: provider)
    monkeypatch.setattr(service, "run", run)
    code, lines = printed(image(tmp_path, Role.CLIENT), capsys)
    assert code == 0
    assert begun == [Machine(Role.CLIENT, provider, tmp_path)]
    assert (begun[0].host, begun[0].port, begun[0].metrics_port) == ("", 7744, 9464)
    assert f"  MR_TD          {'ab' * 48}" in lines
    assert f"  MRCONFIGID     {'cd' * 48}" in lines
    head = f"zipnet client {__version__}  MR_TD abababababababab..  "
    assert lines[-4:] == [
        f"{head}waits for its operator on port 7744",
        rf"{head}1 round of \x1b[2J many",
        f"{head}{'x' * 160}",
        f"{head}stopping",
    ]


def test_a_tee_that_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Failing:
        def quote(self, _report_data: bytes) -> bytes:
            raise ProviderFailed("no answer", rule="mock-td.timeout")

    monkeypatch.setattr(appliance, "provider_of", lambda *_words: Failing())
    with pytest.raises(ProviderFailed) as caught:
        start(image(tmp_path, Role.CLIENT))
    assert caught.value.exit_code == 3


def test_the_quote_of_its_own() -> None:
    asked: list[bytes] = []

    class Noting:
        def quote(self, report_data: bytes) -> bytes:
            asked.append(report_data)
            return TEE.quote(report_data)

    found = own_quote(Noting())
    assert isinstance(found, Quote)
    assert asked == [hashlib.sha512(b"zipnet/appliance/self/v1").digest()]
    shown: list[str] = []
    console(Role.SERVER, "1", found, shown.append)("é" * 3)
    assert shown[0].endswith(r"\xe9\xe9\xe9")


def test_on_a_host() -> None:
    result = CliRunner().invoke(main, ["appliance"])
    assert (result.exit_code, "rule: appliance.role" in result.stderr) == (3, True)
