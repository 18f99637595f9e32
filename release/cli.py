"""The command line `python -m release`."""

import json
import os
import signal
import sys
from datetime import UTC, datetime
from pathlib import Path
from types import FrameType
from typing import NoReturn

import click
from rich.console import Console

from attestation.commands.group import ExplainedGroup
from release import allow_list, keys
from release import make as make_module
from release import verify as verify_module
from release.build.console import Steps
from release.build.pipeline import explain_os_error
from release.build.settings import Paths, Role
from release.verify_quote import Anchor

ROOT = Path(__file__).resolve().parents[1]
_PATH = click.Path(path_type=Path)
STEP_WIDTH = len("measurements")
STATE_WIDTH = max(map(len, verify_module.State))


@click.group("release", cls=ExplainedGroup)
def cli() -> None:
    """Make releases of the images, and check them.

    Exit codes: 0 good, 1 usage, 2 refused by a check, 3 this machine or its network.
    """


cli.add_command(allow_list.command)


def main() -> NoReturn:
    """Run the command line; never returns."""
    signal.signal(signal.SIGTERM, _terminated)
    # Whatever the caller's umask is: what is published has the same modes everywhere.
    os.umask(0o022)
    cli(prog_name="python -m release")
    raise AssertionError("click exits")


def _terminated(_number: int, _frame: FrameType | None) -> NoReturn:
    # As an exception, so that every half-written folder and started program is cleaned up.
    raise KeyboardInterrupt


@cli.command("keygen")
@click.argument("file", metavar="FILE", type=_PATH)
def keygen(file: Path) -> None:
    """Write a new private key to FILE, mode 600, and print its public half.

    Whoever verifies pins the public half: add it to release/keys.json, or publish it elsewhere.
    """
    click.echo(keys.generate(file).public_key().public_bytes_raw().hex())


@cli.command("make")
@click.argument("version", metavar="VERSION")
@click.option(
    "--out",
    type=_PATH,
    default=Path("out"),
    show_default=True,
    help="Where `build.py` left the images.",
)
@click.option(
    "--key-file",
    metavar="FILE",
    type=_PATH,
    help=f"The private key; without it {keys.VARIABLE} has it.",
)
@click.option("--previous", metavar="DIR", type=_PATH, help="The release that this one follows.")
@click.option(
    "--retirement-days",
    type=click.IntRange(0, 3650),
    default=make_module.RETIREMENT_DAYS,
    show_default=True,
    help="How long the previous release is still to be accepted.",
)
@click.option("--bundle", metavar="DIR", type=_PATH, help="Also keep all packages and wheels.")
@click.option(
    "--to",
    type=_PATH,
    default=Path("release"),
    show_default=True,
    help="Where the folder of the release goes.",
)
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def make(
    version: str,
    out: Path,
    key_file: Path | None,
    previous: Path | None,
    retirement_days: int,
    bundle: Path | None,
    to: Path,
    as_json: bool,
) -> None:
    """Make release VERSION of the images of all roles, from a clean checkout of their commit.

    Build them first: `python build.py --role all --locked`.
    """
    key = keys.private(key_file)
    public = key.public_key().public_bytes_raw()
    known = keys.pinned()
    request = make_module.Request(
        version=version,
        out=out.absolute(),
        to=to.absolute(),
        key=key,
        signer=next((one for one in known if one.public == public), keys.Key("given", public)),
        trusted=known,
        previous=previous,
        retirement_days=retirement_days,
        bundle=None if bundle is None else bundle.absolute(),
    )
    paths = Paths.of(ROOT)
    now = datetime.now(UTC).strftime("%Y%m%dT%H%M%SZ")
    logs = paths.cache / "logs" / f"{now}-{os.getpid()}-release"
    try:
        made = make_module.make(paths, request, Steps(Console(stderr=True, soft_wrap=True), logs))
    except OSError as error:
        raise explain_os_error(error) from error
    if as_json:
        document = {
            "schema": "zipnet.release-make/1",
            "version": version,
            "folder": str(made.folder),
            "commit": made.manifest.commit,
            "key": public.hex(),
            "files": len(made.manifest.files) + 2,
        }
        click.echo(json.dumps(document, indent=2, sort_keys=True))
    else:
        for name, value in (
            ("release", str(to / version)),
            ("commit", made.manifest.commit),
            ("key", f"{public.hex()}{' (demo)' if request.signer.demo else ''}"),
            ("images", ", ".join(entry.image.name for entry in made.manifest.roles)),
        ):
            click.echo(f"{name:<8}{value}")


