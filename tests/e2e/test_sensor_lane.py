"""A lane with a passage sensor, its whole gate inside the test's own event loop."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable, Coroutine
from typing import Any

import pytest

from gateway.configload import load
from gateway.daemon import Daemon
from gateway.host import wall
from gateway.turnstile.relay import MemoryInput, MemoryRelay
from tests.e2e.rig import WAIT, Json, Site, card, product, venue

SENSOR = {"driver": "memory", "timeout_s": 60}
MEMORY = {"driver": "memory"}


def records() -> list[Json]:
    found = [
        *venue(),
        product("open"),
        product("family", guests=1),
        product("single", limits=[{"max": 1, "per": "term"}]),
        *card("L", "LOST", "open", state="lost"),
        *card("F", "FAMILY", "family"),
    ]
    for n in range(10):
        found += [*card(n, f"OPEN{n}", "open"), *card(f"T{n}", f"TICKET{n}", "single")]
    return found


class Here:
    """A gate in this loop, its lane's relay and sensors in memory, its scanners on ptys."""

    def __init__(self, site: Site, daemon: Daemon) -> None:
        self.site, self.daemon = site, daemon
        relay = daemon.relays["north"]
        assert isinstance(relay, MemoryRelay)
        self.relay = relay
        self.inputs: list[MemoryInput] = []
        for each in daemon.inputs:
            assert isinstance(each, MemoryInput)
            self.inputs.append(each)
        self._verdicts: list[str] = []
        teller = daemon.gate.on_verdict

        def told(scan: Any, at: Any, decision: Any, now: int) -> None:
            self._verdicts.append(decision.verdict.value)
            teller(scan, at, decision, now)

        daemon.gate.on_verdict = told

    @property
    def sensor(self) -> MemoryInput:
        return self.inputs[0]

    async def until(self, holds: Callable[[], object], what: str = "") -> None:
        async with asyncio.timeout(WAIT):
            while not holds():  # noqa: ASYNC110 - what is waited for happens in threads and kernels
                await asyncio.sleep(0.003)
        assert holds(), what

    async def scan(self, code: str, reader: str = "in") -> str:
        """Scan, wait for the verdict, and until what came of it is on disk."""
        seen = len(self._verdicts)
        self.site.scanners[reader].scan(code)
        await self.until(lambda: len(self._verdicts) > seen)
        await self.written()
        return self._verdicts[-1]

    async def written(self) -> None:
        await self.until(lambda: self.daemon.ledger.pending == 0)

    def pulses(self) -> int:
        return sum(on for _, on in self.relay.history)

    async def events(self, *kinds: str) -> list[Json]:
        await self.written()
        return [e for e in self.daemon.ledger.events(0, 1000) if e["kind"] in kinds]

    async def passages(self) -> list[tuple[str, int | None]]:
        """(what became of it, of which event), in order."""
        return [(e["passage"], e["of_seq"]) for e in await self.events("passage")]

    def inside(self) -> int:
        return self.daemon.gate.crowd.count("hall", wall())

    def call(self, name: str, **arguments: Any) -> Any:
        """What an administrator's call does, without the socket between."""
        return self.daemon.sockets[0].calls[name](arguments)


@contextlib.asynccontextmanager
async def running(site: Site) -> AsyncIterator[Here]:
    """A gate from its start to its end, which nothing went wrong in."""
    daemon = Daemon(load(site.config), signals=False)
    await daemon.start()
    try:
        yield Here(site, daemon)
        daemon.ask_to_stop()
        assert await daemon.wait() == 0, "no internal error"
    finally:
        daemon.close()


@pytest.fixture
def lane(site: Callable[..., Site]) -> Callable[..., Site]:
    """Makes a site with one lane with sensor, in and out."""

    def make(points: tuple[Json, ...] = (), **settings: Any) -> Site:
        lane = {"name": "north", "relay": MEMORY, "passage": SENSOR, **settings}
        if lane["passage"] is None:
            del lane["passage"]
        here = site(
            (lane,),
            points
            or (
                {"name": "north-in", "lane": "north", "anti_passback": "hard"},
                {"name": "north-out", "lane": "north", "from": "hall", "to": "outside"},
            ),
        )
        here.imports(records())
        return here

    return make


