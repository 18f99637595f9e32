"""The mock service over real sockets: a foreign client, and faults that need a connection."""

import asyncio
import socket
from dataclasses import fields

import dcap_qvl  # type: ignore[import-untyped]
import pytest

from attestation.collateral_format import Collateral
from attestation.collateral_source import Pcs
from attestation.errors import CollateralRejected, CollateralUnavailable
from attestation.providers.mock_server import MAX_CONNECTIONS, Answer, Fault, Item, MockPccs
from tests.attestation.collateral.support import OTHER, PLATFORM, QUOTE, START, VERIFIER, issued
from tests.attestation.measure.support import refused


def test_dcap_qvl_s_own_client() -> None:
    with MockPccs(issued()) as server:

        async def foreign() -> object:
            return await dcap_qvl.get_collateral(server.url, QUOTE)

        got = asyncio.run(foreign())
    names = [field.name for field in fields(Collateral) if field.init]
    collateral = Collateral(**{name: getattr(got, name) for name in names})
    VERIFIER.check_collateral(collateral, START)
    assert VERIFIER.verify(QUOTE, collateral, START).claims.fmspc == PLATFORM.fmspc
    assert [target.partition("?")[0] for target in server.requests] == list(Item)


def test_our_client_and_faults_of_connections() -> None:
    with MockPccs(issued()) as server:
        source = Pcs(server.url, patience=5)
        assert asyncio.run(source.fetch(PLATFORM)) == issued()
        for fault, rule in (
            (Fault(headers={"Content-Length": "99999"}), "source.protocol"),
            (Fault(headers={"Transfer-Encoding": "chunked", "Content-Length": None}), None),
            (Fault(delay=0.3), "source.timeout"),
        ):
            server.faults = {Item.QE_IDENTITY: fault}
            slow = Pcs(server.url, patience=0.1 if fault.delay else 5)
            with refused(CollateralUnavailable, rule or "source.protocol"):
                asyncio.run(slow.fetch(PLATFORM))
    with refused(CollateralUnavailable, "source.unreachable"):
        asyncio.run(source.fetch(PLATFORM))


def test_other_platforms_are_not_known() -> None:
    with MockPccs(OTHER.collateral()) as server:
        source = Pcs(server.url)
        server.collateral = issued(tcb_info={"fmspc": "00806F050000"})
        with refused(CollateralRejected, "source.unknown-fmspc"):
            asyncio.run(source.fetch(PLATFORM))


@pytest.mark.parametrize(
    ("target", "status"),
    [
        (f"{Item.PCK_CRL}?ca=platform&encoding=der", 200),
        (f"{Item.PCK_CRL}?ca=platform", 200),
        (f"{Item.PCK_CRL}?ca=processor&encoding=der", 404),
        (Item.PCK_CRL, 404),
        (f"{Item.TCB_INFO}?fmspc=50806F000000", 200),
        (Item.TCB_INFO, 404),
        ("/", 404),
        ("/sgx/certification/v4/rootcacrl/..", 404),
    ],
)
def test_what_is_served(target: str, status: int) -> None:
    with MockPccs(issued()) as server:
        answer = server.answer(target)
        assert answer.status == status
        if target == f"{Item.PCK_CRL}?ca=platform":
            assert bytes.fromhex(answer.body.decode()) == issued().pck_crl


def test_connections_are_bounded() -> None:
    with MockPccs(issued()) as server:
        host, port = server.url.removeprefix("http://").split(":")
        idle = [socket.create_connection((host, int(port))) for _ in range(MAX_CONNECTIONS + 1)]
        try:
            idle[-1].settimeout(5)
            assert idle[-1].recv(1) == b""  # one too many: closed at once
        finally:
            for connection in idle:
                connection.close()


def test_faults_leave_the_rest_as_it_is() -> None:
    right = Answer(200, b"body", {"a": "b"})
    assert Fault().spoil(right) == right
    spoiled = Fault(status=500, body=b"", headers={"a": None, "c": "d"}).spoil(right)
    assert spoiled == Answer(500, b"", {"c": "d"})
