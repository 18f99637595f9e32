"""Syntactically valid quotes from nothing but bytes: no PKI, no signatures that verify.

The layout is written out here once more, from the specification, so that a slip in the parser
isn't repeated by its tests.
"""

from dataclasses import dataclass, fields, replace
from typing import Any, Self

PEM = b"".join(
    b"-----BEGIN CERTIFICATE-----\n%s\n-----END CERTIFICATE-----\n" % text
    for text in (b"TGVhZg==", b"UGxhdGZvcm0=", b"Um9vdA==")
)


def pattern(seed: int, size: int) -> bytes:
    """Bytes that differ from field to field, none of them zero."""
    return bytes((seed * 37 + i * 11) % 255 + 1 for i in range(size))


@dataclass(frozen=True)
class Draft:
    """A quote to be; every field is raw bytes in wire order. A length of None is made true."""

    version: bytes = b"\4\0"
    attestation_key_type: bytes = b"\2\0"
    tee_type: bytes = b"\x81\0\0\0"
    qe_svn: bytes = bytes(2)
    pce_svn: bytes = bytes(2)
    qe_vendor_id: bytes = bytes.fromhex("939a7233f79c4ca9940a0db3957f0607")
    user_data: bytes = pattern(1, 20)
    body_type: bytes = b""
    body_size: bytes | None = b""
    tee_tcb_svn: bytes = pattern(2, 16)
    mr_seam: bytes = pattern(3, 48)
    mr_signer_seam: bytes = pattern(4, 48)
    seam_attributes: bytes = pattern(5, 8)
    td_attributes: bytes = pattern(6, 8)
    xfam: bytes = pattern(7, 8)
    mr_td: bytes = pattern(8, 48)
    mr_config_id: bytes = pattern(9, 48)
    mr_owner: bytes = pattern(10, 48)
    mr_owner_config: bytes = pattern(11, 48)
    rtmr0: bytes = pattern(12, 48)
    rtmr1: bytes = pattern(13, 48)
    rtmr2: bytes = pattern(14, 48)
    rtmr3: bytes = pattern(15, 48)
    report_data: bytes = pattern(16, 64)
    tee_tcb_svn_2: bytes = b""
    mr_service_td: bytes = b""
    signature_length: bytes | None = None
    signature: bytes = pattern(19, 64)
    attestation_key: bytes = pattern(20, 64)
    certification_type: bytes = b"\6\0"
    certification_length: bytes | None = None
    qe_cpu_svn: bytes = pattern(21, 16)
    qe_misc_select: bytes = pattern(22, 4)
    qe_reserved_1: bytes = bytes(28)
    qe_attributes: bytes = pattern(23, 16)
    qe_mr_enclave: bytes = pattern(24, 32)
    qe_reserved_2: bytes = bytes(32)
    qe_mr_signer: bytes = pattern(25, 32)
    qe_reserved_3: bytes = bytes(96)
    qe_isv_prod_id: bytes = b"\2\0"
    qe_isv_svn: bytes = b"\6\0"
    qe_reserved_4: bytes = bytes(60)
    qe_report_data: bytes = pattern(26, 64)
    qe_report_signature: bytes = pattern(27, 64)
    qe_authentication_length: bytes | None = None
    qe_authentication_data: bytes = bytes(range(32))
    pck_certification_type: bytes = b"\5\0"
    pck_certification_length: bytes | None = None
    pck_certificate_chain: bytes = PEM
    padding: bytes = b""

    def with_(self, **changes: Any) -> Self:
        return replace(self, **changes)

    def parts(self) -> dict[str, bytes]:
        """The fields in wire order, lengths filled in."""
        raw = {field.name: getattr(self, field.name) for field in fields(self)}
        names = list(raw)

        def size(after: str, last: str) -> int:
            return sum(len(raw[n]) for n in names[names.index(after) + 1 : names.index(last) + 1])

        # From the inside out, since each length counts those within it.
        for name, last, width in (
            ("body_size", "mr_service_td", 4),
            ("pck_certification_length", "pck_certificate_chain", 4),
            ("qe_authentication_length", "qe_authentication_data", 2),
            ("certification_length", "pck_certificate_chain", 4),
            ("signature_length", "pck_certificate_chain", 4),
        ):
            if raw[name] is None:
                raw[name] = size(name, last).to_bytes(width, "little")
        return raw

    def build(self) -> bytes:
        return b"".join(self.parts().values())

    def offset(self, name: str) -> int:
        """Where a field starts."""
        parts = self.parts()
        return sum(len(parts[n]) for n in list(parts)[: list(parts).index(name)])


V4 = Draft()
V5_TD10 = Draft(version=b"\5\0", body_type=b"\2\0", body_size=None)
V5_TD15 = Draft(
    version=b"\5\0",
    body_type=b"\3\0",
    body_size=None,
    tee_tcb_svn_2=pattern(17, 16),
    mr_service_td=pattern(18, 48),
)
DRAFTS = {"v4": V4, "v5-td10": V5_TD10, "v5-td15": V5_TD15}
