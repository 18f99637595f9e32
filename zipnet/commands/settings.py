"""What nodes are told by variables and flags, and how that agrees with a configuration file.

Each variable is also a flag, which wins. Secrets come from variables or files, never from flags:
those are in the list of processes.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, TypeVar

import click
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from attestation.files import read_file
from zipnet import config_file
from zipnet.config import Anchor, Config, Operator, deployment_id
from zipnet.datum import Blob
from zipnet.errors import ConfigRejected, WireFormatError
from zipnet.ids import UNIVERSE, InstanceIds, UniqueId
from zipnet.network.nats import REPLICAS
from zipnet.node.service_identity import signing_of
from zipnet.node.service_network import URL, Place
from zipnet.preflight import Role
from zipnet.protocol.instance import Instance, generation
from zipnet.protocol.tree import Aggregator, AggregatorTree

F = TypeVar("F", bound=Callable[..., Any])

MAX_SECRET = 4096
SECRET = "ZIPNET_SECRET"  # noqa: S105  # the name of a variable
COMMITTEE_SECRET = "ZIPNET_COMMITTEE_SECRET"  # noqa: S105
# Those that are part of a configuration, with its field.
WINDOW = {
    "min_participants": "min_participants",
    "round_period": "round_period_ms",
    "round_deadline": "round_deadline_ms",
    "fold_deadline": "fold_deadline_ms",
}
_UNITS = {"ms": 1, "s": 1000, "m": 60_000, "h": 3_600_000}


def duration(text: str) -> int:
    """Milliseconds, of a whole number with its unit, as `500ms`. Raises BadParameter."""
    match = re.fullmatch(r"([0-9]{1,9})(ms|s|m|h)", text)
    if match is None:
        raise click.BadParameter(f"{_shown(text)} is no time such as 500ms, 2s, 1m")
    return int(match[1]) * _UNITS[match[2]]


def address(text: str) -> tuple[str, int]:
    """Host and port, of `host:port`, an IPv6 address in brackets. Raises BadParameter."""
    match = re.fullmatch(r"(\[[0-9a-fA-F:.]+\]|[A-Za-z0-9.-]*):([0-9]{1,5})", text)
    if match is None or not int(match[2]) < 1 << 16:
        raise click.BadParameter(f"{_shown(text)} is no host:port such as 127.0.0.1:9100")
    return match[1].strip("[]"), int(match[2])


def url(text: str) -> str:
    """The URL of a node of a bus. Raises BadParameter."""
    if not URL.fullmatch(text):
        raise click.BadParameter(f"{_shown(text)} is no nats://host:port or tls://host:port")
    return text


def urls(text: str) -> tuple[str, ...]:
    """The URLs of a bus, between commas. Raises BadParameter."""
    return tuple(map(url, text.split(",")))


def tree(text: str) -> AggregatorTree:
    """A tree of aggregators, of `PEER:DH[:PARENT]` between commas, the root first.

    Raises BadParameter for what is no tree.
    """
    nodes = []
    for one in text.split(","):
        match = re.fullmatch(r"([0-9a-f]{64}):([0-9a-f]{64})(?::([0-9]{1,4}))?", one)
        if match is None:
            expected = "PEER:DH or PEER:DH:PARENT, keys as 64 lower-case hex digits"
            raise click.BadParameter(f"{_shown(one)} is not {expected}")
        parent = int(match[3] or 0)
        nodes.append(Aggregator(bytes.fromhex(match[1]), bytes.fromhex(match[2]), parent))
    try:
        return AggregatorTree(tuple(nodes))
    except WireFormatError as error:
        raise click.BadParameter(f"this is no tree: {error}") from error


def operator(text: str) -> Operator:
    """The operator in `NAME=HEXKEY`. Raises BadParameter, ConfigRejected."""
    name, _, key = text.partition("=")
    if not re.fullmatch(r"[0-9a-f]{64}", key):
        expected = "NAME=HEXKEY with 64 lower-case hex digits"
        raise click.BadParameter(f"{_shown(text)} is not {expected}")
    return Operator(name, bytes.fromhex(key))


def hex32(text: str) -> bytes:
    """32 bytes, of 64 lower-case hex digits. Raises BadParameter."""
    if not re.fullmatch(r"[0-9a-f]{64}", text):
        raise click.BadParameter(f"{_shown(text)} is not 64 lower-case hex digits")
    return bytes.fromhex(text)


def fmspc(text: str) -> bytes:
    """6 bytes, of 12 hex digits. Raises BadParameter."""
    if not re.fullmatch(r"[0-9a-fA-F]{12}", text):
        raise click.BadParameter(f"{_shown(text)} is no FMSPC of 12 hex digits")
    return bytes.fromhex(text)


FILE = click.Path(path_type=Path)


def deployment_options(command: F) -> F:
    """The options that say which deployment is meant."""
    for option in reversed(
        (
            _option(
                "config",
                FILE,
                "The configuration: a file, or a folder with NAME.toml of each instance.",
            ),
            _option("instance", str, "The name of the deployment."),
            _option("universe", str, "The network of networks; rarely set.", default=None),
            _option(
                "operators",
                operator,
                "NAME=HEXKEY, once for each operator; in the variable between spaces.",
                flag="--operator",
                multiple=True,
            ),
            _option("min_participants", click.IntRange(min=1), "Clients that a round needs."),
            _option("round_period", duration, "Between rounds, as 500ms or 2s."),
            _option("round_deadline", duration, "From then on a round can be given up."),
            _option("fold_deadline", duration, "So long envelopes are taken."),
        )
    ):
        command = option(command)
    return command


def network_options(command: F) -> F:
    """The options that say where the network is."""
    local = click.option(
        "--local",
        metavar="FOLDER",
        type=FILE,
        help="A network in a folder, which no other process has open.",
    )
    return bus_options(local(command))


def bus_options(command: F) -> F:
    """The options that say where the bus is."""
    bootstrap = _option("bootstrap", urls, "URLs of the bus, between commas.")
    certificates = _option(
        "bus_certificates", FILE, "Certificates (PEM) that the bus may show; for tls:// URLs."
    )
    replicas = _option(
        "replicas",
        click.IntRange(1, 5),
        "Servers of the bus that hold what is stored.",
        default=REPLICAS,
        show_default=True,
    )
    return bootstrap(certificates(replicas(command)))


def place_of(values: dict[str, Any]) -> Place:
    """Where the network is, as the options of `network_options` say: a folder before a bus."""
    folder: Path | None = values["local"]
    bus: tuple[str, ...] = values["bootstrap"] or ()
    return Place(() if folder else bus, folder, values["bus_certificates"], values["replicas"])


def state_option(command: F) -> F:
    """Where a node keeps who it is, and what it must not do again."""
    return _option("state", FILE, "A folder of this node's own, for its keys and guards.")(command)


def attestation_options(command: F) -> F:
    """How a node proves its code, and checks that of others."""
    for option in (
        _option("program", str, "What a software TEE measures this program as.", default=""),
        _option("mock_tee", FILE, "What `attestation mock-pki` wrote, where the anchor is a mock."),
    ):
        command = option(command)
    return collateral_options(command)


def collateral_options(command: F) -> F:
    """What quotes are checked with."""
    for option in (
        _option(
            "fmspc",
            fmspc,
            "A model of platform to fetch collateral for, 12 hex digits; once for each.",
            multiple=True,
        ),
        _option("pccs", str, "Fetch collateral there, as https://host; `intel` is Intel's own."),
        _option("collateral", FILE, "Collateral in a file, where the anchor is tdx."),
    ):
        command = option(command)
    return command


def server_options(command: F) -> F:
    """What only a server is told."""
    option = _option("endorsement", FILE, "What `zipnet admin server add` wrote for this server.")
    return committee_options(option(command))


def committee_options(command: F) -> F:
    """What only a server is told, but for its operator's word for it."""
    for option in (
        _option(
            "trees",
            tree,
            "Aggregators, PEER:DH[:PARENT] between commas, root first; again for a fall-back. "
            "All servers name the same ones.",
            flag="--tree",
            multiple=True,
        ),
        _option("door", url, "This operator's own node of the bus, whose clients it lets in."),
    ):
        command = option(command)
    return recovery_option(command)


