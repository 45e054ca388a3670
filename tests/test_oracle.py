"""The oracle against hand-written worlds, and against a walk through every minute."""

from __future__ import annotations

from collections import Counter
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import HealthCheck, given, settings

from tests import oracle
from tests.cases import CASES, PLAIN, Case, Json, run_case, scan, world
from tests.feeds import World, worlds
from tests.oracle import Oracle

DENIALS = {
    "malformed",
    "unknown_credential",
    "revoked",
    "suspended",
    "not_yet_valid",
    "expired",
    "no_right",
    "not_at_this_time",
    "too_soon",
    "limit_reached",
    "passback",
    "area_full",
}


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_case(case: Case) -> None:
    """Each hand-written world gives the verdicts that the sentence it is named after promises."""
    run_case(case, oracle.replay)


def test_case_names() -> None:
    """There are as many cases as were asked for, and no two share a name."""
    names = [case.name for case in CASES]
    assert len(names) == len(set(names)) >= 60


def test_stale_snapshot() -> None:
    """Older than max_snapshot_age_h with on_stale deny refuses entries, in step 4, and no exits."""
    config: Json = {**PLAIN, "gateway": {**PLAIN["gateway"], "max_snapshot_age_h": 2, "on_stale": "deny"}}
    lines = [scan("10:00"), scan("10:00:02"), scan("10:00:04", "x"), scan("10:00:06", point="out")]
    published = datetime(2026, 11, 24, 8, 0, 1, tzinfo=UTC)
    got = Oracle(world({"areas": ["hall"]}), config, published).run(lines)
    assert [line["verdict"] for line in got] == ["granted", "snapshot_stale", "unknown_credential", "granted"]
    assert got[1]["holder"] == "H1"
    assert got[1]["entitlement"] is None


@settings(max_examples=25, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(worlds())
def test_detail_is_the_first_instant(made: World) -> None:
    """The instant found from a few candidates is the first of every minute for four days that passes."""
    judge = Oracle(made.records, made.config)
    judge.run(made.lines)
    for point in judge.points.values():
        if judge.is_exit(point["from"], point["to"]):
            continue
        for entitlement in list(judge.entitlements.values())[:2]:
            for rule in judge.rules_of(entitlement)[:2]:
                entries = judge.entries(entitlement, rule, judge.now)
                found = judge.soonest(entitlement, rule, point, False)
                step = judge.now.replace(second=0, microsecond=0)
                for _ in range(200):
                    step += timedelta(minutes=29)
                    passes = judge.fails_at(entitlement, rule, point, step, entries, False, "h") is None
                    if found is None or (judge.now < step < found):
                        assert not passes or step <= judge.now
                if found is not None:
                    assert judge.fails_at(entitlement, rule, point, found, entries, False, "h") is None


@settings(max_examples=1, deadline=None, derandomize=True)
@given(worlds())
def test_worlds_replay(made: World) -> None:
    """A world is a triple that replays: one line for each scan, in order."""
    scans = [line for line in made.lines if "code" in line]
    got = oracle.replay(made.records, made.config, made.lines)
    assert [(line["at"], line["point"]) for line in got] == [(line["at"], line["point"]) for line in scans]


def test_every_verdict_occurs() -> None:
    """Generated worlds bring every verdict that a replay can give, guests, repeats and all flags."""
    seen: Counter[str] = Counter()

    @settings(
        max_examples=150,
        deadline=None,
        derandomize=True,
        database=None,
        suppress_health_check=list(HealthCheck),
    )
    @given(worlds())
    def collect(made: World) -> None:
        for line in oracle.replay(made.records, made.config, made.lines):
            seen[line["verdict"]] += 1
            seen["guest"] += line["guest"] > 0
            seen.update(line["flags"])

    collect()
    wanted = {"granted", "repeat", "guest", "clock_suspect", "grace", "passback", "attention", *DENIALS}
    assert {key for key in seen if seen[key]} >= wanted
