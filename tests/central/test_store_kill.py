"""The central killed at any moment: what it said was kept is kept, and the log has no hole and no half."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from gateway.central.store import Store
from tests.central.storerig import exported, told

ROOT = Path(__file__).parents[2]
CHILD = """
import sys
from pathlib import Path
from gateway.central.store import Store
from tests.central.storerig import credential, enrol, entry, holder
store = Store.open(Path(sys.argv[1]))
if not store.gateways():
    enrol(store)
first = max(store.have("north").values(), default=0)
for n in range(first, first + 100_000, 5):
    batch = [entry(n + 1 + k, holder=f"H{n + k}", credential=f"C{n + k}") for k in range(5)]
    done = store.take("north", batch)
    put = store.put("main", [holder(f"H{n}"), credential(f"C{n}", f"X{n % 50}")], "test")
    if n % 2:
        store.delete("main", "holder", f"H{n}", "test")
    print(done.acknowledged[-1][2], put.position, flush=True)
"""


@pytest.mark.timeout(120)
def test_killed(open_store: Callable[..., Store], own_file: None) -> None:
    """Killed twice in the middle of its work: all that was acknowledged is there, events have no gap,
    and who reads the log from its beginning has what the export has."""
    directory = open_store().directory
    for answers in (3, 17):
        with subprocess.Popen(
            [sys.executable, "-c", CHILD, str(directory)], stdout=subprocess.PIPE, text=True, cwd=ROOT
        ) as child:
            assert child.stdout is not None
            for _ in range(answers):
                last, position = map(int, child.stdout.readline().split())
            child.kill()
        store = open_store()
        seqs = [json.loads(event.body)["seq"] for event in store.events(limit=100_000)]
        assert seqs == list(range(1, len(seqs) + 1))
        assert len(seqs) >= last
        assert store.have("north") == {7: len(seqs)}
        assert store.log("main")[1] >= position
        with store.db.read() as conn:
            assert conn.exec_driver_sql("PRAGMA integrity_check").scalar() == "ok"
        reader = {
            (r["kind"], r.get("id", r.get("seq"))): {n: v for n, v in r.items() if n != "name"}
            for r in told(store)
            if not r.get("deleted")
        }
        export = [{n: v for n, v in r.items() if n != "name"} for r in exported(store)]
        assert reader == {(r["kind"], r.get("id", r.get("seq"))): r for r in export}
        assert sum(kind == "usage" for kind, _ in reader) == len(seqs)
        store.close()
