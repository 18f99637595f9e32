"""What nodes say of themselves before they start, and files that don't fit."""

from __future__ import annotations

import hashlib
import json
import re
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from attestation.cli import main as attestation
from attestation.measure.record import Measurements
from tests.zipnet.configs import CONFIG
from zipnet import config_file
from zipnet.cli import main
from zipnet.commands.settings import tree
from zipnet.config import Anchor
from zipnet.ids import server_id
from zipnet.unsafe_programs import Program, default_program

SECRET = {"ZIPNET_COMMITTEE_SECRET": "correct horse battery staple"}
MOCKED = replace(CONFIG, anchor=Anchor.mock(b"\x0b" * 32))


def run(*arguments: str, **env: str) -> Result:
    return CliRunner().invoke(main, list(arguments), env=env)


@pytest.fixture
def acme(tmp_path: Path) -> Path:
    path = tmp_path / "acme.mainnet.toml"
    path.write_text(config_file.dumps(MOCKED))
    return path


def facts(*arguments: str, **env: str) -> dict[str, str]:
    result = run(*arguments, "--json", **env)
    assert (result.exit_code, result.stderr) == (0, "")
    found: dict[str, str] = json.loads(result.stdout)
    return found


def test_the_keys_of_a_server(acme: Path, tmp_path: Path) -> None:
    words = ["server", "identity", "--config", str(acme), "--state", str(tmp_path / "state")]
    found = facts(*words, **SECRET)
    assert found == facts(*words, **SECRET), "keys are made once"
    assert found["server"] == server_id(bytes.fromhex(found["dh"])).hex()
    for name, letter in (("user", "U"), ("responder", "U"), ("system", "U"), ("issuer", "A")):
        assert re.fullmatch(f"{letter}[A-Z2-7]{{55}}", found[name])
    # The table says the same.
    table = run(*words, **SECRET).stdout
    assert dict(line.split() for line in table.splitlines()) == found
    other = run(*words, **{name: f"not {value}" for name, value in SECRET.items()})
    assert (other.exit_code, "rule: state.instance" in other.stderr) == (2, True)


def test_the_keys_of_an_aggregator(acme: Path, tmp_path: Path) -> None:
    words = ["aggregator", "identity", "--config", str(acme)]
    found = facts(*words, ZIPNET_STATE=str(tmp_path / "state"))
    node = tree(found["tree"]).nodes[0]
    assert (node.peer.hex(), node.dh_pub.hex()) == (found["peer"], found["dh"])
    # A secret text makes them too, the same everywhere.
    env = {"ZIPNET_SECRET": "of this aggregator"}
    made = [facts(*words, "--state", str(tmp_path / name), **env) for name in ("a", "b")]
    assert made[0] == made[1] != found
    result = run(*words, **env)
    assert (result.exit_code, "rule: state.none" in result.stderr) == (2, True)


def test_a_client_has_no_keys_to_publish(acme: Path) -> None:
    result = run("client", "identity", "--config", str(acme))
    assert (result.exit_code, result.stdout) == (1, "")


@pytest.mark.parametrize("raw", [b"", b"\x01" * 167, b"\x01" * 169, b"\x01" * 1000])
def test_an_endorsement_that_is_none(acme: Path, tmp_path: Path, raw: bytes) -> None:
    tee = tmp_path / "tee"
    CliRunner().invoke(attestation, ["mock-pki", str(tee)])
    root = Anchor.mock(hashlib.sha256((tee / "root.der").read_bytes()).digest())
    acme.write_text(config_file.dumps(replace(CONFIG, anchor=root)))
    (tmp_path / "word").write_bytes(raw)
    result = run(
        *("server", "--config", str(acme), "--mock-tee", str(tee)),
        *("--endorsement", str(tmp_path / "word"), "--state", str(tmp_path / "state")),
        *("--bootstrap", "nats://127.0.0.1:9"),
        **SECRET,
    )
    assert result.exit_code == 2
    assert "endorsement" in result.stderr or "too large" in result.stderr


def test_a_program_as_a_software_tee_measures_it(monkeypatch: pytest.MonkeyPatch) -> None:
    for words, program in (
        (["server"], default_program("server")),
        (["client", "--name", "patched"], Program("patched", "client")),
    ):
        result = run("config", "program", *words)
        assert (result.exit_code, result.stderr) == (0, "")
        assert Measurements.loads(result.stdout.encode()).entries == (program.measurement,)
    assert run("config", "program", "aggregator").exit_code == 1
    monkeypatch.setitem(sys.modules, "zipnet.unsafe_programs", None)
    result = run("config", "program", "server")
    assert (result.exit_code, "rule: program.absent" in result.stderr) == (3, True)


def test_following_a_folder(acme: Path, tmp_path: Path) -> None:
    words = ["subscribe", "--follow", "--config", str(acme), "--local", str(tmp_path)]
    result = run(*words)
    assert (result.exit_code, "--follow" in result.stderr) == (1, True)
