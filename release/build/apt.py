"""A private apt root: resolves package sets against signed indices, apart from the host's apt."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from pathlib import Path

from release.build.deb import Deb
from release.build.mirror import Mirrors
from release.build.process import run
from release.build.settings import Archive, PackageSet
from release.errors import HostError, MirrorError, ToolFailed

FIELDS = {
    "Package": "name",
    "Version": "version",
    "Architecture": "architecture",
    "SHA256": "sha256",
    "Size": "size",
    "Filename": "path",
}


@dataclass(frozen=True, slots=True)
class AptRoot:
    """apt's configuration, state and cache in a folder of ours, for one group of suites.

    The host's apt programs are used, none of its sources, pins, hooks or installed packages:
    every set is resolved as if nothing were installed.
    """

    folder: Path
    archives: tuple[Archive, ...]
    mirrors: Mirrors
    keyring: Path

    def prepare(self) -> None:
        """Write the configuration. Raises HostError without the archive's keyring."""
        if not self.keyring.is_file():
            raise HostError(
                "the keyring of a package archive is missing on this host",
                expected=str(self.keyring),
                rule="package indices are accepted only with a good signature",
                hint="install the package debian-archive-keyring",
            )
        for name in ("state/lists/partial", "cache/archives/partial", "etc/parts", "etc/sources"):
            (self.folder / name).mkdir(parents=True, exist_ok=True)
        (self.folder / "state/status").write_bytes(b"")
        sources = [
            f"Types: deb\nURIs: {self.mirrors.base(archive.name)}\n"
            f"Suites: {' '.join(archive.suites)}\nComponents: {' '.join(archive.components)}\n"
            f"Architectures: amd64\nSigned-By: {self.keyring}\n"
            for archive in self.archives
        ]
        (self.folder / "etc/sources/build.sources").write_text("\n".join(sources), "utf-8")
        (self.folder / "apt.conf").write_text(self._configuration(), "utf-8")

    def _configuration(self) -> str:
        settings = {
            "Dir": self.folder,
            "Dir::State": self.folder / "state",
            "Dir::State::status": self.folder / "state/status",
            "Dir::Cache": self.folder / "cache",
            "Dir::Etc": self.folder / "etc",
            "Dir::Etc::main": "/dev/null",
            "Dir::Etc::parts": self.folder / "etc/parts",
            "Dir::Etc::sourcelist": "/dev/null",
            "Dir::Etc::sourceparts": self.folder / "etc/sources",
            "Dir::Etc::preferences": "/dev/null",
            "Dir::Etc::preferencesparts": self.folder / "etc/parts",
            "Dir::Etc::trusted": "/dev/null",
            "Dir::Etc::trustedparts": self.folder / "etc/parts",
            "APT::Architecture": "amd64",
            "APT::Architectures": "amd64",
            "APT::Install-Recommends": "false",
            "APT::Get::Assume-Yes": "true",
            "APT::Sandbox::User": "root",
            # mkosi does the same: apt itself is not essential to an image.
            "pkgCacheGen::ForceEssential": ",",
            "Acquire::Languages": "none",
            "Acquire::Retries": "3",
            "Acquire::http::Timeout": "60",
            # A frozen mirror must stay usable: its age is printed, the lock says what changed.
            "Acquire::Check-Valid-Until": "false",
        }
        # How this host reaches its network is the host's business: proxies and certificates stay.
        network = [
            line
            for line in run(["apt-config", "dump", "Acquire"])
            if re.match(r"Acquire::https?::(\S+::)?(Proxy|Proxy-Auto-Detect|CaInfo|CaPath)\b", line)
        ]
        return "".join(f'{name} "{value}";\n' for name, value in settings.items()) + "".join(
            f"{line}\n" for line in network
        )

    def _apt(self, program: str, *arguments: str, log: Path) -> list[str]:
        env = {"APT_CONFIG": str(self.folder / "apt.conf"), "DEBIAN_FRONTEND": "noninteractive"}
        return run([program, *arguments], env=env, log=log)

    def update(self, log: Path) -> None:
        """Fetch and check the indices. Raises MirrorError if any suite can't be had."""
        try:
            lines = self._apt("apt-get", "update", "--error-on=any", log=log)
        except ToolFailed as error:
            raise MirrorError(
                "the package indices can't be had",
                # A line of the first kind has the reason, the others only the address.
                got=next(
                    (t for start in ("E:", "Err:") for t in error.tail if t.startswith(start)),
                    "see the log",
                )[:300],
                rule="every suite has an index with a good signature",
                hint="check the network and the address given by --mirror or this host's apt; "
                f"the log is {log}",
            ) from error
        if any(line.startswith("W: GPG error") for line in lines):
            raise MirrorError(
                "a package index has no good signature",
                rule="package indices are accepted only with a good signature",
                hint=f"the log is {log}; a newer debian-archive-keyring may be needed",
            )

    def released(self) -> datetime:
        """When the newest of the suites was published (UTC), by its signed Release file."""
        dates = []
        for path in sorted((self.folder / "state/lists").glob("*_InRelease")):
            match = re.search(r"^Date: (.+)$", path.read_text("utf-8", "replace"), re.MULTILINE)
            if match:
                dates.append(parsedate_to_datetime(match[1]).astimezone(UTC))
        if not dates:
            raise MirrorError("no package index has been fetched", rule="update comes before use")
        return max(dates)

    def resolve(self, wanted: PackageSet, log: Path) -> tuple[Deb, ...]:
        """The closure of a set (or its members alone), sorted by name.

        Raises MirrorError if apt finds no solution.
        """
        arguments = list(wanted.packages)
        if wanted.essential:
            arguments += ["?essential", "base-files"]
        try:
            if wanted.closure:
                lines = self._apt(
                    "apt-get", "install", "--print-uris", "--quiet", *arguments, log=log
                )
                names = [_split(line.split()[1]) for line in lines if line.startswith("'")]
            else:
                names = [(name, "") for name in arguments]
            selectors = [f"{name}={version}" if version else name for name, version in names]
            shown = self._apt("apt-cache", "show", "--no-all-versions", *selectors, log=log)
        except ToolFailed as error:
            raise MirrorError(
                f"the package set {wanted.name!r} has no solution",
                got=next((line for line in error.tail if line.startswith("E:")), "see the log")[
                    :300
                ],
                rule="every package and its dependencies are in the archive",
                hint=f"the log is {log}",
            ) from error
        debs = tuple(sorted(self._records(shown)))
        if len(debs) != len(names):
            raise MirrorError(
                f"apt described {len(debs)} of the {len(names)} packages of {wanted.name!r}",
                rule="every resolved package has one description",
                hint=f"the log is {log}",
            )
        return debs

    def _records(self, lines: Sequence[str]) -> list[Deb]:
        records: list[dict[str, str]] = [{}]
        for line in lines:
            if not line:
                records.append({})
                continue
            name, separator, value = line.partition(": ")
            if separator and name in FIELDS:
                records[-1][FIELDS[name]] = value
        return [
            Deb.parse(
                {
                    **record,
                    "size": int(record["size"]) if record.get("size", "").isdecimal() else -1,
                    "archive": self._archive(record.get("path", "")),
                }
            )
            for record in records
            if record
        ]

    def _archive(self, path: str) -> str:
        # Debian's security archive has a pool of its own, named so in every path below it.
        for archive in self.archives:
            if path.startswith("pool/updates/") == (archive.name == "debian-security"):
                return archive.name
        return self.archives[0].name


def _split(file: str) -> tuple[str, str]:
    name, version, _ = file.split("_")
    return name, version.replace("%3a", ":")
