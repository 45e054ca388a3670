"""What a scan reads from the disk when nothing of the snapshot is in memory, with ten million cards.

The file is written out, dropped from the page cache (posix_fadvise, checked with mincore), opened as a gate
does by a fresh process, and asked for random cards. Major faults (getrusage) and bytes read (/proc/self/io)
are counted around each ``Gate.judge``. The upper levels of the trees become warm with the first scans, as
they do at a gate after a start: the rows tell the first hundred scans and the rest apart.
"""

from __future__ import annotations

import asyncio
import ctypes
import json
import mmap
import os
import random
import resource
import subprocess
import sys
from pathlib import Path
from time import perf_counter_ns

from bench import feed
from bench.decide import open_gate
from bench.row import WORK, Row, run_alone

CARDS, QUICK = 10_000_000, 200_000
SCANS, FIRST = 3000, 100


def drop(path: Path) -> None:
    """Takes a file out of the page cache. Raises RuntimeError where some of it stays."""
    fd = os.open(path, os.O_RDONLY)
    try:
        os.fsync(fd)
        os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
    finally:
        os.close(fd)
    if (left := resident(path)) > 0:
        raise RuntimeError(f"{path}: {left} pages are still in memory; does another process have it open?")


def resident(path: Path) -> int:
    """How many pages of a file are in the page cache (mincore(2))."""
    libc = ctypes.CDLL(None, use_errno=True)
    libc.mmap.restype = ctypes.c_void_p
    libc.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, *[ctypes.c_int] * 3, ctypes.c_long]
    size = path.stat().st_size
    pages = (ctypes.c_ubyte * -(-size // mmap.PAGESIZE))()
    fd = os.open(path, os.O_RDONLY)
    try:
        at = libc.mmap(None, size, mmap.PROT_READ, mmap.MAP_SHARED, fd, 0)
        if libc.mincore(ctypes.c_void_p(at), ctypes.c_size_t(size), pages) != 0:
            raise OSError(ctypes.get_errno(), "mincore")
        libc.munmap(ctypes.c_void_p(at), ctypes.c_size_t(size))
    finally:
        os.close(fd)
    return sum(page & 1 for page in pages)


def scans(data_dir: Path, cards: int) -> list[tuple[int, int, int]]:
    """(major faults, bytes read, nanoseconds) of each scan of a random card, in order."""
    rng = random.Random(7)
    loop = asyncio.new_event_loop()
    found = []
    with open_gate(data_dir, loop) as (gate, _, _), open("/proc/self/io", "rb", buffering=0) as io:
        point = gate.world.points["north-in"]
        # What is not the snapshot's is warm: a code that is unknown goes through all but the tables.
        gate.judge(point, b"", feed.NOON)

        def count() -> tuple[int, int]:
            io.seek(0)
            fields = dict(line.split(b": ") for line in io.read().splitlines())
            return resource.getrusage(resource.RUSAGE_SELF).ru_majflt, int(fields[b"read_bytes"])

        for n in range(SCANS):
            code = feed.code_of(rng.randrange(cards)).encode()
            faults, read = count()
            began = perf_counter_ns()
            gate.judge(point, code, feed.NOON + n)
            took = perf_counter_ns() - began
            faults_after, read_after = count()
            found.append((faults_after - faults, read_after - read, took))
    loop.close()
    return found


def run(quick: bool) -> list[Row]:
    cards = QUICK if quick else CARDS
    data_dir = feed.fresh_data_dir(cards, "cold")
    drop(next(data_dir.glob("*.mdb")))
    command = [sys.executable, "-m", "bench.cold", "--measure", str(data_dir), str(cards)]
    out = subprocess.run(command, cwd=WORK.parents[1], check=True, stdout=subprocess.PIPE, text=True).stdout
    found = json.loads(out)
    rows = []
    for name, part in ((f"first {FIRST}", found[:FIRST]), (f"next {SCANS - FIRST}", found[FIRST:])):
        what = f"cold page cache, {cards:,} cards, {name} scans"
        rows.append(_row(f"{what}, major faults", [n for n, _, _ in part], 4, ""))
        rows.append(_row(f"{what}, read", [n / 1024 for _, n, _ in part], 32, " KiB"))
        rows.append(_row(f"{what}, time", [n / 1000 for _, _, n in part], None, " µs"))
    return rows


def _row(what: str, values: list[float], most: float | None, unit: str) -> Row:
    ordered = sorted(values)
    p50, p99, top = ordered[len(ordered) // 2], ordered[len(ordered) * 99 // 100], ordered[-1]
    mean = sum(values) / len(values)
    return Row(
        what,
        "-",
        f"p50 {p50:.0f}, p99 {p99:.0f}, max {top:.0f}, mean {mean:.1f}{unit}",
        None,
        "-" if most is None else f"at most {most:.0f}{unit}",
        None if most is None else p99 <= most,
    )


if __name__ == "__main__":
    if "--measure" in sys.argv:
        print(json.dumps(scans(Path(sys.argv[2]), int(sys.argv[3]))))
    else:
        run_alone("cold", __doc__, run)
