"""Look-ups under any interleaving of recording, settling and committing, against a plain list."""

from __future__ import annotations

import asyncio
import itertools
import sqlite3
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from gateway.model import AccessEvent, EventKind, Movement, Passage
from tests.cache.ledger_rig import Rig

_NAMES = itertools.count()

who = st.sampled_from(["a", "b", "c", None])
when = st.integers(0, 30)
record = st.tuples(st.just("record"), who, who, when, st.sampled_from([Passage.PENDING, Passage.ASSUMED]))
settle = st.tuples(st.just("settle"), st.integers(0, 20), st.sampled_from([Passage.TAKEN, Passage.NOT_TAKEN]))
settle_row = st.tuples(st.just("settle row"), st.integers(0, 20), st.sampled_from([Passage.TAKEN]))
other = st.sampled_from([("hold",), ("release",), ("commit",), ("breathe",), ("watch",)])
steps = st.lists(st.one_of(record, record, settle, settle, settle_row, other), max_size=25)


@pytest.fixture(scope="module")
def runner() -> Iterator[asyncio.Runner]:
    with asyncio.Runner() as runner:
        yield runner


@pytest.fixture(scope="module")
def rig(runner: asyncio.Runner, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Rig]:
    async def begin(folder: Path) -> Rig:
        return Rig(folder)

    rig = runner.run(begin(tmp_path_factory.mktemp("ledger")))
    yield rig

    async def end() -> None:
        rig.ledger.close()

    runner.run(end())


@settings(max_examples=120, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(steps=steps)
def test_look_ups_equal_a_plain_list(
    runner: asyncio.Runner, rig: Rig, steps: list[tuple[object, ...]]
) -> None:
    """After each step person and entitlement say what a list of all movements says, in the order of time."""
    runner.run(_walk(rig, steps, f"{next(_NAMES)}-"))


async def _walk(rig: Rig, steps: list[tuple[object, ...]], prefix: str) -> None:
    ledger = rig.ledger
    model: list[Movement] = []
    grants: list[AccessEvent] = []
    holder = sqlite3.connect(rig.folder / "ledger.db", isolation_level=None)

    def plain(key: str, name: str, since: int) -> list[Movement]:
        found = [m for m in model if getattr(m, key) == name and m.at >= since]
        return sorted(found, key=lambda m: (m.at, model.index(m)))

    try:
        for step in steps:
            match step:
                case "record", person, entitlement, int(at), Passage() as passage:
                    movement = Movement(
                        at,
                        "outside",
                        "hall",
                        person and prefix + str(person),
                        point=f"p{len(model)}",
                        entitlement=entitlement and prefix + str(entitlement),
                        passage=passage,
                    )
                    event = AccessEvent(EventKind.SCAN, at, passage=passage, movement=movement)
                    model.append(movement)
                    grants.append(event)
                    ledger.record(event)
                case "settle", int(place), Passage() as passage if grants:
                    event = grants[place % len(grants)]
                    assert event.movement is not None
                    event.movement.passage = passage
                    ledger.record(AccessEvent(EventKind.PASSAGE, 1, of=event, movement=event.movement))
                case "settle row", int(place), Passage() as passage if grants:
                    event = grants[place % len(grants)]
                    if event.seq is not None and (again := ledger.movement(event.seq)) is not None:
                        again.passage = event.movement.passage = passage  # type: ignore[union-attr]
                        ledger.record(
                            AccessEvent(EventKind.ANNUL, 1, of_seq=event.seq, movement=again, passage=passage)
                        )
                case ("hold",) if not holder.in_transaction:
                    holder.execute("BEGIN IMMEDIATE")
                case ("release",) if holder.in_transaction:
                    holder.execute("COMMIT")
                case ("commit",) if not holder.in_transaction:
                    await rig.on_disk()
                case ("breathe",):
                    await asyncio.sleep(0.001)
                case ("watch",):
                    ledger.watch(10)
            for name in "abc":
                for since in (0, 7, 31):
                    assert list(ledger.person(prefix + name, since)) == plain("person", prefix + name, since)
                    assert list(ledger.entitlement(prefix + name, since)) == plain(
                        "entitlement", prefix + name, since
                    )
    finally:
        if holder.in_transaction:
            holder.execute("COMMIT")
        holder.close()
        await rig.on_disk()
    everything = [m for m in ledger.movements_since(0) if m.seq in {m.seq for m in model}]
    assert everything == sorted(model, key=lambda m: (m.at, m.seq or 0))
