"""Metrics, alerts and dashboards on a real run: central, gates and syncs as processes, TLS between them,
scanners and a relay board on ptys, watched by a real Prometheus."""

from __future__ import annotations

import itertools
import json
import re
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import yaml
from grafana_foundation_sdk.cog import plugins
from grafana_foundation_sdk.cog.encoder import JSONEncoder
from grafana_foundation_sdk.models.dashboard import Dashboard
from prometheus_client.parser import text_string_to_metric_families

from gateway.model import LaneMode, Passage, Verdict
from tests.e2e.rig import WAIT, Json, Site, Zygote, card, product, until, venue
from tests.e2e.system import Authority, Gateway, System
from tests.monitoring import dashboards
from tests.monitoring.drawing import named
from tests.monitoring.prometheus import MONITORING, ROOT, Prometheus, running, tool, wait_until

BOTH = {"point", "verdict", "reader", "lane", "outcome", "input", "state", "area", "role", "version"}
"""Labels of the gate."""
OF_SYNC = {"result", "call", "certificate", "reason"}
OF_PROCESS = {"version", "generation", "implementation", "major", "minor", "patchlevel"}


class Run(NamedTuple):
    """What a day at two gates has left behind."""

    server: Prometheus
    pages: dict[str, str]
    """``/metrics`` of each gate while all was well."""
    silence: Callable[[], None]
    """Kills the sync of the gate that is dead already."""


def page(gateway: Gateway) -> str:
    """What its sync says at /metrics."""
    listen = gateway.site.sections["web"]["listen"]
    with urllib.request.urlopen(f"http://{listen}/metrics", timeout=WAIT) as said:
        text: str = said.read().decode()
        return text


def refused_page(gateway: Gateway) -> None:
    """Ask for a stream of its pages as if from another site."""
    listen = gateway.site.sections["web"]["listen"]
    asked = urllib.request.Request(f"http://{listen}/events", headers={"Sec-Fetch-Site": "cross-site"})
    with pytest.raises(urllib.error.HTTPError) as told:
        urllib.request.urlopen(asked, timeout=WAIT)
    told.value.close()
    assert told.value.code == 403


def records() -> list[Json]:
    found = [*venue(), product("open"), *card("L", "LOST", "open", state="lost")]
    for n in range(10):
        found += card(n, f"OPEN{n}", "open")
    return found


@contextmanager
def day(folder: Path, zygote: Zygote) -> Iterator[Run]:
    """Two gates of one venue: entries, refusals, a scanner that is tried, news; at last the relay board of
    one and a scanner are pulled out, and the other gate is killed."""
    system = System(folder, zygote, authority=Authority(folder))
    sites: list[Site] = []

    def make(name: str, *tables: list[Json]) -> Gateway:
        def site(*tables: list[Json], **gateway: Any) -> Site:
            (folder / name).mkdir()
            sites.append(Site(folder / name, zygote, *tables, **gateway))
            return sites[-1]

        return system.gateway(site, *tables, id=name, unknown_codes_per_minute=20)

    try:
        yield from _day(system, folder, make)
    finally:
        for each in sites:
            each.close()
        system.close()


def _day(system: System, folder: Path, make: Callable[..., Gateway]) -> Iterator[Run]:
    system.central.start()
    system.central.load(records())
    memory = {"driver": "memory"}
    north = make(
        "north",
        [{"name": "north"}, {"name": "side", "relay": memory, "passage": {**memory, "timeout_s": 1}}],
        [
            {"name": "north-in", "lane": "north"},
            {"name": "north-out", "lane": "north", "from": "hall", "to": "outside"},
            {"name": "side-in", "lane": "side"},
        ],
        [
            {"name": "in", "point": "north-in"},
            {"name": "out", "point": "north-out"},
            {"name": "side", "point": "side-in", "repeat_delay_s": 1.5},
        ],
    )
    south = make(
        "south",
        [{"name": "south", "relay": memory}],
        [{"name": "south-in", "lane": "south"}],
        [{"name": "in", "point": "south-in"}],
    )
    both = {gateway.name: gateway for gateway in (north, south)}
    for gateway in both.values():
        gateway.site.start()
        gateway.join()
        gateway.start_sync()
    for gateway in both.values():
        until(gateway.cards, f"{gateway.name} has cards")
    addresses = {name: str(gateway.site.sections["web"]["listen"]) for name, gateway in both.items()}
    with running(folder, addresses) as server:
        wait_until(server, "sum(gateway_sync_up) == 2")
        # What is counted must be seen before and after.
        for n in range(3):
            assert north.site.scan("in", f"OPEN{n}")["verdict"] == "granted"
            assert south.site.scan("in", f"OPEN{n + 2}")["verdict"] == "granted"
        for code in ("LOST", *(f"TRIED{n}" for n in range(24))):
            assert north.site.scan("in", code)["verdict"] != "granted"
        refused_page(north)
        north.site.scan("out", "OPEN1")
        north.site.scan("side", "OPEN7")
        north.site.scanners["side"].scan("OPEN7")
        north.site.scanners["out"].send(b"x" * 9000 + b"\r")
        system.central.load(card("N", "NEWER", "open"))
        system.central.call("POST", "gateways/north/commands", {"do": "open", "lane": "side"})
        for counted in (
            'increase(gateway_scans_total{verdict="revoked"}[1m])',
            "increase(gateway_reader_slowed_total[1m])",
            "increase(gateway_reader_dropped_total[1m])",
            "increase(gateway_repeats_total[1m])",
            'increase(gateway_passages_total{outcome="not_taken"}[1m])',
            'increase(gateway_changes_total{result="applied"}[1m])',
            'increase(gateway_central_commands_total{result="obeyed"}[1m])',
            "increase(gateway_sync_events_total[1m])",
            "increase(gateway_web_refused_total[1m])",
        ):
            wait_until(server, f"{counted} > 0")
        pages = {name: page(gateway) for name, gateway in both.items()}
        north.site.boards["north"].unplug()
        north.site.scanners["out"].unplug()
        south.site.kill()
        for seen in (
            'gateway_lane_state{instance="north",state="fault"} == 1',
            'gateway_reader_up{instance="north"} == 0',
            'gateway_gate_up{instance="south"} == 0',
            'ALERTS{alertname="GatewayGateDown"}',
            'ALERTS{alertname="GatewayLaneFault"}',
        ):
            wait_until(server, seen)
        yield Run(server, pages, south.kill_sync)


