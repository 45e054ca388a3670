"""The benchmarks behind ``make bench``: ``python -m bench`` runs all, ``python -m bench.NAME`` one.

Each module has ``run(quick) -> list[Row]``. A number stands beside a floor that was taken in the same run,
interleaved with it, because two runs on one machine differ by more than the code does. Feeds and snapshots
are made once under ``bench/.work`` and reused. ``--quick`` is for
trying a benchmark: its numbers mean little.
"""
