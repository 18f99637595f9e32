"""The verdict on a quote: genuine, current, and of a TD that its host can't look into.

`Verifier().verify(raw, collateral, now)` returns `Evidence` or raises. Trust is a type: a verifier
of this module always ends at Intel's root, and `Evidence` comes from no other.

What is not decided here: which TCB states, code and purposes are accepted (`attestation.tdx`).
"""

import base64
from dataclasses import dataclass
from datetime import datetime

from attestation import _genuine
from attestation._engine import Claims, TcbStatus, verify_with_root
from attestation.collateral_format import MAX_BYTES as MAX_COLLATERAL
from attestation.collateral_format import Collateral

__all__ = [
    "INTEL_ROOT",
    "MAX_COLLATERAL",
    "Claims",
    "Collateral",
    "Evidence",
    "TcbStatus",
    "Verifier",
]

# "Intel SGX Root CA", DER, valid until 2049; the last certificate of every Intel chain.
INTEL_ROOT = base64.b64decode(
    "MIICjzCCAjSgAwIBAgIUImUM1lqdNInzg7SVUr9QGzknBqwwCgYIKoZIzj0EAwIwaDEaMBgGA1UEAwwRSW50ZWwgU0dY"
    "IFJvb3QgQ0ExGjAYBgNVBAoMEUludGVsIENvcnBvcmF0aW9uMRQwEgYDVQQHDAtTYW50YSBDbGFyYTELMAkGA1UECAwC"
    "Q0ExCzAJBgNVBAYTAlVTMB4XDTE4MDUyMTEwNDUxMFoXDTQ5MTIzMTIzNTk1OVowaDEaMBgGA1UEAwwRSW50ZWwgU0dY"
    "IFJvb3QgQ0ExGjAYBgNVBAoMEUludGVsIENvcnBvcmF0aW9uMRQwEgYDVQQHDAtTYW50YSBDbGFyYTELMAkGA1UECAwC"
    "Q0ExCzAJBgNVBAYTAlVTMFkwEwYHKoZIzj0CAQYIKoZIzj0DAQcDQgAEC6nEwMDIYZOj/iPWsCzaEKi71OiOSLRFhWGj"
    "bnBVJfVnkY4u3IjkDYYL0MxO4mqsyYjlBalTVYxFP2sJBK5zlKOBuzCBuDAfBgNVHSMEGDAWgBQiZQzWWp00ifODtJVS"
    "v1AbOScGrDBSBgNVHR8ESzBJMEegRaBDhkFodHRwczovL2NlcnRpZmljYXRlcy50cnVzdGVkc2VydmljZXMuaW50ZWwu"
    "Y29tL0ludGVsU0dYUm9vdENBLmRlcjAdBgNVHQ4EFgQUImUM1lqdNInzg7SVUr9QGzknBqwwDgYDVR0PAQH/BAQDAgEG"
    "MBIGA1UdEwEB/wQIMAYBAf8CAQEwCgYIKoZIzj0EAwIDSQAwRgIhAOW/5QkR+S9CiSDcNoowLuPRLsWGf/Yi7GSX94Bg"
    "wTwgAiEA4J0lrHoMs+Xo5o/sX6O9QWxHRAvZUGOdRQ7cvqRXaqI="
)


@dataclass(frozen=True, slots=True)
class Evidence:
    """A genuine quote of Intel hardware."""

    claims: Claims


class Verifier:
    """Verifies quotes against Intel's root certificate, which is part of this module."""

    def verify(self, raw: bytes, collateral: Collateral, now: datetime) -> Evidence:
        """Check a quote, padded or not, at an aware point in time.

        Raises QuoteFormatError, QuoteRejected, and PolicyError for a time without zone.
        """
        return Evidence(verify_with_root(raw, collateral, now, INTEL_ROOT))

    def check_collateral(self, collateral: Collateral, now: datetime) -> None:
        """Check without a quote that Intel signed all of it and that it is valid at `now`.

        `verify` never relies on this. Dates come last: what is refused as collateral-expired or
        collateral-not-yet-valid is genuine.

        Raises CollateralRejected, and PolicyError for a time without zone.
        """
        _genuine.check(collateral, now, INTEL_ROOT)
