"""The errors of this package.

    Explained                      (attestation.errors)
    └── ZipnetError                everything that `zipnet` raises
        ├── NoTdx                  the role must be attested, and there is no TDX (exit code 3)
        ├── ConfigRejected         a configuration file or value that describes no deployment
        ├── DatumRejected          a datum that does not encode to, or decode from, its exact size
        ├── DocumentRejected       an operators' document that is malformed, unsigned or out of turn
        ├── WireFormatError        the bytes are no message of this protocol
        ├── Refused                a well-formed message that a rule of the protocol refuses
        ├── GuardRefused           what this node itself must not do: seal or answer a round twice
        ├── CommandRefused         a command that the committee's state machine refuses
        ├── SnapshotRejected       the bytes are no state of the machine, or of another one
        └── LogBroken              the log is not the one that this node knows: it must stop

`rule` names the violated check. Whatever the bytes, input from outside raises this tree only.
"""

from attestation.errors import Explained


class ZipnetError(Explained):
    """Root of everything that this package raises."""


class NoTdx(ZipnetError):
    """A role that peers admit only with a quote was started where there is no TDX."""

    exit_code = 3


class ConfigRejected(ZipnetError):
    """A configuration file or value that describes no deployment; see `rule`."""


class DatumRejected(ZipnetError):
    """A datum that does not encode to, or decode from, exactly its wire size."""


class DocumentRejected(ZipnetError):
    """An operators' document that is malformed, not signed as it must be, or out of turn."""


class WireFormatError(ZipnetError):
    """The bytes are no message of this protocol in its one canonical form; see `rule`."""


class Refused(ZipnetError):
    """A well-formed message that a rule of the protocol refuses; see `rule`."""


class GuardRefused(ZipnetError):
    """What this node must not do whoever asks: seal a round twice, go back, act as a clone."""


class CommandRefused(ZipnetError):
    """A command that the committee's state machine refuses; the state is as before."""


class SnapshotRejected(ZipnetError):
    """The bytes are no state of the committee's machine, or that of another deployment."""


class LogBroken(ZipnetError):
    """The log lost, repeated or changed entries. A node that sees this must stop, loudly."""
