"""From a grant to a node's settings: what each role gets, and what a guest refuses to run with."""

from __future__ import annotations

import asyncio
import stat
import sys
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

import attestation.providers
from attestation.bundle import Bundle, Role
from attestation.errors import Explained, FileUnreadable
from tests.zipnet.node.grants import ENDORSEMENT, PHRASE, TREE
from tests.zipnet.test_preflight import put
from zipnet.config import Anchor
from zipnet.demo import CLIENT, Operators, demo_window
from zipnet.network.tls import self_signed
from zipnet.node import appliance_role, sealed_client
from zipnet.node.appliance_role import Provisioned, serve_role, state_disk
from zipnet.node.grant import ForAggregator, ForClient, ForServer, Grant, Own, Trust
from zipnet.node.service_identity import instance_of, of_secret, signing_of
from zipnet.node.service_identity import kept as kept_in_folder
from zipnet.node.service_notify import Readiness
from zipnet.roles.admission import config_digest
from zipnet.roles.identity import Identity
from zipnet.unsafe_programs import ProgramQuotes

OPERATORS = Operators.new("host.test", demo_window())
TRUST = Trust(OPERATORS.tee.collateral(), mock_root=OPERATORS.tee.root_der)
BUS = ("nats://127.0.0.1:4222",)
KEY = b"\x09" * 32


def draw(size: int) -> bytes:
    return b"\x0a" * size


IDENTITY = Identity.fresh(draw)


def provisioned(root: Path, own: Own, **changes: Any) -> Provisioned:
    config = OPERATORS.config
    quotes = ProgramQuotes(OPERATORS.tee, CLIENT, config_digest(config) + bytes(16))
    grant = replace(Grant(own, BUS), **changes)
    return Provisioned(config, grant, IDENTITY, quotes, 77, root, ("127.0.0.1", 0))


def given(node: Provisioned, monkeypatch: pytest.MonkeyPatch) -> tuple[str, tuple[Any, ...]]:
    """Which of the roles' functions is called, and with what."""
    called: list[tuple[str, tuple[Any, ...]]] = []

    async def note(name: str, *words: Any) -> None:
        called.append((name, words))

    for name in ("server", "aggregator", "client"):
        monkeypatch.setattr(appliance_role, name, partial(note, name))
    monkeypatch.setattr(sealed_client, "client", partial(note, "sealed"))
    asyncio.run(serve_role(node, Readiness()))
    assert len(called) == 1
    return called[0]


def test_a_server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    own = ForServer(TRUST, PHRASE, ENDORSEMENT, (TREE,), "nats://door.example:4222")
    name, (setup, told, _) = given(provisioned(tmp_path, own), monkeypatch)
    assert name == "server"
    assert setup.guest is IDENTITY
    assert setup.state.is_relative_to(tmp_path / "run/zipnet")
    assert setup.metrics == ("127.0.0.1", 0)
    assert told.instance == instance_of(OPERATORS.config, setup.deployment, PHRASE.encode(), None)
    assert (told.endorsement, told.trees, told.recovery) == (ENDORSEMENT, (TREE,), None)
    assert (told.door.url, told.door.tls) == ("nats://door.example:4222", None)
    access = told.attests.access
    assert access.collateral(b"") == OPERATORS.tee.collateral()
    assert access.mock_root == OPERATORS.tee.root_der


