"""The ledger's writer: the one thread that changes the file, also when the disk will not have it."""

from __future__ import annotations

import contextlib
import errno
import os
import sqlite3
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from queue import Empty, SimpleQueue

from gateway.cache.ledger_read import Reader
from gateway.cache.ledger_repair import SQL_ERRORS, is_damage, open_read_only
from gateway.cache.ledger_store import Act, Entry, Store

MAX_BATCH = 1000
MANY, GATHERING = 4, 0.001
"""After a commit of so many events the next is begun so many seconds later, so that more gather for it: in a
burst the commits would otherwise take turns with the judging for the interpreter, event by event."""
FIRST_PAUSE, LAST_PAUSE = 0.5, 5.0
"""Seconds between attempts while the ledger cannot be written."""
CHECKPOINT_QUIET, CHECKPOINT_ALWAYS = 500, 6000
"""Pages in the log from which it is moved into the file: in a quiet moment, or in any case. A checkpoint is
two flushes, during which a scan would wait; after every event it would also wear out a card."""
QUIET = 0.5
"""Seconds without an event that make a quiet moment."""


class Fault(str):
    """Why the ledger cannot be written."""

    __slots__ = ()


class FaultEnds:
    """The ledger can be written again."""


Word = Entry | Act | tuple[float, int] | Fault | FaultEnds
"""What the writer tells, in order: this is on disk; a commit took so long and had so many events; faults."""


def explain(error: BaseException, path: Path) -> Fault:
    """The fault in words, with what to do about it."""
    folder = path.parent
    remedy = {
        sqlite3.SQLITE_FULL: f"free some space on the file system of {folder}",
        sqlite3.SQLITE_READONLY: f"the file system of {folder} is read-only: check it and mount it writable",
        sqlite3.SQLITE_IOERR: f"the disk under {folder} reports errors: check it, and replace a worn card",
        sqlite3.SQLITE_BUSY: "another program holds the ledger: close it",
        sqlite3.SQLITE_CORRUPT: f"check the disk under {folder}",
    }.get(
        _code(error),
        f"check that {folder} exists, is writable, and belongs to the user that the gate runs as",
    )
    return Fault(f"{path}: {error}; {remedy}")


def _code(error: BaseException) -> int:
    if isinstance(error, OSError) and error.errno == errno.ENOSPC:
        return sqlite3.SQLITE_FULL
    code: int = getattr(error, "sqlite_errorcode", 0)
    return code & 0xFF


def _nothing(store: Store) -> None:
    """An act that only wakes the writer."""


