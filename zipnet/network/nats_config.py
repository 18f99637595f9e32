"""The configuration of nats-server for one operator's node, with the reasons beside the settings.

Syntax and names: docs.nats.io, "Configuring NATS Server". Tested with nats-server 2.15.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass

from zipnet.config import Config, deployment_id
from zipnet.errors import ConfigRejected
from zipnet.network.nkeys import Kind, parse_public, public_text
from zipnet.network.rights import EDGE, MEMBERS, BusNames, Rights

# Twice what the payload of a round may have.
MAX_PAYLOAD = 8 << 20
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9.-]{0,63}")
_ADDRESS = re.compile(r"(\[[0-9a-fA-F:.]+\]|[A-Za-z0-9.-]+):([0-9]{1,5})")
_PIN = re.compile(r"[0-9a-f]{64}")
_PATH = re.compile(r"/[A-Za-z0-9._/@+-]{1,255}")


@dataclass(frozen=True, slots=True)
class Peer:
    """Another operator's node: its name, where it takes routes, and the pin of its certificate."""

    name: str
    address: str
    pin: str

    def __post_init__(self) -> None:
        _match(_NAME, self.name, "node.name")
        _address(self.address)
        _match(_PIN, self.pin, "node.pin")


@dataclass(frozen=True, slots=True)
class Tls:
    """Absolute paths of a certificate and its key, both PEM."""

    certificate: str
    key: str

    def __post_init__(self) -> None:
        _match(_PATH, self.certificate, "node.path")
        _match(_PATH, self.key, "node.path")


@dataclass(frozen=True, slots=True)
class Routes:
    """How nodes reach each other: where this one listens, what it shows, and who else there is.

    `certificates` is a file (PEM) with those of all nodes, each signed by itself.
    """

    listen: str
    tls: Tls
    certificates: str
    peers: tuple[Peer, ...]

    def __post_init__(self) -> None:
        _address(self.listen)
        _match(_PATH, self.certificates, "node.path")
        if not self.peers:
            raise ConfigRejected(
                "a node that others reach needs others",
                expected="one peer or more",
                rule="node.peers",
                hint="give --peer once for each, or none of the options of routes",
            )


@dataclass(frozen=True, slots=True)
class Node:
    """One operator's node. Addresses are `host:port`, keys of nodes 32 bytes, paths absolute.

    `issuer`, `responder` and `system` are nkeys of this operator's server; `routes` is None for a
    node that is alone. Raises ConfigRejected, WireFormatError for keys that are none.
    """

    name: str
    listen: str
    monitor: str
    routes: Routes | None
    servers: tuple[bytes, ...]
    aggregators: tuple[bytes, ...]
    issuer: str
    responder: str
    system: str
    store: str
    tls: Tls
    max_file_gb: int = 16

    def __post_init__(self) -> None:
        _match(_NAME, self.name, "node.name")
        _address(self.listen)
        _address(self.monitor)
        _match(_PATH, self.store, "node.path")
        parse_public(self.issuer, Kind.ACCOUNT)
        own = [public_text(Kind.USER, key) for key in (*self.servers, *self.aggregators)]
        for key in (self.responder, self.system):
            parse_public(key, Kind.USER)
        keys = [self.responder, self.system, *own]
        if len(set(keys)) != len(keys):
            raise ConfigRejected("a key is named twice", got=_twice(keys), rule="node.keys")
        peers = self.routes.peers if self.routes else ()
        names = [self.name, *(peer.name for peer in peers)]
        if len(set(names)) != len(names):
            raise ConfigRejected("two nodes have one name", got=_twice(names), rule="node.names")
        if not self.servers:
            raise ConfigRejected(
                "no server may use this node",
                expected="the peer keys of all servers",
                rule="node.servers",
                hint="give --server once for each; `zipnet admin server add` endorsed them",
            )


def render(config: Config, node: Node) -> str:
    """The text of the configuration file."""
    names = BusNames.of(deployment_id(config))
    parts = (
        _head(config, node),
        _cluster(names, node.routes),
        _members(names, node),
        _edge(names, node),
        _door(node),
    )
    return "\n".join(parts)


def _head(config: Config, node: Node) -> str:
    # Each client has two connections while it reads and submits, and may come to one node only.
    connections = 1024 + 4 * config.window.max_clients
    return f"""\
# nats-server configuration of node {node.name} for the deployment {config.name}
# ({deployment_id(config).hex()})
# Written by `zipnet nats-config`. Check with `nats-server -t -c FILE`; needs version 2.11 or later.

server_name: "{node.name}"
listen: "{node.listen}"
# Health and routes, for this machine only: nothing here asks who is reading.
http: "{node.monitor}"

# Aggregators' sums and the largest commands are one message each.
max_payload: {MAX_PAYLOAD}
# A burst of envelopes waits here for its aggregator. One that is cut off as too slow loses them.
max_pending: 1GB
write_deadline: "10s"
# A ticket with its quote, over 5 kB, comes in CONNECT; the default of 4 kB refuses it.
max_control_line: 64KB
# Guests show nothing: let nobody take what a node has for all.
max_connections: {connections}
max_subscriptions: 1024

tls {{
  cert_file: "{node.tls.certificate}"
  key_file: "{node.tls.key}"
  min_version: "1.3"
  timeout: 5
}}

jetstream {{
  store_dir: "{node.store}"
  max_mem: 512MB
  max_file: {node.max_file_gb}GB
  # The default flushes every two minutes: what was acknowledged could be lost on a majority.
  sync_interval: always
}}
"""


