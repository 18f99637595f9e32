"""Quotes through configfs-tsm: the kernel's ways to fail, each with its own rule and next step."""

import errno
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from copy import deepcopy
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from attestation.errors import ProviderAbsent, ProviderError, ProviderFailed
from attestation.providers import QuoteProvider
from attestation.providers.tsm import (
    MAX_OUTBLOB,
    MAX_RACES,
    PATIENCE_SECONDS,
)
from attestation.quote import MIN_BYTES, Quote
from tests.attestation.providers.fake_tsm import (
    FakeTsm,
    Hook,
    Host,
    failing,
    passing,
    provider,
    quote_of,
    removing,
    unloading,
    writing,
)
from tests.attestation.quotes import DRAFTS, V4

DATA = bytes(range(64))
QUOTE = quote_of(DATA)


@contextmanager
def refused(
    fake: FakeTsm, rule: str, kind: type[ProviderError] = ProviderFailed
) -> Iterator[pytest.ExceptionInfo[ProviderError]]:
    """The block fails by this rule, says what to do next, and leaves no folder."""
    with pytest.raises(ProviderError) as caught:
        yield caught
    error = caught.value
    assert (type(error), error.rule) == (kind, rule)
    assert error.message
    assert error.hint
    assert error.exit_code == 3
    assert fake.reports == {}


def test_one_request() -> None:
    fake = FakeTsm()
    asked: QuoteProvider = provider(fake)
    assert asked.quote(DATA) == QUOTE
    assert fake.log == [
        "mkdir",
        "read provider",
        "read generation",
        "write inblob",
        "read generation",
        "read outblob",
        "read generation",
        "rmdir",
    ]
    assert fake.reports == {}
    assert fake.clock.sleeps == []


@pytest.mark.parametrize("draft", DRAFTS)
@pytest.mark.parametrize("padding", [0, 1, 3065])
def test_every_kind_of_quote_without_its_padding(draft: str, padding: int) -> None:
    expected = DRAFTS[draft].with_(report_data=DATA).build()
    fake = FakeTsm(
        quote=lambda data: DRAFTS[draft].with_(report_data=data).build() + bytes(padding)
    )
    assert provider(fake).quote(DATA) == expected


def test_names_are_random_and_tell_whose_they_are() -> None:
    fake = FakeTsm()
    for _ in range(20):
        provider(fake).quote(DATA)
    assert len(set(fake.names)) == 20
    assert all(name.startswith("attestation-") and len(name) == 44 for name in fake.names)


@pytest.mark.parametrize("size", [0, 32, 63, 65])
def test_report_data_of_another_size_never_reaches_the_kernel(size: int) -> None:
    fake = FakeTsm()
    with refused(fake, "tsm.report-data-size"):
        provider(fake).quote(bytes(size))
    assert fake.log == []


# What each errno means: at the step where this kernel gives it, by its own doing where it can.
ERRNOS: list[tuple[str, int, str, type[ProviderError]]] = [
    ("mkdir", errno.ENOENT, "tsm.no-configfs", ProviderAbsent),
    ("mkdir", errno.ENXIO, "tsm.no-provider", ProviderAbsent),
    ("mkdir", errno.EACCES, "tsm.permission", ProviderFailed),
    ("mkdir", errno.EPERM, "tsm.permission", ProviderFailed),
    ("mkdir", errno.EROFS, "tsm.permission", ProviderFailed),
    ("write inblob", errno.EFBIG, "tsm.report-data-refused", ProviderFailed),
    ("read outblob", errno.EINVAL, "tsm.inblob", ProviderFailed),
    ("read outblob", errno.EIO, "tsm.hypercall", ProviderFailed),
    ("read outblob", errno.EFBIG, "tsm.oversized", ProviderFailed),
    ("read outblob", errno.ENXIO, "tsm.provider-gone", ProviderFailed),
    ("read outblob", errno.ENOENT, "tsm.folder-gone", ProviderFailed),
    ("read outblob", errno.EBUSY, "tsm.busy", ProviderFailed),
    ("read outblob", errno.EINTR, "tsm.interrupted", ProviderFailed),
    ("read outblob", errno.ETIMEDOUT, "tsm.no-answer", ProviderFailed),
    ("read outblob", errno.ENOMEM, "tsm.kernel", ProviderFailed),
    ("rmdir", errno.EBUSY, "tsm.cleanup", ProviderFailed),
]


