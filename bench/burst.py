"""Scans per second with 32 serial readers at once, each scan recorded; none may be lost or doubled.

A load process on the other core holds the 32 ptys. Each reader has so many scans outstanding, and gets the
next code when an earlier one of its lane is in the ledger: the load process asks the ledger's file itself
(read only, as any program may), so nothing on the gate's way is changed to be measured. The relays are in
memory, for a real board takes ten pulses a second at best. Afterwards the whole ledger is compared with
what was sent, by reader and credential, and the pulses that the lanes gave are counted.

The floor is a loop that commits each scan before it reads the next, on one pty: see ``bench/floor.py``.

``python -m bench.burst --profile FILE``: what the gate's loop does meanwhile, for ``python -m pstats``.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import sqlite3
import sys
import time
from collections import Counter
from multiprocessing.connection import Connection
from pathlib import Path

from bench import rig
from bench.row import WORK, Row, print_rows

READERS = 32
CARDS = 600_000
SECONDS = 6.0
TO_REACH = 15_000


def load(
    ptys: list[int], ledger: Path, first: int, outstanding: int, seconds: float, out: Connection
) -> None:
    """The load process: types for so many seconds, then waits for the last answers.

    Sends (scans sent by each reader, scans answered, seconds). Cards are dealt from ``first`` on.
    """
    conn = sqlite3.connect(f"file:{ledger}?mode=ro", uri=True, isolation_level=None)
    names = {f"scanner-{n}": n for n in range(len(ptys))}
    last = conn.execute("SELECT max(seq) FROM event").fetchone()[0] or 0
    sent = [0] * len(ptys)
    card, answered, waiting = first, 0, 0
    free = [n for n in range(len(ptys)) for _ in range(outstanding)]
    began = now = time.perf_counter()
    stop = began + seconds
    heard = began
    while True:
        if now < stop:
            typed: dict[int, bytes] = {}
            for n in free:
                typed[n] = typed.get(n, b"") + rig.code(card) + b"\r"
                sent[n] += 1
                card += 1
            waiting += len(free)
            for n, data in typed.items():
                os.write(ptys[n], data)
        free = []
        for seq, reader in conn.execute("SELECT seq, reader FROM event WHERE seq > ?", (last,)):
            last = seq
            n = names.get(reader)
            if n is not None:
                free.append(n)
        now = time.perf_counter()
        if free:
            answered += len(free)
            waiting -= len(free)
            heard = now
        elif waiting == 0 or now - heard > 3:
            break
        else:
            time.sleep(0.0001)
    out.send((sent, answered, heard - began))


def burst(
    cards: int, outstanding: int, seconds: float, profile: Path | None = None
) -> tuple[float, float, list[str]]:
    """(scans a second, microseconds of the gate's processors for each, what was wrong)."""
    data_dir = rig.fresh_data_dir("burst", cards)
    here, there = multiprocessing.Pipe()
    with rig.Gate(data_dir, READERS, boards=False, profile=profile) as gate:
        before = gate.cpu()
        process = multiprocessing.get_context("fork").Process(
            target=load,
            args=(
                [pty.master for pty in gate.scanners],
                data_dir / "ledger.db",
                0,
                outstanding,
                seconds,
                there,
            ),
        )
        process.start()
        sent, answered, took = here.recv()
        process.join()
        used = gate.cpu() - before
        until = time.monotonic() + 2  # the pulse comes a little after the event can be read
        while (pulses := gate.metric("gateway_scan_to_pulse_seconds_count")) < sum(sent):
            if time.monotonic() > until:
                break
            time.sleep(0.05)
        late = gate.metric("gateway_ledger_late_commits_total")
    wrong = compare(gate, sent, int(pulses))
    if sum(sent) > cards:
        wrong.append("ran out of cards: some were scanned twice")
    if late:
        wrong.append(f"{late:.0f} commits after the deadline")
    return answered / took, used / answered * 1e6, wrong


def compare(gate: rig.Gate, sent: list[int], pulses: int) -> list[str]:
    """The ledger against what was sent: every card once, every reader as often as it typed."""
    scans = [event for event in gate.events() if event[1] == "scan"]
    wrong = []
    by_card = Counter(credential for _, _, _, _, credential in scans)
    due = {rig.credential(card) for card in range(sum(sent))}
    if lost := len(due - by_card.keys()):
        wrong.append(f"{lost} scans lost")
    if doubled := sum(count - 1 for count in by_card.values()):
        wrong.append(f"{doubled} scans doubled")
    if strange := len(by_card.keys() - due):
        wrong.append(f"{strange} events of cards that were not shown")
    by_reader = Counter(reader for _, _, reader, _, _ in scans)
    if any(by_reader[f"scanner-{n}"] != count for n, count in enumerate(sent)):
        wrong.append("events at the wrong reader")
    if refused := sum(verdict != "granted" for _, _, _, verdict, _ in scans):
        wrong.append(f"{refused} refused")
    if pulses != sum(sent):
        wrong.append(f"{pulses} pulses for {sum(sent)} scans")
    return wrong


def floor(seconds: float) -> float:
    """Scans a second of the bare loop that commits each, on one pty."""
    with rig.Floor(WORK / "burst-floor") as bare:
        stop = time.perf_counter() + seconds
        began, done = time.perf_counter(), 0
        while (now := time.perf_counter()) < stop:
            os.write(bare.scanner.master, rig.code(done) + b"\r")
            os.read(bare.board.master, 64)
            done += 1
        return done / (now - began)


def run(quick: bool) -> list[Row]:
    seconds = 2.0 if quick else SECONDS
    rows = []
    for outstanding in (1, 4):
        least = floor(seconds / 2)
        best, used, wrong = burst(200_000 if quick else CARDS, outstanding, seconds)
        rows.append(
            Row(
                f"scans/s, {READERS} serial readers, {outstanding} outstanding each, recorded",
                f"{least:,.0f} /s",
                f"{best:,.0f} /s, {used:.0f} µs CPU each; " + ("; ".join(wrong) or "none lost or doubled"),
                best / least,
                f"{TO_REACH:,} /s, none lost or doubled",
                best >= TO_REACH and not wrong,
            )
        )
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.burst", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="small sizes, a minute at most")
    parser.add_argument("--profile", type=Path, help="cProfile of the gate's loop, into this file")
    parser.add_argument("--outstanding", type=int, default=4, help="with --profile")
    args = parser.parse_args()
    if args.profile:
        print(burst(CARDS, args.outstanding, SECONDS, args.profile.resolve()), file=sys.stderr)
        return
    print_rows(run(args.quick))


if __name__ == "__main__":
    main()
