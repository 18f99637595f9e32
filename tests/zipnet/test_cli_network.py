"""What reads and writes a network: on a folder that a demo left, and on a live instance."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import Awaitable, Callable
from dataclasses import replace
from pathlib import Path
from typing import TypeVar

import pytest
from click.testing import CliRunner, Result

from attestation.errors import AllowListRejected
from tests.zipnet.configs import CONFIG
from zipnet import config_file
from zipnet.access import Access
from zipnet.cli import main
from zipnet.commands import admin, archive, publish, status
from zipnet.commands.network import ask_servers, committee
from zipnet.commands.settings import Deployment
from zipnet.config import deployment_id
from zipnet.demo import CLIENT, SERVER, DemoInstance, Operators, demo_window
from zipnet.errors import Attestation, ConnectTimeout, Refused, Unavailable
from zipnet.ids import UNIVERSE
from zipnet.network.local import LocalNetwork
from zipnet.network.public import Ask, Request
from zipnet.node.service import collateral_source
from zipnet.operators import Dismissal
from zipnet.protocol.record import SignedRecord
from zipnet.roles.admission import config_digest
from zipnet.sdk import Outcome, Receipt
from zipnet.unsafe_programs import ProgramQuotes

T = TypeVar("T")


@pytest.fixture(scope="module")
def net(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("demo") / "net"
    words = ["demo", "--rounds", "3", "--clients", "3", "--messages", "4", "--round-period"]
    result = CliRunner().invoke(main, [*words, "100ms", "--local", str(folder)])
    assert result.exit_code == 0, result.output
    return folder


def run(net: Path, *arguments: str, **env: str) -> Result:
    words = [*arguments, "--config", str(net / "demo.local.toml"), "--local", str(net)]
    return CliRunner().invoke(main, words, env=env)


def test_status(net: Path) -> None:
    result = run(net, "status")
    assert (result.exit_code, result.stderr) == (0, "")
    assert "deployment         demo.local\n" in result.stdout
    assert result.stdout.count("server of ") == 3
    facts = json.loads(run(net, "status", "--json").stdout)
    config = config_file.load(net / "demo.local.toml")
    assert facts["fingerprint"] == deployment_id(config).hex()
    assert facts["last_final_round"] >= 3
    assert set(facts["servers"]) == {"alpha", "bravo", "charlie"}
    assert (facts["list"], facts["acpi"], facts["warning"]) == (1, "unverified", "")


def test_subscribe(net: Path) -> None:
    result = run(net, "subscribe")
    assert (result.exit_code, result.stderr) == (0, "")
    rows = [line.split(maxsplit=1) for line in result.stdout.splitlines()]
    assert sorted(text for _, text in rows) == [f"message {at}" for at in range(4)]
    first = min(int(number) for number, _ in rows)
    after = run(net, "subscribe", "--json", "--after", str(first))
    found = [json.loads(line) for line in after.stdout.splitlines()]
    assert len(found) == sum(int(number) > first for number, _ in rows)
    assert all(one["round"] > first for one in found)
    assert run(net, "subscribe", "--after", "1000").stdout == ""


def test_archive(net: Path, tmp_path: Path) -> None:
    out = tmp_path / "record"
    result = run(net, "archive", "get", "2", "-o", str(out))
    assert (result.exit_code, result.stderr) == (0, "")
    assert "servers       3\n" in result.stdout
    facts = json.loads(run(net, "archive", "get", "2", "--json").stdout)
    signed = SignedRecord.decode(out.read_bytes())
    assert (facts["round"], facts["record"]) == (2, signed.record.hash.hex())
    assert sum(facts["slots"].values()) == 32
    assert facts["slots"]["message"] == len(facts["messages"])
    again = run(net, "archive", "get", "2", "-o", str(out))
    assert (again.exit_code, again.stdout) == (3, "")
    result = run(net, "archive", "get", "999")
    assert (result.exit_code, result.stdout) == (2, "")
    assert "rule: archive.round" in result.stderr


def test_list(net: Path) -> None:
    result = run(net, "admin", "allow-list", "show")
    assert result.exit_code == 0
    assert f"server       {SERVER.measurement.mr_td.hex()}, development\n" in result.stdout
    document = json.loads(run(net, "admin", "allow-list", "show", "--json").stdout)
    assert document["number"] == 1
    assert len(document["entries"]) == 2


def test_a_folder_without_servers(net: Path, tmp_path: Path) -> None:
    bad = tmp_path / "list"
    bad.write_bytes(b"{}")
    result = run(net, "admin", "allow-list", "push", str(bad))
    assert (result.exit_code, result.stdout) == (2, "")
    assert "rule: envelope.fields" in result.stderr
    result = run(net, "publish", "hello")
    assert (result.exit_code, result.stdout) == (2, "")
    assert "rule: anchor" in result.stderr
    with pytest.raises(Attestation) as caught:
        collateral_source(None)(b"")
    assert (caught.value.rule, "--collateral FILE" in caught.value.hint) == ("collateral", True)
    root = tmp_path / "root"
    root.write_bytes(b"another root")
    collateral = tmp_path / "collateral"
    collateral.write_bytes(b"{}")
    result = run(net, "publish", "hello", "--mock-root", str(root))
    assert (result.exit_code, result.stdout) == (2, "")
    assert "rule: anchor" in result.stderr
    result = run(net, "publish", "hello", "--collateral", str(collateral))
    assert (result.exit_code, result.stdout) == (2, "")
    assert "collateral has other members" in result.stderr
    result = run(net, "publish", "x" * 1000)
    assert "rule: datum.content" in result.stderr


def test_another_universe(net: Path) -> None:
    result = run(net, "status", ZIPNET_UNIVERSE="mine")
    assert (result.exit_code, result.stdout) == (2, "")
    assert "rule: universe" in result.stderr


def test_another_deployment(net: Path, tmp_path: Path) -> None:
    path = tmp_path / "other.toml"
    path.write_text(config_file.dumps(CONFIG))
    words = ["--config", str(path), "--local", str(net)]
    for command in (["status"], ["subscribe"], ["archive", "get", "1"]):
        result = CliRunner().invoke(main, [*command, *words])
        assert (result.exit_code, result.stdout) == (3, "")
        assert "rule: connect" in result.stderr
        assert deployment_id(CONFIG).hex() in result.stderr


def test_a_changed_field(net: Path, tmp_path: Path) -> None:
    """The same name, one value changed: the hint has both fingerprints."""
    base = config_file.load(net / "demo.local.toml")
    other = base.with_window(
        replace(base.window, min_participants=base.window.min_participants + 1)
    )
    path = tmp_path / "other.toml"
    path.write_text(config_file.dumps(other))
    result = CliRunner().invoke(main, ["status", "--config", str(path), "--local", str(net)])
    assert result.exit_code == 3
    assert deployment_id(base).hex() in result.stderr
    assert deployment_id(other).hex() in result.stderr


COMMANDS = (
    ["status"],
    ["subscribe"],
    ["publish", "x"],
    ["archive", "get", "1"],
    ["admin", "allow-list", "show"],
)


@pytest.mark.parametrize("command", COMMANDS)
def test_no_network(command: list[str], net: Path, tmp_path: Path) -> None:
    words = [*command, "--config", str(net / "demo.local.toml")]
    for more, rule in (([], "network.absent"), (["--local", str(tmp_path)], "network.folder")):
        result = CliRunner().invoke(main, [*words, *more])
        assert (result.exit_code, result.stdout) == (3, "")
        assert f"rule: {rule}" in result.stderr
    # Looking makes nothing.
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("command", COMMANDS)
def test_no_deployment(command: list[str], net: Path) -> None:
    result = CliRunner().invoke(main, [*command, "--local", str(net)])
    assert (result.exit_code, result.stdout) == (2, "")
    assert "rule: config.missing" in result.stderr


def test_a_folder_in_use(net: Path) -> None:
    async def busy() -> Result:
        network = await LocalNetwork.open(net)
        try:
            return await asyncio.to_thread(run, net, "status")
        finally:
            await network.close()

    result = asyncio.run(busy())
    assert (result.exit_code, result.stdout) == (2, "")
    assert "rule: folder-in-use" in result.stderr
    assert "need NATS" in result.stderr


async def announced(network: LocalNetwork, deployment: Deployment) -> None:
    while True:
        with contextlib.suppress(ConnectTimeout):
            if not (await committee(network, deployment)).missing:
                return
        await asyncio.sleep(0.02)


def live(play: Callable[[DemoInstance, Deployment, Access], Awaitable[T]]) -> T:
    """Play with an instance in this process."""

    async def playing() -> T:
        operators = Operators.new("demo.local", demo_window(round_period_ms=100))
        network = await LocalNetwork.open()
        instance = DemoInstance(network, operators, lambda: network)
        quotes = ProgramQuotes(operators.tee, CLIENT, config_digest(operators.config) + bytes(16))
        collateral = operators.tee.collateral()
        access = Access(quotes, lambda _quote: collateral, operators.tee.root_der, connect_s=10)
        try:
            await instance.start()
            deployment = Deployment(operators.config, UNIVERSE)
            async with asyncio.timeout(20):
                await announced(network, deployment)
                return await play(instance, deployment, access)
        finally:
            await instance.close()
            await network.close()

    return asyncio.run(playing())


def test_publish_and_read_back() -> None:
    async def play(instance: DemoInstance, deployment: Deployment, access: Access) -> None:
        instance.client()
        instance.client()
        receipt = await publish.send(instance.network, deployment, access, b"hello", 20_000)
        assert receipt.outcome is Outcome.LANDED
        signed = await archive.final(instance.network, deployment, receipt.round)
        texts = [one["text"] for one in archive.messages(deployment, signed.record)]
        assert texts == ["hello"]
        facts = await status.look(instance.network, deployment)
        assert facts["last_final_round"] >= receipt.round

    live(play)


@pytest.mark.parametrize("outcome", list(Outcome))
def test_what_became_of_it(net: Path, monkeypatch: pytest.MonkeyPatch, outcome: Outcome) -> None:
    async def told(*_: object) -> Receipt:
        return Receipt(outcome, 7, "mac" if outcome is Outcome.REFUSED else "")

    monkeypatch.setattr(publish, "send", told)
    result = run(net, "publish", ZIPNET_MESSAGE="hello")
    assert result.exit_code == (0 if outcome is Outcome.LANDED else 2)
    why = " (rule mac)" if outcome is Outcome.REFUSED else ""
    assert result.stdout == f"{outcome} in round 7{why}: {publish.MEANING[outcome]}\n"
    facts = json.loads(run(net, "publish", "hello", "--json").stdout)
    assert (facts["outcome"], facts["round"]) == (outcome, 7)


def test_publish_gives_up() -> None:
    """Alone, in a deployment whose rounds need two."""

    async def play(instance: DemoInstance, deployment: Deployment, access: Access) -> None:
        with pytest.raises(Unavailable) as caught:
            await publish.send(instance.network, deployment, access, b"hello", 500)
        assert caught.value.rule == "publish.timeout"

    live(play)


def test_push_a_list() -> None:
    async def play(instance: DemoInstance, deployment: Deployment, access: Access) -> None:
        network = instance.network
        raw = instance.operators.allow_list(2, SERVER)
        assert await admin.send_list(network, deployment, raw) == 2
        # The same number with other content: the servers say no, and why.
        other = instance.operators.allow_list(2, SERVER, CLIENT)
        with pytest.raises(Refused) as caught:
            await admin.send_list(network, deployment, other)
        assert "refuses" in str(caught.value)
        unsigned = replace(instance.operators, keys={})
        with pytest.raises(AllowListRejected):
            await admin.send_list(network, deployment, unsigned.allow_list(3, SERVER))

    live(play)


def test_push_a_dismissal(tmp_path: Path) -> None:
    """The committee goes on without the server, or says why not."""

    async def play(instance: DemoInstance, deployment: Deployment, access: Access) -> None:
        notice = (await committee(instance.network, deployment)).notices["charlie"]
        made = Dismissal.make(
            notice.instance,
            instance.operators.keys["charlie"],
            notice.endorsement.peer,
            notice.endorsement.serial + 1,
        )
        request = Request(Ask.DISMISS, made.encode())
        await ask_servers(instance.network, deployment, request)
        async with asyncio.timeout(5):
            while len(instance.servers[0].state.servers) > 2:
                await asyncio.sleep(0.02)

    live(play)


def test_nobody_answers(net: Path) -> None:
    """Notices are there, their servers are not."""

    async def ask() -> None:
        network = await LocalNetwork.open(net)
        config = config_file.load(net / "demo.local.toml")
        try:
            await ask_servers(network, Deployment(config, UNIVERSE), Request(Ask.ALLOW_LIST, b""))
        finally:
            await network.close()

    with pytest.raises(ConnectTimeout) as caught:
        asyncio.run(ask())
    assert "nobody listens" in caught.value.got
    assert "in this very process" in caught.value.hint


def test_text_that_would_move_a_cursor() -> None:
    datum = b"\0\x05" + b"a\x1b[2J"
    config = replace(CONFIG, type_tag="zipnet.bytes", wire_size=len(datum))
    deployment = Deployment(config, UNIVERSE)
    assert archive._text(deployment, datum) == {"text": "a\N{REPLACEMENT CHARACTER}[2J"}
    assert archive._text(deployment, b"\0\x05\xff\xff\xff\xff\xff") == {}
    assert archive._text(replace(deployment, config=CONFIG), datum) == {}
