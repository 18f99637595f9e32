"""What `zipnet provision` puts into a grant, from its options: checked before a guest is asked."""

from __future__ import annotations

import os
import secrets
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import click
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from attestation.bundle import Ticket
from attestation.files import read_file, unwritable
from zipnet.commands.admin import MAX_KEY, private_key
from zipnet.commands.roles import CADENCE_MS, recovery_from
from zipnet.commands.settings import Deployment, Secrets
from zipnet.config import Clients
from zipnet.errors import ConfigRejected
from zipnet.network.tls import MAX_PEM
from zipnet.node.grant import ForAggregator, ForClient, ForServer, Grant, Own, Trust
from zipnet.node.service_identity import instance_of
from zipnet.node.service_network import Place, bus_tls
from zipnet.node.service_roles import message
from zipnet.operators import Endorsement
from zipnet.preflight import Role

# What is given for one role, and means nothing for the others.
OF_ROLE = {
    Role.SERVER: {"trees", "door", "recovery", "committee_secret_file"},
    Role.AGGREGATOR: {"secret_file"},
    Role.CLIENT: {"sealing", "instance_key", "message", "cadence"},
}

# The grant for a guest whose ticket was accepted.
GrantFor = Callable[[Ticket], Grant]


def check_role(role: Role, context: click.Context) -> None:
    """Refuse flags of other roles; variables may be set for several. Raises click.UsageError."""
    for other, names in OF_ROLE.items():
        for name in sorted(names):
            source = context.get_parameter_source(name)
            if other is not role and source is click.core.ParameterSource.COMMANDLINE:
                flag = name.replace("_", "-")
                raise click.UsageError(f"--{flag} is for a {other}, and this is the {role}")


def grant_for(
    role: Role,
    deployment: Deployment,
    given: Secrets,
    key: Ed25519PrivateKey,
    trust: Trust,
    values: dict[str, Any],
) -> GrantFor:
    """What makes the grant. Raises click.UsageError for what is missing, and as its parts do."""
    _check_complete(role, given, values)
    own = {Role.SERVER: _server, Role.AGGREGATOR: _aggregator, Role.CLIENT: _client}[role]
    own_for = own(deployment, given, key, trust, values)
    path: Path | None = values["bus_certificates"]
    place = Place(values["bootstrap"], None, path, values["replicas"])
    bus_tls(place)
    for door in filter(None, [values["door"] if role is Role.SERVER else None]):
        bus_tls(replace(place, urls=(door,)))
    certificates = b"" if path is None else read_file(path, MAX_PEM)

    def grant(ticket: Ticket) -> Grant:
        return Grant(
            own_for(ticket),
            place.urls,
            certificates,
            place.replicas,
            deployment.universe.raw,
            values["metrics"],
        )

    return grant


def _check_complete(role: Role, given: Secrets, values: dict[str, Any]) -> None:
    wanted: dict[str, object] = {"--bootstrap (ZIPNET_BOOTSTRAP)": values["bootstrap"]}
    if role is Role.SERVER:
        wanted["--committee-secret-file (ZIPNET_COMMITTEE_SECRET)"] = given.committee
    if role is Role.AGGREGATOR:
        wanted["--secret-file (ZIPNET_SECRET), which its keys derive from"] = given.identity
    missing = [name for name, there in wanted.items() if not there]
    if missing:
        raise click.UsageError(f"a {role} needs {' and '.join(missing)}")


def _server(
    deployment: Deployment,
    given: Secrets,
    key: Ed25519PrivateKey,
    trust: Trust,
    values: dict[str, Any],
) -> Callable[[Ticket], Own]:
    recovery = recovery_from(values["recovery"])
    instance = instance_of(deployment.config, deployment.id, given.committee, recovery)

    def own(ticket: Ticket) -> Own:
        serial = time.time_ns() // 1_000_000
        return ForServer(
            trust,
            given.committee.decode(),
            Endorsement.make(instance, key, ticket.peer_id, ticket.dh_pub, serial),
            values["trees"],
            values["door"] or "",
            recovery,
        )

    return own


def _aggregator(
    _deployment: Deployment,
    given: Secrets,
    _key: Ed25519PrivateKey,
    _trust: Trust,
    _values: dict[str, Any],
) -> Callable[[Ticket], Own]:
    return lambda _ticket: ForAggregator(given.identity)


def _client(
    deployment: Deployment,
    _given: Secrets,
    _key: Ed25519PrivateKey,
    trust: Trust,
    values: dict[str, Any],
) -> Callable[[Ticket], Own]:
    text, path = values["message"] or "", values["instance_key"]
    message(deployment.config, text.encode())
    if (values["sealing"] == "committee") != (path is not None):
        raise click.UsageError("--sealing committee and --instance-key FILE belong together")
    if path is not None and deployment.config.clients is not Clients.ATTESTED:
        raise ConfigRejected(
            "the committee seals for attested clients only",
            expected=f'clients = "{Clients.ATTESTED}" in the configuration',
            got=str(deployment.config.clients),
            rule="sealing.clients",
            hint="provision it with --sealing memory",
        )
    found = ForClient(
        trust,
        b"" if path is None else instance_key(path),
        text,
        values["cadence"] or CADENCE_MS,
    )
    return lambda _ticket: found


def instance_key(path: Path) -> bytes:
    """The Ed25519 seed in a file, which is made for its owner alone if it is not there.

    Raises FileError, and ConfigRejected for a file that holds something else.
    """
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    except FileExistsError:
        pass
    except OSError as error:
        raise unwritable(path, error) from error
    else:
        try:
            os.write(descriptor, f"{secrets.token_bytes(32).hex()}\n".encode())
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
    return private_key(path, read_file(path, MAX_KEY)).private_bytes_raw()
