"""``python -m bench [--quick] [NAME ...]``: runs the benchmarks named, or all, and prints one table.

Exit status 1 where a benchmark could not be run to its end; a number that is not reached is no error.
"""

from __future__ import annotations

import argparse
import sys
import time
import traceback
from importlib import import_module

from bench.row import Row, print_rows

NAMES = (
    "decide",
    "cold",
    "path",
    "flush",
    "burst",
    "memory",
    "start",
    "import_",
    "throttle",
    "snapshot",
    "fetch",
    "news",
    "upload",
    "idle",
    "display",
    "lock",
)


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m bench", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="small sizes; the numbers mean little")
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(NAMES)}; default: all")
    options = parser.parse_args()
    if unknown := set(options.names) - set(NAMES):
        parser.error(f"no such benchmark: {', '.join(sorted(unknown))}; there are {', '.join(NAMES)}")
    rows: list[Row] = []
    failed = 0
    for name in options.names or NAMES:
        began = time.monotonic()
        print(f"{name} ...", end=" ", file=sys.stderr, flush=True)
        try:
            rows += import_module(f"bench.{name}").run(options.quick)
        except Exception as error:  # the other benchmarks are still worth their hour
            traceback.print_exc()
            rows.append(Row(name, "-", f"failed: {error!r}"[:100], None, "-", False))
            failed = 1
        print(f"{time.monotonic() - began:.0f} s", file=sys.stderr, flush=True)
    print_rows(rows)
    return failed


if __name__ == "__main__":
    sys.exit(main())
