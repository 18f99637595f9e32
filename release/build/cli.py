"""The command line of `build.py`: without a verb it builds."""

from __future__ import annotations

import json
import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from types import FrameType
from typing import NoReturn

import click
from rich.console import Console
from rich.table import Table

from attestation.commands.group import ExplainedGroup
from release.build import again, bootstrap, doctor, mirror
from release.build.console import Steps
from release.build.mirror import Mirrors
from release.build.pipeline import Builder, Built, Request, as_json, explain_os_error
from release.build.relock import relock
from release.build.settings import (
    COMPRESS_LEVEL,
    DISTRIBUTIONS,
    Distribution,
    Flavor,
    Paths,
    Role,
    host_distribution,
)
from release.build.supply import Supply
from release.bundle import Bundle

ALL = "all"


def main(root: Path) -> NoReturn:
    """Run the command line of the checkout at `root`; never returns."""
    signal.signal(signal.SIGTERM, _terminated)
    # Whatever the caller's umask is: folders and files of a build have the same modes everywhere.
    os.umask(0o022)
    cli(obj=Paths.of(root), prog_name="build.py")
    raise AssertionError("click exits")


def _terminated(_number: int, _frame: FrameType | None) -> NoReturn:
    # As an exception, so that every half-written folder and started program is cleaned up.
    raise KeyboardInterrupt


ROLE = click.option(
    "--role",
    "roles",
    multiple=True,
    type=click.Choice([*map(str, Role), ALL]),
    help="What to build; may be repeated.",
)
DISTRIBUTION = click.option(
    "--distribution",
    type=click.Choice(list(DISTRIBUTIONS)),
    help="What images are made of; by default the host's own.",
)
MIRROR = click.option(
    "--mirror",
    "mirrors",
    multiple=True,
    metavar="[ARCHIVE=]URL",
    help="Where packages come from; by default from where this host's apt takes them.",
)
SNAPSHOT = click.option(
    "--snapshot",
    envvar="ZIPNET_SNAPSHOT",
    metavar="URL",
    help="A snapshot service, for locked packages that the mirror no longer has.",
)
JSON = click.option("--json", "as_json_", is_flag=True, help="Print the result as JSON.")
VERBOSE = click.option("-v", "--verbose", is_flag=True, help="Show what mkosi prints.")


@click.group(cls=ExplainedGroup, invoke_without_command=True)
@ROLE
@DISTRIBUTION
@MIRROR
@SNAPSHOT
@click.option(
    "--flavor",
    type=click.Choice([str(flavor) for flavor in Flavor]),
    default=str(Flavor.PRODUCTION),
    help="`mock` is for emulation and CI; its measurements are marked and not accepted elsewhere.",
)
@click.option(
    "--compress-level",
    type=click.IntRange(1, COMPRESS_LEVEL),
    default=COMPRESS_LEVEL,
    show_default=True,
    help="zstd level of the initrd: 3 makes a quick build, releases have the default.",
)
@click.option("--locked", is_flag=True, help="Build exactly what images/locks/ names.")
@click.option(
    "--out",
    type=click.Path(path_type=Path, file_okay=True),
    default=Path("out"),
    show_default=True,
    help="Where the folder of each role goes.",
)
@click.option(
    "--skip-boot-proof",
    is_flag=True,
    help="Don't show that the firmware enforces its policy. Recorded; refused by peers.",
)
@click.option(
    "--check-reproducible", is_flag=True, help="Build a second time elsewhere and compare."
)
@click.option("--print-config", is_flag=True, help="Print mkosi's resolved configuration and stop.")
@click.option(
    "--bundle",
    type=click.Path(path_type=Path, exists=True, file_okay=False),
    help="Take packages and wheels from this folder only; with --locked.",
)
@click.option("--locks", type=click.Path(path_type=Path), hidden=True)
@click.option("--vary", is_flag=True, hidden=True)
@JSON
@VERBOSE
@click.pass_context
def cli(
    context: click.Context,
    roles: tuple[str, ...],
    distribution: str | None,
    mirrors: tuple[str, ...],
    snapshot: str | None,
    flavor: str,
    compress_level: int,
    locked: bool,
    out: Path,
    skip_boot_proof: bool,
    check_reproducible: bool,
    print_config: bool,
    bundle: Path | None,
    locks: Path | None,
    vary: bool,
    as_json_: bool,
    verbose: bool,
) -> None:
    """Build measured zipnet appliances: `build.py --role server`.

    Each role gets a folder below --out with a bootable image, the firmware that admits only it,
    its MR_TD and everything that is needed to check them. Exit codes: 0 good, 1 usage, 2 refused by
    a check, 3 this machine or its network.
    """
    if context.invoked_subcommand is not None:
        return
    if not roles:
        raise click.UsageError("say what to build: --role server, aggregator, client or all")
    if bundle is not None and (not locked or mirrors or snapshot):
        raise click.UsageError("--bundle goes with --locked, and with no mirror")
    paths: Paths = context.obj
    chosen = _distribution(distribution)
    builder = _builder(paths, chosen, mirrors, snapshot, locked, locks, verbose, bundle)
    request = Request(
        roles=_roles(roles),
        distribution=chosen,
        flavor=Flavor(flavor),
        out=out.absolute(),
        compress_level=compress_level,
        skip_boot_proof=skip_boot_proof,
        vary=vary,
    )
    with _explained():
        if print_config:
            click.echo(builder.print_config(request), nl=False)
            return
        result = builder.build(request)
        if check_reproducible:
            again.check(builder, request, result)
    if as_json_:
        click.echo(as_json(result.built, builder.steps.timings))
    else:
        _show(result.built, out)


