"""Reference values for trustee: the message that its RVPS registers, with a `sample` payload.

Source: github.com/confidential-containers/trustee, rvps/src/lib.rs (Message) and
rvps/src/extractors/sample/mod.rs (payload: base64 of a JSON object, name to values). Names are
those that attestation-service's default CPU policy asks for. It also asks for `xfam`, which is the
host's and not known here. It looks at each register by itself; as MR_TD names the image, that is
enough.
"""

import base64
import json
from collections.abc import Sequence

from attestation.measure.record import Measurement

VERSION = "0.1.0"
TYPE = "sample"
_NAMES = {"mr_td": "mr_td", "rtmr_1": "rtmr1", "rtmr_2": "rtmr2"}


def message(measurements: Sequence[Measurement]) -> bytes:
    """The message for one image: every value of each register, as lower-case hex."""
    values = {
        name: sorted({getattr(one, field).hex() for one in measurements})
        for name, field in _NAMES.items()
    }
    payload = base64.b64encode(json.dumps(values, sort_keys=True).encode()).decode()
    document = {"version": VERSION, "type": TYPE, "payload": payload}
    return json.dumps(document, indent=2, sort_keys=True).encode() + b"\n"
