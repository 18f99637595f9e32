"""The Authenticode hash of a PE image, in the byte order of the firmware that will check it.

Source: edk2 SecurityPkg/Library/DxeImageVerificationLib/DxeImageVerificationLib.c (HashPeImage) and
Microsoft "Windows Authenticode Portable Executable Signature Format". SHA-256 is what goes into
`db`, SHA-384 what a TD measures into RTMR1.
"""

import hashlib
from typing import Literal

from attestation.measure.pe import Pe

Algorithm = Literal["sha256", "sha384"]


def digest(pe: Pe | bytes, algorithm: Algorithm = "sha256") -> bytes:
    """Hash an image without its checksum, certificate table and the table's directory entry.

    Gives 32 or 48 bytes. Raises PeFormatError.
    """
    image = pe if isinstance(pe, Pe) else Pe.parse(pe)
    view = memoryview(image.data)
    state = hashlib.new(algorithm)
    state.update(view[: image.checksum])
    after = image.checksum + 4
    if image.security_entry is not None:
        state.update(view[after : image.security_entry])
        after = image.security_entry + 8
    state.update(view[after : image.headers_size])
    hashed = image.headers_size
    for section in sorted(image.sections, key=lambda s: s.raw_offset):
        state.update(view[section.raw_offset :][: section.raw_size])
        hashed += section.raw_size
    # With gaps between sections this starts before the last section's end: the firmware counts
    # hashed bytes, not positions, and so must we. Pe.parse has placed the certificates last.
    state.update(view[hashed : len(view) - image.certificates])
    return state.digest()
