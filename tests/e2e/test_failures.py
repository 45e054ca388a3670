"""Disks that are full or read-only, ledgers that cannot be opened, devices that go away and come back."""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.e2e.rig import Json, Site, Zygote, card, ndjson, product, until, venue

TICKETS = 60


def records() -> list[Json]:
    """Single-use tickets."""
    found = [*venue(), product("single", limits=[{"max": 1, "per": "term"}])]
    for n in range(TICKETS):
        found += card(n, f"TICKET{n:04}", "single")
    return found


NORTH = ({"name": "north", "second_grant": "extend"},)
TWO = (
    ({"name": "north", "second_grant": "extend"}, {"name": "south", "second_grant": "extend"}),
    ({"name": "north-in", "lane": "north"}, {"name": "south-in", "lane": "south"}),
    ({"name": "in", "point": "north-in"}, {"name": "south", "point": "south-in"}),
)


class Disk:
    """A small file system of its own, seen by a process that gates are forked from, and here through it."""

    def __init__(self, folder: Path, size: str) -> None:
        folder.mkdir()
        wraps = (["unshare", "-m"], ["unshare", "-Urm"])
        for wrap in wraps if os.geteuid() == 0 else wraps[1:]:
            self.zygote = Zygote(*wrap)
            with contextlib.suppress(AssertionError, BrokenPipeError):
                options = f"size={size},mode=700"
                done = self.zygote.ask(
                    "run", command=["mount", "-t", "tmpfs", "-o", options, "none", str(folder)]
                )
                assert done[0] == 0, done
                break
            self.zygote.close()
        else:
            pytest.fail(
                "no small file system can be mounted: run the tests as root, or allow user namespaces"
            )
        self.folder = folder
        self.seen = Path(f"/proc/{self.zygote.pid}/root{folder}")

    def fill(self) -> None:
        """Leave no room at all."""
        fd = os.open(self.seen / "filler", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        try:
            with contextlib.suppress(OSError):  # no space left
                while True:
                    os.write(fd, bytes(1024))
        finally:
            os.close(fd)

    def free(self) -> None:
        (self.seen / "filler").unlink()

    def remount(self, how: str) -> None:
        done = self.zygote.ask("run", command=["mount", "-o", f"remount,bind,{how}", str(self.folder)])
        assert done[0] == 0, done


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Disk]:
    """A disk of 4 MiB; gone with the process that mounted it."""
    made = Disk(tmp_path / "disk", "4m")
    yield made
    made.zygote.close()


def on_disk(make: Callable[..., Site], disk: Disk, **gateway: object) -> Site:
    """A site with its data_dir on the small disk, and the tickets imported."""
    here = make(NORTH, data_dir=disk.folder, zygote=disk.zygote, **gateway)
    done = here.run("import", "-", stdin=ndjson(records()))
    assert done.status == 0, done.err
    return here


def scan_until_fault(here: Site, first: int) -> int:
    """Scan tickets until the ledger is known to fail for good; the number of the next ticket.

    The first ones may still find room in what the files have already.
    """
    for n in range(first, TICKETS):
        known = here.metric("gateway_ledger_up") == 0
        told = here.scan("in", f"TICKET{n:04}")
        denied = (told["verdict"], told["detail"]) == ("lane_closed", "ledger")
        assert told["verdict"] == "granted" or (denied and known)
        until(lambda: here.metric("gateway_ledger_up") == 0 or written(here))
        if n >= first + 3 and here.metric("gateway_ledger_up") == 0:
            return n + 1
    raise AssertionError("the disk is not full")


def written(here: Site) -> bool:
    return bool(here.call("status")["ledger"]["pending"] == 0)


def said(here: Site, event: str) -> list[Json]:
    """The log lines that say this."""
    assert here.gate is not None
    return [line for line in here.gate.log() if line["event"] == event]


def faults(here: Site) -> int:
    """Faults of the ledger that were told and not taken back. With what little room its own files still have
    it may recover for a moment, which is told as well."""
    return len(said(here, "ledger cannot be written")) - len(said(here, "ledger can be written again"))


