"""Where packages come from: base URLs by archive name, from --mirror or the host's apt settings."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from urllib.parse import urlsplit

from release.build.process import environment, run
from release.errors import MirrorError, ToolFailed

ARCHIVE_NAMES = ("debian", "debian-security", "ubuntu")
SCHEMES = ("http", "https", "file")
URL_LIMIT = 500


@dataclass(frozen=True, slots=True)
class Mirrors:
    """Base URL, without a slash at its end, of each known archive."""

    bases: tuple[tuple[str, str], ...]
    snapshot: str | None = None

    def base(self, archive: str) -> str:
        """The base URL of an archive. Raises MirrorError where nothing names one."""
        for name, url in self.bases:
            if name == archive:
                return url
        raise MirrorError(
            f"no mirror of the archive {archive!r} is known",
            expected="one from --mirror or among the sources of this host's apt",
            got=", ".join(name for name, _ in self.bases) or "none",
            rule="the builder names no mirror of its own",
            hint=f"pass --mirror {archive}=URL",
        )

    def locations(self, archive: str, path: str, timestamp: str) -> list[str]:
        """Where a pool file can be: the mirror, then the snapshot service at the lock's time."""
        found = [f"{self.base(archive)}/{path}"]
        if self.snapshot is not None:
            found.append(f"{self.snapshot}/archive/{archive}/{timestamp}/{path}")
        return found


def parse_url(url: str) -> str:
    """A base URL without the slash at its end. Raises MirrorError for anything else."""
    try:
        parts = urlsplit(url)
        good = parts.scheme in SCHEMES and bool(parts.netloc or parts.scheme == "file")
    except ValueError:
        good = False
    # The characters of RFC 3986 without quotes and brackets: the URL goes into apt's own files.
    plain = re.fullmatch(r"[A-Za-z0-9._~:/@!$&+,;=%-]+", url) is not None
    if not good or not plain or len(url) > URL_LIMIT:
        raise MirrorError(
            "a mirror's address can't be used",
            expected=f"a URL with one of the schemes {', '.join(SCHEMES)}",
            got=repr(url[:100]),
            rule="a mirror is a plain base URL",
            hint="give the part before /dists/, for example https://mirror.example/debian",
        )
    return url.rstrip("/")


def parse_option(text: str, default_archive: str) -> tuple[str, str]:
    """Parse `[ARCHIVE=]URL` of --mirror. Raises MirrorError."""
    name, separator, url = text.partition("=")
    if separator and name in ARCHIVE_NAMES:
        return name, parse_url(url)
    if separator and "/" not in name:
        raise MirrorError(
            "--mirror names an unknown archive",
            expected=", ".join(ARCHIVE_NAMES),
            got=repr(name[:100]),
            rule="--mirror is URL or ARCHIVE=URL",
        )
    return default_archive, parse_url(text)


def of_host() -> tuple[tuple[str, str], ...]:
    """The archives that this host's apt is configured for; the first of a kind wins."""
    # apt is only asked for the names: no index is fetched, and none need exist.
    lines = run(
        ["apt-get", "update", "--print-uris", "-o", "Dir::State::lists=/nonexistent"],
        env=environment(),
        hint="fix the sources of this host's apt, or pass --mirror",
    )
    found: dict[str, str] = {}
    for line in lines:
        match = re.match(r"'([^']+)/dists/", line)
        if match is None or not match[1].startswith(tuple(f"{s}:" for s in SCHEMES)):
            continue
        name = match[1].rstrip("/").rpartition("/")[2]
        if name in ARCHIVE_NAMES:
            found.setdefault(name, match[1].rstrip("/"))
    return tuple(found.items())


def choose(options: Sequence[str], default_archive: str, snapshot: str | None) -> Mirrors:
    """Combine --mirror with the host's archives; options win.

    A Debian mirror without a mate for security updates is taken to carry it beside itself, as
    Debian's mirrors do.
    """
    chosen = dict(parse_option(text, default_archive) for text in options)
    try:
        host = of_host()
    except ToolFailed:
        # Broken settings of apt are no reason to stop if --mirror says where packages are.
        if not chosen:
            raise
        host = ()
    merged = chosen | {
        name: url
        for name, url in host
        # A mirror given for Debian speaks for its security archive as well.
        if name not in chosen and not (name == "debian-security" and "debian" in chosen)
    }
    if "debian" in merged and "debian-security" not in merged:
        merged["debian-security"] = f"{merged['debian']}-security"
    return Mirrors(tuple(merged.items()), None if snapshot is None else parse_url(snapshot))
