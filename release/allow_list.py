"""`python -m release allow-list`: from manifests to the list that `zipnet admin` takes.

Without a command it writes the next list; `sign` adds one operator's signature after the other,
until `zipnet admin allow-list push` takes the file. Nothing here needs a network.
"""

from collections.abc import Sequence
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path

import click
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from attestation import allowlist, envelope
from attestation.allowlist import PAYLOAD_TYPE, AllowList, Entry
from attestation.errors import AllowListRejected
from attestation.files import read_file, unwritable
from attestation.moments import LAST_SECOND, moment, unix
from release import keys, verify_files
from release.errors import ReleaseRejected
from release.manifest import Manifest
from release.next_list import Plan, following

_PATH = click.Path(path_type=Path)
_TIMES = ("%Y-%m-%d", "%Y-%m-%dT%H:%M:%SZ")


class _Hex(click.ParamType[bytes]):
    """32 bytes as 64 hex digits."""

    name = "hex"

    def convert(
        self, value: str, param: click.Parameter | None, ctx: click.Context | None
    ) -> bytes:
        """The bytes; a usage error for anything else."""
        try:
            raw = bytes.fromhex(value)
        except ValueError:
            raw = b""
        if len(raw) != 32 or len(value) != 64:
            self.fail(f"{ascii(value)[:80]} has not 64 hex digits", param, ctx)
        return raw


class _Retirement(click.ParamType[tuple[str, int]]):
    """VERSION=DATE, in UTC."""

    name = "retirement"

    def convert(
        self, value: str, param: click.Parameter | None, ctx: click.Context | None
    ) -> tuple[str, int]:
        """The version and the moment in Unix seconds; a usage error for anything else."""
        version, _, text = value.partition("=")
        when: datetime | None = None
        for form in _TIMES:
            with suppress(ValueError):
                when = datetime.strptime(text, form).replace(tzinfo=UTC)
        if when is None:
            self.fail(f"{ascii(value)[:80]} is not VERSION=YYYY-MM-DD[THH:MM:SSZ]", param, ctx)
        return version, unix(when)


@click.group("allow-list", invoke_without_command=True, no_args_is_help=True)
@click.option(
    "--previous",
    metavar="LIST",
    type=_PATH,
    help="The list in force, as `zipnet admin allow-list show --json` prints it, or signed. "
    "Without it this is the first list.",
)
@click.option(
    "--release",
    "folders",
    metavar="DIR",
    type=_PATH,
    multiple=True,
    help="A release: its images are added if they are not there. Also names what --retire and "
    "--revoke mean by a version.",
)
@click.option(
    "--retire",
    metavar="VERSION=DATE",
    type=_Retirement(),
    multiple=True,
    help="When the images of a version end, UTC; those that another release also has stay.",
)
@click.option(
    "--revoke",
    metavar="VERSION|MRTD",
    multiple=True,
    help="What ends now, whoever else has it.",
)
@click.option("--number", type=click.IntRange(min=1), help="One more than before if not given.")
@click.option(
    "--deployment",
    metavar="ID",
    type=_Hex(),
    help="As `zipnet config fingerprint` prints it; for a first list.",
)
@click.option(
    "--key",
    metavar="KEY|pinned",
    default="pinned",
    show_default=True,
    help="Who signed the releases, as for `verify`.",
)
@click.option(
    "--unsafe-demo-key",
    is_flag=True,
    help="Take releases that only a demo key signed: anybody may have made them.",
)
@click.option("-o", "--out", metavar="FILE", type=_PATH, help="A new file.")
@click.pass_context
def command(
    context: click.Context,
    previous: Path | None,
    folders: tuple[Path, ...],
    retire: tuple[tuple[str, int], ...],
    revoke: tuple[str, ...],
    number: int | None,
    deployment: bytes | None,
    key: str,
    unsafe_demo_key: bool,
    out: Path | None,
) -> None:
    """Write the next list of accepted measurements from releases, for operators to sign."""
    if context.invoked_subcommand is not None:
        if any((previous, folders, retire, revoke, number, deployment, unsafe_demo_key, out)):
            raise click.UsageError(f"options of the next list before {context.invoked_subcommand}")
        return
    if out is None:
        raise click.UsageError("-o FILE says where the list goes")
    if len(dict(retire)) != len(retire):
        raise click.UsageError("--retire names a version twice")
    now = datetime.now(UTC)
    trusted = keys.trusted(key, now) if folders else ()
    releases = tuple(_release(folder, trusted, unsafe_demo_key) for folder in folders)
    plan = Plan(releases, dict(retire), revoke, number, deployment)
    made = following(None if previous is None else _read(previous)[0], plan, unix(now))
    _write_new(out, made.dumps())
    _show(made)


