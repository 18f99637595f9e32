"""`zipnet nats-config`: files that nats-server takes, keys, certificates and pins."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import click
import pytest
from click.testing import CliRunner, Result

from attestation.bundle import Role
from attestation.commands.group import ExplainedGroup
from tests.zipnet.configs import CONFIG
from tests.zipnet.network.nats_cluster import program
from zipnet import config_file
from zipnet.commands.nats_config import nats_config
from zipnet.network.bus_keys import BusKeys
from zipnet.network.nkeys import Kind, public_text
from zipnet.network.tls import pin
from zipnet.node.state import UnsafePlainState
from zipnet.protocol.instance import Instance

SERVER, AGGREGATOR = "11" * 32, "22" * 32


@click.group(cls=ExplainedGroup)
def main() -> None:
    """A program with this command."""


main.add_command(nats_config)


def call(*arguments: object, code: int = 0) -> Result:
    result = CliRunner().invoke(main, ["nats-config", *map(str, arguments)])
    assert result.exit_code == code, result.output
    return result


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "acme.toml").write_text(config_file.dumps(CONFIG))
    return tmp_path


def certificate(folder: Path, name: str) -> tuple[Path, Path, str]:
    cert, key = folder / f"{name}.crt", folder / f"{name}.key"
    result = call("cert", "--name", name, "--host", "127.0.0.1", "--cert", cert, "--key", key)
    return cert, key, result.stdout.strip()


def options(folder: Path, **changes: object) -> list[object]:
    """What a single node needs; None leaves an option out."""
    cert, key = folder / "edge.crt", folder / "edge.key"
    if not cert.exists():
        certificate(folder, "edge")
    values = {
        "config": folder / "acme.toml",
        "node": "alpha",
        "listen": "127.0.0.1:4222",
        "server": SERVER,
        "aggregator": AGGREGATOR,
        "issuer": public_text(Kind.ACCOUNT, b"\1" * 32),
        "responder": public_text(Kind.USER, b"\2" * 32),
        "system": public_text(Kind.USER, b"\3" * 32),
        "store": folder / "js",
        "tls-cert": cert,
        "tls-key": key,
        "out": folder / "nats.conf",
        **changes,
    }
    return [part for name, one in values.items() if one is not None for part in (f"--{name}", one)]


def check(path: Path) -> None:
    subprocess.run([program(), "-t", "-c", str(path)], check=True, capture_output=True)


def test_a_single_node(folder: Path) -> None:
    assert "nats-server -t -c" in call(*options(folder)).stdout
    text = (folder / "nats.conf").read_text()
    assert public_text(Kind.USER, bytes.fromhex(SERVER)) in text
    assert public_text(Kind.USER, bytes.fromhex(AGGREGATOR)) in text
    assert "cluster {" not in text
    check(folder / "nats.conf")


def test_one_of_three_nodes(folder: Path) -> None:
    cert, key, _ = certificate(folder, "alpha")
    other, _, other_pin = certificate(folder, "bravo")
    both = folder / "routes.pem"
    both.write_bytes(cert.read_bytes() + other.read_bytes())
    routes = ("--route", "127.0.0.1:6222", "--route-cert", cert, "--route-key", key)
    peers = ("--peer", f"bravo=127.0.0.1:6223={other_pin}")
    call(*options(folder), *routes, "--route-ca", both, *peers)
    assert other_pin in (folder / "nats.conf").read_text()
    check(folder / "nats.conf")


def test_what_is_there_is_not_replaced(folder: Path) -> None:
    given = options(folder)
    call(*given)
    assert "rule: file.write" in call(*given, code=3).stderr


@pytest.mark.parametrize("name", ["node", "listen", "issuer", "store", "tls-key", "out"])
def test_missing_options(folder: Path, name: str) -> None:
    assert f"missing --{name}" in call(*options(folder, **{name: None}), code=1).stderr


def test_wrong_options(folder: Path) -> None:
    assert "config.missing" in call(*options(folder, config=None), code=2).stderr
    assert "node.servers" in call(*options(folder, server=None, out=folder / "b"), code=2).stderr
    given = options(folder, out=folder / "c")
    for peer, code, words in (
        ("bravo", 1, "NAME=HOST:PORT=PIN"),
        ("bravo=127.0.0.1:1=zz", 2, "node.pin"),
        (f"bravo=127.0.0.1:1={'0' * 64}", 1, "missing --route, --route-cert"),
    ):
        assert words in call(*given, "--peer", peer, code=code).stderr


def test_keys_of_a_state_and_of_a_secret(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    state = UnsafePlainState.open(
        folder / "server.state", Role.SERVER, Instance(bytes(32), bytes(32)), lambda n: b"\5" * n
    )
    identity, boots = state.identity, state.boot_epoch
    expected = BusKeys.of(identity).public | {"peer": identity.peer.hex()}
    # Also while the server runs; and it counts as no boot.
    for path in (folder, folder / "server.state"):
        assert json.loads(call("keys", "--state", path, "--json").stdout) == expected
    state.close()
    again = UnsafePlainState.open(
        folder / "server.state", Role.SERVER, Instance(bytes(32), bytes(32)), lambda n: b"\6" * n
    )
    assert again.boot_epoch == boots + 1
    again.close()
    table = call("keys", "--state", folder).stdout
    assert f"issuer     {expected['issuer']}" in table
    assert b"\5".hex() * 32 not in table
    mock = config_file.dumps(CONFIG).replace('anchor = "tdx"', f'anchor = "mock={"7" * 64}"')
    (folder / "acme.toml").write_text(mock)
    secret = folder / "secret"
    secret.write_text("a text of one's own\n")
    config = ("--config", folder / "acme.toml")
    first = json.loads(call("keys", *config, "--secret-file", secret, "--json").stdout)
    assert first["issuer"][0] == "A"
    assert [first[name][0] for name in ("responder", "system", "user")] == ["U"] * 3
    assert len(set(first.values())) == 5
    monkeypatch.setenv("ZIPNET_SECRET", "a text of one's own")
    assert json.loads(call("keys", *config, "--json").stdout) == first
    monkeypatch.delenv("ZIPNET_SECRET")
    assert "give --state" in call("keys", *config, code=1).stderr


def test_keys_of_what_is_no_state(folder: Path) -> None:
    assert "rule: file.read" in call("keys", "--state", folder, code=3).stderr
    (folder / "server.state").write_bytes(b"")
    assert "rule: node-state" in call("keys", "--state", folder, code=2).stderr
    state = UnsafePlainState.open(
        folder / "client.state", Role.CLIENT, Instance(bytes(32), bytes(32)), lambda n: b"\5" * n
    )
    state.close()
    result = call("keys", "--state", folder / "client.state", code=2)
    assert "rule: state.role" in result.stderr


def test_certificates_and_their_pins(folder: Path) -> None:
    cert, key, printed = certificate(folder, "alpha")
    assert printed == pin(cert.read_bytes())
    assert call("pin", cert).stdout.strip() == printed
    assert key.stat().st_mode & 0o777 == 0o600
    again = call("cert", "--name", "a", "--host", "a", "--cert", folder / "n", "--key", key, code=3)
    assert "rule: file.write" in again.stderr
    assert "rule: certificate.pem" in call("pin", key, code=2).stderr
