"""What comes with a live header: everybody's epoch keys, signed, and the epoch's Resumes.

With the header and this sheet a client needs nothing else to take part. The servers are those of
the whole epoch, also such as rest at the moment: their keys are needed when they return within it.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from struct import Struct

from zipnet.errors import Refused
from zipnet.ids import client_id, server_id
from zipnet.operators import Endorsement
from zipnet.protocol.codec import Reader
from zipnet.protocol.header import Header
from zipnet.protocol.instance import Instance
from zipnet.protocol.roster import (
    MAX_CLIENTS,
    MAX_RESUMES,
    MAX_SERVERS,
    EpochKey,
    Member,
    Resume,
    Roster,
)
from zipnet.protocol.seal import Committee, Seat

# Peer key, identity key; then member, epoch, serial, key and signature of the epoch key.
_CLIENT = Struct(">32s32s32sQQ32s64s")
MAX_SHEET = MAX_CLIENTS * 208 + MAX_SERVERS * 312 + MAX_RESUMES * 72 + 12


@dataclass(frozen=True, slots=True)
class ServerEntry:
    """A server: who endorsed it, and its key in this epoch."""

    endorsement: Endorsement
    key: EpochKey

    @property
    def member(self) -> Member:
        """As in rosters."""
        return Member(self.key.member, self.key.key)

    def encode(self) -> bytes:
        """Endorsement, key."""
        return self.endorsement.encode() + self.key.encode()

    @classmethod
    def read(cls, reader: Reader) -> "ServerEntry":
        """The next entry. Raises WireFormatError."""
        return cls(Endorsement.read(reader), EpochKey.read(reader))

    def verify(self, instance: Instance, epoch: int) -> None:
        """Check both signatures and that they are about one server. Raises Refused."""
        self.endorsement.verify(instance)
        _check_key(self.key, server_id(self.endorsement.dh_pub), epoch)
        self.key.verify(instance, self.endorsement.peer)


@dataclass(frozen=True, slots=True)
class ClientEntry:
    """A client: its peer key, its identity key and its key in this epoch."""

    peer: bytes
    dh_pub: bytes
    key: EpochKey

    @property
    def member(self) -> Member:
        """As in rosters."""
        return Member(self.key.member, self.key.key)

    def encode(self) -> bytes:
        """Peer key, identity key, epoch key."""
        return self.peer + self.dh_pub + self.key.encode()

    def verify(self, instance: Instance, epoch: int) -> None:
        """Check the signature and that all is about one client. Raises Refused."""
        _check_key(self.key, client_id(self.dh_pub), epoch)
        self.key.verify(instance, self.peer)


@dataclass(frozen=True, slots=True)
class Sheet:
    """Servers of the epoch and clients of the round, by id; Resumes in log order."""

    servers: tuple[ServerEntry, ...]
    clients: tuple[ClientEntry, ...]
    resumes: tuple[Resume, ...]

    def encode(self) -> bytes:
        """Each part with its u32 count."""
        parts: tuple[Iterable[ServerEntry | ClientEntry | Resume], ...] = (
            self.servers,
            self.clients,
            self.resumes,
        )
        counts = (len(self.servers), len(self.clients), len(self.resumes))
        return b"".join(
            count.to_bytes(4, "big") + b"".join(entry.encode() for entry in part)
            for count, part in zip(counts, parts, strict=True)
        )

    @classmethod
    def decode(cls, raw: bytes) -> "Sheet":
        """The sheet in `raw`, all of it, nothing checked. Raises WireFormatError."""
        reader = Reader(raw, "sheet", at_most=MAX_SHEET)
        result = cls(
            reader.many(4, MAX_SERVERS, ServerEntry.read),
            _read_clients(reader),
            reader.many(4, MAX_RESUMES, Resume.read),
        )
        reader.done()
        return result

    def roster(self, header: Header) -> Roster:
        """The roster of the header, by its hash. Raises Refused, and WireFormatError."""
        servers = {
            entry.key.member: Member(entry.key.member, entry.key.key) for entry in self.servers
        }
        chosen = [servers[one] for one in header.servers if one in servers]
        roster = Roster(tuple(entry.member for entry in self.clients), tuple(chosen))
        if roster.hash() != header.roster_hash:
            raise Refused(
                "the sheet is not that of the header",
                expected=header.roster_hash.hex(),
                got=roster.hash().hex(),
                rule="sheet.roster",
                hint="fetch the sheet that belongs to this header",
            )
        return roster

    def committee(
        self, header: Header, operators: tuple[bytes, ...], waived: frozenset[bytes]
    ) -> Committee:
        """The servers, checked against the operators in force, for `seal.check_header`.

        Raises Refused.
        """
        seats = {}
        for entry in self.servers:
            entry.verify(header.instance, header.epoch)
            operator = entry.endorsement.operator
            seats[entry.key.member] = Seat(operator, entry.endorsement.peer, entry.key.key)
        return Committee(operators, waived, seats)

    def verify_clients(self, header: Header) -> None:
        """Check every client's signature; about 0.1 ms each. Raises Refused."""
        for entry in self.clients:
            entry.verify(header.instance, header.epoch)


def _read_clients(reader: Reader) -> tuple[ClientEntry, ...]:
    """A u32 count, then entries, at once: one field after the other takes four times as long.

    Every client and aggregator decodes a sheet in every round.
    """
    count = reader.u32()
    if count > MAX_CLIENTS:
        raise reader.wrong("count", f"at most {MAX_CLIENTS}", str(count))
    entries = []
    for peer, dh_pub, *key in _CLIENT.iter_unpack(reader.take(count * _CLIENT.size)):
        if (key[1] | key[2]) >> 63:
            raise reader.wrong("number", "at most 2^63 - 1", str(max(key[1], key[2])))
        entries.append(ClientEntry(peer, dh_pub, EpochKey(*key)))
    return tuple(entries)


def _check_key(key: EpochKey, member: bytes, epoch: int) -> None:
    if key.member != member or key.epoch != epoch:
        raise Refused(
            "an epoch key is of another member or epoch",
            expected=f"{member.hex()} in epoch {epoch}",
            got=f"{key.member.hex()} in epoch {key.epoch}",
            rule="sheet.key",
            hint="fetch the sheet again, and from another server",
        )
