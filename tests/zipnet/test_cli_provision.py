"""`zipnet provision` against guests in this process: whom it gives what, and everything refused."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import stat
from collections.abc import Callable, Coroutine
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from attestation import provision_stream
from attestation.measure.record import Binding, BootProof, Measurements
from attestation.providers import QuoteProvider
from attestation.providers.mock import MockTee
from attestation.provision_stream import Limits
from attestation.verify import TcbStatus
from tests.zipnet.instance.support import run
from tests.zipnet.node.guests import PROGRAMS, Desk
from tests.zipnet.node.test_service_roles import Host, host
from zipnet import config_file
from zipnet.cli import main
from zipnet.commands import provision as command
from zipnet.config import Anchor, Clients, Operator
from zipnet.node import appliance
from zipnet.node.grant import ForClient, ForServer, Grant
from zipnet.operators import OperatorDocument, OperatorSet
from zipnet.preflight import Role
from zipnet.roles.admission import config_digest

CLIENT = Role.CLIENT


@dataclass(frozen=True)
class Knobs:
    """A software TEE's quotes of the client's program, with other values in some places."""

    tee: MockTee
    config_id: bytes
    body: dict[str, bytes | int] = field(default_factory=dict)
    knobs: dict[str, Any] = field(default_factory=dict)

    def quote(self, report_data: bytes) -> bytes:
        found = PROGRAMS[CLIENT].measurement
        body: dict[str, bytes | int] = {
            "mr_td": found.mr_td,
            "rtmr1": found.rtmr1,
            "rtmr2": found.rtmr2,
            "mr_config_id": self.config_id,
        }
        return self.tee.quote(report_data, body=body | self.body, **self.knobs)


class Bench(Desk):
    """Guests that end once they have their grant, which is noted."""

    def __init__(self, made: Host, folder: Path) -> None:
        super().__init__(made, folder)
        self.grants: list[Grant] = []

    def knobs(self, body: dict[str, bytes | int] | None = None, **knobs: Any) -> Knobs:
        config_id = config_digest(self.operators.config) + bytes(16)
        return Knobs(self.operators.tee, config_id, body or {}, knobs)

    async def refusal(self, port: int, *words: str, role: Role = CLIENT) -> tuple[int, str]:
        """Exit code and rule of a refusal; the guest got nothing."""
        result = await self.run(*self.words(role, port), *words)
        assert result.stdout == ""
        assert not self.grants
        rule = [line for line in result.stderr.splitlines() if line.startswith("  rule: ")]
        return result.exit_code, rule[0].removeprefix("  rule: ") if rule else result.stderr


def benched(
    folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    body: Callable[[Bench], Coroutine[Any, Any, None]],
) -> None:
    async def whole() -> None:
        async with host(folder) as made:
            work = Bench(made, folder / "desk")

            async def serve(node: Any, _readiness: object) -> None:
                work.grants.append(node.grant)
                await asyncio.Event().wait()

            monkeypatch.setattr(appliance, "serve_role", serve)
            hasty = partial(provision_stream.serve, limits=Limits(between_quotes=0.0))
            monkeypatch.setattr(provision_stream, "serve", hasty)
            await body(work)

    run(whole())


@pytest.mark.parametrize("role", list(Role))
def test_each_role(role: Role, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def body(work: Bench) -> None:
        port = await work.boot("guest", role)
        looked = await work.run(*work.words(role, port), "--check")
        assert (looked.exit_code, looked.stderr) == (0, "")
        assert looked.stdout.splitlines()[-1] == "checked; nothing was given"
        assert not work.grants
        result = await work.run(*work.words(role, port))
        assert (result.exit_code, result.stderr) == (0, "")
        await work.host.until(lambda: bool(work.grants))
        grant = work.grants[0]
        assert grant.role is role
        assert grant.urls == ("nats://127.0.0.1:4222",)
        *rows, last = result.stdout.splitlines()
        assert last == f"provisioned the {role}"
        found = dict(line.split(maxsplit=1) for line in rows)
        measured = PROGRAMS[role].measurement
        assert found["role"] == str(role)
        assert found["tcb"] == "UpToDate"
        assert found["acpi"] == "unverified"
        assert (found["mr_td"], found["rtmr1"]) == (measured.mr_td.hex(), measured.rtmr1.hex())
        assert found["mrconfigid"] == config_digest(work.operators.config).hex() + "00" * 16
        assert "horse" not in result.output
        if isinstance(grant.own, ForServer):
            endorsed = grant.own.endorsement
            assert (endorsed.peer.hex(), endorsed.dh_pub.hex()) == (found["peer"], found["dh"])
        # Its listener is closed.
        again = await work.run(*work.words(role, port))
        assert (again.exit_code, "rule: provision.unreachable" in again.stderr) == (3, True)

    benched(tmp_path, monkeypatch, body)


def test_refused_by_the_tool(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each quote that must get nothing, by its rule; the guest waits on, and a good one gets it."""

    async def body(work: Bench) -> None:
        debug = work.knobs({"td_attributes": (1 << 28) | 1})
        other = work.knobs({"mr_config_id": b"\x01" * 32 + bytes(16)})
        extended = work.knobs({"rtmr3": b"\x01" * 48})
        foreign = replace(work.knobs(), tee=MockTee(b"\x0f" * 32))
        forged = work.knobs(signed_by="another")
        cases: list[tuple[QuoteProvider, str]] = [
            (debug, "debug-td"),
            (other, "config-digest"),
            (extended, "rtmr3"),
            (foreign, "root-mismatch"),
            (forged, "quote-signature"),
            (work.knobs({"mr_td": b"\x02" * 48}), "mrtd"),
            (work.knobs({"rtmr2": b"\x02" * 48}), "rtmr2"),
            (work.knobs({"mr_owner": b"\x02" * 48}), "mr-owner"),
        ]
        found = []
        for at, (provider, _) in enumerate(cases):
            port = await work.boot(f"guest {at}", CLIENT, provider)
            found.append(await work.refusal(port))
        assert found == [(2, rule) for _, rule in cases]
        # What the tool is told decides as well, about a guest that is good.
        port = await work.boot("good", CLIENT)
        server = ("--measurements", work.at("server.json"))
        words = work.words(CLIENT, port)
        at = words.index("--measurements")
        del words[at : at + 2]
        for more, rule in (
            (server, "mrtd"),
            (("--allow-list", work.at("config.toml")), "envelope.json"),
        ):
            result = await work.run(*words, *more)
            assert (result.exit_code, f"rule: {rule}" in result.stderr) == (2, True)
        assert (await work.refusal(port, role=Role.SERVER))[0] == 2
        now = datetime.now(UTC)
        tee = work.operators.tee
        for name, collateral, rule in (
            ("stale", tee.collateral(expires=now - timedelta(days=1)), "collateral-expired"),
            ("early", tee.collateral(issued=now + timedelta(days=1)), "collateral-not-yet-valid"),
            ("old", tee.collateral(platform_status=TcbStatus.OUT_OF_DATE), "tcb-status"),
            ("revoked", tee.collateral(revoked=("pck",)), "pck-revoked"),
        ):
            work.write(f"{name}.json", collateral.dumps())
            code = await work.refusal(port, "--collateral", work.at(f"{name}.json"))
            assert code == (2, rule), name
        assert (await work.run(*words, "--allow-list", work.at("list.json"))).exit_code == 0

    benched(tmp_path, monkeypatch, body)


