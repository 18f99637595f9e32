"""Grants for tests: one of each role, with every field set."""

from __future__ import annotations

from dataclasses import replace
from typing import cast

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from attestation.providers.mock import MockTee
from zipnet.node.grant import ForAggregator, ForClient, ForServer, Grant, Trust
from zipnet.operators import Endorsement
from zipnet.protocol.instance import Instance
from zipnet.protocol.tree import Aggregator, AggregatorTree

TEE = MockTee(b"\x05" * 32)
PHRASE = "correct horse battery stäple"
TREE = AggregatorTree((Aggregator(b"\x01" * 32, b"\x02" * 32, 0),))
FILED = Trust(TEE.collateral(), mock_root=TEE.root_der)
ASKED = Trust(pccs="https://pccs.example:8081", fmspcs=(b"\x0a" * 6, b"\x0b" * 6))
ENDORSEMENT = Endorsement.make(
    Instance(b"\x03" * 32, b"\x04" * 32),
    Ed25519PrivateKey.from_private_bytes(b"\x06" * 32),
    b"\x07" * 32,
    b"\x08" * 32,
    9,
)
SERVER = Grant(
    ForServer(FILED, PHRASE, ENDORSEMENT, (TREE,), "nats://door.example:4222"),
    ("nats://127.0.0.1:4222", "nats://[::1]:4222"),
)
AGGREGATOR = Grant(
    ForAggregator(PHRASE), ("tls://bus.example:4222",), b"-----BEGIN CERTIFICATE-----\n", 1
)
CLIENT = Grant(
    ForClient(ASKED, b"\x09" * 32, "hello, wörld", 5_000),
    ("nats://bus.example:4222",),
    metrics=False,
    universe=b"\x0c" * 32,
)
ALL = (SERVER, AGGREGATOR, CLIENT)


def client(**changes: object) -> Grant:
    return replace(CLIENT, own=replace(cast("ForClient", CLIENT.own), **changes))  # type: ignore[arg-type]
