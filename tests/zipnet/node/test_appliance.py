"""Appliances: guests that the real command provisions, and that then serve in their role."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Callable
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from attestation.bundle import Bundle
from attestation.bundle import Role as Ticketed
from attestation.errors import EvidenceUnavailable, Explained
from attestation.evidence import check_evidence, fetch
from attestation.providers.mock import MockVerifier
from attestation.unsafe_mock_tdx import UnsafeMockTdx
from tests.zipnet.instance.support import run
from tests.zipnet.node.guests import PROGRAMS, Desk, desk
from tests.zipnet.node.test_service_roles import host
from zipnet.commands import provision_grant
from zipnet.demo import CLIENT, SERVER
from zipnet.errors import DocumentRejected, Shutdown
from zipnet.node import appliance_role, service_roles
from zipnet.node.grant import ForAggregator
from zipnet.node.service import cause
from zipnet.node.service_roles import ServerSetup, server
from zipnet.preflight import Role
from zipnet.roles.server import Server


def test_an_instance_of_appliances(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A server, the aggregator and a client are guests; other servers and clients programs."""
    servers: list[Server] = []

    class Seen(Server):
        def __init__(self, *words: Any) -> None:
            super().__init__(*words)
            servers.append(self)

    def said(text: str) -> list[str]:
        return [one.getMessage() for one in caplog.records if text in one.getMessage()]

    async def body() -> None:
        async with host(tmp_path) as made, desk(made, tmp_path, monkeypatch) as work:
            found = await work.provision("server", Role.SERVER)
            for name in ("bravo", "charlie"):
                attests, endorsement = made.attesting(SERVER), made.endorsed(name)
                own = ServerSetup(made.operators.instance, attests, endorsement, (work.tree(),))
                made.start(name, partial(server, made.setup(name), own))
            await made.until(lambda: heard(work, "server", "STATUS=joined the committee"))
            endorsed = {one.endorsement.peer.hex() for one in servers[0].state.servers.values()}
            assert found["peer"] in endorsed
            await work.provision("aggregator", Role.AGGREGATOR)
            await made.until(lambda: heard(work, "aggregator", "STATUS=waiting for rounds"))
            await servers[0].take_list(made.operators.allow_list(1, SERVER, CLIENT))
            await work.provision("client", Role.CLIENT, "--message", "hello", "--cadence", "50ms")
            made.client("other client", "on a host")
            await made.until(lambda: len(said("message landed")) >= 4)
            await made.until(lambda: heard(work, "client", "rounds sealed"))
            # What a guest writes is below its own memory, and only a server writes anything.
            wrote = {one.name for one in (tmp_path / "desk").rglob("run/zipnet/*/*")}
            assert "server.state" in wrote
            assert not (tmp_path / "desk/client").exists()
            ports = [int(one.rpartition(" ")[2]) for one in said("metrics on port")]
            assert len(ports) == 3
            await shows_evidence(work, ports[0], found["peer"])

    monkeypatch.setattr(service_roles, "Server", Seen)
    with caplog.at_level("INFO"):
        run(body())
    text = caplog.text + "".join(str(one.args) for one in caplog.records)
    assert "battery staple" not in text
    assert "of this aggregator" not in text


def heard(work: Desk, name: str, text: str) -> bool:
    return any(text in line for line in work.host.heard[name].lines)


async def shows_evidence(work: Desk, port: int, peer: str) -> None:
    """A running server answers a challenge; too soon after it, it does not."""
    policy = UnsafeMockTdx(verifier=MockVerifier(work.operators.tee.root_der))
    challenge, url = secrets.token_bytes(32), f"http://127.0.0.1:{port}"
    raw = await fetch(url, challenge, 10)
    assert Bundle.decode(raw).ticket.peer_id.hex() == peer
    judge: Callable[..., Any] = partial(
        check_evidence,
        raw,
        role=Ticketed.SERVER,
        deployment_id=work.host.deployment.raw,
        validator=policy.require_mrtd(PROGRAMS[Role.SERVER].measurement),
        collateral=work.operators.tee.collateral(),
        now=datetime.now(UTC),
    )
    assert judge(challenge=challenge).claims is not None
    with pytest.raises(Explained) as caught:
        judge(challenge=bytes(32))
    assert caught.value.rule == "challenge"
    with pytest.raises(EvidenceUnavailable) as busy:
        await fetch(url, challenge, 10)
    assert (busy.value.rule, busy.value.got) == ("evidence.status", "503")


def test_a_grant_for_another_role(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A tool that doesn't check the role: the guest does."""

    async def body() -> None:
        async with host(tmp_path) as made, desk(made, tmp_path, monkeypatch) as work:
            port = await work.boot("client", Role.CLIENT)
            wrong = ForAggregator("a secret")
            monkeypatch.setattr(provision_grant, "ForClient", lambda *_words: wrong)
            assert (await work.run(*work.words(Role.CLIENT, port))).exit_code == 0
            with pytest.raises(DocumentRejected) as caught:
                await made.until(lambda: False)
            assert caught.value.rule == "grant.role"

    run(body())


def test_it_begins_anew_in_another_generation(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(appliance_role, "PAUSE_S", 0.0)
    again = appliance_role._until_generation

    async def ends(error: Exception) -> None:
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(raising(error))

    async def raising(error: Exception) -> None:
        raise error

    async def body() -> None:
        assert await again(ends(Shutdown("gone on", rule="generation")))
        assert not await again(asyncio.sleep(0))
        for error in (Shutdown("closed", rule="fenced"), ValueError()):
            with pytest.raises(BaseExceptionGroup) as caught:
                await again(ends(error))
            assert cause(caught.value) is error

    asyncio.run(body())
