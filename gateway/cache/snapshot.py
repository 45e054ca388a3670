"""The snapshot in use: what the central said, mapped from one LMDB file (``rows`` says how it lies there).

Exactly one process opens a generation at a time. Reads belong to the thread of the loop and are a few
mapped pages each: nothing is open between two calls, so a generation can be closed at any time. Changes are
applied in a worker thread meanwhile; LMDB keeps the two apart.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import lmdb
import orjson

from gateway.cache import changes, codekey, generations, records, rows
from gateway.cache.changes import Applied
from gateway.cache.generations import SnapshotError, SnapshotTooNew, guard, prune
from gateway.model import (
    NO_MOVEMENTS,
    Area,
    Credential,
    Entitlement,
    Event,
    Holder,
    Movement,
    Product,
    Venue,
)

__all__ = ["Applied", "Counts", "Snapshot", "SnapshotError", "Tables", "guard", "prune", "switch"]

_unpack = rows.unpack

_LOCK_BYTES = 16384
"""More than LMDB's lock file takes with 16 readers."""
_READERS = 16
_CHUNK = 1000
_DAMAGE = (lmdb.Error, rows.UnpackException, ValueError, TypeError, OverflowError)
"""What reading a row raises that is not what was once written."""
_LAST_MARK = (1 << 18) - 1
"""Of the marks of blocked holders. With 10,000 of them one scan in 26 reads for nothing."""


@dataclass(slots=True, frozen=True)
class Tables:
    """What is compiled in memory."""

    venue: Venue
    areas: tuple[Area, ...]
    events: tuple[Event, ...]
    products: tuple[Product, ...]


@dataclass(slots=True, frozen=True)
class Counts:
    credentials: int
    entitlements: int
    holders: int
    blocked: int
    usages: int


