"""The guest's side of provisioning over TCP: exchanges, peers that stall or babble, the end."""

import asyncio
import contextlib
import threading
import time
from collections.abc import Callable

import pytest

from attestation.errors import (
    ProviderFailed,
    ProvisionRefused,
    ProvisionUnavailable,
    TicketRejected,
)
from attestation.provision import MAX_GRANT
from attestation.provision_stream import (
    PORT,
    Limits,
    parse_answer,
    serve,
)
from tests.attestation.measure.support import refused
from tests.attestation.provision_support import (
    CHALLENGE,
    CONFIG,
    HOST,
    PATIENCE,
    SECRET,
    STRANGER,
    Provider,
    accepted,
    connect,
    frame,
    granted,
    guest,
    read,
    run,
    tool,
    waiting,
)


async def told(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> str:
    """The rule of the guest's refusal, after which it hangs up."""
    with pytest.raises(ProvisionRefused) as caught:
        parse_answer(await read(reader))
    assert await reader.read() == b""
    writer.close()
    return caught.value.rule


def test_from_end_to_end() -> None:
    async def test() -> None:
        async with waiting() as to:
            await tool(to)
            given = await to.serving
            assert (given.config, given.secret) == (CONFIG, SECRET)
            # The system itself refuses: nothing listens any more.
            with pytest.raises(ConnectionRefusedError):
                await connect(to)

    run(test())


def test_the_bytes_on_the_wire() -> None:
    async def test() -> None:
        async with waiting() as to:
            reader, writer = await connect(to)
            writer.write(frame(CHALLENGE))
            answer = await read(reader)
            assert answer[:1] == b"\0"
            writer.write(frame(granted(answer[1:])))
            assert await reader.read() == b"\0\0\0\1\0"
            writer.close()
            await to.serving

    run(test())


def test_an_open_connection_does_not_outlive_the_grant() -> None:
    async def test() -> None:
        async with waiting() as to:
            reader, writer = await connect(to)
            await tool(to)
            await to.serving
            assert await reader.read() == b""
            writer.close()

    run(test())


def test_no_turn_after_the_grant() -> None:
    """A challenge that arrives together with the grant gets no offer."""

    async def test() -> None:
        provider = Provider()
        async with waiting(guest(provider)) as to:
            late, to_late = await connect(to)
            reader, writer = await connect(to)
            writer.write(frame(CHALLENGE))
            grant = granted(parse_answer(await read(reader)))
            writer.write(frame(grant))
            to_late.write(frame(CHALLENGE))
            await to.serving
            # Cut off with its challenge unread, or heard and refused.
            with contextlib.suppress(ConnectionResetError):
                answer = await late.read()
                assert answer == b"" or b"provision.busy" in answer
            assert provider.asked == 2
            writer.close()
            to_late.close()

    run(test())


@pytest.mark.parametrize(
    ("answer", "rule"),
    [
        (lambda offer: granted(offer, STRANGER), "provision.operator"),
        (lambda offer: granted(offer, config=b"a deploymenT\n"), "provision.config"),
        (lambda offer: granted(offer, config=b"none"), "config.format"),
        (lambda _: granted(guest(boot="other").offer(CHALLENGE)), "provision.signature"),
        (lambda offer: granted(offer)[:-1] + b"\0", "provision.signature"),
        (lambda _: b"", "provision.grant-size"),
        (lambda _: bytes(MAX_GRANT), "provision.grant-lengths"),
    ],
)
def test_a_refused_grant(answer: Callable[[bytes], bytes], rule: str) -> None:
    """The tool hears the guest's reason; the guest says the same and goes on listening."""

    async def test() -> None:
        async with waiting() as to:
            with refused(ProvisionRefused, rule, "the guest refuses: "):
                await tool(to, answer)
            [line] = to.lines
            assert line.startswith("provisioning refused: ")
            await tool(to)
            await to.serving

    run(test())


def test_a_refused_offer() -> None:
    """The guest gets no grant, and goes on listening."""

    async def test() -> None:
        async with waiting() as to:
            with refused(TicketRejected, "challenge"):
                await tool(to, lambda offer: bytes(accepted(offer, challenge=b"\0" * 32).offer.raw))
            await tool(to)
            await to.serving
            assert to.lines == ["provisioning ended: the operator hung up"]

    run(test())


class Broken:
    """A quoting service that fails so many times, by an error of ours or one that is none."""

    def __init__(self, times: int, error: Exception) -> None:
        self.times, self.error = times, error

    def quote(self, report_data: bytes) -> bytes:
        if self.times:
            self.times -= 1
            raise self.error
        return Provider().quote(report_data)


def test_a_provider_that_fails() -> None:
    async def test() -> None:
        failure = ProviderFailed("no \N{EM DASH} quote", rule="tsm.empty-quote", hint="update QEMU")
        async with waiting(guest(Broken(1, failure))) as to:
            with refused(ProvisionRefused, "tsm.empty-quote", "no ? quote; update QEMU"):
                await tool(to)
            await tool(to)
            await to.serving

    run(test())


def test_a_fault_of_the_guest_ends_its_waiting() -> None:
    async def test() -> None:
        async with waiting(guest(Broken(1, ZeroDivisionError()))) as to:
            with refused(ProvisionUnavailable, "provision.unreachable"):
                await tool(to)
            with pytest.raises(ZeroDivisionError):
                await to.serving
            with pytest.raises(ConnectionRefusedError):
                await connect(to)

    run(test())


# Who babbles, stalls or hangs up.


@pytest.mark.parametrize(
    ("sent", "rule"),
    [
        (frame(CHALLENGE[1:]), "provision.challenge-size"),
        (frame(b""), "provision.challenge-size"),
        (frame(CHALLENGE + b"\0"), "provision.frame-size"),
        (b"GET / HTTP/1.1\r\n\r\n"[:4], "provision.frame-size"),
        (b"\xff" * 4, "provision.frame-size"),
    ],
)
def test_bad_challenges(sent: bytes, rule: str) -> None:
    async def test() -> None:
        async with waiting() as to:
            reader, writer = await connect(to)
            # Without the body: it isn't waited for if it is too large.
            writer.write(sent[:4] if rule == "provision.frame-size" else sent)
            assert await told(reader, writer) == rule
            await tool(to)
            await to.serving

    run(test())


def test_a_grant_that_is_too_large_to_read() -> None:
    async def test() -> None:
        async with waiting() as to:
            reader, writer = await connect(to)
            writer.write(frame(CHALLENGE))
            await read(reader)
            writer.write((MAX_GRANT + 1).to_bytes(4, "big"))
            assert await told(reader, writer) == "provision.frame-size"

    run(test())


@pytest.mark.parametrize("sent", [b"", b"\0", frame(CHALLENGE)[:-1], frame(CHALLENGE) + b"\0\0"])
def test_a_connection_that_breaks(sent: bytes) -> None:
    async def test() -> None:
        async with waiting() as to:
            reader, writer = await connect(to)
            writer.write(sent)
            writer.write_eof()
            await reader.read()
            writer.close()
            await tool(to)
            await to.serving

    run(test())


def test_a_peer_that_says_nothing() -> None:
    async def test() -> None:
        async with waiting(limits=Limits(challenge=0.05, between_quotes=0.0)) as to:
            reader, writer = await connect(to)
            assert await reader.read() == b""
            writer.close()
            assert to.lines == []

    run(test())


def test_a_peer_that_stalls() -> None:
    async def test() -> None:
        async with waiting(limits=Limits(exchange=0.1, between_quotes=0.0)) as to:
            reader, writer = await connect(to)
            writer.write(frame(CHALLENGE))
            assert (await read(reader))[:1] == b"\0"
            assert await told(reader, writer) == "provision.timeout"
            [line] = to.lines
            assert "took too long" in line

    run(test())


def test_two_tools_at_once() -> None:
    async def test() -> None:
        async with waiting() as to:
            reader, writer = await connect(to)
            writer.write(frame(CHALLENGE))
            offer = parse_answer(await read(reader))
            with refused(ProvisionRefused, "provision.busy"):
                await tool(to)
            # The one that came first is not disturbed.
            writer.write(frame(granted(offer)))
            assert await read(reader) == b"\0"
            writer.close()
            await to.serving
            assert to.lines == []

    run(test())


def test_a_silent_connection_keeps_nobody_out() -> None:
    async def test() -> None:
        async with waiting() as to:
            reader, writer = await connect(to)
            await tool(to)
            await to.serving
            assert await reader.read() == b""
            writer.close()

    run(test())


def test_too_many_connections() -> None:
    async def test() -> None:
        async with waiting(limits=Limits(connections=2, between_quotes=0.0)) as to:
            silent = [await connect(to) for _ in range(2)]
            reader, writer = await connect(to)
            assert await reader.read() == b""
            writer.close()
            for _, one in silent:
                one.close()
                await one.wait_closed()
            while True:
                # Until the guest has seen that they are gone.
                with contextlib.suppress(ProvisionUnavailable):
                    await tool(to)
                    break
            await to.serving

    run(test())


class Slow:
    """A quoting service that answers when told to, and notes when it was asked."""

    def __init__(self) -> None:
        self.go = threading.Event()
        self.asked = threading.Event()

    def quote(self, report_data: bytes) -> bytes:
        self.asked.set()
        assert self.go.wait(PATIENCE)
        return Provider().quote(report_data)


def test_a_quote_that_outlives_its_exchange() -> None:
    """The thread can't be stopped, so nobody else gets an offer until it is done."""

    async def test() -> None:
        slow = Slow()
        async with waiting(guest(slow), Limits(exchange=0.1, between_quotes=0.0)) as to:
            try:
                with refused(ProvisionRefused, "provision.timeout"):
                    await tool(to)
                with refused(ProvisionRefused, "provision.busy"):
                    await tool(to)
            finally:
                slow.go.set()
            while True:
                with contextlib.suppress(ProvisionRefused):
                    await tool(to)
                    break
            await to.serving

    run(test())


def test_time_between_quotes() -> None:
    times: list[float] = []

    class Noting(Provider):
        def quote(self, report_data: bytes) -> bytes:
            times.append(time.monotonic())
            return super().quote(report_data)

    async def test() -> None:
        async with waiting(guest(Noting()), Limits(between_quotes=0.2)) as to:
            for _ in range(2):
                reader, writer = await connect(to)
                writer.write(frame(CHALLENGE))
                await read(reader)
                writer.close()
            own, first, second = times
            assert own <= first <= second - 0.2

    run(test())


def test_an_address_that_is_taken() -> None:
    async def test() -> None:
        async with waiting() as to:
            with refused(ProvisionUnavailable, "provision.listen"):
                await serve(guest(), HOST, to.port, lambda _: None)

    run(test())


def test_defaults() -> None:
    assert PORT == 7744
    assert Limits() == Limits(10.0, 120.0, 1.0, 16)


def test_a_guest_that_is_told_to_end() -> None:
    async def test() -> None:
        async with waiting() as to:
            reader, writer = await connect(to)
            writer.write(frame(CHALLENGE))
            await read(reader)
            to.serving.cancel()
            with pytest.raises(asyncio.CancelledError):
                await to.serving
            assert await reader.read() == b""
            writer.close()
            with pytest.raises(ConnectionRefusedError):
                await connect(to)

    run(test())