def recovered(here: Site) -> None:
    """Wait until the ledger is whole again, by itself."""
    until(lambda: here.metric("gateway_ledger_up") == 1 and written(here), "the ledger recovers")


def test_full_disk_admit(disk: Disk, site: Callable[..., Site]) -> None:
    """Full disk, admit: lanes open, one metric and one line say so, what is in memory counts; with room
    again everything is written in order, nothing is lost."""
    here = on_disk(site, disk)
    here.start()
    assert here.scan("in", "TICKET0000")["verdict"] == "granted"
    here.written()
    disk.fill()
    failed = scan_until_fault(here, 1)
    for n in range(failed, failed + 15):
        assert here.scan("in", f"TICKET{n:04}")["verdict"] == "granted"
        here.pulses(n + 1)
    assert here.scan("in", f"TICKET{failed:04}")["verdict"] == "limit_reached"
    assert here.scan("in", "TICKET0000")["verdict"] == "limit_reached"
    until(lambda: faults(here) == 1, "a fault that lasts, told once")
    assert here.metric("gateway_ledger_pending_events") > 0
    disk.free()
    recovered(here)
    until(lambda: faults(here) == 0)
    here.stop()
    events = here.events()
    assert [e["seq"] for e in events] == list(range(1, len(events) + 1))
    expected = [f"C{n}" for n in range(failed + 15)] + [f"C{failed}", "C0"]
    assert [e["credential"] for e in events if e["kind"] == "scan"] == expected
    here.start()
    assert here.scan("in", f"TICKET{failed:04}")["verdict"] == "limit_reached"
    here.pulses(failed + 15)


def test_full_disk_deny(disk: Disk, site: Callable[..., Site]) -> None:
    """Full disk, deny: no pulse, and nothing is used up; with room again the same ticket opens the lane."""
    here = on_disk(site, disk, on_ledger_failure="deny")
    here.start()
    assert here.scan("in", "TICKET0000")["verdict"] == "granted"
    here.pulses(1)
    disk.fill()
    failed = scan_until_fault(here, 1)
    opened = here.boards["north"].pulses()
    assert opened <= failed - 1, "the one that met the fault is denied as well"
    for _ in range(2):
        told = here.scan("in", f"TICKET{failed:04}")
        assert (told["verdict"], told["detail"]) == ("lane_closed", "ledger"), (
            "the visitor is not told welcome"
        )
    assert here.call("status")["areas"]["hall"] == opened
    assert here.boards["north"].pulses() == opened
    until(lambda: faults(here) == 1, "a fault that lasts, told once")
    disk.free()
    recovered(here)
    assert here.scan("in", f"TICKET{failed:04}")["verdict"] == "granted"
    here.pulses(opened + 1)
    here.written()
    events = here.events()
    assert [e["seq"] for e in events] == list(range(1, len(events) + 1))
    grants = {e["seq"] for e in events if e["kind"] == "scan" and e["verdict"] == "granted"}
    undone = {e["of"] for e in events if e["kind"] == "passage" and e["passage"] == "not_taken"}
    assert len(grants - undone) == opened + 1


def test_full_disk_beyond_memory(disk: Disk, site: Callable[..., Site]) -> None:
    """Beyond ledger_memory_events lanes still open, and what is lost is counted."""
    here = on_disk(site, disk, ledger_memory_events=5)
    here.start()
    disk.fill()
    failed = scan_until_fault(here, 0)
    for n in range(failed, failed + 10):
        assert here.scan("in", f"TICKET{n:04}")["verdict"] == "granted"
    here.pulses(failed + 10)
    lost = here.metric("gateway_ledger_lost_events_total")
    assert lost >= 5
    disk.free()
    recovered(here)
    assert len(here.events()) == failed + 10 - lost


