"""Fuzz target: measurement files."""

from attestation.errors import AttestationError
from attestation.measure import firmware, record
from attestation.measure.record import BootProof, Measurements
from tests.attestation.measure import synthetic


def seeds() -> list[bytes]:
    uki = synthetic.uki()
    bound = firmware.bind(synthetic.Firmware().build(), uki)
    measured = record.measure_image("server", bound, uki, is_dev=False, boot_proof=BootProof.PASSED)
    return [measured.dumps(), Measurements(measured.entries[:1]).dumps()]


def fuzz_one(data: bytes) -> None:
    try:
        measurements = Measurements.loads(data)
    except AttestationError as error:
        error.diagnostics().encode()
        return
    assert Measurements.loads(measurements.dumps()) == measurements