def test_every_errno_has_its_own_rule_message_and_hint() -> None:
    shown = {}
    for operation, number, rule, kind in ERRNOS:
        fake = FakeTsm(hooks={operation: [failing(number)] * 200})
        with pytest.raises(ProviderError) as caught:
            provider(fake).quote(DATA)
        error = caught.value
        assert (type(error), error.rule) == (kind, rule), operation
        assert errno.errorcode[number] in error.got
        assert operation.split()[0] in error.got
        assert len(fake.reports) == (operation == "rmdir")
        shown[rule] = (error.message.partition(", and still")[0], error.hint)
        print(f"{operation:<13} {errno.errorcode[number]:<10} {kind.__name__:<15} {rule}")
    # The three ways to lack a permission are one.
    assert len(shown) == len(ERRNOS) - 2
    assert len({message for message, _ in shown.values()}) == len(shown)
    assert len({hint for _, hint in shown.values()}) == len(shown)


# The same by what happens to the kernel, not by an errno put in its mouth.
CAUSES: dict[str, tuple[FakeTsm, str, type[ProviderError]]] = {
    "no-configfs": (FakeTsm(configfs=False), "tsm.no-configfs", ProviderAbsent),
    "no-provider": (FakeTsm(provider=None), "tsm.no-provider", ProviderAbsent),
    "amd": (FakeTsm(provider="sev_guest"), "tsm.other-provider", ProviderAbsent),
    "arm": (FakeTsm(provider="arm_cca_guest"), "tsm.other-provider", ProviderAbsent),
    "similar-name": (FakeTsm(provider="tdx_guest2"), "tsm.other-provider", ProviderAbsent),
    "unloaded-early": (
        FakeTsm(hooks={"read provider": [unloading]}),
        "tsm.provider-gone",
        ProviderFailed,
    ),
    "unloaded-late": (
        FakeTsm(hooks={"read outblob": [unloading]}),
        "tsm.provider-gone",
        ProviderFailed,
    ),
    "removed": (FakeTsm(hooks={"write inblob": [removing]}), "tsm.folder-gone", ProviderFailed),
    "hypercall": (FakeTsm(host=[Host.REFUSES_CALL]), "tsm.hypercall", ProviderFailed),
    "status": (
        FakeTsm(host=[Host.REFUSES_QUOTE], checks_status=True),
        "tsm.hypercall",
        ProviderFailed,
    ),
    "status-in-older-kernels": (
        FakeTsm(host=[Host.REFUSES_QUOTE]),
        "tsm.empty-quote",
        ProviderFailed,
    ),
    "small-buffer": (FakeTsm(buffer=1000), "tsm.oversized", ProviderFailed),
}


@pytest.mark.parametrize("cause", CAUSES)
def test_what_happens_to_the_kernel(cause: str) -> None:
    arranged, rule, kind = CAUSES[cause]
    fake = deepcopy(arranged)
    with refused(fake, rule, kind):
        provider(fake).quote(DATA)
    assert fake.clock.sleeps == []


@pytest.mark.parametrize("size", [0, 1, 48, MIN_BYTES - 1])
def test_empty_and_short_quotes_name_the_known_causes(size: int) -> None:
    fake = FakeTsm(quote=lambda data: quote_of(data)[:size])
    with refused(fake, "tsm.empty-quote") as caught:
        provider(fake).quote(DATA)
    assert caught.value.got == f"{size} bytes"
    assert "quote-generation-socket" in caught.value.hint
    assert "DCAP 1.21" in caught.value.hint


def test_zeros_are_an_empty_quote() -> None:
    fake = FakeTsm(quote=lambda _: bytes(8000))
    with refused(fake, "tsm.empty-quote") as caught:
        provider(fake).quote(DATA)
    assert caught.value.got == "8000 bytes of zeros"