def test_kill_on_a_full_disk(disk: Disk, site: Callable[..., Site]) -> None:
    """A gate that starts on a full disk admits, and recovers when there is room."""
    here = on_disk(site, disk)
    here.start()
    assert here.scan("in", "TICKET0000")["verdict"] == "granted"
    here.pulses(1)
    here.written()
    disk.fill()
    here.kill()
    here.start()
    assert here.scan("in", "TICKET0000")["verdict"] == "limit_reached", "what is on disk can be read"
    failed = scan_until_fault(here, 1)
    here.pulses(failed)
    disk.free()
    recovered(here)
    granted = [e["credential"] for e in here.events() if e.get("verdict") == "granted"]
    assert granted == [f"C{n}" for n in range(failed)]


@pytest.mark.parametrize("choice", ["admit", "deny"])
def test_read_only_disk_at_start(disk: Disk, site: Callable[..., Site], choice: str) -> None:
    """A gate that starts on a disk that has become read-only does as on_ledger_failure says."""
    here = on_disk(site, disk, on_ledger_failure=choice)
    here.start()
    assert here.scan("in", "TICKET0000")["verdict"] == "granted"
    here.pulses(1)
    here.stop()
    disk.remount("ro")
    here.start()
    here.scan("in", "TICKET0001")
    assert here.metric("gateway_ledger_up") == 0
    assert len(said(here, "ledger cannot be written")) == 1
    if choice == "admit":
        here.pulses(2)
    disk.remount("rw")
    recovered(here)
    here.scan("in", "TICKET0002")
    here.pulses(3 if choice == "admit" else 2)
    assert here.scan("in", "TICKET0000")["verdict"] == "limit_reached"


@pytest.mark.parametrize("choice", ["admit", "deny"])
def test_ledger_that_cannot_be_opened(site: Callable[..., Site], choice: str) -> None:
    """A folder in the ledger's place at the start: as on_ledger_failure says, and by itself well again."""
    here = site(NORTH, on_ledger_failure=choice)
    here.imports(records())
    blocked = here.data_dir / "ledger.db"
    blocked.mkdir()
    here.start()
    here.scan("in", "TICKET0000")
    assert here.metric("gateway_ledger_up") == 0
    (line,) = said(here, "ledger cannot be written")
    assert "ledger.db" in line["reason"]
    assert line["on_ledger_failure"] == choice
    assert here.call("status")["ledger"]["epoch"] is None
    blocked.rmdir()
    recovered(here)
    here.scan("in", "TICKET0001")
    here.pulses(2 if choice == "admit" else 1)
    here.written()
    events = here.events()
    assert [e["seq"] for e in events] == list(range(1, len(events) + 1))
    assert [e["credential"] for e in events if e["kind"] == "scan"] == ["C0", "C1"]


def test_ledger_that_is_found_later(site: Callable[..., Site]) -> None:
    """A ledger with a past that can be opened only after the start: its past counts from then on."""
    here = site(
        ({"name": "north", "second_grant": "extend"}, {"name": "south", "passage": {"driver": "memory"}}),
        ({"name": "north-in", "lane": "north"}, {"name": "south-in", "lane": "south"}),
        ({"name": "in", "point": "north-in"}, {"name": "south", "point": "south-in"}),
    )
    here.imports(records())
    here.start()
    assert here.scan("in", "TICKET0000")["verdict"] == "granted"
    assert here.scan("south", "TICKET0001")["verdict"] == "granted"
    assert here.run("lane", "south", "closed").status == 0
    here.written()
    here.kill()
    away = here.folder / "away"
    away.mkdir()
    for file in here.data_dir.glob("ledger.db*"):
        shutil.move(file, away / file.name)
    (here.data_dir / "ledger.db").mkdir()
    here.start()
    assert here.scan("in", "TICKET0002")["verdict"] == "granted"
    (here.data_dir / "ledger.db").rmdir()
    for name in ("ledger.db-wal", "ledger.db-shm", "ledger.db"):
        if (away / name).exists():
            shutil.move(away / name, here.data_dir / name)
    recovered(here)
    assert here.scan("in", "TICKET0000")["verdict"] == "limit_reached"
    until(lambda: here.call("status")["areas"]["hall"] == 2, "who was inside is known again")
    assert here.scan("south", "TICKET0003")["verdict"] == "lane_closed"
    assert here.scan("in", "TICKET0001")["verdict"] == "granted", "the pending grant was closed"


