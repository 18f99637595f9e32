"""Metrics: the responder that is scraped, and the dashboard that names them."""

from __future__ import annotations

import asyncio
import json
import re
from pathlib import Path

import pytest

from zipnet.errors import NoNetwork
from zipnet.node import exposition
from zipnet.roles.metrics import HELP, Metrics

DASHBOARD = Path(__file__).resolve().parents[2] / "docs/grafana/zipnet.json"


async def ask(port: int, request: bytes) -> bytes:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(request)
    try:
        return await reader.read()
    except ConnectionResetError:  # what was not read when the other side closed
        return b""
    finally:
        writer.close()


def answer(request: bytes) -> tuple[str, str]:
    """Status and body."""

    async def once() -> bytes:
        metrics = Metrics("acme.mainnet")
        async with exposition.serve("127.0.0.1", 0, metrics.text) as port:
            return await ask(port, request)

    raw = asyncio.run(once())
    head, _, body = raw.decode().partition("\r\n\r\n")
    fields = dict(line.lower().split(": ", 1) for line in head.split("\r\n")[1:])
    if fields:
        assert fields["content-length"] == str(len(body))
        assert fields["connection"] == "close"
    return head.split("\r\n")[0].removeprefix("HTTP/1.1 "), body


@pytest.mark.parametrize("target", ["/metrics", "/metrics?name=x"])
@pytest.mark.parametrize("version", ["HTTP/1.1", "HTTP/1.0"])
def test_scrape(target: str, version: str) -> None:
    request = f"GET {target} {version}\r\nHost: a\r\nAccept: */*\r\n\r\n"
    status, body = answer(request.encode())
    assert (status, body) == ("200 OK", Metrics("acme.mainnet").text())
    assert 'zipnet_rounds_finalized_total{instance="acme.mainnet"} 0\n' in body


@pytest.mark.parametrize(
    ("line", "status"),
    [
        (b"GET / HTTP/1.1", "404 Not Found"),
        (b"GET /metrics/../etc/passwd HTTP/1.1", "404 Not Found"),
        (b"POST /metrics HTTP/1.1", "405 Method Not Allowed"),
        (b"GET /metrics", "400 Bad Request"),
        (b"GET /metrics HTTP/2.0", "400 Bad Request"),
        (b"\x16\x03\x01\0\xff", "400 Bad Request"),
        (b"", "400 Bad Request"),
    ],
)
def test_anything_else(line: bytes, status: str) -> None:
    assert answer(line + b"\r\n\r\n")[0] == status


def test_too_much_and_too_little(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(exposition, "SECONDS", 0.1)
    assert answer(b"GET /metrics HTTP/1.1\r\nX: " + b"a" * 2 * exposition.MAX_REQUEST) == ("", "")
    assert answer(b"GET /metrics HTTP/1.1\r\n") == ("", "")


def test_only_so_many_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(exposition, "MAX_CONNECTIONS", 1)

    async def crowd() -> tuple[bytes, bytes]:
        async with exposition.serve("127.0.0.1", 0, lambda: "text\n") as port:
            silent, writer = await asyncio.open_connection("127.0.0.1", port)
            refused = await ask(port, b"GET /metrics HTTP/1.1\r\n\r\n")
            writer.write(b"GET /metrics HTTP/1.1\r\n\r\n")
            served = await silent.read()
            writer.close()
            return refused, served

    refused, served = asyncio.run(crowd())
    assert refused == b""
    assert served.endswith(b"text\n")


def test_an_address_in_use() -> None:
    async def twice() -> None:
        async with exposition.serve("127.0.0.1", 0, str) as port:
            with pytest.raises(NoNetwork) as caught:
                async with exposition.serve("127.0.0.1", port, str):
                    pass
            assert (caught.value.rule, caught.value.exit_code) == ("metrics.listen", 3)

    asyncio.run(twice())


def test_dashboard() -> None:
    """It asks for the metrics that there are, and for each of them."""
    dashboard = json.loads(DASHBOARD.read_text("utf-8"))
    asked = [target["expr"] for panel in dashboard["panels"] for target in panel["targets"]]
    asked += [str(one["query"]) for one in dashboard["templating"]["list"]]
    named = {name for text in asked for name in re.findall(r"\b(?:zipnet|mosaik)_\w+", text)}
    assert named == set(HELP)
    assert len({panel["id"] for panel in dashboard["panels"]}) == len(dashboard["panels"])
    assert all(panel["description"] for panel in dashboard["panels"])
