"""What the tests of the builder share: little packages, a signed archive, fake programs."""

import hashlib
import json
import shutil
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from attestation.errors import Explained
from release.build.deb import Deb
from release.build.mirror import Mirrors

ROOT = Path(__file__).parents[3]
VECTORS = ROOT / "tests" / "vectors" / "build"
TIMESTAMP = "20260102T030405Z"
RELEASED = "Fri, 02 Jan 2026 03:04:05 UTC"


def vectors(name: str) -> dict[str, Any]:
    loaded: dict[str, Any] = json.loads((VECTORS / name).read_text())
    return loaded


@contextmanager
def refused(kind: type[Explained], words: str, rule: str = "") -> Iterator[list[Explained]]:
    """The block must raise exactly this kind of error, with these words in what it says."""
    caught: list[Explained] = []
    with pytest.raises(Explained) as info:
        yield caught
    caught.append(info.value)
    assert type(info.value) is kind
    text = info.value.diagnostics()
    assert words in text
    assert rule in info.value.rule
    text.encode()


def deb(name: str = "alpha", version: str = "1.0", data: bytes = b"bytes", **more: Any) -> Deb:
    """A package value whose file would hold `data`."""
    values: dict[str, Any] = {
        "name": name,
        "version": version,
        "architecture": "amd64",
        "sha256": hashlib.sha256(data).hexdigest(),
        "size": len(data),
        "archive": "debian",
        "path": f"pool/main/{name[0]}/{name}/{name}_{version.replace(':', '%3a')}_amd64.deb",
    }
    return Deb(**(values | more))


def program(folder: Path, name: str, script: str) -> Path:
    """A program in a folder; `script` is for /bin/sh."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / name
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)
    return path


def tree(folder: Path) -> dict[str, bytes | None]:
    """Everything below a folder: relative path to content, None for folders and links."""
    return {
        str(path.relative_to(folder)): path.read_bytes()
        if path.is_file() and not path.is_symlink()
        else None
        for path in sorted(folder.rglob("*"))
    }


def build_deb(
    pool: Path,
    name: str,
    version: str,
    files: Mapping[str, bytes],
    fields: Mapping[str, str] | None = None,
    executable: bool = False,
) -> Path:
    """A real package file in the pool folder, by dpkg-deb."""
    content = pool / f".{name}"
    (content / "DEBIAN").mkdir(parents=True)
    for path, data in files.items():
        target = content / path
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(data)
        target.chmod(0o755 if executable else 0o644)
    control = {
        "Package": name,
        "Version": version,
        "Architecture": "amd64",
        "Maintainer": "Test <test@example.org>",
        "Description": "for a test",
    } | dict(fields or {})
    text = "".join(f"{key}: {value}\n" for key, value in control.items())
    (content / "DEBIAN" / "control").write_text(text)
    target = pool / f"{name}_{version.rpartition(':')[2]}_{control['Architecture']}.deb"
    subprocess.run(
        ["dpkg-deb", "--root-owner-group", "-Znone", "--build", content, target],
        check=True,
        capture_output=True,
    )
    shutil.rmtree(content)
    return target


def described(path: Path, relative: str) -> tuple[str, Deb]:
    """The paragraph of a Packages file, and the value that the builder should make of it."""
    control = subprocess.run(
        ["dpkg-deb", "--field", path], check=True, capture_output=True, text=True
    ).stdout
    data = path.read_bytes()
    sha256 = hashlib.sha256(data).hexdigest()
    fields = dict(line.split(": ", 1) for line in control.splitlines() if ": " in line)
    value = Deb(
        name=fields["Package"],
        version=fields["Version"],
        architecture=fields["Architecture"],
        sha256=sha256,
        size=len(data),
        archive="debian-security" if relative.startswith("pool/updates/") else "debian",
        path=relative,
    )
    return f"{control}Filename: {relative}\nSize: {len(data)}\nSHA256: {sha256}\n", value


@dataclass
class Repository:
    """A Debian archive in a folder, for file:// URLs, signed by a key that lives for one run."""

    folder: Path
    gnupg: Path
    keyring: Path
    suites: dict[tuple[str, str], list[str]] = field(default_factory=dict)
    debs: dict[str, Deb] = field(default_factory=dict)

    @property
    def mirrors(self) -> Mirrors:
        return Mirrors(
            tuple((n, (self.folder / n).as_uri()) for n in ("debian", "debian-security"))
        )

    def add(
        self,
        suite: str,
        name: str,
        version: str = "1.0",
        *,
        files: Mapping[str, bytes] | None = None,
        archive: str = "debian",
        executable: bool = False,
        **fields: str,
    ) -> Deb:
        """Put a package into a suite."""
        inside = f"pool/{'updates/' if archive == 'debian-security' else ''}main/{name[0]}/{name}"
        pool = self.folder / archive / inside
        pool.mkdir(parents=True, exist_ok=True)
        path = build_deb(pool, name, version, files or {}, fields, executable)
        text, value = described(path, f"{inside}/{path.name}")
        self.suites.setdefault((archive, suite), []).append(text)
        self.debs[name] = value
        return value

    def file(self, value: Deb) -> Path:
        return self.folder / value.archive / value.path

    def publish(self, date: str = RELEASED) -> None:
        """Write and sign the indices of every suite."""
        for (archive, suite), texts in self.suites.items():
            dists = self.folder / archive / "dists" / suite
            index = "\n".join(texts).encode()
            for name in ("main/binary-amd64/Packages", "main/binary-all/Packages"):
                path = dists / name
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(index if "amd64" in name else b"")
            lines = [f" {_sum(dists / n)} {n}" for n in ("main/binary-amd64/Packages",)]
            codename = suite
            release = (
                f"Origin: Test\nSuite: {suite}\nCodename: {codename}\nDate: {date}\n"
                "Architectures: amd64\nComponents: main\nSHA256:\n" + "\n".join(lines) + "\n"
            )
            (dists / "Release").write_text(release)
            self._gpg("--yes", "--clearsign", "-o", dists / "InRelease", dists / "Release")

    def _gpg(self, *arguments: str | Path) -> None:
        command: list[str | Path] = [
            "gpg",
            "--homedir",
            self.gnupg,
            "--batch",
            "--quiet",
            "--no-tty",
        ]
        subprocess.run([*command, *arguments], check=True, capture_output=True)

    def make_key(self) -> None:
        """Make the key that signs, and its keyring. It has no passphrase and lives in tmp_path."""
        self.gnupg.mkdir(mode=0o700)
        self._gpg("--passphrase", "", "--quick-gen-key", "zipnet test", "ed25519", "sign", "never")
        self._gpg("--export", "-o", self.keyring)

    def close(self) -> None:
        """End the agent that gpg has started for the key."""
        subprocess.run(
            ["gpgconf", "--homedir", self.gnupg, "--kill", "all"], check=False, capture_output=True
        )


def _sum(path: Path) -> str:
    data = path.read_bytes()
    return f"{hashlib.sha256(data).hexdigest()} {len(data)}"


def needs(*programs: str) -> None:
    """Skip where the host lacks programs that a test is made with."""
    missing = [name for name in programs if shutil.which(name) is None]
    if missing:
        pytest.skip(f"this host has no {', '.join(missing)}")


def strings(value: Sequence[object]) -> list[str]:
    return [str(item) for item in value]
