"""Instances and the signatures that are bound to them."""

import pytest
from blake3 import blake3
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from tests.zipnet.protocol.support import INSTANCE, OTHER_INSTANCE, h, node, refused
from zipnet.errors import ConfigRejected, Refused
from zipnet.protocol.instance import Instance, generation

NODE = node("one")
SIGNATURE = INSTANCE.sign(NODE.signer, b"domain", 7, b"body")


def test_the_statement_is_as_documented() -> None:
    ids = INSTANCE.deployment_id + INSTANCE.generation
    statement = b"domain\0" + ids + (7).to_bytes(8, "big") + b"body"
    assert INSTANCE.statement(b"domain", 7, b"body") == statement
    Ed25519PublicKey.from_public_bytes(NODE.peer).verify(SIGNATURE, statement)
    assert INSTANCE.binding == blake3(ids, derive_key_context="zipnet/generation/v2").digest()


def test_a_signature_is_good_for_one_statement_only() -> None:
    INSTANCE.verify(NODE.peer, SIGNATURE, b"domain", 7, b"body")
    other_deployment = Instance(h("other deployment"), INSTANCE.generation)
    for instance, peer, signature, domain, number, body in (
        (other_deployment, NODE.peer, SIGNATURE, b"domain", 7, b"body"),
        (OTHER_INSTANCE, NODE.peer, SIGNATURE, b"domain", 7, b"body"),
        (INSTANCE, node("other").peer, SIGNATURE, b"domain", 7, b"body"),
        (INSTANCE, NODE.peer, bytes(64), b"domain", 7, b"body"),
        (INSTANCE, NODE.peer, b"", b"domain", 7, b"body"),
        (INSTANCE, b"", SIGNATURE, b"domain", 7, b"body"),
        (INSTANCE, b"\xff" * 32, SIGNATURE, b"domain", 7, b"body"),
        (INSTANCE, NODE.peer, SIGNATURE, b"domain2", 7, b"body"),
        (INSTANCE, NODE.peer, SIGNATURE, b"domain", 8, b"body"),
        (INSTANCE, NODE.peer, SIGNATURE, b"domain", 7, b"body2"),
    ):
        with refused(Refused, "signature"):
            instance.verify(peer, signature, domain, number, body)
        assert not instance.has_signed(peer, signature, domain, number, body)


@pytest.mark.parametrize("ids", [(bytes(31), bytes(32)), (bytes(32), bytes(33))])
def test_ids_have_32_bytes(ids: tuple[bytes, bytes]) -> None:
    with refused(ConfigRejected, "id-size"):
        Instance(*ids)


def test_generations() -> None:
    committee, secret = h("committee"), bytes(range(16))
    first = generation(committee, secret, 1)
    material = committee + (1).to_bytes(8, "big") + secret
    context = "zipnet/committee-generation/v2"
    assert first == blake3(material, derive_key_context=context).digest()
    others = {
        generation(committee, secret, 2),
        generation(committee, bytes(16), 1),
        generation(committee, secret + b"\0", 1),
        generation(h("other"), secret, 1),
    }
    assert len(others | {first}) == 5
    with refused(ConfigRejected, "committee-secret"):
        generation(committee, secret[:15], 1)
