"""A first snapshot over loopback HTTP: from the start of the sync to the gate judging by a million cards.

Everything that a first snapshot takes is in the time: the sync's start, the first answer, the download, the
passing of the file, verifying signature and digest, building, switching. The central has the file ready, as
it has for every gateway but the first. The peer is ``gateway import`` of the same records on the same disk, a
process of its own as well, with its start; the two take turns.
"""

from __future__ import annotations

import gzip
import json
import shutil
import subprocess
import time
from pathlib import Path

from bench import joined, rig
from bench.row import WORK, Row, run_alone

CARDS = 1_000_000
ROUNDS = 3
_CONFIG = """[gateway]
id = "bench"
data_dir = {data_dir}
[[lane]]
name = "north"
relay = {{ driver = "memory" }}
[[point]]
name = "north-in"
lane = "north"
from = "outside"
to = "hall"
[[reader]]
name = "scanner"
point = "north-in"
driver = "serial"
device = "/dev/none"
"""


def feed_of(central: joined.Central, cards: int) -> Path:
    """The records of the central's own snapshot file, as NDJSON."""
    manifest = joined.until(lambda: joined.file_with(central, cards), "the central's file", 600)
    path = WORK / "snapshot-feed.ndjson"
    with gzip.open(manifest.with_suffix(".gz")) as source, path.open("wb", buffering=1 << 20) as out:
        shutil.copyfileobj(source, out, 1 << 20)
    return path


def imported(feed: Path) -> float:
    """Seconds of ``gateway import``."""
    data_dir = joined.empty_data_dir("snapshot-import")
    config = data_dir / "gateway.toml"
    config.write_text(_CONFIG.format(data_dir=json.dumps(str(data_dir))))
    began = time.monotonic()
    command = [*joined.COMMAND, "import", str(feed), "--config", str(config)]
    subprocess.run(command, cwd=rig.ROOT, check=True, capture_output=True)
    took = time.monotonic() - began
    shutil.rmtree(data_dir)
    return took


def fetched(central: joined.Central, cards: int) -> tuple[float, float]:
    """Seconds until the gate judges by the snapshot, and the sync's peak memory in MB."""
    with rig.Gate(joined.empty_data_dir("snapshot-gate"), 1, central=central.url) as gate:
        joined.enrol(gate, central)
        began = time.monotonic()
        sync = joined.sync(gate)
        try:
            joined.until(lambda: joined.in_use(gate), f"snapshot; see {sync.log}", 900)
            took = time.monotonic() - began
            peak = rig.memory(sync.pid)
            status = gate.client.call("status")["snapshot"]
            if status["counts"]["credentials"] != cards:
                raise RuntimeError(f"{status['counts']['credentials']} cards instead of {cards}")
        finally:
            sync.stop()
    shutil.rmtree(gate.data_dir)
    return took, peak


def run(quick: bool) -> list[Row]:
    cards = 50_000 if quick else CARDS
    central = joined.Central(joined.fresh("snapshot-central", cards))
    rounds = []
    try:
        feed = feed_of(central, cards)
        for _ in range(1 if quick else ROUNDS):
            peer = imported(feed)
            rounds.append((peer, *fetched(central, cards)))
    finally:
        central.stop()
    feed.unlink()
    shutil.rmtree(central.folder)
    peer, took, _ = sorted(rounds, key=lambda each: each[1] / each[0])[len(rounds) // 2]
    each = ", ".join(f"{took / peer:.2f}" for peer, took, _ in rounds)
    return [
        Row(
            f"first snapshot of {cards:,} cards, sync's start to in use (rounds: {each})",
            f"{peer:.1f} s (gateway import)",
            f"{took:.1f} s",
            took / peer,
            "3 x",
            took <= 3 * peer,
        ),
        Row("the same, peak RSS of the sync", "-", f"{max(r[2] for r in rounds):.0f} MB", None, "-", None),
    ]


if __name__ == "__main__":
    run_alone("snapshot", __doc__, run)
