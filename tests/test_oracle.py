"""The oracle against hand-written worlds, and against a walk through every minute."""

from __future__ import annotations

from collections import Counter
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import HealthCheck, given, settings

from tests import oracle
from tests.cases import CASES, PLAIN, Case, Json, run_case, scan, world
from tests.feeds import World, smallest, world_of, worlds
from tests.oracle import Move, Oracle

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


@pytest.mark.parametrize("seed", range(40))
def test_detail_is_the_first_instant(seed: int) -> None:
    """No instant of a walk in odd steps through four days passes before the one found from candidates."""
    made = world_of(seed)
    judge = Oracle(made.records, made.config)
    judge.run(made.lines)
    point = judge.points["in"]
    for entitlement in list(judge.entitlements.values())[:2]:
        for rule in judge.rules_of(entitlement)[:2]:
            entries = judge.entries(entitlement, rule, judge.now)

            def passes(
                t: datetime, e: Json = entitlement, r: Json = rule, moves: list[Move] = entries
            ) -> bool:
                return judge.fails_at(e, r, point, t, moves, False, "h") is None

            if passes(judge.now):
                continue
            found = judge.soonest(entitlement, rule, point, False)
            assert found is None or passes(found)
            walk = [judge.now + timedelta(minutes=29 * n) for n in range(1, 200)]
            if found is not None:
                walk = [found - timedelta(seconds=1), *(t for t in walk if t < found)]
            assert not any(passes(t) for t in walk if t > judge.now)


@pytest.mark.parametrize("seed", range(100))
def test_worlds_replay(seed: int) -> None:
    """A world is a triple that replays: one line for each scan, in order, with its `at` as it was."""
    made = world_of(seed)
    scans = [line for line in made.lines if "code" in line]
    got = oracle.replay(made.records, made.config, made.lines)
    assert [(line["at"], line["point"]) for line in got] == [(line["at"], line["point"]) for line in scans]


@settings(max_examples=30, deadline=None, suppress_health_check=list(HealthCheck))
@given(worlds())
def test_replay_is_a_function(made: World) -> None:
    """The same lines give the same verdicts, also to an oracle that has run before."""
    judge = Oracle(made.records, made.config)
    assert judge.run(made.lines) == judge.run(made.lines)


def test_every_verdict_occurs() -> None:
    """Generated worlds bring every verdict that a replay can give, guests, repeats and all flags."""
    seen: Counter[str] = Counter()
    for seed in range(120):
        made = world_of(seed)
        for line in oracle.replay(made.records, made.config, made.lines):
            seen[line["verdict"]] += 1
            seen["guest"] += line["guest"] > 0
            seen.update(line["flags"])
    wanted = {"granted", "repeat", "guest", "clock_suspect", "grace", "passback", "attention", *DENIALS}
    assert {key for key in seen if seen[key]} >= wanted


def test_smallest() -> None:
    """A world that fails is made small, and what is left still fails."""

    def fails(made: World) -> bool:
        return any(line["verdict"] == "passback" for line in oracle.replay(*made))

    made = next(w for w in map(world_of, range(200)) if fails(w))
    small = smallest(made, fails)
    assert fails(small)
    assert len(small.lines) <= 3
    assert len(small.records) < len(made.records)
