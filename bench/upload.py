"""A week's events that the central has not had: how fast they go up, and what the sync takes for it.

The ledger is filled through the gate's own ``Ledger``: for each visitor the scan and the passage that a lane
with a sensor records. The peer does the least that a central must with the same events, without a network,
a gate or a signature: parse batches of a thousand and insert them into SQLite (WAL, FULL), a commit a batch.
"""

from __future__ import annotations

import asyncio
import hashlib
import shutil
import sqlite3
import time
from collections.abc import Iterable
from datetime import datetime
from pathlib import Path

import orjson

from bench import joined, rig
from bench.row import WORK, Row, run_alone
from gateway.cache.ledger import Ledger, event_json
from gateway.model import AccessEvent, EventKind, Movement, Passage, Verdict

EVENTS = 1_000_000
CARDS = 20_000
WEEK = 7 * 86_400 * 1_000_000


def filled(events: int) -> Path:
    """A folder with a ledger of so many events over the last week, made once."""
    folder = WORK / f"ledger-{events}"
    if folder.exists():
        return folder
    part = folder.with_name(folder.name + "-part")
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir(parents=True, mode=0o700)
    asyncio.run(_fill(part, events))
    part.rename(folder)
    return folder


async def _fill(folder: Path, events: int) -> None:
    now = time.time_ns() // 1000
    ledger = Ledger.open(
        folder,
        "bench",
        loop=asyncio.get_running_loop(),
        commit_deadline=60_000_000,
        memory_events=events,
        on_failure="admit",
        on_late=lambda _: None,
        on_commit=lambda *_: None,
        on_fault=lambda _: None,
        recent_from=now,
    )
    step = WEEK // events
    for n in range(0, events, 2):
        at, card = now - WEEK + n * step, n // 2 % CARDS
        from_, to = ("outside", "hall") if n // 2 // CARDS % 2 == 0 else ("hall", "outside")
        who = {"credential": rig.credential(card), "holder": f"H{card:08d}", "entitlement": f"E{card:08d}"}
        where = {"point": "in-0", "lane": "lane-0", "from_": from_, "to": to, **who}
        movement = Movement(at, from_, to, who["holder"], "in-0", **who, passage=Passage.PENDING)
        scan = AccessEvent(EventKind.SCAN, at, verdict=Verdict.GRANTED, passage=Passage.PENDING, **where)
        scan.reader, scan.product, scan.left, scan.movement = "scanner-0", "annual", 3, movement
        ledger.record(scan)
        movement.passage = Passage.TAKEN
        taken = AccessEvent(EventKind.PASSAGE, at + 1_200_000, passage=Passage.TAKEN, of=scan, **where)
        taken.movement = movement
        ledger.record(taken)
        if n % 1000 == 0:
            await _written(ledger, 2000)
    await _written(ledger, 0)
    ledger.close()


async def _written(ledger: Ledger, all_but: int) -> None:
    while ledger.pending > all_but:  # noqa: ASYNC110 - the writer is a thread
        await asyncio.sleep(0.001)


def peer(folder: Path, events: int) -> float:
    """Events a second that are parsed and inserted, and nothing else."""
    source = sqlite3.connect(f"file:{folder / 'ledger.db'}?mode=ro", uri=True)
    cursor = source.execute("SELECT * FROM event ORDER BY seq LIMIT ?", (min(events, 100_000),))
    names = [each[0] for each in cursor.description]
    batches = []
    while rows := cursor.fetchmany(1000):
        found = [dict(zip(names, row, strict=True)) for row in rows]
        lines = [event_json(row, "bench", 1) | {"digest": row["digest"].hex()} for row in found]
        batches.append(orjson.dumps({"events": lines}))
    source.close()
    path = WORK / "upload-peer.db"
    for old in WORK.glob("upload-peer.db*"):
        old.unlink()
    conn = sqlite3.connect(path, isolation_level=None)
    conn.execute("PRAGMA journal_mode = WAL")
    conn.execute("PRAGMA synchronous = FULL")
    conn.execute(
        "CREATE TABLE event (gateway TEXT, epoch INTEGER, seq INTEGER, digest TEXT, at INTEGER, body TEXT,"
        " PRIMARY KEY (gateway, epoch, seq)) WITHOUT ROWID"
    )
    began = time.monotonic()
    for batch in batches:
        found = orjson.loads(batch)["events"]
        conn.execute("BEGIN")
        conn.executemany(
            "INSERT INTO event VALUES (?, ?, ?, ?, ?, ?)",
            [
                (e["gateway"], e["epoch"], e["seq"], e["digest"], _micro(e["at"]), orjson.dumps(e).decode())
                for e in found
            ],
        )
        conn.execute("COMMIT")
    took = time.monotonic() - began
    conn.close()
    for old in WORK.glob("upload-peer.db*"):
        old.unlink()
    return sum(len(orjson.loads(batch)["events"]) for batch in batches) / took


