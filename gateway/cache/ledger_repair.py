"""What is done with a ledger file that is cut or damaged: noticed before it is opened, set aside, read out.

SQLite answers most damage with an error, but not all: of a write-ahead log with a flipped byte it silently
takes what comes before, and numbers of events would be given twice. File format: sqlite.org/fileformat2.html
and sqlite.org/walformat.html.

The files are read here with plain reads, which must never happen while this process has a connection on
them: closing any descriptor of a file drops the process's POSIX locks on it, and another program would
take the ledger for unused.
"""

from __future__ import annotations

import contextlib
import os
import sqlite3
import struct
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from gateway.cache.ledger_rows import EVENT_COLUMNS, MOVEMENT_COLUMNS, event_digest, movement_of

PAGE = 4096
FORMAT = 2
"""Of the ledgers that this version writes; ledger_migrate has the steps from each earlier one."""
APPLICATION_ID = 0x47574C31  # "GWL1"
HIGHEST_SEQ = 1 << 40
"""Beyond any ledger's life: a row number above it comes from damage."""

_FRAME = 24 + PAGE
_SIDE_FILES = ("", "-wal", "-shm")


class LedgerDamaged(sqlite3.DatabaseError):
    """The file is a ledger no more; what can be read out of it goes into a new one."""


class LedgerTooNew(Exception):
    """The ledger was written by a newer version; it is left untouched."""


SQL_ERRORS = (sqlite3.Error, UnicodeDecodeError)
"""What sqlite3 raises. The second comes of messages that quote a damaged text (CPython 3.11)."""

_DAMAGE_CODES = {
    sqlite3.SQLITE_ERROR,  # a table or column that is gone
    sqlite3.SQLITE_CORRUPT,
    sqlite3.SQLITE_CONSTRAINT,  # a number that is taken already
    sqlite3.SQLITE_MISMATCH,
    sqlite3.SQLITE_FORMAT,
    sqlite3.SQLITE_NOTADB,
}


def is_damage(error: BaseException) -> bool:
    """Whether the file's content is at fault, not the disk, its rights or its room."""
    if isinstance(error, UnicodeDecodeError):
        return True
    if not isinstance(error, sqlite3.DatabaseError) or isinstance(error, sqlite3.ProgrammingError):
        return False
    code = getattr(error, "sqlite_errorcode", None)
    return code is None or code & 0xFF in _DAMAGE_CODES  # no code: text that is not UTF-8, or our own checks


@dataclass(slots=True, frozen=True)
class Wal:
    """The write-ahead log as far as its frames' heads say."""

    pages: frozenset[int]
    commits: tuple[int, ...]
    """Numbers of the frames that end a transaction, counted from 1."""
    size: int | None
    """Pages of the database after the last of them."""


