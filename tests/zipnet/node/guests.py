"""Booted guests for tests: appliances in this process, over a software TEE, and their operator."""

from __future__ import annotations

import asyncio
import contextlib
import json
import re
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from attestation.measure.record import Measurements
from attestation.providers import QuoteProvider
from tests.zipnet.node.test_service_roles import Host
from zipnet import config_file
from zipnet.cli import main
from zipnet.demo import CLIENT, SERVER
from zipnet.ids import UniqueId
from zipnet.network.base import Network
from zipnet.node import appliance, appliance_role
from zipnet.node.appliance import Machine
from zipnet.node.service_identity import instance_of, of_secret, signing_of
from zipnet.node.service_network import GUEST, Caller, Place
from zipnet.preflight import Role
from zipnet.protocol.tree import Aggregator, AggregatorTree
from zipnet.roles.admission import config_digest
from zipnet.unsafe_programs import Program, ProgramQuotes

COMMITTEE_SECRET = "correct horse battery staple"  # noqa: S105
SECRET = "of this aggregator"  # noqa: S105
AGGREGATOR = Program("aggregator 1", "aggregator")
PROGRAMS = {Role.SERVER: SERVER, Role.AGGREGATOR: AGGREGATOR, Role.CLIENT: CLIENT}


class Desk:
    """An operator's desk: the files that `zipnet provision` takes, and the guests that he boots."""

    def __init__(self, host: Host, folder: Path) -> None:
        self.host = host
        self.folder = folder
        self.operators = host.operators
        folder.mkdir()
        config = self.operators.config
        self.write("config.toml", config_file.dumps(config))
        self.write("committee", COMMITTEE_SECRET)
        self.write("secret", SECRET)
        for name, key in self.operators.keys.items():
            self.write(f"{name}.key", key.private_bytes_raw().hex())
        for role, program in PROGRAMS.items():
            self.write(f"{role}.json", Measurements((program.measurement,)).dumps())
        self.write("root.der", self.operators.tee.root_der)
        self.write("collateral.json", self.operators.tee.collateral().dumps())
        self.write("list.json", self.operators.allow_list(1, *PROGRAMS.values()))

    def write(self, name: str, content: str | bytes) -> None:
        raw = content.encode() if isinstance(content, str) else content
        (self.folder / name).write_bytes(raw)

    def quotes(self, role: Role, config_id: bytes | None = None) -> QuoteProvider:
        if config_id is None:
            config_id = config_digest(self.operators.config) + bytes(16)
        return ProgramQuotes(self.operators.tee, PROGRAMS[role], config_id)

    def tree(self) -> AggregatorTree:
        identity = of_secret(signing_of(SECRET))
        return AggregatorTree((Aggregator(identity.peer, identity.dh_pub, 0),))

    async def boot(self, name: str, role: Role, provider: QuoteProvider | None = None) -> int:
        """Start a guest; the port that it waits on."""
        root = self.folder / name
        machine = Machine(role, provider or self.quotes(role), root, "127.0.0.1", 0, 0)
        self.host.start(name, lambda heard: appliance.run(machine, heard))
        await self.host.until(lambda: self.port(name) > 0)
        return self.port(name)

    def port(self, name: str) -> int:
        said = "\n".join(self.host.heard[name].lines)
        found = re.findall(r"waits for its operator on port (\d+)", said)
        return int(found[-1]) if found else 0

    def words(self, role: Role, port: int, operator: str = "alpha") -> list[str]:
        """The command that provisions a guest in a role."""
        words = ["provision", f"127.0.0.1:{port}", str(role), "--config", self.at("config.toml")]
        words += ["--key", self.at(f"{operator}.key"), "--mock-root", str(self.folder)]
        words += ["--measurements", self.at(f"{role}.json"), "--bootstrap", "nats://127.0.0.1:4222"]
        if role is Role.SERVER:
            one = self.tree().nodes[0]
            words += ["--committee-secret-file", self.at("committee")]
            words += ["--tree", f"{one.peer.hex()}:{one.dh_pub.hex()}"]
        if role is Role.AGGREGATOR:
            words += ["--secret-file", self.at("secret")]
        return words

    def at(self, name: str) -> str:
        return str(self.folder / name)

    async def run(self, *words: str) -> Result:
        """The real command, beside this event loop."""
        return await asyncio.to_thread(CliRunner().invoke, main, list(words))

    async def provision(self, name: str, role: Role, *words: str) -> dict[str, str]:
        """Boot a guest and provision it; what the command says of it."""
        port = await self.boot(name, role)
        result = await self.run(*self.words(role, port), "--json", *words)
        assert (result.exit_code, result.stderr) == (0, "")
        found: dict[str, str] = json.loads(result.stdout)
        return found


@contextlib.asynccontextmanager
async def desk(host: Host, folder: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Desk]:
    """A desk whose guests find their bus in this process."""
    config, secret = host.operators.config, COMMITTEE_SECRET.encode()
    host.operators.instance = instance_of(config, host.deployment, secret, None)

    @contextlib.asynccontextmanager
    async def opened(
        _place: Place, _deployment: UniqueId, _universe: UniqueId, caller: Caller = GUEST
    ) -> AsyncIterator[Network]:
        async with host.opened(caller) as network:
            yield network

    monkeypatch.setattr(appliance_role, "opened", opened)
    yield Desk(host, folder / "desk")
