"""Collateral of one platform as a file: the bundle for use without a network, and a disk cache.

A bundle (format `tdx-collateral/1`) is one JSON object:

    format                    "tdx-collateral/1"
    fmspc                     12 lower-case hex digits: the model of the platform
    ca                        "platform" or "processor": who issues its PCK certificates
    valid_from, valid_until   Unix seconds; all of it is valid in valid_from <= now < valid_until
    collateral                the nine members of `attestation.collateral_format`

All but the last repeat what the nine members say, and must agree with it.
"""

import json
import stat
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from pathlib import Path
from typing import Any, NoReturn, Self

from attestation import _dcap
from attestation._genuine import PCK_ISSUERS
from attestation.collateral_format import MAX_BYTES, Collateral, Document, read_object
from attestation.errors import CollateralFormatError, CollateralRejected, FileUnreadable
from attestation.files import UNFINISHED, read_file, unwritable, write_whole
from attestation.moments import unix
from attestation.quote import Quote

FORMAT = "tdx-collateral/1"
FMSPC_BYTES = 6

_DAMAGED = ".damaged"


class Ca(StrEnum):
    """Who issues the PCK certificates of a platform, as in requests for the PCK CRL."""

    PLATFORM = "platform"
    PROCESSOR = "processor"


@dataclass(frozen=True, slots=True)
class Platform:
    """What collateral is for: a model of platform (`fmspc`, 6 bytes) and its PCK authority."""

    fmspc: bytes
    ca: Ca

    @classmethod
    def of_quote(cls, raw: bytes) -> Self:
        """The platform that a quote, padded or not, claims to be of. Nothing is verified.

        Raises QuoteFormatError, QuoteRejected.
        """
        fmspc, ca = _dcap.platform(Quote.parse(raw).canonical)
        return cls(fmspc, Ca(ca))

    @classmethod
    def of_collateral(cls, collateral: Collateral) -> Self:
        """The platform that collateral is for. Raises CollateralRejected (`collateral.ca`)."""
        issuer = collateral.parsed.pck_crl_issuer[0].common_name
        found = [Ca(name) for name, issued_by in PCK_ISSUERS.items() if issued_by == issuer]
        if not found:
            raise CollateralRejected(
                "revocation list in the collateral is not that of a PCK authority",
                expected=" or ".join(map(repr, PCK_ISSUERS.values())),
                got=ascii(issuer[:64]),
                rule="collateral.ca",
                hint="fetch the list for the authority of this quote: ca=platform or ca=processor",
            )
        return cls(collateral.parsed.fmspc, found[0])

    def check(self, collateral: Collateral) -> None:
        """Check that collateral is for this platform.

        Raises CollateralRejected: rule `collateral.fmspc`, `collateral.ca`.
        """
        other = Platform.of_collateral(collateral)
        if other.fmspc != self.fmspc:
            raise CollateralRejected(
                "collateral is for another model of platform",
                expected=self.fmspc.hex(),
                got=other.fmspc.hex(),
                rule="collateral.fmspc",
                hint="fetch it for the FMSPC in the quote",
            )
        if other.ca is not self.ca:
            raise CollateralRejected(
                "collateral is for platforms of another PCK authority",
                expected=self.ca,
                got=other.ca,
                rule="collateral.ca",
                hint="fetch the list for the authority of this quote: ca=platform or ca=processor",
            )

    def __str__(self) -> str:
        return f"{self.fmspc.hex()}/{self.ca}"


