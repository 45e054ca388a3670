"""What outlives a stop, a kill and a start, and what a hand at the command line does."""

from __future__ import annotations

import itertools
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from datetime import UTC, datetime, timedelta

import pytest

from tests.e2e.rig import ROOT, Done, Json, Site, card, product, until, venue

SENSOR = {"passage": {"driver": "memory", "timeout_s": 60}}
TWO = (
    ({"name": "north", "second_grant": "extend"}, {"name": "south", **SENSOR}),
    (
        {"name": "north-in", "lane": "north", "anti_passback": "hard"},
        {"name": "north-out", "lane": "north", "from": "hall", "to": "outside"},
        {"name": "south-in", "lane": "south"},
    ),
    (
        {"name": "in", "point": "north-in"},
        {"name": "out", "point": "north-out"},
        {"name": "south", "point": "south-in"},
    ),
)


def records() -> list[Json]:
    """Cards without limits, day tickets for two entries, single tickets, a staff card, and some that fail."""
    found = [
        *venue(),
        product("open"),
        product("daily", limits=[{"max": 2, "per": "day"}]),
        product("single", limits=[{"max": 1, "per": "term"}]),
        product("staff", bypass=["closed", "passback"]),
        *card("S", "STAFF", "staff"),
        *card("L", "LOST", "open", state="lost"),
    ]
    for n in range(20):
        found += [*card(n, f"OPEN{n}", "open"), *card(f"D{n}", f"DAILY{n}", "daily")]
        found += card(f"T{n}", f"TICKET{n}", "single")
    return found


@pytest.fixture
def here(site: Callable[..., Site]) -> Site:
    """A site whose lane south has a sensor that nobody walks by, with a gate that runs."""
    made = site(*TWO)
    made.imports(records())
    made.start()
    return made


def by_kind(here: Site, kind: str) -> list[Json]:
    return [event for event in here.events() if event["kind"] == kind]


# --- kill and start -----------------------------------------------------------------------------------


@pytest.mark.parametrize("how", ["kill", "stop"])
def test_pending_grant_ends_as_not_taken(here: Site, how: str) -> None:
    """A grant that waits for its passage when the gate ends is not_taken after the start, and given back."""
    assert here.scan("south", "TICKET0")["verdict"] == "granted"
    here.written()
    assert here.call("status")["lanes"][1]["pending"] == 1
    getattr(here, how)()
    here.start()
    here.written()
    (closed,) = by_kind(here, "passage")
    (grant,) = by_kind(here, "scan")
    assert closed["passage"] == "not_taken"
    assert closed["of"] == grant["seq"]
    assert closed["by"] == "start"
    assert here.call("status")["areas"]["hall"] == 0
    assert here.scan("south", "TICKET0")["verdict"] == "granted"


def test_pending_grant_of_a_lane_that_has_no_sensor_now(here: Site) -> None:
    """Where there is no sensor any more the grant is assumed, and used up."""
    assert here.scan("south", "TICKET0")["verdict"] == "granted"
    here.written()
    here.kill()
    del here.lanes[1]["passage"]
    here.write()
    here.start()
    here.written()
    assert [event["passage"] for event in by_kind(here, "passage")] == ["assumed"]
    assert here.call("status")["areas"]["hall"] == 1
    assert here.scan("south", "TICKET0")["verdict"] == "limit_reached"


@pytest.mark.parametrize("how", ["kill", "stop"])
def test_presence_and_limits_survive(here: Site, how: str) -> None:
    """Anti-passback, day limits, single tickets and occupancy are the same after a start."""
    assert here.scan("in", "OPEN0")["verdict"] == "granted"
    for _ in range(2):
        assert here.scan("in", "DAILY0")["verdict"] == "granted"
        assert here.scan("out", "DAILY0")["verdict"] == "granted"
    assert here.scan("in", "DAILY1")["left"] == 1
    assert here.scan("out", "DAILY1")["verdict"] == "granted"
    assert here.scan("in", "TICKET1")["verdict"] == "granted"
    here.written()
    for _ in range(2):
        assert here.scan("in", "OPEN0")["verdict"] == "passback"
        assert here.scan("in", "DAILY0")["verdict"] == "limit_reached"
        assert here.scan("south", "TICKET1")["verdict"] == "limit_reached"
        assert here.call("status")["areas"]["hall"] == 2
        here.written()
        getattr(here, how)()
        here.start()
    assert here.scan("in", "DAILY1")["left"] == 0
    assert here.scan("out", "OPEN0")["verdict"] == "granted"
    assert here.scan("in", "OPEN0")["verdict"] == "granted"


