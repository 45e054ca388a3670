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
from collections import deque
from collections.abc import Callable, Iterator
from pathlib import Path
from statistics import median
from typing import Any

from gateway.cache import rows as rows_

BUCKETS = 256
_STEP, _SMALL_STEP = 1 << 20, 1 << 17
"""Bytes written between two syncs; the small ones from the first standstill of the disk on."""
_STANDSTILL = 0.02
"""Seconds of a sync, and ..."""
_UNUSUAL = 4
"""... how many times the usual length, that make a standstill."""
_WINDOW = 0.5
"""Seconds before a standstill over which the speed is taken that led to it."""
_SHARE, _LEAST_SPEED, _RAISE = 0.5, 1e6, 0.05
"""What is taken of that speed then, bytes a second at least, and how much more each second."""
_LONGEST_PAUSE = 0.5


class Pacer:
    """Syncs what is written in steps, and leaves the disk to others in between.

    A commit of the ledger on the same disk waits behind everything of an import that is dirty or queued. So
    after each sync the disk is left alone for as long as that took: no time to speak of on a fast one, half
    of the time on a slow one.

    That is not enough where a disk takes much at once and then stands still, like a card that empties its
    cache, or a volume with a limit: syncs of a millisecond, now and then one of 100, and a scan waits for it
    (p99 of a pulse 140 ms on a disk of 10 MB/s and 400 writes a second). So after such a standstill the steps
    are small and go at half the speed that led to it, raised little by little until the next.
    ``pace`` scales the pauses; 0 is none. ``alive`` is called after each step.
    """

    def __init__(self, pace: float, alive: Callable[[], None] | None = None) -> None:
        self._alive = alive
        self.step = _STEP
        """Bytes to be written at once."""
        self._pace = pace
        self._written = 0
        self._recent: deque[tuple[float, int]] = deque()
        """(when, bytes) of the last steps."""
        self._lengths: deque[float] = deque(maxlen=15)
        """Seconds that the last syncs took."""
        self._speed = 0.0
        """Bytes a second to keep to; 0 until the first standstill."""
        self._synced = 0.0

    def wrote(self, count: int, sync: Callable[[], Any]) -> None:
        """So many bytes more are written. Syncs and pauses where a step is full, or nearly."""
        self._written += count
        if 4 * self._written < 3 * self.step:
            return
        written, self._written = self._written, 0
        began = time.monotonic()
        sync()
        now = time.monotonic()
        took = now - began
        self._recent.append((began, written))
        if took > _STANDSTILL and (not self._speed or took > _UNUSUAL * median(self._lengths)):
            self._speed = max(_SHARE * self._reached(now, max(_WINDOW, 2 * took)), _LEAST_SPEED)
            self.step = _SMALL_STEP
        else:
            self._speed *= 1 + _RAISE * min(1.0, now - self._synced)
        self._lengths.append(took)
        self._synced = now
        pause = max(took, written / self._speed - took if self._speed else 0.0) * self._pace
        if pause > 0:
            time.sleep(min(pause, _LONGEST_PAUSE))
        if self._alive is not None:
            self._alive()

    def _reached(self, now: float, window: float) -> float:
        """Bytes a second, over so many seconds up to now."""
        while self._recent[0][0] < now - window:
            self._recent.popleft()
        return sum(written for _, written in self._recent) / window


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
