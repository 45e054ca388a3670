"""Central, sync and gate are killed (-9) at random moments, over and over, while scans and changes go on.

At the end everything is left alone, and must agree to the last record and event. ``make soak``, which sets
GATEWAY_SOAK=1, runs the full size: 100,000 events and 10,000 changes.
"""

from __future__ import annotations

import contextlib
import http.client
import os
import random
import select
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

from tests.e2e.rig import Json, Scanner, Site, Zygote, card, product, until, venue
from tests.e2e.system import Central, Gateway, Refused, System
from tests.e2e.test_kill import rows


class Size(NamedTuple):
    """How much of everything."""

    events: int
    changes: int
    kills: int
    """Of each of the three, at least."""


SOAK = os.environ.get("GATEWAY_SOAK") == "1"
SIZE = Size(100_000, 10_000, 60) if SOAK else Size(10_000, 1_000, 6)
SEED = int(os.environ.get("GATEWAY_SOAK_SEED", "20261124"))
CARDS, PROBES = 600, 400
BEFORE_KILL = {"central": (0.2, 3.0), "sync": (0.2, 3.0), "gate": (0.3, 3.0)}
"""Seconds for which a part lives, from and to."""
DOWN = 0.6
"""Seconds for which the central or the sync is away, at most."""


# --- changes ------------------------------------------------------------------------------------------


def code(n: int, version: int = 0) -> str:
    """A code of a person."""
    return f"PERSON{n:06}V{version}".ljust(40, ".")


class Office:
    """Changes the central's records and knows what each code must be worth in the end.

    What the central has confirmed must hold whatever happens to it. A call whose answer is lost is made
    again.
    """

    def __init__(self, central: Central, rng: random.Random, total: int) -> None:
        self._thread = threading.Thread(target=self._run, name="office")
        self._central, self._rng, self._total = central, rng, total
        self._end = threading.Event()
        self.allowed = 0
        """So many changes may be made by now."""
        self.done = 0
        self.lost = 0
        """Calls without an answer."""
        self.failure: BaseException | None = None
        self.verdicts: dict[str, str] = {}
        """What a gate must say to each code that there ever was."""
        self.codes: list[str] = []
        self._people = 0
        self._living: dict[int, tuple[str, int]] = {}
        """Of those with a good card: the credential's id, and the version of its code."""

    def records(self, count: int) -> list[Json]:
        """So many new people."""
        found = []
        for n in range(self._people, self._people + count):
            found += card(n, code(n), "day")
            self._living[n] = f"C{n}", 0
            self._holds(code(n), "granted")
        self._people += count
        return found

    def _holds(self, which: str, verdict: str) -> None:
        if which not in self.verdicts:
            self.codes.append(which)
        self.verdicts[which] = verdict

    def start(self) -> None:
        self._thread.start()

    @property
    def working(self) -> bool:
        return self._thread.is_alive()

    def _run(self) -> None:
        try:
            while self.done < self._total and not self._end.is_set():
                if self.done >= self.allowed:
                    self._end.wait(0.01)
                elif self._rng.random() < 0.6:
                    self._act(self._rng.choice([self._revoke, self._replace, self._delete]))
                else:
                    self._load()
        except BaseException as error:
            self.failure = error

    def end(self) -> None:
        self._end.set()
        self._thread.join()

    def _pick(self) -> tuple[int, str, int]:
        """Somebody with a good card, who has none of it afterwards."""
        n = self._rng.choice(list(self._living))
        id_, version = self._living.pop(n)
        return n, id_, version

    def _act(self, act: Callable[[int, str, int], None]) -> None:
        act(*self._pick())
        self.done += 1

    def _revoke(self, n: int, id_: str, version: int) -> None:
        state = self._rng.choice(["lost", "revoked"])
        self._insist("POST", f"credentials/{id_}/revoke", {"state": state})
        self._holds(code(n, version), "revoked")

    def _replace(self, n: int, id_: str, version: int) -> None:
        new = f"C{n}-{version + 1}"
        self._insist("POST", f"credentials/{id_}/replace", {"id": new, "code": code(n, version + 1)})
        self._holds(code(n, version), "revoked")
        self._holds(code(n, version + 1), "granted")
        self._living[n] = new, version + 1

    def _delete(self, n: int, _: str, version: int) -> None:
        self._insist("DELETE", f"venues/main/records/holder/H{n}")
        # The cards from before it go with the entitlement too.
        for each in range(version + 1):
            self._holds(code(n, each), "unknown_credential")

    def _load(self) -> None:
        """A portion: new people, cards that end, entitlements that are suspended."""
        portion = self.records(self._rng.randint(1, 12))
        ended, suspended = [], []
        for _ in range(self._rng.randint(0, 9)):
            n, id_, version = self._pick()
            known = {"kind": "credential", "id": id_, "code": code(n, version), "entitlements": [f"E{n}"]}
            portion.append({**known, "state": "revoked"})
            ended.append(code(n, version))
        for _ in range(self._rng.randint(0, 4)):
            n, _, version = self._pick()
            portion.append(
                {"kind": "entitlement", "id": f"E{n}", "product": "day", "holder": f"H{n}"}
                | {"state": "suspended"}
            )
            suspended.append(code(n, version))
        self._insist("POST", "venues/main/records", portion)
        for each in ended:
            self._holds(each, "revoked")
        for each in suspended:
            self._holds(each, "suspended")
        self.done += len(portion)

    def _insist(self, method: str, path: str, body: Json | list[Json] | None = None) -> None:
        """Until the central has confirmed it."""
        uncertain = False
        while not self._end.is_set():
            try:
                self._central.call(method, path, body)
                return
            except Refused as refused:
                # What is not there any more, or is there already: the answer that was lost was a good one.
                if uncertain and refused.status in (404, 409):
                    return
                raise
            except (OSError, http.client.HTTPException):
                uncertain = True
                self.lost += 1
                self._end.wait(0.05)


