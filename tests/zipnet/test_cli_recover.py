"""`zipnet admin recover` over a network, and a server that is started with what it makes."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from pathlib import Path

import pytest
from blake3 import blake3
from click.testing import CliRunner, Result

from attestation.bundle import Role
from tests.simulator.world import World
from tests.zipnet.network.cases_group import history
from zipnet import config_file
from zipnet.cli import main
from zipnet.ids import UNIVERSE
from zipnet.network.group import LATEST, Pointer
from zipnet.network.index import check_universe
from zipnet.network.local import LocalNetwork
from zipnet.network.places import Places
from zipnet.network.recovery import Reopening
from zipnet.node.service_identity import kept
from zipnet.protocol.instance import generation

SECRET = b"sixteen bytes and more"


@pytest.fixture(scope="module")
def world() -> World:
    return history()


@pytest.fixture
def home(tmp_path: Path, world: World) -> Path:
    async def fill() -> None:
        network = await LocalNetwork.open(tmp_path / "net")
        await check_universe(network, UNIVERSE)
        places = Places.of(world.instance.deployment_id)
        assert world.state.checkpoint is not None
        assert world.checkpoint is not None
        blob = await (await network.blobs(places.blobs)).put(world.checkpoint.snapshot)
        table = await network.table(places.log(world.instance))
        await table.put(LATEST, Pointer(world.state.checkpoint, blob).encode())
        await network.close()

    asyncio.run(fill())
    (tmp_path / "config").write_text(config_file.dumps(world.config))
    (tmp_path / "secret").write_bytes(SECRET)
    (tmp_path / "other").write_bytes(SECRET + b" of another")
    for at, key in enumerate(world.operators):
        (tmp_path / f"{at}.key").write_text(key.private_bytes_raw().hex())
    return tmp_path


def sign(home: Path, at: int, *more: str, old: bytes) -> Result:
    words = ["admin", "recover", "--config", "config", "--local", "net", "--key", f"{at}.key"]
    words += ["--committee-secret-file", "secret", "--out", f"out{at}", "--recovery", "recovery"]
    words += [*more, "--generation", old.hex()]
    names = {"config", "net", "secret", f"{at}.key", "recovery", *(f"out{n}" for n in range(3))}
    return CliRunner().invoke(main, [str(home / one) if one in names else one for one in words])


def serve(home: Path, secret: str) -> Result:
    words = ["server", "--config", str(home / "config"), "--recovery", str(home / "recovery")]
    return CliRunner().invoke(main, [*words, "--committee-secret-file", str(home / secret)])


def test_from_the_network_to_a_server(home: Path, world: World) -> None:
    old = world.instance.generation
    first = sign(home, 0, old=old)
    assert (first.exit_code, first.stderr) == (0, "")
    assert "signatures   1 of 3" in first.stdout
    assert not (home / "recovery").exists()
    assert sign(home, 1, "--join", "out0", old=old).exit_code == 0
    last = sign(home, 2, "--join", "out1", old=old)
    assert (last.exit_code, last.stderr) == (0, "")
    assert "recovery     " in last.stdout
    made = Reopening.decode((home / "recovery").read_bytes())
    assert made.document == (home / "out2").read_bytes()
    committee = Places.of(world.instance.deployment_id).committee.raw
    assert made.unverified.new_generation == generation(committee, SECRET, 1)
    machine = made.machine(world.rules, world.instance.deployment_id)
    assert machine.state.recovering == made.pointer.checkpoint.digest
    result = serve(home, "secret")
    assert f"generation     {made.unverified.new_generation.hex()}" in result.stdout
    assert "rule: start.missing" in result.stderr
    result = serve(home, "other")
    assert result.exit_code == 2
    assert "rule: recovery.secret" in result.stderr
    (home / "recovery").write_bytes(made.encode()[:-1])
    assert "rule: recovery.truncated" in serve(home, "secret").stderr


def test_with_what_a_server_has_kept(home: Path, world: World) -> None:
    """For when the network has lost everything."""
    assert world.state.checkpoint is not None
    assert world.checkpoint is not None
    old, snapshot = world.instance.generation, world.checkpoint.snapshot
    pointer = Pointer(world.state.checkpoint, blake3(snapshot).digest())
    file, raw = home / "checkpoint", Reopening(pointer, b"", snapshot).encode()
    file.write_bytes(raw)
    for at in range(3):
        joined = ("--join", str(home / f"out{at - 1}")) if at else ()
        result = sign(home, at, str(file), *joined, old=old)
        assert result.exit_code == 0, result.stderr
    made = Reopening.decode((home / "recovery").read_bytes())
    assert replace(made, document=b"").encode() == raw
    # One that not all servers have signed is none.
    one = replace(pointer.checkpoint, signatures=pointer.checkpoint.signatures[1:])
    file.write_bytes(Reopening(replace(pointer, checkpoint=one), b"", snapshot).encode())
    result = sign(home, 0, str(file), old=old)
    assert (result.exit_code, "rule: checkpoint.signatures" in result.stderr) == (2, True)


def test_with_the_key_of_a_server(home: Path, world: World) -> None:
    """A bus shows the checkpoint to members only."""
    old, state = world.instance.generation, home / "server"
    result = sign(home, 0, "--state", str(state), old=old)
    assert result.exit_code == 3
    assert "rule: file.read" in result.stderr
    assert not state.exists()
    with kept(state, Role.SERVER, world.instance, config=world.config) as running:
        assert "rule: state.in-use" in sign(home, 0, "--state", str(state), old=old).stderr
        peer = running.identity.peer
    assert "signatures   1 of 3" in sign(home, 0, "--state", str(state), old=old).stdout
    with kept(state, Role.SERVER, world.instance, config=world.config) as again:
        assert again.identity.peer == peer


def test_what_is_not_there(home: Path, world: World) -> None:
    result = sign(home, 0, old=bytes(32))
    assert result.exit_code != 0
    assert "rule: checkpoint.none" in result.stderr
    result = sign(home, 0, str(home / "config"), old=world.instance.generation)
    assert "--recovery takes a signed" in " ".join(result.stderr.split())
    assert not (home / "out0").exists()
