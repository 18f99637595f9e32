"""The systemd units for bare hosts: what they say, and what systemd itself says of them."""

from __future__ import annotations

import configparser
import shutil
import subprocess
from pathlib import Path

import pytest

from zipnet.preflight import Role

FOLDER = Path(__file__).resolve().parents[1] / "packaging/systemd"
# Tenths of the exposure that `systemd-analyze security` computes; 100 is a service without limits.
EXPOSURE = 20
ROLES = [str(role) for role in Role]


def unit(role: str) -> Path:
    return FOLDER / f"zipnet-{role}@.service"


def parsed(role: str) -> configparser.ConfigParser:
    parser = configparser.ConfigParser(interpolation=None, strict=False, delimiters=("=",))
    parser.optionxform = str  # type: ignore[assignment,method-assign]
    parser.read_string(unit(role).read_text("ascii"))
    return parser


def analyze(*arguments: str) -> subprocess.CompletedProcess[str]:
    program = shutil.which("systemd-analyze")
    if program is None:
        pytest.skip("systemd-analyze is not installed")
    done = subprocess.run(
        [program, *arguments], capture_output=True, text=True, check=False, timeout=60
    )
    if "unrecognized option" in done.stderr:
        pytest.skip("this systemd can't analyze a file")
    return done


def test_there_is_one_for_each_role() -> None:
    assert {path.name for path in FOLDER.iterdir()} == {unit(role).name for role in ROLES}


@pytest.mark.parametrize("role", ROLES)
def test_several_instances_on_a_host(role: str) -> None:
    service = parsed(role)["Service"]
    assert service["EnvironmentFile"] == "/etc/zipnet/%i.env"
    # Roles and instances don't share a folder: each has a user of its own.
    assert service["StateDirectory"] == f"zipnet/%i/{role}"
    assert service["Environment"] == f"ZIPNET_STATE=%S/{service['StateDirectory']}"
    assert service["DynamicUser"] == "yes"
    assert service["ExecStart"].endswith(f" {role}")
    assert "%i" in parsed(role)["Unit"]["Description"]


@pytest.mark.parametrize("role", ROLES)
def test_ready_and_restarted(role: str) -> None:
    service = parsed(role)["Service"]
    assert (service["Type"], service["NotifyAccess"]) == ("notify", "main")
    assert service["Restart"] == "on-failure"
    assert parsed(role)["Unit"]["StartLimitIntervalSec"] == "0"
    # A node ends within 5 s; a sixth of a minute is a node that hangs.
    assert service["TimeoutStopSec"] == "10s"


@pytest.mark.parametrize("role", ROLES)
def test_hardened(role: str) -> None:
    service = parsed(role)["Service"]
    assert service["CapabilityBoundingSet"] == ""
    for key in ("NoNewPrivileges", "PrivateDevices", "MemoryDenyWriteExecute", "ProtectHome"):
        assert service[key] == "yes"
    # Core files hold keys.
    assert service["LimitCORE"] == "0"
    done = analyze(
        "security", "--offline=true", "--no-pager", f"--threshold={EXPOSURE}", str(unit(role))
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr


@pytest.mark.parametrize("role", ROLES)
def test_systemd_takes_it(role: str, tmp_path: Path) -> None:
    copy = tmp_path / unit(role).name
    # The program is not installed here, and whether it is there is checked too.
    text = unit(role).read_text("ascii").replace("/opt/zipnet/bin/zipnet", "/bin/true")
    copy.write_text(text)
    done = analyze("verify", "--man=no", str(copy))
    assert copy.stem.partition("@")[0] not in done.stderr, done.stderr
    assert done.returncode == 0, done.stderr
    # It would say so.
    copy.write_text(text.replace("DynamicUser=", "DynamicUsers="))
    assert "DynamicUsers" in analyze("verify", "--man=no", str(copy)).stderr


def test_they_differ_in_the_role_only() -> None:
    texts = {unit(role).read_text("ascii").replace(role, "ROLE") for role in ROLES}
    lines = [text.splitlines() for text in texts]
    common = set(lines[0]).intersection(*lines)
    for one in lines:
        differing = [line for line in one if line not in common]
        assert all(line.startswith(("Description=", "After=")) for line in differing), differing