def _cluster(names: BusNames, routes: Routes | None) -> str:
    if routes is None:
        return "# A single node: nothing is replicated, and if it is lost, the log is.\n"
    others = ", ".join(f'"tls://{peer.address}"' for peer in routes.peers)
    pins = "\n".join(f'      "{peer.pin}"  # {peer.name}' for peer in routes.peers)
    return f"""\
cluster {{
  name: "{names.token}"
  listen: "{routes.listen}"
  # Exactly the nodes that there are: with more names, elections were seen to stall.
  routes: [ {others} ]
  no_advertise: true
  pool_size: 3
  tls {{
    cert_file: "{routes.tls.certificate}"
    key_file: "{routes.tls.key}"
    # The nodes' own certificates, each signed by itself. There is no authority to trust.
    ca_file: "{routes.certificates}"
    verify: true
    timeout: 5
    # SHA-256 of the public keys (SubjectPublicKeyInfo) of the other nodes, and of nobody else.
    pinned_certs: [
{pins}
    ]
  }}
}}
"""


def _members(names: BusNames, node: Node) -> str:
    users = "\n".join(f"      {{ nkey: {public_text(Kind.USER, key)} }}" for key in node.servers)
    reads = "\n".join(
        f'      {{ service: "{subject}", response_type: Stream, accounts: [{EDGE}] }}'
        for subject in names.reads
    )
    return f"""\
accounts {{
  # The servers. What they write is signed: the bus is trusted for liveness only.
  {MEMBERS}: {{
    jetstream: enabled
    users: [
{users}
    ]
    exports: [
      {{ stream: "{names.published}", accounts: [{EDGE}] }}
      # Stream, since a batch has many answers; without it all but the first are lost.
{reads}
      {{ service: "{names.register}", response_type: Singleton, accounts: [{EDGE}] }}
      {{ service: "{names.receipts}", response_type: Singleton, accounts: [{EDGE}] }}
    ]
  }}
"""


def _edge(names: BusNames, node: Node) -> str:
    users = "\n".join(_user(key, names.aggregator(key)) for key in node.aggregators)
    services = (*names.reads, names.register, names.receipts)
    imports = "\n".join(
        f'      {{ service: {{ account: {MEMBERS}, subject: "{subject}" }} }}'
        for subject in services
    )
    return f"""\
  # Aggregators, which are not trusted, and whom the server of this node lets in: clients and
  # guests. No JetStream here: they have what is imported, as far as their permissions go.
  {EDGE}: {{
    users: [
{users}
    ]
    imports: [
      {{ stream: {{ account: {MEMBERS}, subject: "{names.published}" }} }}
{imports}
    ]
  }}
"""


def _door(node: Node) -> str:
    members = [public_text(Kind.USER, key) for key in (*node.servers, *node.aggregators)]
    static = "\n".join(f"      {key}" for key in (node.responder, node.system, *members))
    return f"""\
  # Where this node's server is asked about each connection. An account of this node alone, so
  # that other operators don't hear what is shown here.
  AUTH_{_identifier(node.name)}: {{ users: [ {{ nkey: {node.responder} }} ] }}

  # The server of this node may end connections, and nothing else: not remove a node's storage.
  SYS: {{
    users: [ {{
      nkey: {node.system}
      permissions: {{ publish: ["$SYS.REQ.SERVER.*.KICK"], subscribe: ["_INBOX.>"] }}
    }} ]
  }}
}}
system_account: SYS

authorization {{
  # Above 2 s a client may take the first PING for a welcome, and stay half open.
  timeout: 1.5
  auth_callout {{
    # A key of this node's own server: each operator admits by its own verdict.
    issuer: {node.issuer}
    account: AUTH_{_identifier(node.name)}
    # All keys that are named above; who is missing here is asked for a ticket.
    auth_users: [
{static}
    ]
  }}
}}
"""


def _user(key: bytes, rights: Rights) -> str:
    return f"""\
      {{
        nkey: {public_text(Kind.USER, key)}
        permissions: {{
          publish: [ {_quoted(rights.publish)} ]
          subscribe: [ {_quoted(rights.subscribe)} ]
          # Without it each answer to a submission is refused.
          allow_responses: {{ max: {rights.answers}, expires: "5s" }}
        }}
      }}"""


def _quoted(subjects: Iterable[str]) -> str:
    return ", ".join(f'"{subject}"' for subject in subjects)


def _identifier(name: str) -> str:
    return name.replace(".", "_")


def _twice(values: list[str]) -> str:
    return next(one for one in values if values.count(one) > 1)


def _address(value: str) -> None:
    match = _match(_ADDRESS, value, "node.address")
    if not 0 < int(match[2]) < 1 << 16:
        raise ConfigRejected(
            "this is no port", expected="1 to 65535", got=match[2], rule="node.port"
        )


_FORMS = {
    "node.name": "1 to 64 of A-Z a-z 0-9 . -",
    "node.address": "host:port, an IPv6 address in brackets",
    "node.pin": "64 lower-case hex digits, as `zipnet nats-config cert` prints them",
    "node.path": "an absolute path of A-Z a-z 0-9 . _ / @ + -",
}


def _match(form: re.Pattern[str], value: str, rule: str) -> re.Match[str]:
    match = form.fullmatch(value)
    if match is None:
        raise ConfigRejected(
            f"this is no {rule.partition('.')[2]} for a node's configuration",
            expected=_FORMS[rule],
            got=ascii(value)[:80],
            rule=rule,
        )
    return match
