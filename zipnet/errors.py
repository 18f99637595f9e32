"""The errors of this package.

Explained                      (attestation.errors)
└── ZipnetError                everything that `zipnet` raises
    └── NoTdx                  the role must be attested and this machine is no TDX guest (exit 3)
"""

from attestation.errors import Explained


class ZipnetError(Explained):
    """Root of everything that this package raises."""


class NoTdx(ZipnetError):
    """A role that peers admit only with a quote was started where there is no TDX."""

    exit_code = 3