class Snapshot:
    """One generation, open. Make it with :meth:`open` or :func:`switch`."""

    def __init__(self, path: Path, key: codekey.CodeKey) -> None:
        """Opens one file. Raises SnapshotError where it is cut, foreign, or built under another code.key."""
        guard(path)
        self.path = path
        self._key = key
        self.writable = _prepare_lock(path)
        """False on a disk that is full or read-only: it serves, and takes no changes."""
        try:
            self._env = lmdb.open(
                str(path),
                # Room for changes until the next generation. Not more than it takes, for a Pi's kernel
                # may have only 512 GiB of addresses.
                map_size=max(1 << 30, 4 * path.stat().st_size),
                subdir=False,
                create=False,
                readonly=not self.writable,
                lock=self.writable,
                readahead=False,
                max_dbs=len(rows.TABLES),
                max_readers=_READERS,
            )
        except (OSError, lmdb.Error) as error:
            raise SnapshotError(f"{path} cannot be opened: {error}") from error
        try:
            self._tables = {name: self._env.open_db(name.encode(), create=False) for name in rows.TABLES}
            self._credentials = self._tables["credentials"]
            self._entitlements = self._tables["entitlements"]
            self._blocked = self._tables["blocked"]
            self._meta = self._read_meta()
            counts = self.counts()
        except rows.TooNew as error:
            self._env.close()
            raise SnapshotTooNew(f"{path} {error}") from error
        except (lmdb.Error, ValueError, TypeError, KeyError) as error:
            self._env.close()
            raise SnapshotError(f"{path} is damaged or of another version: {error}") from error
        if self._meta.key_check != key.check:
            self._env.close()
            raise SnapshotError(
                f"{path} was built under another {codekey.KEY_FILE}, so no card would be found. "
                "Put the right one back, or import the cards anew"
            )
        # Who may be blocked, by hash and never one too few: it saves each scan a read.
        self._maybe_blocked = bytearray(_LAST_MARK + 1)
        self._mark_blocked()
        self.has_usage = counts.usages > 0
        self._begin = self._env.begin
        self.damaged: str | None = None
        """What was wrong with the first damaged row that was met; None: none was."""
        self._code_state = key.code_state

    @classmethod
    def open(
        cls,
        data_dir: Path,
        aside: Callable[[Path, str], None] | None = None,
        *,
        above: int = 0,
        below: int | None = None,
    ) -> Snapshot | None:
        """The newest generation that is whole; None where there is none.

        ``above``, ``below``: only those with a higher or lower number; LMDB cannot open one twice, so whoever
        has one open asks for those beside it. ``aside`` hears of every newer one that cannot be used, with
        the reason; the files stay. Raises SnapshotTooNew where a newer program wrote one of them, and
        CodeKeyError where there are generations and no key.
        """
        numbers = generations.numbers(data_dir) if data_dir.is_dir() else []
        numbers = [n for n in numbers if n > above and (below is None or n < below)]
        if not numbers:
            return None
        key = codekey.load(data_dir)
        for number in numbers:
            path = generations.path_of(data_dir, number)
            try:
                return cls(path, key)
            except SnapshotTooNew:
                raise
            except SnapshotError as error:
                if aside is not None:
                    aside(path, str(error))
        return None

    def close(self) -> None:
        """Unmaps it: milliseconds for a large one, so call it in a thread. Twice does nothing."""
        self._env.close()

    # --- on the scan's way ----------------------------------------------------------------------------

    def find(self, code: bytes) -> Credential | None:
        """The credential with this code, its existing entitlements in the order listed, ``blocked`` set.

        A row that is damaged is as good as none, and ``damaged`` says so from then on.
        """
        digest = self._code_state.copy()
        digest.update(code)
        txn = self._begin(self._credentials)
        get = txn.get
        try:
            row = get(digest.digest())
            if row is None:
                return None
            id_, state, keys = _unpack(row)
            found: tuple[Entitlement, ...] = ()
            for key in keys:
                row = get(key, None, self._entitlements)
                if row is not None:
                    entitlement = Entitlement(*_unpack(row))
                    found += (entitlement,)
                    holder = entitlement.holder
                    if holder is not None and self._maybe_blocked[hash(holder) & _LAST_MARK]:
                        blocked = get(rows.blocked_key(holder), None, self._blocked)
                        entitlement.blocked = blocked is not None
            return Credential(id_, state, found)
        except _DAMAGE as error:
            self.damaged = self.damaged or f"a row cannot be read ({type(error).__name__})"
            return None
        finally:
            txn.abort()

    # --- beside it ------------------------------------------------------------------------------------

    def holder(self, id_: str) -> Holder | None:
        """The holder's record: language, name, notice. For after the pulse."""
        with self._env.begin(self._tables["holders"]) as txn:
            row = txn.get(self._key.id(id_))
        try:
            return None if row is None else Holder(*_unpack(row))
        except _DAMAGE as error:
            self.damaged = self.damaged or f"a row cannot be read ({type(error).__name__})"
            return None

    def movements_of_person(self, person: str, since: int) -> Sequence[Movement]:
        """The ``usage`` of a person (holder's id, or ``card:`` and the credential's) from an instant on."""
        return self._movements("usage_person", person, since) if self.has_usage else NO_MOVEMENTS

    def movements_of_entitlement(self, entitlement: str, since: int) -> Sequence[Movement]:
        """The ``usage`` that names an entitlement, from an instant on, in the order of time."""
        return self._movements("usage_entitlement", entitlement, since) if self.has_usage else NO_MOVEMENTS

    def _movements(self, table: str, of: str, since: int) -> Sequence[Movement]:
        prefix = self._key.id(of)
        found = []
        with self._env.begin(self._tables[table]) as txn, txn.cursor() as cursor:
            if cursor.set_range(prefix + rows.at_key(since)):
                for key, row in cursor:
                    if key[: rows.KEY] != prefix:
                        break
                    found.append(rows.movement_of(row))
        return found

    def movements_since(self, at: int) -> Iterator[Movement]:
        """All ``usage`` from an instant on, in the order of time; for the start of the gate."""
        start = rows.at_key(at)
        while self.has_usage:
            # A thousand a transaction, so that an iteration nobody ends does not keep one open.
            with self._env.begin(self._tables["usage_time"]) as txn, txn.cursor() as cursor:
                chunk = []
                if cursor.set_range(start):
                    for key, row in cursor:
                        chunk.append(row)
                        if len(chunk) == _CHUNK:
                            start = key + b"\0"
                            break
            yield from map(rows.movement_of, chunk)
            if len(chunk) < _CHUNK:
                return

    def records(self) -> Tables:
        """Venue, areas, events and products, each sorted by id, to be compiled."""
        venue = Venue()
        found: dict[type, list[Any]] = {Area: [], Event: [], Product: []}
        with self._env.begin(self._tables["tables"]) as txn, txn.cursor() as cursor:
            for _, row in cursor:
                record = records.parse(orjson.loads(row))
                if isinstance(record, Venue):
                    venue = record
                else:
                    found[type(record)].append(record)
        for listed in found.values():
            listed.sort(key=lambda record: record.id)
        return Tables(venue, tuple(found[Area]), tuple(found[Event]), tuple(found[Product]))

    def counts(self) -> Counts:
        names = ("credentials", "entitlements", "holders", "blocked", "usage_ids")
        with self._env.begin() as txn:
            return Counts(*(txn.stat(self._tables[name])["entries"] for name in names))

    @property
    def generation(self) -> int:
        return self._meta.generation

    @property
    def cursor(self) -> str | None:
        """How far the central's changes are in it; None for an imported file."""
        return self._meta.cursor

    @property
    def published(self) -> int | None:
        """The newest publication time that the central signed for what is in here, microseconds."""
        return self._meta.published

    @property
    def history(self) -> str | None:
        """The history of the central's log that the cursor is of; None for an imported file."""
        return self._meta.history

    @property
    def position(self) -> int | None:
        """How far the central's log is in it, as a number that can be compared; None as for ``cursor``."""
        return self._meta.position

    @property
    def base(self) -> int | None:
        """The log's position when this generation was built. What was deleted after it may lie in free pages
        of the file."""
        return self._meta.base

    @property
    def source(self) -> str:
        return self._meta.source

    def age(self, now: int) -> int:
        """Microseconds since it was published, or built where nobody signed a time."""
        published = self._meta.published
        return now - (self._meta.built if published is None else published)

    # --- changes --------------------------------------------------------------------------------------

    def apply(
        self,
        batch: Sequence[dict[str, Any]],
        cursor: str | None = None,
        published: int | None = None,
        *,
        position: int | None = None,
    ) -> Applied:
        """Applies changes of single records, with the cursor, in one transaction, durably; all or nothing.

        A bad record is set aside with its reason, and the older version of a bad credential or entitlement
        becomes inactive. None for ``cursor``, ``published`` or ``position`` leaves them. Call it in a worker
        thread, one call at a time. Raises SnapshotError where it cannot be written: then nothing has changed.
        """
        prepared = changes.prepare(batch, self._key)
        for holder in prepared.blocks:  # before it can be seen, so that no scan misses it
            self._maybe_blocked[hash(holder) & _LAST_MARK] = 1
        if prepared.uses:
            self.has_usage = True
        meta = replace(
            self._meta,
            cursor=self._meta.cursor if cursor is None else cursor,
            published=self._meta.published if published is None else published,
            position=self._meta.position if position is None else position,
        )
        applied = self._write(prepared, meta)
        self.has_usage = self.counts().usages > 0
        return applied

    def touch(self, published: int) -> None:
        """Stores, durably, that the central signed at this instant (microseconds) that nothing is newer; an
        older one than is known changes nothing. In a worker thread, never beside ``apply``. Raises
        SnapshotError as that does."""
        if self._meta.published is None or published > self._meta.published:
            self._write(changes.Prepared(), replace(self._meta, published=published))

    def _write(self, prepared: changes.Prepared, meta: rows.Meta) -> Applied:
        if not self.writable:
            raise SnapshotError(
                f"{self.path} was opened while its disk was full or read-only and takes no changes. "
                "Mend the disk and start again"
            )
        try:
            # The file ends beyond every page that this can take into use, before it takes it.
            used, _ = generations.used_bytes(self.path)
            generations.grow(self.path, used + changes.room(prepared))
            with self._env.begin(write=True) as txn:
                applied = changes.write(txn, self._tables, prepared)
                txn.put(rows.META_KEY, meta.row(), db=self._tables["meta"])
        except lmdb.MapFullError as error:
            raise SnapshotError(
                f"{self.path} has no room for more changes. Fetch or import a new generation"
            ) from error
        except (OSError, lmdb.Error) as error:
            raise SnapshotError(
                f"changes cannot be written to {self.path}: {error}. Look for a full or failing disk"
            ) from error
        self._meta = meta
        return applied

    def _mark_blocked(self) -> None:
        with self._env.begin(self._blocked) as txn, txn.cursor() as cursor:
            for key in cursor.iternext(values=False):
                if len(key) != rows.BLOCKED_DIGEST:
                    self._maybe_blocked[hash(key.decode()) & _LAST_MARK] = 1
                else:  # it may be a digest, of an id that cannot be known: it may be anybody
                    self._maybe_blocked[:] = b"\1" * len(self._maybe_blocked)

    def _read_meta(self) -> rows.Meta:
        with self._env.begin(self._tables["meta"]) as txn:
            row = txn.get(rows.META_KEY)
        if row is None:
            raise ValueError("it has no meta record")
        return rows.meta_of(row)