@pytest.mark.parametrize("state", ["closed", "free"])
def test_lane_state_survives(here: Site, state: str) -> None:
    """A lane that was closed or set free is so after a kill and a start, until it is set normal."""
    assert here.run("lane", "north", state).status == 0
    here.written()
    here.kill()
    here.start()
    assert here.call("status")["lanes"][0]["state"] == state
    assert here.metric(f'gateway_lane_state{{lane="north",state="{state}"}}') == 1
    if state == "closed":
        assert here.scan("in", "OPEN0")["verdict"] == "lane_closed"
        assert here.scan("in", "STAFF")["verdict"] == "granted"
        assert here.scan("out", "OPEN0")["verdict"] == "granted"
    else:
        until(lambda: here.boards["north"].last() is True, "the relay is held on")
        verdict = here.scan("in", "LOST")
        assert verdict["verdict"] == "granted"
        assert "free" in verdict["flags"]
    assert here.run("lane", "north", "normal").status == 0
    until(lambda: here.boards["north"].last() is False)
    here.written()
    here.kill()
    here.start()
    assert here.scan("in", "OPEN1")["verdict"] == "granted"
    assert here.scan("in", "LOST")["verdict"] == "revoked"


@pytest.mark.parametrize("fail", ["secure", "safe"])
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_stop_in_order(site: Callable[..., Site], fail: str, number: int) -> None:
    """SIGTERM and SIGINT end the gate in order: the relay is left off where the lane fails secure, on where
    it fails safe; every scan is on record, the sockets are gone."""
    here = site(({"name": "north", "second_grant": "extend", "fail": fail},))
    here.imports(records())
    here.start()
    for n in range(10):
        assert here.scan("in", f"OPEN{n}")["verdict"] == "granted"
    here.stop(number)
    assert here.boards["north"].last() is (fail == "safe")
    assert here.boards["north"].pulses() - (fail == "safe") <= 10
    assert not (here.folder / "a").exists()
    assert not (here.folder / "s").exists()
    assert [e["credential"] for e in by_kind(here, "scan")] == [f"C{n}" for n in range(10)]
    here.start()
    until(lambda: here.boards["north"].last() is False, "a start puts the contact off")


@pytest.mark.parametrize("policy", ["queue", "extend"])
def test_stop_while_people_are_let_in(site: Callable[..., Site], policy: str) -> None:
    """A stop in the moment after scans: who was granted is let in before the relays are let go of, so that no
    ticket is used up before a shut lane."""
    here = site(({"name": "north", "second_grant": policy},))
    here.imports(records())
    for n in range(6):
        here.start()
        opened = here.boards["north"].pulses()
        here.scanners["in"].send("".join(f"TICKET{3 * n + k}\r" for k in range(3)).encode())
        # From at once to some milliseconds later: before, while and after it is written.
        assert here.gate is not None
        here.gate.ends(n * 0.002)
        here.stop()
        cards = {f"CT{3 * n + k}" for k in range(3)}
        granted = [e for e in by_kind(here, "scan") if e["credential"] in cards]
        assert here.boards["north"].pulses() - opened == len(granted)


def test_stop_of_a_free_lane_that_fails_secure(here: Site) -> None:
    """A free lane is shut by a stop, and free again after the start."""
    here.run("lane", "north", "free")
    until(lambda: here.boards["north"].last() is True)
    here.stop()
    assert here.boards["north"].last() is False
    here.start()
    until(lambda: here.boards["north"].last() is True, "free again")


# --- by hand ------------------------------------------------------------------------------------------


def test_open_by_hand(here: Site) -> None:
    """``gateway open`` opens once and is recorded; a lane that is not there is named with those that are."""
    done = here.run("open", "north")
    assert done == Done(0, '{"lane":"north","opened":true}\n', "")
    here.pulses(1)
    here.written()
    (event,) = by_kind(here, "open")
    assert (event["lane"], event["by"], event["passage"]) == ("north", "admin", "assumed")
    done = here.run("open", "west")
    assert done.status == 2
    assert "west" in done.err
    assert "north, south" in done.err


