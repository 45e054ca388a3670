"""kill -9 in the middle of full load, 200 times."""

from __future__ import annotations

import contextlib
import random
import select
import shutil
import signal
import sqlite3
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.rig import WAIT, Json, Scanner, Site, card, product, venue

LEDGERS, KILLS = 20, 10
"""200 kills, on several ledgers, so that what each start reads stays small."""
CARDS = 2000
PROBES = 200
SEED = 20261121


def family(n: int) -> str:
    """A code of a load card. Long ones, so that one read of 4 KiB is not hundreds of scans at one reader."""
    return f"FAMILY{n:04}".ljust(100, ".")


def records() -> list[Json]:
    """Families with guests for the load, single-use tickets for the probe."""
    found = [*venue(), product("family", guests=1), product("single", limits=[{"max": 1, "per": "term"}])]
    for n in range(CARDS):
        found += card(n, family(n), "family")
    for n in range(PROBES):
        found += card(f"P{n}", f"PROBE{n:05}", "single")
    return found


def load_site(make: Callable[..., Site], template: Path) -> Site:
    """Three readers for the load, one for the probe.

    The probe has a lane and a board to itself, so that each of its pulses follows at once upon its event and
    can be told apart. South has a sensor that nobody walks by: grants end by time-out, or by the next start.
    A commit deadline that no commit passes here, so none is counted as late.
    """
    extend = {"second_grant": "extend"}
    south = {"driver": "memory", "timeout_s": 0.1}
    site = make(
        (
            {"name": "probe", **extend},
            {"name": "north", **extend},
            {"name": "south", "relay": {"driver": "memory"}, "passage": south},
        ),
        (
            {"name": "probe-in", "lane": "probe"},
            {"name": "north-in", "lane": "north"},
            {"name": "north-out", "lane": "north", "from": "hall", "to": "outside"},
            {"name": "south-in", "lane": "south", "anti_passback": "hard"},
        ),
        (
            {"name": "probe", "point": "probe-in"},
            {"name": "in", "point": "north-in"},
            {"name": "out", "point": "north-out"},
            {"name": "south", "point": "south-in"},
        ),
        commit_deadline_ms=5000,
    )
    for file in template.iterdir():
        shutil.copy(file, site.data_dir)
    return site


class Load:
    """Sends codes to a scanner whenever it takes some; now and then one twice, for a guest."""

    def __init__(self, rng: random.Random) -> None:
        self._rng = rng
        self._rest = b""

    def send(self, scanner: Scanner) -> None:
        if not self._rest:
            cards = (self._rng.randrange(CARDS) for _ in range(16))
            self._rest = "".join(f"{family(n)}\r" * (1 + n % 2) for n in cards).encode()
        with contextlib.suppress(BlockingIOError):
            self._rest = self._rest[scanner.write(self._rest) :]


def rows(site: Site, since: int) -> list[Json]:
    """Events as they lie in the file, by a connection that can only read."""
    path = f"file:{site.data_dir}/ledger.db?mode=ro"
    with contextlib.closing(sqlite3.connect(path, uri=True)) as conn:
        conn.row_factory = sqlite3.Row
        found = conn.execute("SELECT * FROM event WHERE seq > ? ORDER BY seq", (since,))
        return [dict(row) for row in found]


