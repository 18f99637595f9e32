"""Who a node is: keys from its state, or from a secret text; and how it proves its code."""

from __future__ import annotations

import hashlib
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from blake3 import blake3
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

from attestation.bundle import Role
from attestation.errors import FileUnreadable, ProviderAbsent
from zipnet.access import Access
from zipnet.committee.state import Rules
from zipnet.config import Anchor, Config
from zipnet.errors import ConfigRejected
from zipnet.ids import InstanceIds, UniqueId
from zipnet.network.recovery import Reopening
from zipnet.node.service import collateral_source
from zipnet.node.state import UnsafePlainState
from zipnet.protocol.instance import Instance, generation
from zipnet.roles.admission import config_digest
from zipnet.roles.identity import Draw, Identity

DH = "zipnet/secret-identity/dh/v1"


def of_secret(signing: Ed25519PrivateKey) -> Identity:
    """The keys of a node whose peer key derives from a secret text: so does the other one."""
    seed = blake3(signing.private_bytes_raw(), derive_key_context=DH).digest()
    return Identity(signing, X25519PrivateKey.from_private_bytes(seed))


def signing_of(text: str) -> Ed25519PrivateKey:
    """The peer key of a secret text: its seed is BLAKE3 of it."""
    return Ed25519PrivateKey.from_private_bytes(blake3(text.encode()).digest())


def fresh_or_of_secret(signing: Ed25519PrivateKey | None) -> Identity:
    """The keys of a node that keeps nothing."""
    return Identity.fresh(secrets.token_bytes) if signing is None else of_secret(signing)


def instance_of(
    config: Config, deployment: UniqueId, committee_secret: bytes, recovery: Reopening | None
) -> Instance:
    """The generation that the committee secret opens: the first one, or that of a recovery.

    Raises ConfigRejected for a secret that is too short, or opens another generation than the
    recovery does; and SnapshotRejected, Refused, DocumentRejected for a checkpoint that the servers
    have not signed.
    """
    counter = 0 if recovery is None else recovery.unverified.counter
    committee = InstanceIds.of(deployment).committee.raw
    opened = Instance(deployment.raw, generation(committee, committee_secret, counter))
    if recovery is None:
        return opened
    recovery.machine(Rules.of(config), deployment.raw)
    wanted = recovery.unverified.new_generation
    if opened.generation != wanted:
        raise ConfigRejected(
            "the committee secret opens another generation than the recovery",
            expected=wanted.hex(),
            got=opened.generation.hex(),
            rule="recovery.secret",
            hint="take the secret that was given to `zipnet admin recover`",
        )
    return opened


def aggregator_instance(deployment: UniqueId) -> Instance:
    """What an aggregator's state is bound to: it has one identity in all generations, no guard."""
    return Instance(deployment.raw, bytes(32))


@contextmanager
def kept(
    folder: Path,
    role: Role,
    instance: Instance,
    *,
    config: Config,
    signing: Ed25519PrivateKey | None = None,
    recovery: Reopening | None = None,
    name: str = "",
    guest: Identity | None = None,
) -> Iterator[UnsafePlainState]:
    """The state of a node in a folder, made with fresh keys or those of a secret if there is none.

    With a recovery it is taken into the generation that this opens. `guest` are keys that were made
    in a guest at this boot: the folder is then in its own memory, and ends with it. Raises
    ConfigRejected where the host must not see the keys or a secret names other ones, StateDamaged,
    FileUnreadable.
    """
    if config.anchor == Anchor.tdx() and role is not Role.AGGREGATOR and guest is None:
        raise ConfigRejected(
            f"a {role.name.lower()} under TDX keeps no state in a folder of its host",
            expected="no --state",
            got=str(folder),
            rule="state.tdx",
            hint="its host could read the keys, and put old guards back: boot the role's image and "
            "use `zipnet provision`; a client needs no state",
        )
    given = guest or (None if signing is None else of_secret(signing))
    path = folder / f"{name or role.name.lower()}.state"
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        raise FileUnreadable(
            f"can't make {folder}: {error.strerror}",
            rule="state.folder",
            hint="name a folder of this node's own by --state or ZIPNET_STATE",
        ) from error
    if recovery is not None and path.exists():
        old = Instance(instance.deployment_id, recovery.unverified.old_generation)
        state = UnsafePlainState.next_generation(path, role, old, instance)
    else:
        state = UnsafePlainState.open(path, role, instance, _draw(given))
    try:
        if given is not None and given.peer != state.identity.peer:
            raise ConfigRejected(
                "the secret is that of another node than the state",
                expected=f"peer {state.identity.peer.hex()}, as in {path}",
                got=given.peer.hex(),
                rule="secret.state",
                hint="unset ZIPNET_SECRET: the state has the keys",
            )
        yield state
    finally:
        state.close()


def access_of(
    config: Config, role: Role, mock_tee: Path | None, program: str, collateral: Path | None
) -> Access:
    """How a node proves its code, and checks that of others.

    Raises ConfigRejected where anchor and options don't fit, ProviderAbsent where there is no
    software TEE, FileError, CollateralFormatError.
    """
    mock = config.anchor != Anchor.tdx()
    if mock_tee is None:
        if mock:
            raise ConfigRejected(
                "the quotes of this deployment are those of a software TEE",
                expected="--mock-tee DIR, or ZIPNET_MOCK_TEE",
                rule="mock-tee.missing",
                hint="ask who runs the deployment for the folder of its `attestation mock-pki`",
            )
        return Access(collateral=collateral_source(collateral))
    if not mock:
        raise ConfigRejected(
            "a software TEE proves nothing in a deployment whose anchor is tdx",
            expected="no --mock-tee",
            got=str(mock_tee),
            rule="mock-tee.anchor",
            hint="unset ZIPNET_MOCK_TEE",
        )
    try:
        # Production images hold no mock code: there this import fails.
        from attestation.providers.mock_folder import MockFolder  # noqa: PLC0415
        from zipnet.unsafe_programs import (  # noqa: PLC0415
            Program,
            ProgramQuotes,
            default_program,
        )
    except ImportError:
        raise ProviderAbsent(
            "there is no software TEE in this image",
            expected="an installation with mock code",
            rule="mock-tee.absent",
            hint="production images hold none: use a mock image, or install zipnet on a host",
        ) from None
    found = MockFolder.load(mock_tee)
    digest = hashlib.sha256(found.root_der).digest()
    if digest != config.anchor.root:
        raise ConfigRejected(
            "the software TEE has another root than the configuration names",
            expected=str(config.anchor),
            got=f"mock={digest.hex()}",
            rule="anchor",
            hint=f"give the folder whose root.der the configuration was made with, not {mock_tee}",
        )
    name = role.name.lower()
    running = Program(program, name) if program else default_program(name)
    return Access(
        provider=ProgramQuotes(found.tee, running, config_digest(config) + bytes(16)),
        collateral=lambda _quote: found.collateral,
        mock_root=found.root_der,
    )


def _draw(given: Identity | None) -> Draw:
    """Where a new state's two keys come from."""
    if given is None:
        return secrets.token_bytes
    keys = iter((given.signing.private_bytes_raw(), given.dh.private_bytes_raw()))
    return lambda _count: next(keys)