def test_clear_by_hand(here: Site) -> None:
    """``gateway clear``: everybody is outside, also after a kill."""
    assert here.scan("in", "OPEN0")["verdict"] == "granted"
    assert here.scan("in", "OPEN0")["verdict"] == "passback"
    assert here.run("clear", "hall").status == 0
    assert here.call("status")["areas"]["hall"] == 0
    here.written()
    here.kill()
    here.start()
    assert here.call("status")["areas"]["hall"] == 0
    assert here.scan("in", "OPEN0")["verdict"] == "granted"
    here.written()
    (event,) = by_kind(here, "clear")
    assert (event["from"], event["by"]) == ("hall", "admin")
    for area in ("garden", "outside"):
        assert here.run("clear", area).status == 2


def test_annul_by_hand(here: Site) -> None:
    """``gateway annul``: the person of that event did not go through, also after a kill; pending grants too;
    once is enough, and what is no grant is refused."""
    assert here.scan("in", "TICKET0")["verdict"] == "granted"
    assert here.scan("south", "TICKET1")["verdict"] == "granted"
    assert here.scan("in", "LOST")["verdict"] == "revoked"
    here.written()
    assert here.run("annul", "1").status == 0
    assert here.run("annul", "2").status == 0
    assert here.call("status")["areas"]["hall"] == 0
    for seq in ("1", "2", "3", "99"):
        done = here.run("annul", seq)
        assert done.status == 2
        assert f"event {seq}" in done.err
    here.written()
    here.kill()
    here.start()
    assert here.call("status")["areas"]["hall"] == 0
    assert here.scan("in", "TICKET0")["verdict"] == "granted"
    assert here.scan("in", "TICKET1")["verdict"] == "granted"
    assert [event["of"] for event in by_kind(here, "annul")] == [1, 2]


def test_by_hand_without_a_gate(here: Site) -> None:
    """Acts by hand need a gate: without one they say how to start it and exit 2."""
    here.stop()
    for act in (("open", "north"), ("lane", "north", "free"), ("clear", "hall"), ("annul", "1")):
        done = here.run(*act)
        assert done.status == 2
        assert "no gate is running" in done.err


# --- check --------------------------------------------------------------------------------------------


def test_check_with_and_without_a_gate(here: Site) -> None:
    """``gateway check`` gives the same verdict and exit status whether a gate runs or not, changing
    nothing."""
    assert here.scan("in", "OPEN0")["verdict"] == "granted"
    assert here.scan("in", "TICKET0")["verdict"] == "granted"
    assert here.scan("in", "DAILY0")["verdict"] == "granted"
    here.written()
    codes = ("OPEN0", "OPEN1", "TICKET0", "DAILY0", "LOST", "NOBODY", "", "A\x07B", "é漢")
    asked = list(
        itertools.product(codes, ("north-in", "north-out", "south-in"), (None, "2031-01-01T10:00:00Z"))
    )

    def answers() -> list[tuple[int, Json]]:
        found = []
        for code, point, at in asked:
            done = here.run("check", code, "--point", point, *(("--at", at) if at else ()))
            answer = done.json[0]
            assert done.status == (0 if answer["verdict"] == "granted" else 1), done
            if at is None:
                del answer["at"]
            found.append((done.status, answer))
        return found

    with_gate = answers()
    assert {status for status, _ in with_gate} == {0, 1}
    before = here.events()
    here.stop()
    assert answers() == with_gate
    assert here.events() == before
    here.start()
    assert here.scan("in", "TICKET0")["verdict"] == "limit_reached"


def test_check_of_bytes_that_are_no_text(here: Site) -> None:
    """A code that is not UTF-8 cannot be asked for, as argument or on standard input: exit 2, and a message
    that says that such a payload is malformed."""
    for running in (True, False):
        if not running:
            here.stop()
        for arguments, stdin in ((["check", b"GO\xffOD"], b""), (["check", "-"], b"GO\xffOD\n")):
            done = subprocess.run(
                [sys.executable, "-m", "gateway", *arguments, "--point", "north-in", "--config", here.config],
                input=stdin,
                capture_output=True,
                cwd=ROOT,
                check=False,
            )
            assert done.returncode == 2
            assert done.stderr == b"gateway: CODE is not UTF-8; such a payload is always malformed\n"


