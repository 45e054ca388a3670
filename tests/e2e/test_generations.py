"""Imports beside a gate that is running."""

from __future__ import annotations

import os
import random
import time
from collections.abc import Callable

from tests.e2e.rig import Json, Site, card, ndjson, product, until, venue

LANES = ({"name": "north", "second_grant": "extend"},)


def records(cards: int, first: int = 0) -> list[Json]:
    """Cards that may come as often as they like."""
    found = [*venue(), product("open")]
    for n in range(first, first + cards):
        found += card(n, f"CARD{n:06}", "open")
    return found


def snapshots(here: Site) -> list[str]:
    return sorted(path.name for path in here.data_dir.glob("snapshot-*.mdb"))


def leftovers(here: Site) -> list[str]:
    return sorted(
        p.name for p in here.data_dir.iterdir() if p.name.startswith(".build-") or ".part" in p.name
    )


def test_import_beside_a_gate(site: Callable[..., Site]) -> None:
    """Each import is used at once; the generation before stays, older ones go."""
    here = site(LANES)
    here.start()
    assert here.scan("in", "CARD000000")["verdict"] == "unknown_credential"
    for n in (1, 2, 3, 4):
        done = here.run("import", "-", stdin=ndjson(records(10, first=n)))
        assert done.status == 0, done.err
        assert done.json[0]["generation"] == n
        assert "in use" in done.err
        assert here.call("status")["snapshot"]["generation"] == n
        assert here.scan("in", f"CARD{n + 9:06}")["verdict"] == "granted"
        assert here.scan("in", f"CARD{n - 1:06}")["verdict"] == "unknown_credential"
    until(lambda: snapshots(here) == ["snapshot-00000003.mdb", "snapshot-00000004.mdb"], "old ones go")
    assert here.metric("gateway_snapshot_generation") == 4
    assert here.metric("gateway_snapshot_credentials") == 10


def test_being_told_twice(site: Callable[..., Site]) -> None:
    """A message about the generation that is in use already changes nothing."""
    here = site(LANES)
    here.imports(records(5))
    here.imports(records(6))
    here.start()
    for _ in range(3):
        assert here.call("generation") == {"generation": 2}
        assert here.scan("in", "CARD000005")["verdict"] == "granted"


def test_grants_and_guests_survive_an_import(site: Callable[..., Site]) -> None:
    """What happened before an import counts after it: presence, a pending grant, a guest's window."""
    sensor = {"passage": {"driver": "memory", "timeout_s": 60}}
    here = site(
        (*LANES, {"name": "south", **sensor}),
        (
            {"name": "north-in", "lane": "north", "anti_passback": "hard"},
            {"name": "south-in", "lane": "south", "anti_passback": "hard"},
        ),
        ({"name": "in", "point": "north-in"}, {"name": "south", "point": "south-in"}),
    )
    feed = [*records(3), product("family", guests=1), *card(9, "FAMILY", "family")]
    here.imports(feed)
    here.start()
    assert here.scan("in", "CARD000000")["verdict"] == "granted"
    assert here.scan("in", "FAMILY")["guest"] == 0
    assert here.scan("south", "CARD000001")["verdict"] == "granted"
    assert here.run("import", "-", stdin=ndjson(feed)).status == 0
    assert here.scan("in", "CARD000000")["verdict"] == "passback"
    assert here.scan("in", "CARD000001")["verdict"] == "passback"
    assert here.scan("in", "FAMILY")["guest"] == 1
    status = here.call("status")
    assert status["areas"]["hall"] == 4
    assert [lane["pending"] for lane in status["lanes"]] == [0, 1]


def test_bad_feed_changes_nothing(site: Callable[..., Site]) -> None:
    """A feed with a bad record is refused with its line and field; with --skip-bad the rest is taken."""
    here = site(LANES)
    here.imports(records(5))
    here.start()
    feed = ndjson(records(7)) + b'{"kind":"credential","id":"X","code":7}\n'
    done = here.run("import", "-", stdin=feed)
    assert done.status == 2
    last = feed.count(b"\n")
    assert f":{last}: code:" in done.err
    assert here.call("status")["snapshot"]["generation"] == 1
    assert leftovers(here) == []
    done = here.run("import", "-", "--skip-bad", stdin=feed)
    assert done.status == 0, done.err
    assert done.json[0]["skipped_bad"] == 1
    assert here.scan("in", "CARD000006")["verdict"] == "granted"


def test_import_killed_while_it_reads(site: Callable[..., Site]) -> None:
    """An import killed in the middle of its feed leaves the old generation; another one meanwhile is
    refused; the next one cleans up."""
    here = site(LANES)
    here.imports(records(5))
    here.start()
    pipe = here.folder / "pipe"
    os.mkfifo(pipe)
    fork = here.fork("import", str(pipe))
    with pipe.open("wb") as feed:
        feed.write(ndjson(records(20_000)))
        feed.flush()  # it is more than a pipe holds: the import has read most of it
        done = here.run("import", "-", stdin=ndjson(records(6)))
        assert done.status == 2
        assert "another import" in done.err
        fork.kill()
    assert here.scan("in", "CARD000004")["verdict"] == "granted"
    assert here.scan("in", "CARD000005")["verdict"] == "unknown_credential"
    done = here.run("import", "-", stdin=ndjson(records(6)))
    assert done.status == 0, done.err
    assert leftovers(here) == []
    assert here.scan("in", "CARD000005")["verdict"] == "granted"


def test_import_killed_at_any_moment(site: Callable[..., Site]) -> None:
    """Killed at random moments of its work: afterwards the old generation serves or the new one does, whole,
    for the gate that runs and for one that starts; and a later import cleans up."""
    rng = random.Random(7)
    here = site(LANES)
    here.imports(records(10))
    here.start()
    feed = ndjson(records(6000))
    began = time.monotonic()
    assert here.run("import", "-", stdin=feed).status == 0
    took = time.monotonic() - began
    assert here.run("import", "-", stdin=ndjson(records(10))).status == 0
    for _ in range(10):
        fork = here.fork("import", "-", stdin=feed)
        fork.ends(rng.uniform(0, took))
        fork.kill()
        assert here.scan("in", "CARD000009")["verdict"] == "granted"
        newest = here.call("generation")["generation"]
        new = here.call("status")["snapshot"]["counts"]["credentials"] == 6000
        assert here.scan("in", "CARD005999")["verdict"] == ("granted" if new else "unknown_credential")
        here.stop()
        here.start()
        assert here.call("status")["snapshot"]["generation"] == newest
        assert leftovers(here) == [], "the start of a gate cleans up as well"
        if new:
            assert here.run("import", "-", stdin=ndjson(records(10))).status == 0
