"""What a connected gateway costs while nothing happens: requests at the central, and processor.

Gate and sync are real processes. The floor is the same gate before it has a sync: what it takes to look after
itself.
"""

from __future__ import annotations

import time

from bench import joined, rig
from bench.row import Row, run_alone

CARDS = 1000
LANES = 2


def run(quick: bool) -> list[Row]:
    seconds = 60 if quick else 240
    central = joined.Central(joined.fresh("idle-central", CARDS))
    try:
        with rig.Gate(joined.empty_data_dir("idle"), LANES, central=central.url) as gate:
            joined.enrol(gate, central)
            before = gate.cpu()
            time.sleep(seconds / 2)
            alone = (gate.cpu() - before) / (seconds / 2)
            sync = joined.sync(gate)
            try:
                joined.until(lambda: joined.in_use(gate), f"snapshot; see {sync.log}", 60)
                time.sleep(20)  # the first questions and answers, which are quick ones
                requests, gate_cpu = central.requests(), gate.cpu()
                sync_cpu, central_cpu = rig.cpu(sync.pid), rig.cpu(central.pid)
                time.sleep(seconds)
                requests = central.requests() - requests
                gate_share = (gate.cpu() - gate_cpu) / seconds
                sync_share = (rig.cpu(sync.pid) - sync_cpu) / seconds
                central_share = (rig.cpu(central.pid) - central_cpu) / seconds
            finally:
                sync.stop()
    finally:
        central.stop()
    share = sync_share + gate_share - alone
    apart = f"sync {sync_share:.2%}, gate {gate_share - alone:+.2%}; the central {central_share:.2%}"
    return [
        Row(
            f"idle gateway, requests in {seconds} s",
            "-",
            f"{requests:.0f} (one in {seconds / max(requests, 1):.1f} s)",
            None,
            "1 in 20 s",
            requests <= seconds / 20,
        ),
        Row(
            "idle gateway, processor",
            f"{alone:.2%} of a core (gate alone)",
            f"+{share:.2%} ({apart})",
            None,
            "0.5 %",
            share <= 0.005,
        ),
    ]


if __name__ == "__main__":
    run_alone("idle", __doc__, run)