@cli.command("verify")
@click.argument("folder", metavar="RELEASE", type=_PATH)
@click.option(
    "--key",
    required=True,
    metavar="KEY|pinned",
    help="The publisher's public key, 64 hex digits; `pinned`: those of this checkout.",
)
@click.option(
    "--role",
    "roles",
    multiple=True,
    type=click.Choice([str(role) for role in Role]),
    help="Only images of this role; may be repeated.",
)
@click.option("--artifacts", metavar="DIR", type=_PATH, help="Images to measure again.")
@click.option("--rebuild", is_flag=True, help="Build the images again and compare.")
@click.option(
    "--checkout",
    metavar="DIR",
    type=_PATH,
    default=ROOT,
    help="A clone that has the release's commit; by default the one that this program is in.",
)
@click.option("--bundle", metavar="DIR", type=_PATH, help="Rebuild from it, with no mirror at all.")
@click.option("--quote", metavar="FILE", type=_PATH, help="A binary quote of the release?")
@click.option("--node", metavar="URL", help="A node of the release? http://HOST:9464, its metrics.")
@click.option(
    "--collateral", metavar="FILE", type=_PATH, help="Intel's documents, instead of fetching them."
)
@click.option(
    "--tcb",
    multiple=True,
    metavar="STATE",
    default=("UpToDate",),
    show_default=True,
    help="A TCB state to accept; may be repeated.",
)
@click.option(
    "--mock-root", metavar="FILE", type=_PATH, help="Judge mock quotes; the root certificate, DER."
)
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def verify(
    folder: Path,
    key: str,
    roles: tuple[str, ...],
    artifacts: Path | None,
    rebuild: bool,
    checkout: Path,
    bundle: Path | None,
    quote: Path | None,
    node: str | None,
    collateral: Path | None,
    tcb: tuple[str, ...],
    mock_root: Path | None,
    as_json: bool,
) -> None:
    """Verify the release in the folder RELEASE, one line a step.

    `absent` is no fault where nothing was asked for. Exit code 0: all that was asked for is good.
    """
    if bundle is not None and not rebuild:
        raise click.UsageError("--bundle goes with --rebuild")
    if quote is not None and node is not None:
        raise click.UsageError("give --quote or --node, one at a time")
    request = verify_module.Request(
        folder=folder,
        key=key,
        now=datetime.now(UTC),
        roles=roles,
        artifacts=artifacts,
        checkout=checkout if rebuild else None,
        bundle=bundle,
        quote=quote,
        node=node,
        anchor=Anchor(collateral, mock_root, tcb),
    )
    outcomes = []
    for outcome in verify_module.verify(request, lambda line: click.echo(f"  | {line}", err=True)):
        outcomes.append(outcome)
        if not as_json:
            _show(outcome)
    code = verify_module.exit_code(outcomes)
    if as_json:
        document = {
            "schema": "zipnet.release-verify/1",
            "release": str(folder),
            "good": code == 0,
            "steps": [outcome.to_json() for outcome in outcomes],
        }
        click.echo(json.dumps(document, indent=2, sort_keys=True))
    sys.exit(code)


def _show(outcome: verify_module.Outcome) -> None:
    lead = f"{outcome.step:<{STEP_WIDTH}}  {outcome.state:<{STATE_WIDTH}}  "
    # The end of a program's output may be part of it.
    first, *more = outcome.detail.splitlines() or [""]
    for line in (f"{lead}{first}", *(f"{'':<{len(lead)}}{each}" for each in more)):
        click.echo(line.rstrip())
    for name, value in (("rule", outcome.rule), ("next", outcome.hint)):
        if value:
            click.echo(f"{'':<{len(lead)}}{name}: {value}")
