"""Where an instance's things are on the network: names that derive from the deployment's id.

The committee's log has a name of its own in each generation; all else belongs to the deployment.
Names are 32 hex digits, short enough for every engine.
"""

from __future__ import annotations

from dataclasses import dataclass

from zipnet.ids import InstanceIds, UniqueId
from zipnet.network import index
from zipnet.protocol.instance import Instance


@dataclass(frozen=True, slots=True)
class Places:
    """Names of logs, tables, channels and blob stores of a deployment."""

    live: str  # table: the live round, and servers' notices
    servers: str  # table: servers' cards
    broadcasts: str  # log: final records; table of the same name: where archived ones are
    submit: str  # channel: envelopes and aggregates
    register: str  # channel: what clients ask of servers
    receipts: str  # table: a round's receipts
    blobs: str  # blobs: sheets, snapshots, archives
    committee: UniqueId

    @classmethod
    def of(cls, deployment_id: bytes) -> Places:
        """The names of this deployment."""
        deployment = UniqueId(deployment_id)
        ids = InstanceIds.of(deployment)
        return cls(
            live=_name(ids.live_round),
            servers=_name(ids.server_registry),
            broadcasts=_name(ids.broadcasts),
            submit=_name(ids.submit),
            register=_name(ids.register),
            receipts=_name(ids.receipts),
            blobs=_name(deployment.derive("blobs")),
            committee=ids.committee,
        )

    @property
    def public(self) -> frozenset[str]:
        """What everybody may read: tables, logs and blob stores; the committee's are not in it."""
        return frozenset(
            (self.live, self.servers, self.broadcasts, self.receipts, self.blobs, index.TABLE)
        )

    def log(self, instance: Instance) -> str:
        """The committee's log in this generation, and the table with its newest checkpoint."""
        return _name(self.committee.derive(instance.generation))


def _name(unique: UniqueId) -> str:
    return unique.hex()[:32]
