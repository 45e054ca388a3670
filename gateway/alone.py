"""``gateway check`` where no gate runs: the stores are read by this process, and nothing changes in them."""

from __future__ import annotations

import heapq
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from typing import Any

from gateway.cache.ledger_read import LedgerFile
from gateway.cache.ledger_store import FILE
from gateway.cache.snapshot import Snapshot
from gateway.calls import check
from gateway.clock import TrustedClock
from gateway.config import Config
from gateway.gate import Gate
from gateway.host import clock_synchronised, lock_data_dir, monotonic, wall
from gateway.metrics import Metrics
from gateway.model import NO_MOVEMENTS, AccessEvent, LaneMode, Movement
from gateway.replay import no_relay, world_of


class Shelf:
    """The ledger's file where there is one, and nothing where not. Nothing is recorded."""

    def __init__(self, file: LedgerFile | None) -> None:
        self._file = file

    def record(self, event: AccessEvent, then: Callable[[bool], None] | None = None) -> None:
        raise AssertionError("a check records nothing")

    def person(self, person: str, since: int) -> Sequence[Movement]:
        return NO_MOVEMENTS if self._file is None else self._file.person(person, since)

    def entitlement(self, entitlement: str, since: int) -> Sequence[Movement]:
        return NO_MOVEMENTS if self._file is None else self._file.entitlement(entitlement, since)

    def quiet(self, person: str, entitlement: str, since: int) -> bool:
        return self._file is None


def check_alone(config: Config, arguments: dict[str, Any]) -> dict[str, Any]:
    """The answer of ``calls.check`` for a code, a point and perhaps a time.

    Raises:
        DataDirError: the data_dir cannot be used, or a gate runs after all.
        CodeKeyError, sqlite3.Error: the stores cannot be read.
    """
    data_dir = config.gateway.data_dir
    with ExitStack() as stack:
        stack.callback(os.close, lock_data_dir(data_dir))
        snapshot = Snapshot.open(data_dir)
        if snapshot is not None:
            stack.callback(snapshot.close)
        file = LedgerFile(data_dir / FILE) if (data_dir / FILE).exists() else None
        if file is not None:
            stack.callback(file.close)
        world = world_of(snapshot, config)
        floors = [
            file.trusted_time() if file is not None else None,
            snapshot.published if snapshot is not None else None,
        ]
        clock = TrustedClock(max((f for f in floors if f is not None), default=None), monotonic())
        holds = file.holds if file is not None else None
        gate = Gate(config, world, Shelf(file), clock, Metrics(), relay=no_relay, holds=holds)
        gate.use(snapshot, world)

        def movements(now: int) -> Iterator[Movement]:
            since = world.presence_since(now)
            here = file.movements_since(since) if file is not None else iter(())
            usage = snapshot.movements_since(since) if snapshot is not None else iter(())
            elsewhere = (m for m in usage if not gate.past.is_own(m))
            return heapq.merge(here, elsewhere, key=lambda m: m.at)

        now = clock.read(wall(), monotonic(), synchronised=clock_synchronised())
        gate.rebuild(movements(now), now, file.cleared() if file is not None else None)
        for lane, mode in (file.lane_modes() if file is not None else {}).items():
            if lane in gate.lanes:
                gate.lanes[lane].lane.set_mode(LaneMode(mode), monotonic())
        return check(gate, movements, arguments)
