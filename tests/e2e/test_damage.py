"""Gates that start on a broken ledger or a cut snapshot."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from gateway.cache.generations import used_bytes
from tests.e2e.rig import Json, Site, card, ndjson, product, venue

LANES = ({"name": "north", "second_grant": "extend"},)
CARDS = 60


def records(*prefixes: str) -> list[Json]:
    """Single-use tickets, sixty of each prefix."""
    found = [*venue(), product("single", limits=[{"max": 1, "per": "term"}])]
    for prefix in prefixes:
        for n in range(CARDS):
            found += card(f"{prefix}{n}", f"{prefix}-{n:04}", "single")
    return found


@pytest.fixture
def worn(site: Callable[..., Site]) -> Site:
    """A site with some events in its ledger, and its data_dir kept in two forms: ``stopped`` by SIGTERM and
    ``killed``, with a write-ahead log."""
    here = site(LANES)
    here.imports(records("A"))
    here.start()
    for n in range(30):
        assert here.scan("in", f"A-{n:04}")["verdict"] == "granted"
    here.written()
    here.kill()
    shutil.copytree(here.data_dir, here.folder / "killed")
    here.start()
    here.stop()
    shutil.copytree(here.data_dir, here.folder / "stopped")
    return here


def again(here: Site, kind: str) -> Path:
    """Put the data_dir back as it was kept; its ledger."""
    shutil.rmtree(here.data_dir)
    shutil.copytree(here.folder / kind, here.data_dir)
    return here.data_dir / "ledger.db"


def check_admits(here: Site, code: str) -> Json:
    """Start, let a new ticket in; what the status says of the ledger."""
    pulses = here.boards["north"].pulses()
    here.start()
    assert here.scan("in", code)["verdict"] == "granted"
    here.pulses(pulses + 1)
    here.written()
    ledger: Json = here.call("status")["ledger"]
    assert here.metric("gateway_ledger_up") == 1
    return ledger


def check_set_aside(here: Site, before: int) -> None:
    """The gate admits with a new epoch and the broken file beside; a second start finds nothing to mend."""
    ledger = check_admits(here, "A-0030")
    assert ledger["epoch"] != before
    (broken,) = here.data_dir.glob("ledger-broken-*.db")
    assert ledger["set_aside"] == str(broken)
    here.stop()
    second = check_admits(here, "A-0031")
    assert second["epoch"] == ledger["epoch"]
    assert second["set_aside"] is None
    assert here.scan("in", "A-0030")["verdict"] == "limit_reached"
    here.stop()
    assert len(list(here.data_dir.glob("ledger-broken-*.db"))) == 1
    seqs = [event["seq"] for event in here.events()]
    assert seqs == sorted(set(seqs))


def epoch(here: Site) -> int:
    """The epoch of the events so far."""
    (found,) = {event["epoch"] for event in here.events()}
    return int(found)


@pytest.mark.parametrize("kind", ["stopped", "killed"])
def test_cut_ledger(worn: Site, kind: str) -> None:
    """A ledger cut at any of several lengths is set aside, a new epoch begins, the gate admits."""
    before = epoch(worn)
    size = again(worn, kind).stat().st_size
    for length in (1, 100, 4096, size // 2, size - 1):
        os.truncate(again(worn, kind), length)
        check_set_aside(worn, before)


def test_cut_write_ahead_log(worn: Site) -> None:
    """A log cut at any of several lengths, as by a power cut: the gate admits, no number is given twice."""
    log = again(worn, "killed").with_name("ledger.db-wal")
    size = log.stat().st_size
    assert size > 32 + 4120
    for length in (0, 1, 31, 32, 33, 32 + 24, size // 3, size // 2, size - 4120, size - 1):
        log = again(worn, "killed").with_name("ledger.db-wal")
        os.truncate(log, length)
        check_admits(worn, "A-0030")
        seqs = [event["seq"] for event in worn.call("events")["events"]]
        assert seqs == list(range(1, len(seqs) + 1))
        worn.kill()


@pytest.mark.parametrize("kind", ["stopped", "killed"])
def test_flipped_byte(worn: Site, kind: str) -> None:
    """A flipped byte anywhere in the ledger or its log: the gate starts and admits, and where it takes the
    file for broken it sets it aside and begins a new epoch."""
    before = epoch(worn)
    for name in ("ledger.db", "ledger.db-wal"):
        again(worn, kind)
        path = worn.data_dir / name
        if not path.exists():
            continue
        size = path.stat().st_size
        for at in (0, 17, 28, 60, *range(104, size, max(1, size // 7))):
            again(worn, kind)
            data = bytearray(path.read_bytes())
            data[at] ^= 0x55
            path.write_bytes(data)
            ledger = check_admits(worn, "A-0030")
            aside = list(worn.data_dir.glob("ledger-broken-*.db"))
            assert (ledger["epoch"] != before) == bool(aside), f"{name} at {at}"
            if name == "ledger.db" and at < 100:
                # Its head is also in the log of a gate that was killed, and is taken from there.
                assert aside or kind == "killed", f"{name} at {at}"
            worn.stop()
            seqs = [event["seq"] for event in worn.events()]
            assert seqs == sorted(set(seqs))


def test_cut_snapshot(site: Callable[..., Site]) -> None:
    """A snapshot cut at any of several lengths: no SIGBUS, the generation before serves, and it is told."""
    here = site(LANES)
    here.imports(records("A"))
    here.imports(records("A", "B"))
    newest = here.data_dir / "snapshot-00000002.mdb"
    whole = newest.read_bytes()
    used, _ = used_bytes(newest)
    for n, length in enumerate((0, 1, 100, 4095, 4096, 8192, 12288, used // 2, used - 4096, used - 1)):
        newest.write_bytes(whole[:length])
        here.start()
        assert here.scan("in", f"A-{n:04}")["verdict"] == "granted"
        assert here.scan("in", "B-0000")["verdict"] == "unknown_credential"
        status = here.call("status")["snapshot"]
        assert status["generation"] == 1
        assert len(status["set_aside"]) == 1
        assert here.gate is not None
        assert any(line["event"].startswith("a generation cannot be used") for line in here.gate.log())
        here.stop()
    newest.write_bytes(whole)
    here.start()
    for n in range(CARDS):
        assert here.scan("in", f"B-{n:04}")["verdict"] == "granted"


def test_every_snapshot_cut(site: Callable[..., Site]) -> None:
    """With no whole generation left the gate starts, refuses entry and opens the exit; an import mends it."""
    here = site(LANES)
    here.imports(records("A"))
    os.truncate(here.data_dir / "snapshot-00000001.mdb", 5000)
    here.start()
    assert here.scan("in", "A-0000")["verdict"] == "unknown_credential"
    assert here.scan("out", "A-0000")["verdict"] == "granted"
    done = here.run("import", "-", stdin=ndjson(records("A")))
    assert done.status == 0, done.err
    assert here.scan("in", "A-0000")["verdict"] == "granted"
