"""The tool's side of provisioning over TCP, and the answers of guests as bytes."""

import asyncio
import contextlib
from collections.abc import Awaitable, Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from attestation.errors import (
    AttestationError,
    Explained,
    ProvisionFormatError,
    ProvisionRefused,
    ProvisionUnavailable,
)
from attestation.provision import MAX_OFFER
from attestation.provision_stream import parse_answer, provision, refusal
from tests.attestation.measure.support import refused
from tests.attestation.provision_support import (
    CHALLENGE,
    HOST,
    OPERATOR,
    PATIENCE,
    SECRET,
    frame,
    granted,
    read,
    run,
    tool,
    waiting,
)


def test_what_a_tool_raises_comes_through() -> None:
    def answer(_offer: bytes) -> bytes:
        raise FileNotFoundError("operator.key")

    def late(_offer: bytes) -> bytes:
        raise TimeoutError("a service of the operator's")

    async def test() -> None:
        async with waiting() as to:
            with pytest.raises(FileNotFoundError):
                await tool(to, answer)
            with pytest.raises(TimeoutError, match="operator's"):
                await tool(to, late)

    run(test())


async def against(
    guest_side: Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]],
    timeout: float = PATIENCE,
) -> None:
    async def meet(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError, EOFError):
            await guest_side(reader, writer)
            writer.write_eof()
            await reader.read()
        writer.close()

    server = await asyncio.start_server(meet, HOST, 0)
    async with server:
        port = server.sockets[0].getsockname()[1]
        await provision(HOST, port, CHALLENGE, lambda offer: b"grant of " + offer, timeout)


@pytest.mark.parametrize(
    ("answers", "kind", "rule"),
    [
        ([], ProvisionUnavailable, "provision.unreachable"),
        ([b"\0\0\0\5ab"], ProvisionUnavailable, "provision.unreachable"),
        ([(MAX_OFFER + 2).to_bytes(4, "big")], ProvisionFormatError, "provision.frame-size"),
        ([frame(b"")], ProvisionFormatError, "provision.answer"),
        ([frame(b"\2")], ProvisionFormatError, "provision.answer"),
        ([frame(b"\1\4busyplease")], ProvisionRefused, "busy"),
        ([frame(b"\0offer")], ProvisionUnavailable, "provision.unreachable"),
        ([frame(b"\0offer"), frame(b"\0more")], ProvisionFormatError, "provision.answer"),
        ([frame(b"\0offer"), b"\0\0\xff\0"], ProvisionFormatError, "provision.frame-size"),
        ([frame(b"\0offer"), frame(b"\1\1xno")], ProvisionRefused, "x"),
    ],
)
def test_guests_of_another_kind(
    answers: list[bytes], kind: type[AttestationError], rule: str
) -> None:
    async def side(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        for answer in answers:
            assert await read(reader) in {CHALLENGE, b"grant of offer"}
            writer.write(answer)

    async def test() -> None:
        with refused(kind, rule):
            await against(side)

    run(test())


def test_a_guest_that_stalls() -> None:
    async def side(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read()

    async def test() -> None:
        with refused(ProvisionUnavailable, "provision.timeout"):
            await against(side, timeout=0.1)

    run(test())


def test_nobody_there() -> None:
    async def test() -> None:
        async with waiting() as to:
            await tool(to)
        with refused(ProvisionUnavailable, "provision.unreachable") as _:
            await tool(to)

    run(test())


# Answers as bytes.


@given(st.binary(max_size=200), st.text(max_size=2000), st.text(max_size=80), st.text(max_size=50))
def test_refusals_survive_the_way(content: bytes, message: str, rule: str, got: str) -> None:
    assert parse_answer(b"\0" + content) == content
    body = refusal(Explained(message, rule=rule, got=got))
    with pytest.raises(ProvisionRefused) as caught:
        parse_answer(body)
    assert len(body) <= 2 + 64 + 1024
    assert caught.value.rule
    assert caught.value.diagnostics().isascii()


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"\1",
        b"\1\0",
        b"\1\0message",
        b"\1\5rule",
        b"\1\x41" + b"r" * 65,
        b"\1\4Rule",
        b"\1\4ru\nx",
        b"\1\4ruleline\nline",
        b"\1\4rule\x1b[2J",
        b"\1\4rule\xff",
        b"\1\4rule" + b"m" * 1025,
        b"\2\4rule",
    ],
)
def test_malformed_answers(body: bytes) -> None:
    with refused(ProvisionFormatError, "provision.answer"):
        parse_answer(body)


def test_no_secret_on_the_wire_or_the_console() -> None:
    async def test() -> None:
        sent: list[bytes] = []

        def answer(offer: bytes) -> bytes:
            sent.extend((offer, granted(offer)))
            return sent[-1]

        async with waiting() as to:
            await tool(to, answer)
            given = await to.serving
            assert given.secret == SECRET
            for text in (*map(str.encode, to.lines), *sent, repr(given).encode()):
                assert SECRET not in text
                assert OPERATOR.private_bytes_raw() not in text

    run(test())
