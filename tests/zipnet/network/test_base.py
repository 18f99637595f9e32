"""Names, keys, topics and patterns of the port."""

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from zipnet.errors import CallRejected, TooLarge
from zipnet.network import base

TOKENS = st.text("ab-_", min_size=1, max_size=2)
TOPICS = st.lists(TOKENS, min_size=1, max_size=5).map(".".join)
PATTERNS = st.builds(
    lambda tokens, rest: ".".join([*tokens, *rest]),
    st.lists(TOKENS | st.just("*"), max_size=5),
    st.sampled_from([[], [">"]]),
).filter(bool)
CHECKS = {
    "name": (base.check_name, r"[\w-]{1,64}"),
    "log-key": (base.check_log_key, r"[\w.-]{1,128}"),
    "table-key": (base.check_table_key, r"(?!\.)(?!.*\.\.)(?!.*\.\Z)[\w/=.-]{1,256}"),
    "table-prefix": (base.check_prefix, r"[\w/=.-]{0,256}"),
    "topic": (base.check_topic, r"(?!\.)(?!.*\.\.)(?!.*\.\Z)[\w.-]{1,256}"),
}


def naive(pattern: list[str], topic: list[str]) -> bool:
    if not pattern or not topic:
        return pattern == topic
    if pattern == [">"]:
        return True
    return pattern[0] in ("*", topic[0]) and naive(pattern[1:], topic[1:])


@given(PATTERNS, TOPICS)
def test_matches_as_a_naive_matcher(pattern: str, topic: str) -> None:
    base.check_pattern(pattern)
    base.check_topic(topic)
    assert base.matches(pattern, topic) == naive(pattern.split("."), topic.split("."))


@given(TOPICS, st.data())
def test_what_was_made_general_still_matches(topic: str, data: st.DataObject) -> None:
    tokens = topic.split(".")
    general = [data.draw(st.sampled_from([token, "*"])) for token in tokens]
    assert base.matches(".".join(general), topic)
    cut = data.draw(st.integers(0, len(tokens) - 1))
    assert base.matches(".".join([*general[:cut], ">"]), topic)
    assert not base.matches(".".join([*general, ">"]), topic)


@pytest.mark.parametrize("rule", CHECKS)
@given(text=st.text("aZ09/_=.- *>\nä", max_size=8) | st.integers(62, 260).map("x".__mul__))
def test_checks(rule: str, text: str) -> None:
    check, form = CHECKS[rule]
    if re.fullmatch(form, text, re.ASCII):
        assert check(text) == text
    else:
        with pytest.raises(CallRejected) as caught:
            check(text)
        assert caught.value.rule == rule
        assert len(str(caught.value)) < 2000


def test_patterns() -> None:
    for good in ("a", "*", ">", "a.*", "*.>", "a.*.b.>", "*.*"):
        assert base.check_pattern(good) == good
    for bad in ("", ".", "a.", ">.a", "a>", "**", "a*", "a..b", "a.>.>", "x" * 257, "a\n"):
        with pytest.raises(CallRejected) as caught:
            base.check_pattern(bad)
        assert caught.value.rule == "pattern"


def test_numbers_and_sizes() -> None:
    assert base.check_ttl(None) is None
    assert base.check_ttl(base.MAX_TTL) == base.MAX_TTL
    for ttl in (0, -1, base.MAX_TTL + 1):
        with pytest.raises(CallRejected) as caught:
            base.check_ttl(ttl)
        assert caught.value.rule == "ttl"
    assert base.check_size(b"xx", 2) == b"xx"
    with pytest.raises(TooLarge) as large:
        base.check_size(b"xxx", 2)
    assert large.value.rule == "max-message"
    with pytest.raises(CallRejected) as caught:
        base.check_number(0, "seq", 1)
    assert caught.value.rule == "seq"


def test_payloads_stay_out_of_reprs() -> None:
    async def reply(data: bytes) -> None: ...

    for shown in (
        base.Entry(1, "k", b"payload"),
        base.Item("k", b"payload", 1),
        base.Message("t", b"payload", reply),
    ):
        assert "payload" not in repr(shown)