class Told:
    """What the events say, counted without the gateway: who is in the hall, and what became of each grant."""

    def __init__(self) -> None:
        self.last = 0
        self.scans: dict[str, list[Json]] = {}
        self.granted = {"probe": 0, "north": 0}
        self.open: dict[int, Json] = {}
        self._made: dict[int, Json] = {}

    def take(self, events: list[Json]) -> None:
        for event in events:
            assert event["seq"] == self.last + 1, "numbers are unique and without gaps"
            self.last = event["seq"]
            if event["kind"] == "scan":
                self.scans.setdefault(str(event["credential"]), []).append(event)
                if event["verdict"] == "granted" and event["lane"] in self.granted:
                    self.granted[event["lane"]] += 1
                if event["passage"] == "pending":
                    self.open[event["seq"]] = event
                elif event["passage"] == "assumed":
                    self._made[event["seq"]] = event
            elif event["kind"] == "passage":
                # Nobody walks by a sensor here; a lane without one was not opened in time.
                assert event["passage"] == "not_taken"
                known = self.open if event["lane"] == "south" else self._made
                assert known.pop(event["of_seq"], None), "each grant has one outcome"

    def inside(self) -> int:
        """Holders and their guests in the hall."""
        holders: set[str] = set()
        guests = 0
        for event in sorted(self._made.values(), key=lambda event: (event["at"], event["seq"])):
            if event["to_area"] == "hall":
                if event["guest"]:
                    guests += 1
                else:
                    holders.add(event["holder"])
            elif event["holder"] in holders:
                holders.remove(event["holder"])
            else:
                guests = max(0, guests - 1)
        return len(holders) + guests


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory, zygote: Any) -> Path:
    """A data_dir with the snapshot, to be copied."""
    folder = tmp_path_factory.mktemp("template")
    site = Site(folder, zygote)
    site.imports(records())
    site.close()
    return site.data_dir


def under_load(
    here: Site, rng: random.Random, again: str, codes: Iterator[int], *, at_pulse: bool
) -> list[int]:
    """Load the gate, and kill it 20 to 300 ms after the first pulse; ``at_pulse``: at the next pulse then.

    Returns the tickets that were scanned at the probe, each after the pulse for the one before.
    """
    board, probe = here.boards["probe"], here.scanners["probe"]
    loads = {here.scanners[name]: Load(rng) for name in ("in", "out", "south")}
    before, sent = board.pulses(), [next(codes)]
    probe.send(f"{again}PROBE{sent[0]:05}\r".encode())
    deadline = time.monotonic() + WAIT
    kill_at = deadline
    while True:
        _, writable, _ = select.select([board, here.boards["north"]], list(loads), [], 0.02)
        now = time.monotonic()
        opened = board.pulses() - before == len(sent)
        if now >= kill_at and (opened or not at_pulse):
            break
        assert now < deadline, "the lane does not open"
        if opened:
            kill_at = min(kill_at, now + rng.uniform(0.02, 0.3))
            sent.append(next(codes))
            probe.scan(f"PROBE{sent[-1]:05}")
        for scanner in writable:
            loads[scanner].send(scanner)
        here.boards["north"].read()
    assert here.gate is not None
    here.gate.signal(signal.SIGKILL)
    here.kill()
    opened_for = board.pulses() - before
    assert opened_for <= len(sent), "the lane opened for a ticket that was used before"
    return sent[:opened_for]


@pytest.mark.timeout(400)
@pytest.mark.parametrize("ledger", range(LEDGERS))
def test_kill_under_full_load(site: Callable[..., Site], template: Path, ledger: int) -> None:
    """After each kill -9: every pulse has its event, no event is there twice, presence agrees with them."""
    rng = random.Random(SEED + ledger)
    here = load_site(site, template)
    told = Told()
    codes = iter(range(PROBES))
    opened: list[int] = []
    for kill in range(KILLS + 1):
        here.start()
        here.written()
        told.take(rows(here, told.last))
        assert not told.open, "grants without an outcome are closed at the start"
        for lane, board in here.boards.items():
            assert board.pulses() <= told.granted[lane], f"{lane} was opened more often than is on record"
        for n in opened:
            verdicts = [event["verdict"] for event in told.scans.get(f"CP{n}", [])]
            assert verdicts in (["granted"], ["granted", "limit_reached"]), f"ticket {n}: {verdicts}"
        assert here.call("status")["areas"]["hall"] == told.inside()
        if kill < KILLS:
            again = f"PROBE{opened[-1]:05}\r" if opened else ""
            opened += under_load(here, rng, again, codes, at_pulse=bool(kill % 2))
    here.stop()
    assert len(opened) >= KILLS
    assert [event["seq"] for event in here.events()] == list(range(1, told.last + 1))
