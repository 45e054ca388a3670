"""From the start of the gate's process to the first scan that opens, a million cards against a thousand.

A card is typed into the scanner's pty every few milliseconds from the beginning (what waits in a serial port
when it is opened is thrown away, as it may be hours old); the time ends with the ON command at the relay
board's pty. Each start finds an empty ledger and the snapshot in the page cache; the sizes take turns.
"""

from __future__ import annotations

import json
import os
import select
import subprocess
import sys
import time
from pathlib import Path
from statistics import median

from bench import feed, rig
from bench.row import Row, run_alone

SMALL, LARGE = 1_000, 1_000_000
QUICK_LARGE = 200_000
EVERY = 0.002

CONFIG = """
[gateway]
id = "bench"
data_dir = {data_dir}
[[lane]]
name = "north"
relay = {{ driver = "serial", board = "lcus", device = {board}, channel = 1 }}
second_grant = "extend"
[[point]]
name = "north-in"
lane = "north"
from = "outside"
to = "hall"
anti_passback = "hard"
[[reader]]
name = "scanner"
point = "north-in"
driver = "serial"
device = {scanner}
"""


def started(cards: int) -> float:
    """Seconds until the first pulse."""
    data_dir = feed.fresh_data_dir(cards, "start")
    scanner, board = rig.Pty(), rig.Pty()
    config = data_dir / "gateway.toml"
    config.write_text(
        CONFIG.format(
            data_dir=json.dumps(str(data_dir)),
            board=json.dumps(board.device),
            scanner=json.dumps(scanner.device),
        )
    )
    command = [sys.executable, "-m", "gateway", "gate", "--config", str(config)]
    began = time.perf_counter()
    with (data_dir / "gate.log").open("wb") as log:
        process = subprocess.Popen(command, cwd=rig.ROOT, stdin=subprocess.DEVNULL, stderr=log)
    try:
        return _first_pulse(scanner, board, data_dir / "gate.log", process) - began
    finally:
        process.terminate()
        process.wait(20)
        scanner.close()
        board.close()


def _first_pulse(scanner: rig.Pty, board: rig.Pty, log: Path, process: subprocess.Popen[bytes]) -> float:
    seen = b""
    for turn in range(10_000):
        scanner.drain()
        os.write(scanner.master, feed.code_of(1 + turn % 96).encode() + b"\r")
        if select.select([board.master], [], [], EVERY)[0]:
            seen += os.read(board.master, 64)
            if rig.ON in seen:
                return time.perf_counter()
        if process.poll() is not None:
            break
    raise RuntimeError(f"the gate did not open the lane:\n{log.read_text()}")


def run(quick: bool) -> list[Row]:
    large = QUICK_LARGE if quick else LARGE
    took: dict[int, list[float]] = {SMALL: [], large: []}
    for cards in took:
        started(cards)  # the page cache: programs and snapshot
    for _ in range(3 if quick else 11):
        for cards, times in took.items():
            times.append(started(cards))
    small, much = median(took[SMALL]), median(took[large])
    return [
        Row(
            f"start to first scan that opens, {large:,} cards against {SMALL:,} ({len(took[large])} rounds)",
            f"{small * 1e3:.0f} ms",
            f"{much * 1e3:.0f} ms",
            much / small,
            "at most 1.5 x",
            much / small <= 1.5,
        )
    ]


if __name__ == "__main__":
    run_alone("start", __doc__, run)
