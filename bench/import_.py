"""Import of a million records, validated, against orjson.loads of the same lines.

``python bench/import_.py [--records 1000000]``. The floor is taken in the same process, some thousand lines
ahead of the import, so that both see the same machine; its time is not counted as the import's. To reach:
at most 8 times the floor, at least 100,000 records a second, peak RSS 150 MB.
"""

from __future__ import annotations

import argparse
import itertools
import resource
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent))
sys.path.insert(0, str(HERE))

import feed  # noqa: E402

WORK = HERE / ".work"


CHUNK = 5000


def measured(path: Path, data_dir: Path) -> tuple[float, float]:
    """(seconds of orjson.loads alone, seconds of the import)."""
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
    return floor, time.perf_counter() - began - floor


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--records", type=int, default=1_000_000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--measure", type=Path, nargs=2, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.measure:
        print(*measured(*args.measure))
        return

    WORK.mkdir(exist_ok=True)
    path = WORK / f"import-{args.records}.ndjson"
    data_dir = WORK / "import"
    records = feed.write_feed(path, args.records // 3)
    rounds = []
    for _ in range(args.rounds):
        shutil.rmtree(data_dir, ignore_errors=True)
        command = [sys.executable, __file__, "--measure", str(path), str(data_dir)]
        out = subprocess.run(command, check=True, capture_output=True, text=True).stdout
        floor, seconds = map(float, out.split())
        rounds.append((seconds / floor, floor, seconds))
    peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1024
    size = sum(file.stat().st_size for file in data_dir.glob("*.mdb"))
    shutil.rmtree(data_dir)
    path.unlink()

    ratio, floor, seconds = sorted(rounds)[len(rounds) // 2]
    ratios = ", ".join(f"{each[0]:.2f}" for each in rounds)
    print(f"import of {records} records, the median of {args.rounds} rounds")
    print(f"  orjson.loads of the lines  {floor:8.2f} s   {floor / records * 1e6:6.2f} µs a record")
    print(f"  validated import           {seconds:8.2f} s   {seconds / records * 1e6:6.2f} µs a record")
    print(f"  ratio       {ratio:8.2f}        to reach: at most 8 (rounds: {ratios})")
    print(f"  records/s   {records / seconds:8.0f}        to reach: at least 100,000")
    print(f"  peak RSS    {peak:8.1f} MB     to reach: at most 150 MB")
    print(f"  snapshot    {size / 1e6:8.1f} MB     {size / (records / 3):.0f} bytes a card")


if __name__ == "__main__":
    main()
