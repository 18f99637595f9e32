"""Fuzz target: what a guest hears and what a tool hears, frame after frame."""

import asyncio

from attestation.errors import AttestationError, ProvisionRefused
from attestation.provision import CHALLENGE_SIZE, MAX_GRANT, MAX_OFFER
from attestation.provision_stream import parse_answer, read_frame, refusal

LIMITS = (CHALLENGE_SIZE, MAX_GRANT, MAX_OFFER)


def seeds() -> list[bytes]:
    no = refusal(ProvisionRefused("no", expected="a", got="b", rule="provision.used", hint="ask"))
    bodies = (b"\xca" * 32, b"\0an offer", no, b"\0", b"\1", b"")
    return [len(body).to_bytes(4, "big") + body for body in bodies]


async def _bodies(data: bytes) -> list[bytes]:
    """What is in the frames of `data`, by each side's limits."""
    found = []
    for limit in LIMITS:
        reader = asyncio.StreamReader()
        reader.feed_data(data)
        reader.feed_eof()
        try:
            while not reader.at_eof():
                body = await read_frame(reader, limit)
                assert len(body) <= limit
                found.append(body)
        except EOFError:
            pass
        except AttestationError as error:
            error.diagnostics().encode("ascii")
    return found


def fuzz_one(data: bytes) -> None:
    for body in asyncio.run(_bodies(data)):
        try:
            assert parse_answer(body) == body[1:]
        except AttestationError as error:
            error.diagnostics().encode("ascii")
