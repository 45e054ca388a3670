"""Anonymous memory (RssAnon) of a gate after 200,000 scans, a million cards against a thousand.

Each size runs in a process of its own: the real daemon with its ledger, sockets and log, a serial reader on a
pty and a relay in memory. The scans go in where the reader hands them over, as fast as the ledger writes
them. What counts is measured when the ledger has written everything. Pages of the snapshot are mapped from
the file and are no anonymous memory.
"""

from __future__ import annotations

import asyncio
import json
import random
import re
import subprocess
import sys
from pathlib import Path

from bench import feed, rig
from bench.row import Row, run_alone

SMALL, LARGE = 1_000, 1_000_000
QUICK_LARGE = 200_000
SCANS = 200_000
_AT_ONCE = 500

CONFIG = """
[gateway]
id = "bench"
data_dir = {data_dir}
[[lane]]
name = "north"
relay = {{ driver = "memory" }}
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
repeat_delay_s = 0
"""


async def _scan(cards: int, scans: int) -> dict[str, float]:
    """Runs a gate, scans, and says how much memory it has; everything in this process."""
    from gateway import log
    from gateway.configload import loads
    from gateway.daemon import Daemon, monotonic, wall
    from gateway.model import Scan, Verdict

    data_dir = feed.fresh_data_dir(cards, f"memory-{cards}")
    scanner = rig.Pty()
    config = CONFIG.format(data_dir=json.dumps(str(data_dir)), scanner=json.dumps(scanner.device))
    rng = random.Random(cards)
    with (data_dir / "gate.log").open("w") as file:
        writer = log.start("info", file)
        daemon = Daemon(loads(config, "bench"), signals=False)
        await daemon.start()
        try:
            await asyncio.sleep(1)
            before = rss_anon()
            for _ in range(0, scans, _AT_ONCE):
                for _ in range(_AT_ONCE):
                    code = feed.code_of(rng.randrange(cards)).encode()
                    daemon._scanned(Scan("scanner", code, wall(), monotonic()))
                while daemon.ledger.pending:  # noqa: ASYNC110 - the ledger tells of grants only
                    await asyncio.sleep(0)
            await asyncio.sleep(2)
            granted = daemon.metrics.scans.counts["north-in", Verdict.GRANTED]
            return {"before": before, "after": rss_anon(), "granted": granted}
        finally:
            daemon.close()
            writer.close()
            scanner.close()


def rss_anon() -> float:
    """This process's RssAnon in MB (10^6 bytes)."""
    found = re.search(r"RssAnon:\s+(\d+) kB", Path("/proc/self/status").read_text())
    assert found is not None
    return int(found[1]) * 1024 / 1e6


def measure(cards: int, scans: int) -> dict[str, float]:
    feed.snapshot(cards)
    command = [sys.executable, "-m", "bench.memory", "--measure", str(cards), str(scans)]
    out = subprocess.run(command, cwd=rig.ROOT, check=True, stdout=subprocess.PIPE, text=True).stdout
    found: dict[str, float] = json.loads(out)
    return found


def run(quick: bool) -> list[Row]:
    large, scans = (QUICK_LARGE, SCANS // 10) if quick else (LARGE, SCANS)
    small, much = measure(SMALL, scans), measure(large, scans)
    more = much["after"] - small["after"]
    return [
        Row(
            f"RssAnon after {scans:,} scans, {large:,} cards against {SMALL:,} "
            f"({much['granted']:,.0f} and {small['granted']:,.0f} granted)",
            f"{small['after']:.1f} MB",
            f"{much['after']:.1f} MB ({more:+.1f})",
            much["after"] / small["after"],
            "at most 10 MB more",
            more <= 10,
        ),
        Row(
            "  the same before the first scan",
            f"{small['before']:.1f} MB",
            f"{much['before']:.1f} MB ({much['before'] - small['before']:+.1f})",
            much["before"] / small["before"],
            "-",
            None,
        ),
    ]


if __name__ == "__main__":
    if "--measure" in sys.argv:
        print(json.dumps(asyncio.run(_scan(*map(int, sys.argv[2:4])))))
    else:
        run_alone("memory", __doc__, run)
