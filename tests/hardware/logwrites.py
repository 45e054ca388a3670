"""The log of a dm-log-writes device: every write in the order in which the disk had it for certain.

Format: ``struct log_write_super`` and ``struct log_write_entry`` in the kernel's drivers/md/dm-log-writes.c;
order: Documentation/admin-guide/device-mapper/log-writes.rst. All numbers are little-endian. The first sector
holds the super; then comes a sector for each entry, with its data, if it has any, in the sectors after it.

A plain write is logged with the next flush, which made sure of it, and before that flush; one past the cache
(FUA) when it was done. So the disk after a power cut holds the log up to some entry, and of the writes
between two flushes perhaps only some.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

_SUPER = struct.Struct("<QQQI")
_ENTRY = struct.Struct("<QQQQ")
_MAGIC = 0x6A736677736872
_FLUSH, _FUA, _DISCARD, _MARK = 1, 2, 4, 8


class NoLog(ValueError):
    """There is no log of dm-log-writes here."""


@dataclass(frozen=True, slots=True)
class Write:
    """One entry."""

    offset: int
    """Where it was written, in bytes."""
    data: bytes
    flush: bool = False
    """All that was logged before it is on the disk for certain."""
    fua: bool = False
    """It was itself when it was done, whatever lies in the cache."""
    mark: str | None = None
    """It is no write but what ``dmsetup message … mark`` said."""


def entries(log: Path) -> Iterator[Write]:
    """What the log holds, up to its last mark or FUA; discards are left out, for a disk may ignore them.

    Raises NoLog."""
    with open(log, "rb") as file:
        head = file.read(_SUPER.size)
        if len(head) < _SUPER.size:
            raise NoLog(f"{log} is too short")
        magic, version, count, sector = _SUPER.unpack(head)
        if (magic, version) != (_MAGIC, 1):
            raise NoLog(f"{log} is no log of dm-log-writes, or one of another version")
        at = sector
        for _ in range(count):
            file.seek(at)
            block = file.read(sector)
            where, sectors, flags, length = _ENTRY.unpack_from(block)
            at += sector
            if flags & _MARK:
                yield Write(0, b"", mark=block[_ENTRY.size : _ENTRY.size + length].decode())
            elif not flags & _DISCARD:
                data = file.read(sectors * sector)
                if len(data) != sectors * sector:
                    raise NoLog(f"{log} ends inside an entry")
                at += len(data)
                yield Write(where * sector, data, bool(flags & _FLUSH), bool(flags & _FUA))
