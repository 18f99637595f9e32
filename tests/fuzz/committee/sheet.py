"""Fuzz target: the sheets that come with live headers."""

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from tests.zipnet.protocol.support import INSTANCE, h, header
from zipnet.errors import ZipnetError
from zipnet.operators import Endorsement
from zipnet.protocol.roster import EpochKey, Resume
from zipnet.protocol.sheet import ClientEntry, ServerEntry, Sheet

KEY = Ed25519PrivateKey.from_private_bytes(h("operator"))


def seeds() -> list[bytes]:
    key = EpochKey(h("id"), 3, 2, h("key"), bytes(64))
    server = ServerEntry(Endorsement.make(INSTANCE, KEY, h("peer"), h("dh"), 3), key)
    client = ClientEntry(h("client"), h("dh"), key)
    resume = Resume(7, h("node"), h("nonce"))
    return [
        Sheet((), (), ()).encode(),
        Sheet((server,), (client,), (resume,)).encode(),
        Sheet((server,) * 2, (client,) * 3, (resume,) * 2).encode(),
    ]


def fuzz_one(data: bytes) -> None:
    try:
        sheet = Sheet.decode(data)
    except ZipnetError as error:
        error.diagnostics().encode()
        return
    assert sheet.encode() == data
    try:
        sheet.roster(header())
        sheet.committee(header(), (h("operator"),), frozenset())
        sheet.verify_clients(header())
    except ZipnetError as error:
        error.diagnostics().encode()
