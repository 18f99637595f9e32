"""What every sealer does, and what it takes."""

from __future__ import annotations

import re
from typing import Protocol

from attestation.errors import SealRefused

MAX_DATA = 64 << 10
NAME = re.compile(r"[a-z][a-z0-9-]{0,31}")


class Sealer(Protocol):
    """Keeps bytes under names, for the machine and the state that sealed them.

    A name is `[a-z][a-z0-9-]{0,31}`, data at most MAX_DATA bytes.
    """

    def seal(self, name: str, data: bytes) -> None:
        """Replace what the name held; as durable as the sealer can make it when this returns.

        Raises SealRefused for a name or data that it doesn't take, SealError if it can't seal.
        """
        ...

    def unseal(self, name: str) -> bytes:
        """What the name holds: the newest data that was sealed under it.

        Raises SealRefused (not here, not now, not anything newer), SealFormatError,
        SealUnavailable.
        """
        ...


def check_name(name: str) -> None:
    """Raise SealRefused, rule `seal.name`, for anything that is no name."""
    if NAME.fullmatch(name) is None:
        raise SealRefused(
            "this is no name for sealed data",
            expected=NAME.pattern,
            got=ascii(name)[:80],
            rule="seal.name",
        )


def check_data(data: bytes) -> None:
    """Raise SealRefused, rule `seal.size`, for data that is too large."""
    if len(data) > MAX_DATA:
        raise SealRefused(
            "the data is too large to be sealed",
            expected=f"at most {MAX_DATA} bytes",
            got=str(len(data)),
            rule="seal.size",
            hint="seal a key, and encrypt the data with it",
        )


def absent(name: str) -> SealRefused:
    """Nothing was sealed under a name: rule `seal.absent`."""
    return SealRefused(
        f"nothing is sealed under the name {name}",
        rule="seal.absent",
        hint="after a first start this is as it should be: seal something",
    )
