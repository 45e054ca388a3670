"""One line of the benchmarks' table, and how it is printed."""

from __future__ import annotations

import argparse
import os
import platform
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

WORK = Path(__file__).resolve().parent / ".work"
"""Scratch data: feeds, snapshots, ledgers. Ignored by git; may be deleted at any time."""


@dataclass
class Row:
    """A measured number beside its floor. Numbers come as text with their unit."""

    what: str
    floor: str
    measured: str
    ratio: float | None
    target: str
    reached: bool | None
    """None: nothing to reach, the row is there to explain another."""


_HEADS = ("what", "floor", "measured", "ratio", "to reach", "reached")


def print_rows(rows: Sequence[Row]) -> None:
    """The table on stdout, under a line that says what machine it was."""
    lines = [
        (
            row.what,
            row.floor,
            row.measured,
            "-" if row.ratio is None else f"{row.ratio:.2f}",
            row.target,
            {None: "-", True: "yes", False: "NO"}[row.reached],
        )
        for row in rows
    ]
    widths = [max(len(line[column]) for line in (_HEADS, *lines)) for column in range(len(_HEADS))]
    print(machine())
    for line in (_HEADS, tuple("-" * width for width in widths), *lines):
        print("  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip())


def machine() -> str:
    """Cores, CPU, Python, kernel, and the file system that the work folder is on."""
    WORK.mkdir(parents=True, exist_ok=True)
    return (
        f"{os.cpu_count()} cores, {_cpu()}, Python {platform.python_version()}, "
        f"Linux {platform.release()}, {_file_system(WORK)}"
    )


def run_alone(name: str, doc: str | None, run: Callable[[bool], list[Row]]) -> None:
    """The command line of one benchmark: ``python -m bench.NAME [--quick]``."""
    parser = argparse.ArgumentParser(prog=f"python -m bench.{name}", description=doc)
    parser.add_argument("--quick", action="store_true", help="small sizes, a minute at most")
    print_rows(run(parser.parse_args().quick))


def _cpu() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        key, _, value = line.partition(":")
        if key.strip().lower() in ("model name", "model"):
            return value.strip()
    return platform.machine()


def _file_system(path: Path) -> str:
    """The type of the mount that a path lies on, with the device."""
    best = ("", "unknown file system")
    for line in Path("/proc/self/mounts").read_text().splitlines():
        device, mount, kind, *_ = line.split()
        if path.is_relative_to(mount) and len(mount) >= len(best[0]):
            best = (mount, f"{kind} on {device}")
    return best[1]
