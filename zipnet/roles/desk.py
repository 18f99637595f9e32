"""What a server answers: clients' requests for the log, operators' documents, questions."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator, Awaitable, Callable

from attestation.bundle import Bundle
from attestation.errors import AttestationError
from zipnet.committee import bodies
from zipnet.committee.events import Applied, Verdict
from zipnet.committee.membership import check_client_key
from zipnet.committee.state import Client, State
from zipnet.errors import EngineError, Lagged, Refused, ZipnetError
from zipnet.ids import client_id
from zipnet.network.base import Blobs, Message
from zipnet.network.public import Answer, Ask, ClientStatus, Request
from zipnet.operators import Dismissal
from zipnet.protocol.codec import Reader
from zipnet.protocol.roster import RESUME, EpochKey
from zipnet.roles.gate import Gate
from zipnet.roles.sealing import SealingDesk

log = logging.getLogger("zipnet.server")


class Desk:
    """Answers requests. `append` puts a body into the log, about a round or about none (0)."""

    def __init__(
        self,
        state: Callable[[], State],
        blobs: Blobs,
        append: Callable[[bodies.Body, int], Awaitable[Applied]],
        prove: Callable[[bytes], Awaitable[bytes]],
        sign_outcome: Callable[[int, bytes], bytes],
        registered: Callable[[], None],
        gate: Gate,
        sealing: SealingDesk,
    ) -> None:
        self._state = state
        self._blobs = blobs
        self._append = append
        self._prove = prove
        self._sign_outcome = sign_outcome
        self._registered = registered
        self._gate = gate
        self._sealing = sealing

    async def serve(self, requests: AsyncIterator[Message]) -> None:
        """Answer for ever, many at a time."""
        async with asyncio.TaskGroup() as tasks:
            while True:
                try:
                    async for message in requests:
                        tasks.create_task(self._answer(message))
                except Lagged as error:
                    log.warning("requests were lost: %s", error)

    async def _answer(self, message: Message) -> None:
        try:
            answer = Answer(content=await self._handle(Request.decode(message.data)))
        except (AttestationError, ZipnetError) as error:
            answer = Answer.refusal(error)
        if message.reply is not None:
            with contextlib.suppress(EngineError):
                await message.reply(answer.encode())

    async def _handle(self, request: Request) -> bytes:
        if request.ask in BODIES:
            await self._enter(request)
            return b""
        return await self._tell(request)

    async def _tell(self, request: Request) -> bytes:
        match request.ask:
            case Ask.PROVE:
                return await self._prove(request.body)
            case Ask.STATUS:
                return self._status(request.body).encode()
            case Ask.OUTCOME:
                return self._outcome(int.from_bytes(request.body[:8], "big"))
            case Ask.AGGREGATE:
                return await self._aggregate(request.body)
            case Ask.SEALING:
                return await self._sealing.answer(request.body)
        self._gate.check(Bundle.decode(request.body))  # Ask.ADMISSION, the only one left
        return b""

    async def _enter(self, request: Request) -> None:
        """Append what is asked for, if its client has signed it."""
        reader = Reader(request.body, "request", at_most=bodies.MAX_COMMAND)
        body = BODIES[request.ask](reader)
        reader.done()
        check_request(self._state(), body)
        if isinstance(body, bodies.Register | bodies.Renew):
            # Whoever judges the client finds its bundle there.
            await self._blobs.put(request.body)
        await self._say(body, 0)
        if isinstance(body, bodies.Register | bodies.Renew):
            self._registered()

    async def _aggregate(self, raw: bytes) -> bytes:
        current = self._state().current
        if current is None:
            raise Refused("no round is in flight", rule="aggregate.round")
        await self._say(bodies.SubmitAggregate(raw), current.header.round)
        return b""

    async def _say(self, body: bodies.Body, round_number: int) -> None:
        applied = await self._append(body, round_number)
        if applied.verdict is Verdict.REFUSED:
            raise Refused(applied.detail.splitlines()[0], rule=applied.rule)

    def _outcome(self, round_number: int) -> bytes:
        """How a round ended, signed: for a client that must know whether it was exposed."""
        found = next((o for o in self._state().outcomes if o.round == round_number), None)
        if found is None:
            return b""
        ending = bytes([found.ending])
        return ending + self._sign_outcome(round_number, ending)

    def _status(self, client_id: bytes) -> ClientStatus:
        client = self._state().clients.get(client_id)
        if client is None:
            return ClientStatus(False, False, 0, ())
        serial = client.next_key.serial if client.next_key else 0
        refusals = tuple(sorted(client.refusals.items()))
        return ClientStatus(True, client.member is not None, serial, refusals)


def check_request(state: State, body: bodies.Body) -> None:
    """Refuse what is not signed by the client that it is about, before it costs a log entry.

    The entry counts against this server's byte quota, and anybody may ask. Raises as the machine
    would refuse, by the same rules.
    """
    match body:
        case bodies.Register():
            bundle = Bundle.decode(body.bundle)
            ticket = bundle.ticket
            if not bundle.possessed():
                raise Refused("the bundle is not signed by its peer key", rule="register.pop")
            check_client_key(state, body.key, client_id(ticket.dh_pub), ticket.peer_id)
        case bodies.Renew():
            bundle = Bundle.decode(body.bundle)
            client = _known(state, client_id(bundle.ticket.dh_pub), "client.unknown")
            if not bundle.possessed() or bundle.ticket.peer_id != client.peer:
                raise Refused("the bundle is not signed by the client's peer key", rule="renew.pop")
        case bodies.EpochKeys():
            for key in body.keys:
                client = _known(state, key.member, "epoch-key.unknown")
                check_client_key(state, key, client.id, client.peer)
        case bodies.ResumeNode():
            client = _known(state, body.node, "resume.unknown")
            state.instance.verify(client.peer, body.signature, RESUME, 0, body.statement())
        case bodies.Retire():
            client = _known(state, body.client, "client.unknown")
            statement = body.client + body.registration
            state.instance.verify(client.peer, body.signature, bodies.RETIRE, 0, statement)


def _known(state: State, client: bytes, rule: str) -> Client:
    if client not in state.clients:
        raise Refused("no client has this id", got=client.hex(), rule=rule)
    return state.clients[client]


def _epoch_key(reader: Reader) -> bodies.Body:
    return bodies.EpochKeys((EpochKey.read(reader),))


def _dismissal(reader: Reader) -> bodies.Body:
    return bodies.Leave(Dismissal.read(reader))


# What a request asks to be appended.
BODIES: dict[Ask, Callable[[Reader], bodies.Body]] = {
    Ask.REGISTER: bodies.Register.read,
    Ask.RENEW: bodies.Renew.read,
    Ask.EPOCH_KEY: _epoch_key,
    Ask.RESUME: bodies.ResumeNode.read,
    Ask.RETIRE: bodies.Retire.read,
    Ask.ALLOW_LIST: bodies.RotateAllowList.read,
    Ask.OPERATORS: bodies.ChangeOperators.read,
    Ask.DISMISS: _dismissal,
}
