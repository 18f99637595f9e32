"""The errors of this package.

    Explained                      (attestation.errors)
    └── ZipnetError                everything that `zipnet` raises
        ├── NoTdx                  the role must be attested, and there is no TDX (exit code 3)
        ├── NoNetwork              a network that was named can not be reached (exit code 3)
        ├── ConfigRejected         a configuration file or value that describes no deployment
        ├── DatumRejected          a datum that does not encode to, or decode from, its exact size
        ├── DocumentRejected       an operators' document that is malformed, unsigned or out of turn
        ├── WireFormatError        the bytes are no message of this protocol
        ├── Refused                a well-formed message that a rule of the protocol refuses
        ├── GuardRefused           what this node itself must not do: seal or answer a round twice
        ├── CommandRefused         a command that the committee's state machine refuses
        ├── StateDamaged           a node's own record on disk is torn, altered or too large
        ├── SnapshotRejected       the bytes are no state of the machine, or of another one
        ├── LogBroken              the log is not the one that this node knows: it must stop
        ├── WrongUniverse          the network belongs to another universe
        ├── ConnectTimeout         no committee of this configuration answered in time (exit code 3)
        ├── Attestation            a server, or this node, does not pass the validators
        ├── Shutdown               the connection was closed by this side, or is being closed
        ├── Protocol               the other side broke the protocol, or refuses; `rule` says which
        └── EngineError            what a network engine answers instead of a result
            ├── CallRejected           a name, key, topic or number that no engine takes
            ├── Unavailable            no answer in time; it may have happened (exit code 3)
            ├── Conflict               `expect` did not hold; `actual` says what is there, if known
            ├── TooLarge               more bytes than a message may have
            ├── Denied                 this node is not admitted, or may not do this
            ├── Lagged                 a reader lost something; `missed` says how much, if known
            ├── BlobMissing            nobody has a blob of this digest
            ├── BlobAltered            what is stored under a digest has another one
            └── EngineMisconfigured    the engine is not set up as this deployment needs it

`rule` names the violated check. Whatever the bytes, input from outside raises this tree only.
"""

from attestation.errors import Explained


class ZipnetError(Explained):
    """Root of everything that this package raises."""


class NoTdx(ZipnetError):
    """A role that peers admit only with a quote was started where there is no TDX."""

    exit_code = 3


class NoNetwork(ZipnetError):
    """This process was told of no network, or of one that this version can't reach."""

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


class StateDamaged(ZipnetError):
    """A node's own record on disk is torn, altered or too large."""


class WrongUniverse(ZipnetError):
    """The network belongs to another universe than this program."""


class ConnectTimeout(ZipnetError):
    """No committee of this configuration answered in time."""

    exit_code = 3


class Attestation(ZipnetError):
    """A server, or this node, does not pass the validators of the deployment."""


class Shutdown(ZipnetError):
    """The connection was closed by this side, or is being closed."""


class Protocol(ZipnetError):
    """The other side broke the protocol, or refuses what was asked; `rule` says why."""


class EngineError(ZipnetError):
    """What a network engine answers instead of a result."""


class CallRejected(EngineError):
    """A name, key, topic, pattern or number that no engine takes; nothing was sent."""


class Unavailable(EngineError):
    """No engine or answer in time: what was asked for may or may not have happened.

    Try again with the same key and bytes, never with new ones; or wait, and read the log.
    """

    exit_code = 3


class Conflict(EngineError):
    """`expect` did not hold. `actual` is advisory: it may count what is still being decided."""

    def __init__(
        self,
        message: str,
        *,
        actual: int | None,
        expected: str = "",
        got: str = "",
        rule: str = "",
        hint: str = "",
    ) -> None:
        super().__init__(message, expected=expected, got=got, rule=rule, hint=hint)
        self.actual = actual


class TooLarge(EngineError):
    """More bytes than `Network.max_message`; large data go into `Blobs`, their digest here."""


class Denied(EngineError):
    """This node is not admitted, or may not do this. Stop, and tell the operator."""


class Lagged(EngineError):
    """A reader lost `missed` messages (None if nobody counted): read again what has to be known."""

    def __init__(
        self,
        message: str,
        *,
        missed: int | None,
        expected: str = "",
        got: str = "",
        rule: str = "",
        hint: str = "",
    ) -> None:
        super().__init__(message, expected=expected, got=got, rule=rule, hint=hint)
        self.missed = missed


class BlobMissing(EngineError):
    """Nobody has a blob of this digest (yet)."""


class BlobAltered(EngineError):
    """What is stored under a digest has another one."""


class EngineMisconfigured(EngineError):
    """The engine is not set up as this deployment needs it. Stop, and tell the operator."""
