"""Snapshot files: every record of a venue at one position, as gzip of NDJSON, with a manifest beside it.

A file is written beside its name, flushed, and renamed, so that one with a name is whole. It is served as it
is, and the manifest's bytes are what is signed. In it are neither keys nor commands.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import secrets
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import IO

import orjson

from gateway.central import files, records
from gateway.central.facts import SnapshotFile
from gateway.central.log import Log
from gateway.sync.protocol import manifest_of, rfc3339

LEVEL = 1
"""Of gzip. Level 6 takes 2.5 times as long and saves an eighth, with ids and codes that are random."""
KEPT = 2
_LINES = 1000
_GZIP = 31
"""The window of 15 bits, with gzip's head and tail (zlib's manual, deflateInit2)."""


def _stem(venue: str) -> str:
    """What the names of a venue's files begin with; its id may have any characters."""
    return hashlib.sha256(venue.encode()).hexdigest()[:16]


def build(log: Log, folder: Path, venue: str, forget: int) -> SnapshotFile:
    """Writes a new file from one state of the database, and removes all but the newest two, and those from
    before the position ``forget``, at which a holder was deleted.

    Memory is bounded. Raises NotFound and OSError.
    """
    folder.mkdir(mode=0o700, exist_ok=True)
    lock = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        # One at a time: a central that was killed may have left its builder at work.
        fcntl.flock(lock, fcntl.LOCK_EX)
        return _build(log, folder, venue, forget)
    finally:
        os.close(lock)


def _build(log: Log, folder: Path, venue: str, forget: int) -> SnapshotFile:
    for left in folder.glob(f"{_stem(venue)}-*"):  # of a build that was killed
        if left.suffix == ".part" or not left.with_suffix(".json").exists():
            left.unlink(missing_ok=True)
    part = folder / f"{_stem(venue)}-{secrets.token_hex(6)}.part"
    try:
        with log.db.read() as conn, part.open("wb") as file:
            at = log.venue(conn, venue)
            cursor = log.cursor(conn, venue, at.position)
            published = log.clock()
            written = _Written(file)
            written.take(records.export(conn, venue, names=at.names))
            file.flush()
            os.fsync(file.fileno())
        manifest = orjson.dumps(
            {
                "venue": venue,
                "history": at.history,
                "cursor": cursor,
                "position": at.position,
                "published": rfc3339(published),
                "count": written.count,
                "bytes": written.bytes,
                "size": written.size,
                "sha256": written.digest.hexdigest(),
            }
        )
        # In the order in which they were built, also where the clock has been put back meanwhile.
        stamp = max([published, *(_stamp(path) + 1 for path in _manifests(folder, venue))])
        name = f"{_stem(venue)}-{stamp:017d}-{at.position}"
        path = folder / f"{name}.gz"
        part.rename(path)
        files.write(folder / f"{name}.json", manifest)  # last: with it the file counts
    finally:
        part.unlink(missing_ok=True)
    for place, old in enumerate(_manifests(folder, venue)):
        if place >= KEPT or int(old.stem.rpartition("-")[2]) < forget:
            old.unlink(missing_ok=True)
            old.with_suffix(".gz").unlink(missing_ok=True)
    return _read(folder / f"{name}.json")


class _Written:
    """A gzip file while it is written."""

    def __init__(self, file: IO[bytes]) -> None:
        self.count = self.bytes = self.size = 0
        self.digest = hashlib.sha256()
        self._file = file
        self._gzip = zlib.compressobj(LEVEL, zlib.DEFLATED, _GZIP)

    def take(self, lines: Iterator[bytes]) -> None:
        gathered = []
        for line in lines:
            gathered.append(line)
            if len(gathered) == _LINES:
                self._add(gathered)
                gathered = []
        self._add(gathered)
        self._write(self._gzip.flush())

    def _add(self, lines: list[bytes]) -> None:
        if lines:
            text = b"\n".join(lines) + b"\n"
            self.count += len(lines)
            self.bytes += len(text)
            self._write(self._gzip.compress(text))

    def _write(self, packed: bytes) -> None:
        self._file.write(packed)
        self.digest.update(packed)
        self.size += len(packed)


def newest(log: Log, folder: Path, venue: str, at_least: int) -> SnapshotFile | None:
    """The newest file that is not before this position and that changes can follow; None: build one."""
    for path in _manifests(folder, venue):
        try:
            found = _read(path)
        except FileNotFoundError:
            continue  # removed since
        # A cursor that is not one of this log's: made before a backup was restored, or too old by now.
        if log.position_of(venue, found.cursor) != found.position:
            continue
        return found if found.position >= at_least else None
    return None


def _manifests(folder: Path, venue: str) -> list[Path]:
    """The newest first."""
    return sorted(folder.glob(f"{_stem(venue)}-*.json"), reverse=True)


def _stamp(path: Path) -> int:
    return int(path.name.split("-")[1])


def _read(path: Path) -> SnapshotFile:
    manifest = path.read_bytes()
    said = manifest_of(orjson.loads(manifest))
    gz = path.with_suffix(".gz")
    gz.stat()
    return SnapshotFile(
        gz,
        manifest,
        said.venue,
        said.history,
        said.cursor,
        said.position,
        said.published,
        said.count,
        said.bytes,
        said.size,
        said.sha256,
    )