def secret_options(command: F) -> F:
    """Files for the secrets that the variables ZIPNET_SECRET and ZIPNET_COMMITTEE_SECRET hold."""
    for option in (
        click.option(
            "--committee-secret-file",
            metavar="FILE",
            type=FILE,
            help=f"The secret that servers share; else in {COMMITTEE_SECRET}.",
        ),
        click.option(
            "--secret-file",
            metavar="FILE",
            type=FILE,
            help=f"A text that this node's identity derives from; else in {SECRET}.",
        ),
    ):
        command = option(command)
    return command


def metrics_option(command: F) -> F:
    """Where metrics are served."""
    return _option("metrics", address, "Serve Prometheus metrics there, as host:port.")(command)


def recovery_option(command: F) -> F:
    """What leads a server into any generation but the first."""
    return _option("recovery", FILE, "What `zipnet admin recover` made, after the log was lost.")(
        command
    )


def cover_options(command: F) -> F:
    """What a client says by itself."""
    cadence = _option("cadence", duration, "Say it so often.")
    return _option("message", str, "What this client says, again and again.")(cadence(command))


@dataclass(frozen=True, slots=True)
class Deployment:
    """A deployment as this process was told of it."""

    config: Config
    universe: UniqueId

    @property
    def id(self) -> UniqueId:
        """Its id, which is its fingerprint."""
        return deployment_id(self.config)


