"""Fuzz target: what a guest is told in the clear, before anybody's signature is checked."""

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from attestation.errors import Explained
from tests.zipnet.configs import CONFIG
from zipnet.config import Operator
from zipnet.node.appliance import Told, terms
from zipnet.operators import OperatorDocument, OperatorSet

KEY = Ed25519PrivateKey.from_private_bytes(b"\x01" * 32)


def seeds() -> list[bytes]:
    genesis = OperatorSet.genesis(CONFIG)
    more = [*CONFIG.operators, Operator("later", KEY.public_key().public_bytes_raw())]
    change = OperatorDocument.after(genesis, genesis.digest, more, 1)
    envelope = change.assemble([change.sign(KEY)])
    return [Told(CONFIG).encode(), Told(CONFIG, (envelope,)).encode()]


def fuzz_one(data: bytes) -> None:
    try:
        terms(data)
    except Explained as error:
        error.diagnostics().encode()
        return
    told = Told.decode(data)
    assert Told.decode(told.encode()) == told
