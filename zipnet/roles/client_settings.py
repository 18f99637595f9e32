"""What a client is told, and what it brings from its seal."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from zipnet.config import Config
from zipnet.protocol.guards import ClientGuard, Store
from zipnet.protocol.instance import Instance
from zipnet.protocol.keyring import KeyRing
from zipnet.protocol.pads import KeystreamXor
from zipnet.protocol.ratelimit import Budget
from zipnet.roles.admission import Ticketing
from zipnet.roles.committee_view import CommitteeView
from zipnet.roles.identity import Draw, Identity


def _unkept(_ring: KeyRing, _view: CommitteeView) -> None:
    """For a client that keeps no pairs."""


def _alone() -> None:
    """For a client of which there can be no second one."""


@dataclass(slots=True)
class ClientSettings:
    """What a client needs beside its network. `clock` gives Unix milliseconds.

    `guard` is what `store` has kept of an earlier boot of the same identity; `keyring` the pairs
    that were sealed, which it goes on with if their epoch still runs; `share` how many rate-limit
    tags it may use in an epoch, None for all; `budget` what it knows of those used before.
    `opened` hears of each epoch that has begun, with the committee as it was checked; `doubted` is
    called when the committee has this client out of its place, as after another copy of it has
    registered. `sealed` says that the client comes back as the same: then it does not take back its
    registration.
    """

    config: Config
    deployment_id: bytes
    identity: Identity
    ticketing: Callable[[Instance], Ticketing]
    store: Store
    xor: KeystreamXor
    draw: Draw
    clock: Callable[[], int]
    waived: frozenset[bytes] = frozenset()
    participation: float = 1.0
    connect_s: float = 30.0
    guard: ClientGuard | None = None
    keyring: KeyRing | None = field(default=None, repr=False)
    share: int | None = None
    budget: Budget | None = None
    opened: Callable[[KeyRing, CommitteeView], None] = _unkept
    doubted: Callable[[], None] = _alone
    sealed: bool = False
