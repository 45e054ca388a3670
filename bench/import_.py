"""Import of a million records, validated, against orjson.loads of the same lines, in turns in one run.

``python bench/import_.py [--records 1000000]``. Each runs in a process of its own, whose peak memory is asked
from the kernel. To reach: at most 8 times the floor, at least 100,000 records a second, peak RSS 150 MB.
"""

from __future__ import annotations

import argparse
import resource
import shutil
import subprocess
import sys
import time
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent))
sys.path.insert(0, str(HERE))

import feed  # noqa: E402

WORK = HERE / ".work"


def floor(path: Path) -> None:
    import orjson

    loads = orjson.loads
    began = time.perf_counter()
    with path.open("rb") as lines:
        for line in lines:
            loads(line)
    print(time.perf_counter() - began)


def validated(path: Path, data_dir: Path) -> None:
    from gateway.cache.build import build

    began = time.perf_counter()
    with path.open("rb") as lines:
        build(data_dir, lines, source=path.name)
    print(time.perf_counter() - began)


def child(*arguments: str) -> tuple[float, float]:
    """Runs this file again; (seconds that it says, peak RSS in MB of the largest child so far)."""
    out = subprocess.run(
        [sys.executable, __file__, *arguments], check=True, capture_output=True, text=True
    ).stdout
    peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1024
    return float(out), peak


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--records", type=int, default=1_000_000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--floor", type=Path)
    parser.add_argument("--import", type=Path, nargs=2, dest="import_")
    args = parser.parse_args()
    if args.floor:
        floor(args.floor)
        return
    if args.import_:
        validated(*args.import_)
        return

    WORK.mkdir(exist_ok=True)
    path = WORK / f"import-{args.records}.ndjson"
    records = feed.write_feed(path, args.records // 3)
    data_dir = WORK / "import"
    floors, imports = [], []
    floor_peak = peak = size = 0.0
    for _ in range(args.rounds):
        seconds, so_far = child("--floor", str(path))
        floor_peak = floor_peak or so_far  # later ones would show the import's
        floors.append(seconds)
        shutil.rmtree(data_dir, ignore_errors=True)
        seconds, peak = child("--import", str(path), str(data_dir))
        imports.append(seconds)
        size = sum(file.stat().st_size for file in data_dir.glob("*.mdb"))
    shutil.rmtree(data_dir)
    path.unlink()

    base, best = sorted(floors)[len(floors) // 2], sorted(imports)[len(imports) // 2]
    print(f"import of {records} records, median of {args.rounds} rounds in turns")
    print(f"  orjson.loads of the lines  {base:8.2f} s   {base / records * 1e6:6.2f} µs a record")
    print(f"  validated import           {best:8.2f} s   {best / records * 1e6:6.2f} µs a record")
    print(f"  ratio       {best / base:8.2f}        to reach: at most 8")
    print(f"  records/s   {records / best:8.0f}        to reach: at least 100,000")
    print(f"  peak RSS    {peak:8.1f} MB     to reach: at most 150 MB (the floor's: {floor_peak:.1f})")
    print(f"  snapshot    {size / 1e6:8.1f} MB     {size / (records / 3):.0f} bytes a card")


if __name__ == "__main__":
    main()
