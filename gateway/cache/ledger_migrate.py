"""A ledger of an earlier version becomes one of this version's format: where it lies, whole or not at all.

All steps and the new number of the format are one transaction of SQLite's: whoever pulls the plug in the
middle finds the old ledger at the next start, which begins again.
"""

from __future__ import annotations

import errno
import shutil
import sqlite3
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from gateway.cache.ledger_repair import FORMAT
from gateway.log import logger
from gateway.model import HOUR

_DAY = 24 * HOUR
_PROGRESS_EVERY = 10_000_000
"""Instructions of SQLite's virtual machine between two looks at the clock."""
_TELL_SECONDS = 5.0
_SPARE = 1 << 20


@dataclass(frozen=True, slots=True)
class Step:
    """From one format to the next."""

    do: Callable[[sqlite3.Connection], None]
    copies: float
    """How much it writes, as a part of the file's size: so much room must be free, for the log has it all
    until the transaction is over."""


def _acknowledged_since_when(conn: sqlite3.Connection) -> None:
    """2: when the central had the events is kept by the day (``had:``), for retain_days count from then. What
    it had before counts from now on, or from the newest event, should the clock not be set yet."""
    at = max(time.time_ns() // 1000, conn.execute("SELECT max(at) FROM event").fetchone()[0] or 0)
    conn.execute(
        "INSERT INTO meta SELECT ?, value FROM meta WHERE key = 'acknowledged' AND value > 0"
        " AND NOT EXISTS (SELECT 1 FROM meta WHERE key GLOB 'had:*')",
        (f"had:{at // _DAY}",),
    )


STEPS: Mapping[int, Step] = {1: Step(_acknowledged_since_when, 0.0)}
"""What is done to a ledger of this format, to make it one of the next."""


def migrate(path: Path, conn: sqlite3.Connection, steps: Mapping[int, Step] = STEPS) -> int | None:
    """Brings the ledger to the newest format; the format that it had, or None where nothing was to do.

    Args:
        conn: on that file, in no transaction; the number of the format in it is a known one.

    Raises OSError (ENOSPC) with what to do where the disk has not the room, and sqlite3.Error as SQLite does;
    the ledger is then as it was.
    """
    before: int = conn.execute("PRAGMA user_version").fetchone()[0]
    todo = [steps[number] for number in range(before, FORMAT)]
    if not todo:
        return None
    needed = int(sum(step.copies for step in todo) * path.stat().st_size) + _SPARE
    free = shutil.disk_usage(path.parent).free
    if free < needed:
        has = f"has {free >> 20} MiB free, and {needed >> 20} are needed"
        raise OSError(errno.ENOSPC, f"to bring it from format {before} to {FORMAT} the disk {has}")
    log = logger("ledger").bind(file=str(path), before=before, format=FORMAT)
    log.info("ledger of an earlier version: it is brought to this one's format")
    began = told = time.monotonic()

    def progress() -> int:
        nonlocal told
        now = time.monotonic()
        if now - told >= _TELL_SECONDS:
            told = now
            log.info("ledger is still being brought to this version's format", seconds=round(now - began))
        return 0

    conn.set_progress_handler(progress, _PROGRESS_EVERY)
    try:
        conn.execute("BEGIN IMMEDIATE")
        try:
            for step in todo:
                step.do(conn)
            conn.execute("UPDATE meta SET value = ? WHERE key = 'format'", (FORMAT,))
            conn.execute(f"PRAGMA user_version = {FORMAT}")
            conn.execute("COMMIT")
        except BaseException:
            if conn.in_transaction:
                conn.execute("ROLLBACK")
            raise
    finally:
        conn.set_progress_handler(None, 0)
    log.info("ledger has this version's format", seconds=round(time.monotonic() - began, 1))
    return before
