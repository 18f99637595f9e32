"""The guest's end of the virtual TDX, on a terminal pair in place of the virtio port."""

import errno
import os
import select
import struct
import tty
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from attestation.errors import ProviderAbsent, ProviderFailed
from attestation.providers import mock_td
from attestation.providers.mock_td import (
    IDLE,
    LEAD,
    MAX_ANSWER,
    MAX_TEXT,
    NONCE_SIZE,
    PORT_NAME,
    QUOTED,
    REFUSED,
    REQUEST_SIZE,
    MockTdProvider,
    answer,
    find_port,
)
from attestation.providers.mock_td_host import frame
from tests.attestation.measure.support import refused

REPORT_DATA = bytes(range(64))
NONCE = bytes(range(100, 116))
QUOTE = b"a quote" * 700


class Host:
    """The other end of the port: reads one request, then writes what it is told to."""

    def __init__(self) -> None:
        self.end, self._guest = os.openpty()
        tty.setraw(self._guest)
        self.port = Path(os.ttyname(self._guest))
        self._pool = ThreadPoolExecutor(1)

    def close(self) -> None:
        self._pool.shutdown()
        os.close(self.end)
        os.close(self._guest)

    def request(self) -> bytes:
        """The next request, with what stands before it."""
        received = b""
        while len(received) < len(IDLE) + REQUEST_SIZE:
            received += os.read(self.end, len(IDLE) + REQUEST_SIZE - len(received))
        return received

    def write(self, data: bytes) -> None:
        while data:
            data = data[os.write(self.end, data) :]

    def answers(self, reply: Callable[[bytes], bytes]) -> "Future[bytes]":
        """Answer one request with `reply(nonce)`, in a thread; the future is the request."""

        def serve() -> bytes:
            received = self.request()
            start = len(IDLE) + len(LEAD)
            self.write(reply(received[start : start + NONCE_SIZE]))
            return received

        return self._pool.submit(serve)


@pytest.fixture
def host() -> Iterator[Host]:
    host = Host()
    yield host
    host.close()


def provider(host: Host, patience: float = 10.0) -> MockTdProvider:
    return MockTdProvider(host.port, patience=patience, draw=lambda size: NONCE[:size])


def test_wire() -> None:
    """Written out: both ends use the same constants."""
    assert LEAD == b"\0\0\0\x58mock-td\1"
    assert REQUEST_SIZE == 4 + 8 + 16 + 64
    assert PORT_NAME == "org.zipnet.mock-td"


def test_quote(host: Host) -> None:
    seen = host.answers(lambda nonce: frame(nonce, QUOTED, QUOTE))
    assert provider(host).quote(REPORT_DATA) == QUOTE
    assert seen.result(5) == IDLE + LEAD + NONCE + REPORT_DATA


def test_each_request_has_its_own_nonce(host: Host) -> None:
    nonces = []
    for _ in range(2):
        seen = host.answers(lambda nonce: frame(nonce, QUOTED, QUOTE))
        assert MockTdProvider(host.port).quote(REPORT_DATA) == QUOTE
        nonces.append(seen.result(5)[-64 - NONCE_SIZE : -64])
    assert nonces[0] != nonces[1]


@pytest.mark.parametrize(
    "stale",
    [
        frame(bytes(16), QUOTED, b"another program's"),
        frame(bytes(16), QUOTED, b"another program's")[7:],
        frame(bytes(16), QUOTED, bytes(MAX_ANSWER - 17)),
        b"\xff" * 3,
        NONCE[:15],
    ],
    ids=["whole", "tail", "longest", "short", "nearly"],
)
def test_what_an_earlier_program_left_is_skipped(host: Host, stale: bytes) -> None:
    host.answers(lambda nonce: stale + frame(nonce, QUOTED, QUOTE))
    assert provider(host).quote(REPORT_DATA) == QUOTE


def test_refused(host: Host) -> None:
    text = b"no\x1b[2J\n\xff" + b"x" * 2000
    host.answers(lambda nonce: frame(nonce, REFUSED, text))
    with pytest.raises(ProviderFailed) as caught:
        provider(host).quote(REPORT_DATA)
    assert caught.value.rule == "mock-td.refused"
    assert caught.value.got.startswith("no?[2J?\ufffdxx")
    assert caught.value.got.isprintable()
    assert len(caught.value.got) <= MAX_TEXT


@pytest.mark.parametrize(
    ("size", "body"),
    [(16, NONCE), (22, NONCE + b"\2quote"), (MAX_ANSWER + 1, NONCE), (0, NONCE), (1 << 31, NONCE)],
)
def test_an_answer_that_is_none(host: Host, size: int, body: bytes) -> None:
    host.answers(lambda _: struct.pack(">I", size) + body)
    with refused(ProviderFailed, "mock-td.answer"):
        provider(host).quote(REPORT_DATA)


