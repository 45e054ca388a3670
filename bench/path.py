"""Serial bytes to relay pulse, recorded on disk before, against a bare blocking loop that does as much IO.

One scan at a time. The bench writes a code into a pty and waits for the ON command of an LCUS board at
another pty: on both sides what is seen is a write to a pty, so seeing it costs the same. The gate has
several lanes, each with a scanner and a board of its own, and they are scanned in turn: a board is busy for
150 ms after a pulse (50 ms of pulse and the pauses that such boards need), which no floor could do anything
about. The floor has one scanner and one board, without pauses, and the same time between two scans.
"""

from __future__ import annotations

import itertools

from bench import rig
from bench.row import WORK, Row, run_alone

LANES = 16
CARDS = 20_000
GAP = 0.010


def measure(quick: bool) -> tuple[list[float], list[float]]:
    """Seconds of (floor, gate), interleaved."""
    cards = itertools.count()
    data_dir = rig.fresh_data_dir("path", CARDS)
    with rig.Floor(WORK / "path-floor") as floor, rig.Gate(data_dir, LANES) as gate:
        pairs = list(zip(gate.scanners, gate.boards, strict=True))

        def bare(count: int) -> list[float]:
            return rig.pulses([(floor.scanner, floor.board)], itertools.islice(cards, count), GAP)

        def whole(count: int) -> list[float]:
            return rig.pulses(pairs, itertools.islice(cards, count), GAP)

        took = rig.interleaved({"floor": bare, "gate": whole}, blocks=6 if quick else 40, block=48, warm=16)
    return took["floor"], took["gate"]


def run(quick: bool) -> list[Row]:
    floor, gate = measure(quick)
    rows = []
    for q, name in ((0.5, "p50"), (0.99, "p99")):
        least, took = rig.quantile(floor, q), rig.quantile(gate, q)
        rows.append(
            Row(
                f"serial bytes to relay pulse, recorded before, {name}",
                f"{least * 1e3:.3f} ms",
                f"{took * 1e3:.3f} ms ({(took - least) * 1e3:+.3f})",
                took / least,
                "floor + 0.2 ms" if name == "p50" else "2 x floor",
                took <= least + 0.0002 if name == "p50" else took <= 2 * least,
            )
        )
    return rows


if __name__ == "__main__":
    run_alone("path", __doc__, run)
