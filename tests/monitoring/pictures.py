"""``python -m tests.monitoring.pictures FOLDER``: pictures of the dashboards, for docs/.

A real run of some minutes: a central and four gates as processes, visitors who scan at random, and what
goes wrong: the central is away for a while, a scanner and a relay board are pulled out and plugged in again,
and one gate ends. A real Prometheus looks on; the dashboards' questions are put to it, and the answers are
drawn.
"""

from __future__ import annotations

import random
import sys
import tempfile
import time
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

from tests.browser import Browser
from tests.e2e.rig import Json, Site, Zygote, card, product, until, venue
from tests.e2e.system import Authority, Gateway, System
from tests.monitoring import dashboards, drawing
from tests.monitoring.prometheus import Prometheus, running

LENGTH = 300
"""Seconds of visitors."""
STEPS = 150
PEOPLE = 400


def records() -> list[Json]:
    """A venue, and cards of which some are worth nothing."""
    found = [*venue(), {"kind": "area", "id": "exhibition", "within": "hall"}, product("open")]
    for n in range(PEOPLE):
        found += card(n, f"CARD{n:04}", "open", state="lost" if n % 23 == 0 else "active")
        if n % 11 == 0:
            found[-2]["valid_until"] = "2024-12-31"
    return found


def gate(system: System, folder: Path, zygote: Zygote, sites: list[Site], name: str) -> Gateway:
    """Two lanes, one with a board; a way in and a way out at the first."""

    def make(*tables: Any, **gateway: Any) -> Site:
        (folder / name).mkdir()
        sites.append(Site(folder / name, zygote, *tables, **gateway))
        return sites[-1]

    lanes = [{"name": f"{name}-1"}, {"name": f"{name}-2", "relay": {"driver": "memory"}}]
    points = [
        {"name": f"{name}-in", "lane": f"{name}-1"},
        {"name": f"{name}-out", "lane": f"{name}-1", "from": "hall", "to": "outside"},
        {"name": f"{name}-side", "lane": f"{name}-2", "to": "exhibition"},
    ]
    readers = [{"name": p["name"], "point": p["name"], "repeat_delay_s": 1.5} for p in points]
    return system.gateway(make, lanes, points, readers, id=name)


def live(system: System, gates: list[Gateway]) -> None:
    """Visitors, and what goes wrong."""
    rng, north, south, last = random.Random(7), gates[0], gates[1], gates[-1]
    events: list[tuple[float, Callable[[], None]]] = [
        (0.22, system.central.kill),
        (0.38, system.central.start),
        (0.45, north.site.scanners["north-out"].unplug),
        (0.56, north.site.scanners["north-out"].plug),
        (0.60, south.site.boards["south-1"].unplug),
        (0.70, south.site.boards["south-1"].plug),
        (0.75, lambda: north.site.call("lane", lane="north-2", state="closed")),
        (0.86, lambda: north.site.call("lane", lane="north-2", state="normal")),
        (0.80, last.site.kill),
    ]
    events.sort(key=lambda event: event[0])
    began, dead = time.monotonic(), False
    while (part := (time.monotonic() - began) / LENGTH) < 1:
        while events and events[0][0] <= part:
            dead = dead or events[0][0] == 0.80
            events.pop(0)[1]()
        each = rng.choice(gates[:-1] if dead else gates)
        where = rng.choices([f"{each.name}-in", f"{each.name}-side", f"{each.name}-out"], [6, 2, 3])[0]
        scanner = each.site.scanners[where]
        if scanner.fileno() >= 0:
            odd = rng.random()
            code = f"CARD{rng.randrange(PEOPLE):04}" if odd > 0.04 else f"OTHER{rng.randrange(99)}"
            scanner.scan(code)
            if 0.9 < odd < 0.93:
                scanner.scan(code)
        for board in each.site.boards.values():
            if board.fileno() >= 0:
                board.read()
        time.sleep(rng.expovariate(5 if 0.3 < part < 0.9 else 2.5))


def answers(server: Prometheus, dashboard: Json, variables: dict[str, str], span: tuple[float, float]) -> Any:
    """What Grafana would be answered."""
    start, end = span
    return {
        panel["id"]: [
            server.query(dashboards.filled(target["expr"], variables), end)
            if target["instant"]
            else server.range(dashboards.filled(target["expr"], variables), start, end, (end - start) / STEPS)
            for target in panel["targets"]
        ]
        for panel in dashboards.panels(dashboard)
    }


def watched(work: Path) -> dict[str, tuple[Json, Any, tuple[float, float], str]]:
    """The run: by name of the picture, dashboard, answers, span and what was chosen."""
    zygote, sites = Zygote(), list[Site]()
    system = System(work, zygote, authority=Authority(work, lasts=timedelta(days=200)))
    try:
        system.central.start()
        system.central.load(records())
        gates = [gate(system, work, zygote, sites, name) for name in ("north", "south", "garden", "tower")]
        for each in gates:
            each.site.start()
            each.join()
            each.start_sync()
        for each in gates:
            until(each.cards, f"{each.name} has cards", 60)
        addresses = {each.name: str(each.site.sections["web"]["listen"]) for each in gates}
        with running(work, addresses, "3s") as server:
            began = time.time()
            live(system, gates)
            span = began, time.time()
            made = {}
            for path in dashboards.FILES:
                whole = path.stem == "fleet"
                variables = {"instance": ".*" if whole else "north", "__rate_interval": "30s"}
                dashboard = dashboards.load(path)
                found = answers(server, dashboard, variables, span)
                made[path.stem] = dashboard, found, span, "Gate: " + ("All" if whole else "north")
            return made
    finally:
        for site in sites:
            site.close()
        system.close()
        zygote.close()


def take(folder: Path, made: dict[str, tuple[Json, Any, tuple[float, float], str]], work: Path) -> None:
    """Draw what was answered, and take its picture."""
    browser = Browser(work)
    try:
        for name, (dashboard, found, span, chosen) in made.items():
            path = work / f"{name}.html"
            path.write_text(drawing.page(dashboard, {int(k): v for k, v in found.items()}, span, chosen))
            tab = browser.tab(drawing.WIDTH, 900)
            tab.go(path.as_uri())
            tab.until("document.querySelector('svg')")
            tab.screenshot(folder / f"dashboard-{name}.png", whole=True)
            tab.close()
    finally:
        browser.close()


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as made_in:
        seen = watched(Path(made_in))
        take(Path(sys.argv[1]), seen, Path(made_in))
