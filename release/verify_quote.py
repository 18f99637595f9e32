"""The last step of a verification: whether a quote, or a running node, is of this release.

A quote from a file proves that such a TD ran once, somewhere; a node answers a challenge of now.
"""

import asyncio
import secrets
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from attestation import evidence
from attestation.allowlist import TcbPolicy, tcb_status
from attestation.bundle import Bundle
from attestation.collateral_cache import Platform, read_collateral
from attestation.commands.verify import matching, verified_claims, verifier
from attestation.errors import QuoteRejected
from attestation.files import read_file
from attestation.measure.record import Measurement, Measurements
from attestation.measure.rtmr import BootPath
from attestation.measure.tdvf import HostProfile
from attestation.moments import unix
from attestation.quote import MAX_BYTES as MAX_QUOTE
from attestation.tdx import Tdx, TdxPolicy
from attestation.verify import MAX_COLLATERAL, Claims, Collateral, Verifier
from release.errors import ReleaseRejected
from release.manifest import Manifest

TIMEOUT = 30.0  # seconds, for a node's answer


@dataclass(frozen=True, slots=True)
class Anchor:
    """How quotes are judged.

    Without `collateral` it is fetched from Intel. `mock_root` (a DER certificate's file) makes it a
    judgement of mock quotes, which say nothing about hardware. `tcb` are the accepted TCB states.
    """

    collateral: Path | None = None
    mock_root: Path | None = None
    tcb: tuple[str, ...] = ("UpToDate",)

    def documents(self, quote: bytes) -> Collateral:
        """Collateral for the platform of a quote. Raises AttestationError."""
        if self.collateral is not None:
            return read_collateral(read_file(self.collateral, MAX_COLLATERAL))
        # Not at the top: an HTTP client takes as long to import as all the rest.
        from attestation.collateral_source import INTEL, Pcs  # noqa: PLC0415

        return asyncio.run(Pcs(INTEL, "standard").fetch(Platform.of_quote(quote)))

    def policy(self) -> TdxPolicy:
        """The policy under this anchor that as yet accepts no measurement."""
        judge = verifier(self.mock_root)
        if isinstance(judge, Verifier):
            return Tdx()
        # Not at the top: production images don't hold it.
        from attestation.unsafe_mock_tdx import UnsafeMockTdx  # noqa: PLC0415

        return UnsafeMockTdx(verifier=judge)

    def told(self, text: str) -> str:
        """A verdict, marked if it is under a mock root."""
        return text if self.mock_root is None else f"MOCK, not hardware: {text}"


def check_quote(path: Path, manifest: Manifest, anchor: Anchor, now: datetime) -> str:
    """Check that the binary quote in a file is genuine, current and of an image of the release.

    Returns what it is of. Raises AttestationError.
    """
    raw = read_file(path, MAX_QUOTE)
    claims = verified_claims(raw, anchor.documents(raw), now, anchor.mock_root)
    accepted = _accepted(manifest)
    found = accepted.entries[matching(claims, accepted, mock=False)]
    policy = TcbPolicy(frozenset(map(tcb_status, anchor.tcb)))
    if policy.end(claims.tcb_status, unix(now)) is None:
        raise QuoteRejected(
            "the platform's TCB state is not accepted",
            expected=" or ".join(sorted(policy.accepted)),
            got=claims.tcb_status,
            rule="tcb-status",
            hint="the platform needs new firmware and microcode; --tcb accepts other states",
        )
    body = claims.quote.body
    if any(body.mr_owner) or any(body.mr_owner_config):
        raise QuoteRejected(
            "the TD has an owner",
            expected="zeros",
            got=f"{body.mr_owner.hex()}, {body.mr_owner_config.hex()}",
            rule="mr-owner",
            hint="launch the TD without mrowner and mrownerconfig",
        )
    return anchor.told(_told(found, claims))


def check_node(url: str, manifest: Manifest, anchor: Anchor, now: datetime) -> str:
    """Challenge the node whose metrics are at `url`; check that it runs an image of the release.

    Returns what it runs. Raises AttestationError, ReleaseRejected (`release.role`).
    """
    challenge = secrets.token_bytes(evidence.CHALLENGE_SIZE)
    raw = asyncio.run(evidence.fetch(url, challenge, TIMEOUT))
    shown = Bundle.decode(raw)
    role = shown.ticket.role
    entry = manifest.role(role.name.lower())
    policy = anchor.policy().require_mrtd(entry.measurements)
    verdict = evidence.check_evidence(
        raw,
        challenge=challenge,
        role=role,
        deployment_id=None,
        validator=policy.profiles(*HostProfile).boot_paths(*BootPath).tcb(*anchor.tcb),
        collateral=anchor.documents(shown.quote),
        now=now,
    )
    if verdict.measurement is None or verdict.claims is None:
        raise ReleaseRejected(
            "the verdict names no image",
            expected="an entry of the manifest",
            got="none",
            rule="release.verdict",
        )
    deployment = f"deployment {shown.ticket.deployment_id.hex()}"
    return anchor.told(f"{_told(verdict.measurement, verdict.claims)}, {deployment}")


def _accepted(manifest: Manifest) -> Measurements:
    return Measurements(
        tuple(one for entry in manifest.roles for one in entry.measurements.entries)
    )


def _told(found: Measurement, claims: Claims) -> str:
    return (
        f"{found.role} on a host of {found.host_profile}, boot {found.boot_path},"
        f" TCB {claims.tcb_status}, MRCONFIGID {claims.quote.body.mr_config_id.hex()},"
        f" ACPI {claims.acpi}"
    )
