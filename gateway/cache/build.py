"""The importer: a stream of records becomes a new generation of the snapshot, whole or not at all.

Three steps, none of which holds the records in memory: every line is parsed, checked and spooled as a row;
the rows of each bucket are sorted and the newest of each id kept; they are appended to an LMDB file in the
order of their keys. The file is built as ``.part``, synced and renamed, and the folder is synced: left out,
a power cut leaves a renamed file that is broken.

Meant to run in a process of its own (:func:`yield_to_gate`), beside a gate that uses the generation before.
"""

from __future__ import annotations

import codecs
import ctypes
import gc
import itertools
import os
import platform
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import lmdb
import orjson

from gateway.cache import codekey, generations, records, rows
from gateway.cache.generations import SnapshotError
from gateway.cache.spool import BUCKETS, Pacer, Spool
from gateway.cache.values import JsonObject, RecordError
from gateway.model import Movement, Passage

FAULTS_SHOWN = 20
_SPOOL_BYTES = 12 << 20
"""Flush the spools after so many bytes of feed; as rows in memory they are about three times that."""
_PROGRESS_LINES = 4096
_ROOM = 2.5
_COMMIT_BYTES = 1 << 20
_BAD = b"\xc1"
"""Stands in a spool for a bad newer version. No msgpack value begins with it."""
_LINE = 4
_HEAD = rows.KEY + _LINE
_SAMPLE = 4096
_TABLE_KINDS = ("venue", "area", "event", "product")


class Fault(NamedTuple):
    """One record that breaks the rules."""

    line: int
    field: str
    message: str

    def __str__(self) -> str:
        return f"{self.line}: {self.field}: {self.message}" if self.field else f"{self.line}: {self.message}"


class DataError(Exception):
    """The records break the rules, and nothing was changed. The message names the lines and the remedy."""

    def __init__(self, source: str, faults: tuple[Fault, ...], count: int) -> None:
        lines = [f"{source}:{fault}" for fault in faults]
        if count > len(faults):
            lines.append(f"and {count - len(faults)} more")
        lines.append(
            "Nothing was imported. Correct these records, or load the rest without them with --skip-bad"
        )
        super().__init__("\n".join(lines))
        self.faults = faults
        self.count = count


@dataclass(slots=True)
class BuildReport:
    """What an import made. Counts are of what the generation holds, but for the first three."""

    generation: int = 0
    path: Path = Path()
    lines: int = 0
    records: int = 0
    """Good records read, those that a later one replaced and deletions included."""
    skipped_bad: int = 0
    faults: tuple[Fault, ...] = ()
    """The first of the bad ones."""
    unknown_kinds: dict[str, int] = field(default_factory=dict)
    credentials: int = 0
    entitlements: int = 0
    holders: int = 0
    blocked: int = 0
    usages: int = 0
    tables: dict[str, int] = field(default_factory=dict)
    """Venue, areas, events and products, by kind."""


def build(
    data_dir: Path,
    lines: Iterable[bytes],
    *,
    source: str,
    skip_bad: bool = False,
    progress: Callable[[int, int], None] | None = None,
    cursor: str | None = None,
    published: int | None = None,
    pace: float = 1.0,
    free: int | None = None,
) -> BuildReport:
    """Builds the next generation in ``data_dir`` from NDJSON lines and returns what is in it.

    ``source`` names the lines in messages. ``progress`` is called now and then with the records and bytes
    read so far. ``cursor`` and ``published`` (microseconds) are what the central signed with the records.
    ``pace`` is the pause after each megabyte written, as a multiple of the time that writing it took.
    ``free`` is for tests: the free bytes of the disk, instead of asking.

    Raises DataError (bad records, without ``skip_bad``), SnapshotError (no room, the disk fails),
    CodeKeyError and BusyError; whatever it raises, the generations there are untouched and no file is left.
    """
    data_dir.mkdir(parents=True, exist_ok=True, mode=0o700)
    collecting = gc.isenabled()
    gc.disable()  # rows are plain bytes, in no cycles; the collector would walk them again and again
    try:
        with generations.building(data_dir), ExitStack() as stack:
            _check_room(data_dir, free)
            build_ = _Build(data_dir, stack, codekey.load_or_create(data_dir), Pacer(pace))
            build_.read(lines, source, progress)
            report = build_.report
            if report.skipped_bad and not skip_bad:
                raise DataError(source, report.faults, report.skipped_bad)
            meta = rows.Meta(
                generation=next(iter(generations.numbers(data_dir)), 0) + 1,
                key_check=build_.key.check,
                cursor=cursor,
                published=published,
                built=time.time_ns() // 1000,
                source=source,
            )
            build_.write(meta)
            return report
    except (OSError, lmdb.Error) as error:
        raise SnapshotError(
            f"the new generation cannot be written in {data_dir}: {error}. Look for a full or failing disk "
            "and import again; the generation in use is untouched"
        ) from error
    finally:
        if collecting:
            gc.enable()