# --- scans --------------------------------------------------------------------------------------------


class Load:
    """Sends codes of all kinds to a scanner whenever it takes some."""

    def __init__(self, rng: random.Random, codes: list[str]) -> None:
        self._rng, self._codes = rng, codes
        self._rest = b""

    def send(self, scanner: Scanner) -> int:
        """Gives how many codes went out whole."""
        if not self._rest:
            self._rest = "".join(f"{each}\r" for each in self._rng.choices(self._codes, k=16)).encode()
        with contextlib.suppress(BlockingIOError):
            sent = scanner.write(self._rest)
            gone, self._rest = self._rest[:sent], self._rest[sent:]
            return gone.count(b"\r")
        return 0


class Door:
    """The gate, with scans, and what must be in its ledger after each kill.

    Each code at the probe follows upon the pulse for the one before. So every pulse proves a verdict that was
    given, and its event must be there whatever happened next.
    """

    def __init__(self, gateway: Gateway, rng: random.Random, codes: list[str]) -> None:
        self.gateway, self._site = gateway, gateway.site
        self._rng, self._codes = rng, codes
        self._probes = self._site.scanners["probe"]
        self._board = self._site.boards["probe"]
        self._loads: dict[Scanner, Load] = {}
        self._sent: list[str] = []
        self._pulses = self._granted = 0
        self.pulsed = 0
        self.last = 0
        """The last number of the ledger, when it was looked at."""
        self.scanned = 0
        """Codes sent since then."""

    def start(self) -> None:
        self._site.start()
        self._site.written()
        self._compare()
        names = [name for name in self._site.scanners if name != "probe"]
        self._loads = {self._site.scanners[name]: Load(self._rng, self._codes) for name in names}
        self._pulses, self._sent, self.scanned = self._board.pulses(), [], 0

    def kill(self) -> None:
        if self._rng.random() < 0.5 and self._sent:  # at a pulse, as soon as it is seen
            until(self._opened, "the lane opens")
        self._site.kill()
        self.pulsed += self._board.pulses() - self._pulses

    def _opened(self) -> bool:
        return self._board.pulses() - self._pulses == len(self._sent)

    def _compare(self) -> None:
        """The ledger as it lies on disk with what was seen."""
        probed = []
        for event in rows(self._site, self.last):
            assert event["seq"] == self.last + 1, "numbers are unique and without gaps"
            self.last = event["seq"]
            if event["kind"] == "scan" and event["verdict"] == "granted":
                self._granted += event["lane"] == "north"
                if event["lane"] == "probe":
                    probed.append(f"CP{self._sent[len(probed)]}")
                    assert event["credential"] == probed[-1], "probes are recorded in their order"
        opened = self._board.pulses() - self._pulses
        assert len(probed) >= opened, "the lane opened for somebody who is not on record"
        assert self._site.boards["north"].pulses() <= self._granted, "north opened without a grant on record"

    def work(self, goal: int, seconds: float) -> None:
        """Scan for a moment, as fast as the readers go, up to so many events."""
        scanners = list(self._loads) if self.last + self.scanned < goal else []
        _, writable, _ = select.select([self._board, self._site.boards["north"]], scanners, [], seconds)
        if self._opened():
            self._sent.append(f"{len(self._sent) % PROBES:05}")
            self._probes.scan(f"PROBE{self._sent[-1]}")
        for scanner in writable:
            self.scanned += self._loads[scanner].send(scanner)
        self._site.boards["north"].read()


# --- kills --------------------------------------------------------------------------------------------


