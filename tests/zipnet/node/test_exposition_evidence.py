"""Evidence beside metrics: which requests get a quote, and how many."""

from __future__ import annotations

import asyncio
import threading

import pytest

from attestation.errors import ProviderFailed
from tests.zipnet.test_cli_metrics import ask
from zipnet.node import exposition

GOOD = "ab" * 32
BUNDLE = b"\x00\xffbundle\r\n"


def request(target: str, method: str = "GET") -> bytes:
    return f"{method} {target} HTTP/1.1\r\n\r\n".encode()


def text() -> str:
    return "metrics\n"


def answers(*requests: bytes, bundle: exposition.Bundles = lambda _challenge: BUNDLE) -> list[str]:
    """Status and body of each, one after the other."""

    async def body() -> list[str]:
        async with exposition.serve("127.0.0.1", 0, text, bundle) as port:
            found = [await ask(port, one) for one in requests]
        return [one.decode("latin-1") for one in found]

    return [
        raw.removeprefix("HTTP/1.1 ").split(" ")[0] + " " + raw.partition("\r\n\r\n")[2]
        for raw in asyncio.run(body())
    ]


def test_a_challenge() -> None:
    seen: list[bytes] = []

    def bundle(challenge: bytes) -> bytes:
        seen.append(challenge)
        return BUNDLE

    found = answers(request(f"/evidence/{GOOD}"), request("/metrics"), bundle=bundle)
    assert found == ["200 " + BUNDLE.decode("latin-1"), "200 metrics\n"]
    assert seen == [bytes.fromhex(GOOD)]


@pytest.mark.parametrize(
    ("raw", "status"),
    [
        (request("/evidence/"), "400"),
        (request("/evidence/" + "AB" * 32), "400"),
        (request("/evidence/" + "ab" * 31), "400"),
        (request("/evidence/" + "ab" * 33), "400"),
        (request(f"/evidence/{GOOD}/"), "400"),
        (request(f"/evidence/{GOOD[:-2]}%20"), "400"),
        (request("/evidence"), "404"),
        (request(f"/Evidence/{GOOD}"), "404"),
        (request(f"/evidence/{GOOD}", "POST"), "405"),
        (request("/metrics", "HEAD"), "405"),
    ],
)
def test_no_challenge(raw: bytes, status: str) -> None:
    def never(_challenge: bytes) -> bytes:
        raise AssertionError

    assert answers(raw, bundle=never)[0].split(" ")[0] == status


def test_without_a_tee_there_is_none() -> None:
    async def body() -> bytes:
        async with exposition.serve("127.0.0.1", 0, text) as port:
            return await ask(port, request(f"/evidence/{GOOD}"))

    assert asyncio.run(body()).startswith(b"HTTP/1.1 404 ")


def test_one_in_a_second(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(exposition, "PAUSE_S", 60.0)
    good = request(f"/evidence/{GOOD}")
    found = answers(good, good)
    assert [one[:3] for one in found] == ["200", "503"]
    assert "ask again" in found[1]


def test_one_at_a_time() -> None:
    begun, go = threading.Event(), threading.Event()

    def slow(_challenge: bytes) -> bytes:
        begun.set()
        assert go.wait(10)
        return BUNDLE

    async def body() -> tuple[bytes, bytes, bytes]:
        good = request(f"/evidence/{GOOD}")
        async with exposition.serve("127.0.0.1", 0, text, slow) as port:
            first = asyncio.create_task(ask(port, good))
            await asyncio.to_thread(begun.wait, 10)
            second = await ask(port, good)
            # Metrics don't wait for it.
            scraped = await ask(port, request("/metrics"))
            go.set()
            return await first, second, scraped

    first, second, scraped = asyncio.run(body())
    assert first.startswith(b"HTTP/1.1 200 ")
    assert second.startswith(b"HTTP/1.1 503 ")
    assert b"Retry-After: 1\r\n" in second
    assert scraped.endswith(b"metrics\n")


def test_a_provider_that_fails() -> None:
    def failing(_challenge: bytes) -> bytes:
        raise ProviderFailed("broken", rule="mock-td.timeout")

    assert answers(request(f"/evidence/{GOOD}"), bundle=failing) == [
        "503 no quote can be had, by rule mock-td.timeout\n"
    ]
