"""The importer's second step: of what was read the newest of each id, appended to an LMDB file in order.

Every function that gives rows of a table gives them a bucket at a time, as lists of (key, value) whose keys
ascend: per row the work is done by list and dict displays, for a loop of its own would cost more than LMDB.
"""

from __future__ import annotations

import itertools
import os
from collections.abc import Iterable, Iterator
from contextlib import ExitStack
from pathlib import Path

import lmdb

from gateway.cache import codekey, generations, rows
from gateway.cache.generations import SnapshotError
from gateway.cache.intake import BAD, HEAD, SPOOL_BYTES, Intake
from gateway.cache.spool import BUCKETS, Pacer, Spool

Items = list[tuple[bytes, bytes]]

_COMMIT_BYTES = 1 << 20
_SAMPLE = 4096
_ITEM = 32
"""What a row takes beside its value, about."""


def assemble(
    intake: Intake, meta: rows.Meta, data_dir: Path, stack: ExitStack, pacer: Pacer
) -> dict[str, int]:
    """Writes what was read as the generation that ``meta`` names and puts it in place.

    Returns the number of rows of each table. Raises OSError and lmdb.Error; ``stack`` removes a torn file.
    """
    path = generations.path_of(data_dir, meta.generation)
    part = path.with_suffix(".part")
    stack.callback(part.unlink, missing_ok=True)
    spooled = sum(spool.bytes for spool in intake.spools())
    out = _Output(part, 4 * (spooled + 4 * SPOOL_BYTES), pacer)
    counts = {}
    try:
        superseded, inactive = _Lines(), _Lines()
        blocked: Items = []
        counts["credential_ids"] = out.append("credential_ids", _ids(intake.ids, superseded, inactive))
        counts["credentials"] = out.append("credentials", _codes(intake.codes, superseded, inactive))
        counts["entitlements"] = out.append("entitlements", _entitlements(intake.entitlements))
        counts["holders"] = out.append("holders", _holders(intake.holders, blocked))
        counts["blocked"] = out.append("blocked", [sorted(blocked)])
        with _Usages(intake, data_dir, pacer) as usages:
            counts["usage_ids"] = out.append("usage_ids", usages.by_source())
            for table, found in usages.indexes():
                counts[table] = out.append(table, found)
        tables = [
            (rows.table_key(kind, intake.key.id(id_)), row) for (kind, id_), row in intake.tables.items()
        ]
        counts["tables"] = out.append("tables", [sorted(tables)])
        counts["meta"] = out.append("meta", [[(rows.META_KEY, meta.row())]])
        out.sync()
    finally:
        out.close()
    generations.grow(part, generations.used_bytes(part)[0])
    fd = os.open(part, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
    generations.guard(part)
    part.rename(path)
    codekey.sync_folder(data_dir)
    return counts


class _Lines:
    """A set of line numbers, as bits: a feed of ten million lines takes 1.25 MB."""

    def __init__(self) -> None:
        self._bits = bytearray()

    def add(self, line: int) -> None:
        if line >> 3 >= len(self._bits):
            self._bits.extend(bytes((line >> 3) + 4096 - len(self._bits)))
        self._bits[line >> 3] |= 1 << (line & 7)

    def __contains__(self, line: int) -> bool:
        return line >> 3 < len(self._bits) and bool(self._bits[line >> 3] & 1 << (line & 7))

    def __bool__(self) -> bool:
        return bool(self._bits)


def _ids(spool: Spool, superseded: _Lines, inactive: _Lines) -> Iterator[Items]:
    """Id to code. Notes the lines whose credential was replaced or deleted by a later line, and those that
    a bad later version makes inactive: their codes are judged by that."""
    for bucket in spool.buckets():
        items = _plain(bucket)
        if items is None:
            items = []
            for key, group in itertools.groupby(bucket, _key):
                line, value = 0, b""
                for row in group:
                    if row[HEAD:] == BAD:
                        if line:
                            inactive.add(line)
                        continue
                    if line:
                        superseded.add(line)
                    line, value = _line(row), row[HEAD:]
                if value:
                    items.append((key, value))
        yield items


def _codes(spool: Spool, superseded: _Lines, inactive: _Lines) -> Iterator[Items]:
    """A code belongs to the last record that names it, if that record is still its credential's last: else
    to nobody, for it does not come back to an earlier one."""
    for bucket in spool.buckets():
        items = None if superseded or inactive else _plain(bucket)
        if items is None:
            items = []
            for key, group in itertools.groupby(bucket, _key):
                *_, row = group
                line = _line(row)
                if line not in superseded:
                    value = row[HEAD:]
                    items.append((key, rows.inactive_credential(value) if line in inactive else value))
        yield items


def _entitlements(spool: Spool) -> Iterator[Items]:
    for bucket in spool.buckets():
        items = _plain(bucket)
        if items is None:
            items = []
            for key, group in itertools.groupby(bucket, _key):
                value = b""
                for row in group:
                    if row[HEAD:] != BAD:
                        value = row[HEAD:]
                    elif value:
                        value = rows.inactive_entitlement(value)
                if value:
                    items.append((key, value))
        yield items


def _holders(spool: Spool, blocked: Items) -> Iterator[Items]:
    """Notes those that are blocked: a small part, which is held in memory."""
    for bucket in spool.buckets():
        items = _newest(bucket)
        for value in [value for _, value in items if rows.holder_blocked(value)]:
            blocked.append((rows.blocked_key(rows.unpack(value)[0]), b""))
        yield items


class _Usages:
    """The tables of usage: by source, by time, by person, by entitlement.

    Persons and entitlements are spread evenly, times are not. The first few thousand usages, a random sample
    since they come in the order of digests, say where the buckets of the others begin.
    """

    def __init__(self, intake: Intake, folder: Path, pacer: Pacer) -> None:
        self._intake = intake
        self._folder = folder
        self._pacer = pacer
        self._stack = ExitStack()
        self._people = self._spool()
        self._entitlements = self._spool()
        self._times: Spool | None = None

    def __enter__(self) -> _Usages:
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def _spool(self, splitters: list[bytes] | None = None) -> Spool:
        return self._stack.enter_context(Spool(self._folder, self._pacer, splitters))

    def by_source(self) -> Iterator[Items]:
        waiting: list[bytes] = []
        size = 0
        for bucket in self._intake.usages.buckets():
            items = []
            for source, row in _newest(bucket):
                at, _, person, entitlement = rows.usage_keys(rows.movement_of(row), self._intake.key.id)
                if person != rows.NOBODY:
                    self._people.add(person + at + source + row)
                if entitlement != rows.NOBODY:
                    self._entitlements.add(entitlement + at + source + row)
                waiting.append(at + source + row)
                size += 3 * len(row)
                items.append((source, at + person + entitlement))
            if len(waiting) >= _SAMPLE:
                self._add_times(waiting)
            if size > SPOOL_BYTES and self._times is not None:
                size = 0
                for spool in (self._people, self._entitlements, self._times):
                    spool.flush()
            yield items
        self._add_times(waiting)

    def _add_times(self, waiting: list[bytes]) -> None:
        if self._times is None:
            sample = sorted(waiting)
            self._times = self._spool(sample[:: len(sample) // BUCKETS + 1][: BUCKETS - 1])
        for row in waiting:
            self._times.add(row)
        waiting.clear()

    def indexes(self) -> Iterator[tuple[str, Iterator[Items]]]:
        assert self._times is not None
        length = rows.AT + rows.KEY
        yield "usage_time", _split(self._times, length)
        yield "usage_person", _split(self._people, rows.KEY + length)
        yield "usage_entitlement", _split(self._entitlements, rows.KEY + length)


def _key(row: bytes) -> bytes:
    return row[: rows.KEY]


def _line(row: bytes) -> int:
    return int.from_bytes(row[rows.KEY : HEAD], "big")


def _plain(bucket: list[bytes]) -> Items | None:
    """The rows of a bucket where nothing is to be decided: no key comes twice, none is deleted or bad."""
    if min(map(len, bucket)) <= HEAD + len(BAD):
        return None
    found = {row[:16]: row[20:] for row in bucket}
    return list(found.items()) if len(found) == len(bucket) else None


def _newest(bucket: list[bytes]) -> Items:
    """The last row of each key, where it is no deletion."""
    items = _plain(bucket)
    if items is not None:
        return items
    found = {row[: rows.KEY]: row[HEAD:] for row in bucket}  # the later line replaces, the order stays
    return [(key, value) for key, value in found.items() if value]


def _split(spool: Spool, length: int) -> Iterator[Items]:
    for bucket in spool.buckets():
        yield [(row[:length], row[length:]) for row in bucket]


class _Output:
    """The new LMDB file, written in the order of the keys."""

    def __init__(self, part: Path, map_size: int, pacer: Pacer) -> None:
        self._pacer = pacer
        # No lock file and no sync per commit: nobody else opens a .part, and it is synced as a whole.
        self._env = lmdb.open(
            str(part),
            map_size=max(1 << 30, map_size),
            subdir=False,
            lock=False,
            sync=False,
            metasync=False,
            readahead=False,
            max_dbs=len(rows.TABLES),
            mode=0o600,
        )
        self._tables = {name: self._env.open_db(name.encode()) for name in rows.TABLES}

    def append(self, table: str, buckets: Iterable[Items]) -> int:
        """Appends rows whose keys ascend, a step of the pacer's in a transaction. Returns how many."""
        count = size = 0
        chunk: Items = []
        for items in itertools.chain(buckets, [None]):
            if items is not None:
                chunk += items
                size += sum([len(value) for _, value in items]) + _ITEM * len(items)
                if size < _COMMIT_BYTES:
                    continue
            start = 0
            while start < len(chunk):
                step = max(1, len(chunk) * self._pacer.step // max(1, size))
                part = chunk[start : start + step]
                count += self._commit(table, part, size * len(part) // len(chunk))
                start += step
            chunk.clear()
            size = 0
        return count

    def _commit(self, table: str, chunk: list[tuple[bytes, bytes]], size: int) -> int:
        with self._env.begin(write=True) as txn:
            _, added = txn.cursor(self._tables[table]).putmulti(chunk, append=True)
        if added != len(chunk):
            raise SnapshotError(f"{len(chunk) - added} rows of {table} came out of order; this is a bug")
        self._pacer.wrote(size, lambda: self._env.sync(True))
        return added

    def sync(self) -> None:
        self._env.sync(True)

    def close(self) -> None:
        self._env.close()
