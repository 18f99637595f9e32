"""`UnsafeMockTdx`: the policy of `Tdx` over a mock TEE.

    UnsafeMockTdx(verifier=MockVerifier(root_der)).require_mrtd(measurements)

Production images hold no mock provider, so there this module can't be imported.
"""

from dataclasses import dataclass, field
from datetime import datetime
from typing import ClassVar

from attestation.errors import TicketRejected
from attestation.providers.mock import MockEvidence, MockVerifier
from attestation.tdx import TdxPolicy
from attestation.ticket import Verified
from attestation.verify import Claims, Collateral


@dataclass(frozen=True, slots=True, kw_only=True)
class UnsafeMockTdx(TdxPolicy):
    """The policy over quotes that `verifier` accepts, whose root key anyone can have.

    Also takes development images, skipped boot proofs and processes. Never takes Intel's evidence:
    a deployment has one anchor.
    """

    verifier: MockVerifier = field(repr=False)

    _mock: ClassVar[bool] = True

    def _verify(self, raw: bytes, collateral: Collateral, now: datetime) -> MockEvidence:
        return self.verifier.verify(raw, collateral, now)

    def _claims(self, evidence: Verified) -> Claims:
        if type(evidence) is not MockEvidence:
            raise TicketRejected(
                "the evidence is not from a mock TEE",
                expected=MockEvidence.__name__,
                got=type(evidence).__name__,
                rule="not-mock",
                hint="this deployment's anchor is a mock root",
            )
        return evidence.claims
