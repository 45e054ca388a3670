"""The judgement as ``gateway replay`` gives it, against hand-written cases and a plain second reading."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.cache.build import build
from gateway.cache.snapshot import Snapshot
from gateway.configload import loads
from gateway.replay import run
from tests import oracle
from tests.cases import CASES, Case, run_case
from tests.feeds import World, smallest, world_of

Json = dict[str, Any]


def toml(config: Json) -> str:
    """A configuration of plain values as TOML (JSON's strings, numbers and lists are TOML's)."""
    out = []
    config = {"gateway": {"id": "g", "data_dir": "/nonexistent"}, **config}
    config["gateway"] = {"id": "g", "data_dir": "/nonexistent", **config["gateway"]}
    for name, value in config.items():
        for table in value if isinstance(value, list) else [value]:
            out.append(f"[[{name}]]" if isinstance(value, list) else f"[{name}]")
            out += [f"{k} = {inline(v)}" for k, v in table.items()]
    return "\n".join(out)


def inline(value: Any) -> str:
    if isinstance(value, dict):
        return "{" + ", ".join(f"{k} = {inline(v)}" for k, v in value.items()) + "}"
    return json.dumps(value)


def replay(records: list[Json], config: Json, lines: list[Json]) -> list[Json]:
    """What the real thing answers, from the bytes of the files on."""
    with tempfile.TemporaryDirectory() as folder:
        build(Path(folder), [orjson.dumps(r) for r in records], source="feed", pace=0)
        snapshot = Snapshot.open(Path(folder))
        assert snapshot is not None
        try:
            scans = [orjson.dumps(line) for line in lines]
            return list(run(loads(toml(config), "test", replay=True), snapshot, scans, "scans"))
        finally:
            snapshot.close()


@pytest.mark.parametrize("case", [c for c in CASES if not c.beyond_replay], ids=lambda c: c.name)
def test_the_design_s_sentences(case: Case) -> None:
    """Each sentence of DESIGN.md section 4 holds in its hand-written world."""
    run_case(case, replay)


@settings(max_examples=3 * settings().max_examples)
@given(st.integers(0, 2**48))
def test_as_the_plain_evaluator_says(seed: int) -> None:
    """The compiled rules give the answers of a plain, slow evaluator that was written without them."""
    assert not differs(world_of(seed)), explained(seed)


def differs(world: World) -> bool:
    return without_message(replay(*world)) != without_message(oracle.replay(*world))


def without_message(lines: list[Json]) -> list[Json]:
    return [{**line, "message": None} for line in lines]


def explained(seed: int) -> str:
    """The smallest world that still differs, for whoever has to mend it."""
    world = smallest(world_of(seed), differs)
    pairs = zip(replay(*world), oracle.replay(*world), strict=True)
    return "\n".join(
        [f"seed {seed}", *map(str, world.records), str(world.config), *map(str, world.lines)]
        + [f"got {got}\nnot {wanted}" for got, wanted in without_pairs(pairs)]
    )


def without_pairs(pairs: Iterable[tuple[Json, Json]]) -> list[tuple[Json, Json]]:
    return [(g, w) for g, w in pairs if {**g, "message": None} != {**w, "message": None}]
