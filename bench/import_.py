"""Import of a million records, validated, against orjson.loads of the same lines.

The floor is taken in the same process, some thousand lines ahead of the import, so that both see the same
machine; its time is not counted as the import's.
"""

from __future__ import annotations

import itertools
import json
import resource
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from bench import feed
from bench.row import WORK, Row, run_alone

RECORDS, ROUNDS = 1_000_000, 3
CHUNK = 5000


def imported(path: Path, data_dir: Path) -> dict[str, float]:
    """Seconds of orjson.loads alone and of the import, and this process's peak memory in MB."""
    import orjson

    from gateway.cache.build import build

    loads = orjson.loads
    floor = 0.0

    def lines(file: BinaryIO) -> Iterator[bytes]:
        nonlocal floor
        while chunk := list(itertools.islice(file, CHUNK)):
            began = time.perf_counter()
            for line in chunk:
                loads(line)
            floor += time.perf_counter() - began
            yield from chunk

    began = time.perf_counter()
    with path.open("rb") as file:
        build(data_dir, lines(file), source=path.name)
    took = time.perf_counter() - began - floor
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e6
    return {"floor": floor, "import": took, "peak": peak}


def run(quick: bool) -> list[Row]:
    cards = (RECORDS // 10 if quick else RECORDS) // 3
    WORK.mkdir(parents=True, exist_ok=True)
    path, data_dir = WORK / "import.ndjson", WORK / "import"
    records = feed.write_feed(path, cards)
    rounds = []
    for _ in range(1 if quick else ROUNDS):
        shutil.rmtree(data_dir, ignore_errors=True)
        command = [sys.executable, "-m", "bench.import_", "--measure", str(path), str(data_dir)]
        out = subprocess.run(command, cwd=WORK.parents[1], check=True, capture_output=True, text=True).stdout
        rounds.append(json.loads(out))
    size = sum(file.stat().st_size for file in data_dir.glob("*.mdb"))
    shutil.rmtree(data_dir)
    path.unlink()

    one = sorted(rounds, key=lambda each: each["import"] / each["floor"])[len(rounds) // 2]
    ratio, rate = one["import"] / one["floor"], records / one["import"]
    peak = max(each["peak"] for each in rounds)
    what = f"import of {records:,} records"
    each = ", ".join(f"{r['import'] / r['floor']:.2f}" for r in rounds)
    return [
        Row(
            f"{what}, validated (rounds: {each})",
            f"{one['floor']:.2f} s",
            f"{one['import']:.2f} s",
            ratio,
            "at most 8 x",
            ratio <= 8,
        ),
        Row(
            f"{what}, records a second ({size / cards:.0f} bytes a card)",
            "-",
            f"{rate:,.0f}",
            None,
            "at least 100,000",
            rate >= 100_000,
        ),
        Row(f"{what}, peak RSS", "-", f"{peak:.0f} MB", None, "at most 150 MB", peak <= 150),
    ]


if __name__ == "__main__":
    if "--measure" in sys.argv:
        print(json.dumps(imported(Path(sys.argv[2]), Path(sys.argv[3]))))
    else:
        run_alone("import_", __doc__, run)
