"""Fuzz target: what anybody may send to a member of a sealing committee."""

import asyncio

from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

from attestation.errors import AttestationError
from attestation.seal.committee_format import Answer, Op, Refusal, Request, Seat
from attestation.seal.committee_member import Member
from tests.attestation.seal.committee_simulator import Node, Simulator
from tests.attestation.tickets import DEPLOYMENT


def _member() -> tuple[Simulator, Member, bytes]:
    """A member that has given its first nonce: the same one each time."""
    simulator = Simulator(1)
    (member,) = simulator.members.values()
    return simulator, member, member.nonce(0)


def seeds() -> list[bytes]:
    simulator, _, nonce = _member()
    node, (name,) = Node(simulator), simulator.ids
    public = X25519PrivateKey.from_private_bytes(b"\x0e" * 32).public_key().public_bytes_raw()
    raws = []
    for op, version, boot in ((Op.OPEN, 1, 0), (Op.CREATE, 0, 0), (Op.COMMIT, 1, 1)):
        digest = bytes(32) if op is Op.CREATE else b"d" * 32
        seats = (Seat(name, nonce, boot),)
        request = Request(op, DEPLOYMENT, node.instance, bytes(32), 3, version, digest, seats)
        bundle = asyncio.run(node.bundle(request.challenge, public))
        raws.append(request.encode() + bundle)
    return raws


def fuzz_one(data: bytes) -> None:
    simulator, member, _ = _member()
    try:
        asked = member.take(data, 0)
        answer = member.answer(asked, simulator.validate, 3)
    except AttestationError as error:
        error.diagnostics().encode()
        refusal = member.refuse(data, error)
    else:
        assert asked.request.encode() + asked.bundle.encode() == data
        assert isinstance(Answer.decode(answer).content, bytes)
        refusal = member.refuse(data, AttestationError("", rule="x"))
    assert isinstance(Answer.decode(refusal).content, Refusal)
