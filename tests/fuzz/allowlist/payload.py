"""Fuzz target: the list in an envelope."""

from dataclasses import replace

from attestation.allowlist import AllowList, Entry, TcbPolicy
from attestation.errors import AllowListRejected
from attestation.verify import TcbStatus
from tests.attestation.tickets import ALLOW_LIST, ENTRY


def seeds() -> list[bytes]:
    two = (Entry(ENTRY, 0, None), Entry(replace(ENTRY, rtmr0=b"\1" * 48)))
    policy = TcbPolicy(grace=((TcbStatus("OutOfDate"), 2_000_000_000),), min_evaluation_number=17)
    return [ALLOW_LIST.dumps(), replace(ALLOW_LIST, entries=two, tcb=policy).dumps()]


def fuzz_one(data: bytes) -> None:
    try:
        found = AllowList.loads(data)
    except AllowListRejected as error:
        error.diagnostics().encode()
        return
    assert found.dumps() == data
    for status in TcbStatus:
        assert found.tcb.end(status, 0) is None or status != "Revoked"
