"""`zipnet provision`: judge a booted guest, and give it its configuration and secrets."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import json
import re
import secrets
from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Any

import click

from attestation import envelope, provision_stream
from attestation.allowlist import AllowList
from attestation.bundle import Role as Ticketed
from attestation.collateral_cache import read_collateral
from attestation.errors import PolicyError, ProviderAbsent
from attestation.files import read_file
from attestation.measure.record import Measurements
from attestation.provision import (
    CHALLENGE_SIZE,
    UNTOLD,
    Accepted,
    Offer,
    check_offer,
    make_grant,
)
from attestation.tdx import Tdx, TdxPolicy
from attestation.verify import MAX_COLLATERAL, Collateral
from zipnet.access import Access
from zipnet.commands.admin import MAX_DOCUMENT, operator_key
from zipnet.commands.provision_grant import GrantFor, check_role, grant_for
from zipnet.commands.settings import (
    FILE,
    Deployment,
    bus_options,
    collateral_options,
    committee_options,
    cover_options,
    deployment_from,
    deployment_options,
    required,
    secret_options,
    secrets_from,
)
from zipnet.config import Anchor, Config
from zipnet.errors import ConfigRejected
from zipnet.node.appliance import Told
from zipnet.node.grant import MAX_ROOT, Trust
from zipnet.node.service_collateral import Fetching, attesting
from zipnet.operators import OperatorSet
from zipnet.preflight import Role
from zipnet.roles.admission import config_digest, platform

# An exchange's own limit, and a little more to hear of it.
TIMEOUT_S = 130.0
_TARGET = re.compile(r"(\[[0-9a-fA-F:.]+\]|[A-Za-z0-9.-]+)(?::([0-9]{1,5}))?")


@click.command("provision")
@click.argument("target", metavar="HOST[:PORT]")
@click.argument("role", type=click.Choice(list(map(str, Role))))
@deployment_options
@click.option(
    "--key",
    "key_file",
    metavar="FILE",
    type=FILE,
    help="The operator's Ed25519 key: PEM without a password, or 64 hex digits.",
)
@click.option(
    "--document",
    "documents",
    metavar="FILE",
    type=FILE,
    multiple=True,
    help="Each change of operators since the configuration, in order.",
)
@click.option(
    "--measurements",
    metavar="FILE",
    type=FILE,
    multiple=True,
    help="measurements.json of an image that may have the secrets; again for more.",
)
@click.option(
    "--allow-list", metavar="FILE", type=FILE, help="Or the list that the operators have signed."
)
@click.option(
    "--mock-root",
    metavar="FOLDER",
    type=FILE,
    help="root.der and collateral.json of `attestation mock-pki`, where the anchor is a mock.",
)
@secret_options
@bus_options
@committee_options
@click.option(
    "--sealing",
    type=click.Choice(["memory", "committee"]),
    default="memory",
    show_default=True,
    help="What a client keeps: nothing, or what the committee seals.",
)
@click.option(
    "--instance-key",
    metavar="FILE",
    type=FILE,
    help="The key that a client's sealed state belongs to; made if it is not there.",
)
@cover_options
@click.option("--metrics/--no-metrics", default=True, help="Serve metrics and evidence.")
@collateral_options
@click.option("--check", "check_only", is_flag=True, help="Judge the guest, and give it nothing.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def provision(
    target: str,
    role: str,
    check_only: bool,
    as_json: bool,
    **values: Any,
) -> None:
    """Judge the guest at HOST, which waits in its ROLE, and give it what it needs.

    It gets nothing unless its quote is genuine, of an accepted image, and for this configuration.
    A server is endorsed with the keys that it made at this boot.
    """
    host, port = _address(target)
    wanted = Role(role)
    check_role(wanted, click.get_current_context())
    deployment = required(deployment_from(values))
    trust = _trust(deployment.config, values)
    documents = tuple(read_file(path, MAX_DOCUMENT) for path in values["documents"])
    told = Told(deployment.config, documents)
    policy = _policy(deployment, told.operators(), trust, values)
    judge = Judge(wanted, deployment, policy, _collateral(trust))
    answer = None if check_only else _answering(wanted, deployment, told, trust, values)
    found = asyncio.run(_exchange(host, port, judge, answer))
    facts = _facts(judge, found)
    if as_json:
        given = {"address": target, "provisioned": not check_only}
        click.echo(json.dumps(facts | given, indent=2, sort_keys=True))
        return
    for name, value in facts.items():
        click.echo(f"{name:<12} {value}")
    click.echo("checked; nothing was given" if check_only else f"provisioned the {role}")


@dataclass(frozen=True, slots=True)
class Judge:
    """Whom the secrets may go to. `collateral` is asked for that of a quote, and may block."""

    role: Role
    deployment: Deployment
    policy: TdxPolicy
    collateral: Callable[[bytes], Collateral]

    def judge(self, raw: bytes, challenge: bytes) -> Accepted:
        """Raises AttestationError for every offer that must get nothing."""
        return check_offer(
            raw,
            challenge=challenge,
            role=Ticketed[self.role.name],
            config_digest=config_digest(self.deployment.config),
            validator=self.policy,
            collateral=self.collateral(Offer.decode(raw).bundle.quote),
            now=datetime.now(UTC),
        )


class _OnlyLooking(Exception):
    """Ends an exchange before a grant."""


async def _exchange(
    host: str, port: int, judge: Judge, answer: Callable[[Accepted], bytes] | None
) -> Accepted:
    challenge = secrets.token_bytes(CHALLENGE_SIZE)
    accepted: list[Accepted] = []

    def answered(raw: bytes) -> bytes:
        accepted.append(judge.judge(raw, challenge))
        if answer is None:
            raise _OnlyLooking
        return answer(accepted[0])

    with contextlib.suppress(_OnlyLooking):
        await provision_stream.provision(host, port, challenge, answered, TIMEOUT_S)
    return accepted[0]


def _answering(
    role: Role, deployment: Deployment, told: Told, trust: Trust, values: dict[str, Any]
) -> Callable[[Accepted], bytes]:
    """What makes the bytes of a grant. Raises click.UsageError, and as what it reads."""
    if values["key_file"] is None:
        raise click.UsageError("--key FILE is missing: an operator signs what a guest is given")
    key = operator_key(values["key_file"], told.operators())
    given = secrets_from(values["secret_file"], values["committee_secret_file"])
    grant: GrantFor = grant_for(role, deployment, given, key, trust, values)

    def answer(accepted: Accepted) -> bytes:
        secret = grant(accepted.offer.ticket).dumps()
        return make_grant(accepted, key, told.encode(), secret, secrets.token_bytes)

    return answer


def _policy(
    deployment: Deployment, known: OperatorSet, trust: Trust, values: dict[str, Any]
) -> TdxPolicy:
    """Which code may have the secrets. Raises click.UsageError, and for files that are none."""
    files, path = values["measurements"], values["allow_list"]
    if bool(files) == (path is not None):
        raise click.UsageError("give --measurements FILE (again for more), or --allow-list FILE")
    policy: TdxPolicy = _mock_policy(trust.mock_root) if trust.mock_root else Tdx()
    for one in files:
        policy = policy.require_mrtd(Measurements.load(one))
    if path is not None:
        raw = read_file(path, envelope.MAX_BYTES)
        identity = deployment.id.raw
        found = AllowList.verify(raw, known.keys, known.k, None, deployment_id=identity)
        # A guest that waits knows of no deployment yet.
        policy = policy.require_mrtd(replace(found, deployment_id=UNTOLD))
    return policy


def _mock_policy(root: bytes) -> TdxPolicy:
    try:
        # Production images hold no mock code: there this import fails.
        from attestation.providers.mock import MockVerifier  # noqa: PLC0415
        from attestation.unsafe_mock_tdx import UnsafeMockTdx  # noqa: PLC0415
    except ImportError:
        raise ProviderAbsent(
            "this installation holds no mock code",
            rule="mock-root.absent",
            hint="`pip install` zipnet on another machine",
        ) from None
    return UnsafeMockTdx(verifier=MockVerifier(root))


def _trust(config: Config, values: dict[str, Any]) -> Trust:
    """What quotes are checked with, here and in the guest. Raises ConfigRejected, FileError."""
    folder, file = values["mock_root"], values["collateral"]
    url, models = values["pccs"] or "", values["fmspc"]
    mock = config.anchor != Anchor.tdx()
    if mock != (folder is not None):
        raise ConfigRejected(
            "the quotes of this deployment are those of a software TEE"
            if mock
            else "a software TEE proves nothing in a deployment whose anchor is tdx",
            expected="--mock-root FOLDER" if mock else "no --mock-root",
            rule="mock-root",
            hint="it goes with an anchor `mock=...` in the configuration, and only there",
        )
    root = b"" if folder is None else read_file(folder / "root.der", MAX_ROOT)
    if mock and Anchor.mock(hashlib.sha256(root).digest()) != config.anchor:
        raise ConfigRejected(
            "the software TEE has another root than the configuration names",
            expected=str(config.anchor),
            got=str(Anchor.mock(hashlib.sha256(root).digest())),
            rule="anchor",
            hint=f"give the folder whose root.der the configuration was made with, not {folder}",
        )
    if folder is not None and file is None and not url:
        file = folder / "collateral.json"
    if bool(url) != bool(models) or (file is None) == (not url):
        raise click.UsageError("give --collateral FILE, or --pccs URL with one --fmspc or more")
    found = None if file is None else read_collateral(read_file(file, MAX_COLLATERAL))
    return Trust(found, url, models, root)


def _collateral(trust: Trust) -> Callable[[bytes], Collateral]:
    """What finds the collateral for a quote; as in a guest, but it waits."""
    found = trust.collateral
    if found is not None:
        return lambda _quote: found
    service = attesting(Access(mock_root=trust.mock_root), Fetching(trust.pccs, trust.fmspcs))
    assert service.service is not None
    get = service.service.get
    return lambda quote: asyncio.run(get(quote))


def _facts(judge: Judge, accepted: Accepted) -> dict[str, str]:
    """What is known of the guest that was accepted, for people and as JSON."""
    expiry, ticket = accepted.expiry, accepted.offer.ticket
    claims = expiry.claims
    if claims is None:
        raise PolicyError(
            "nobody looked at the guest's quote", expected="its claims", got="none", rule="claims"
        )
    body = claims.quote.body
    advisories = f" ({', '.join(claims.advisory_ids)})" if claims.advisory_ids else ""
    return {
        "role": str(judge.role),
        "deployment": judge.deployment.config.name,
        "fingerprint": judge.deployment.id.hex(),
        "platform": platform(expiry).hex(),
        "fmspc": claims.fmspc.hex(),
        "tcb": f"{claims.tcb_status}{advisories}",
        "mr_td": body.mr_td.hex(),
        "rtmr1": body.rtmr1.hex(),
        "rtmr2": body.rtmr2.hex(),
        "mrconfigid": body.mr_config_id.hex(),
        "peer": ticket.peer_id.hex(),
        "dh": ticket.dh_pub.hex(),
        "acpi": claims.acpi,
    }


def _address(text: str) -> tuple[str, int]:
    match = _TARGET.fullmatch(text)
    if match is None or not int(match[2] or 1) < 1 << 16:
        raise click.UsageError(f"{ascii(text)[:100]} is no HOST or HOST:PORT")
    return match[1].strip("[]"), int(match[2] or provision_stream.PORT)
