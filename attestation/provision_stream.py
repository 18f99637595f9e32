"""Provisioning over TCP: one exchange, in frames of u32be length | body.

    1  tool    challenge (32 bytes)
    2  guest   answer: 0 | offer
    3  tool    grant
    4  guest   answer: 0

Instead of either answer, the guest may refuse, and the exchange is over:

    1 | u8 length | rule | message

rule is 1 to 64 of a-z, 0-9, '-' and '.', message at most 1024 characters of printable ASCII. Offers
and grants are those of `attestation.provision`. Nothing here is secret or trusted on its way.
"""

import asyncio
import contextlib
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from attestation.errors import (
    Explained,
    ProvisionFormatError,
    ProvisionRefused,
    ProvisionUnavailable,
)
from attestation.provision import CHALLENGE_SIZE, MAX_GRANT, MAX_OFFER, Granted, Guest

__all__ = ["PORT", "Limits", "parse_answer", "provision", "refusal", "serve"]

PORT = 7744

MAX_RULE = 64
MAX_MESSAGE = 1024
# The last answer: good, or a refusal.
MAX_ANSWER = 2 + MAX_RULE + MAX_MESSAGE
_LENGTH_SIZE = 4
_GOOD, _REFUSED = b"\0", b"\1"
_RULE = re.compile(rf"[a-z0-9.-]{{1,{MAX_RULE}}}")
_UNPRINTABLE = re.compile("[^ -~]")
# For how long a connection that has ended may take to empty its buffer.
_GOODBYE_SECONDS = 1.0


@dataclass(frozen=True, slots=True)
class Limits:
    """What a guest bears: seconds for challenge, exchange and between quotes; open connections."""

    challenge: float = 10.0
    exchange: float = 120.0
    between_quotes: float = 1.0
    connections: int = 16


LIMITS = Limits()


async def serve(
    guest: Guest, host: str, port: int, said: Callable[[str], None], *, limits: Limits = LIMITS
) -> Granted:
    """Listen until an operator gives a good grant; by then the listener is closed.

    One exchange at a time: others are refused with rule `provision.busy`. `said` gets a line of
    printable text for whoever watches: the address (with the port that was chosen, if `port` is 0)
    and the end of each exchange.

    Raises ProvisionUnavailable (`provision.listen`) if the address can't be had.
    """
    desk = _Desk(guest, said, limits)
    try:
        server = await asyncio.start_server(desk.meet, host or None, port)
    except OSError as error:
        raise ProvisionUnavailable(
            f"provisioning can't listen on {host}:{port}",
            got=error.strerror or str(error),
            rule="provision.listen",
            hint="see what else has this port",
        ) from error
    desk.close_listener = server.close
    try:
        said(f"waits for its operator on port {server.sockets[0].getsockname()[1]}")
        return await desk.granted
    finally:
        server.close()
        await desk.clear()


