"""The ledger's file: SQLite in WAL mode, one flush for each commit, and a file any technician can query.

Numbers go on for the life of the file and over a damaged file's successor. Which epoch an event belongs to
follows from the table ``epoch``: an epoch covers the numbers from its ``first_seq`` to that of the next.
A new epoch (DESIGN.md 7) begins after the last acknowledged event, so all that is not acknowledged is of
it, without a row being rewritten.
"""

from __future__ import annotations

import contextlib
import secrets
import sqlite3
import time
from bisect import bisect_right
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

from gateway.cache.ledger_migrate import migrate
from gateway.cache.ledger_repair import (
    APPLICATION_ID,
    FORMAT,
    HIGHEST_SEQ,
    SQL_ERRORS,
    LedgerDamaged,
    LedgerTooNew,
    Wal,
    finish_replacement,
    inspect,
    is_damage,
    put_in_place,
    salvage,
    set_aside,
)
from gateway.cache.ledger_rows import (
    EVENT_COLUMNS,
    MOVEMENT_COLUMNS,
    EventRow,
    MovementRow,
    event_dict,
    event_digest,
    movement_of,
)
from gateway.model import EMERGENCY, HOUR, AccessEvent, EventKind, Movement

FILE = "ledger.db"
SALVAGE_SECONDS = 20.0
BUSY_SECONDS = 2.0
"""How long another program may hold the ledger before that counts as a fault."""
PRUNE_ROWS = 1000
TRUSTED_KEY = "trusted"
TRUSTED_STEP = 10_000_000
"""The newest trusted time is kept on disk this coarsely (microseconds), to spare a row in each commit."""
LANE_KEY = "lane:"
_DAY = 24 * HOUR
HAD_KEY = "had:"
"""With a day since 1970: the highest number that the central had acknowledged by its end."""
RETAIN_MOVEMENTS = 400 * 86_400_000_000
"""Longer than a year: limits per year and term count what is that old."""

_TABLES = {
    "meta": "CREATE TABLE meta (key TEXT PRIMARY KEY, value ANY) STRICT, WITHOUT ROWID",
    "epoch": "CREATE TABLE epoch (first_seq INTEGER PRIMARY KEY, epoch INTEGER NOT NULL,"
    " began INTEGER NOT NULL, reason TEXT NOT NULL) STRICT",
    "event": "CREATE TABLE event (seq INTEGER PRIMARY KEY, at INTEGER NOT NULL, kind TEXT NOT NULL,"
    " point TEXT, lane TEXT, reader TEXT, verdict TEXT, detail TEXT, flags TEXT, credential TEXT,"
    ' holder TEXT, entitlement TEXT, product TEXT, guest INTEGER NOT NULL, "left" INTEGER, from_area TEXT,'
    ' to_area TEXT, passage TEXT, "by" TEXT, of_seq INTEGER, digest BLOB NOT NULL) STRICT',
    "movement": "CREATE TABLE movement (seq INTEGER PRIMARY KEY, at INTEGER NOT NULL,"
    " from_area TEXT NOT NULL, to_area TEXT NOT NULL, person TEXT, point TEXT, holder TEXT,"
    " credential TEXT, entitlement TEXT, guest INTEGER NOT NULL, entries INTEGER NOT NULL,"
    " passage TEXT NOT NULL, closed INTEGER NOT NULL) STRICT",
    "refused": "CREATE TABLE refused (seq INTEGER PRIMARY KEY, reason TEXT NOT NULL) STRICT",
    "clear": "CREATE TABLE clear (area TEXT PRIMARY KEY, at INTEGER NOT NULL) STRICT",
    "movement_person": "CREATE INDEX movement_person ON movement (person, at) WHERE person IS NOT NULL",
    "movement_entitlement": "CREATE INDEX movement_entitlement ON movement (entitlement, at)"
    " WHERE entitlement IS NOT NULL",
    "movement_at": "CREATE INDEX movement_at ON movement (at)",
    "movement_pending": "CREATE INDEX movement_pending ON movement (seq) WHERE passage = 'pending'",
}
_EVENT = ", ".join(f'"{name}"' for name in EVENT_COLUMNS)
_MOVEMENT = ", ".join(MOVEMENT_COLUMNS)