@pytest.mark.timeout(240)
def test_a_day_at_two_gates(tmp_path: Path, zygote: Zygote) -> None:
    """What the gates export is clean and bounded, the rules work on it, and each question of each dashboard
    has an answer. (One test, for a day takes its time.)"""
    with day(tmp_path, zygote) as run:
        promtool_finds_nothing(run)
        labels_are_bounded(run)
        the_rules_work_on_real_series(run)
        run.silence()
        wait_until(run.server, 'up{instance="south"} == 0')
        for path in dashboards.FILES:
            every_question_has_an_answer(run, path)


def promtool_finds_nothing(run: Run) -> None:
    """`promtool check metrics` has no complaint about what a gate and its sync say."""
    for name, text in run.pages.items():
        done = subprocess.run(
            [tool("promtool"), "check", "metrics"], input=text, capture_output=True, text=True, check=False
        )
        assert (done.returncode, done.stdout + done.stderr) == (0, ""), name


def labels_are_bounded(run: Run) -> None:
    """Each label is one of a known few, and its values come from the configuration or from a closed list,
    however many codes, people and requests there are."""
    closed = {
        "verdict": set(Verdict),
        "outcome": set(Passage),
        "state": {*LaneMode, "fault"},
        "role": {"admin", "sync"},
        "call": {"changes", "snapshot", "events"},
        "certificate": {"authority", "client", "central"},
        "point": {"north-in", "north-out", "side-in", "south-in"},
        "reader": {"in", "out", "side"},
        "lane": {"north", "side", "south"},
        "area": {"hall"},
        "input": {"passage sensor of side"},
    }
    for text in run.pages.values():
        for family in text_string_to_metric_families(text):
            for sample in family.samples:
                known = BOTH | OF_SYNC | {"le"} if family.name.startswith("gateway_") else OF_PROCESS
                assert set(sample.labels) <= known, sample
                for label, value in sample.labels.items():
                    assert value in closed.get(label, {value}), sample
                    assert re.fullmatch(r"[\w .+-]{1,40}", value), sample


def the_rules_work_on_real_series(run: Run) -> None:
    """No rule fails to evaluate on what real gates export, and the alerts that are pending or firing are
    those that have been provoked, and no others but those of a machine that is busy with other tests."""
    groups = run.server.get("/api/v1/rules")["groups"]
    rules = [rule for group in groups for rule in group["rules"]]
    assert len(rules) > 30
    assert {rule["name"]: rule.get("lastError", "") for rule in rules if rule["health"] != "ok"} == {}
    busy = {"GatewayNotScraped", "GatewaySlowToOpen", "GatewayLateCommits"}
    assert {(alert, gate) for alert, gate in run.server.alerts() if alert not in busy} == {
        ("GatewayGateDown", "south"),
        ("GatewayReaderDown", "north"),
        ("GatewayLaneFault", "north"),
        ("GatewayCodesTried", "north"),
        ("GatewayRefusedUnusual", "north"),
        # The test's certificates last for a day.
        ("GatewayCertificateEnds", "north"),
        ("GatewayCertificateEnds", "south"),
        ("GatewayCertificateEndsNow", "north"),
        ("GatewayCertificateEndsNow", "south"),
    }


