"""The measurements file of attested-tls-proxy (`--measurements-file`).

Source: github.com/flashbots/attested-tls-proxy, attestation/src/measurements.rs: a JSON list of
records, of which one must fit in all its registers. Register 0 is MR_TD, n + 1 is RTMRn.
"""

import json
from collections.abc import Sequence

from attestation.measure.record import Measurement

ATTESTATION_TYPE = "dcap-tdx"


def measurements_file(measurements: Sequence[Measurement], version: str) -> bytes:
    """One record for each host profile and boot path of one image; RTMR3 must be zero."""
    records = [
        {
            "measurement_id": f"zipnet-{one.role}-{version}-{one.host_profile}-{one.boot_path}",
            "attestation_type": ATTESTATION_TYPE,
            "measurements": {
                str(index): {"expected_any": [value.hex()]}
                for index, value in (
                    (0, one.mr_td),
                    (2, one.rtmr1),
                    (3, one.rtmr2),
                    (4, bytes(48)),
                )
            },
        }
        for one in measurements
    ]
    return json.dumps(records, indent=2, sort_keys=True).encode() + b"\n"
