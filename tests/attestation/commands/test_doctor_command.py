"""`attestation doctor`: five broken environments, five diagnoses, each with its next step."""

import json
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import click
import pytest
from click.testing import CliRunner, Result

from attestation.collateral_cache import Bundle
from attestation.commands import doctor as command
from attestation.commands.doctor import doctor
from attestation.commands.group import ExplainedGroup
from attestation.doctor import Area, is_td
from attestation.doctor_system import RealSystem
from attestation.providers import QuoteProvider
from attestation.providers.mock_server import Fault, Item, MockPccs
from attestation.verify import Collateral
from tests.attestation.doctor_support import DAY, GOOD, NOW, FakeSystem, cpuinfo, guest, host
from tests.attestation.mock_support import OTHER, TEE
from tests.attestation.providers.fake_tsm import FakeTsm, Host


@click.group(cls=ExplainedGroup)
def main() -> None:
    pass


main.add_command(doctor)


class Run:
    """The command, on a machine that the test describes."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.folder = folder
        self.monkeypatch = monkeypatch
        (folder / "root").write_bytes(TEE.root_der)
        (folder / "other-root").write_bytes(OTHER.root_der)
        self.collateral(GOOD)

    def collateral(self, collateral: Collateral) -> None:
        (self.folder / "bundle").write_bytes(Bundle.of(collateral).dumps())
        (self.folder / "bare").write_bytes(collateral.dumps())

    def __call__(self, system: FakeSystem, *arguments: str) -> Result:
        self.monkeypatch.setattr(command, "RealSystem", lambda: system)
        return self.real("--mock-root", "root", *arguments)

    def real(self, *arguments: str) -> Result:
        self.monkeypatch.chdir(self.folder)
        return CliRunner().invoke(main, ["doctor", *arguments])


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    return Run(tmp_path, monkeypatch)


BUNDLE = ("--collateral", "bundle")


def test_a_good_guest(run: Run) -> None:
    for name in ("bundle", "bare"):
        result = run(guest(), "--collateral", name)
        assert (result.exit_code, result.stderr) == (0, "")
        lines = result.stdout.splitlines()
        assert lines[0].split() == ["area", "check", "status", "found"]
        assert lines[-1] == "verdict: nothing failed"
        assert len(lines) == 15
        # The columns stand in line.
        column = lines[0].index("status")
        assert {line[column - 2 : column + 4] for line in lines[1:-1]} == {"  ok  "}


def test_a_warning_is_no_failure(run: Run) -> None:
    system = guest()
    system.files["/dev/tpmrm0"] = b""
    result = run(system, *BUNDLE)
    assert result.exit_code == 0
    assert "a host-run vTPM protects nothing here" in result.stdout
    lines = result.stdout.splitlines()
    assert lines[-2].startswith("next: TPM, TPM: seal nothing with it")
    assert lines[-1] == "verdict: nothing failed, 1 warning"


EXPIRED = TEE.collateral(issued=NOW - 60 * DAY, expires=NOW - 30 * DAY)
FIVE: list[tuple[Callable[[], FakeSystem], Collateral, str, str]] = [
    # No TD.
    (
        lambda: replace(guest(), files={"/proc/cpuinfo": cpuinfo("hypervisor")}),
        GOOD,
        "guest: no TD: a virtual machine without TDX",
        "confidential-guest-support=tdx-guest",
    ),
    # QEMU without quote-generation-socket.
    (
        lambda: guest(tsm=FakeTsm(host=[Host.REFUSES_CALL])),
        GOOD,
        "hypervisor: the hypervisor or the quoting service of the host refused the request",
        "start QEMU with quote-generation-socket",
    ),
    # No quoting service, or an old one.
    (
        lambda: guest(tsm=FakeTsm(host=[Host.REFUSES_QUOTE])),
        GOOD,
        "quoting service: the kernel gave an empty or incomplete quote",
        "DCAP 1.21",
    ),
    # Nobody fetched it in time.
    (guest, EXPIRED, "collateral: tcb_info expired 30 days ago", "attestation collateral fetch"),
    # A year behind.
    (
        lambda: guest(time=NOW - 365 * DAY, written=NOW - 500 * DAY),
        GOOD,
        "clock: 2025-01-01 00:00Z, before tcb_info was issued and signed (2025-12-27 00:00Z)",
        "timedatectl",
    ),
]


@pytest.mark.parametrize(
    ("broken", "collateral", "verdict", "hint"),
    FIVE,
    ids=[case[2].partition(":")[0] for case in FIVE],
)
def test_five_broken_environments(
    run: Run, broken: Callable[[], FakeSystem], collateral: Collateral, verdict: str, hint: str
) -> None:
    run.collateral(collateral)
    result = run(broken(), "--guest", *BUNDLE)
    print(result.stdout)
    assert result.exit_code == 3
    assert f"verdict: {verdict}" in result.stdout.splitlines()[-1]
    steps = [line for line in result.stdout.splitlines() if line.startswith("next: ")]
    area = verdict.partition(":")[0]
    assert [step for step in steps if step.startswith(f"next: {area}, ") and hint in step]
    shown = json.loads(run(broken(), "--guest", *BUNDLE, "--json").stdout)
    assert shown["verdict"] == area
    assert [c["area"] for c in shown["checks"] if c["status"] == "fail"] == [area]


class Online(FakeSystem):
    """Its clock is right, and its web is the real one."""

    def http_date(self, url: str) -> datetime:
        return RealSystem().http_date(url)


def online() -> FakeSystem:
    made = guest()
    now = datetime.now(UTC)
    return Online(made.files, tsm=made.tsm, time=now, written=now - 9 * DAY)


def test_a_service(run: Run) -> None:
    with MockPccs(TEE.collateral()) as pccs:
        result = run(online(), "--url", pccs.url)
        assert (result.exit_code, result.stderr) == (0, "")
        assert "as the collateral service says" in result.stdout
        assert "UpToDate" in result.stdout
        system = online()
        # A little more: the answer comes up to seconds after the question.
        system.time += timedelta(days=365, minutes=5)
        result = run(system, "--url", pccs.url)
        assert "verdict: clock: " in result.stdout
        assert "365 days ahead of the collateral service" in result.stdout
        pccs.faults[Item.TCB_INFO] = Fault(status=503)
        result = run(online(), "--url", pccs.url)
        assert "rule source.busy" in result.stdout.splitlines()[-1]
    result = run(online(), "--url", pccs.url)
    assert result.exit_code == 3
    assert f"verdict: collateral: {pccs.url[7:]} does not answer" in result.stdout


def test_a_slow_service(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each answer in time, all of them not."""
    monkeypatch.setattr(command, "FETCH_SECONDS", 0.5)
    with MockPccs(TEE.collateral()) as pccs:
        pccs.faults = {item: Fault(delay=0.3) for item in Item}
        result = run(online(), "--url", pccs.url)
    assert result.exit_code == 3
    assert "verdict: collateral: collateral service is too slow" in result.stdout