def test_an_aggregator(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    node = provisioned(tmp_path, ForAggregator(PHRASE), metrics=False)
    name, (setup, _) = given(node, monkeypatch)
    assert (name, setup.state, setup.guest, setup.metrics) == ("aggregator", None, None, None)
    # Its keys are those of the secret, also in evidence.
    identity = of_secret(signing_of(PHRASE))
    assert setup.signing.private_bytes_raw() == identity.signing.private_bytes_raw()
    bundle = Bundle.decode(setup.evidence(b"\x01" * 32))
    assert (bundle.ticket.peer_id, bundle.ticket.dh_pub) == (identity.peer, identity.dh_pub)
    assert bundle.ticket.role is Role.AGGREGATOR
    assert bundle.ticket.deployment_id == setup.deployment.raw
    assert (bundle.ticket.boot_epoch, bundle.possessed()) == (77, True)


def test_a_client(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    node = provisioned(tmp_path, ForClient(TRUST, b"", "hello", 50))
    name, (setup, said, _) = given(node, monkeypatch)
    assert (name, setup.state, setup.guest) == ("client", None, IDENTITY)
    assert (said.message, said.cadence_ms) == (b"hello", 50)
    assert not list(tmp_path.iterdir())


def test_a_sealed_client(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    node = provisioned(tmp_path, ForClient(TRUST, KEY))
    with pytest.raises(FileUnreadable) as caught:
        given(node, monkeypatch)
    assert (caught.value.rule, caught.value.exit_code) == ("state.disk", 3)
    put(tmp_path, {"sys/block/vda/serial": b"other", "sys/block/vdb/serial": b"zipnet-state\n"})
    (tmp_path / "sys/block/vdc/serial").mkdir(parents=True)
    name, (_, _, sealed, _) = given(node, monkeypatch)
    assert name == "sealed"
    assert sealed.instance_key.private_bytes_raw() == KEY
    assert sealed.disk == tmp_path / "dev/vdb" == state_disk(tmp_path)


def refusal(node: Provisioned, monkeypatch: pytest.MonkeyPatch) -> str:
    with pytest.raises(Explained) as caught:
        given(node, monkeypatch)
    return caught.value.rule


def test_another_anchor(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A mock root belongs to its configuration: to no other, and never to one of tdx."""
    good = provisioned(tmp_path, ForClient(TRUST))
    tdx = replace(good, config=replace(good.config, anchor=Anchor.tdx()))
    assert refusal(tdx, monkeypatch) == "anchor"
    for trust in (replace(TRUST, mock_root=b""), replace(TRUST, mock_root=b"another")):
        assert refusal(provisioned(tmp_path, ForClient(trust)), monkeypatch) == "anchor"


def test_a_mock_anchor_in_a_production_image(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delattr(attestation.providers, "mock")
    monkeypatch.setitem(sys.modules, "attestation.providers.mock", None)
    node = provisioned(tmp_path, ForClient(TRUST))
    assert refusal(node, monkeypatch) == "mock-root.absent"


def test_a_server_under_tdx_keeps_its_state_in_its_guest(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    own = ForServer(replace(TRUST, mock_root=b""), PHRASE, ENDORSEMENT)
    node = provisioned(tmp_path, own)
    node = replace(node, config=replace(node.config, anchor=Anchor.tdx()))
    _, (setup, told, _) = given(node, monkeypatch)
    kept = partial(kept_in_folder, setup.state, Role.SERVER, told.instance, config=node.config)
    with kept(guest=setup.guest) as state:
        assert state.identity.peer == IDENTITY.peer
        assert state.identity.dh_pub == IDENTITY.dh_pub
    with pytest.raises(Explained) as caught, kept():
        pass
    assert caught.value.rule == "state.tdx"


def test_a_bus_with_certificates(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pem = self_signed("bus", ["127.0.0.1"], datetime.now(UTC), 1).pem
    own: Callable[[], ForAggregator] = partial(ForAggregator, PHRASE)
    tls = ("tls://127.0.0.1:4222",)
    node = provisioned(tmp_path, own(), urls=tls, certificates=pem)
    given(node, monkeypatch)
    file = node.folder / "bus.pem"
    assert file.read_bytes() == pem
    assert stat.S_IMODE(node.folder.stat().st_mode) == 0o700
    without = provisioned(tmp_path, own(), urls=tls)
    assert refusal(without, monkeypatch) == "bus.certificates"
    plain = provisioned(tmp_path, own(), certificates=pem)
    assert refusal(plain, monkeypatch) == "bus.certificates"


def test_each_start_has_a_folder_of_its_own(tmp_path: Path) -> None:
    node = provisioned(tmp_path, ForAggregator(PHRASE))
    other = Identity(Ed25519PrivateKey.generate(), IDENTITY.dh)
    assert node.folder != replace(node, identity=other).folder


def test_secrets_are_not_shown(tmp_path: Path) -> None:
    own = ForServer(TRUST, PHRASE, ENDORSEMENT)
    assert "horse" not in repr(provisioned(tmp_path, own))
    assert str(KEY)[2:-1] not in repr(provisioned(tmp_path, ForClient(TRUST, KEY)))