def test_a_nonce_without_a_length(host: Host) -> None:
    host.answers(lambda nonce: nonce)
    with refused(ProviderFailed, "mock-td.answer"):
        provider(host).quote(REPORT_DATA)


@pytest.mark.parametrize("part", [0, 1, 30])
def test_no_answer(host: Host, part: int) -> None:
    host.answers(lambda nonce: frame(nonce, QUOTED, QUOTE)[:part])
    with refused(ProviderFailed, "mock-td.no-answer"):
        provider(host, patience=0.3).quote(REPORT_DATA)


class Gone:
    """A poll that finds the port hung up, as a virtio port whose host is not connected."""

    def register(self, port: int, events: int) -> None:
        """Nothing to remember."""

    def poll(self, milliseconds: float) -> list[tuple[int, int]]:
        assert milliseconds > 0
        return [(0, select.POLLHUP)]


def test_the_host_went_away(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter(range(100))
    waited: list[float] = []
    monkeypatch.setattr("attestation.providers.mock_td.select.poll", Gone)
    ours = MockTdProvider(host.port, clock=lambda: next(clock), sleep=waited.append)
    with refused(ProviderFailed, "mock-td.no-answer"):
        ours.quote(REPORT_DATA)
    assert set(waited) == {mock_td.RETRY_SECONDS}


@pytest.mark.parametrize("size", [0, 63, 65])
def test_report_data_size(size: int) -> None:
    with refused(ProviderFailed, "mock-td.report-data-size"):
        MockTdProvider(Path("/nowhere")).quote(bytes(size))


def test_no_port(tmp_path: Path) -> None:
    with refused(ProviderAbsent, "mock-td.no-port"):
        MockTdProvider(tmp_path / "vport0p1").quote(REPORT_DATA)


def test_not_permitted(tmp_path: Path) -> None:
    # What opening a folder for writing says, to root as well.
    with refused(ProviderFailed, "mock-td.port", "Is a directory"):
        MockTdProvider(tmp_path).quote(REPORT_DATA)


def test_one_at_a_time(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    """The others wait; EBUSY is what the kernel says to all but the first that opens the port."""
    real, busy = os.open, iter([errno.EBUSY] * 3)

    def taken(path: Path, flags: int) -> int:
        if number := next(busy, 0):
            raise OSError(number, os.strerror(number))
        return real(path, flags)

    host.answers(lambda nonce: frame(nonce, QUOTED, QUOTE))
    waited: list[float] = []
    monkeypatch.setattr("attestation.providers.mock_td.os.open", taken)
    assert MockTdProvider(host.port, sleep=waited.append).quote(REPORT_DATA) == QUOTE
    assert waited == [mock_td.RETRY_SECONDS] * 3


def test_busy_for_too_long(monkeypatch: pytest.MonkeyPatch) -> None:
    def taken(path: Path, flags: int) -> int:
        raise OSError(errno.EBUSY, os.strerror(errno.EBUSY))

    monkeypatch.setattr("attestation.providers.mock_td.os.open", taken)
    clock = iter(range(100))
    waited: list[float] = []
    ours = MockTdProvider(Path("/dev/x"), clock=lambda: next(clock), sleep=waited.append)
    with refused(ProviderFailed, "mock-td.busy"):
        ours.quote(REPORT_DATA)
    assert len(waited) == mock_td.PATIENCE_SECONDS


def test_find_port(tmp_path: Path) -> None:
    ports = tmp_path / "sys/class/virtio-ports"
    assert find_port(tmp_path) is None
    ports.mkdir(parents=True)
    assert find_port(tmp_path) is None
    for index, name in enumerate(["org.other", None, PORT_NAME + "s", PORT_NAME[:-1], ""]):
        (ports / f"vport0p{index}").mkdir()
        if name is not None:
            (ports / f"vport0p{index}" / "name").write_text(name + "\n")
    assert find_port(tmp_path) is None
    (ports / "vport3p1").mkdir()
    (ports / "vport3p1" / "name").write_text(PORT_NAME + "\n")
    assert find_port(tmp_path) == tmp_path / "dev/vport3p1"


@given(before=st.binary(max_size=40), content=st.binary(max_size=40), after=st.binary(max_size=9))
def test_an_answer_is_found_wherever_it_starts(before: bytes, content: bytes, after: bytes) -> None:
    whole = before + frame(NONCE, QUOTED, content)
    if NONCE in before:
        return
    assert answer(whole + after, NONCE) == (QUOTED, content)
    for end in range(len(before), len(whole)):
        assert answer(whole[:end], NONCE) is None
