"""Without the extra `tpm`."""

import sys
from pathlib import Path

import pytest

from attestation.errors import SealUnavailable
from attestation.seal.tpm2 import Tpm2Sealer


def test_the_library_is_missing(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delitem(sys.modules, "attestation.seal._esys", raising=False)
    monkeypatch.setitem(sys.modules, "tpm2_pytss", None)
    with pytest.raises(SealUnavailable) as caught:
        Tpm2Sealer.open(tmp_path, ("node",))
    assert caught.value.rule == "seal.tpm2-library"
    assert "pip install zipnet[tpm]" in caught.value.hint
    assert "libtss2" in caught.value.hint
    assert list(tmp_path.iterdir()) == []
