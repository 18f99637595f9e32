"""The click group that gives all our commands their exit codes.

0 good, 1 usage, 2 invalid (refused by a check), 3 environment. Light to import: the guest's own
program uses it too.
"""

import sys
from collections.abc import Sequence
from typing import Any

import click

from attestation.errors import Explained


class ExplainedGroup(click.Group):
    """A click group whose commands may raise `Explained`: diagnostics on stderr, its exit code.

    Usage errors exit with 1, not with click's 2, which here means "refused by a check".
    """

    def main(  # type: ignore[override]  # click's overloads differ from version to version
        self, args: Sequence[str] | None = None, *, standalone_mode: bool = True, **extra: Any
    ) -> Any:
        """As `click.Group.main`; exits the process only in standalone mode."""
        if not standalone_mode:
            return super().main(args, standalone_mode=False, **extra)
        try:
            code = super().main(args, standalone_mode=False, **extra)
        except Explained as error:
            click.echo(f"error: {error.diagnostics()}", err=True)
            code = error.exit_code
        except click.ClickException as error:
            error.show()
            code = 1
        except click.Abort:
            click.echo("aborted", err=True)
            code = 1
        sys.exit(code if isinstance(code, int) else 0)
