"""Variables, flags and files: which wins, what must agree, and what a role says it lacks."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import click
import pytest
from blake3 import blake3
from click.testing import CliRunner, Result
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from tests.zipnet.configs import CONFIG, OPERATORS
from tests.zipnet.test_preflight import put
from zipnet import config_file, preflight
from zipnet.cli import main
from zipnet.commands.roles import start
from zipnet.commands.settings import Secrets, tree
from zipnet.config import Anchor, Config, deployment_id
from zipnet.datum import Blob
from zipnet.errors import ConfigRejected
from zipnet.preflight import Role
from zipnet.protocol.instance import generation

BUS = {"ZIPNET_BOOTSTRAP": "nats://a:4222,nats://b:4222"}
NAMED = " ".join(f"{one.name}={one.key.hex()}" for one in OPERATORS)
MOCKED = replace(CONFIG, anchor=Anchor.mock(b"\x0b" * 32))
MOCKED_COMMITTEE = deployment_id(MOCKED).derive("committee").raw
PHRASE = "correct horse battery staple"


def run(role: str, *arguments: str, **env: str) -> Result:
    return CliRunner().invoke(main, [role, *arguments], env=env)


@pytest.fixture
def acme(tmp_path: Path) -> Path:
    path = tmp_path / "acme.mainnet.toml"
    path.write_text(config_file.dumps(MOCKED))
    return path


def identity(config: Config) -> str:
    return deployment_id(config).hex()


def test_a_file_and_what_is_missing(acme: Path) -> None:
    result = run("aggregator", "--config", str(acme))
    assert result.exit_code == 3
    assert result.stdout.startswith("zipnet aggregator ")
    assert f"  fingerprint    {identity(MOCKED)}" in result.stdout.splitlines()
    assert "rule: start.missing" in result.stderr
    assert "ZIPNET_BOOTSTRAP (--bootstrap)" in result.stderr
    assert "COMMITTEE" not in result.stderr


def test_a_server_needs_more(acme: Path) -> None:
    result = run("server", ZIPNET_CONFIG=str(acme))
    assert result.exit_code == 3
    assert "ZIPNET_BOOTSTRAP" in result.stderr
    assert "ZIPNET_COMMITTEE_SECRET (--committee-secret-file)" in result.stderr
    result = run("server", ZIPNET_CONFIG=str(acme), ZIPNET_COMMITTEE_SECRET=PHRASE, **BUS)
    assert result.exit_code == 3
    assert "rule: start.missing" in result.stderr
    assert "ZIPNET_STATE (--state)" in result.stderr
    assert "ZIPNET_ENDORSEMENT (--endorsement)" in result.stderr
    assert "ZIPNET_BOOTSTRAP" not in result.stderr
    opened = generation(MOCKED_COMMITTEE, PHRASE.encode(), 0).hex()
    assert f"  generation     {opened}" in result.stdout.splitlines()


def test_an_aggregator_needs_keys(acme: Path) -> None:
    result = run("aggregator", "--config", str(acme), **BUS)
    assert result.exit_code == 3
    assert "ZIPNET_STATE (--state) or ZIPNET_SECRET" in result.stderr


@pytest.mark.parametrize(
    ("arguments", "rule"),
    [
        ([], "mock-tee.missing"),
        (["--mock-tee", "/nowhere"], "file.read"),
        (["--bus-certificates", "/nowhere"], "bus.certificates"),
        (["--bus-certificates", "/nowhere", "--bootstrap", "tls://a:4222"], "file.read"),
        (["--bootstrap", "tls://a:4222"], "bus.certificates"),
    ],
)
def test_a_client_that_can_not_start(acme: Path, arguments: list[str], rule: str) -> None:
    result = run("client", "--config", str(acme), *arguments, **BUS)
    assert result.exit_code in (2, 3)
    assert f"rule: {rule}" in result.stderr


def test_a_server_under_tdx_is_an_appliance(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    put(tmp_path, {preflight.TDX_DEVICE: b""})
    (tmp_path / preflight.TSM_REPORT).mkdir(parents=True)
    path = tmp_path / "t.toml"
    path.write_text(config_file.dumps(CONFIG))
    values = dict.fromkeys(("secret_file", "committee_secret_file", "recovery"))
    with pytest.raises(ConfigRejected) as caught:
        start(Role.SERVER, tmp_path, {"config": path, **values})
    assert (caught.value.rule, caught.value.exit_code) == ("start.appliance", 2)
    assert f"  fingerprint    {identity(CONFIG)}" in capsys.readouterr().out


@pytest.mark.parametrize("role", ["server", "client"])
def test_tdx_comes_before_the_network(role: str, tmp_path: Path) -> None:
    path = tmp_path / "t.toml"
    path.write_text(config_file.dumps(CONFIG))
    result = run(role, "--config", str(path), **BUS)
    assert (result.exit_code, result.stderr) == (3, "")
    assert result.stdout.endswith(f"a {role} must be attested, so it stops here\n")


@pytest.mark.parametrize(
    ("variables", "flags", "words"),
    [
        ({"ZIPNET_ROUND_PERIOD": "3s"}, [], "ZIPNET_ROUND_PERIOD is 3000, not 2000"),
        ({}, ["--round-period", "3s"], "ZIPNET_ROUND_PERIOD is 3000, not 2000"),
        ({"ZIPNET_ROUND_PERIOD": "2s"}, ["--round-period", "3s"], "is 3000, not 2000"),
        ({"ZIPNET_ROUND_DEADLINE": "31s"}, [], "ZIPNET_ROUND_DEADLINE is 31000, not 30000"),
        ({"ZIPNET_FOLD_DEADLINE": "2s"}, [], "ZIPNET_FOLD_DEADLINE is 2000, not 1000"),
        ({"ZIPNET_MIN_PARTICIPANTS": "9"}, [], "ZIPNET_MIN_PARTICIPANTS is 9, not 3"),
        ({"ZIPNET_INSTANCE": "acme.test"}, [], "is acme.test, not acme.mainnet"),
        ({"ZIPNET_OPERATORS": "z=" + "07" * 32}, [], "ZIPNET_OPERATORS"),
    ],
)
def test_contradictions(
    acme: Path, variables: dict[str, str], flags: list[str], words: str
) -> None:
    if "ZIPNET_OPERATORS" in variables:
        # As many as there are, so that they make a configuration.
        variables = {"ZIPNET_OPERATORS": NAMED.replace("01" * 32, "07" * 32)}
    result = run("server", "--config", str(acme), *flags, **variables)
    assert result.exit_code == 2
    assert "rule: config.contradiction" in result.stderr
    assert words in result.stderr
    # Both fingerprints.
    assert f"fingerprint {identity(MOCKED)}" in result.stderr
    other = result.stderr.split("got ")[1].split()[0]
    assert len(other) == 64
    assert other != identity(MOCKED)


def test_agreement_and_the_flag_that_wins(acme: Path) -> None:
    agreeing = {
        "ZIPNET_INSTANCE": "acme.mainnet",
        "ZIPNET_ROUND_PERIOD": "5s",
        "ZIPNET_ROUND_DEADLINE": "30s",
        "ZIPNET_FOLD_DEADLINE": "1000ms",
        "ZIPNET_MIN_PARTICIPANTS": "3",
        "ZIPNET_OPERATORS": NAMED,
    }
    result = run("aggregator", "--config", str(acme), "--round-period", "2s", **agreeing)
    assert "rule: start.missing" in result.stderr
    assert identity(MOCKED) in result.stdout


def test_variables_alone() -> None:
    variables = {
        "ZIPNET_INSTANCE": "acme.mainnet",
        "ZIPNET_OPERATORS": NAMED,
        "ZIPNET_MIN_PARTICIPANTS": "5",
    }
    result = run("aggregator", **variables)
    base = Config.new("acme.mainnet", Blob, operators=OPERATORS)
    wanted = base.with_window(replace(base.window, min_participants=5))
    assert result.exit_code == 3
    assert identity(wanted) in result.stdout
    flags = [word for one in NAMED.split() for word in ("--operator", one)]
    again = run("aggregator", *flags, "--instance", "acme.mainnet", "--min-participants", "5")
    assert identity(wanted) in again.stdout


@pytest.mark.parametrize(
    ("variables", "missing"),
    [
        ({"ZIPNET_INSTANCE": "a"}, "ZIPNET_OPERATORS"),
        ({"ZIPNET_OPERATORS": NAMED}, "ZIPNET_INSTANCE"),
        ({"ZIPNET_ROUND_PERIOD": "2s"}, "ZIPNET_INSTANCE and ZIPNET_OPERATORS"),
    ],
)
def test_too_few_variables(variables: dict[str, str], missing: str) -> None:
    result = run("aggregator", **variables)
    assert result.exit_code == 2
    assert f"expected {missing}, got none\n  rule: config.missing" in result.stderr


def test_a_folder_of_configurations(acme: Path) -> None:
    result = run("aggregator", ZIPNET_CONFIG=str(acme.parent), ZIPNET_INSTANCE="acme.mainnet")
    assert identity(MOCKED) in result.stdout
    for name in ("acme.test", "../acme.mainnet", "/etc/passwd"):
        result = run("aggregator", ZIPNET_CONFIG=str(acme.parent), ZIPNET_INSTANCE=name)
        assert result.exit_code == 2
        assert "expected one of acme.mainnet\n  rule: instance.unknown" in result.stderr
    result = run("aggregator", ZIPNET_CONFIG=str(acme.parent))
    assert "no instance was named" in result.stderr


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--round-period", "2"], "500ms, 2s, 1m"),
        (["--metrics", "9100"], "host:port"),
        (["--metrics", "a:70000"], "host:port"),
        (["--operator", "a"], "NAME=HEXKEY"),
        (["--min-participants", "0"], "--min-participants"),
        (["--bootstrap", "a:4222"], "nats://host:port"),
        (["--bootstrap", "nats://a:4222,nats://me:word@b:4222"], "nats://host:port"),
        (["--secret", "x"], "No such option"),
    ],
)
def test_usage(arguments: list[str], words: str) -> None:
    result = run("aggregator", *arguments)
    assert (result.exit_code, result.stdout) == (1, "")
    assert words in result.stderr


def test_trees() -> None:
    peers = [f"{at:02x}" * 32 for at in range(1, 4)]
    found = tree(",".join(f"{peer}:{peer}:0" for peer in peers))
    assert [node.parent for node in found.nodes] == [0, 0, 0]
    assert [node.peer.hex() for node in found.nodes] == peers
    assert tree(f"{peers[0]}:{peers[1]}").nodes[0].dh_pub.hex() == peers[1]
    for text in ("", "ab:cd", f"{peers[0]}", f"{peers[0]}:{peers[0]}:7", f"{peers[0]}:{peers[0]},"):
        with pytest.raises(click.BadParameter):
            tree(text)


def test_a_variable_that_is_none() -> None:
    result = run("aggregator", ZIPNET_ROUND_PERIOD="often")
    assert (result.exit_code, result.stdout) == (1, "")
    assert "ZIPNET_ROUND_PERIOD" in result.stderr


def test_empty_variables_are_none() -> None:
    result = run("aggregator", ZIPNET_INSTANCE="", ZIPNET_OPERATORS="", ZIPNET_CONFIG="")
    assert (result.exit_code, "rule: config.missing" in result.stderr) == (2, True)


def test_secrets_are_not_echoed(acme: Path, tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_text(f"{PHRASE}\n")
    seed = blake3(PHRASE.encode()).digest()
    peer = Ed25519PrivateKey.from_private_bytes(seed).public_key().public_bytes_raw().hex()
    variables = {"ZIPNET_SECRET": PHRASE, "ZIPNET_COMMITTEE_SECRET": PHRASE}
    files = ["--secret-file", str(secret), "--committee-secret-file", str(secret)]
    other = {"ZIPNET_SECRET": "another"}
    for result in (
        run("server", "--config", str(acme), **variables),
        run("server", "--config", str(acme), *files, **other),
    ):
        assert f"  peer           {peer}" in result.stdout.splitlines()
        assert PHRASE not in result.output
        assert seed.hex() not in result.output
    assert PHRASE not in repr(Secrets(PHRASE, PHRASE.encode()))


def test_a_secret_that_is_short_or_none(acme: Path, tmp_path: Path) -> None:
    short = {"ZIPNET_COMMITTEE_SECRET": "short"}
    result = run("server", "--config", str(acme), **short)
    assert result.exit_code == 2
    assert "rule: committee-secret" in result.stderr
    empty = tmp_path / "empty"
    empty.write_bytes(b"\n")
    result = run("server", "--config", str(acme), "--secret-file", str(empty))
    assert result.exit_code == 2
    assert "rule: secret.file" in result.stderr
    result = run("server", "--config", str(acme), "--secret-file", str(tmp_path / "absent"))
    assert result.exit_code == 3


def test_no_secret_identity_under_tdx() -> None:
    for role in (Role.SERVER, Role.CLIENT):
        with pytest.raises(ConfigRejected) as caught:
            Secrets(PHRASE).signing_key(CONFIG, role)
        assert caught.value.rule == "secret.tdx"
        assert PHRASE not in caught.value.diagnostics()
        assert Secrets(PHRASE).signing_key(MOCKED, role) is not None
    assert Secrets(PHRASE).signing_key(CONFIG, Role.AGGREGATOR) is not None
    assert Secrets().signing_key(CONFIG, Role.SERVER) is None


def test_fewer_than_three_servers(tmp_path: Path) -> None:
    path = tmp_path / "two.toml"
    two = replace(
        MOCKED, operators=OPERATORS[:2], k=2, window=replace(MOCKED.window, min_servers=2)
    )
    path.write_text(config_file.dumps(two))
    result = run("server", "--config", str(path))
    assert "warning: 2 of 3 operators" in result.stderr