def _read_wal(path: Path) -> Wal:
    try:
        file = path.open("rb", buffering=0)
    except FileNotFoundError:
        return Wal(frozenset(), (), None)
    with file:
        head = file.read(32)
        length = os.fstat(file.fileno()).st_size
        if length <= 32:
            return Wal(frozenset(), (), None)
        magic, _, page, _, salt1, salt2, sum1, sum2 = struct.unpack(">8I", head)
        words = struct.unpack((">" if magic & 1 else "<") + "6I", head[:24])
        s1 = s2 = 0
        for x, y in zip(words[::2], words[1::2], strict=True):
            s1 = (s1 + x + s2) & 0xFFFFFFFF
            s2 = (s2 + y + s1) & 0xFFFFFFFF
        if magic | 1 != 0x377F0683 or page != PAGE or (s1, s2) != (sum1, sum2):
            raise LedgerDamaged("the head of the write-ahead log is damaged")
        pages: set[int] = set()
        commits: list[int] = []
        size = None
        for number in range(1, (length - 32) // _FRAME + 1):
            frame = os.pread(file.fileno(), 16, 32 + (number - 1) * _FRAME)
            page, after, of1, of2 = struct.unpack(">4I", frame)
            if (of1, of2) == (salt1, salt2):  # else left over from before the log began anew
                pages.add(page)
                if after:
                    commits.append(number)
                    size = after
    return Wal(frozenset(pages), tuple(commits), size)


def inspect(path: Path) -> Wal:
    """Looks at a ledger's files before they are opened: the heads, and that no page is missing.

    Raises LedgerDamaged with what is wrong; OSError where the files cannot be read. About 1 µs for each
    frame in the log, so bounded by the log's length.
    """
    wal = _read_wal(path.with_name(path.name + "-wal"))
    with path.open("rb", buffering=0) as file:
        head = file.read(100)
        length = os.fstat(file.fileno()).st_size
    if len(head) < 100 or head[:16] != b"SQLite format 3\0":
        raise LedgerDamaged("its head is not that of a SQLite file")
    version = struct.unpack(">I", head[60:64])[0]
    if version > FORMAT:
        return wal  # whether it is one is seen when it is open; all that is asked below may differ there
    fixed = (head[16:18], head[20:24], head[44:52], head[52:60], head[64:72], head[72:92])
    expected = (
        PAGE.to_bytes(2, "big"),
        b"\x00\x40\x20\x20",
        b"\0\0\0\x04" + bytes(4),
        b"\0\0\0\0\0\0\0\x01",
        b"\0\0\0\0" + APPLICATION_ID.to_bytes(4, "big"),
        bytes(20),
    )
    if fixed != expected or version < 1 or head[18] != head[19] or head[18] not in (1, 2):
        raise LedgerDamaged("its head is damaged")
    pages = wal.size or struct.unpack(">I", head[28:32])[0]
    there = length // PAGE
    # Counted first: a damaged head may claim four thousand million pages.
    missing = pages - there > len(wal.pages) or any(n not in wal.pages for n in range(there + 1, pages + 1))
    if missing or (wal.size is None and length != pages * PAGE):
        raise LedgerDamaged(f"it should have {pages} pages of {PAGE} bytes and has {length} bytes")
    return wal


def finish_replacement(path: Path, new: Path) -> None:
    """Completes what a power cut interrupted between setting the old file aside and naming the new one."""
    if not new.exists():
        return
    if path.exists():
        new.unlink()
        return
    try:
        inspect(new)
    except LedgerDamaged:  # not finished: its head is written last
        new.unlink()
        return
    set_aside(path)
    put_in_place(new, path)


def put_in_place(new: Path, path: Path) -> None:
    """Gives a finished file its name, durably."""
    with new.open("rb") as file:
        os.fsync(file.fileno())
    new.rename(path)
    folder = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def set_aside(path: Path) -> Path | None:
    """Renames the ledger and its side files to ``ledger-broken-<UTC time>.db``; None if there are none.

    No connection of this process may still write to it: SQLite finds the side files by name.
    """
    stamp = datetime.now(UTC).strftime("%Y%m%dT%H%M%SZ")
    name, number = f"ledger-broken-{stamp}.db", 1
    while any(path.with_name(name + side).exists() for side in _SIDE_FILES):
        number += 1
        name = f"ledger-broken-{stamp}-{number}.db"
    moved = False
    for side in _SIDE_FILES:  # the file first: without it nothing of the rest is ever taken for a ledger's
        with contextlib.suppress(FileNotFoundError):
            path.with_name(path.name + side).rename(path.with_name(name + side))
            moved = True
    return path.with_name(name) if moved else None


def open_read_only(path: Path) -> sqlite3.Connection:
    """A connection that can change nothing. A ledger that was closed in order has no log, and SQLite would
    have to make one to read it; such a file is opened as one that nobody changes."""
    log = path.with_name(path.name + "-wal").exists()
    uri = f"{path.absolute().as_uri()}?mode=ro{'' if log else '&immutable=1'}"
    conn = sqlite3.connect(uri, uri=True, isolation_level=None, check_same_thread=False, timeout=2.0)
    conn.execute("PRAGMA mmap_size=0")
    return conn


def salvage(broken: Path, into: sqlite3.Connection, seconds: float) -> tuple[int, bool]:
    """Copies what can still be read out of a broken ledger, row by row, for at most so many seconds.

    Events only with a fitting digest, movements only with values of the right types. Returns the highest
    number seen, and whether the epochs could be read.
    """
    highest = 0
    until = time.monotonic() + seconds
    if broken.stat().st_size < PAGE:
        return 0, False  # and SQLite would remove the log beside an empty file
    try:
        source = open_read_only(broken)
    except SQL_ERRORS:
        return 0, False
    columns = ", ".join(f'"{name}"' for name in (*EVENT_COLUMNS, "digest"))
    with contextlib.closing(source):
        epochs = [
            row for row in _rows(source, "epoch", "first_seq, epoch, began, reason", until) if _whole(row)
        ]
        into.executemany("INSERT OR IGNORE INTO epoch VALUES (?, ?, ?, ?)", epochs)
        highest = max((row[0] - 1 for row in epochs), default=0)
        tables: tuple[tuple[str, str, Callable[[Any], bool]], ...] = (
            ("event", columns, _event_is_whole),
            ("movement", ", ".join(MOVEMENT_COLUMNS), _movement_is_whole),
            ("refused", "seq, reason", lambda row: type(row[1]) is str),
        )
        for table, names, whole in tables:
            marks = ", ".join("?" * (names.count(",") + 1))
            insert = f"INSERT OR IGNORE INTO {table} ({names}) VALUES ({marks})"
            for row in _rows(source, table, names, until):
                if 0 < row[0] < HIGHEST_SEQ and whole(row):
                    with contextlib.suppress(sqlite3.IntegrityError):  # a value of a type that it cannot have
                        into.execute(insert, row)
                        highest = max(highest, row[0])
        with contextlib.suppress(*SQL_ERRORS):
            meta = dict(source.execute("SELECT key, value FROM meta"))
            acknowledged = meta.pop("acknowledged", None)
            if type(acknowledged) is int and 0 <= acknowledged <= highest:
                into.execute("UPDATE meta SET value = ? WHERE key = 'acknowledged'", (acknowledged,))
            # What is new in the new ledger stays as it is there.
            into.executemany("INSERT OR IGNORE INTO meta VALUES (?, ?)", meta.items())
        with contextlib.suppress(*SQL_ERRORS):
            into.executemany(
                "INSERT INTO clear VALUES (?, ?)", source.execute("SELECT area, at FROM clear").fetchall()
            )
    return highest, bool(epochs)


def _whole(row: tuple[Any, ...]) -> bool:
    return type(row[1]) is int and type(row[2]) is int and type(row[3]) is str and 0 < row[0] < HIGHEST_SEQ


def _event_is_whole(row: tuple[Any, ...]) -> bool:
    try:
        return bool(event_digest(row[:-1]) == row[-1])
    except TypeError:
        return False


def _movement_is_whole(row: tuple[Any, ...]) -> bool:
    try:
        movement_of(row)
    except sqlite3.DatabaseError:
        return False
    return True


def _rows(conn: sqlite3.Connection, table: str, columns: str, until: float) -> Iterator[tuple[Any, ...]]:
    """The rows in the order of their numbers; what cannot be read is jumped over in growing steps."""
    key = columns.split(",", 1)[0]
    last, jump = 0, 1
    while jump < HIGHEST_SEQ and last < HIGHEST_SEQ and time.monotonic() < until:
        try:
            for row in conn.execute(f"SELECT {columns} FROM {table} WHERE {key} > ? ORDER BY {key}", (last,)):
                if row[0] > last:
                    last, jump = row[0], 1
                yield row
                if time.monotonic() > until:
                    break
            return
        except (*SQL_ERRORS, OverflowError):
            last += jump
            jump *= 2
