"""Release notes: Markdown and a self-contained page, both from `templates/notes.j2`.

The template says what is told; `markdown.j2` and `page.j2` have the same macros and say how a
heading, a table or a command is written in either. Values are not trusted: all that the template
prints is escaped, for the page by jinja2, for Markdown here.
"""

import re
from collections.abc import Callable, Mapping
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from attestation.measure.rtmr import BootPath
from release.changes import FIELDS, Cause, RoleChange, Status, between
from release.keys import Key
from release.manifest import Manifest, RoleEntry

# What CommonMark, or GitHub's dialect, may take for markup, a link or the begin of a block.
_ACTIVE = re.compile(
    r"[\\`*{}\[\]<>#!|~&@]|(?<![a-z0-9])_|_(?![a-z0-9])|^[-+=]|(?<=www)\.|:(?=//)", re.IGNORECASE
)
_NUMBERED = re.compile(r"^(\d+)(?=[.)])")


def render(
    manifest: Manifest,
    previous: Manifest | None,
    packages: Mapping[str, object],
    previous_packages: Mapping[str, object],
    signer: Key,
) -> tuple[str, str]:
    """The notes of a release that `signer` signs, as Markdown and as HTML.

    `packages` are decoded packages.json documents by role, `previous_packages` those of the release
    before. Raises BuildRefused for a packages.json of this release that is none.
    """
    changes = () if previous is None else between(manifest, previous, packages, previous_packages)
    moved = [change for change in changes if change.status is Status.MOVED]
    shared = _shared(moved)
    values = {
        "release": manifest,
        "previous": previous,
        "signer": signer,
        "images": [(entry.role, _registers(entry)) for entry in manifest.roles],
        "files": [file for entry in manifest.roles for file in (entry.image, entry.firmware)],
        "changes": changes,
        "moved": moved,
        "shared": shared,
        "own": [(change, _own(change, shared)) for change in moved],
    }
    return _render("markdown.j2", _markdown, values), _render("page.j2", _page, values)


def code_span(value: str) -> Markup:
    """Text as a Markdown code span, in which nothing is active, also inside a table."""
    text = _printable(value).replace("|", "\\|")
    runs = [len(run) for run in re.findall(r"`+", text)]
    fence = "`" * (max(runs, default=0) + 1)
    pad = " " if text.startswith("`") or text.endswith("`") else ""
    return Markup(f"{fence}{pad}{text}{pad}{fence}")  # noqa: S704 - Markdown, not HTML


def code_line(value: str) -> Markup:
    """Text as it is, for a line of an indented code block."""
    return Markup(_printable(value))  # noqa: S704 - Markdown, not HTML


def _render(layout: str, finalize: Callable[[Any], Any], values: Mapping[str, Any]) -> str:
    # autoescape for both: what jinja2 would write as HTML entities, `_markdown` has escaped before
    # and marked, so that macros nest in both alike.
    environment = Environment(
        loader=PackageLoader("release"),
        undefined=StrictUndefined,
        autoescape=True,
        finalize=finalize,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters |= {"code_span": code_span, "code_line": code_line}
    text = environment.get_template("notes.j2").render(layout=layout, **values)
    return re.sub(r"\n{3,}", "\n\n", text).strip("\n") + "\n"


def _printable(text: str) -> str:
    """Text without control, bidirectional or other characters that readers may not see."""
    return "".join(c if " " <= c <= "~" else ascii(c)[1:-1] for c in text)


def _page(value: object) -> object:
    """A value for jinja2 to escape."""
    return value if isinstance(value, Markup) else _printable(str(value))


def _markdown(value: object) -> Markup:
    if isinstance(value, Markup):
        return value
    escaped = _ACTIVE.sub(r"\\\g<0>", _printable(str(value)))
    return Markup(_NUMBERED.sub(r"\1\\", escaped))  # noqa: S704 - Markdown, not HTML


def _registers(entry: RoleEntry) -> list[tuple[str, str, str]]:
    """Host profile, register and value (hex) for the boot path that `run-qemu` takes."""
    return [
        (one.host_profile, register, getattr(one, field).hex())
        for one in entry.measurements.entries
        if one.boot_path is BootPath.KERNEL
        for register, field in FIELDS.items()
    ]


def _shared(moved: list[RoleChange]) -> list[Cause]:
    """The causes that all changed images have, to be told once."""
    if not moved:
        return []
    first, *others = moved
    return [cause for cause in first.causes if all(cause in other.causes for other in others)]


def _own(change: RoleChange, shared: list[Cause]) -> list[Cause]:
    return [cause for cause in change.causes if cause not in shared]
