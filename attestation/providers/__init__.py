"""Where quotes come from: `tsm` asks the kernel of a TDX guest."""

from typing import Protocol


class QuoteProvider(Protocol):
    """Something that makes quotes about the TD that it runs in."""

    def quote(self, report_data: bytes) -> bytes:
        """A quote that carries these 64 bytes, in the form of Intel's specification.

        Raises ProviderAbsent, ProviderFailed.
        """
        ...
