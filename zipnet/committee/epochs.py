"""When an epoch begins, and who is in it.

Keys of the next epoch lie in the log before it begins, so that everybody can derive all pair
secrets at its first header and erase what they came from.
"""

from __future__ import annotations

from zipnet.committee.clients import eligible
from zipnet.committee.state import WAIT_ROUNDS, Server, State, refused


def epoch_of_next_header(state: State) -> bool:
    """Whether the next header opens an epoch. Raises CommandRefused if it must and can't.

    A server without a key for it is left behind when nothing else is possible: if it may be, by
    `min_servers`. Otherwise it would keep the secrets of this epoch alive for as long as it likes.
    """
    active, needed = state.active(), state.operators.servers_needed(state.rules.config)
    unkeyed = [server.id.hex()[:16] for server in active if server.next_key is None]
    members = sum(server.member is not None for server in active)
    age = state.next_round - state.epoch.base_round
    if members < needed or age >= 2 * state.rules.window.epoch_rounds:
        if len(active) >= needed > len(active) - len(unkeyed):
            raise refused(
                "propose.epoch",
                "the next epoch is due and servers have no key for it",
                got=", ".join(unkeyed),
                hint="the servers named here must post their keys",
            )
        return True
    if unkeyed:
        return False
    due = age >= state.rules.window.epoch_rounds or members < len(active)
    return due or _clients_wait(state)


def entrants(state: State) -> list[Server]:
    """The active servers that have a key for the next epoch, by id."""
    return [server for server in state.active() if server.next_key is not None]


def _clients_wait(state: State) -> bool:
    """Whether clients have waited long enough, or rounds can't go on without them."""
    waiting = [client for client in state.clients.values() if client.waiting_since]
    if not waiting:
        return False
    active = state.active()
    inside = {client.id for client in eligible(state, entrants(state), next_epoch=True)}
    patient = any(
        client.id in inside and state.next_round - client.waiting_since >= WAIT_ROUNDS
        for client in waiting
    )
    present = len(eligible(state, active, next_epoch=False))
    return patient or present < state.rules.window.min_participants <= len(inside)


def begin(state: State) -> None:
    """Open the next epoch at the next header.

    In it is every server that has a key, suspended ones too, since they may return within it; and
    every client that all active servers with a key vouch for now.
    """
    inside = {client.id for client in eligible(state, entrants(state), next_epoch=True)}
    for server in state.servers.values():
        server.member, server.next_key = server.next_key, None
    for client in state.clients.values():
        client.member = client.next_key if client.id in inside else None
        client.next_key = None
        client.waiting_since = 0
    state.epoch.number += 1
    state.epoch.base_round = state.next_round
    # What came since the last header is mixed into the new pair secrets as well.
    state.epoch.resumes[:] = [
        resume for resume in state.epoch.resumes if resume.round == state.next_round
    ]