@pytest.mark.parametrize(
    ("quote", "text"),
    [
        (QUOTE[:-1], "break"),
        (QUOTE + b"\1", "break"),
        (V4.with_(report_data=DATA, version=b"\3\0").build(), "break"),
        # A failed request of an older kernel can leave the guest's own TDREPORT in the buffer.
        (b"\x81" + bytes(15) + b"\xff" * 1008, "1024 bytes"),
        (b"\xd8\x3d" * 5000, "10000 bytes"),
    ],
)
def test_what_is_no_quote(quote: bytes, text: str) -> None:
    fake = FakeTsm(quote=lambda _: quote, buffer=MAX_OUTBLOB)
    with refused(fake, "tsm.no-quote") as caught:
        provider(fake).quote(DATA)
    assert text in caught.value.got
    assert caught.value.__cause__ is not None


def test_reading_is_bounded() -> None:
    fake = FakeTsm(quote=lambda _: bytes(16 << 20), buffer=16 << 20)
    with refused(fake, "tsm.oversized") as caught:
        provider(fake).quote(DATA)
    assert str(MAX_OUTBLOB) in caught.value.expected


@pytest.mark.parametrize("at", [0, 31, 32, 63])
def test_all_of_the_report_data_counts(at: int) -> None:
    other = DATA[:at] + b"\xff" + DATA[at + 1 :]
    fake = FakeTsm(quote=lambda _: quote_of(other))
    with refused(fake, "tsm.report-data") as caught:
        provider(fake).quote(DATA)
    assert (caught.value.expected, caught.value.got) == (DATA.hex(), other.hex())
    assert fake.clock.sleeps == []


@pytest.mark.parametrize("text", [b"", b"-1\n", b"one\n", b"1\n2\n", b"1" * 21, b"\xff\n", b"1 \n"])
def test_a_generation_that_is_no_number(text: bytes) -> None:
    class Odd(FakeTsm):
        def read(self, name: str, attribute: str, limit: int) -> bytes:
            return text if attribute == "generation" else super().read(name, attribute, limit)

    fake = Odd()
    with refused(fake, "tsm.generation-format") as caught:
        provider(fake).quote(DATA)
    assert caught.value.got.isascii()


def test_a_long_provider_is_cut() -> None:
    fake = FakeTsm(provider="x" * 9000)
    with refused(fake, "tsm.other-provider", ProviderAbsent) as caught:
        provider(fake).quote(DATA)
    assert len(caught.value.got) < 100


# Races. A foreign writer needs the same user or root; it is detected, whenever it comes.
def foreign(when: str, data: bytes, times: int = 1) -> FakeTsm:
    """A kernel on which another program writes to the folders of `times` requests."""
    before, operation = FOREIGN[when]
    calls = 3 if operation == "read generation" else 1
    hooks: list[Hook] = [passing] * calls
    hooks[before] = writing(data)
    return FakeTsm(hooks={operation: hooks * times})


# The writer comes before the n-th call of this operation; a request reads the generation 3 times.
FOREIGN = {
    "after-ours": (1, "read generation"),
    "before-the-quote": (0, "read outblob"),
    "after-the-quote": (2, "read generation"),
}


@pytest.mark.parametrize("data", [bytes(64), b"short", DATA], ids=["other", "invalid", "same"])
@pytest.mark.parametrize("when", FOREIGN)
def test_foreign_writer_is_detected(when: str, data: bytes) -> None:
    fake = foreign(when, data, times=MAX_RACES)
    with refused(fake, "tsm.generation-race") as caught:
        provider(fake).quote(DATA)
    assert (caught.value.expected, caught.value.got) == ("generation 1", "generation 2")
    assert len(set(fake.names)) == MAX_RACES


@pytest.mark.parametrize("when", FOREIGN)
def test_after_a_race_the_next_folder_is_good(when: str) -> None:
    fake = foreign(when, bytes(64), times=MAX_RACES - 1)
    assert provider(fake).quote(DATA) == QUOTE
    assert len(set(fake.names)) == MAX_RACES
    assert fake.reports == {}


def test_a_write_before_our_count_starts_is_no_race() -> None:
    fake = FakeTsm(hooks={"read generation": [writing(bytes(64))]})
    assert provider(fake).quote(DATA) == QUOTE
    assert len(fake.names) == 1