def yield_to_gate() -> None:
    """Gives this process the lowest claim on processor and disk; for the process that imports."""
    os.nice(19)
    # ioprio_set(2) has no wrapper in libc: who = this process (1, 0), class idle (3 << 13).
    number = {"x86_64": 251, "aarch64": 30}.get(platform.machine())
    if number is not None:
        ctypes.CDLL(None, use_errno=True).syscall(number, 1, 0, 3 << 13)


def _check_room(data_dir: Path, free: int | None) -> None:
    present = next(iter(generations.numbers(data_dir)), None)
    if present is None:
        return
    path = generations.path_of(data_dir, present)
    needed = int(path.stat().st_blocks * 512 * _ROOM)
    if free is None:
        disk = os.statvfs(data_dir)
        free = disk.f_bavail * disk.f_frsize
    if free < needed:
        raise SnapshotError(
            f"{data_dir} has {free / 1e6:.1f} MB free, and a new generation asks for {needed / 1e6:.1f} MB "
            f"({_ROOM} times {path.name}). Free some space and import again; the generation in use serves on"
        )


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


class _Build:
    """One import on its way. A spooled row is the key (16 bytes), the line (4 bytes), then the value: what
    goes into the table, nothing for a deletion, or ``_BAD``. So bytes sort by key, then by line."""

    def __init__(self, data_dir: Path, stack: ExitStack, key: codekey.CodeKey, pacer: Pacer) -> None:
        self.key = key
        self.report = BuildReport()
        self._data_dir = data_dir
        self._stack = stack
        self._pacer = pacer
        self._codes = self._spool()
        self._ids = self._spool()
        self._entitlements = self._spool()
        self._holders = self._spool()
        self._usages = self._spool()
        self._tables: dict[tuple[str, str], bytes] = {}

    def _spool(self, splitters: list[bytes] | None = None) -> Spool:
        spool = Spool(self._data_dir, self._pacer, splitters)
        self._stack.callback(spool.close)
        return spool

    # --- reading ------------------------------------------------------------------------------------

    def read(self, lines: Iterable[bytes], source: str, progress: Callable[[int, int], None] | None) -> None:
        """Parses and spools every line. Bad ones are noted in the report, all of them."""
        faults: list[Fault] = []
        unknown: Counter[str] = Counter()
        report = self.report
        spools = (self._codes, self._ids, self._entitlements, self._holders, self._usages)
        loads, pack, code_key, id_key = orjson.loads, rows.pack, self.key.code, self.key.id
        codes, ids = self._codes.rows, self._ids.rows
        entitlements, holders = self._entitlements.rows, self._holders.rows
        number = good = size = flushed = 0
        lines = iter(lines)
        first = [line.removeprefix(codecs.BOM_UTF8) for line in itertools.islice(lines, 1)]

        for number, line in enumerate(itertools.chain(first, lines), 1):
            size += len(line)
            try:
                obj = loads(line)
                kind = records.kind_of(obj)
                # One branch each for what comes by the million; what they do is kept flat.
                if kind == "entitlement":
                    if "deleted" in obj and records.deleted(obj):
                        row = b""
                        key = id_key(records.record_id(obj))
                    else:
                        fields = records.entitlement_fields(obj)
                        row = pack(fields)
                        key = id_key(fields[0])
                    entitlements[key[0]].append(key + number.to_bytes(_LINE, "big") + row)
                elif kind == "credential":
                    place = number.to_bytes(_LINE, "big")
                    if "deleted" in obj and records.deleted(obj):
                        key = id_key(records.record_id(obj))
                        ids[key[0]].append(key + place)
                    else:
                        id_, code, state, listed = records.credential_fields(obj)
                        row = pack((id_, state, [id_key(item) for item in listed]))
                        digest = code_key(code)
                        key = id_key(id_)
                        codes[digest[0]].append(digest + place + row)
                        ids[key[0]].append(key + place + digest)
                elif kind == "holder":
                    if "deleted" in obj and records.deleted(obj):
                        row = b""
                        key = id_key(records.record_id(obj))
                    else:
                        holder = records.holder_fields(obj)
                        row = pack(holder)
                        key = id_key(holder[0])
                    holders[key[0]].append(key + number.to_bytes(_LINE, "big") + row)
                elif not self._read_other(obj, number):
                    unknown[kind] += 1
                    continue
                good += 1
            except RecordError as error:
                report.skipped_bad += 1
                if len(faults) < FAULTS_SHOWN:
                    faults.append(Fault(number, error.field, error.message))
                self._read_bad(obj, number)
            except orjson.JSONDecodeError as error:
                if line.strip():
                    report.skipped_bad += 1
                    if len(faults) < FAULTS_SHOWN:
                        faults.append(Fault(number, "", f"is not JSON: {error}"))
            if not number % _PROGRESS_LINES:
                if size - flushed > _SPOOL_BYTES:
                    flushed = size
                    for spool in spools:
                        spool.flush()
                if progress is not None:
                    progress(good, size)

        if progress is not None:
            progress(good, size)
        report.lines = number
        report.records = good
        report.faults = tuple(faults)
        report.unknown_kinds = dict(unknown)

    def _read_other(self, obj: JsonObject, number: int) -> bool:
        """Everything that does not come by the million. False: the kind is unknown."""
        record = records.parse(obj)
        if record is None:
            return False
        kind = obj["kind"]
        if isinstance(record, Movement):
            taken = record.passage is not Passage.NOT_TAKEN
            self._read_usage(records.usage_source(obj), number, rows.movement_row(record) if taken else b"")
        elif isinstance(record, records.Deleted):
            if kind == "usage":
                self._read_usage(record.id, number, b"")
            else:
                self._tables.pop((kind, record.id), None)
        else:
            self._tables[kind, "" if kind == "venue" else obj["id"]] = orjson.dumps(obj)
        return True

    def _read_usage(self, source: str, number: int, row: bytes) -> None:
        self._usages.add(self.key.id(source) + number.to_bytes(_LINE, "big") + row)

    def _read_bad(self, obj: Any, number: int) -> None:
        """A bad newer version of a credential or an entitlement makes the older one inactive: it may well
        have been the revocation."""
        if type(obj) is not dict or type(obj.get("id")) is not str:
            return
        spool = {"credential": self._ids, "entitlement": self._entitlements}.get(str(obj.get("kind")))
        if spool is not None:
            spool.add(self.key.id(obj["id"]) + number.to_bytes(_LINE, "big") + _BAD)

    # --- writing ------------------------------------------------------------------------------------

    def write(self, meta: rows.Meta) -> None:
        """Sorts what was spooled into the new generation and puts it in place."""
        report = self.report
        path = generations.path_of(self._data_dir, meta.generation)
        part = path.with_suffix(".part")
        self._stack.callback(part.unlink, missing_ok=True)
        spools = (self._codes, self._ids, self._entitlements, self._holders, self._usages)
        spooled = sum(spool.bytes for spool in spools) + _SPOOL_BYTES * 4
        out = _Output(part, 4 * spooled, self._pacer)
        try:
            superseded, inactive = _Lines(), _Lines()
            out.append("credential_ids", self._newest_ids(superseded, inactive))
            report.credentials = out.append("credentials", self._newest_codes(superseded, inactive))
            report.entitlements = out.append("entitlements", self._newest_entitlements())
            blocked: list[tuple[bytes, bytes]] = []
            report.holders = out.append("holders", self._newest_holders(blocked))
            report.blocked = out.append("blocked", iter(sorted(blocked)))
            report.usages = self._write_usages(out)
            report.tables = dict(Counter(kind for kind, _ in self._tables))
            out.append("tables", iter(sorted(self._table_rows())))
            out.append("meta", iter([(rows.META_KEY, meta.row())]))
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
        codekey.sync_folder(self._data_dir)
        report.generation = meta.generation
        report.path = path

    def _table_rows(self) -> Iterator[tuple[bytes, bytes]]:
        for (kind, id_), row in self._tables.items():
            yield rows.table_key(kind, self.key.id(id_)), row

    def _newest_ids(self, superseded: _Lines, inactive: _Lines) -> Iterator[tuple[bytes, bytes]]:
        """Id to code. Notes the lines whose credential was replaced or deleted by a later line, and those
        that a bad later version makes inactive: their codes are judged by that."""
        for bucket in self._ids.buckets():
            if _all_different(bucket):
                yield from ((row[:16], row[_HEAD:]) for row in bucket if len(row) > _HEAD + 1)
                continue
            for key, group in itertools.groupby(bucket, _key):
                line, value = 0, b""
                for row in group:
                    if row[_HEAD:] == _BAD:
                        if line:
                            inactive.add(line)
                        continue
                    if line:
                        superseded.add(line)
                    line, value = int.from_bytes(row[16:_HEAD], "big"), row[_HEAD:]
                if value:
                    yield key, value

    def _newest_codes(self, superseded: _Lines, inactive: _Lines) -> Iterator[tuple[bytes, bytes]]:
        """A code belongs to the last record that names it, if that record is still its credential's last:
        else to nobody, for it does not come back to an earlier one."""
        for bucket in self._codes.buckets():
            if not superseded and not inactive and _all_different(bucket):
                yield from ((row[:16], row[_HEAD:]) for row in bucket)
                continue
            for key, group in itertools.groupby(bucket, _key):
                *_, row = group
                line = int.from_bytes(row[16:_HEAD], "big")
                if line not in superseded:
                    value = row[_HEAD:]
                    yield key, rows.inactive_credential(value) if line in inactive else value

    def _newest_entitlements(self) -> Iterator[tuple[bytes, bytes]]:
        for bucket in self._entitlements.buckets():
            if _all_different(bucket):
                yield from ((row[:16], row[_HEAD:]) for row in bucket if len(row) > _HEAD + 1)
                continue
            for key, group in itertools.groupby(bucket, _key):
                value = b""
                for row in group:
                    if row[_HEAD:] != _BAD:
                        value = row[_HEAD:]
                    elif value:
                        value = rows.inactive_entitlement(value)
                if value:
                    yield key, value

    def _newest_holders(self, blocked: list[tuple[bytes, bytes]]) -> Iterator[tuple[bytes, bytes]]:
        for bucket in self._holders.buckets():
            for key, value in _newest(bucket):
                if rows.holder_blocked(value):
                    blocked.append((rows.blocked_key(rows.unpack(value)[0]), b""))
                yield key, value

    def _write_usages(self, out: _Output) -> int:
        """A usage lies under its source, its time, its person and its entitlement. Persons and entitlements
        are spread evenly, times are not: the first few thousand, which are a random sample, since they come
        in the order of digests, say where the buckets of the rest begin."""
        people, entitlements = self._spool(), self._spool()
        waiting: list[bytes] = []
        times: Spool | None = None

        def by_source() -> Iterator[tuple[bytes, bytes]]:
            nonlocal times
            since = 0
            for bucket in self._usages.buckets():
                for source, row in _newest(bucket):
                    at, _, person, entitlement = rows.usage_keys(rows.movement_of(row), self.key.id)
                    if person != rows.NOBODY:
                        people.add(person + at + source + row)
                    if entitlement != rows.NOBODY:
                        entitlements.add(entitlement + at + source + row)
                    if times is None:
                        waiting.append(at + source + row)
                        if len(waiting) >= _SAMPLE:
                            times = self._times(waiting)
                    else:
                        times.add(at + source + row)
                    since += 3 * len(row)
                    yield source, at + person + entitlement
                if since > _SPOOL_BYTES:
                    since = 0
                    for spool in (people, entitlements, times):
                        if spool is not None:
                            spool.flush()

        count = out.append("usage_ids", by_source())
        if times is None:
            times = self._times(waiting)
        length = rows.AT + rows.KEY
        out.append("usage_time", _split(times, length))
        out.append("usage_person", _split(people, rows.KEY + length))
        out.append("usage_entitlement", _split(entitlements, rows.KEY + length))
        return count

    def _times(self, waiting: list[bytes]) -> Spool:
        sample = sorted(waiting)
        spool = self._spool(sample[:: len(sample) // BUCKETS + 1][: BUCKETS - 1])
        for row in waiting:
            spool.add(row)
        waiting.clear()
        return spool


def _key(row: bytes) -> bytes:
    return row[:16]


def _all_different(bucket: list[bytes]) -> bool:
    return len({row[:16] for row in bucket}) == len(bucket)


def _newest(bucket: list[bytes]) -> Iterator[tuple[bytes, bytes]]:
    """The last row of each key, as (key, value), where it is no deletion."""
    following = itertools.chain(itertools.islice(bucket, 1, None), [b""])
    for row, after in zip(bucket, following, strict=True):
        if len(row) > _HEAD and row[:16] != after[:16]:
            yield row[:16], row[_HEAD:]


def _split(spool: Spool, length: int) -> Iterator[tuple[bytes, bytes]]:
    for bucket in spool.buckets():
        yield from ((row[:length], row[length:]) for row in bucket)


class _Output:
    """The new LMDB file, written in the order of the keys, a megabyte a transaction."""

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

    def append(self, table: str, items: Iterator[tuple[bytes, bytes]]) -> int:
        """Appends items whose keys ascend. Returns how many."""
        count = 0
        chunk: list[tuple[bytes, bytes]] = []
        size = 0
        for item in items:
            chunk.append(item)
            size += len(item[1]) + 32
            if size >= _COMMIT_BYTES:
                count += self._commit(table, chunk, size)
                chunk.clear()
                size = 0
        return count + (self._commit(table, chunk, size) if chunk else 0)

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
