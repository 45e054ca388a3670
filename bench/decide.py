"""From a code's bytes to the verdict, through the real ``Gate.judge``, against one bare read of LMDB.

The snapshot comes from the importer, the ledger is open and holds 2,000 entries of the day, and the point
asks everything that DESIGN.md 4.2 has: days, hours, dates, an event, limits, guests, anti-passback, capacity
of an area. Random cards, warm, blocks of both by turns in one process. The clock is the scans' own: a
Wednesday at noon.
"""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from time import perf_counter_ns

from bench import feed
from bench.row import Row, run_alone
from gateway.cache.ledger import Ledger
from gateway.cache.snapshot import Snapshot
from gateway.clock import TrustedClock
from gateway.configload import loads
from gateway.gate import Gate
from gateway.metrics import Metrics
from gateway.model import HOUR, MINUTE, Scan
from gateway.replay import world_of
from gateway.venuetime import DAY
from gateway.world import PointAt

CARDS = (1_000_000, 10_000_000)
QUICK = (200_000,)
BLOCKS, BLOCK = 200, 1000
PRESENT = 2000

CONFIG = """
[gateway]
id = "bench"
data_dir = "{data_dir}"
[[lane]]
name = "north"
relay = {{ driver = "memory" }}
passage = {{ driver = "memory" }}
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
device = "{device}"
"""


class _NoRelay:
    """The contact of a lane that nobody stands at."""

    def pulse(self, duration: int) -> None: ...

    def hold(self, on: bool) -> None: ...


@contextmanager
def open_gate(data_dir: Path, loop: asyncio.AbstractEventLoop) -> Iterator[tuple[Gate, Snapshot, Ledger]]:
    """A gate as the daemon makes it, but for the devices."""
    snapshot = Snapshot.open(data_dir)
    assert snapshot is not None
    config = loads(CONFIG.format(data_dir=data_dir, device="/dev/null"), "bench")
    world = world_of(snapshot, config)
    ledger = Ledger.open(
        data_dir,
        "bench",
        loop=loop,
        commit_deadline=150_000,
        memory_events=10_000,
        on_failure="admit",
        on_late=lambda _count: None,
        on_commit=lambda _seconds, _events: None,
        on_fault=lambda _reason: None,
        recent_from=world.presence_since(feed.NOON) - DAY,
    )
    try:
        gate = Gate(
            config,
            world,
            ledger,
            TrustedClock(None, 0),
            Metrics(),
            relay=lambda _lane: _NoRelay(),
        )
        gate.use(snapshot, world)
        yield gate, snapshot, ledger
    finally:
        ledger.close()
        snapshot.close()


async def _enter(gate: Gate, ledger: Ledger, cards: list[int]) -> None:
    """These cards come in within the hour before noon; the last one is granted and still walking."""
    for n, card in enumerate(cards):
        at = feed.NOON - HOUR + n * 50 * MINUTE // len(cards)
        gate.passed("north", "north-in", at, at)
        gate.scanned(Scan("scanner", feed.code_of(card).encode(), at, at))
        while ledger.pending:  # noqa: ASYNC110 - the ledger tells of grants only, and this is no loop at rest
            await asyncio.sleep(0)


def _measure(cards: int, quick: bool) -> list[Row]:
    loop = asyncio.new_event_loop()
    try:
        with open_gate(feed.fresh_data_dir(cards, "decide"), loop) as (gate, snapshot, ledger):
            rng = random.Random(cards)
            present = [rng.randrange(cards) for _ in range(PRESENT)]
            loop.run_until_complete(_enter(gate, ledger, present))
            _warm(snapshot)
            return _compare(gate, snapshot, cards, present, BLOCKS // 4 if quick else BLOCKS)
    finally:
        loop.close()


def _warm(snapshot: Snapshot) -> None:
    """Maps every page of the tables that a scan reads."""
    for table in ("credentials", "entitlements", "blocked"):
        with snapshot._env.begin(snapshot._tables[table]) as txn:
            for _ in txn.cursor().iternext(keys=False):
                pass


def _compare(gate: Gate, snapshot: Snapshot, cards: int, present: list[int], blocks: int) -> list[Row]:
    rng = random.Random(1)
    env, table = snapshot._env, snapshot._credentials
    point = gate.world.points["north-in"]
    floors: list[int] = []
    judged: list[int] = []
    again: list[int] = []
    verdicts: Counter[str] = Counter()
    for block in range(-5, blocks):  # the first blocks warm up what is not data
        keys = [snapshot._key.code(feed.code_of(rng.randrange(cards)).encode()) for _ in range(BLOCK)]
        codes = [feed.code_of(rng.randrange(cards)).encode() for _ in range(BLOCK)]
        seen = [feed.code_of(rng.choice(present)).encode() for _ in range(BLOCK // 10)]
        floor = []
        for key in keys:
            began = perf_counter_ns()
            with env.begin(table) as txn:
                txn.get(key)
            floor.append(perf_counter_ns() - began)
        decided, said = _judge(gate, codes, point)
        known, _ = _judge(gate, seen, point)
        if block >= 0:
            floors += floor
            judged += decided
            again += known
            verdicts += said
    floor_50, floor_99 = _percentiles(floors)
    p50, p99 = _percentiles(judged)
    seen_50, seen_99 = _percentiles(again)
    ratio, tail = p50 / floor_50, p99 / p50
    mix = ", ".join(f"{count / len(judged):.1%} {verdict}" for verdict, count in verdicts.most_common())
    name = f"code bytes to verdict, {cards:,} cards"
    return [
        Row(
            f"{name}, p50 ({mix})",
            f"{floor_50:.2f} µs",
            f"{p50:.2f} µs",
            ratio,
            "at most 5 x",
            ratio <= 5,
        ),
        Row(
            f"{name}, p99 to its own median (floor's: {floor_99 / floor_50:.2f})",
            f"{p50:.2f} µs",
            f"{p99:.2f} µs",
            tail,
            "at most 3 x",
            tail <= 3,
        ),
        Row(
            f"{name}, holder came in today (p99 {seen_99:.1f} µs)",
            f"{floor_50:.2f} µs",
            f"{seen_50:.2f} µs",
            seen_50 / floor_50,
            "-",
            None,
        ),
    ]


def _judge(gate: Gate, codes: list[bytes], point: PointAt) -> tuple[list[int], Counter[str]]:
    judge, now = gate.judge, feed.NOON
    times: list[int] = []
    verdicts: Counter[str] = Counter()
    for code in codes:
        now += 1000
        began = perf_counter_ns()
        decision = judge(point, code, now)
        times.append(perf_counter_ns() - began)
        verdicts[decision.verdict.value] += 1
    return times, verdicts


def _percentiles(nanoseconds: list[int]) -> tuple[float, float]:
    """Median and p99 in microseconds."""
    ordered = sorted(nanoseconds)
    return ordered[len(ordered) // 2] / 1000, ordered[len(ordered) * 99 // 100] / 1000


def run(quick: bool) -> list[Row]:
    rows = []
    for cards in QUICK if quick else CARDS:
        rows += _measure(cards, quick)
    return rows


if __name__ == "__main__":
    run_alone("decide", __doc__, run)
