"""Rate-limit tags and budgets."""

from blake3 import blake3
from hypothesis import given
from hypothesis import strategies as st

from tests.zipnet.protocol.support import INSTANCE, OTHER_INSTANCE, h, refused
from zipnet.errors import ConfigRejected, GuardRefused
from zipnet.protocol.ratelimit import Budget, rate_key, rate_tag

KEY = rate_key(h("identity"), INSTANCE.binding)


def test_the_formula() -> None:
    key = blake3(h("identity") + INSTANCE.binding, derive_key_context="zipnet/rate-limit/v2")
    assert key.digest() == KEY
    assert rate_tag(KEY, 1, 2) == blake3(b"\0" * 7 + b"\1" + b"\0" * 7 + b"\2", key=KEY).digest(16)


def test_tags_are_bound_to_client_deployment_epoch_and_counter() -> None:
    keys = (
        KEY,
        rate_key(h("other identity"), INSTANCE.binding),
        rate_key(h("identity"), OTHER_INSTANCE.binding),
    )
    tags = {rate_tag(key, n, e) for key in keys for n in range(4) for e in range(4)}
    assert len(tags) == 48


@given(st.integers(1, 20), st.integers(0, 1 << 40))
def test_a_budget_counts_to_its_limit(limit: int, epoch: int) -> None:
    budget: Budget | None = Budget(epoch, limit)
    numbers = []
    while budget is not None:
        numbers.append(budget.used)
        last, budget = budget, budget.next()
    assert numbers == list(range(limit + 1))
    assert last == Budget.spent(epoch, limit)


def test_epochs() -> None:
    spent = Budget.spent(3, 2)
    assert spent.at(3) is spent
    assert spent.at(5) == Budget(5, 2)
    with refused(GuardRefused, "budget.epoch"):
        spent.at(2)


def test_what_is_no_budget() -> None:
    for limit, used in ((0, 0), (1, 2), (1, -1)):
        with refused(ConfigRejected, "budget"):
            Budget(1, limit, used)
