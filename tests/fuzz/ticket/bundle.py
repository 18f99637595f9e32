"""Fuzz target: tickets and bundles, and the checks that come before the quote."""

from dataclasses import replace

from attestation.errors import AttestationError, TicketRejected
from attestation.ticket import Bundle, BundleValidator, Fresh, Role, Ticket
from tests.attestation.tickets import ISSUED, PEER, TICKET, bundle, quote


def seeds() -> list[bytes]:
    return [
        bundle().encode(),
        bundle(quote().canonical).encode(),
        bundle(b"quote", role=Role.CLIENT, fresh_kind=Fresh.CHALLENGE).encode(),
        bundle(fresh_kind=Fresh.NONE, fresh=bytes(32), not_after=(1 << 64) - 1).encode(),
    ]


def fuzz_one(data: bytes) -> None:
    try:
        shown = Bundle.decode(data)
    except AttestationError as error:
        error.diagnostics().encode()
        return
    assert shown.encode() == data
    assert Ticket.decode(shown.ticket.encode()) == shown.ticket
    assert len(shown.ticket.report_data()) == 64
    # As the peer that the ticket names: else nothing gets past its identity.
    context = replace(PEER, peer_id=shown.ticket.peer_id, last_seen=(TICKET.boot_epoch, ISSUED))
    try:
        verdict = BundleValidator().validate(shown, context)
    except TicketRejected as error:
        error.diagnostics().encode()
        return
    assert verdict.at > context.now
    assert shown.possessed()
