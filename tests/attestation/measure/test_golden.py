"""Golden values of the real firmware, and the proof that the values mean what they say."""

import hashlib
import time
from typing import Any

import pytest

from attestation.measure import firmware, record, tdvf
from attestation.measure.firmware import Model
from attestation.measure.record import BootProof
from attestation.measure.tdvf import PageOrder, Tdvf
from tests.attestation.measure import synthetic
from tests.attestation.measure.support import patched, vectors

GOLDEN = vectors("firmware.json")
each_bound = pytest.mark.parametrize("golden", GOLDEN["bound"], ids=["server", "client"])


def cfv_sha384(fd: bytes) -> str:
    (cfv,) = Tdvf.parse(fd).of_type(tdvf.SectionType.CFV)
    return hashlib.sha384(fd[cfv.data_offset : cfv.data_end]).hexdigest()


def mr_td(fd: bytes) -> dict[str, str]:
    return {order.value: tdvf.mr_td(fd, order).hex() for order in PageOrder}


def test_stock(stock: bytes) -> None:
    assert hashlib.sha256(stock).hexdigest() == GOLDEN["sha256"]
    assert mr_td(stock) == GOLDEN["mr_td"]
    assert cfv_sha384(stock) == GOLDEN["cfv_sha384"]
    assert firmware.code_digest(stock).hex() == GOLDEN["code_sha256"]


def test_stock_passes_the_audit(stock: bytes) -> None:
    audit = firmware.audit(stock)
    assert (audit.model, audit.policy, audit.cfv_measured) == (Model.CONFIRMED, None, False)
    assert {m.name: (m.volume, m.loadable) for m in audit.modules} == {
        "SecureBootConfigDxe": ("DXEFV", True),
        "BootManagerMenuApp": ("DXEFV", True),
        "UiApp": ("NCCFV", False),
    }


@each_bound
def test_bound(stock: bytes, golden: dict[str, Any]) -> None:
    digest = bytes.fromhex(golden["db"])
    bound = firmware.bind_digests(stock, [digest])
    assert hashlib.sha256(bound).hexdigest() == golden["sha256"]
    assert mr_td(bound) == golden["mr_td"]
    assert cfv_sha384(bound) == golden["cfv_sha384"]
    assert firmware.policy(bound) == (digest,)
    assert firmware.audit(bound).model is Model.CONFIRMED
    assert bound[GOLDEN["cfv_attribute_offset"]] == 1


def test_two_bound_firmwares_differ_in_the_hash(stock: bytes) -> None:
    one, other = (
        firmware.bind_digests(stock, [bytes.fromhex(golden["db"])]) for golden in GOLDEN["bound"]
    )
    different = [at for at in range(len(one)) if one[at] != other[at]]
    start, end = GOLDEN["difference"]
    # Equal bytes at the same place of both hashes do not differ.
    assert set(different) <= set(range(start, end))
    assert one[start:end].hex() == GOLDEN["bound"][0]["db"]
    assert one[:start] + other[start:end] + one[end:] == other


@each_bound
def test_without_the_attribute_all_have_the_stock_mr_td(
    stock: bytes, golden: dict[str, Any]
) -> None:
    bound = firmware.bind_digests(stock, [bytes.fromhex(golden["db"])])
    plain = patched(GOLDEN["cfv_attribute_offset"], b"\0")(bound)
    assert plain != stock
    assert mr_td(plain) == GOLDEN["mr_td"]


def test_a_large_image_is_measured_within_a_second(stock: bytes) -> None:
    uki = synthetic.uki({".initrd": bytes(60 << 20)})
    bound = firmware.bind(stock, uki)
    start = time.process_time()
    record.measure_image("server", bound, uki, is_dev=False, boot_proof=BootProof.PASSED)
    # The target is 1 s on an idle machine; twice that leaves room for a busy one.
    assert time.process_time() - start < 2