def run(site: Site, test: Callable[[Here], Coroutine[Any, Any, None]]) -> None:
    async def inside() -> None:
        async with running(site) as here:
            await test(here)

    asyncio.run(inside())


def test_taken(lane: Callable[..., Site]) -> None:
    """The person goes through: pending at once, taken when the sensor fires, present once, opened once."""

    async def test(here: Here) -> None:
        assert await here.scan("OPEN0") == "granted"
        assert (here.pulses(), here.inside()) == (1, 1)
        (grant,) = await here.events("scan")
        assert grant["passage"] == "pending"
        assert await here.passages() == []
        here.sensor.fire()
        assert await here.passages() == [("taken", grant["seq"])]
        assert (here.pulses(), here.inside()) == (1, 1)
        assert await here.scan("OPEN0") == "passback"
        assert await here.scan("OPEN0", "out") == "granted"
        assert here.inside() == 1, "a pending exit does not count yet"
        await here.until(lambda: here.pulses() == 2, "the contact was off for long enough")
        here.sensor.fire()
        await here.written()
        assert here.inside() == 0

    run(lane(), test)


def test_not_taken_by_time_out(lane: Callable[..., Site]) -> None:
    """Nobody comes: not_taken when the time is over, everything is given back; who comes later is forced."""

    async def test(here: Here) -> None:
        assert await here.scan("TICKET0") == "granted"
        await here.until(lambda: here.daemon.ledger.last_seq == 2)
        (grant,) = await here.events("scan")
        assert await here.passages() == [("not_taken", grant["seq"])]
        assert here.inside() == 0
        here.sensor.fire()
        assert (await here.passages())[-1] == ("forced", None)
        assert here.inside() == 1
        assert await here.scan("TICKET0") == "granted", "the ticket was not used"
        here.sensor.fire()
        await here.written()
        assert await here.scan("TICKET0") == "limit_reached"

    run(lane(passage={"driver": "memory", "timeout_s": 0.2}), test)


def test_forced(lane: Callable[..., Site]) -> None:
    """A passage without a grant is recorded as forced, counted as a head, and shown."""

    async def test(here: Here) -> None:
        here.sensor.fire()
        (event,) = await here.events("passage")
        assert (event["passage"], event["of_seq"], event["point"]) == ("forced", None, "north-in")
        assert (here.inside(), here.pulses()) == (1, 0)
        metrics = here.call("metrics")["text"]
        assert 'gateway_passages_total{lane="north",outcome="forced"} 1.0' in metrics
        assert await here.scan("OPEN0") == "granted"
        here.sensor.fire()
        here.sensor.fire()
        assert [passage for passage, _ in await here.passages()] == ["forced", "taken", "forced"]
        assert here.inside() == 3

    run(lane(), test)


def test_the_same_grant_again(lane: Callable[..., Site]) -> None:
    """A pending holder's second scan is the same grant: no event, no pulse, one passage."""

    async def test(here: Here) -> None:
        for _ in range(3):
            assert await here.scan("OPEN0") == "granted"
        assert len(await here.events("scan")) == 1
        assert (here.pulses(), here.inside()) == (1, 1)
        here.sensor.fire()
        here.sensor.fire()
        assert [passage for passage, _ in await here.passages()] == ["taken", "forced"]

    run(lane(), test)


def test_guest(lane: Callable[..., Site]) -> None:
    """A pending holder's second scan is the guest, if one is left: two passages, in their order."""

    async def test(here: Here) -> None:
        for _ in range(2):
            assert await here.scan("FAMILY") == "granted"
        assert [e["guest"] for e in await here.events("scan")] == [0, 1]
        assert (here.pulses(), here.inside()) == (1, 2)
        here.sensor.fire()
        await here.until(lambda: here.pulses() == 2, "the guest's turn")
        here.sensor.fire()
        assert await here.passages() == [("taken", 1), ("taken", 2)]
        assert here.inside() == 2

    run(lane(), test)


