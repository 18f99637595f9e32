"""What the local engine keeps in SQLite: each call is a part of one transaction.

All checks of a function come before its first write, so that one which raises has changed nothing.
"""

import sqlite3
from dataclasses import dataclass, field
from pathlib import Path

from zipnet.errors import Conflict, EngineMisconfigured, Lagged, LogBroken
from zipnet.network.base import DEDUP_SECONDS, Entry, Item

VERSION = 1
PAGE_ENTRIES = 500
PAGE_BYTES = 8 << 20

# `taken` outlives the entries, so that a retry after a trim is still known.
_SCHEMA = """
    create table log (name text primary key, first integer not null, last integer not null);
    create table entry (
        log text, seq integer, key text not null, data blob not null, primary key (log, seq)
    );
    create table taken (
        log text, key text, seq integer not null, at real not null, primary key (log, key)
    ) without rowid;
    create table tab (name text primary key, rev integer not null);
    create table item (
        tab text, key text, value blob not null, rev integer not null, expiry real,
        primary key (tab, key)
    );
    create index item_expiry on item (expiry) where expiry is not null
"""


@dataclass(slots=True)
class Transaction:
    """A transaction, its moment in seconds of Unix time, and what it changed."""

    db: sqlite3.Connection
    now: float
    tips: dict[str, int] = field(default_factory=dict)
    items: list[tuple[str, Item]] = field(default_factory=list)


def connect(path: Path, *, durable: bool) -> sqlite3.Connection:
    """Open or create. Raises EngineMisconfigured, sqlite3.Error."""
    db = sqlite3.connect(path, isolation_level=None)
    try:
        _set_up(db, durable=durable)
    except BaseException:
        db.close()
        raise
    return db


def _set_up(db: sqlite3.Connection, *, durable: bool) -> None:
    (mode,) = db.execute("pragma journal_mode = wal").fetchone()
    if mode != "wal":
        raise EngineMisconfigured(
            "the folder can't hold a write-ahead log",
            expected="wal",
            got=mode,
            rule="journal-mode",
            hint="use a local file system",
        )
    db.execute(f"pragma synchronous = {'full' if durable else 'off'}")
    db.execute(f"pragma journal_size_limit = {64 << 20}")
    db.execute("begin immediate")
    (version,) = db.execute("pragma user_version").fetchone()
    if version not in (0, VERSION):
        raise EngineMisconfigured(
            "the folder is of another version",
            expected=str(VERSION),
            got=str(version),
            rule="store-version",
            hint="use the version of zipnet that wrote it",
        )
    if version == 0:
        for statement in _SCHEMA.split(";"):
            db.execute(statement)
        db.execute(f"pragma user_version = {VERSION}")
    db.execute("commit")


def open_log(tx: Transaction, log: str) -> None:
    """Make the log unless it is there."""
    tx.db.execute("insert into log values (?, 1, 0) on conflict do nothing", (log,))
    tx.tips[log] = bounds(tx, log)[1]


def bounds(tx: Transaction, log: str) -> tuple[int, int]:
    """As `Log.bounds`."""
    row = tx.db.execute("select first, last from log where name = ?", (log,)).fetchone()
    if row is None:
        raise LogBroken(f"the log {log} is gone", rule="log.missing", hint="stop this node")
    first, last = row
    return first, last


def append(tx: Transaction, log: str, data: bytes, key: str, expect: int | None) -> int:
    """As `Log.append`."""
    last = bounds(tx, log)[1]
    known = tx.db.execute("select seq from taken where log = ? and key = ?", (log, key)).fetchone()
    if known:
        seq: int = known[0]
        return seq
    if expect is not None and expect != last:
        raise Conflict(
            "the log has another end",
            actual=last,
            expected=str(expect),
            got=str(last),
            rule="append.expect",
            hint="read the log up to its end, and decide again",
        )
    seq = last + 1
    tx.db.execute("insert into entry values (?, ?, ?, ?)", (log, seq, key, data))
    tx.db.execute("insert into taken values (?, ?, ?, ?)", (log, key, seq, tx.now))
    tx.db.execute("update log set last = ? where name = ?", (seq, log))
    tx.tips[log] = seq
    return seq


