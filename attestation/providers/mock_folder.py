"""The folder that `attestation mock-pki` writes: a software TEE as files.

No production image holds this module.
"""

import hashlib
from dataclasses import dataclass
from pathlib import Path

from attestation.errors import FileError
from attestation.files import read_file
from attestation.providers.mock import MockTee
from attestation.verify import MAX_COLLATERAL, Collateral

MAX_SEED = 4096


@dataclass(frozen=True, slots=True)
class MockFolder:
    """What `attestation mock-pki` wrote: a software TEE, its root (DER), its collateral."""

    tee: MockTee
    root_der: bytes
    collateral: Collateral

    @classmethod
    def load(cls, folder: Path) -> "MockFolder":
        """Read seed.hex, root.der and collateral.json.

        Raises CollateralFormatError, FileError; its rule is `mock-tee.seed` for a seed that is
        none, and `mock-tee.root` for the seed of another root.
        """
        digits = read_file(folder / "seed.hex", MAX_SEED)
        root = read_file(folder / "root.der", MAX_COLLATERAL)
        collateral = Collateral.loads(read_file(folder / "collateral.json", MAX_COLLATERAL))
        try:
            seed = bytes.fromhex(digits.decode())
        except ValueError:
            seed = b""
        if not seed:
            raise FileError(
                f"{folder / 'seed.hex'} is no seed",
                expected="hex digits",
                rule="mock-tee.seed",
                hint="`attestation mock-pki DIR` makes such a folder",
            )
        tee = MockTee(seed)
        if tee.root_der != root:
            raise FileError(
                f"root.der in {folder} is not the root of the seed beside it",
                expected=hashlib.sha256(tee.root_der).hexdigest(),
                got=hashlib.sha256(root).hexdigest(),
                rule="mock-tee.root",
                hint="take all files from one `attestation mock-pki DIR`",
            )
        return cls(tee, root, collateral)