@dataclass(frozen=True, slots=True)
class Secrets:
    """What nobody else may read; empty for none."""

    identity: str = field(default="", repr=False)
    committee: bytes = field(default=b"", repr=False)

    def signing_key(self, config: Config, role: Role) -> Ed25519PrivateKey | None:
        """The peer key that BLAKE3 of the text is the seed of; None for a fresh one.

        Raises ConfigRejected where the key must be made in the guest, so that nobody has it.
        """
        if not self.identity:
            return None
        if role.attested and config.anchor == Anchor.tdx():
            raise ConfigRejected(
                f"a {role} under TDX makes its own keys",
                expected=f"no {SECRET}",
                got="one",
                rule="secret.tdx",
                hint=f"unset {SECRET}: it is for aggregators, mock anchors and local use",
            )
        return signing_of(self.identity)

    def instance(self, deployment: UniqueId, counter: int = 0) -> Instance:
        """The generation that the committee secret opens. Raises ConfigRejected."""
        committee = InstanceIds.of(deployment).committee.raw
        return Instance(deployment.raw, generation(committee, self.committee, counter))


def secrets_from(secret_file: Path | None, committee_secret_file: Path | None) -> Secrets:
    """The secrets, a file before its variable. Raises FileUnreadable, ConfigRejected."""
    identity = _secret(secret_file, SECRET)
    committee = _secret(committee_secret_file, COMMITTEE_SECRET)
    return Secrets(identity, committee.encode())


def deployment_from(values: dict[str, Any]) -> Deployment | None:
    """The deployment that options describe; takes what belongs to it out of `values`.

    None if there is no option about one. Raises ConfigRejected, also for a file and options that
    differ, and FileUnreadable.
    """
    path, name = values.pop("config", None), values.pop("instance", None)
    universe = values.pop("universe", None)
    operators = tuple(values.pop("operators", ()))
    window = {
        field: given
        for option, field in WINDOW.items()
        if (given := values.pop(option, None)) is not None
    }
    found = UNIVERSE if universe is None else UniqueId.of(universe)
    if path is None:
        if name is None and not operators and not window:
            return None
        return Deployment(_built(name, operators, window), found)
    base = config_file.load(_file_in(path, name) if path.is_dir() else path)
    changed = replace(base, name=base.name if name is None else name)
    changed = changed.with_window(replace(base.window, **window))
    if operators:
        changed = replace(changed, operators=operators)
    if changed != base:
        _contradict(path, base, changed)
    return Deployment(base, found)


