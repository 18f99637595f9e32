"""A sealer for nodes that draw new keys at each boot: nothing survives the process."""

from __future__ import annotations

from attestation.errors import SealUnavailable
from attestation.seal.base import absent, check_data, check_name


class MemorySealer:
    """Keeps copies in this process, and forgets them on `close`. Nothing is written anywhere."""

    __slots__ = ("_held",)

    def __init__(self) -> None:
        self._held: dict[str, bytes] | None = {}

    def seal(self, name: str, data: bytes) -> None:
        """As `Sealer.seal`, until this process ends."""
        held = self._open()
        check_name(name)
        check_data(data)
        held[name] = bytes(data)

    def unseal(self, name: str) -> bytes:
        """As `Sealer.unseal`, for what this very object has sealed."""
        held = self._open()
        check_name(name)
        data = held.get(name)
        if data is None:
            raise absent(name)
        return data

    def close(self) -> None:
        """Forget everything; twice is once."""
        self._held = None

    def _open(self) -> dict[str, bytes]:
        if self._held is None:
            raise SealUnavailable(
                "this sealer is closed",
                rule="seal.closed",
                hint="what was in it is gone: make another one, and draw new keys",
            )
        return self._held
