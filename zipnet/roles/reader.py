"""Reading broadcasts: final records, each checked, each after the one before.

Reading asks for no tickets, since nothing secret is given away. A record is believed if all servers
of its header signed it, and they were one of each operator of some set of operators that there has
been, sets in their order. Whose server signed, today or years ago, is told by the operator's
endorsement on the server's card, which stays in the registry after the server has gone.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import AsyncIterator

from zipnet.errors import (
    EngineError,
    Protocol,
    WireFormatError,
    ZipnetError,
)
from zipnet.network.base import Entry
from zipnet.protocol.header import NO_HASH, Header
from zipnet.protocol.record import Record, SignedRecord
from zipnet.roles.committee_view import Lookout
from zipnet.roles.seats import Seats

# So many entries before its start a reader looks at, to know what the first record follows.
BEFORE = 64
# Later repetitions of a record are told from forks as long as its hash is among so many.
REMEMBERED = 4096


class RecordReader:
    """Final records from round `start` on; from now on if it is None.

    An async iterator without end. It raises Protocol at what is no record of this deployment, and
    where records are missing: nothing is passed over but repetitions, and what lies before its
    start. Lagged, and other EngineErrors, come from the network.
    """

    def __init__(self, lookout: Lookout, seats: Seats, start: int | None) -> None:
        self._lookout = lookout
        self._seats = seats
        self._start = start
        self._hashes: OrderedDict[bytes, None] = OrderedDict()
        self._entries: AsyncIterator[Entry]
        self._old = 0  # entries up to this one lie before the start
        self._trimmed = False
        self._last: Record | None = None

    async def open(self) -> None:
        """Find the place where to start. Raises EngineError."""
        first, last = await self._lookout.records.bounds()
        before = first - 1
        if self._start is None:
            before, self._old = max(before, last - BEFORE), last
        self._trimmed = before > 0
        self._entries = self._lookout.records.read(after=before)

    def __aiter__(self) -> RecordReader:
        return self

    async def __anext__(self) -> Record:
        async for entry in self._entries:
            try:
                signed = SignedRecord.decode(entry.data)
                if self._is_old(entry, signed.record):
                    self._remember(signed.record.hash)
                    continue
                if signed.record.hash in self._hashes:
                    continue
                signed.verify(await self._seats.peers(signed.record.header))
            except EngineError:
                raise
            except ZipnetError as error:
                if self._last is None and isinstance(error, WireFormatError):
                    continue  # whatever is missing for it will show as a gap
                raise Protocol(
                    f"entry {entry.seq} of the broadcasts is no record of this deployment: "
                    f"{error.message}",
                    expected=error.expected,
                    got=error.got,
                    rule=error.rule,
                    hint=error.hint or "no server writes such entries: somebody else did",
                ) from error
            self._check_follows(signed.record.header)
            self._remember(signed.record.hash)
            self._last = signed.record
            return signed.record
        raise StopAsyncIteration

    def _is_old(self, entry: Entry, record: Record) -> bool:
        if self._last is not None:
            return False
        return entry.seq <= self._old or record.header.round < (self._start or 0)

    def _check_follows(self, header: Header) -> None:
        previous = header.previous_record
        if self._last is not None:
            # A recovery may begin its generation at an earlier record.
            anew = header.instance != self._last.header.instance
            good = previous == self._last.hash or (anew and previous in self._hashes)
        elif self._hashes or not self._trimmed:
            good = previous == NO_HASH or previous in self._hashes
        else:
            good = self._start in (None, header.round)  # what came before is not in the log
        if not good:
            raise Protocol(
                "records are missing",
                expected=f"the record {previous.hex()[:16]} before that of round {header.round}",
                got=f"that of round {self._last.header.round}" if self._last else "none",
                rule="record.gap",
                hint="fetch them from the archive (`zipnet archive get ROUND`), or read from here",
            )

    def _remember(self, digest: bytes) -> None:
        self._hashes[digest] = None
        while len(self._hashes) > REMEMBERED:
            self._hashes.popitem(last=False)
