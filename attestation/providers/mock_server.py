"""A caching service (PCCS) in software: the collateral of a mock platform over HTTP.

Paths, headers and encodings are those of Intel's PCS API version 4 as a PCCS serves them. They are
written out again here: a slip that client and server share would not be seen.
"""

import time
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from socket import socket
from threading import BoundedSemaphore, Thread
from types import TracebackType
from typing import Any, Self
from urllib.parse import parse_qs, quote, urlsplit

from attestation.collateral_format import Collateral

MAX_CONNECTIONS = 32
MAX_REMEMBERED = 10_000
IDLE_SECONDS = 10.0

_ISSUERS = {"platform": "Intel SGX PCK Platform CA", "processor": "Intel SGX PCK Processor CA"}


class Item(StrEnum):
    """What is served, by its path."""

    PCK_CRL = "/sgx/certification/v4/pckcrl"
    TCB_INFO = "/tdx/certification/v4/tcb"
    QE_IDENTITY = "/tdx/certification/v4/qe/identity"
    ROOT_CRL = "/sgx/certification/v4/rootcacrl"


@dataclass(frozen=True, slots=True)
class Answer:
    """A response of HTTP."""

    status: int
    body: bytes = b""
    headers: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Fault:
    """What is wrong with an answer: what is None stays right, `headers` of None are left out."""

    status: int | None = None
    delay: float = 0.0
    body: bytes | None = None
    headers: Mapping[str, str | None] = field(default_factory=dict)

    def spoil(self, answer: Answer) -> Answer:
        """The answer with this fault."""
        headers = {**answer.headers, **self.headers}
        return Answer(
            answer.status if self.status is None else self.status,
            answer.body if self.body is None else self.body,
            {name: value for name, value in headers.items() if value is not None},
        )


class MockPccs:
    """Serves `collateral`, each item with its fault in `faults`; a context manager, or `serve`.

    It listens at (host, port), port 0 being any free one. `requests` are the latest, path and
    query; attributes may be changed while it runs. Raises OSError if it can't listen.
    """

    def __init__(self, collateral: Collateral, listen: tuple[str, int] = ("127.0.0.1", 0)) -> None:
        self.collateral = collateral
        self.faults: dict[Item, Fault] = {}
        self.requests: deque[str] = deque(maxlen=MAX_REMEMBERED)
        self._server = _Server(listen, self)
        self._thread: Thread | None = None

    @property
    def url(self) -> str:
        """Where it listens, as the base of requests."""
        host, port = self._server.server_address[:2]
        return f"http://{host!s}:{port}"

    def answer(self, target: str) -> Answer:
        """The answer to GET of a path with its query, fault and all, except for its delay."""
        self.requests.append(target)
        parts = urlsplit(target)
        if parts.path not in set(Item):
            return Answer(404)
        item = Item(parts.path)
        query = {name: values[-1] for name, values in parse_qs(parts.query).items()}
        answer = _right(self.collateral, item, query)
        return self.faults[item].spoil(answer) if item in self.faults else answer

    def delay(self, target: str) -> float:
        """How long to wait before that answer, in seconds."""
        path = urlsplit(target).path
        return self.faults[Item(path)].delay if path in set(self.faults) else 0.0

    def serve(self) -> None:
        """Serve in this thread until KeyboardInterrupt."""
        try:
            self._server.serve_forever()
        finally:
            self.close()

    def close(self) -> None:
        """Stop listening."""
        self._server.server_close()

    def __enter__(self) -> Self:
        self._thread = Thread(target=self._server.serve_forever, args=(0.05,))
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._server.shutdown()
        self.close()
        if self._thread is not None:
            self._thread.join()


def _right(collateral: Collateral, item: Item, query: Mapping[str, str]) -> Answer:
    parsed = collateral.parsed
    match item:
        case Item.PCK_CRL:
            if _ISSUERS.get(query.get("ca", "")) != parsed.pck_crl_issuer[0].common_name:
                return Answer(404)
            der = query.get("encoding") == "der"
            return Answer(
                200,
                collateral.pck_crl if der else collateral.pck_crl.hex().encode(),
                {"SGX-PCK-CRL-Issuer-Chain": quote(collateral.pck_crl_issuer_chain)},
            )
        case Item.TCB_INFO:
            if query.get("fmspc", "").lower() != parsed.fmspc.hex():
                return Answer(404)
            return Answer(
                200,
                signed("tcbInfo", collateral.tcb_info, collateral.tcb_info_signature),
                {"TCB-Info-Issuer-Chain": quote(collateral.tcb_info_issuer_chain)},
            )
        case Item.QE_IDENTITY:
            return Answer(
                200,
                signed("enclaveIdentity", collateral.qe_identity, collateral.qe_identity_signature),
                {"SGX-Enclave-Identity-Issuer-Chain": quote(collateral.qe_identity_issuer_chain)},
            )
        case Item.ROOT_CRL:
            return Answer(200, collateral.root_ca_crl.hex().encode())


def signed(member: str, text: str, signature: bytes) -> bytes:
    """A signed document as it is served: its text untouched."""
    return f'{{"{member}":{text},"signature":"{signature.hex()}"}}'.encode()


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = MAX_CONNECTIONS

    def __init__(self, listen: tuple[str, int], pccs: MockPccs) -> None:
        self.pccs = pccs
        self._free = BoundedSemaphore(MAX_CONNECTIONS)
        super().__init__(listen, _Handler)

    def process_request(self, request: Any, client_address: Any) -> None:
        if self._free.acquire(blocking=False):
            super().process_request(request, client_address)
        else:
            self.shutdown_request(request)

    def process_request_thread(self, request: socket | Any, client_address: Any) -> None:
        try:
            super().process_request_thread(request, client_address)
        finally:
            self._free.release()

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Clients may go before they have their answer."""


class _Handler(BaseHTTPRequestHandler):
    server: _Server
    timeout = IDLE_SECONDS

    def do_GET(self) -> None:
        delay = self.server.pccs.delay(self.path)
        if delay:
            time.sleep(delay)
        answer = self.server.pccs.answer(self.path)
        self.send_response(answer.status)
        for name, value in {"Content-Length": str(len(answer.body)), **answer.headers}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(answer.body)

    def log_message(self, *args: Any) -> None:
        """Requests are remembered by the server."""
