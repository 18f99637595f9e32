"""`zipnet config`: what it writes and prints, and its exit codes."""

import json
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from tests.zipnet.configs import CONFIG, OPERATORS
from zipnet import config_file
from zipnet.cli import main
from zipnet.config import Anchor, Clients, ShuffleWindow, deployment_id
from zipnet.ids import UniqueId

NAMED = [word for each in OPERATORS for word in ("--operator", f"{each.name}={each.key.hex()}")]


def run(*arguments: str) -> Result:
    return CliRunner().invoke(main, ["config", *arguments])


@pytest.fixture
def acme(tmp_path: Path) -> str:
    path = tmp_path / "acme.toml"
    path.write_text(config_file.dumps(CONFIG))
    return str(path)


def test_new_prints() -> None:
    result = run("new", "acme.mainnet", *NAMED)
    assert (result.exit_code, result.stderr) == (0, "")
    config = config_file.loads(result.stdout)
    assert (config.name, config.operators, config.k) == ("acme.mainnet", OPERATORS, 3)
    assert (config.type_tag, config.wire_size) == ("zipnet.bytes", 256)
    assert (config.clients, config.anchor) == (Clients.ATTESTED, Anchor.tdx())
    assert config.window.num_slots == ShuffleWindow.interactive().num_slots
    # Each has an init of its own.
    again = config_file.loads(run("new", "acme.mainnet", *NAMED).stdout)
    assert again.init != config.init != bytes(32)


def test_new_writes(tmp_path: Path) -> None:
    path = tmp_path / "b.toml"
    options = ["--preset", "bulk", "--wire-size", "1000", "--type-tag", "acme.note", "--k", "2"]
    options += ["--anchor", "mock=" + "0b" * 32, "--clients", "unattested", "-o", str(path)]
    result = run("new", "b", *NAMED, *options)
    assert result.exit_code == 0
    config = config_file.load(path)
    assert result.stdout == deployment_id(config).hex() + "\n"
    assert (config.window.num_slots, config.wire_size, config.k) == (1024, 1000, 2)
    assert (config.type_tag, config.clients) == ("acme.note", Clients.UNATTESTED)
    assert config.anchor == Anchor.mock(b"\x0b" * 32)
    before = path.read_bytes()
    result = run("new", "b", *NAMED, *options)
    assert (result.exit_code, result.stdout) == (3, "")
    assert "rule: file.write" in result.stderr
    assert path.read_bytes() == before


@pytest.mark.parametrize("preset", ["interactive", "standard", "bulk"])
def test_presets(preset: str) -> None:
    result = run("new", "a", *NAMED, "--preset", preset)
    slots = getattr(ShuffleWindow, preset)().num_slots
    assert config_file.loads(result.stdout).window.num_slots == slots


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["new", "a"], "--operator"),
        (["new", *NAMED], "Missing argument 'NAME'"),
        (["new", "a", "--operator", "a"], "NAME=HEXKEY"),
        (["new", "a", "--operator", "a=00"], "64 lower-case hex digits"),
        (["new", "a", "--operator", "a=" + "AB" * 32], "64 lower-case hex digits"),
        (["new", "a", *NAMED, "--preset", "huge"], "huge"),
        (["new", "a", *NAMED, "--k", "0"], "--k"),
        (["fingerprint"], "Missing argument"),
        (["show"], "Missing argument"),
        (["print"], "No such command"),
        ([], "Usage"),
    ],
)
def test_usage_errors(arguments: list[str], words: str) -> None:
    result = run(*arguments)
    assert (result.exit_code, result.stdout) == (1, "")
    assert words in result.stderr


@pytest.mark.parametrize(
    ("arguments", "rule"),
    [
        (["new", "A", *NAMED], "name"),
        (["new", "a", *NAMED, *NAMED], "operators"),
        (["new", "a", "--operator", "a=" + "00" * 32], "operators.key"),
        (["new", "a", *NAMED, "--k", "4"], "k"),
        (["new", "a", *NAMED, "--wire-size", "0"], "datum.wire_size"),
        (["new", "a", *NAMED, "--wire-size", "100000"], "shape"),
        (["new", "a", *NAMED, "--type-tag", "é"], "datum.type_tag"),
        (["new", "a", *NAMED, "--anchor", "mock"], "anchor"),
    ],
)
def test_refused(arguments: list[str], rule: str) -> None:
    result = run(*arguments)
    assert (result.exit_code, result.stdout) == (2, "")
    assert f"rule: {rule}\n" in result.stderr


def test_fingerprint(acme: str) -> None:
    identity = deployment_id(CONFIG).hex()
    result = run("fingerprint", acme)
    assert (result.exit_code, result.stdout, result.stderr) == (0, identity + "\n", "")
    result = run("fingerprint", acme, "--json")
    assert json.loads(result.stdout) == {"name": "acme.mainnet", "deployment_id": identity}


@pytest.mark.parametrize("command", ["fingerprint", "show"])
def test_files_that_are_none(command: str, tmp_path: Path) -> None:
    path = tmp_path / "x.toml"
    result = run(command, str(path))
    assert (result.exit_code, result.stdout) == (3, "")
    assert "rule: file.read" in result.stderr
    path.write_text("schema = 1")
    result = run(command, str(path))
    assert (result.exit_code, result.stdout) == (2, "")
    assert "rule: file.missing" in result.stderr
    assert "Traceback" not in result.stderr


def test_show(acme: str) -> None:
    result = run("show", acme)
    assert (result.exit_code, result.stderr) == (0, "")
    lines = dict(line.split("  ", 1) for line in result.stdout.splitlines())
    shown = {name: value.strip() for name, value in lines.items()}
    identity = deployment_id(CONFIG)
    assert shown["deployment_id"] == identity.hex()
    assert shown["id live_round"] == identity.derive("live-round").hex()
    assert shown["payload_bytes"] == str(64 * 256 + 256 * 2)
    assert shown["operator b"] == "02" * 32
    assert shown["anchor"] == "tdx"
    # Aligned.
    assert (
        len(
            {
                len(line) - len(line.split("  ", 1)[1].lstrip())
                for line in result.stdout.splitlines()
            }
        )
        == 1
    )


def test_show_json(acme: str) -> None:
    result = run("show", acme, "--json")
    facts = json.loads(result.stdout)
    identity = UniqueId.of(facts["deployment_id"])
    assert identity == deployment_id(CONFIG)
    assert facts["ids"] == {
        name: identity.derive(name.replace("_", "-")).hex() for name in facts["ids"]
    }
    assert len(facts["ids"]) == 8
    assert facts["window"]["min_servers"] == 3
    assert facts["operators"] == {each.name: each.key.hex() for each in OPERATORS}
    assert facts["sizes"]["slot_bytes"] == 256