@cli.command("lock")
@DISTRIBUTION
@MIRROR
@click.option("--python", is_flag=True, help="Resolve requirements.lock anew instead.")
@VERBOSE
@click.pass_obj
def lock_command(
    paths: Paths,
    distribution: str | None,
    mirrors: tuple[str, ...],
    python: bool,
    verbose: bool,
) -> None:
    """Write images/locks/ from the mirror's current packages (or requirements.lock)."""
    chosen = _distribution(distribution)
    builder = _builder(paths, chosen, mirrors, None, False, None, verbose)
    with _explained():
        if python:
            with builder.steps.step("resolve Python dependencies") as step:
                step.note(f"{relock(paths.root, step.log)} packages in requirements.lock")
            return
        request = Request(tuple(Role), chosen, Flavor.PRODUCTION, paths.root / "out")
        for path in builder.lock(request):
            click.echo(path.relative_to(paths.root))


@cli.command("doctor")
@DISTRIBUTION
@MIRROR
@JSON
@click.pass_obj
def doctor_command(
    paths: Paths, distribution: str | None, mirrors: tuple[str, ...], as_json_: bool
) -> None:
    """Tell what this host lacks for a build, and what to do about it."""
    findings = list(doctor.examine(paths, _distribution(distribution), mirrors))
    if as_json_:
        rows = [
            {"check": f.check, "status": f.status, "detail": f.detail, "hint": f.hint}
            for f in findings
        ]
        click.echo(json.dumps({"schema": "zipnet.doctor/1", "findings": rows}, indent=2))
    else:
        width = max(len(f.check) for f in findings)
        for f in findings:
            click.echo(f"{f.check:<{width}}  {f.status:<4}  {f.detail}")
            if f.hint:
                click.echo(f"{'':<{width}}        next: {f.hint}")
    if any(f.status is doctor.Status.BAD for f in findings):
        sys.exit(3)


class _Unparsed(click.Command):
    """A command whose arguments are another program's, `--` included, but for --help alone."""

    def parse_args(self, context: click.Context, args: list[str]) -> list[str]:
        """Leave `args` as they are."""
        if args == ["--help"]:
            return super().parse_args(context, args)
        context.args = args
        return args


@cli.command("test", cls=_Unparsed)
@click.pass_context
def test_command(context: click.Context) -> None:
    """Run the tests: every environment of tox.ini, or `build.py test -e unit -- -k quote`."""
    paths: Paths = context.obj
    environment = bootstrap.ensure(paths.root, paths.cache, "dev")
    python = environment / "bin" / "python"
    os.chdir(paths.root)
    os.execv(python, [str(python), "-m", "tox", *context.args])


@contextmanager
def _explained() -> Iterator[None]:
    """Errors of the operating system, a full disk above all, as errors with a next step."""
    try:
        yield
    except OSError as error:
        raise explain_os_error(error) from error


def _distribution(name: str | None) -> Distribution:
    return host_distribution() if name is None else DISTRIBUTIONS[name]


def _roles(names: tuple[str, ...]) -> tuple[Role, ...]:
    return tuple(role for role in Role if ALL in names or role in names)


def _builder(
    paths: Paths,
    distribution: Distribution,
    mirrors: tuple[str, ...],
    snapshot: str | None,
    locked: bool,
    locks: Path | None,
    verbose: bool,
    bundle: Path | None = None,
) -> Builder:
    now = datetime.now(UTC).strftime("%Y%m%dT%H%M%SZ")
    console = Console(stderr=True, soft_wrap=True)
    kept = None if bundle is None else Bundle.open(bundle)
    # Whoever has a bundle needs no mirror, nor an apt that knows one.
    chosen = (
        Mirrors(()) if kept else mirror.choose(mirrors, distribution.archives[0].name, snapshot)
    )
    return Builder(
        paths,
        Supply(paths.cache, (locks or paths.locks).absolute(), chosen, locked, kept),
        Steps(console, paths.cache / "logs" / f"{now}-{os.getpid()}", verbose),
    )


def _show(built: tuple[Built, ...], out: Path) -> None:
    table = Table(box=None, pad_edge=False)
    for column in ("role", "folder", "UKI MiB", "boot proof", "model", "MR_TD"):
        table.add_column(column, no_wrap=True)
    for each in built:
        size = (each.folder / f"zipnet-{each.role}.efi").stat().st_size / (1 << 20)
        cells = (each.boot_proof, each.model, each.upstream()[0].hex())
        table.add_row(str(each.role), str(out / each.role), f"{size:.1f}", *cells)
    # A pipe has no width: nothing of a measurement may be cut off.
    Console(width=max(200, Console().width), soft_wrap=True).print(table)
