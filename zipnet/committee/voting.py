"""What several parts of the machine ask of the members."""

from __future__ import annotations

from zipnet.committee.state import Client, State


def majority(state: State) -> int:
    """How many active servers are more than half of them."""
    return len(state.active()) // 2 + 1


def count_out(state: State, server: bytes) -> None:
    """Forget the votes of a server that takes no part any more."""
    state.tree_votes.pop(server, None)
    if state.current is not None:
        state.current.votes.discard(server)


def vouched(state: State, client: Client, servers: list[bytes]) -> bool:
    """Whether each of these servers vouches for the client at machine time."""
    now = state.time_ms // 1000
    # A plain loop: at each header it is run for all clients.
    for server in servers:
        voucher = client.vouchers.get(server)
        if voucher is None or voucher.not_after <= now:
            return False
    return True


def wait_for_epoch(state: State, client: Client) -> None:
    """Note since when a client could take part, if it now could in the next epoch only."""
    ready = (
        client.member is None
        and client.next_key is not None
        and vouched(state, client, [server.id for server in state.active()])
    )
    if not ready:
        client.waiting_since = 0
    elif not client.waiting_since:
        client.waiting_since = state.next_round


def reset_quota(state: State) -> None:
    """Begin to count the authors' bytes anew."""
    state.quota_since = state.time_ms
    for server in state.servers.values():
        server.bytes_used = 0
