"""Reading the ledger: a connection that can change nothing, beside the one that writes."""

from __future__ import annotations

import contextlib
import sqlite3
from collections.abc import Iterator
from hashlib import blake2b
from pathlib import Path
from typing import Any

import orjson

from gateway.cache.ledger_repair import HIGHEST_SEQ, open_read_only
from gateway.cache.ledger_rows import EVENT_COLUMNS, event_dict, event_digest, movement_of
from gateway.cache.ledger_store import (
    BY_ENTITLEMENT,
    BY_PERSON,
    EVENTS,
    LANE_KEY,
    OUTBOX,
    OUTBOX_JSON,
    SINCE,
    TRUSTED_KEY,
    Epochs,
    epoch_of,
)
from gateway.model import Movement

_NO_COLUMNS = (None,) * (len(EVENT_COLUMNS) - 1)


def _tolerant(text: bytes) -> str:
    """A text with broken UTF-8 then fails its row's digest instead of the whole query."""
    return text.decode("utf-8", "replace")


class Reader:
    """Look-ups of what is committed. Raises sqlite3.Error; which kind, ``is_damage`` tells."""

    def __init__(self, path: Path) -> None:
        self._conn = open_read_only(path)

    def movements(self, sql: str, arguments: tuple[Any, ...]) -> list[Movement]:
        return [movement_of(row) for row in self._conn.execute(sql, arguments).fetchall()]

    def stream(self, sql: str, arguments: tuple[Any, ...]) -> Iterator[Movement]:
        return map(movement_of, self._conn.execute(sql, arguments))

    def rows(self, sql: str, arguments: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
        return self._conn.execute(sql, arguments).fetchall()

    def events(self, since: int, limit: int, epochs: Epochs) -> list[dict[str, Any]]:
        """Events with a higher number than ``since``, in order, each with its epoch; see ``event_dict``."""
        rows = self._tolerating(EVENTS, (since, limit))
        return [event_dict(row[:-1], row[-1], epoch_of(epochs, row[0])) for row in rows]

    def outbox(self, since: int, limit: int, epochs: Epochs) -> list[tuple[Any, ...]]:
        """See ``Ledger.outbox``."""
        found: list[tuple[Any, ...]] = []
        begin, end, epoch = 1, 0, None
        for digest, *columns in self._tolerating(OUTBOX, (since, limit)):
            seq = columns[0]
            if not begin <= seq <= end:
                epoch = epoch_of(epochs, seq)
                begin, end = seq, min((first - 1 for first, _ in epochs if first > seq), default=HIGHEST_SEQ)
            try:
                whole = event_digest(columns) == digest
            except TypeError:  # as in event_dict
                whole = False
            found.append((epoch, digest, *columns) if whole else (epoch, None, seq, *_NO_COLUMNS))
        return found

    def outbox_json(self, since: int, limit: int, epochs: Epochs) -> list[tuple[int, bytes]]:
        """See ``Ledger.outbox_json``."""
        try:
            rows = self._conn.execute(OUTBOX_JSON, (since, limit)).fetchall()
        except sqlite3.OperationalError:  # a damaged row holds what JSON has not
            return [(row[2], _json(row)) for row in self.outbox(since, limit, epochs)]
        found = []
        head, begin, end = b"", 1, 0
        for seq, digest, columns in rows:
            if not begin <= seq <= end:
                begin, end = seq, min((first - 1 for first, _ in epochs if first > seq), default=HIGHEST_SEQ)
                head = b'[%s,"' % orjson.dumps(epoch_of(epochs, seq))
            if blake2b(columns, digest_size=8).digest() == digest:
                found.append((seq, head + digest.hex().encode() + b'",' + columns[1:]))
            else:  # damaged, or SQLite writes a character in another way than the digest has it
                found += [(seq, _json(row)) for row in self.outbox(seq - 1, 1, epochs)]
        return found

    def _tolerating(self, sql: str, arguments: tuple[Any, ...]) -> list[tuple[Any, ...]]:
        """Rows of events, also where a text is not UTF-8."""
        try:
            return self._conn.execute(sql, arguments).fetchall()
        except sqlite3.OperationalError as error:
            if hasattr(error, "sqlite_errorcode"):
                raise
            self._conn.text_factory = _tolerant  # costs half as much again, so only where it is needed
            try:
                return self._conn.execute(sql, arguments).fetchall()
            finally:
                self._conn.text_factory = str

    def close(self) -> None:
        self._conn.close()


def _json(row: tuple[Any, ...]) -> bytes:
    """A row of ``Reader.outbox`` as a text."""
    epoch, digest, *columns = row
    return orjson.dumps([epoch, None if digest is None else digest.hex(), *columns])


class LedgerFile:
    """A ledger that no gate has open, as far as a judgement asks for it. Changes nothing in it.

    Raises sqlite3.Error where the file cannot be read or is damaged.
    """

    def __init__(self, path: Path) -> None:
        self._reader = Reader(path)

    def person(self, person: str, since: int) -> list[Movement]:
        return self._reader.movements(BY_PERSON, (person, since))

    def entitlement(self, entitlement: str, since: int) -> list[Movement]:
        return self._reader.movements(BY_ENTITLEMENT, (entitlement, since))

    def movements_since(self, at: int) -> Iterator[Movement]:
        return self._reader.stream(SINCE, (at,))

    def cleared(self) -> dict[str, int]:
        """Areas that were cleared, each with the latest time."""
        return dict(self._reader.rows("SELECT area, at FROM clear"))

    def lane_modes(self) -> dict[str, str]:
        """The state that each lane was last set to by hand."""
        rows = self._reader.rows("SELECT key, value FROM meta WHERE key GLOB ?", (f"{LANE_KEY}*",))
        return {key.removeprefix(LANE_KEY): value for key, value in rows}

    def trusted_time(self) -> int | None:
        """About the newest time at which an event was recorded under a clock that could be trusted."""
        rows = self._reader.rows("SELECT value FROM meta WHERE key = ?", (TRUSTED_KEY,))
        return rows[0][0] if rows else None

    def holds(self, epoch: int, seq: int) -> bool:
        """Whether the movement that this event of this gateway made is here."""
        epochs = self._reader.rows("SELECT first_seq, epoch FROM epoch ORDER BY first_seq")
        return epoch_of([(a, b) for a, b in epochs], seq) == epoch and bool(
            self._reader.rows("SELECT 1 FROM movement WHERE seq = ?", (seq,))
        )

    def close(self) -> None:
        self._reader.close()


def read_events(path: Path, since: int, limit: int) -> list[dict[str, Any]]:
    """The events of a ledger that no gate has open, each with ``gateway`` and ``epoch``, for ``event_json``.

    Changes nothing. Raises FileNotFoundError, and sqlite3.Error where the file cannot be read or is damaged.
    """
    if not path.exists():
        raise FileNotFoundError(f"{path}: there is no ledger here; check data_dir in the configuration")
    with contextlib.closing(Reader(path)) as reader:
        epochs = reader.rows("SELECT first_seq, epoch FROM epoch ORDER BY first_seq")
        found = reader.rows("SELECT value FROM meta WHERE key = 'gateway'")
        gateway = found[0][0] if found else "unknown"  # of a damaged file the events are worth having still
        return [
            row | {"gateway": gateway} for row in reader.events(since, limit, [(a, b) for a, b in epochs])
        ]


def read_refused(path: Path) -> list[dict[str, Any]]:
    """The events that the central refused, with its reasons, of a ledger that no gate has open."""
    if not path.exists():
        raise FileNotFoundError(f"{path}: there is no ledger here; check data_dir in the configuration")
    with contextlib.closing(Reader(path)) as reader:
        rows = reader.rows("SELECT seq, reason FROM refused ORDER BY seq")
        return [{"seq": seq, "reason": reason} for seq, reason in rows]
