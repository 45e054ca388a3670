"""From a commit at the central to the refusal at a real gate, with two hundred more gateways connected.

The gate, its sync and the central are the ordinary processes. The others are in two processes
(``bench/peers.py``): each enrols, builds a generation on tmpfs, and takes every change as a gate does. Cards
are revoked one after the other through the admin API, at random pauses. Beside that the gate's admin socket
is asked again and again for the verdict on that card (``check``, every 2 ms); one card in ten is then shown
to the scanner as well, and must be refused there.

The time is counted from the admin API's answer, which is given after the commit; counted from the sending of
the call it is longer by what the commit takes. The floor is the same with no other gateway connected, half of
it before and half of it after.
"""

from __future__ import annotations

import json
import os
import random
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from bench import joined, rig
from bench.row import Row, run_alone
from gateway.control import Client

PEERS, PROCESSES = 200, 2
CARDS = 1000
PAUSE = 0.4, 1.0
EVERY = 0.002
SCANNED = 10
"""One card in so many is shown to the scanner, too."""


class Peers:
    """The other gateways."""

    def __init__(self, central: joined.Central, count: int) -> None:
        self._folder = Path(tempfile.mkdtemp(prefix="bench-peers-", dir="/dev/shm"))
        self._running = []
        for n in range(PROCESSES):
            folder = self._folder / str(n)
            folder.mkdir()
            command = [sys.executable, "-m", "bench.peers", central.url, str(folder)]
            process = subprocess.Popen(
                command, cwd=rig.ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
            )
            names = [f"peer-{each}" for each in range(n, count, PROCESSES)]
            assert process.stdin is not None
            gateways = [{"gateway": name, "code": central.code(name)} for name in names]
            process.stdin.write(json.dumps(gateways) + "\n")
            process.stdin.flush()
            self._running.append(process)
        for process in self._running:
            assert process.stdout is not None
            if (said := process.stdout.readline()) != '"ready"\n':
                raise RuntimeError(f"the other gateways did not come up: {said[:200]!r}")

    def end(self) -> list[dict[str, Any]]:
        """What each has."""
        found: list[dict[str, Any]] = []
        for process in self._running:
            out, _ = process.communicate(timeout=60)
            if process.returncode:
                raise RuntimeError("a process of other gateways failed")
            found += json.loads(out)
        return found

    def cpu(self) -> float:
        return sum(rig.cpu(process.pid) for process in self._running)

    def close(self) -> None:
        for process in self._running:
            process.kill()
            process.wait()
        shutil.rmtree(self._folder)


@dataclass
class Revoked:
    """Times of one card, in seconds of CLOCK_MONOTONIC."""

    card: int
    sent: float
    answered: float = 0.0
    refused: float = 0.0


@dataclass
class Bench:
    central: joined.Central
    gate: rig.Gate
    watcher: Client
    cards: Any
    scans: int = 0
    strange: list[str] = field(default_factory=list)

    def revoke(self, count: int) -> list[Revoked]:
        """So many cards, one after the other."""
        found = []
        for n in range(count):
            time.sleep(random.uniform(*PAUSE))
            card = next(self.cards)
            if self._verdict(card) != "granted":
                raise RuntimeError(f"card {card} was not good before it was revoked")
            revoked = Revoked(card, time.monotonic())
            watching = threading.Thread(target=self._watch, args=(revoked,))
            watching.start()
            self.central.ask("POST", f"/credentials/{rig.credential(card)}/revoke", {"state": "lost"})
            revoked.answered = time.monotonic()
            watching.join()
            if not revoked.refused:
                raise RuntimeError(f"card {card} was not refused within ten seconds")
            if n % SCANNED == 0:
                self._scan(card)
            found.append(revoked)
        return found

    def _verdict(self, card: int) -> str:
        return str(self.watcher.call("check", code=rig.code(card).decode(), point="in-0")["verdict"])

    def _watch(self, revoked: Revoked) -> None:
        while time.monotonic() < revoked.sent + 10:
            if self._verdict(revoked.card) == "revoked":
                revoked.refused = time.monotonic()
                return
            time.sleep(EVERY)

    def _scan(self, card: int) -> None:
        """At the reader it is refused as well, and the lane stays shut."""
        since = self.gate.client.call("status")["ledger"]["last_seq"]
        os.write(self.gate.scanners[0].master, rig.code(card) + b"\r")

        def scan() -> Any:
            events = self.gate.client.call("events", since=since)["events"]
            return next((e for e in events if e.get("credential") == rig.credential(card)), None)

        event = joined.until(scan, f"scan of card {card}", 10)
        self.scans += 1
        if event["verdict"] != "revoked" or rig.ON in self.gate.boards[0].drain():
            self.strange.append(f"card {card}: {event['verdict']}")


