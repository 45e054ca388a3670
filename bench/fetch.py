"""p99 from bytes to pulse while a first snapshot is downloaded and built, on a disk that takes 10 MB/s and
400 writes a second.

The slow disk is that of ``bench/throttle.py``; on it are the gate's ledger, its snapshots and the sync's
spool. The central's own files are on the fast one, as they are another machine's. Scans are measured alone,
then from the start of the sync until the gate judges by the snapshot, and alone again when the sync has
ended. The sync also uploads the scans meanwhile, as it always does.
"""

from __future__ import annotations

import itertools
import os
import time

from bench import joined, rig
from bench.row import Row, run_alone
from bench.throttle import CARDS, GAP, LANES, RUN_IN, CannotThrottle, heed_sigterm, slow_disk, try_limits

LONGEST = 500
"""Seconds; then the cards come to an end, each of which goes in once."""
WHAT = (
    "p99 of bytes to pulse while a snapshot of {:,} cards is fetched and built, disk of 10 MB/s, 400 writes/s"
)


def measure(cards: int, alone_scans: int) -> tuple[list[float], list[float], str]:
    """Seconds to the pulse (alone, meanwhile), and a few words on the run."""
    shown = itertools.count()
    rig.snapshot(CARDS)
    central = joined.Central(joined.fresh("fetch-central", cards))
    try:
        with slow_disk() as (mount, limit):
            data_dir = rig.fresh_data_dir("data", CARDS, mount)
            with rig.Gate(data_dir, LANES, deadline=5000, central=central.url) as gate:
                pairs = list(zip(gate.scanners, gate.boards, strict=True))

                def scan(count: int, gap: float = GAP) -> list[float]:
                    return rig.pulses(pairs, itertools.islice(shown, count), gap)

                joined.enrol(gate, central)
                joined.until(lambda: joined.file_with(central, cards), "the central's file", 600)
                scan(RUN_IN, 0)
                time.sleep(1)
                os.sync()
                limit()
                words = try_limits(mount)
                alone = scan(alone_scans)
                before = joined.in_use(gate)
                began = time.monotonic()
                sync = joined.sync(gate)
                try:
                    busy = []
                    while joined.in_use(gate) == before:
                        busy += scan(LANES)
                        if sync.process.poll() is not None or time.monotonic() - began > LONGEST:
                            raise RuntimeError(f"no snapshot came; see {sync.log}")
                    took = time.monotonic() - began
                    status = gate.client.call("status")["snapshot"]
                    if status["counts"]["credentials"] != cards:
                        raise RuntimeError(f"{status['counts']['credentials']} cards instead of {cards}")
                    peak = rig.memory(sync.pid)
                finally:
                    sync.stop()
                alone += scan(alone_scans)
    finally:
        central.stop()
    said = (
        f"disk {words}; in use after {took:.0f} s, {len(busy)} scans meanwhile; RSS of the sync {peak:.0f} MB"
    )
    return alone, busy, said


def run(quick: bool) -> list[Row]:
    heed_sigterm()
    cards = 50_000 if quick else 1_000_000
    what = WHAT.format(cards)
    try:
        alone, busy, words = measure(cards, 200 if quick else 600)
    except CannotThrottle as why:
        return [Row(what, "-", f"not measured: {why}", None, "3 x alone", False)]
    rows = []
    for name, q in ((what, 0.99), ("the same, p50", 0.5), ("the same, longest", 1.0)):
        least, took = rig.quantile(alone, q), rig.quantile(busy, q)
        judged = q == 0.99
        rows.append(
            Row(
                name,
                f"{least * 1e3:.1f} ms alone",
                f"{took * 1e3:.1f} ms" + (f" ({words})" if judged else ""),
                took / least,
                "3 x alone" if judged else "-",
                took <= 3 * least if judged else None,
            )
        )
    return rows


if __name__ == "__main__":
    run_alone("fetch", __doc__, run)