def required(deployment: Deployment | None) -> Deployment:
    """The deployment. Raises ConfigRejected for none."""
    if deployment is None:
        raise ConfigRejected(
            "no deployment was named",
            expected="--config FILE, or ZIPNET_CONFIG",
            rule="config.missing",
            hint="ask an operator for the file; `zipnet config new` writes one",
        )
    return deployment


def _built(name: str | None, operators: tuple[Operator, ...], window: dict[str, int]) -> Config:
    """A configuration of variables alone: the interactive preset, plain bytes, zeros as init."""
    missing = [
        text
        for text, given in (("ZIPNET_INSTANCE", name), ("ZIPNET_OPERATORS", operators))
        if not given
    ]
    if name is None or missing:
        raise ConfigRejected(
            "the variables describe no deployment",
            expected=" and ".join(missing),
            got="none",
            rule="config.missing",
            hint="set them, or give the configuration's file by --config or ZIPNET_CONFIG",
        )
    made = Config.new(name, Blob, operators=operators)
    return made.with_window(replace(made.window, **window))


def _file_in(folder: Path, name: str | None) -> Path:
    """The file of an instance. The name is looked up, so that it can't lead elsewhere."""
    known = sorted(path.stem for path in folder.glob("*.toml"))
    if name not in known:
        raise ConfigRejected(
            "no instance was named" if name is None else f"there is no instance {_shown(name)}",
            expected=f"one of {', '.join(known) or 'none'}",
            rule="instance.unknown",
            hint=f"put its configuration into {folder}, or correct ZIPNET_INSTANCE",
        )
    return folder / f"{name}.toml"


def _contradict(path: Path, base: Config, changed: Config) -> None:
    pairs = [
        (option, getattr(base.window, field), getattr(changed.window, field))
        for option, field in WINDOW.items()
    ]
    pairs.append(("instance", base.name, changed.name))
    names = [", ".join(one.name for one in config.operators) for config in (base, changed)]
    differ = [
        f"ZIPNET_{option.upper()} is {theirs}, not {ours}"
        for option, ours, theirs in pairs
        if ours != theirs
    ]
    if base.operators != changed.operators:
        differ.append(f"ZIPNET_OPERATORS are {names[1]}, not {names[0]} with their keys")
    raise ConfigRejected(
        f"variables or flags contradict {path}: {'; '.join(differ)}",
        expected=f"fingerprint {deployment_id(base).hex()}, that of the file",
        got=f"{deployment_id(changed).hex()} with them",
        rule="config.contradiction",
        hint="unset them, or give every party the same new file",
    )


def _secret(path: Path | None, variable: str) -> str:
    if path is None:
        return os.environ.get(variable, "")
    raw = read_file(path, MAX_SECRET)
    try:
        text = raw.decode().removesuffix("\n")
    except UnicodeDecodeError:
        text = ""
    if not text:
        raise ConfigRejected(
            f"{path} holds no secret",
            expected="text in UTF-8",
            rule="secret.file",
            hint="write one into it, on one line",
        )
    return text


def _option(
    name: str,
    kind: Any,
    text: str,
    *,
    flag: str = "",
    **more: Any,
) -> Callable[[F], F]:
    return click.option(
        flag or f"--{name.replace('_', '-')}",
        name,
        type=kind,
        envvar=f"ZIPNET_{name.upper()}",
        show_envvar=True,
        help=text,
        **more,
    )


def _shown(value: object) -> str:
    return ascii(str(value))[:100]
