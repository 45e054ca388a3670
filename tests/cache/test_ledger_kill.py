"""kill -9 in the middle of full load: what was answered is on disk, once, and movements agree with events."""

from __future__ import annotations

import asyncio
import os
import random
import signal
import time
from pathlib import Path

from gateway.model import Passage
from tests.cache.ledger_rig import Rig, grant, outcome, rows

ROUNDS = 20
SENSED = {"north"}


def _gate(folder: Path, pulses: int, first: int) -> None:
    """The process that is killed: sixteen visitors at a time; a byte string into the pipe for each pulse."""

    async def main() -> None:
        rig = Rig(folder)
        rig.ledger.close_open_grants(SENSED, first)
        number = first

        def begin() -> None:
            nonlocal number
            number += 1
            event = grant(number, passage=Passage.PENDING)
            name = number

            def opened(ok: bool) -> None:
                os.write(pulses, b"%d\n" % name)
                rig.ledger.record(
                    outcome(event, Passage.TAKEN if name % 3 else Passage.NOT_TAKEN), lambda ok: begin()
                )

            rig.ledger.record(event, opened)

        for _ in range(16):
            begin()
        await asyncio.Event().wait()

    asyncio.run(main())


def _round(folder: Path, first: int, life: float) -> list[int]:
    """Runs a gate for so many seconds after its first pulse, kills it, and gives the numbers it pulsed."""
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            os.close(reading)
            _gate(folder, writing, first)
        finally:
            os._exit(1)
    os.close(writing)
    with os.fdopen(reading, "rb") as pulses:
        told = pulses.readline()
        time.sleep(life)
        os.kill(child, signal.SIGKILL)
        told += pulses.read()
    assert os.waitpid(child, 0)[1] == signal.SIGKILL
    return [int(line) for line in told.splitlines()]


def test_kill_9_under_load_loses_nothing_that_was_answered(tmp_path: Path) -> None:
    """Each pulse has its event, numbers have no gap, no event is there twice, movements are as events say."""
    chosen = random.Random(1)
    pulsed: list[int] = []
    for number in range(ROUNDS):
        told = _round(tmp_path, (number + 1) * 1_000_000, chosen.uniform(0, 0.04))
        assert told
        pulsed += told

    async def restart() -> None:
        with Rig(tmp_path) as rig:
            rig.ledger.close_open_grants(SENSED, 10**9)
            assert rig.ledger.set_aside is None

    asyncio.run(restart())
    events = rows(tmp_path, "SELECT seq, kind, credential, passage, of_seq FROM event ORDER BY seq")
    assert [event[0] for event in events] == list(range(1, len(events) + 1))
    granted = {credential: seq for seq, kind, credential, _, _ in events if kind == "scan"}
    assert len(granted) == sum(event[1] == "scan" for event in events)
    assert {f"C{number}" for number in pulsed} <= set(granted)
    outcomes = {of: passage for _, kind, _, passage, of in events if kind == "passage"}
    assert len(outcomes) == sum(event[1] == "passage" for event in events)
    assert set(outcomes) == set(granted.values())
    movements = rows(tmp_path, "SELECT seq, passage, person, credential FROM movement")
    assert {(seq, passage) for seq, passage, _, _ in movements} == set(outcomes.items())
    assert all(granted[credential] == seq for seq, _, _, credential in movements)
    by_start = rows(tmp_path, "SELECT count(*) FROM event WHERE \"by\" = 'start'")[0][0]
    assert by_start > 0
    assert rows(tmp_path, "PRAGMA integrity_check") == [("ok",)]