@pytest.mark.parametrize(
    ("policy", "second"), [("queue", "granted"), ("extend", "granted"), ("refuse", "lane_closed")]
)
def test_second_person(lane: Callable[..., Site], policy: str, second: str) -> None:
    """While somebody walks: the next waits, goes too, or is refused as busy, as ``second_grant`` says. From
    scan to pulse only those are timed for whom the lane was free."""

    async def test(here: Here) -> None:
        assert await here.scan("OPEN0") == "granted"
        assert await here.scan("OPEN1") == second
        here.sensor.fire()
        await here.written()
        if policy == "refuse":
            assert (await here.events("scan"))[1]["detail"] == "busy"
            assert here.inside() == 1
            await here.until(lambda: not here.daemon.gate.lanes["north"].lane.busy)
            assert await here.scan("OPEN1") == "granted"
        elif policy == "queue":
            await here.until(lambda: here.pulses() == 2, "the second's turn")
        here.sensor.fire()
        assert [passage for passage, _ in await here.passages()] == ["taken", "taken"]
        assert here.inside() == 2
        timed = 1 if policy == "queue" else 2
        assert f"gateway_scan_to_pulse_seconds_count {timed}.0\n" in here.daemon.scrape().decode()

    run(lane(second_grant=policy), test)


def test_free(lane: Callable[..., Site]) -> None:
    """In a free lane the relay is held; a scan and its passage count once, a passage alone is a head, and a
    card that is refused elsewhere goes through; afterwards all is as before."""

    async def test(here: Here) -> None:
        here.call("lane", lane="north", state="free")
        assert here.relay.on
        assert await here.scan("OPEN0") == "granted"
        here.sensor.fire()
        assert await here.passages() == [("taken", 2)]
        assert here.inside() == 1
        here.sensor.fire()
        (event,) = [e for e in await here.events("passage") if e["of_seq"] is None]
        assert (event["passage"], event["flags"]) == ("taken", "free")
        assert here.inside() == 2
        assert await here.scan("LOST") == "granted"
        here.sensor.fire()
        assert (await here.events("scan"))[-1]["flags"] == "free"
        await here.written()
        assert here.inside() == 3
        assert here.pulses() == 1, "held on, not pulsed"
        here.call("lane", lane="north", state="normal")
        assert not here.relay.on
        assert await here.scan("LOST") == "revoked"
        assert await here.scan("OPEN0") == "passback"

    run(lane(), test)


def test_closed_while_somebody_walks(lane: Callable[..., Site]) -> None:
    """Closing a lane gives back who waits; who was let in may go through."""

    async def test(here: Here) -> None:
        assert await here.scan("OPEN0") == "granted"
        assert await here.scan("OPEN1") == "granted"
        here.call("lane", lane="north", state="closed")
        assert await here.passages() == [("not_taken", 2)]
        here.sensor.fire()
        assert (await here.passages())[-1] == ("taken", 1)
        assert here.inside() == 1
        assert await here.scan("OPEN1") == "lane_closed"
        assert await here.scan("OPEN0", "out") == "granted"

    run(lane(), test)


@pytest.mark.parametrize("before", ["normal", "closed"])
def test_emergency(lane: Callable[..., Site], before: str) -> None:
    """The emergency input holds the lane free while it lasts; then the lane is as it was, and nobody is
    inside any more, also after a restart; each step is on record."""

    async def test(here: Here) -> None:
        assert await here.scan("OPEN0") == "granted"
        here.sensor.fire()
        here.call("lane", lane="north", state=before)
        await here.written()
        assert here.inside() == 1
        here.inputs[1].set(True)
        assert here.relay.on
        assert await here.scan("LOST", "in") == "granted"
        here.sensor.fire()
        await here.written()
        here.inputs[1].set(False)
        assert not here.relay.on
        assert here.inside() == 0
        acts = [(e["kind"], e["detail"], e["by"]) for e in await here.events("lane", "clear")]
        assert acts[1:] == [
            ("lane", "free", "emergency"),
            ("lane", before, "emergency"),
            ("clear", None, "emergency"),
        ]

    async def after(here: Here) -> None:
        assert here.inside() == 0
        assert await here.scan("OPEN0") == ("granted" if before == "normal" else "lane_closed")

    site = lane(emergency=MEMORY)
    run(site, test)
    run(site, after)