def test_a_replayed_offer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def body(work: Bench) -> None:
        port = await work.boot("guest", CLIENT)
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write((32).to_bytes(4, "big") + b"\x01" * 32)
        size = await reader.readexactly(4)
        recorded = size + await reader.readexactly(int.from_bytes(size, "big"))
        writer.close()

        async def replay(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await reader.readexactly(36)
            writer.write(recorded)
            with contextlib.suppress(OSError):
                await reader.read()
            writer.close()

        async with await asyncio.start_server(replay, "127.0.0.1", 0) as server:
            other = server.sockets[0].getsockname()[1]
            assert await work.refusal(other) == (2, "challenge")

    benched(tmp_path, monkeypatch, body)


def test_refused_by_the_guest(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A tool that checks nothing: the guest does, says why, and waits on."""

    async def body(work: Bench) -> None:
        port = await work.boot("guest", CLIENT)
        mallory = Ed25519PrivateKey.generate()
        with monkeypatch.context() as patched:
            patched.setattr(command, "operator_key", lambda *_words: mallory)
            for _ in range(2):
                assert await work.refusal(port) == (2, "provision.operator")
        config = work.operators.config
        digest = config_digest(config)
        work.write("config.toml", config_file.dumps(replace(config, name="host.other")))
        with monkeypatch.context() as patched:
            patched.setattr(command, "config_digest", lambda _config: digest)
            assert await work.refusal(port) == (2, "provision.config")
        work.write("config.toml", config_file.dumps(config))
        assert (await work.run(*work.words(CLIENT, port))).exit_code == 0
        # Its console says so too, each time.
        assert caplog.text.count("expected one of its 3 operators") == 2

    with caplog.at_level("INFO"):
        benched(tmp_path, monkeypatch, body)


def test_a_configuration_of_intels(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Under the anchor tdx a mock quote is worth nothing, and a mock root is refused."""

    async def body(work: Bench) -> None:
        config = replace(work.operators.config, anchor=Anchor.tdx())
        work.write("config.toml", config_file.dumps(config))
        image = replace(
            PROGRAMS[CLIENT].measurement,
            binding=Binding.MRTD_CFV,
            boot_proof=BootProof.PASSED,
            is_dev=False,
        )
        provider = replace(work.knobs(), config_id=config_digest(config) + bytes(16))
        port = await work.boot("guest", CLIENT, provider)
        assert await work.refusal(port) == (2, "mock-root")
        words = work.words(CLIENT, port)
        at = words.index("--mock-root")
        del words[at : at + 2]
        words += ["--collateral", work.at("collateral.json")]
        for measurement, rule in (
            (PROGRAMS[CLIENT].measurement, "no-measurement"),
            (image, "root-mismatch"),
        ):
            work.write("client.json", Measurements((measurement,)).dumps())
            result = await work.run(*words)
            assert (result.exit_code, f"rule: {rule}" in result.stderr) == (2, True)

    benched(tmp_path, monkeypatch, body)


class Careless(appliance.Told):
    """What a tool would tell that checks no document."""

    def operators(self) -> OperatorSet:
        return OperatorSet.genesis(self.config)


def test_an_operator_who_came_later(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By a document of all before him; without it, or with one that lacks a signature, not."""

    async def body(work: Bench) -> None:
        config, keys = work.operators.config, work.operators.keys
        delta = Ed25519PrivateKey.generate()
        work.write("delta.key", delta.private_bytes_raw().hex())
        genesis = OperatorSet.genesis(config)
        everyone = [*config.operators, Operator("delta", delta.public_key().public_bytes_raw())]
        change = OperatorDocument.after(genesis, genesis.digest, everyone, 3)
        signed = [change.sign(key) for key in keys.values()]
        work.write("change", change.assemble(signed))
        work.write("unsigned", change.assemble(signed[:2]))
        port = await work.boot("guest", CLIENT)
        words = work.words(CLIENT, port, operator="delta")
        for more, rule in (((), "key.operator"), (("--document", work.at("unsigned")), "signers")):
            result = await work.run(*words, *more)
            assert (result.exit_code, f"rule: {rule}" in result.stderr) == (2, True)
        # The guest sees for itself.
        with monkeypatch.context() as patched:
            plain = config_file.dumps(config).encode()
            patched.setattr(appliance.Told, "encode", lambda _told: plain)
            result = await work.run(*words, "--document", work.at("change"))
            assert "rule: provision.operator" in result.stderr
        with monkeypatch.context() as patched:
            patched.setattr(command, "Told", Careless)
            patched.setattr(command, "operator_key", lambda *_words: delta)
            result = await work.run(*words, "--document", work.at("unsigned"))
            assert "rule: signers" in result.stderr
        result = await work.run(*words, "--document", work.at("change"))
        assert (result.exit_code, result.stderr) == (0, "")

    benched(tmp_path, monkeypatch, body)


def test_what_a_client_keeps(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def body(work: Bench) -> None:
        key = tmp_path / "instance.key"
        sealed = ("--sealing", "committee", "--instance-key", str(key))
        seeds = []
        for name in ("first", "second"):
            port = await work.boot(name, CLIENT)
            result = await work.run(*work.words(CLIENT, port), *sealed, "--no-metrics")
            assert (result.exit_code, result.stderr) == (0, "")
            await work.host.until(lambda: bool(work.grants))
            grant = work.grants.pop()
            assert isinstance(grant.own, ForClient)
            assert not grant.metrics
            seeds.append(grant.own.instance_key)
        # It is made once, for its owner alone.
        assert seeds[0] == seeds[1] == bytes.fromhex(key.read_text())
        assert stat.S_IMODE(key.stat().st_mode) == 0o600
        port = await work.boot("third", CLIENT)
        key.write_text("no key")
        assert await work.refusal(port, *sealed) == (2, "key.format")

    benched(tmp_path, monkeypatch, body)


def test_collateral_that_is_fetched(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from attestation.providers.mock_server import MockPccs  # noqa: PLC0415

    async def body(work: Bench) -> None:
        collateral = work.operators.tee.collateral()
        fmspc = collateral.parsed.fmspc
        port = await work.boot("guest", CLIENT)
        with MockPccs(collateral) as pccs:
            words = ("--pccs", pccs.url, "--fmspc")
            assert await work.refusal(port, *words, "ab" * 6) == (2, "fmspc")
            result = await work.run(*work.words(CLIENT, port), *words, fmspc.hex())
            assert (result.exit_code, result.stderr) == (0, "")
            await work.host.until(lambda: bool(work.grants))
            own = work.grants[0].own
            assert isinstance(own, ForClient)
            assert (own.trust.pccs, own.trust.fmspcs) == (pccs.url, (fmspc,))

    benched(tmp_path, monkeypatch, body)


@pytest.fixture
def files(tmp_path: Path) -> Path:
    async def made() -> None:
        async with host(tmp_path) as found:
            Desk(found, tmp_path / "desk")

    run(made())
    return tmp_path / "desk"


def usage(files: Path, role: str, *words: str) -> str:
    """What is wrong with a command line: nobody is asked anything."""
    result = CliRunner().invoke(
        main, ["provision", "127.0.0.1:9", role, "--config", str(files / "config.toml"), *words]
    )
    assert (result.exit_code, result.stdout) == (1, "")
    return result.stderr


def test_usage(files: Path) -> None:
    mock = ("--mock-root", str(files))
    measured = (*mock, "--measurements", str(files / "client.json"))
    keyed = (*measured, "--key", str(files / "alpha.key"))
    both = (*measured, "--allow-list", str(files / "list.json"))
    assert "--measurements FILE" in usage(files, "client", *mock)
    assert "--measurements FILE" in usage(files, "client", *both)
    assert "--key FILE is missing" in usage(files, "client", *measured)
    assert "--bootstrap" in usage(files, "client", *keyed)
    assert "--committee-secret-file" in usage(files, "server", *keyed)
    assert "--secret-file" in usage(files, "aggregator", *keyed)
    assert "is for a client" in usage(files, "server", *keyed, "--message", "hello")
    assert "is for a server" in usage(files, "client", *keyed, "--door", "nats://a:1")
    bus = (*keyed, "--bootstrap", "nats://a:1")
    assert "belong together" in usage(files, "client", *bus, "--sealing", "committee")
    assert "belong together" in usage(files, "client", *bus, "--instance-key", "x")
    assert "--fmspc" in usage(files, "client", *keyed, "--pccs", "https://a")
    assert "--fmspc" in usage(files, "client", *keyed, "--fmspc", "ab" * 6)
    for target in ("", "a:b", "a:65536", "a b", "nats://a:1"):
        result = CliRunner().invoke(main, ["provision", target, "client"])
        assert (result.exit_code, "HOST:PORT" in result.stderr) == (1, True)


def test_nobody_is_there(files: Path) -> None:
    words = ["--mock-root", str(files), "--measurements", str(files / "client.json"), "--check"]
    result = CliRunner().invoke(
        main, ["provision", "127.0.0.1:9", "client", "--config", str(files / "config.toml"), *words]
    )
    assert (result.exit_code, "rule: provision.unreachable" in result.stderr) == (3, True)


def test_sealing_needs_attested_clients(files: Path) -> None:
    config = config_file.load(files / "config.toml")
    open_to_all = replace(config, clients=Clients.UNATTESTED)
    (files / "config.toml").write_text(config_file.dumps(open_to_all))
    words = ["--mock-root", str(files), "--measurements", str(files / "client.json")]
    words += ["--key", str(files / "alpha.key"), "--bootstrap", "nats://a:1"]
    words += ["--sealing", "committee", "--instance-key", str(files / "new.key")]
    result = CliRunner().invoke(
        main, ["provision", "127.0.0.1:9", "client", "--config", str(files / "config.toml"), *words]
    )
    assert (result.exit_code, "rule: sealing.clients" in result.stderr) == (2, True)
    assert not (files / "new.key").exists()


def test_another_mock_root(files: Path) -> None:
    (files / "root.der").write_bytes(MockTee(b"\x0f" * 32).root_der)
    words = ["--mock-root", str(files), "--measurements", str(files / "client.json"), "--check"]
    result = CliRunner().invoke(
        main, ["provision", "127.0.0.1:9", "client", "--config", str(files / "config.toml"), *words]
    )
    assert (result.exit_code, "rule: anchor" in result.stderr) == (2, True)


def test_mrconfigid(files: Path) -> None:
    config = files / "config.toml"
    result = CliRunner().invoke(main, ["config", "mrconfigid", str(config)])
    digest = hashlib.sha256(config_file.load(config).encode()).hexdigest()
    assert (result.exit_code, result.stdout) == (0, digest + "0" * 32 + "\n")