def every_question_has_an_answer(run: Run, path: Path) -> None:
    """Each query of each panel, as Grafana would send it, gives at least one series of the real run, and no
    two of a panel are called the same; the variable for the gate has each, also one that does not answer."""
    dashboard = dashboards.load(path)
    multiple = {v["name"]: v["multi"] for v in dashboard["templating"]["list"]}["instance"]
    variables = {
        "instance": ".*" if multiple else "north",
        "__rate_interval": "1m",
        "datasource": "prometheus",
    }
    now = time.time()
    for panel in dashboards.panels(dashboard):
        names: list[str] = []
        for target in panel["targets"]:
            expression = dashboards.filled(target["expr"], variables)
            assert run.server.query(expression), (panel["title"], expression)
            drawn = run.server.range(expression, now - 90, now, 2)
            names += [named(series, target["legendFormat"]) for series in drawn]
        assert panel["type"] == "table" or len(names) == len(set(names)), (panel["title"], names)
    [asked] = re.findall(r"label_values\((.+), (\w+)\)", dashboard["templating"]["list"][1]["query"]["query"])
    assert {s["metric"][asked[1]] for s in run.server.query(asked[0])} == {"north", "south"}


# --- the files of the dashboards -----------------------------------------------------------------------


@pytest.mark.parametrize("path", dashboards.FILES, ids=lambda path: path.stem)
def test_a_dashboard_is_what_grafana_reads(path: Path) -> None:
    """Read into the types that Grafana publishes for its dashboards and written again, nothing is lost or
    changed: each key is one that Grafana knows, where it knows it."""
    plugins.register_default_plugins()
    text = path.read_text()
    raw = dashboards.load(path)
    again = JSONEncoder(sort_keys=True, indent=2).encode(Dashboard.from_json(raw))
    assert _lost(raw, json.loads(again), "") == []
    wrong = json.loads(text.replace('"fillOpacity"', '"fillOpacitie"'))
    assert _lost(wrong, json.loads(JSONEncoder().encode(Dashboard.from_json(wrong))), "")


def _lost(ours: object, theirs: object, where: str) -> list[str]:
    """What of ours is not in theirs; theirs may have defaults on top."""
    if isinstance(ours, dict) and isinstance(theirs, dict):
        found = [f"{where}/{key} is unknown" for key in ours.keys() - theirs.keys()]
        for key in ours.keys() & theirs.keys():
            found += _lost(ours[key], theirs[key], f"{where}/{key}")
        return found
    if isinstance(ours, list) and isinstance(theirs, list) and len(ours) == len(theirs):
        pairs = enumerate(zip(ours, theirs, strict=True))
        return [line for n, (a, b) in pairs for line in _lost(a, b, f"{where}/{n}")]
    return [] if ours == theirs else [f"{where}: {ours} became {theirs}"]


@pytest.mark.parametrize("path", dashboards.FILES, ids=lambda path: path.stem)
def test_a_dashboard_is_laid_out(path: Path) -> None:
    """No two panels overlap or share an id, none is wider than the page; all ask the data source that is
    chosen above; each has a unit and thresholds or a colour scheme."""
    dashboard = dashboards.load(path)
    ids = [panel["id"] for panel in dashboard["panels"]]
    assert len(ids) == len(set(ids))
    cells: set[tuple[int, int]] = set()
    for panel in dashboard["panels"]:
        at = panel["gridPos"]
        assert at["x"] + at["w"] <= 24
        mine = set(itertools.product(range(at["x"], at["x"] + at["w"]), range(at["y"], at["y"] + at["h"])))
        assert not cells & mine, panel["title"]
        cells |= mine
    for panel in dashboards.panels(dashboard):
        assert panel["datasource"]["uid"] == "${datasource}"
        assert all(target["datasource"]["uid"] == "${datasource}" for target in panel["targets"])
        assert panel["fieldConfig"]["defaults"]["thresholds"]["steps"]
        assert panel["type"] == "table" or panel["fieldConfig"]["defaults"]["unit"]
    assert [v["name"] for v in dashboard["templating"]["list"]] == ["datasource", "instance"]


def test_grafana_finds_them() -> None:
    """The provisioning files name a Prometheus that is asked as often as prometheus.yml scrapes, and the
    folder that docs/monitoring.md puts the dashboards into."""
    folder = MONITORING / "grafana/provisioning"
    [source] = yaml.safe_load((folder / "datasources/prometheus.yml").read_text())["datasources"]
    scraped = yaml.safe_load((MONITORING / "prometheus.yml").read_text())["global"]["scrape_interval"]
    assert (source["type"], source["jsonData"]["timeInterval"]) == ("prometheus", scraped)
    [provider] = yaml.safe_load((folder / "dashboards/gateway.yml").read_text())["providers"]
    page = (ROOT / "docs/monitoring.md").read_text()
    assert f"install -d -m 755 {provider['options']['path']}\n" in page
    for path in dashboards.FILES:
        assert f"{path.relative_to(ROOT)} " in page


def test_every_metric_is_looked_at() -> None:
    """Each metric of the gate and of the sync stands in a dashboard or in an alert: what nobody looks at need
    not be exported."""
    asked = "".join(path.read_text() for path in (*dashboards.FILES, MONITORING / "gateway.rules.yml"))
    rows = re.findall(r"^\| `(gateway_\w+)", (ROOT / "README.md").read_text(), re.MULTILINE)
    assert len(rows) > 40
    assert not {name for name in rows if name not in asked}
