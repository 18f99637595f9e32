"""The errors of this package.

    Explained                      any error that says what was expected, what came, what to do next
    └── AttestationError           everything that `attestation` raises because of its input
        ├── FirmwareError
        │   ├── FirmwareFormatError    the bytes break the TDVF, volume or variable store format
        │   └── FirmwareRejected       well formed, but must not be bound, measured or used
        ├── PeFormatError              the bytes are no PE image that firmware would load
        ├── UkiRejected                a PE image, but not a unified kernel image we can predict
        ├── MeasurementFormatError     a measurement record or file breaks its schema
        ├── QuoteFormatError           the bytes are no quote as Intel specifies it
        ├── EventLogFormatError        the bytes are no event log of a TD
        ├── EventLogRejected           an event log that its quote, or its own digests, contradict
        ├── CollateralFormatError      the bytes are no collateral
        ├── CollateralRejected         collateral of another platform, older, or not asked for
        ├── CollateralUnavailable      none can be had that is valid now (exit code 3)
        ├── QuoteRejected              a quote that is not genuine, not current or not allowed
        ├── PolicyError                a policy that would accept everything or nothing
        ├── TicketFormatError          the bytes are no ticket or bundle
        ├── TicketRejected             a ticket that a validator refuses
        ├── AllowListRejected          a list of measurements that is malformed, unsigned or old
        ├── ProvisionFormatError       the bytes are no offer, grant or message of provisioning
        ├── ProvisionRefused           an offer or a grant that one side must not take; see `rule`
        ├── ProvisionUnavailable       the two sides can't reach each other (exit code 3)
        ├── EvidenceUnavailable        a node gives no evidence (exit code 3)
        ├── SealError                  sealed data can't be made or opened
        │   ├── SealFormatError        the bytes are no sealed data
        │   ├── SealRefused            sealed, but not for this state of this machine; see `rule`
        │   └── SealUnavailable        there is no device to seal with (exit code 3)
        ├── ProviderError              no quote can be had from this machine (exit code 3)
        │   ├── ProviderAbsent         there is no quote provider here
        │   └── ProviderFailed         the provider, the hypervisor or the quoting service failed
        └── FileError
            ├── FileUnreadable         missing, not permitted, not a file (exit code 3)
            └── FileTooLarge           larger than anything of its kind can be

Other packages derive their own trees from `Explained`. Whatever the bytes, input from outside
raises this tree only.
"""

from typing import ClassVar


class Explained(Exception):
    """An error for people: `str()` says what is wrong, `diagnostics()` also why and what next.

    `rule` names the violated check (stable, for tests and machines); `hint` is the next step.
    """

    exit_code: ClassVar[int] = 2

    def __init__(
        self, message: str, *, expected: str = "", got: str = "", rule: str = "", hint: str = ""
    ) -> None:
        super().__init__(message)
        self.message = message
        self.expected = expected
        self.got = got
        self.rule = rule
        self.hint = hint

    def __str__(self) -> str:
        parts = [self.message]
        if self.expected:
            parts.append(f"expected {self.expected}")
        if self.got:
            parts.append(f"got {self.got}")
        return ", ".join(parts)

    def diagnostics(self) -> str:
        """The whole story, one aspect a line."""
        lines = [str(self)]
        if self.rule:
            lines.append(f"  rule: {self.rule}")
        if self.hint:
            lines.append(f"  next: {self.hint}")
        return "\n".join(lines)


class AttestationError(Explained):
    """Root of everything that this package raises because of its input."""


class FirmwareError(AttestationError):
    """Something about a firmware image."""


class FirmwareFormatError(FirmwareError):
    """The bytes break the TDVF, firmware volume or variable store format."""


class FirmwareRejected(FirmwareError):
    """A well-formed firmware that must not be bound, measured or used; see `rule`."""


class PeFormatError(AttestationError):
    """The bytes are no PE/COFF image, or one that firmware would not load."""


class UkiRejected(AttestationError):
    """A PE image, but not a unified kernel image whose boot we can predict; see `rule`."""


class MeasurementFormatError(AttestationError):
    """A measurement record or file breaks its schema."""


class QuoteFormatError(AttestationError):
    """The bytes are no quote as Intel specifies it; see `rule`."""


class CollateralFormatError(AttestationError):
    """The bytes are no collateral; see `rule`."""


class CollateralRejected(AttestationError):
    """Well-formed collateral of another platform, older than what is known, or not asked for."""


class CollateralUnavailable(AttestationError):
    """No collateral can be had that is valid now; `rule` says where it ended."""

    exit_code = 3


class EventLogFormatError(AttestationError):
    """The bytes are no event log of a TD; see `rule`."""


class EventLogRejected(AttestationError):
    """An event log that the registers of its quote, or its own digests, contradict."""


class QuoteRejected(AttestationError):
    """A well-formed quote that is not genuine, not current or not allowed; see `rule`."""


class PolicyError(AttestationError):
    """A policy that would accept everything or nothing: a mistake of whoever wrote it."""


class TicketFormatError(AttestationError):
    """The bytes are no ticket or bundle; see `rule`."""


class TicketRejected(AttestationError):
    """A ticket that a validator refuses; see `rule`."""


class AllowListRejected(AttestationError):
    """A list of accepted measurements that is malformed, not signed as it must be, or too old."""


class ProvisionFormatError(AttestationError):
    """The bytes are no offer, grant or message of provisioning; see `rule`."""


class ProvisionRefused(AttestationError):
    """A well-formed offer or grant that one side must not take; see `rule`."""


class ProvisionUnavailable(AttestationError):
    """Guest and operator can't reach each other, or one of them went silent; see `rule`."""

    exit_code = 3


class EvidenceUnavailable(AttestationError):
    """A node can't be reached, or gives no evidence; see `rule`."""

    exit_code = 3


class SealError(AttestationError):
    """Sealed data can't be made or opened."""


class SealFormatError(SealError):
    """The bytes are no sealed data; see `rule`."""


class SealRefused(SealError):
    """Sealed data that this machine, in its present state, must not open; see `rule`."""


class SealUnavailable(SealError):
    """There is no device here to seal with, or it does not answer."""

    exit_code = 3


class ProviderError(AttestationError):
    """No quote can be had from this machine."""

    exit_code = 3


class ProviderAbsent(ProviderError):
    """There is no quote provider on this machine."""


class ProviderFailed(ProviderError):
    """The provider, the hypervisor or the quoting service failed; `rule` names the step."""


class FileError(AttestationError):
    """A file that should be input can't be taken in."""


class FileUnreadable(FileError):
    """The file is missing, is no regular file, or may not be read."""

    exit_code = 3


class FileTooLarge(FileError):
    """The file is larger than anything of its kind can be."""