@pytest.mark.parametrize("before", ["normal", "closed", "free"])
def test_emergency_ends_while_no_gate_runs(lane: Callable[..., Site], before: str) -> None:
    """An emergency that is over at the next start: the lane is in the state that a hand gave it."""

    async def begins(here: Here) -> None:
        here.call("lane", lane="north", state=before)
        here.inputs[1].set(True)
        await here.written()

    async def after(here: Here) -> None:
        await here.until(lambda: here.inputs[1].active is False)
        await asyncio.sleep(0)  # what the input tells of itself has come
        assert here.daemon.gate.lanes["north"].lane.mode == before
        assert here.relay.on is (before == "free")

    site = lane(emergency=MEMORY)
    run(site, begins)
    run(site, after)


@pytest.mark.parametrize("sensor", [True, False])
def test_relay_failure(lane: Callable[..., Site], sensor: bool) -> None:
    """A relay that is lost: each grant is taken back and says why, the lane reports a fault, the ticket is
    not used; back again, the next scan opens."""

    async def test(here: Here) -> None:
        here.relay.lose("pulled out")
        await here.until(lambda: here.daemon.gate.lanes["north"].fault)
        for n in range(2):
            assert await here.scan(f"TICKET{n}") == "granted"
            # Each scan leaves three events: the grant, the fault, and not_taken. The loss itself left one.
            await here.until(lambda n=n: here.daemon.ledger.last_seq == 4 + 3 * n)
        scans = [e["seq"] for e in await here.events("scan")]
        assert await here.passages() == [("not_taken", seq) for seq in scans]
        faults = await here.events("fault")
        assert faults[0]["detail"] == "pulled out"
        assert [e["of_seq"] for e in faults if e["of_seq"]] == scans
        assert (here.inside(), here.pulses()) == (0, 0)
        metrics = here.call("metrics")["text"]
        assert 'gateway_lane_state{lane="north",state="fault"} 1.0' in metrics
        here.relay.recover()
        await here.until(lambda: here.daemon.gate.lanes["north"].fault is None)
        assert await here.scan("TICKET0") == "granted"
        await here.until(lambda: here.pulses() == 1)
        assert here.inside() == 1

    run(lane(**({} if sensor else {"passage": None})), test)


def test_sensor_for_each_direction(lane: Callable[..., Site]) -> None:
    """With a sensor for each direction a passage answers the grant of its direction, and no other."""
    points = (
        {"name": "north-in", "lane": "north", "passage": MEMORY},
        {"name": "north-out", "lane": "north", "from": "hall", "to": "outside", "passage": MEMORY},
    )

    async def test(here: Here) -> None:
        inward, outward = here.inputs
        assert await here.scan("OPEN0") == "granted"
        outward.fire()
        (event,) = await here.events("passage")
        assert (event["passage"], event["point"]) == ("forced", "north-out")
        inward.fire()
        assert (await here.passages())[-1] == ("taken", 1)
        assert await here.scan("OPEN0", "out") == "granted"
        await here.until(lambda: here.pulses() == 2)
        outward.fire()
        assert (await here.passages())[-1][0] == "taken"
        assert here.inside() == 0

    run(lane(points, passage=None), test)


def test_annul_of_a_pending_grant(lane: Callable[..., Site]) -> None:
    """A grant that is annulled before its passage is not_taken; who goes through then is forced."""

    async def test(here: Here) -> None:
        assert await here.scan("TICKET0") == "granted"
        assert here.call("annul", seq=1) == {"seq": 1, "annulled": True}
        assert await here.passages() == [("not_taken", 1)]
        here.sensor.fire()
        assert (await here.passages())[-1] == ("forced", None)
        assert await here.scan("TICKET0") == "granted"

    run(lane(), test)


def test_open_by_hand_with_a_sensor(lane: Callable[..., Site]) -> None:
    """A lane opened by hand: who goes through is a head."""

    async def test(here: Here) -> None:
        here.call("open", lane="north")
        await here.until(lambda: here.pulses() == 1)
        here.sensor.fire()
        assert await here.passages() == [("taken", 1)]
        assert here.inside() == 1

    run(lane(), test)
