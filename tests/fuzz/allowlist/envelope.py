"""Fuzz target: envelopes of allow-lists, with all signatures checked."""

from attestation.allowlist import AllowList, assemble, sign
from attestation.errors import AllowListRejected
from tests.attestation.tickets import ALLOW_LIST, DEPLOYMENT, KEY, PEER_ID


def seeds() -> list[bytes]:
    payload = ALLOW_LIST.dumps()
    return [assemble(payload, [sign(payload, KEY)])]


def fuzz_one(data: bytes) -> None:
    try:
        found = AllowList.verify(data, [PEER_ID], 1, None, deployment_id=DEPLOYMENT)
    except AllowListRejected as error:
        error.diagnostics().encode()
        return
    # One key signed one list: nothing else can come out.
    assert found == ALLOW_LIST
