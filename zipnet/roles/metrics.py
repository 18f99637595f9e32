"""Counters and gauges of a node, in the text format of Prometheus.

The names are those that operators of zipnet have; each value carries the label `instance`.
"""

from __future__ import annotations

from zipnet.committee import bodies
from zipnet.committee.commands import kind_name
from zipnet.committee.state import State
from zipnet.committee.views import turn

HELP = {
    "zipnet_rounds_finalized_total": "Rounds with a final record since this node started.",
    "zipnet_partials_submitted_total": "Partials that this server revealed.",
    "zipnet_client_registry_size": "Clients in the log.",
    "zipnet_server_registry_size": "Servers in the log.",
    "mosaik_groups_leader_is_local": "1 if it is this server's turn to propose.",
    "mosaik_groups_bonds": "Other servers that take part.",
    "mosaik_groups_committed_index": "Entries of the log that were applied here.",
}


class Metrics:
    """The values of one node."""

    def __init__(self, instance: str) -> None:
        self._instance = instance
        self._values = dict.fromkeys(HELP, 0)

    def applied(self, state: State, server_id: bytes) -> None:
        """Note the state after an entry."""
        self._values["zipnet_client_registry_size"] = len(state.clients)
        self._values["zipnet_server_registry_size"] = len(state.servers)
        self._values["mosaik_groups_leader_is_local"] = int(turn(state) == server_id)
        others = sum(server.id != server_id for server in state.active())
        self._values["mosaik_groups_bonds"] = others
        self._values["mosaik_groups_committed_index"] = state.seq

    def finalized(self) -> None:
        """Note a final round."""
        self._values["zipnet_rounds_finalized_total"] += 1

    def own(self, raw: bytes) -> None:
        """Note a command of this node that was applied."""
        if kind_name(raw) == bodies.RevealPartial.__name__:
            self._values["zipnet_partials_submitted_total"] += 1

    def text(self) -> str:
        """The exposition, as scraped."""
        lines = []
        for name, value in self._values.items():
            kind = "counter" if name.endswith("_total") else "gauge"
            lines += [
                f"# HELP {name} {HELP[name]}",
                f"# TYPE {name} {kind}",
                f'{name}{{instance="{self._instance}"}} {value}',
            ]
        return "\n".join(lines) + "\n"
