"""Where a node has collateral from: a file, or a service that is asked before it expires."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path

from attestation.collateral import CollateralService, CollateralVerifier, exposition
from attestation.collateral_cache import DiskCache
from attestation.collateral_source import INTEL, Pcs
from attestation.verify import Verifier
from zipnet.access import Access
from zipnet.errors import ConfigRejected

NAME = "intel"
FOLDER = "collateral"


@dataclass(frozen=True, slots=True)
class Fetching:
    """The service to ask (`intel`, or the URL of a PCCS), and for which models of platform.

    `fmspcs` are 6 bytes each. `cache` is a folder of this node's own; None keeps nothing.
    """

    url: str
    fmspcs: tuple[bytes, ...]
    cache: Path | None = None


@dataclass(frozen=True, slots=True)
class Attesting:
    """How a node proves itself and checks others; `service` runs beside it, if there is one."""

    access: Access = field(default_factory=Access)
    service: CollateralService | None = None

    def metrics(self, instance: str, text: Callable[[], str]) -> Callable[[], str]:
        """The exposition `text`, with how long the collateral lasts."""
        service = self.service
        if service is None:
            return text
        return lambda: text() + exposition(service.states(), instance=instance)


def attesting(access: Access, fetching: Fetching | None) -> Attesting:
    """`access`, with what a service has instead of a file where one is named.

    Raises PolicyError for a URL or models that are none, FileError for the folder.
    """
    if fetching is None:
        return Attesting(access)
    service = CollateralService(
        Pcs(INTEL if fetching.url == NAME else fetching.url),
        _verifier(access.mock_root),
        None if fetching.cache is None else DiskCache.open(fetching.cache / FOLDER),
        fetching.fmspcs,
    )
    return Attesting(replace(access, collateral=service.current, fetch=service.get), service)


def fetching(
    url: str | None, fmspcs: tuple[bytes, ...], file: Path | None, cache: Path | None
) -> Fetching | None:
    """What the options say; None for no service. Raises ConfigRejected where they contradict."""
    if url is None and not fmspcs:
        return None
    if url is None or file is not None or not fmspcs:
        given = {"--pccs": url, "--fmspc": fmspcs, "--collateral": file}
        raise ConfigRejected(
            "collateral comes from a file, or from a service that is asked for named models",
            expected="--collateral FILE; or --pccs URL with one --fmspc or more",
            got=", ".join(name for name, value in given.items() if value),
            rule="collateral.options",
            hint="`attestation verify` prints the FMSPC of the platform that made a quote",
        )
    return Fetching(url, fmspcs, cache)


def _verifier(mock_root: bytes) -> CollateralVerifier:
    if not mock_root:
        return Verifier()
    # Production images hold no mock provider: there nothing gets this far.
    from attestation.providers.mock import MockVerifier  # noqa: PLC0415

    return MockVerifier(mock_root)
