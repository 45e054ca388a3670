"""Sorting outside memory, for the importer, and writing in steps that leave the disk to others.

The keys are keyed digests, so they are spread evenly and a row's first byte says in which of 256 buckets it
belongs, in order. Rows go into the bucket's part of one temporary file; later each bucket fits in memory and
is sorted there. That is one write and one read of every row, where a merge sort would compare them all in
Python.
"""

from __future__ import annotations

import os
import tempfile
import time
from bisect import bisect_right
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from gateway.cache import rows as rows_

BUCKETS = 256
_STEP = 1 << 20
"""Bytes written between two syncs: about what a slow card takes 100 ms for."""
_LONGEST_PAUSE = 0.5


class Pacer:
    """Syncs after each megabyte written and then leaves the disk alone for as long as the sync took.

    An unpaced import makes the ledger's commits on the same card wait behind everything that is dirty
    (p99 from 19 to 60 ms on a disk of 10 MB/s; 24 ms paced). The pause follows the disk: none to speak of
    on a fast one, half of the time on a slow one. ``pace`` scales it; 0 is no pause.
    """

    def __init__(self, pace: float) -> None:
        self._pace = pace
        self._written = 0

    def wrote(self, count: int, sync: Callable[[], Any]) -> None:
        self._written += count
        if self._written < _STEP:
            return
        self._written = 0
        began = time.monotonic()
        sync()
        pause = (time.monotonic() - began) * self._pace
        if pause > 0:
            time.sleep(min(pause, _LONGEST_PAUSE))


class Spool:
    """Rows (bytes) that come in any order and are read back in order, one bucket at a time.

    ``rows`` is public for the importer's loop: append to ``rows[row[0]]``, then call :meth:`flush` before
    the memory is full. With ``splitters`` (sorted) a row's bucket is the splitter that it follows, for keys
    that are not spread evenly: use :meth:`add`.
    """

    def __init__(self, folder: Path, pacer: Pacer, splitters: list[bytes] | None = None) -> None:
        self.rows: list[list[bytes]] = [[] for _ in range(BUCKETS)]
        self._splitters = splitters
        self._pacer = pacer
        # No name in the folder where the system can do that: a kill leaves nothing behind.
        self._file = tempfile.TemporaryFile(dir=folder, prefix=".build-", buffering=0)  # noqa: SIM115
        self._end = 0
        self._extents: list[list[tuple[int, int]]] = [[] for _ in range(BUCKETS)]

    def add(self, row: bytes) -> None:
        bucket = row[0] if self._splitters is None else bisect_right(self._splitters, row)
        self.rows[bucket].append(row)

    def flush(self) -> None:
        """Writes out what is in memory. Raises OSError."""
        fd = self._file.fileno()
        for rows, extents in zip(self.rows, self._extents, strict=True):
            if not rows:
                continue
            data = rows_.pack(rows)
            rows.clear()
            extents.append((self._end, len(data)))
            view = memoryview(data)
            while view:
                done = os.write(fd, view)
                view = view[done:]
            self._end += len(data)
            self._pacer.wrote(len(data), lambda: os.fdatasync(fd))

    def buckets(self) -> Iterator[list[bytes]]:
        """The rows of each bucket that has some, sorted; the buckets in order. Once, after all was added."""
        fd = self._file.fileno()
        for rows, extents in zip(self.rows, self._extents, strict=True):
            for offset, length in extents:
                rows.extend(rows_.unpack(os.pread(fd, length, offset)))
            if rows:
                rows.sort()
                yield rows
                rows.clear()

    @property
    def bytes(self) -> int:
        """How many bytes it has written out."""
        return self._end

    def __enter__(self) -> Spool:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()