@command.command("sign")
@click.argument("file", metavar="FILE", type=_PATH)
@click.option(
    "--key-file",
    required=True,
    metavar="FILE",
    type=_PATH,
    help="The operator's Ed25519 key, mode 600: PEM without a password, or 64 hex digits.",
)
@click.option(
    "--operator",
    "operators",
    metavar="HEX",
    type=_Hex(),
    multiple=True,
    required=True,
    help="The public key of an operator; give all of them.",
)
@click.option("--k", type=click.IntRange(min=1), help="How many must sign; all if not given.")
@click.option("-o", "--out", metavar="FILE", type=_PATH, required=True, help="A new file.")
def sign(
    file: Path, key_file: Path, operators: tuple[bytes, ...], k: int | None, out: Path
) -> None:
    """Add a signature to the list in FILE, which others may have signed before."""
    needed = k or len(operators)
    if needed > len(operators) or len(set(operators)) != len(operators):
        raise click.UsageError("give each --operator once, and no more of --k than of them")
    made, signed = _read(file)
    raw, signers = countersign(made, signed, keys.private(key_file), operators, needed)
    _write_new(out, raw)
    click.echo(f"signatures  {len(signers)}, needed {needed}")
    if len(signers) < needed:
        missing = [one.hex() for one in operators if one not in signers]
        click.echo(f"missing     {', '.join(missing)}")
    else:
        click.echo(f"next        zipnet admin allow-list push {out}")


@command.command("show")
@click.argument("file", metavar="FILE", type=_PATH)
@click.option("--json", "as_json", is_flag=True, help="Print the list itself, unsigned.")
def show(file: Path, as_json: bool) -> None:
    """Print the list in FILE, signed or not, and whose signatures are good."""
    made, signed = _read(file)
    if as_json:
        click.echo(made.dumps(), nl=False)
        return
    _show(made)
    for keyid in () if signed is None else sorted(signed.signatures):
        good = envelope.has_signed(signed, bytes.fromhex(keyid)) if signed else False
        click.echo(f"{'signed by':<12}{keyid}{'' if good else ', BAD SIGNATURE'}")


def countersign(
    made: AllowList,
    signed: envelope.Envelope | None,
    key: Ed25519PrivateKey,
    operators: Sequence[bytes],
    k: int,
) -> tuple[bytes, frozenset[bytes]]:
    """The list signed by `key` besides the signatures in `signed`, and who has signed it.

    `operators` are public keys (32 bytes); once `k` of them signed, it is checked as the committee
    will. Raises ReleaseRejected for a signature that is not an operator's, or not good;
    AllowListRejected, PolicyError.
    """
    payload = made.dumps()
    own = allowlist.sign(payload, key)
    signatures = {**({} if signed is None else signed.signatures), str(own.keyid): own}
    raw = allowlist.assemble(payload, signatures.values())
    found = envelope.parse(raw, PAYLOAD_TYPE)
    signers = frozenset(bytes.fromhex(keyid) for keyid in signatures)
    for one in sorted(signers):
        if one not in operators or not envelope.has_signed(found, one):
            raise ReleaseRejected(
                "the list has a signature that the committee would not count",
                expected="good signatures by operators",
                got=one.hex(),
                rule="allow-list.signer",
                hint="give each --operator, and the file as the others signed it",
            )
    if len(signers) >= k:
        AllowList.verify(raw, operators, k, None, deployment_id=made.deployment_id)
    return raw, signers


def _release(folder: Path, trusted: Sequence[keys.Key], unsafe_demo_key: bool) -> Manifest:
    found = verify_files.opened(folder, trusted)
    if all(key.demo for key in found.signed.signers) and not unsafe_demo_key:
        raise ReleaseRejected(
            f"{folder} is signed by a demo key: trust nothing signed by it",
            expected="a publisher's key",
            got=", ".join(key.name for key in found.signed.signers),
            rule="allow-list.demo",
            hint="give the publisher's --key",
        )
    return found.manifest


def _read(path: Path) -> tuple[AllowList, envelope.Envelope | None]:
    """The list in a file, and its envelope if it is signed; no signature is checked."""
    raw = read_file(path, envelope.MAX_BYTES)
    try:
        return AllowList.loads(raw), None
    except AllowListRejected as error:
        # The bare list has other fields; whatever else is wrong with it is told.
        if error.rule not in {"list.fields", "list.size"}:
            raise
    signed = envelope.parse(raw, PAYLOAD_TYPE)
    return AllowList.loads(signed.payload), signed


def _write_new(path: Path, data: bytes) -> None:
    try:
        with path.open("xb") as file:
            file.write(data)
    except OSError as error:
        raise unwritable(path, error) from error


def _show(made: AllowList) -> None:
    for name, value in (
        ("number", str(made.number)),
        ("deployment", made.deployment_id.hex()),
        ("digest", made.digest.hex()),
        ("issued", _date(made.issued_at)),
        ("tcb", ", ".join(sorted(made.tcb.accepted))),
    ):
        click.echo(f"{name:<12}{value}")
    for entry in made.entries:
        one = entry.measurement
        place = f"{one.host_profile}, {one.boot_path}"
        click.echo(f"{one.role:<12}{one.mr_td.hex()}  {place:<24}{_window(entry)}".rstrip())


def _window(entry: Entry) -> str:
    begin = f"from {_date(entry.not_before)} " if entry.not_before else ""
    end = "" if entry.retire_after is None else f"until {_date(entry.retire_after)}"
    return f"{begin}{end}"


def _date(seconds: int) -> str:
    return moment(min(seconds, LAST_SECOND)).strftime("%Y-%m-%dT%H:%M:%SZ")