def test_which_machine_this_is(run: Run) -> None:
    def where(system: FakeSystem, *arguments: str) -> str:
        shown = json.loads(run(system, "--offline", "--json", *arguments).stdout)
        names = {check["name"] for check in shown["checks"]}
        assert ("KVM" in names) == (shown["machine"] == "host")
        return str(shown["machine"])

    assert where(guest()) == "guest"
    assert where(host()) == "host"
    assert where(host(), "--guest") == "guest"
    assert where(guest(), "--host") == "host"


def test_whom_it_asks(run: Run) -> None:
    """Intel's service or the PCCS of the settings by default; the one that is named; nobody."""

    def asked(system: FakeSystem, *arguments: str) -> Sequence[str]:
        run(system, *arguments)
        return system.asked

    down = OSError("down")
    assert asked(guest(date=down)) == ["https://api.trustedservices.intel.com"]
    assert asked(guest(date=down), "--url", "https://a.example") == ["https://a.example"]
    assert asked(guest(date=down), "--offline") == []
    assert asked(guest(date=down), *BUNDLE) == []
    (settings,) = asked(host(date=down))
    assert "pccs.example" in settings
    assert asked(host(date=down), "--url", "https://a.example") == ["https://a.example"]
    assert asked(host(date=down), "--offline") == []
    assert asked(host(date=down), *BUNDLE) == []


def test_what_comes_from_outside_is_shown_not_obeyed(run: Run) -> None:
    system = guest(kernel="6.18\x1b[31m\nverdict: fine\u202e" + "x" * 999)
    result = run(system, *BUNDLE)
    assert "\x1b" not in result.stdout
    assert result.stdout.isascii()
    assert len(result.stdout.splitlines()) == 15
    assert max(map(len, result.stdout.splitlines())) < 460


@pytest.mark.parametrize(
    ("arguments", "code", "text"),
    [
        (["--offline", "--url", "https://x"], 1, "exclude each other"),
        (["--offline", *BUNDLE], 1, "exclude each other"),
        (["--url", "https://x", *BUNDLE], 1, "exclude each other"),
        (["--url", "http://x.example"], 2, "rule: source.plain-http"),
        (["--url", "https://user:secret@x"], 2, "rule: source.url-parts"),
        (["--collateral", "missing"], 3, "rule: file.read"),
        (["--collateral", "root"], 2, "rule: "),
        (["--offline", "--mock-root", "missing"], 3, "rule: file.read"),
        (["--nope"], 1, "No such option"),
    ],
)
def test_failures(run: Run, arguments: list[str], code: int, text: str) -> None:
    result = run(guest(), *arguments)
    assert (result.exit_code, result.stdout) == (code, "")
    assert text in result.stderr
    assert "secret" not in result.stderr


def test_collateral_of_another_root(run: Run) -> None:
    result = run(guest(), *BUNDLE, "--mock-root", "other-root")
    assert "verdict: collateral: " in result.stdout
    result = run.real("--guest", *BUNDLE, "--mock-root", "other-root")
    assert result.exit_code == 3


def test_names_fit_their_column(run: Run) -> None:
    for system in (guest(), host()):
        shown = json.loads(run(system, "--offline", "--json").stdout)
        for check in shown["checks"]:
            assert len(check["name"]) <= command._NAME
            assert check["area"] in set(Area)


def test_a_provider_from_outside(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """As for `attestation quote`: whoever embeds the command may bring a provider."""
    seen = []

    def system(provider: QuoteProvider) -> FakeSystem:
        seen.append(provider)
        return guest()

    monkeypatch.setattr(command, "RealSystem", system)
    CliRunner().invoke(main, ["doctor", "--offline"], obj=TEE)
    assert seen == [TEE]


def test_this_very_machine(run: Run) -> None:
    """The real one, which in nearly all places has no TDX. It must end, and say so."""
    started = time.monotonic()
    result = run.real("--offline")
    print(result.stdout)
    assert time.monotonic() - started < 60
    assert result.stderr == ""
    assert result.stdout.splitlines()[-1].startswith("verdict: ")
    parameter = Path("/sys/module/kvm_intel/parameters/tdx")
    if not is_td(RealSystem()) and not (parameter.exists() and "Y" in parameter.read_text("ascii")):
        assert result.exit_code == 3
        assert "verdict: hypervisor: no TDX: " in result.stdout
        asked = run.real("--offline", "--guest")
        assert asked.exit_code == 3
        assert "verdict: guest: no TD: " in asked.stdout
