"""What each kind of connection may do on the bus, as NATS permissions.

Members (servers) may do everything in their account. Everybody else is in another account, which
shares only the subjects named here, and has no JetStream of its own: what is public is read with
direct gets, and asked of servers on `register`.
"""

from __future__ import annotations

from dataclasses import dataclass

from zipnet.ids import UniqueId
from zipnet.network import index
from zipnet.network.places import Places
from zipnet.network.public import server_topics, submit_pattern, submit_topics

MEMBERS, EDGE = "COMMITTEE", "EDGE"
GUEST = "guest"


@dataclass(frozen=True, slots=True)
class Rights:
    """Subjects that a connection may publish to, and subscribe to; `*` and `>` as in NATS.

    `answers` is how many replies it may send to each request that it receives.
    """

    publish: tuple[str, ...]
    subscribe: tuple[str, ...]
    answers: int = 0


@dataclass(frozen=True, slots=True)
class BusNames:
    """The subjects of one deployment. All begin with `token`, but for those of JetStream itself."""

    token: str
    places: Places

    @classmethod
    def of(cls, deployment: UniqueId) -> BusNames:
        """Those of the deployment with this id."""
        return cls(deployment.hex()[:16], Places.of(deployment.raw))

    @property
    def published(self) -> str:
        """What streams republish to whoever reads live."""
        return f"{self.token}.pub.>"

    @property
    def streams(self) -> tuple[str, ...]:
        """The streams that anybody may read: a log, tables, and the blobs that those name."""
        places = self.places
        tables = (places.live, places.servers, places.receipts, places.broadcasts, index.TABLE)
        return (
            f"{self.token}_L_{places.broadcasts}",
            *(f"KV_{self.token}_T_{table}" for table in tables),
            f"{self.token}_B_{places.blobs}",
        )

    @property
    def reads(self) -> tuple[str, ...]:
        """Requests for messages of public streams: by number, and the last of a subject."""
        get = "$JS.API.DIRECT.GET"
        return tuple(f"{get}.{name}{end}" for name in self.streams for end in ("", ".>"))

    @property
    def register(self) -> str:
        """Where servers answer."""
        return f"{self.token}.ch.{self.places.register}.{server_topics()}"

    @property
    def receipts(self) -> str:
        """Where leaves leave receipts."""
        return f"$KV.{self.token}_T_{self.places.receipts}.>"

    def submits(self, peer: bytes) -> str:
        """Where only the node with this peer key submits, to whichever aggregator."""
        return f"{self.token}.ch.{self.places.submit}.{submit_topics(peer)}"

    def guest(self) -> Rights:
        """Reads and asks. All guests share an inbox prefix: an answer is nobody's secret."""
        return Rights((self.register, *self.reads), (self.published, f"_INBOX.{GUEST}.>"))

    def client(self, peer: bytes) -> Rights:
        """A guest's, with an inbox of its own, and its own submissions."""
        publish = (self.submits(peer), self.register, *self.reads)
        return Rights(publish, (self.published, inbox(peer)))

    def aggregator(self, peer: bytes) -> Rights:
        """A client's, as it submits to its parent; takes submissions, and leaves receipts."""
        client = self.client(peer)
        takes = f"{self.token}.ch.{self.places.submit}.{submit_pattern(peer)}"
        return Rights((*client.publish, self.receipts), (*client.subscribe, takes), answers=1)


def inbox(peer: bytes) -> str:
    """The subjects of answers to the node with this peer key."""
    return f"_INBOX.{peer.hex()[:16]}.>"