def _micro(text: str) -> int:
    return int(datetime.fromisoformat(text).timestamp() * 1e6)


def run(quick: bool) -> list[Row]:
    events = 50_000 if quick else EVENTS
    ledger = filled(events)
    least = peer(ledger, events)
    central = joined.Central(joined.fresh("upload-central", CARDS))
    data_dir = joined.empty_data_dir("upload")
    for file in ledger.iterdir():
        shutil.copy(file, data_dir)
    try:
        with rig.Gate(data_dir, 1, central=central.url) as gate:
            joined.enrol(gate, central)
            sync = joined.sync(gate)
            try:
                joined.until(lambda: joined.in_use(gate), f"snapshot; see {sync.log}", 60)
                first, began, small = _acknowledged(gate), time.monotonic(), rig.memory(sync.pid, "VmRSS")
                used = [rig.cpu(pid) for pid in (gate.process.pid, sync.pid, central.pid)]
                joined.until(lambda: _acknowledged(gate) >= events, f"all events; see {sync.log}", 1200, 0.2)
                took = time.monotonic() - began
                used = [
                    rig.cpu(pid) - before
                    for pid, before in zip((gate.process.pid, sync.pid, central.pid), used, strict=True)
                ]
                peak = rig.memory(sync.pid)
            finally:
                sync.stop()
    finally:
        central.stop()
    compare(data_dir, central.folder, events)
    shutil.rmtree(central.folder)
    shutil.rmtree(data_dir)
    rate = (events - first) / took
    each = "gate {:.0f}, sync {:.0f}, central {:.0f}".format(*(s / (events - first) * 1e6 for s in used))
    return [
        Row(
            f"upload of {events:,} events after a week offline, events a second",
            f"{least:,.0f} (parsed and inserted, nothing else)",
            f"{rate:,.0f}, all of them there once (processor, µs an event: {each})",
            rate / least,
            "10,000",
            rate >= 10_000,
        ),
        Row(
            "the same, RSS of the sync",
            f"{small:.0f} MB at its start",
            f"{peak:.0f} MB at most",
            None,
            "bounded",
            peak < small + 60,
        ),
    ]


def _acknowledged(gate: rig.Gate) -> int:
    return int(gate.client.call("status")["ledger"]["acknowledged"])


def compare(data_dir: Path, central: Path, events: int) -> None:
    """The central's table and the ledger: the same epochs, numbers and digests, each once."""
    sides = []
    with sqlite3.connect(data_dir / "ledger.db") as conn:
        epochs = conn.execute("SELECT first_seq, epoch FROM epoch ORDER BY first_seq").fetchall()
        rows = conn.execute("SELECT seq, hex(digest) FROM event WHERE seq <= ? ORDER BY seq", (events,))
        sides.append(_digest((_epoch(epochs, seq), seq, digest.lower()) for seq, digest in rows))
    with sqlite3.connect(central / "central.db") as conn:
        rows = conn.execute("SELECT epoch, seq, digest FROM event WHERE seq <= ? ORDER BY seq", (events,))
        sides.append(_digest(rows))
    if sides[0] != sides[1] or sides[0][0] != events:
        raise RuntimeError(f"the ledger has {sides[0]}, the central {sides[1]}, of {events} events")


def _epoch(epochs: list[tuple[int, int]], seq: int) -> int:
    return next(epoch for first, epoch in reversed(epochs) if first <= seq)


def _digest(rows: Iterable[tuple[int, int, str]]) -> tuple[int, str]:
    """(how many, a digest over all of them)."""
    count, digest = 0, hashlib.sha256()
    for row in rows:
        count += 1
        digest.update(b"%d %d %s\n" % (row[0], row[1], row[2].encode()))
    return count, digest.hexdigest()


if __name__ == "__main__":
    run_alone("upload", __doc__, run)
