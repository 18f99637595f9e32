"""Fuzz target: the guards' records."""

from tests.zipnet.protocol.support import INSTANCE, h
from zipnet.errors import WireFormatError
from zipnet.protocol.guards import Answer, ClientGuard, ServerGuard


def seeds() -> list[bytes]:
    binding = INSTANCE.binding
    answer = Answer(6, h("header"), h("aggregate"), h("participants"), h("commitment"))
    return [
        ClientGuard(binding).encode(),
        ClientGuard(binding, 7, h("header"), h("envelope")).encode(),
        ServerGuard(binding).encode(),
        ServerGuard(binding, 7, h("header"), answer).encode(),
    ]


def fuzz_one(data: bytes) -> None:
    for kind in (ClientGuard, ServerGuard):
        try:
            guard = kind.decode(data)
        except WireFormatError as error:
            error.diagnostics().encode()
        else:
            assert guard.encode() == data
