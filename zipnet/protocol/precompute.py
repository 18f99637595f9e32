"""A server's pads of one round, summed up before the aggregate is there.

    T = XOR of the pads of all clients in the roster
    partial = XOR of the pads of the participants = T ⊕ pads of the absent

The sum begins when the header is signed, since its hash is in every key; what is left to do once
the aggregate names the participants is the smaller of the two sets.
"""

from collections.abc import Sequence
from itertools import pairwise

from zipnet.errors import GuardRefused, Refused
from zipnet.protocol.header import Header
from zipnet.protocol.pads import KeystreamXor, Pair, RoundInfo
from zipnet.protocol.roster import Resume, check_bitmap, places


def advance_all(pairs: Sequence[Pair], round_number: int, resumes: Sequence[Resume]) -> None:
    """`Pair.advance` for all pairs of one server, in time that doesn't grow with both lengths.

    Raises Refused at the first pair that can't; those before it have advanced.
    """
    named = {resume.node for resume in resumes}
    servers = {pair.server for pair in pairs}
    common = [resume for resume in resumes if resume.node in servers]
    for pair in pairs:
        pair.advance(round_number, resumes if pair.client in named else common)


class RoundPads:
    """The pads of one server for one signed header, of the roster's clients in its order.

    Whether a partial may be given at all, and that it is given for one aggregate only, is for the
    server's guard to say: the difference of two partials uncovers clients.
    """

    __slots__ = ("_done", "_erased", "_info", "_keys", "_pairs", "_split", "_sum", "_xor")

    def __init__(self, header: Header, pairs: Sequence[Pair], xor: KeystreamXor) -> None:
        """Begin without a sum; `work` makes it. Raises Refused and leaves the pairs as they are."""
        for pair in pairs:
            pair.check_round(header.round)
        if any(a.client >= b.client for a, b in pairwise(pairs)):
            raise Refused(
                "the pairs are out of order",
                expected="ascending client ids, each once, as in the roster",
                rule="roster.order",
            )
        self._info = RoundInfo.of(header)
        self._pairs = tuple(pairs)
        self._done = 0
        self._xor = xor
        self._split = header.shape.message_bytes
        self._sum = bytearray(header.shape.payload_bytes)
        # Two keys of 32 bytes for each client: one object that is never moved, to be overwritten.
        self._keys = bytearray(64 * len(pairs))
        self._erased = False

    @classmethod
    def prepare(cls, header: Header, pairs: Sequence[Pair], xor: KeystreamXor) -> "RoundPads":
        """Take the keys of all pairs, step them and sum up their pads. Raises Refused."""
        result = cls(header, pairs, xor)
        result.work(len(pairs))
        return result

    def work(self, clients: int) -> bool:
        """Do as `prepare`, for so many more clients; whether any are left after that.

        An event loop calls it between other things, a few hundred clients at a time.
        Raises GuardRefused after `erase`.
        """
        if self._erased:
            raise GuardRefused(
                "the pads of this round are erased",
                rule="erased",
                hint="the round is closed: nothing more is answered in it",
            )
        first = self._done
        for pair in self._pairs[first : first + clients]:
            at = 64 * self._done
            self._keys[at : at + 64] = b"".join(pair.pad_keys(self._info))
            pair.step()
            self._done += 1
        self._add(self._sum, range(first, self._done))
        return self._done < len(self._pairs)

    def partial(self, participants: bytes) -> bytes:
        """The XOR of the participants' pads: `payload_bytes` bytes. `participants` is a bitmap.

        Does what `work` has left over first. Raises WireFormatError for a wrong bitmap and
        GuardRefused after `erase`.
        """
        count = len(self._pairs)
        check_bitmap(participants, count)
        self.work(count)
        bits = int.from_bytes(participants, "little")
        if 2 * bits.bit_count() < count:
            result, chosen = bytearray(len(self._sum)), participants
        else:
            absent = bits ^ (1 << count) - 1
            result, chosen = bytearray(self._sum), absent.to_bytes(len(participants), "little")
        self._add(result, places(chosen, count))
        return bytes(result)

    def erase(self) -> None:
        """Overwrite sum and keys, as far as Python can; the pairs are not this object's."""
        for secret in (self._sum, self._keys):
            secret[:] = bytes(len(secret))
        self._erased = True

    def _add(self, result: bytearray, chosen: Sequence[int]) -> None:
        keys, view = memoryview(self._keys), memoryview(result)
        for offset, vector in ((0, view[: self._split]), (32, view[self._split :])):
            starts = (64 * place + offset for place in chosen)
            self._xor([bytes(keys[at : at + 32]) for at in starts], vector)