class Writer:
    """Owns the store. Others may read ``last_seq``, ``acknowledged`` and ``epochs`` at any time, and query
    ``reader`` while they hold ``reading``."""

    def __init__(self, path: Path, gateway: str, tell: Callable[[Sequence[Word]], None]) -> None:
        self.path = path
        self.queue: SimpleQueue[Entry | Act | None] = SimpleQueue()
        self.last_seq = 0
        self.acknowledged = 0
        self.epochs: tuple[tuple[int, int], ...] = ()
        self.set_aside: Path | None = None
        self.set_aside_reason: str | None = None
        self.reader: Reader | None = None
        self.reading = threading.Lock()
        self._gateway = gateway
        self._tell = tell
        self._store: Store | None = None
        self._damage: str | None = None
        self._faulty = False
        self._stopping = False
        self._last_events = 0
        self._closing = threading.Event()
        self._checker: sqlite3.Connection | None = None
        self._thread = threading.Thread(target=self._run, name="ledger", daemon=True)
        self._check_thread = threading.Thread(target=self._check, name="ledger-check", daemon=True)

    def open(self) -> None:
        """The first attempt, before ``start``. Raises what ``Store.open`` raises, and if the ledger can be
        read only, why; the thread tries again."""
        self._faulty = True
        store = Store.open(self.path, self._gateway)
        self._take(store)
        if store.unwritable is not None:
            raise store.unwritable
        self._faulty = False

    def start(self) -> None:
        self._thread.start()
        self._check_thread.start()

    def stop(self, timeout: float) -> None:
        """Writes what is in the queue and ends; waits at most so many seconds for that."""
        until = time.monotonic() + timeout
        self._closing.set()
        self.queue.put(None)
        while self._check_thread.is_alive() and time.monotonic() < until:
            if self._checker is not None:
                with contextlib.suppress(sqlite3.ProgrammingError):  # closed in between
                    self._checker.interrupt()
            self._check_thread.join(0.02)
        self._thread.join(max(0.0, until - time.monotonic()))

    def report_damage(self, reason: str) -> None:
        """Somebody met damage in the file: it is set aside, and a new one begun."""
        if self._damage is None:
            self._damage = reason
            self.queue.put(Act(_nothing))

    def _take(self, store: Store) -> None:
        reader = Reader(self.path)
        with self.reading:
            old, self.reader = self.reader, reader
            if old is not None:
                old.close()
        self._store = store
        self._publish(store)
        if store.set_aside_reason is not None:
            self.set_aside, self.set_aside_reason = store.set_aside, store.set_aside_reason

    def _publish(self, store: Store) -> None:
        self.last_seq, self.acknowledged, self.epochs = store.last_seq, store.acknowledged, store.epochs

    def _drop(self) -> None:
        # A device that goes away also looks like damage; what is real is met again.
        self._damage = None
        with self.reading:
            if self.reader is not None:
                self.reader.close()
                self.reader = None
        if self._store is not None:
            self._store.close()
            self._store = None

    def _run(self) -> None:
        try:
            self._write_all()
        except BaseException as error:
            self._tell([Fault(f"{self.path}: the writer stopped: {error!r}; start the gate again")])
            raise
        finally:
            self._drop()

    def _write_all(self) -> None:
        batch: list[Entry | Act] = []
        pause, replaced, last = FIRST_PAUSE, False, False
        while True:
            if not batch and not self._faulty:
                if self._stopping:
                    return
                batch = self._gather()
            try:
                if self._damage is not None:
                    self._replace(self._damage)
                store = self._store
                if store is None:
                    store = Store.open(self.path, self._gateway)
                    self._take(store)
                started = time.perf_counter()
                store.write(batch)
                seconds = time.perf_counter() - started
            except (OSError, *SQL_ERRORS) as error:
                if is_damage(error) and not replaced:
                    self._damage = str(error)
                    replaced = True
                    continue
                self._begin_fault(explain(error, self.path))
                if last:
                    return
                last = self._closing.wait(pause)
                pause = min(2 * pause, LAST_PAUSE)
                self._prepare_next_attempt(error)
                continue
            self._publish(store)
            words: list[Word] = list(batch)
            events = sum(isinstance(item, Entry) for item in batch)
            self._last_events = events
            if events:
                words.append((seconds, events))
            if self._faulty:
                self._faulty = False
                words.append(FaultEnds())
            if words:
                self._tell(words)
            batch, pause, replaced, last = [], FIRST_PAUSE, False, False
            if store.log_pages >= CHECKPOINT_ALWAYS:
                self._checkpoint(store)

    def _gather(self) -> list[Entry | Act]:
        """Waits for something to write, and takes all that is there."""
        queue, store = self.queue, self._store
        assert store is not None  # or else this is a fault, and nothing is gathered
        batch: list[Entry | Act] = []
        try:
            item = queue.get(timeout=QUIET if store.log_pages >= CHECKPOINT_QUIET else None)
        except Empty:
            self._checkpoint(store)
            return batch
        if self._last_events >= MANY:
            time.sleep(GATHERING)
        while item is not None:
            batch.append(item)
            if len(batch) == MAX_BATCH or queue.empty():
                return batch
            item = queue.get()
        self._stopping = True
        return batch

    def _checkpoint(self, store: Store) -> None:
        try:
            store.checkpoint()
        except SQL_ERRORS as error:
            if is_damage(error):
                self._damage = str(error)
            store.log_pages = 0  # a disk that will not have it is met again by the next commit

    def _begin_fault(self, fault: Fault) -> None:
        if not self._faulty:
            self._faulty = True
            self._tell([fault])

    def _prepare_next_attempt(self, error: Exception) -> None:
        code = _code(error)
        if code == sqlite3.SQLITE_FULL and self._store is not None:
            with contextlib.suppress(sqlite3.Error):  # room within the log itself
                self._store.checkpoint()
        elif code not in (sqlite3.SQLITE_FULL, sqlite3.SQLITE_BUSY):
            self._drop()  # the device may have come back as another one

    def _replace(self, reason: str) -> None:
        """Sets the file aside while the gate runs. Look-ups go to the old one until the new is there."""
        self._begin_fault(Fault(f"{self.path}: damaged ({reason}); it is set aside and a new ledger begun"))
        if self._store is not None:
            self._store.close()  # before the renaming: it would remove the new one's log by its name
            self._store = None
        self._take(Store.replace(self.path, self._gateway, reason, self.last_seq))
        self._damage = None

    def _check(self) -> None:
        """The thorough check, in the background, once after the start."""
        with contextlib.suppress(OSError):  # of this thread alone; a sandbox may forbid it
            os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), 19)
        store = self._store
        if store is None:
            return
        try:
            with contextlib.closing(open_read_only(self.path)) as conn:
                self._checker = conn
                if self._closing.is_set():
                    return
                answer = conn.execute("PRAGMA quick_check(1)").fetchone()[0]
        except SQL_ERRORS as error:
            if not is_damage(error):
                return
            answer = str(error)
        if answer != "ok" and store is self._store:
            self.report_damage(answer)