def test_a_race_explains_the_failure_that_it_causes() -> None:
    fake = foreign("before-the-quote", b"short", times=MAX_RACES)
    with refused(fake, "tsm.generation-race") as caught:
        provider(fake).quote(DATA)
    assert isinstance(caught.value.__cause__, ProviderFailed)
    assert caught.value.__cause__.rule == "tsm.inblob"


def test_a_write_that_close_lost() -> None:
    fake = FakeTsm(lost_commits=1)
    assert provider(fake).quote(DATA) == QUOTE
    assert fake.log.count("read outblob") == 1
    fake = FakeTsm(lost_commits=MAX_RACES)
    with refused(fake, "tsm.write-lost"):
        provider(fake).quote(DATA)
    assert "read outblob" not in fake.log


# What passes by itself.
@pytest.mark.parametrize("number", [errno.EBUSY, errno.EINTR, errno.ETIMEDOUT])
@pytest.mark.parametrize("times", [1, 5])
@pytest.mark.parametrize("operation", ["mkdir", "read provider", "write inblob", "read outblob"])
def test_retried_until_it_works(operation: str, times: int, number: int) -> None:
    fake = FakeTsm(hooks={operation: [failing(number)] * times})
    assert provider(fake).quote(DATA) == QUOTE
    assert fake.clock.sleeps == [1.0] * times
    assert fake.reports == {}


@pytest.mark.parametrize("host", [Host.SIGNAL, Host.LAST_MOMENT, Host.SILENT])
@pytest.mark.parametrize("checks_status", [False, True])
def test_an_interrupted_request_stays_with_the_host(host: Host, checks_status: bool) -> None:
    fake = FakeTsm(host=[host], held=3, checks_status=checks_status)
    assert provider(fake).quote(DATA) == QUOTE
    assert fake.in_flight == 0
    assert len(fake.clock.sleeps) == (1 if host is Host.LAST_MOMENT else 4)


@pytest.mark.parametrize(
    ("host", "held", "rule"),
    [
        (Host.SILENT, 0, "tsm.no-answer"),
        (Host.SILENT, 1000, "tsm.busy"),
        (Host.LAST_MOMENT, 0, "tsm.no-answer"),
        (Host.SIGNAL, 0, "tsm.interrupted"),
    ],
)
def test_deadline(host: Host, held: int, rule: str) -> None:
    fake = FakeTsm(host=[host] * 1000, held=held)
    start = fake.clock.now
    with refused(fake, rule) as caught:
        provider(fake).quote(DATA)
    assert "still after 100 seconds" in caught.value.message
    # One request more may be under way when it ends, but no wait is begun that would pass it.
    assert PATIENCE_SECONDS - 30 <= fake.clock.now - start <= PATIENCE_SECONDS + 30
    assert len(fake.names) == fake.log.count("rmdir")


def test_no_patience() -> None:
    fake = FakeTsm(in_flight=1)
    with refused(fake, "tsm.busy"):
        replace(provider(fake), patience=0.0).quote(DATA)
    assert fake.clock.sleeps == []


def queue(fake: FakeTsm, _: str) -> None:
    """The kernel is busy with the requests of others."""
    fake.clock.now += 60


def test_a_quote_that_had_to_wait_for_others_is_good() -> None:
    fake = FakeTsm(hooks={"read outblob": [queue]})
    assert provider(fake).quote(DATA) == QUOTE
    assert len(fake.names) == 1


@pytest.mark.parametrize(
    ("fake", "rule", "requests"),
    [
        # Looks like no answer at first, so it is tried once more, and then called what it is.
        (FakeTsm(host=[Host.REFUSES_QUOTE] * 2), "tsm.empty-quote", 2),
        (FakeTsm(host=[Host.REFUSES_CALL] * 2), "tsm.hypercall", 2),
        (FakeTsm(buffer=1000), "tsm.oversized", 1),
    ],
)
def test_a_failure_that_had_to_wait_for_others(fake: FakeTsm, rule: str, requests: int) -> None:
    fake = deepcopy(fake)
    fake.hooks["read outblob"] = [queue]
    with refused(fake, rule):
        provider(fake).quote(DATA)
    assert len(fake.names) == requests


