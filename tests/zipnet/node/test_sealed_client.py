"""What keeps a sealed client from starting, before it has asked anybody."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from tests.zipnet.protocol.support import refused
from zipnet.config import Clients, deployment_id
from zipnet.demo import Operators, demo_window
from zipnet.errors import ConfigRejected, StateDamaged
from zipnet.network.base import Network
from zipnet.node.sealed_client import SealedSetup, client
from zipnet.node.service_collateral import Attesting
from zipnet.node.service_network import Caller
from zipnet.node.service_notify import Readiness
from zipnet.node.service_roles import ClientSetup, Setup

CONFIG = Operators.new("sealed.test", demo_window()).config


def start(disk: Path, clients: Clients = Clients.ATTESTED) -> None:
    def unreachable(_caller: Caller) -> Network:
        raise AssertionError("nobody is to be asked")

    told = replace(CONFIG, clients=clients)
    setup = Setup(told, deployment_id(told), unreachable)  # type: ignore[arg-type]
    sealed = SealedSetup(Ed25519PrivateKey.generate(), disk)
    asyncio.run(client(setup, ClientSetup(Attesting()), sealed, Readiness()))


def test_a_disk_that_is_not_there(tmp_path: Path) -> None:
    with refused(StateDamaged, "disk.absent"):
        start(tmp_path / "none")


def test_clients_that_show_no_quotes(tmp_path: Path) -> None:
    with refused(ConfigRejected, "sealing.unattested"):
        start(tmp_path / "none", Clients.UNATTESTED)


def test_the_instance_key_stays_out_of_logs() -> None:
    key = Ed25519PrivateKey.generate()
    assert "Ed25519" not in repr(SealedSetup(key, Path("/dev/vdb")))