class Killer:
    """Kills a part at random moments, and starts it again a moment later."""

    def __init__(
        self, name: str, rng: random.Random, kill: Callable[[], None], start: Callable[[], None], down: float
    ) -> None:
        self._kill, self._start, self._rng, self._down = kill, start, rng, down
        self._alive = BEFORE_KILL[name]
        self.kills = 0
        self._running = True
        self._next = time.monotonic() + rng.uniform(*self._alive)

    def look(self) -> None:
        """Do what is due."""
        if time.monotonic() < self._next:
            return
        if self._running:
            self._kill()
            self.kills += 1
        else:
            self._start()
        self._running = not self._running
        wait = self._rng.uniform(*self._alive) if self._running else self._rng.uniform(0, self._down)
        self._next = time.monotonic() + wait

    def finish(self) -> None:
        """Let it run, and kill it no more."""
        if not self._running:
            self._start()
            self._running = True


@pytest.fixture
def system(tmp_path: Path, zygote: Zygote) -> Iterator[System]:
    folder = tmp_path / "system"
    folder.mkdir()
    made = System(folder, zygote)
    yield made
    made.close()


def door_of(system: System, make: Callable[..., Site]) -> Gateway:
    """Three readers for the load, one for the probe, each of these with a board of its own."""
    extend = {"second_grant": "extend"}
    return system.gateway(
        make,
        (
            {"name": "probe", **extend},
            {"name": "north", **extend},
            {"name": "south", "relay": {"driver": "memory"}, **extend},
        ),
        (
            {"name": "probe-in", "lane": "probe"},
            {"name": "north-in", "lane": "north"},
            {"name": "north-out", "lane": "north", "from": "hall", "to": "outside"},
            {"name": "south-in", "lane": "south"},
        ),
        (
            {"name": "probe", "point": "probe-in"},
            {"name": "in", "point": "north-in"},
            {"name": "out", "point": "north-out"},
            {"name": "south", "point": "south-in"},
        ),
        commit_deadline_ms=5000,
        unknown_codes_per_minute=100_000,
    )


@pytest.mark.timeout(3600 if SOAK else 300)
def test_everything_is_killed_and_nothing_is_lost(system: System, site: Callable[..., Site]) -> None:
    """kill -9 of central, sync and gate for the whole of the run; then both sides agree in everything."""
    rng = random.Random(SEED)
    central = system.central
    central.start()
    office = Office(central, random.Random(SEED + 1), SIZE.changes)
    probes = [record for n in range(PROBES) for record in card(f"P{n:05}", f"PROBE{n:05}", "day")]
    central.load([*venue(), product("day"), *probes, *office.records(CARDS)])
    gateway = door_of(system, site)
    door = Door(gateway, rng, office.codes)
    door.start()
    gateway.join()
    gateway.start_sync()
    until(lambda: gateway.cards() >= CARDS + PROBES, "the cards come")
    killers = {
        "central": Killer("central", rng, central.kill, lambda: central.start(wait=False), DOWN),
        "sync": Killer("sync", rng, gateway.kill_sync, lambda: gateway.start_sync(wait=False), DOWN),
        "gate": Killer("gate", rng, door.kill, door.start, 0),
    }
    began = time.monotonic()
    office.start()
    try:
        while True:
            share = (min(killer.kills for killer in killers.values()) + 1) / (SIZE.kills + 1)
            goal = int(SIZE.events * min(share, 1))
            office.allowed = int(SIZE.changes * min(share, 1))
            if share >= 1 and not office.working and door.last + door.scanned >= SIZE.events:
                break
            assert office.failure is None, office.failure
            door.work(goal, 0.02)
            for killer in killers.values():
                killer.look()
        for killer in killers.values():
            killer.finish()
    finally:
        office.end()
    killed = time.monotonic() - began
    assert office.failure is None, office.failure
    while (there := gateway.status["ledger"]["last_seq"]) < SIZE.events:
        door.work(door.last + door.scanned + SIZE.events - there, 0.02)
    for scanner in gateway.site.scanners.values():
        scanner.unplug()  # with the scans that it holds
    assert central.fork is not None
    central.fork.ready()
    records = system.agree(office.codes, timeout=600 if SOAK else 120)
    told = {each: answer["verdict"] for each, answer in gateway.judged(office.codes).items()}
    assert told == office.verdicts, "what the office was told has been done is done"
    assert door.pulsed > SIZE.kills, "the probe has proved something"
    report(
        {
            "events": gateway.status["ledger"]["last_seq"],
            "changes": office.done,
            "calls of the office without an answer": office.lost,
            **{f"kills of the {name}": killer.kills for name, killer in killers.items()},
            "pulses that prove an event": door.pulsed,
            "records in the end": len(records),
            "seconds under kills": round(killed, 1),
            "seconds in all": round(time.monotonic() - began, 1),
        }
    )


def report(seen: dict[str, float]) -> None:
    """What was done, for whoever runs it with ``-s``, as ``make soak`` does."""
    sys.stdout.write("\n" + "".join(f"{value:>10,} {name}\n" for name, value in seen.items()))
