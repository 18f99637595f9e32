"""The policy that go-tdx-guest's `check -config FILE.textproto` takes.

Source: github.com/google/go-tdx-guest v0.3.1, proto/checkconfig.proto (message Config), and
validate/validate.go for sizes. The text format is protobuf.dev/reference/protobuf/textformat-spec.

A policy has one set of RTMRs, so there is one file for each host profile, all for the boot path
`kernel`. RTMR0 is the host's and empty, which means unchecked; RTMR3 must be zero.
"""

from collections.abc import Sequence

from attestation.measure.record import Measurement
from attestation.measure.rtmr import BootPath
from attestation.measure.tdvf import HostProfile

# check_crl needs get_collateral; by default the tool looks at neither, nor at the debug bit.
_TEMPLATE = """\
# proto-file: checkconfig.proto
# proto-message: checkconfig.Config
policy {{
  td_quote_body_policy {{
    any_mr_td: {mr_td}
    rtmrs: ""
    rtmrs: {rtmr1}
    rtmrs: {rtmr2}
    rtmrs: {rtmr3}
    enable_td_debug_check: true
  }}
}}
root_of_trust {{
  check_crl: true
  get_collateral: true
}}
"""


def policies(measurements: Sequence[Measurement]) -> dict[HostProfile, bytes]:
    """The policy for each host profile of one image's measurements."""
    return {
        one.host_profile: _policy(one) for one in measurements if one.boot_path is BootPath.KERNEL
    }


def _policy(one: Measurement) -> bytes:
    registers = {"mr_td": one.mr_td, "rtmr1": one.rtmr1, "rtmr2": one.rtmr2, "rtmr3": bytes(48)}
    literals = {name: _literal(value) for name, value in registers.items()}
    return _TEMPLATE.format(**literals).encode("ascii")


def _literal(value: bytes) -> str:
    """A string literal of raw bytes, each escaped with its two hex digits."""
    return '"' + "".join(f"\\x{byte:02x}" for byte in value) + '"'
