"""Fuzz target: what servers answer about streams, and the subjects and headers of messages."""

from zipnet.network import _nats_stream
from zipnet.network._nats_wire import Raw

INFO = b'{"config": {}, "state": {"first_seq": 1, "last_seq": 2}, "created": "x"}'
ERROR = b'{"error": {"code": 404, "err_code": 10059, "description": "stream not found"}}'
ACK = b"$JS.ACK._.hash.stream.consumer.1.42.7.1.0.x"


def seeds() -> list[bytes]:
    return [
        INFO,
        ERROR,
        b'{"stream": "s", "seq": 7}',
        ACK,
        b"NATS/1.0\r\nNats-Msg-Id: k\r\n\r\n",
        b"42",
    ]


def fuzz_one(data: bytes) -> None:
    answer = _nats_stream.decode(data)
    if answer is not None:
        refusal = _nats_stream._refusal(answer)
        assert refusal is None or refusal.code >= 0
        _nats_stream._number(_nats_stream._mapping(answer.get("state")).get("last_seq"))
    text = data.decode("utf-8", "replace")
    delivered = _nats_stream.delivered(Raw("s", text, {}, b""))
    assert delivered is None or delivered.seq >= 0
    stored = _nats_stream.stored(Raw("s", "", {"Nats-Sequence": text}, b""))
    assert (stored is None) == (not _nats_stream._is_number(text))
    for name, value in _nats_stream._headers(data).items():
        assert (name, value) == (name.strip(), value.strip())