def run(quick: bool) -> list[Row]:
    peers, count, alone = (20, 20, 10) if quick else (PEERS, 200, 100)
    central = joined.Central(joined.fresh("news-central", CARDS))
    try:
        with (
            rig.Gate(joined.empty_data_dir("news"), 1, central=central.url) as gate,
            Client(gate.data_dir / "admin.sock") as watcher,
        ):
            joined.enrol(gate, central)
            sync = joined.sync(gate)
            try:
                joined.until(lambda: joined.in_use(gate), f"snapshot; see {sync.log}", 60)
                bench = Bench(central, gate, watcher, iter(range(CARDS)))
                floor = bench.revoke(alone // 2)
                others = Peers(central, peers)
                try:
                    joined.until(lambda: _connected(central) > peers, "all gateways connected", 30)
                    used, began = others.cpu() + rig.cpu(central.pid), time.monotonic()
                    bench.scans = 0
                    revoked = bench.revoke(count)
                    scans = bench.scans
                    time.sleep(1)
                    used = (others.cpu() + rig.cpu(central.pid) - used) / (time.monotonic() - began)
                    got = others.end()
                finally:
                    others.close()
                floor += bench.revoke(alone - alone // 2)
            finally:
                sync.stop()
    finally:
        central.stop()
    shutil.rmtree(central.folder)
    wrong = list(bench.strange)
    if behind := sum(each["applied"] < count for each in got):
        wrong.append(f"{behind} of the others did not get all")
    if wrong:
        raise RuntimeError("; ".join(wrong))
    shutil.rmtree(gate.data_dir)
    elsewhere = [each["at"][rig.credential(one.card)] - one.answered for one in revoked for each in got]
    return _rows(peers, floor, revoked, elsewhere, scans, used)


def _rows(
    peers: int, floor: list[Revoked], revoked: list[Revoked], elsewhere: list[float], scans: int, used: float
) -> list[Row]:
    def told(times: list[float]) -> str:
        p50, p99 = (rig.quantile(times, q) * 1e3 for q in (0.5, 0.99))
        return f"p50 {p50:.0f}, p99 {p99:.0f}, max {max(times) * 1e3:.0f} ms"

    least, took = ([one.refused - one.answered for one in side] for side in (floor, revoked))
    p99 = [rig.quantile(side, 0.99) for side in (least, took)]
    return [
        Row(
            f"commit to refusal at a gate, {peers} more connected, {len(took)} revocations",
            f"{told(least)} (none connected)",
            f"{told(took)}; {scans} shown to the scanner as well, refused",
            p99[1] / p99[0],
            "p99 150 ms",
            p99[1] <= 0.15,
        ),
        Row(
            "the same from the sending of the admin's call",
            told([one.refused - one.sent for one in floor]),
            told([one.refused - one.sent for one in revoked]),
            None,
            "-",
            None,
        ),
        Row(
            f"the same to the {peers} others, in their stores",
            "-",
            f"{told(elsewhere)}; central and others take {used:.0%} of a core",
            None,
            "-",
            None,
        ),
    ]


def _connected(central: joined.Central) -> float:
    return central.metric("gateway_central_gateways_connected")


if __name__ == "__main__":
    run_alone("news", __doc__, run)
