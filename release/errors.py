"""The errors of this package.

Explained                      (attestation.errors)
└── ReleaseError               everything that `release` and `build.py` raise
    ├── BuildRefused           something came out, or went in, that must not be shipped
    │   ├── LockError          a lock file breaks its schema, or a package breaks the lock
    │   ├── OutputRefused      the output folder is not ours to write
    │   ├── ProofFailed        the boot proof of a build did not hold
    │   ├── NotReproducible    two builds of one tree differ
    │   └── NotReleasable      builds that no release may be made of
    ├── ReleaseFormatError     the bytes are no manifest, envelope or other file of a release
    ├── ReleaseRejected        a release that is not signed, not whole, or not what it says
    └── HostError              this machine lacks something (exit code 3)
        ├── MirrorError        packages can't be had from where they should come
        └── ToolFailed         a program that we started failed
"""

from pathlib import Path

from attestation.errors import Explained


class ReleaseError(Explained):
    """Root of everything that this package raises."""


class BuildRefused(ReleaseError):
    """A build that must not be shipped, or an input that no build may use."""


class LockError(BuildRefused):
    """A lock that can't be read, or bytes that are not the locked ones."""


class OutputRefused(BuildRefused):
    """The output folder holds what this program did not write."""


class ProofFailed(BuildRefused):
    """The bound firmware did not start what it must start, or started what it must refuse."""


class NotReproducible(BuildRefused):
    """Two builds of one tree and lock differ."""


class NotReleasable(BuildRefused):
    """Outputs of builds, or a tree, that no release may be made of; see `rule`."""


class ReleaseFormatError(ReleaseError):
    """The bytes are no manifest, envelope, list of keys or list of sums; see `rule`."""


class ReleaseRejected(ReleaseError):
    """A well-formed release that must not be trusted; see `rule`."""


class HostError(ReleaseError):
    """This machine lacks something that the build needs."""

    exit_code = 3


class MirrorError(HostError):
    """A package can't be fetched, or its archive can't be read."""


class ToolFailed(HostError):
    """A program failed; `tail` holds the last lines that it printed, `log` the rest."""

    def __init__(
        self, message: str, *, tail: tuple[str, ...], log: Path | None = None, hint: str = ""
    ) -> None:
        super().__init__(
            message, rule="a program that the build runs ends with status 0", hint=hint
        )
        self.tail = tail
        self.log = log

    def diagnostics(self) -> str:
        """The story with the end of the program's own output."""
        lines = [str(self), *(f"  | {line}" for line in self.tail)]
        if self.log is not None:
            lines.append(f"  log:  {self.log}")
        if self.hint:
            lines.append(f"  next: {self.hint}")
        return "\n".join(lines)
