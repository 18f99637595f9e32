"""A server as a member of the sealing committee, and how a client reaches it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from secrets import token_bytes

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

from attestation.allowlist import AllowList
from attestation.bundle import Bundle, Role
from attestation.errors import SealRefused, SealUnavailable
from attestation.providers import QuoteProvider
from attestation.seal import committee as steps
from attestation.seal.committee import Asking, Committee
from attestation.seal.committee_format import NONCE_ASK, Answer, Refusal
from attestation.seal.committee_member import Member, MemoryTable
from tests.zipnet.protocol.support import refused
from zipnet.config import Clients
from zipnet.demo import CLIENT, SERVER, Operators, demo_window
from zipnet.errors import EngineError, Refused, Unavailable
from zipnet.network.public import Answer as Told
from zipnet.network.public import Ask, Request, server_topic
from zipnet.roles import sealing
from zipnet.roles.admission import Admission, config_digest
from zipnet.roles.sealing import Asker, Kept, SealingDesk, ServersAsked
from zipnet.unsafe_programs import Program, ProgramQuotes

OPERATORS = Operators.new("sealing.test", demo_window())
ADMISSION = OPERATORS.admission(OPERATORS.instance)
ME = bytes(range(32))
NEXT = Program("client 2", "client")


def now() -> datetime:
    return datetime.now(UTC)


def accepted(number: int, *programs: Program) -> AllowList:
    config, deployment = OPERATORS.config, OPERATORS.instance.deployment_id
    keys = [one.key for one in config.operators]
    envelope = OPERATORS.allow_list(number, *programs)
    return AllowList.verify(envelope, keys, len(keys), None, deployment_id=deployment)


LIST = accepted(3, SERVER, CLIENT)


@dataclass
class Scene:
    """One member, and a node of one program that asks it."""

    admission: Admission = ADMISSION
    program: Program = CLIENT
    listed: AllowList = LIST
    key: Ed25519PrivateKey = field(default_factory=Ed25519PrivateKey.generate)

    def __post_init__(self) -> None:
        self.signer = Ed25519PrivateKey.generate()
        member = Member(bytes(32), ME, self.signer, MemoryTable(), token_bytes)
        self.desk = SealingDesk(member, self.admission, lambda: self.listed, now)
        self.asker = self.as_asker(self.key)

    def as_asker(self, key: Ed25519PrivateKey) -> Asker:
        quotes: QuoteProvider = ProgramQuotes(
            OPERATORS.tee, self.program, config_digest(OPERATORS.config) + bytes(16)
        )
        return Asker(self.admission, quotes, key, now)

    @property
    def committee(self) -> Committee:
        public = self.signer.public_key().public_bytes_raw()
        deployment = self.admission.instance.deployment_id
        return Committee(deployment, self.asker.id, {ME: public})

    async def asking(self, number: int = 3) -> Asking:
        """A request for a new key, under a fresh nonce and quote."""
        nonces = {ME: await self.desk.answer(NONCE_ASK)}
        request = steps.create_request(self.committee, token_bytes(32), number, nonces)
        own = X25519PrivateKey.generate()
        ticket = await self.asker.ticket(request.challenge, own.public_key().public_bytes_raw())
        return Asking(request, request.encode() + ticket, own)

    async def ask(self, change: Callable[[bytes], bytes] = bytes) -> bytes:
        """The rule by which the member refuses; empty if it does not."""
        asking = await self.asking()
        raw = await self.desk.answer(change(asking.raw))
        try:
            steps.read(self.committee, replace(asking, raw=change(asking.raw)), {ME: raw})
        except SealRefused as error:
            return error.rule.encode()
        return b""


def rule(scene: Scene, change: Callable[[bytes], bytes] = bytes) -> str:
    return asyncio.run(scene.ask(change)).decode()


def test_a_listed_client_gets_a_contribution() -> None:
    assert rule(Scene()) == ""


def test_a_program_that_is_not_listed() -> None:
    assert rule(Scene(program=NEXT)) == "mrtd"
    assert rule(Scene(program=NEXT, listed=accepted(4, SERVER, NEXT))) == ""


def test_whoever_has_no_instance_key() -> None:
    """Another listed program asks for what belongs to a node, with a key of its own."""
    scene = Scene()
    owner = scene.asker.id
    scene.asker = scene.as_asker(Ed25519PrivateKey.generate())

    async def body() -> str:
        asking = await scene.asking()
        request = replace(asking.request, instance=owner)
        ticket = await scene.asker.ticket(
            request.challenge, asking.ephemeral.public_key().public_bytes_raw()
        )
        answer = Answer.decode(await scene.desk.answer(request.encode() + ticket))
        assert isinstance(answer.content, Refusal)
        return answer.content.rule

    assert asyncio.run(body()) == "seal.binding"


def test_a_bundle_that_another_key_has_signed() -> None:
    def forged(raw: bytes) -> bytes:
        bundle = raw[-_bundle(raw) :]
        return raw[: -len(bundle)] + replace(Bundle.decode(bundle), signature=bytes(64)).encode()

    assert rule(Scene(), forged) == "pop"


def _bundle(raw: bytes) -> int:
    """The size of the bundle at the end of a request with one member."""
    return len(raw) - (16 + 1 + 4 * 32 + 2 * 8 + 2 + 72)


def test_a_request_twice() -> None:
    scene = Scene()

    async def body() -> str:
        asking = await scene.asking()
        await scene.desk.answer(asking.raw)
        answer = Answer.decode(await scene.desk.answer(asking.raw))
        assert isinstance(answer.content, Refusal)
        return answer.content.rule

    assert asyncio.run(body()) == "seal.nonce"


def test_a_list_that_is_not_in_force() -> None:
    scene = Scene()

    async def body() -> str:
        asking = await scene.asking(number=4)
        answer = Answer.decode(await scene.desk.answer(asking.raw))
        assert isinstance(answer.content, Refusal)
        return answer.content.rule

    assert asyncio.run(body()) == "seal.list"


def test_too_many_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sealing, "MAX_WAITING", 0)
    assert rule(Scene()) == "sealing.busy"


def test_clients_without_quotes() -> None:
    config = replace(OPERATORS.config, clients=Clients.UNATTESTED)
    admission = replace(ADMISSION, config=config)
    assert not admission.attests(Role.SEALER)
    assert ADMISSION.attests(Role.SEALER)
    scene = Scene(admission=admission)
    with refused(Refused, "sealing.unattested"):
        asyncio.run(scene.desk.answer(NONCE_ASK))


def test_no_list_yet() -> None:
    def none() -> AllowList:
        raise Refused("no list", expected="one", rule="list.none")

    member = Member(bytes(32), ME, Ed25519PrivateKey.generate(), MemoryTable(), token_bytes)
    desk = SealingDesk(member, ADMISSION, none, now)
    with refused(Refused, "list.none"):
        asyncio.run(desk.answer(b"anything"))


def test_a_root_in_memory() -> None:
    kept = Kept.in_memory(lambda count: b"\x07" * count)
    assert kept.root == b"\x07" * 32
    assert "07" not in repr(kept)


class Wire:
    """A channel whose server says this."""

    def __init__(self, said: bytes | EngineError) -> None:
        self.said = said
        self.asked: list[tuple[str, bytes]] = []

    async def ask(self, topic: str, data: bytes, timeout: float = 5.0) -> bytes:  # noqa: ARG002
        self.asked.append((topic, data))
        if isinstance(self.said, EngineError):
            raise self.said
        return self.said


def test_each_server_is_asked_on_its_own_topic() -> None:
    wire = Wire(Told(content=b"nonce").encode())
    asked = ServersAsked(wire)  # type: ignore[arg-type]
    assert asyncio.run(asked.ask(ME, NONCE_ASK)) == b"nonce"
    assert wire.asked == [(server_topic(ME), Request(Ask.SEALING, NONCE_ASK).encode())]


@pytest.mark.parametrize(
    ("said", "rule"),
    [
        (Unavailable("nobody", rule="ask"), "ask"),
        (Told("sealing.unattested", "no").encode(), "sealing.unattested"),
        (b"\xff", "answer.truncated"),
    ],
)
def test_what_nobody_has_signed_is_no_answer(said: bytes | EngineError, rule: str) -> None:
    with pytest.raises(SealUnavailable) as caught:
        asyncio.run(ServersAsked(Wire(said)).ask(ME, b""))  # type: ignore[arg-type]
    assert caught.value.rule == rule