def _inserts(table: str, columns: int) -> dict[int, str]:
    """A statement for so many rows at once, the largest number first."""
    row = f"({', '.join('?' * columns)})"
    return {count: f"INSERT INTO {table} VALUES {', '.join([row] * count)}" for count in (32, 8, 2, 1)}


_INSERT_EVENT = _inserts("event", len(EVENT_COLUMNS) + 1)
_INSERT_MOVEMENT = _inserts("movement", len(MOVEMENT_COLUMNS))
_PASSAGE = MOVEMENT_COLUMNS.index("passage") - 1
_SETTLE = "UPDATE movement SET passage = ? WHERE seq = ?"
_CLEAR = "INSERT INTO clear VALUES (?, ?) ON CONFLICT (area) DO UPDATE SET at = max(at, excluded.at)"

BY_PERSON = f"SELECT {_MOVEMENT} FROM movement WHERE person = ? AND at >= ? ORDER BY at, seq"
BY_ENTITLEMENT = f"SELECT {_MOVEMENT} FROM movement WHERE entitlement = ? AND at >= ? ORDER BY at, seq"
BY_SEQ = f"SELECT {_MOVEMENT} FROM movement WHERE seq = ?"
SINCE = f"SELECT {_MOVEMENT} FROM movement WHERE at >= ? ORDER BY at, seq"
KEYS_SINCE = "SELECT person, entitlement FROM movement WHERE at >= ?"
PENDING = f"SELECT {_MOVEMENT} FROM movement WHERE passage = 'pending' ORDER BY seq"
OUTBOX = (
    f"SELECT digest, {_EVENT} FROM event WHERE seq > ? AND seq NOT IN (SELECT seq FROM refused)"
    " ORDER BY seq LIMIT ?"
)
OUTBOX_JSON = (
    f"SELECT seq, digest, CAST(json_array({_EVENT}) AS BLOB) FROM event WHERE seq > ?"
    " AND seq NOT IN (SELECT seq FROM refused) ORDER BY seq LIMIT ?"
)
NEXT_TO_SEND = (
    "SELECT seq FROM event WHERE seq > ? AND seq NOT IN (SELECT seq FROM refused) ORDER BY seq LIMIT 1"
)
EVENTS = f"SELECT {_EVENT}, digest FROM event WHERE seq > ? ORDER BY seq LIMIT ?"


Epochs = Sequence[tuple[int, int]]
"""(first seq, epoch), in order."""


@dataclass(slots=True)
class Entry:
    """An event on its way to the disk, with its rows as they were when it was recorded."""

    event: AccessEvent
    row: EventRow
    movement: Movement | None = None
    movement_row: MovementRow = ()
    settles: bool = False
    """The movement was made by an earlier event; this one gives its outcome."""
    then: Callable[[bool], None] | None = None


@dataclass(slots=True)
class Act:
    """A change that is no event, made in its turn among them. ``do`` may be called again after a failure."""

    do: Callable[[Store], None]
    then: Callable[[], None] | None = None