class _Desk:
    """The guest's side of all connections."""

    def __init__(self, guest: Guest, said: Callable[[str], None], limits: Limits) -> None:
        self.granted: asyncio.Future[Granted] = asyncio.get_running_loop().create_future()
        self.close_listener: Callable[[], None] = lambda: None
        self._guest = guest
        self._said = said
        self._limits = limits
        self._meetings: set[asyncio.Task[None]] = set()
        self._busy = False
        # It runs in a thread, which goes on when the exchange it was for has ended.
        self._quoting: asyncio.Future[bytes] | None = None
        self._next_quote = 0.0

    async def meet(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Serve one connection to its end."""
        task = asyncio.current_task()
        assert task is not None
        self._meetings.add(task)
        try:
            try:
                if len(self._meetings) <= self._limits.connections:
                    await self._talk(reader, writer)
            finally:
                await _hang_up(writer)
        except (OSError, EOFError):
            pass  # gone, or silent before it had said what it wants
        except asyncio.CancelledError:
            pass  # by `clear`
        except Exception as error:
            # A fault of ours: who runs the guest must hear of it.
            if not self.granted.done():
                self.granted.set_exception(error)
        finally:
            self._meetings.discard(task)

    async def clear(self) -> None:
        """End what goes on."""
        for meeting in self._meetings:
            meeting.cancel()
        await asyncio.gather(*self._meetings, return_exceptions=True)

    async def _talk(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            async with asyncio.timeout(self._limits.challenge):
                challenge = await read_frame(reader, CHALLENGE_SIZE)
            with self._turn():
                granted = await self._exchange(challenge, reader, writer)
                self.close_listener()
                writer.write(_frame(_GOOD))
                await _hang_up(writer)
                self.granted.set_result(granted)
        except Explained as error:
            writer.write(_frame(refusal(error)))

    @contextlib.contextmanager
    def _turn(self) -> Iterator[None]:
        if self._busy or (self._quoting is not None and not self._quoting.done()):
            raise ProvisionRefused(
                "the guest is busy with another operator",
                expected="one exchange at a time",
                rule="provision.busy",
                hint="try again in some seconds",
            )
        self._busy = True
        try:
            yield
        except Explained as error:
            self._said(f"provisioning refused: {_line(error)}")
            raise
        except (OSError, EOFError):
            self._said("provisioning ended: the operator hung up")
            raise
        finally:
            # Who was accepted just before the listener closed gets no turn after the grant.
            self._busy = self.granted.done()

    async def _exchange(
        self, challenge: bytes, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> Granted:
        try:
            async with asyncio.timeout(self._limits.exchange):
                writer.write(_frame(_GOOD + await self._offer(challenge)))
                await writer.drain()
                grant = await read_frame(reader, MAX_GRANT)
        except TimeoutError:
            raise ProvisionRefused(
                "provisioning took too long",
                expected=f"a grant within {self._limits.exchange:g} seconds",
                got="none",
                rule="provision.timeout",
                hint="try again; check the network between",
            ) from None
        return self._guest.accept(grant)

    async def _offer(self, challenge: bytes) -> bytes:
        loop = asyncio.get_running_loop()
        await asyncio.sleep(self._next_quote - loop.time())
        self._quoting = asyncio.ensure_future(asyncio.to_thread(self._guest.offer, challenge))
        self._quoting.add_done_callback(self._quoted)
        return await asyncio.shield(self._quoting)

    def _quoted(self, done: asyncio.Future[bytes]) -> None:
        self._next_quote = asyncio.get_running_loop().time() + self._limits.between_quotes
        if not done.cancelled():
            done.exception()  # seen, also if nobody waits for it any more


async def provision(
    host: str,
    port: int,
    challenge: bytes,
    answer: Callable[[bytes], bytes],
    timeout: float,
) -> None:
    """Take the guest at `host` through one exchange, within `timeout` seconds.

    `challenge` is 32 fresh random bytes. `answer` makes the grant for an offer, or raises: then the
    guest gets none. It runs in a thread of its own, so it may block.

    Raises ProvisionUnavailable; ProvisionFormatError for what is no answer of a guest;
    ProvisionRefused by the guest's own rule if it refuses; what `answer` raises.
    """
    try:
        async with asyncio.timeout(timeout) as deadline:
            with _unreachable(host, port):
                reader, writer = await asyncio.open_connection(host, port)
            try:
                with _unreachable(host, port):
                    writer.write(_frame(challenge))
                    offer = parse_answer(await read_frame(reader, len(_GOOD) + MAX_OFFER))
                grant = await asyncio.to_thread(answer, offer)
                with _unreachable(host, port):
                    writer.write(_frame(grant))
                    await writer.drain()
                    end = parse_answer(await read_frame(reader, MAX_ANSWER))
            finally:
                await _hang_up(writer)
    except TimeoutError as error:
        if not deadline.expired():
            raise
        raise ProvisionUnavailable(
            "provisioning took too long",
            expected=f"an end within {timeout:g} seconds",
            got="none",
            rule="provision.timeout",
            hint="a quote takes some seconds; look at the console of the guest",
        ) from error
    if end:
        raise ProvisionFormatError(
            "the guest's answer to the grant is not one",
            expected="no content",
            got=f"{len(end)} bytes",
            rule="provision.answer",
        )


def refusal(error: Explained) -> bytes:
    """The answer that refuses because of `error`."""
    rule = error.rule if _RULE.fullmatch(error.rule) else "provision.refused"
    return _REFUSED + bytes([len(rule)]) + rule.encode() + _line(error).encode()


def parse_answer(body: bytes) -> bytes:
    """The content of a guest's answer.

    Raises ProvisionRefused with the guest's rule if the answer is a refusal, ProvisionFormatError
    (`provision.answer`) if it is none.
    """
    kind, rest = body[:1], body[1:]
    if kind == _GOOD:
        return rest
    size = rest[0] if rest else 0
    rule, message = (part.decode("latin-1") for part in (rest[1 : 1 + size], rest[1 + size :]))
    if (
        kind != _REFUSED
        or len(rule) != size
        or not _RULE.fullmatch(rule)
        or len(message) > MAX_MESSAGE
        or _UNPRINTABLE.search(message)
    ):
        raise ProvisionFormatError(
            "this is no answer of a guest",
            expected="an offer, an end or a refusal",
            got=f"{len(body)} bytes of another form",
            rule="provision.answer",
            hint=f"guests take provisioning on port {PORT}",
        )
    raise ProvisionRefused(
        f"the guest refuses: {message}",
        rule=rule,
        hint="the console of the guest has the same line",
    )


def _line(error: Explained) -> str:
    text = f"{error}; {error.hint}" if error.hint else str(error)
    return _UNPRINTABLE.sub("?", text)[:MAX_MESSAGE]


def _frame(body: bytes) -> bytes:
    return len(body).to_bytes(_LENGTH_SIZE, "big") + body


async def read_frame(reader: asyncio.StreamReader, limit: int) -> bytes:
    """The body of the next frame, at most `limit` bytes. Raises ProvisionFormatError, EOFError."""
    size = int.from_bytes(await reader.readexactly(_LENGTH_SIZE), "big")
    if size > limit:
        raise ProvisionFormatError(
            "a frame of provisioning is too large",
            expected=f"at most {limit} bytes",
            got=str(size),
            rule="provision.frame-size",
            hint=f"guests take provisioning on port {PORT}",
        )
    return await reader.readexactly(size)


async def _hang_up(writer: asyncio.StreamWriter) -> None:
    """Close, and drop what the other side does not take in time."""
    writer.close()
    try:
        async with asyncio.timeout(_GOODBYE_SECONDS):
            await writer.wait_closed()
    except OSError:
        pass
    finally:
        writer.transport.abort()


@contextlib.contextmanager
def _unreachable(host: str, port: int) -> Iterator[None]:
    try:
        yield
    except (OSError, EOFError) as error:
        raise ProvisionUnavailable(
            f"the guest at {host}:{port} can't be reached, or hung up",
            expected="an exchange to its end",
            got=ascii(str(error)[:120]),
            rule="provision.unreachable",
            hint="check the address, and on the guest's console that it waits for its operator",
        ) from error