def page(tx: Transaction, log: str, after: int) -> list[Entry]:
    """The next entries after `after`, some at a time. Raises Lagged, LogBroken."""
    first, last = bounds(tx, log)
    if after > last:
        raise LogBroken(
            f"the log {log} is shorter than it was",
            expected=f"entry {after}",
            got=f"an end at {last}",
            rule="log.short",
            hint="stop this node; the log was replaced or rolled back",
        )
    if after + 1 < first:
        raise Lagged(
            f"the log {log} was trimmed beyond this reader",
            missed=first - 1 - after,
            expected=f"entry {after + 1}",
            got=f"{first} as the first one",
            rule="log.trimmed",
            hint="start from a newer snapshot",
        )
    entries: list[Entry] = []
    size = 0
    rows = tx.db.execute(
        "select seq, key, data from entry where log = ? and seq > ? order by seq limit ?",
        (log, after, PAGE_ENTRIES),
    )
    for seq, key, data in rows:
        if seq != after + len(entries) + 1:
            break
        entries.append(Entry(seq, key, data))
        size += len(data)
        if size >= PAGE_BYTES:
            break
    rows.close()
    if not entries and after < last:
        raise LogBroken(
            f"the log {log} has a gap",
            expected=f"entry {after + 1} of {last}",
            rule="log.gap",
            hint="stop this node; entries were removed",
        )
    return entries


def trim(tx: Transaction, log: str, upto: int) -> None:
    """As `Log.trim`."""
    first, last = bounds(tx, log)
    if first <= upto <= last:
        tx.db.execute("update log set first = ? where name = ?", (upto + 1, log))
        tx.db.execute("delete from entry where log = ? and seq <= ?", (log, upto))
    tx.db.execute(
        "delete from taken where log = ? and seq < (select first from log where name = taken.log)"
        " and at < ?",
        (log, tx.now - DEDUP_SECONDS),
    )


def open_table(tx: Transaction, table: str) -> None:
    """Make the table unless it is there."""
    tx.db.execute("insert into tab values (?, 0) on conflict do nothing", (table,))


def get(tx: Transaction, table: str, key: str) -> Item | None:
    """As `Table.get`."""
    row = tx.db.execute(
        "select value, rev from item where tab = ? and key = ?", (table, key)
    ).fetchone()
    return None if row is None else Item(key, *row)


def put(
    tx: Transaction, table: str, key: str, value: bytes, expect: int | None, ttl: int | None
) -> int:
    """As `Table.put`."""
    _check_revision(tx, table, key, expect)
    item = Item(key, value, _next_revision(tx, table))
    tx.db.execute(
        "insert into item values (?, ?, ?, ?, ?) on conflict do update"
        " set value = excluded.value, rev = excluded.rev, expiry = excluded.expiry",
        (table, key, value, item.rev, None if ttl is None else tx.now + ttl),
    )
    tx.items.append((table, item))
    return item.rev


def delete(tx: Transaction, table: str, key: str, expect: int | None) -> None:
    """As `Table.delete`."""
    if _check_revision(tx, table, key, expect):
        _remove(tx, table, key)


def snapshot(tx: Transaction, table: str, prefix: str) -> tuple[int, list[Item]]:
    """The table's revision, and its items whose keys begin with `prefix`, oldest change first."""
    row = tx.db.execute("select rev from tab where name = ?", (table,)).fetchone()
    rows = tx.db.execute(
        "select key, value, rev from item where tab = ? and substr(key, 1, ?) = ? order by rev",
        (table, len(prefix), prefix),
    )
    return row[0] if row else 0, [Item(*one) for one in rows]


def expire(tx: Transaction) -> None:
    """Remove what has expired."""
    gone = tx.db.execute(
        "select tab, key from item where expiry <= ? order by expiry", (tx.now,)
    ).fetchall()
    for table, key in gone:
        _remove(tx, table, key)


def next_expiry(db: sqlite3.Connection) -> float:
    """When the next value expires, in seconds of Unix time."""
    (soonest,) = db.execute("select min(expiry) from item where expiry is not null").fetchone()
    return float("inf") if soonest is None else float(soonest)


def _check_revision(tx: Transaction, table: str, key: str, expect: int | None) -> int:
    item = get(tx, table, key)
    actual = item.rev if item else 0
    if expect is not None and expect != actual:
        raise Conflict(
            "the value has another revision",
            actual=actual,
            expected=str(expect),
            got=str(actual),
            rule="table.expect",
            hint="read the value, and decide again",
        )
    return actual


def _next_revision(tx: Transaction, table: str) -> int:
    (rev,) = tx.db.execute(
        "insert into tab values (?, 1) on conflict do update set rev = rev + 1 returning rev",
        (table,),
    ).fetchone()
    return int(rev)


def _remove(tx: Transaction, table: str, key: str) -> None:
    tx.db.execute("delete from item where tab = ? and key = ?", (table, key))
    tx.items.append((table, Item(key, None, _next_revision(tx, table))))
