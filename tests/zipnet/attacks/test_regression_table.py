"""Each defect that was seen in the reference code has a test here: none may get lost."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]
PROTOCOL, ATTACKS, ATTESTATION = (
    "tests/zipnet/protocol",
    "tests/zipnet/attacks",
    "tests/attestation",
)

TABLE: dict[str, tuple[str, ...]] = {
    "a signature's digest omits the round": (
        f"{PROTOCOL}/test_fold.py::test_regression_envelope_replayed_into_another_round",
        (
            f"{ATTACKS}/test_rule_2_one_seal.py"
            "::test_regression_envelope_of_another_round_is_refused"
        ),
    ),
    "a footprint may be 0, and so invisible": (
        f"{PROTOCOL}/test_schedule.py::test_regression_a_footprint_is_never_zero",
    ),
    "`msg_slot > n_slots` is off by one": (
        (
            f"{PROTOCOL}/test_schedule.py"
            "::test_regression_a_rank_as_great_as_the_number_of_slots_is_refused"
        ),
    ),
    "the footprint's width is a constant that nobody uses": (
        f"{PROTOCOL}/test_schedule.py::test_regression_the_width_on_the_wire_is_that_of_the_header",
    ),
    "the aggregate is cloned, hashed and signed anew for every message": (
        f"{PROTOCOL}/test_fold.py::test_regression_time_per_envelope_does_not_grow_with_the_roster",
    ),
    "adding to an empty aggregate gives one that its signature does not cover": (
        f"{PROTOCOL}/test_fold.py::test_regression_first_and_second_child_take_the_same_path",
    ),
    "`verify_multisig` counts an invalid signature": (
        f"{PROTOCOL}/test_header.py::test_regression_invalid_signature_never_counts",
        f"{PROTOCOL}/test_record.py::test_regression_invalid_signature_never_counts",
    ),
    "the attestation check is stubbed": (
        (
            f"{ATTACKS}/test_regressions.py"
            "::test_regression_no_client_is_in_without_the_word_of_every_server"
        ),
        f"{ATTACKS}/test_regressions.py::test_regression_a_word_is_for_one_registration",
        f"{ATTESTATION}/test_unsafe_mock_tdx.py::test_production_refuses_the_mock",
        f"{ATTESTATION}/test_unsafe_mock_tdx.py::test_the_production_policy_does_not_load_the_mock",
        f"{ATTESTATION}/test_tdx.py::test_only_the_verifier_s_own_evidence",
    ),
    "128-bit pad key from unsalted HKDF, and a ratchet that is not bound to the round": (
        f"{PROTOCOL}/test_vectors.py::test_key_schedule",
        f"{PROTOCOL}/test_vectors.py::test_key_schedule_through_a_pair",
        f"{ATTACKS}/test_regressions.py::test_regression_the_ratchet_knows_its_round",
    ),
    "slot and footprint follow from the signing key": (
        (
            f"{PROTOCOL}/test_schedule.py"
            "::test_regression_two_rounds_of_a_client_have_nothing_in_common"
        ),
        f"{PROTOCOL}/test_speaker.py::test_regression_rounds_of_one_client_share_no_reservation",
    ),
    "v1: the pad's info is the round only": (
        f"{PROTOCOL}/test_seal.py::test_regression_a_round_is_sealed_once",
        (
            f"{ATTACKS}/test_rule_9_round_ids.py"
            "::test_regression_a_round_reopened_under_its_id_is_a_two_time_pad"
        ),
    ),
    "v1: hashed slots": (
        f"{PROTOCOL}/test_schedule.py::test_regression_hashed_slots_deliver_less",
        f"{PROTOCOL}/test_schedule.py::test_deliveries",
    ),
    "v1: one crashed server halts all, and cover contradicts the documents": (
        (
            f"{ATTACKS}/test_regressions.py"
            "::test_regression_one_crashed_server_does_not_halt_the_others_for_good"
        ),
        f"{ATTACKS}/test_regressions.py::test_regression_cover_looks_like_talk",
        f"{PROTOCOL}/test_speaker.py::test_a_talker_does_what_a_cover_client_does",
    ),
}


def functions(path: str) -> set[str]:
    tree = ast.parse((ROOT / path).read_text())
    return {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}


def test_there_are_thirteen() -> None:
    assert len(TABLE) == 13
    assert all(TABLE.values())


@pytest.mark.parametrize("defect", TABLE)
def test_every_defect_has_its_tests(defect: str) -> None:
    for test in TABLE[defect]:
        path, name = test.split("::")
        assert name in functions(path), test


def test_no_regression_test_is_missing_from_the_table() -> None:
    listed = {test for tests in TABLE.values() for test in tests}
    for folder in (PROTOCOL, ATTACKS):
        for path in sorted((ROOT / folder).glob("test_*.py")):
            place = path.relative_to(ROOT).as_posix()
            for name in functions(place):
                if name.startswith("test_regression_"):
                    assert f"{place}::{name}" in listed
