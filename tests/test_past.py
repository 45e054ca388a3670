"""What happened here and elsewhere, as the judgement asks for it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import orjson

from gateway.cache.build import build
from gateway.cache.snapshot import Snapshot
from gateway.model import AccessEvent, EventKind, Movement
from gateway.past import Past
from gateway.replay import ListLedger

USAGE: dict[str, Any] = {
    **{"kind": "usage", "gateway": "south", "epoch": 3, "seq": 9, "at": "2026-11-21T10:00:00Z"},
    **{"from": "outside", "to": "hall", "holder": "H2", "entitlement": "E2", "passage": "taken"},
}


def test_nobody_is_quiet_who_moved_here_or_may_have_moved_elsewhere(tmp_path: Path) -> None:
    """Quiet is who has no movement in the ledger, and nobody is once there is usage in the snapshot."""
    build(tmp_path, [orjson.dumps({"kind": "venue"})], source="test", pace=0)
    snapshot = Snapshot.open(tmp_path)
    assert snapshot is not None
    ledger = ListLedger()
    past = Past(ledger, "north", None)
    past.snapshot = snapshot
    try:
        assert past.quiet("H1", "E1", 0)
        ledger.record(
            AccessEvent(EventKind.SCAN, 5, movement=Movement(5, "outside", "hall", "H1", entitlement="E1"))
        )
        assert not past.quiet("H1", "E9", 0)
        assert not past.quiet("H9", "E1", 0)
        assert past.quiet("H2", "E2", 0)
        snapshot.apply([USAGE])
        assert not past.quiet("H2", "E2", 0)
        assert [m.source for m in past.person("H2", 0)] == ["south/3/9"]
    finally:
        snapshot.close()