def test_check_from_standard_input(here: Site) -> None:
    """``gateway check -`` reads the code, so that it stands in no process list."""
    done = here.run("check", "-", "--point", "north-in", stdin=b"OPEN1\r\n")
    assert done.status == 0
    assert done.json[0]["credential"] == "C1"


@pytest.mark.parametrize("running", [True, False])
def test_check_of_what_is_not_there(here: Site, running: bool) -> None:
    """An unknown point, or a time that is none: exit 2 and what to do."""
    if not running:
        here.stop()
    done = here.run("check", "OPEN1", "--point", "west-in")
    assert done.status == 2
    assert "north-in" in done.err
    for at in ("yesterday", "2026-11-21T10:00:00", "2026-11-21"):
        done = here.run("check", "OPEN1", "--point", "north-in", "--at", at)
        assert done.status == 2, at
        assert "2026-11-21T10:00:00+01:00" in done.err


# --- ledger -------------------------------------------------------------------------------------------


def test_ledger_of_a_gate_and_of_its_file(here: Site) -> None:
    """``gateway ledger`` prints the same with and without a gate, from any seq; times are instants."""
    for n in range(5):
        assert here.scan("in", f"OPEN{n}")["verdict"] == "granted"
    here.written()
    events = here.events()
    assert [event["seq"] for event in events] == [1, 2, 3, 4, 5]
    assert {event["gateway"] for event in events} == {"north"}
    assert len({event["epoch"] for event in events}) == 1
    now = datetime.now(UTC)
    for event in events:
        assert timedelta() <= now - datetime.fromisoformat(event["at"]) < timedelta(minutes=5)
    assert here.events(since=3) == events[3:]
    assert here.events(since=5) == here.events(since=99) == []
    assert here.run("ledger", "--refused").out == ""
    here.stop()
    assert here.events() == events
    assert here.events(since=3) == events[3:]
    assert here.run("ledger", "--since", "-1").status in (0, 2)


def test_follow(here: Site) -> None:
    """``--follow`` shows what is there, then each new event; it waits for a gate that is restarted, and
    says so."""
    assert here.scan("in", "OPEN0")["verdict"] == "granted"
    follow = here.fork("ledger", "--follow")
    until(lambda: len(follow.output().splitlines()) == 1, "what is there is shown")
    assert here.scan("in", "OPEN1")["verdict"] == "granted"
    until(lambda: len(follow.output().splitlines()) == 2, "a new event is shown")
    for how in ("stop", "kill"):
        here.written()
        getattr(here, how)()
        until(lambda how=how: follow.errors().count("gone") == (1 if how == "stop" else 2), "it says so")
        here.start()
        assert here.scan("in", "LOST")["verdict"] == "revoked"
        seen = 3 if how == "stop" else 4
        until(lambda seen=seen: len(follow.output().splitlines()) == seen, "it goes on with the next gate")
    assert [json.loads(line)["seq"] for line in follow.output().splitlines()] == [1, 2, 3, 4]
    follow.signal(signal.SIGINT)
    assert follow.wait() == 130
    assert "Traceback" not in follow.errors()


@pytest.mark.parametrize("running", [True, False])
def test_broken_pipe(here: Site, running: bool) -> None:
    """A reader of the ledger that has seen enough, as ``head``, ends it without a word."""
    here.watch()
    for _ in range(600):
        here.scanners["in"].scan("LOST")
    for _ in range(600):
        here.verdict("in")
    here.written()
    if not running:
        here.stop()
    command = [sys.executable, "-m", "gateway", "ledger", "--config", str(here.config)]
    ledger = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, cwd=ROOT)
    assert ledger.stdout is not None
    assert ledger.stderr is not None
    assert json.loads(ledger.stdout.readline())["seq"] == 1
    ledger.stdout.close()
    assert ledger.stderr.read() == b""
    ledger.stderr.close()
    assert ledger.wait() in (0, -signal.SIGPIPE)


def test_ledger_that_is_not_there(site: Callable[..., Site]) -> None:
    """No ledger yet: exit 2 and the path."""
    here = site()
    done = here.run("ledger")
    assert done.status == 2
    assert str(here.data_dir) in done.err
    assert os.listdir(here.data_dir) == []