def switch(data_dir: Path, generation: int, *, keep_before: bool = True) -> Snapshot:
    """Opens a new generation, then removes those older than it but for the newest whole one.

    Call it in a worker thread, put the result in the place of the one in use, then close that.
    ``keep_before=False`` after a holder was deleted. Raises SnapshotError or CodeKeyError, and then has
    removed nothing: the one in use serves on.
    """
    snapshot = Snapshot(generations.path_of(data_dir, generation), codekey.load(data_dir))
    prune(data_dir, generation, keep_before=keep_before)
    return snapshot


def _prepare_lock(path: Path) -> bool:
    """Writes out LMDB's lock file. Returns whether it can be used.

    LMDB maps it, and would make it with a hole: on a full disk the first write into that hole kills the
    process (SIGBUS). Without a writer no lock is needed, so a full or read-only disk still serves.
    """
    try:
        fd = os.open(generations.lock_path(path), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            size = os.fstat(fd).st_size
            if size < _LOCK_BYTES:
                os.pwrite(fd, bytes(_LOCK_BYTES - size), size)
                os.fsync(fd)
        finally:
            os.close(fd)
        return os.access(path, os.W_OK)
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES):
            return False
        raise SnapshotError(f"{generations.lock_path(path)} cannot be written: {error.strerror}") from error