# Cleaning up.
def test_the_folder_of_another_is_never_removed() -> None:
    fake = FakeTsm()
    fake.mkdir("taken")
    with pytest.raises(ProviderFailed) as caught:
        replace(provider(fake), new_name=lambda: "taken").quote(DATA)
    assert caught.value.rule == "tsm.kernel"
    assert "EEXIST" in caught.value.got
    assert "taken" in fake.reports


def test_a_first_error_is_kept_when_cleaning_up_fails_too() -> None:
    fake = FakeTsm(
        hooks={"read outblob": [failing(errno.EIO)], "rmdir": [failing(errno.EBUSY)]},
    )
    with pytest.raises(ProviderFailed) as caught:
        provider(fake).quote(DATA)
    assert caught.value.rule == "tsm.hypercall"
    assert fake.names[0] in caught.value.__notes__[0]


def test_a_folder_that_another_removed_after_the_quote() -> None:
    fake = FakeTsm(hooks={"rmdir": [failing(errno.ENOENT)]})
    with pytest.raises(ProviderFailed) as caught:
        provider(fake).quote(DATA)
    assert caught.value.rule == "tsm.folder-gone"


def test_an_interrupted_program_leaves_no_folder() -> None:
    def interrupt(_: FakeTsm, __: str) -> None:
        raise KeyboardInterrupt

    fake = FakeTsm(hooks={"read outblob": [interrupt]})
    with pytest.raises(KeyboardInterrupt):
        provider(fake).quote(DATA)
    assert fake.reports == {}


OPERATIONS = ["read provider", "read generation", "write inblob", "read outblob"]
hooks = st.lists(
    st.just(passing)
    | st.builds(failing, st.sampled_from([*errno.errorcode, 0, -1, 9999]))
    | st.builds(writing, st.sampled_from([b"", bytes(64), DATA])),
    max_size=6,
)


@given(
    st.fixed_dictionaries(dict.fromkeys(OPERATIONS, hooks)),
    st.lists(st.sampled_from(Host), max_size=5),
    st.booleans(),
    st.integers(0, 4),
    st.integers(0, 200),
)
def test_whatever_fails_it_ends_in_time_and_cleans_up(
    hooks: dict[str, list[Hook]], host: list[Host], checks_status: bool, lost: int, held: int
) -> None:
    fake = FakeTsm(
        host=host, checks_status=checks_status, lost_commits=lost, held=held, hooks=hooks
    )
    start = fake.clock.now
    # Any other exception fails the test, and so does a quote that isn't ours.
    with suppress(ProviderError):
        assert provider(fake).quote(DATA) == QUOTE
    assert fake.reports == {}
    assert fake.clock.now - start <= PATIENCE_SECONDS + 31


def changed(at: int, new: bytes) -> bytes:
    at %= len(QUOTE)
    return QUOTE[:at] + new + QUOTE[at + len(new) :]


@given(st.binary(max_size=3000) | st.builds(changed, st.integers(0), st.binary()))
def test_whatever_the_host_answers(answer: bytes) -> None:
    fake = FakeTsm(quote=lambda _: answer)
    with suppress(ProviderFailed):
        assert Quote.parse(provider(fake).quote(DATA)).body.report_data == DATA
    assert fake.reports == {}


# Two at once.
def test_a_request_within_a_request_has_its_own_folder() -> None:
    inner: list[bytes] = []
    other = bytes(64)

    def nested(fake: FakeTsm, _: str) -> None:
        inner.append(provider(fake).quote(other))

    fake = FakeTsm(hooks={"read outblob": [nested]})
    assert provider(fake).quote(DATA) == QUOTE
    assert inner == [quote_of(other)]
    assert len(set(fake.names)) == 2
    assert fake.reports == {}


def test_threads_share_a_provider() -> None:
    both = threading.Barrier(2, timeout=30)

    def meet(_: FakeTsm, __: str) -> None:
        both.wait()

    fake = FakeTsm(hooks={"read outblob": [meet] * 2})
    wanted = [bytes([i]) * 64 for i in range(2)]
    with ThreadPoolExecutor(2) as pool:
        assert list(pool.map(provider(fake).quote, wanted)) == [quote_of(data) for data in wanted]
    assert len(set(fake.names)) == 2
    assert fake.reports == {}
