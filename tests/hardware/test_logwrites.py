"""The reader of dm-log-writes' log, on logs written here as the kernel's source says."""

from __future__ import annotations

import struct
from pathlib import Path

import pytest

from tests.hardware.logwrites import NoLog, Write, entries

SECTOR = 512


def log(tmp_path: Path, *parts: tuple[int, int, int, bytes], count: int | None = None) -> Path:
    """A log of (sector, sectors, flags, data)."""
    text = struct.pack("<QQQI", 0x6A736677736872, 1, len(parts) if count is None else count, SECTOR)
    blocks = [text.ljust(SECTOR, b"\0")]
    for sector, sectors, flags, data in parts:
        inside = data if flags & 8 else b""
        head = struct.pack("<QQQQ", sector, sectors, flags, len(inside)) + inside
        blocks += [head.ljust(SECTOR, b"\0"), b"" if flags & 12 else data]
    path = tmp_path / "log"
    path.write_bytes(b"".join(blocks))
    return path


def test_writes_flushes_and_marks_come_in_the_order_of_the_log(tmp_path: Path) -> None:
    """A write, a flush without data, a write past the cache, a mark and a write over two sectors."""
    one, two = b"a" * SECTOR, b"b" * 2 * SECTOR
    path = log(
        tmp_path, (3, 1, 0, one), (0, 0, 1, b""), (4, 1, 2 | 16, one), (0, 0, 8, b"pulse-1"), (8, 2, 3, two)
    )
    assert list(entries(path)) == [
        Write(3 * SECTOR, one),
        Write(0, b"", flush=True),
        Write(4 * SECTOR, one, fua=True),
        Write(0, b"", mark="pulse-1"),
        Write(8 * SECTOR, two, flush=True, fua=True),
    ]


def test_a_discard_has_no_data_and_is_left_out(tmp_path: Path) -> None:
    """However many sectors it names, the next entry follows at once."""
    path = log(tmp_path, (0, 1 << 20, 4, b""), (1, 1, 0, b"c" * SECTOR))
    assert list(entries(path)) == [Write(SECTOR, b"c" * SECTOR)]


def test_only_what_the_super_counts_is_read(tmp_path: Path) -> None:
    """What follows is of a write that was being logged, or of an older log."""
    path = log(tmp_path, (1, 1, 1, b"d" * SECTOR), (2, 1, 1, b"e" * SECTOR), count=1)
    assert [write.offset for write in entries(path)] == [SECTOR]


def test_what_is_no_log_is_refused(tmp_path: Path) -> None:
    """An empty disk, another version, a log that is cut."""
    path = tmp_path / "disk"
    for content in (b"", bytes(4096), struct.pack("<QQQI", 0x6A736677736872, 2, 0, SECTOR)):
        path.write_bytes(content)
        with pytest.raises(NoLog):
            list(entries(path))
    whole = log(tmp_path, (1, 4, 1, b"f" * 4 * SECTOR)).read_bytes()
    path.write_bytes(whole[:-SECTOR])
    with pytest.raises(NoLog, match="inside an entry"):
        list(entries(path))