# --- devices ------------------------------------------------------------------------------------------


def test_relay_goes_and_comes_back(site: Callable[..., Site]) -> None:
    """A board that is pulled out: the grants are taken back and say so, the other lane goes on; when it is
    back its contact is put off, nothing is made up for, and the next grant opens."""
    here = site(*TWO)
    here.imports(records())
    here.start()
    here.watch()
    assert here.scan("in", "TICKET0000")["verdict"] == "granted"
    here.pulses(1)
    here.boards["north"].unplug()
    for code in ("TICKET0001", "TICKET0002", "TICKET0003"):
        here.scanners["in"].scan(code)
    for _ in range(3):
        assert here.verdict("in")["verdict"] == "granted"
    until(lambda: here.metric('gateway_lane_state{lane="north",state="fault"}') == 1)
    until(lambda: here.metric('gateway_passages_total{lane="north",outcome="not_taken"}') == 3)
    assert here.call("status")["areas"]["hall"] == 1
    assert here.scan("south", "TICKET0004")["verdict"] == "granted"
    here.pulses(1, "south")
    assert len(said(here, "relay is lost")) == 1
    here.boards["north"].plug()
    until(lambda: here.metric('gateway_lane_state{lane="north",state="normal"}') == 1, "the relay is back")
    assert here.boards["north"].last() is False
    here.pulses(1)
    assert here.scan("in", "TICKET0001")["verdict"] == "granted", "it was given back"
    here.pulses(2)
    here.written()
    events = here.events()
    faults = [e for e in events if e["kind"] == "fault" and e["lane"] == "north"]
    grants = {e["seq"]: e["credential"] for e in events if e["kind"] == "scan"}
    assert sorted(grants[e["of"]] for e in faults if "of" in e) == ["C1", "C2", "C3"]
    undone = [e["of"] for e in events if e["kind"] == "passage" and e["passage"] == "not_taken"]
    assert sorted(grants[seq] for seq in undone) == ["C1", "C2", "C3"]


def test_scanner_goes_and_comes_back(site: Callable[..., Site]) -> None:
    """A scanner that is pulled out: one warning, its metric 0, the other goes on; plugged in again it reads,
    and half a code from before is not part of the next."""
    here = site(*TWO)
    here.imports(records())
    here.start()
    here.watch()
    assert here.scan("in", "TICKET0000")["verdict"] == "granted"
    here.scanners["in"].send(b"TICK")
    here.scanners["in"].unplug()
    until(lambda: here.metric('gateway_reader_up{reader="in"}') == 0)
    assert here.scan("south", "TICKET0001")["verdict"] == "granted"
    assert [r["up"] for r in here.call("status")["readers"]] == [False, True]
    for n in range(2, 5):
        here.scanners["in"].plug()
        until(lambda: here.metric('gateway_reader_up{reader="in"}') == 1, "the scanner is back")
        assert here.scan("in", f"TICKET{n:04}")["verdict"] == "granted"
        here.scanners["in"].unplug()
        until(lambda: here.metric('gateway_reader_up{reader="in"}') == 0)
    assert len(said(here, "reader is down")) == 4


def test_devices_that_are_not_there_at_start(site: Callable[..., Site]) -> None:
    """A gate starts without its scanner and its board, says so, and takes them when they come."""
    here = site(*TWO)
    here.imports(records())
    here.scanners["in"].unplug()
    here.boards["north"].unplug()
    here.boards.pop("north")
    board = here.boards
    here.start()
    assert here.scan("south", "TICKET0000")["verdict"] == "granted"
    here.pulses(1, "south")
    assert len(board) == 1
    assert len(said(here, "reader is down")) == 1
    until(lambda: said(here, "relay is lost"), "the relay's absence is told")
    here.scanners["in"].plug()
    until(lambda: here.metric('gateway_reader_up{reader="in"}') == 1, "the scanner is there")
    assert here.scan("in", "TICKET0001")["verdict"] == "granted"
    until(lambda: here.metric('gateway_passages_total{lane="north",outcome="not_taken"}') == 1)
