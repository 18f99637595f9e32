"""`python -m tests.mutation`: switch every check off, one at a time, and see a test fail for it.

By hand (tox -e mutation): some minutes. A mutant that no test kills is either an untested check or
listed in EQUIVALENT with the reason why switching it off changes nothing.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from tests.mutation.equivalent import EQUIVALENT
from tests.mutation.mutants import UNNAMED, Mutant, mutants

ROOT = Path(__file__).resolve().parents[2]
# What decides, with the tests of each: the modules behind verify.py, tdx.py and allowlist.py, and
# those that take in collateral, event logs and sealed data.
VERIFY = ["test_verify.py", "test_matrix.py"]
TDX = ["test_tdx.py", "test_appraisal.py", "test_unsafe_mock_tdx.py"]
COLLATERAL = ["collateral"]
EVENT_LOG = ["measure/test_eventlog.py", "measure/test_eventlog_events.py"]
SEAL = ["seal"]
COMMITTEE = [
    f"seal/test_committee{part}.py"
    for part in ("_format", "_member", "", "_answers", "_sealer", "_admission", "_stateful")
]
TESTS = {
    "attestation/_engine.py": VERIFY,
    "attestation/collateral_format.py": VERIFY,
    "attestation/tdx.py": TDX,
    "attestation/acceptance.py": TDX,
    "attestation/appraisal.py": TDX,
    "attestation/allowlist.py": ["test_allowlist.py"],
    "attestation/envelope.py": ["test_allowlist.py"],
    "attestation/bundle.py": ["test_ticket.py"],
    "attestation/ticket.py": ["test_ticket.py"],
    "attestation/provision.py": ["test_provision.py"],
    "attestation/provision_stream.py": ["test_provision_stream.py", "test_provision_tool.py"],
    "attestation/evidence.py": ["test_evidence.py"],
    "attestation/_genuine.py": COLLATERAL,
    "attestation/collateral.py": COLLATERAL,
    "attestation/collateral_cache.py": COLLATERAL,
    "attestation/collateral_source.py": COLLATERAL,
    "attestation/measure/eventlog.py": EVENT_LOG,
    "attestation/measure/eventlog_events.py": EVENT_LOG,
    "attestation/measure/explain.py": ["measure/test_explain.py"],
    "attestation/providers/registers.py": ["providers/test_registers.py"],
    "attestation/commands/record.py": ["commands/test_record_command.py"],
    "attestation/seal/base.py": SEAL,
    "attestation/seal/committee.py": COMMITTEE,
    "attestation/seal/committee_format.py": COMMITTEE,
    "attestation/seal/committee_member.py": COMMITTEE,
    "attestation/seal/committee_sealer.py": COMMITTEE,
    "attestation/seal/memory.py": SEAL,
    "attestation/seal/tpm2_blob.py": SEAL,
    "attestation/seal/tpm2_device.py": SEAL,
    "attestation/seal/tpm2_folder.py": SEAL,
    "attestation/seal/tpm2_policy.py": SEAL,
}
LIMIT = 320
COPIED = ("attestation", "tests", "pyproject.toml", "release", "zipnet")


def verdict(mutant: Mutant) -> str:
    """`killed`, `killed, but its rule is not named`, or `survived`."""
    with tempfile.TemporaryDirectory(prefix="zipnet-mutant-") as name:
        copy = Path(name)
        for part in COPIED:
            if (ROOT / part).is_dir():
                ignored = shutil.ignore_patterns("__pycache__")
                shutil.copytree(ROOT / part, copy / part, ignore=ignored)
            else:
                shutil.copyfile(ROOT / part, copy / part)
        (copy / mutant.file).write_text(mutant.source, "utf-8")
        tests = [f"tests/attestation/{test}" for test in TESTS[mutant.file]]
        command = [sys.executable, "-m", "pytest", "-x", "-q", "-p", "no:cacheprovider", *tests]
        done = subprocess.run(
            command,
            cwd=copy,
            env=os.environ | {"PYTHONPATH": name, "PYTHONDONTWRITEBYTECODE": "1"},
            capture_output=True,
            text=True,
            check=False,
            timeout=600,
        )
    if done.returncode == 0:
        return "survived"
    if done.returncode != 1:
        return f"broken ({done.returncode})"
    words = mutant.rule.replace("_", "-").split(" or ")
    named = mutant.rule == UNNAMED or any(word in done.stdout for word in words)
    return "killed" if named else "killed, rule not named"


def main() -> int:
    """Run all mutants, two at a time; 0 if each is killed or known to be equivalent."""
    found = [
        mutant
        for file in TESTS
        for mutant in mutants(file, (ROOT / file).read_text("utf-8"))
        if mutant.name not in EQUIVALENT
    ]
    unknown = set(EQUIVALENT) - {
        mutant.name for file in TESTS for mutant in mutants(file, (ROOT / file).read_text("utf-8"))
    }
    with ThreadPoolExecutor(max_workers=os.cpu_count()) as pool:
        bad = 0
        for mutant, result in zip(found, pool.map(verdict, found), strict=True):
            bad += result != "killed"
            place = f"{mutant.file}:{mutant.line}"
            print(f"{result:<22} {place:<36} {mutant.rule:<24} {mutant.condition}", flush=True)
    for name in sorted(unknown):
        print(f"listed as equivalent, but not there: {name}")
    print(f"{len(found)} mutants, {bad} not killed, {len(EQUIVALENT)} equivalent")
    return 1 if bad or unknown or len(found) > LIMIT else 0


if __name__ == "__main__":
    sys.exit(main())
