"""Fuzz target: documents of operators and recoveries, as payloads and in envelopes."""

from tests.zipnet.test_operators import DOCUMENT, FIRST, ID, RECOVERY, SIGNERS, signed
from zipnet.errors import DocumentRejected
from zipnet.operators import OperatorDocument, RecoveryDocument

GOOD = OperatorDocument.verify(signed(DOCUMENT, SIGNERS[:3]), FIRST, ID)


def seeds() -> list[bytes]:
    documents = (DOCUMENT, RECOVERY)
    return [
        *(document.dumps() for document in documents),
        *(signed(document, SIGNERS[:3]) for document in documents),
    ]


def fuzz_one(data: bytes) -> None:
    for kind in (OperatorDocument, RecoveryDocument):
        try:
            assert kind.loads(data).dumps() == data
        except DocumentRejected as error:
            error.diagnostics().encode()
    # These keys signed one document of each kind: nothing else can come out.
    try:
        assert OperatorDocument.verify(data, FIRST, ID) == GOOD
    except DocumentRejected as error:
        error.diagnostics().encode()
    try:
        assert RecoveryDocument.verify(data, FIRST) == RECOVERY
    except DocumentRejected as error:
        error.diagnostics().encode()