class Store:
    """The one connection that writes. Not for the loop: every call may wait for the disk."""

    def __init__(self, path: Path, conn: sqlite3.Connection, gateway: str) -> None:
        self.path = path
        self.conn = conn
        self.gateway = gateway
        self.begun = False
        self.unwritable: sqlite3.OperationalError | None = None
        """Why ``begin`` failed when it was opened."""
        self.last_seq = 0
        self.acknowledged = 0
        self.epochs: tuple[tuple[int, int], ...] = ()
        """(first seq, epoch), in order."""
        self.set_aside: Path | None = None
        """Where a damaged ledger was put when this one was begun in its place."""
        self.set_aside_reason: str | None = None
        self._trusted = -TRUSTED_STEP
        self.log_pages = 0
        """About how many pages lie in the write-ahead log."""

    @classmethod
    def open(cls, path: Path, gateway: str) -> Store:
        """Opens the ledger, or begins one; a damaged one is replaced.

        Raises LedgerTooNew, and OSError or sqlite3.Error where the disk, rights or room do not allow it.
        """
        finish_replacement(path, path.with_name(path.name + ".new"))
        if not path.exists():
            return cls.replace(path, gateway, None)
        try:
            return cls._open(path, gateway)
        except SQL_ERRORS as error:
            if not is_damage(error):
                raise
            return cls.replace(path, gateway, str(error))

    @classmethod
    def replace(cls, path: Path, gateway: str, reason: str | None, beyond: int = 0) -> Store:
        """Begins a new ledger with a new epoch, with what can be saved of the one that is there.

        ``beyond``: the highest number that is known to have been given; no new event gets a lower one.
        """
        new = path.with_name(path.name + ".new")
        for side in ("", "-wal", "-shm", "-journal"):
            new.with_name(new.name + side).unlink(missing_ok=True)
        conn = sqlite3.connect(new, isolation_level=None)
        with contextlib.closing(conn):
            conn.execute("PRAGMA page_size = 4096")
            conn.execute("PRAGMA synchronous = OFF")  # it counts for nothing until it is whole and flushed
            conn.execute("BEGIN")
            for statement in _TABLES.values():
                conn.execute(statement)
            conn.executemany(
                "INSERT INTO meta VALUES (?, ?)",
                (("format", FORMAT), ("gateway", gateway), ("acknowledged", 0), ("starts", 0), ("floor", 0)),
            )
            highest, known = salvage(path, conn, SALVAGE_SECONDS) if reason is not None else (0, False)
            # Without the old epochs what was saved belongs to the new one, and is sent again under it.
            first = max(highest, beyond) + 1 if known else 1
            conn.execute(
                "INSERT OR REPLACE INTO epoch VALUES (?, ?, ?, ?)",
                (first, draw_epoch(), now(), reason or "the ledger was begun"),
            )
            conn.execute("UPDATE meta SET value = ? WHERE key = 'floor'", (max(highest, beyond),))
            conn.execute("COMMIT")
            conn.execute("PRAGMA journal_mode = WAL")
            conn.execute(f"PRAGMA application_id = {APPLICATION_ID}")
            conn.execute(f"PRAGMA user_version = {FORMAT}")
        aside = set_aside(path)
        put_in_place(new, path)
        store = cls._open(path, gateway)
        store.set_aside, store.set_aside_reason = aside, reason
        return store

    @classmethod
    def _open(cls, path: Path, gateway: str) -> Store:
        wal = inspect(path)
        conn = sqlite3.connect(path, isolation_level=None, check_same_thread=False, timeout=BUSY_SECONDS)
        try:
            conn.execute("PRAGMA mmap_size = 0")
            store = cls(path, conn, gateway)
            store._check(wal)
            try:
                store.begin()
            except sqlite3.OperationalError as error:  # what cannot be written can still be read
                store.unwritable = error
        except BaseException:
            conn.close()
            raise
        return store

    def _check(self, wal: Wal) -> None:
        """What can be asked quickly, and what is kept in memory. Raises LedgerDamaged or LedgerTooNew."""
        conn = self.conn
        version = conn.execute("PRAGMA user_version").fetchone()[0]
        there = dict(conn.execute("SELECT name, sql FROM sqlite_schema WHERE sql IS NOT NULL"))
        if there.get("meta") != _TABLES["meta"]:
            raise LedgerDamaged("its tables are not those of a ledger")
        meta = dict(conn.execute("SELECT key, value FROM meta"))
        if version > FORMAT and version == meta.get("format"):  # said twice, so no flipped bit
            raise LedgerTooNew(
                f"{self.path} has format {version}, this program knows {FORMAT}:"
                " install the newer version again, or move the file away to begin a new ledger"
            )
        application = conn.execute("PRAGMA application_id").fetchone()[0]
        if application != APPLICATION_ID or version != meta.get("format") or not 0 < version <= FORMAT:
            raise LedgerDamaged("its format is not that of a ledger")
        if any(there.get(name) != sql for name, sql in _TABLES.items()):
            raise LedgerDamaged("its tables are not those of a ledger")
        conn.execute("PRAGMA journal_mode = WAL")
        conn.execute("PRAGMA synchronous = FULL")
        # Checkpoints are made between commits (see checkpoint); this is only the last bound on the log.
        conn.execute("PRAGMA wal_autocheckpoint = 20000")
        whole = self._log_length()
        if len([number for number in wal.commits if number > whole]) > 1:
            # One transaction without effect is what a power cut leaves behind, two are not: each is flushed
            # before the next begins.
            raise LedgerDamaged("its write-ahead log is damaged in the middle")
        if migrate(self.path, conn) is not None:
            meta = dict(conn.execute("SELECT key, value FROM meta"))
        self.epochs = tuple(conn.execute("SELECT first_seq, epoch FROM epoch ORDER BY first_seq"))
        self.acknowledged = meta.get("acknowledged", -1)
        numbers: tuple[Any, ...] = (
            meta.get("floor"),
            conn.execute("SELECT max(seq) FROM event").fetchone()[0] or 0,
            conn.execute("SELECT max(seq) FROM movement").fetchone()[0] or 0,
        )
        counted = (*numbers, self.acknowledged, *(first for first, _ in self.epochs))
        if (
            not self.epochs
            or not all(type(number) is int and 0 <= number < HIGHEST_SEQ for number in counted)
            or not all(type(epoch) is int for _, epoch in self.epochs)
            or type(meta.get("gateway")) is not str
        ):
            raise LedgerDamaged("its numbers are damaged")
        self._gateway_before: str = meta["gateway"]
        self.last_seq = max(int(number) for number in numbers)
        latest = conn.execute(EVENTS, (self.last_seq - 64, 64)).fetchall()
        if any(event_dict(row[:-1], row[-1], None).get("damaged") for row in latest):
            raise LedgerDamaged("its latest events are damaged")
        for row in conn.execute(PENDING):
            movement_of(row)

    def begin(self) -> None:
        """The first write of a run: a disk that cannot be written is known before the first visitor."""
        conn = self.conn
        with self._transaction():
            conn.execute("UPDATE meta SET value = value + 1 WHERE key = 'starts'")
            if self._gateway_before != self.gateway:
                conn.execute("UPDATE meta SET value = ? WHERE key = 'gateway'", (self.gateway,))
                self.new_epoch(draw_epoch(), f"the gateway's id was {self._gateway_before}")
        self.begun = True

    @contextlib.contextmanager
    def _transaction(self) -> Iterator[None]:
        before = self.acknowledged, self.epochs
        self.conn.execute("BEGIN IMMEDIATE")
        try:
            yield
            self.conn.execute("COMMIT")
        except BaseException:
            self.acknowledged, self.epochs = before
            with contextlib.suppress(sqlite3.Error):  # often done already by SQLite, as on a full disk
                self.conn.execute("ROLLBACK")
            raise

    def _log_length(self) -> int:
        """Frames of the log that SQLite takes for whole; moves them into the file on the way."""
        try:
            length: int = self.conn.execute("PRAGMA wal_checkpoint(PASSIVE)").fetchone()[1]
        except SQL_ERRORS as error:
            if is_damage(error):
                raise
            return HIGHEST_SEQ  # a full or read-only disk: no time to judge the log
        return length

    def write(self, batch: Sequence[Entry | Act]) -> None:
        """Writes all of it in one transaction, or nothing; the same batch may be given again after an error.

        Gives events and movements their numbers before the commit, so that whoever sees a row also sees the
        number on the movement in memory.
        """
        if not self.begun:
            self.begin()
        seq = self.last_seq
        events: list[tuple[Any, ...]] = []
        made: list[tuple[Any, ...]] = []
        settled: list[tuple[str, int]] = []
        cleared: list[tuple[str, int]] = []
        kept: dict[str, Any] = {}
        trusted = self._trusted
        acts: list[Act] = []
        entries: list[Entry] = []
        for item in batch:
            if isinstance(item, Act):
                acts.append(item)
                continue
            entries.append(item)
            seq += 1
            event, movement = item.event, item.movement
            event.seq = seq
            of = event.of
            row = (seq, *item.row, event.of_seq if of is None else of.seq)
            events.append((*row, event_digest(row)))
            if movement is not None:
                if item.settles and movement.seq is not None:
                    settled.append((item.movement_row[_PASSAGE], movement.seq))
                else:  # also the outcome of a grant that was lost in a fault
                    movement.seq = seq
                    made.append((seq, *item.movement_row))
            if event.kind is EventKind.CLEAR and event.from_ is not None:
                cleared.append((event.from_, event.at))
            elif event.kind is EventKind.LANE and event.by != EMERGENCY:
                # An emergency's state is the input's to say, also after a restart.
                kept[f"{LANE_KEY}{event.lane}"] = event.detail
            if event.trusted and event.at >= trusted + TRUSTED_STEP:
                trusted = kept[TRUSTED_KEY] = event.at
        conn = self.conn
        with self._transaction():
            self._insert(_INSERT_EVENT, events)
            if made:
                self._insert(_INSERT_MOVEMENT, made)
            if settled and conn.executemany(_SETTLE, settled).rowcount != len(settled):
                self._settle_one_by_one(entries)
            if cleared:
                conn.executemany(_CLEAR, cleared)
            if kept:
                conn.executemany("INSERT OR REPLACE INTO meta VALUES (?, ?)", kept.items())
            for act in acts:
                act.do(self)
        self.last_seq, self._trusted = seq, trusted
        # Each event touches a page in each of two indexes, each commit the last pages of the rest.
        self.log_pages += 6 + 2 * len(events)

    def _settle_one_by_one(self, entries: Sequence[Entry]) -> None:
        """A movement to be settled is not here, as after a ledger was replaced: it is written whole."""
        for entry in entries:
            movement = entry.movement
            if not entry.settles or movement is None:
                continue
            if self.conn.execute(_SETTLE, (entry.movement_row[_PASSAGE], movement.seq)).rowcount == 0:
                self.conn.execute(_INSERT_MOVEMENT[1], (movement.seq, *entry.movement_row))

    def _insert(self, statements: Mapping[int, str], rows: Sequence[tuple[Any, ...]]) -> None:
        """As few statements as may be: the interpreter's lock changes hands at each, and a scan that is
        being judged waits for it."""
        start = 0
        for count, statement in statements.items():
            while len(rows) - start >= count:
                self.conn.execute(statement, [*chain.from_iterable(rows[start : start + count])])
                start += count

    # --- acts, called inside a transaction ---

    def acknowledge(self, seq: int, at: int = 0) -> None:
        """Everything up to here is held by the central, which said so at ``at`` (microseconds; 0: long ago);
        a lower number than before takes that back.

        What was set aside and directly follows is passed over: nobody will ever acknowledge it.
        """
        following = self.conn.execute(NEXT_TO_SEND, (seq,)).fetchone()
        passed = self.conn.execute(
            "SELECT max(seq) FROM refused WHERE seq > ? AND seq < ?",
            (seq, self.last_seq + 1 if following is None else following[0]),
        ).fetchone()[0]
        seq = seq if passed is None else passed
        self.conn.execute("UPDATE meta SET value = ? WHERE key = 'acknowledged'", (seq,))
        self.conn.execute(
            "UPDATE meta SET value = ? WHERE key GLOB ? AND value > ?", (seq, f"{HAD_KEY}*", seq)
        )
        if seq > self.acknowledged:
            # When, by the day: what retain_days are counted from.
            self.conn.execute("INSERT OR REPLACE INTO meta VALUES (?, ?)", (f"{HAD_KEY}{at // _DAY}", seq))
        self.acknowledged = seq

    def settle(self, epoch: int, first: int, last: int, at: int = 0) -> bool:
        """The central has these numbers of this epoch, as it said at ``at``. False, and nothing done, where
        they are not of it, or where an event before them is still to be sent."""
        if not 0 < first <= last <= self.last_seq or not one_epoch(self.epochs, epoch, first, last):
            return False
        following = self.conn.execute(NEXT_TO_SEND, (self.acknowledged,)).fetchone()
        if following is not None and following[0] < first:
            return False
        if last > self.acknowledged:
            self.acknowledge(last, at)
        return True

    def refuse(self, seq: int, reason: str) -> None:
        """Set aside: kept for ever, and not sent again."""
        self.conn.execute("INSERT OR REPLACE INTO refused VALUES (?, ?)", (seq, reason))
        self.acknowledge(self.acknowledged)

    def new_epoch(self, epoch: int, reason: str, after: int | None = None) -> None:
        """What follows ``after`` is of this epoch; None: all that is not acknowledged. What is acknowledged
        stays under the epoch that the central knows it by."""
        first = max(self.acknowledged, after or 0) + 1
        self.conn.execute("DELETE FROM epoch WHERE first_seq >= ?", (first,))
        self.conn.execute("INSERT INTO epoch VALUES (?, ?, ?, ?)", (first, epoch, now(), reason))
        self.epochs = (*(known for known in self.epochs if known[0] < first), (first, epoch))

    def prune(self, events_before: int, movements_before: int) -> bool:
        """Deletes a portion of what happened and was acknowledged before ``events_before``, to the day; says
        whether there may be more.

        The last event stays whatever its age, and so does what was refused. A portion is small, so that a
        scan never waits for it.
        """
        had = self.conn.execute("SELECT key, value FROM meta WHERE key GLOB ?", (f"{HAD_KEY}*",)).fetchall()
        days = {int(key.removeprefix(HAD_KEY)): seq for key, seq in had}
        over = [day for day in days if (day + 1) * _DAY <= events_before]
        for day in sorted(over)[:-1]:
            self.conn.execute("DELETE FROM meta WHERE key = ?", (f"{HAD_KEY}{day}",))
        upto = min(self.acknowledged, max((days[day] for day in over), default=0))
        gone = self.conn.execute(
            "DELETE FROM event WHERE seq IN (SELECT seq FROM event WHERE seq <= ? AND seq < ? AND at < ?"
            " AND seq NOT IN (SELECT seq FROM refused) ORDER BY seq LIMIT ?)",
            (upto, self.last_seq, events_before, PRUNE_ROWS),
        ).rowcount
        moved = self.conn.execute(
            "DELETE FROM movement WHERE seq IN (SELECT seq FROM movement WHERE at < ? AND seq < ? LIMIT ?)",
            (movements_before, self.last_seq, PRUNE_ROWS),
        ).rowcount
        return max(gone, moved) == PRUNE_ROWS

    # --- outside of transactions ---

    def checkpoint(self) -> None:
        """Moves the log into the file. Waits for nobody: what a reader still needs stays in the log."""
        self.conn.execute("PRAGMA wal_checkpoint(PASSIVE)")
        self.log_pages = 0

    def close(self) -> None:
        self.conn.close()


def epoch_of(epochs: Epochs, seq: int) -> int | None:
    """The epoch that a number belongs to; None if it is from before the first that is known."""
    place = bisect_right(epochs, seq, key=lambda entry: entry[0])
    return epochs[place - 1][1] if place else None


def one_epoch(epochs: Epochs, epoch: int, first: int, last: int) -> bool:
    """Whether all of these numbers are of this epoch."""
    begins = (begin for begin, _ in epochs)
    return epoch_of(epochs, first) == epoch and not any(first < begin <= last for begin in begins)


def draw_epoch() -> int:
    """A random number that fits a signed 64-bit column, as SQLite and PostgreSQL have them."""
    return secrets.randbelow((1 << 63) - 1) + 1


def now() -> int:
    return time.time_ns() // 1000
