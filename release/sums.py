"""`sha256sums.txt`, as `sha256sum -c` reads it, in one strict form.

One line a file, sorted by name, each once: 64 lower-case hex digits, two spaces, the name.
"""

import re
from collections.abc import Mapping

from release.errors import ReleaseFormatError
from release.manifest import PART

MAX_BYTES = 1 << 16

_LINE = re.compile(rf"([0-9a-f]{{64}})  ((?:{PART}/)?{PART})")


def dumps(digests: Mapping[str, str]) -> bytes:
    """The file for SHA-256 digests (hex) by name."""
    return "".join(f"{digests[name]}  {name}\n" for name in sorted(digests)).encode("ascii")


def loads(raw: bytes) -> dict[str, str]:
    """SHA-256 (hex) by name. Raises ReleaseFormatError for what `dumps` would not write."""
    found: dict[str, str] = {}
    for line in raw[: MAX_BYTES + 1].decode("ascii", "replace").split("\n")[:-1]:
        match = _LINE.fullmatch(line)
        if match is None:
            raise _malformed("64 lower-case hex digits, two spaces, a name", ascii(line)[:160])
        found[match[2]] = match[1]
    if not found or dumps(found) != raw:
        raise _malformed("lines sorted by name, each once, the last one ended", "others")
    return found


def _malformed(expected: str, got: str) -> ReleaseFormatError:
    return ReleaseFormatError(
        "sha256sums.txt is malformed",
        expected=expected,
        got=got,
        rule="sums.format",
        hint="do not use these files; fetch them again, or build them again",
    )
