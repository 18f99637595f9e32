"""Whether a client's ticket is good now: asked at the bus's door, and by whoever was refused there.

The verdict is the one on which a server vouches, or refuses, in the log.
"""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime

from attestation.allowlist import AllowList
from attestation.bundle import Bundle, Role
from attestation.ticket import Beacons, Expiry
from zipnet.committee.policy import accepted_list
from zipnet.committee.state import State
from zipnet.committee.views import beacons
from zipnet.errors import Refused
from zipnet.roles.admission import Admission


class Gate:
    """Judges clients' bundles under the list in force, by the clock of this server."""

    def __init__(
        self, admission: Admission, state: Callable[[], State], now: Callable[[], datetime]
    ) -> None:
        self._admission = admission
        self._state = state
        self._now = now
        self._parsed: tuple[bytes, AllowList] | None = None

    @property
    def list_digest(self) -> bytes:
        """Of the list in force; empty before the first one."""
        entry = self._state().allow_list
        return entry.digest if entry else b""

    def check(self, bundle: Bundle, *, again: bool = False) -> Expiry:
        """Until when the bundle is good; its holder's claim to its key is not looked at.

        `again` says that it was good before: then its beacon may be one of then. Raises
        AttestationError, and Refused while there is no list.
        """
        fresh = frozenset({bundle.ticket.fresh}) if again else beacons(self._state())
        return self._admission.validate(
            bundle, Role.CLIENT, self.accepted(), Beacons(fresh), self._now()
        )

    def accepted(self) -> AllowList:
        """The list in force. Raises Refused while there is none."""
        entry = self._state().allow_list
        if entry is None:
            raise Refused(
                "no list of measurements is in force",
                expected="one that the operators signed",
                rule="list.none",
                hint="`zipnet admin allow-list push` hands it to the committee",
            )
        if self._parsed is None or self._parsed[0] != entry.digest:
            self._parsed = entry.digest, accepted_list(entry)
        return self._parsed[1]