@dataclass(frozen=True, slots=True)
class Bundle:
    """Collateral, and the platform that it is for; whether it is genuine is for a verifier.

    Raises CollateralRejected (`collateral.fmspc`, `collateral.ca`) if it is for another platform.
    """

    platform: Platform
    collateral: Collateral

    def __post_init__(self) -> None:
        self.platform.check(self.collateral)

    @property
    def valid_from(self) -> datetime:
        """The first moment at which all parts are valid, certificates included."""
        return max(start for _, start, _ in self.collateral.parsed.periods())

    @property
    def valid_until(self) -> datetime:
        """The first moment at which a part no longer is."""
        return min(end for _, _, end in self.collateral.parsed.periods())

    @property
    def evaluation_number(self) -> int:
        """The tcbEvaluationDataNumber, the lower one of TCB info and QE identity."""
        return min(document.evaluation_number for document in self._documents().values())

    def is_valid(self, now: datetime) -> bool:
        """Whether all parts are valid at an aware moment."""
        return self.valid_from <= now < self.valid_until

    def check_follows(self, held: "Bundle") -> None:
        """Check that nothing in this bundle is older than in the one held for the same platform.

        An older list or document can be genuine and valid still, but not know of a revocation.

        Raises CollateralRejected: rule `collateral.rollback`, `collateral.older`.
        """
        before = held._documents()
        for name, document in self._documents().items():
            if document.evaluation_number < before[name].evaluation_number:
                raise CollateralRejected(
                    f"{name} goes back to an older evaluation of this platform",
                    expected=f"tcbEvaluationDataNumber {before[name].evaluation_number} or higher",
                    got=f"{document.evaluation_number}",
                    rule="collateral.rollback",
                    hint="the service is behind or hostile: update its cache, or ask Intel's",
                )
        first = {name: start for name, start, _ in held._dated()}
        for name, start, _ in self._dated():
            if start < first[name]:
                raise CollateralRejected(
                    f"{name} was issued before the one that is held",
                    expected=f"{first[name].isoformat()} or later",
                    got=start.isoformat(),
                    rule="collateral.older",
                    hint="the service is behind or hostile: update its cache, or ask Intel's",
                )

    @classmethod
    def of(cls, collateral: Collateral) -> Self:
        """The bundle of collateral. Raises CollateralRejected (`collateral.ca`)."""
        return cls(Platform.of_collateral(collateral), collateral)

    @classmethod
    def loads(cls, raw: bytes) -> Self:
        """The bundle in a file. Raises CollateralFormatError, CollateralRejected."""
        return cls._of_json(read_object(raw, "bundle"))

    @classmethod
    def _of_json(cls, content: dict[str, Any]) -> Self:
        if content.get("format") != FORMAT:
            _refuse("bundle.format", "bundle is of another format", FORMAT, content.get("format"))
        members = content.get("collateral")
        if not isinstance(members, dict):
            _refuse("bundle.collateral", "bundle holds no collateral", "an object", members)
        bundle = cls.of(Collateral.of_json(members))
        wanted = bundle._header()
        if content.keys() - {"collateral"} != wanted.keys():
            names = ", ".join([*wanted, "collateral"])
            _refuse("bundle.fields", "bundle has other members", names, "others")
        for name, value in wanted.items():
            if type(content[name]) is not type(value) or content[name] != value:
                _refuse(
                    "bundle.header",
                    f"{name} of the bundle is not that of its content",
                    value,
                    content[name],
                )
        return bundle

    def dumps(self) -> bytes:
        """A file of it, as `loads` takes it."""
        content = {**self._header(), "collateral": self.collateral.to_json()}
        return json.dumps(content, indent=2).encode() + b"\n"

    def _header(self) -> dict[str, str | int]:
        return {
            "format": FORMAT,
            "fmspc": self.platform.fmspc.hex(),
            "ca": str(self.platform.ca),
            "valid_from": unix(self.valid_from),
            "valid_until": unix(self.valid_until),
        }

    def _documents(self) -> dict[str, Document]:
        parsed = self.collateral.parsed
        return {"tcb_info": parsed.tcb_info, "qe_identity": parsed.qe_identity}

    def _dated(self) -> list[tuple[str, datetime, datetime]]:
        """The four signed parts; certificates of an issuer may be replaced by older ones."""
        return list(self.collateral.parsed.periods())[:4]


def read_collateral(raw: bytes) -> Collateral:
    """The collateral in a file: a bundle, or the nine members alone.

    Raises CollateralFormatError, CollateralRejected.
    """
    content = read_object(raw, "collateral")
    if "format" in content:
        return Bundle._of_json(content).collateral
    return Collateral.of_json(content)


@dataclass(frozen=True, slots=True)
class DiskCache:
    """A folder with one bundle a platform, of one process at a time; made by `open`."""

    folder: Path

    @classmethod
    def open(cls, folder: Path) -> Self:
        """The cache in this folder, which is made if need be (0700).

        Raises FileUnreadable: rule `file.write`, `cache.folder`.
        """
        try:
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            mode = folder.stat().st_mode
            for unfinished in folder.glob(f".*{UNFINISHED}"):
                unfinished.unlink()
        except OSError as error:
            raise unwritable(folder, error) from error
        if mode & (stat.S_IWGRP | stat.S_IWOTH):
            raise FileUnreadable(
                f"others may write to {folder}",
                expected="mode 0700",
                got=f"{stat.S_IMODE(mode):04o}",
                rule="cache.folder",
                hint="give a folder of its own to the cache, or take the permission from it",
            )
        return cls(folder)

    def load(self, platform: Platform) -> Bundle | None:
        """What the cache holds for a platform, as well-formed as any bundle, and no more than that.

        Raises FileError, CollateralFormatError, CollateralRejected.
        """
        path = self._path(platform)
        if not path.exists():
            return None
        bundle = Bundle.loads(read_file(path, MAX_BYTES))
        if bundle.platform != platform:
            raise CollateralRejected(
                f"{path} is of another platform",
                expected=str(platform),
                got=str(bundle.platform),
                rule="cache.platform",
                hint="don't rename files of the cache",
            )
        return bundle

    def store(self, bundle: Bundle) -> None:
        """Keep a bundle in place of the one before. Raises FileUnreadable (`file.write`)."""
        write_whole(self._path(bundle.platform), bundle.dumps())

    def set_aside(self, platform: Platform) -> Path:
        """Rename the file of a platform, which is then no longer found. Raises FileUnreadable."""
        path = self._path(platform)
        aside = path.with_name(path.name + _DAMAGED)
        try:
            path.replace(aside)
        except OSError as error:
            raise unwritable(aside, error) from error
        return aside

    def _path(self, platform: Platform) -> Path:
        return self.folder / f"{platform.fmspc.hex()}-{platform.ca}.json"


def _refuse(rule: str, message: str, expected: object, got: object) -> NoReturn:
    shown = ascii(got)[:80] if isinstance(got, str | int | None) else type(got).__name__
    raise CollateralFormatError(
        message,
        expected=str(expected),
        got=shown,
        rule=rule,
        hint="fetch the collateral again (attestation collateral fetch); do not edit it",
    )
