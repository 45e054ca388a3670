"""The life of the services under systemd, on a computer whose clock has no battery."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from tests.hardware.gate import Gate
from tests.hardware.guest import Guest
from tests.test_memory_lock import kept_by

CONFIGURATION = """\
[gateway]
id = "north"
data_dir = "/var/lib/gateway"

[[lane]]
name = "north"
relay = { driver = "gpio", chip = "gate-lines", line = 1 }

[[point]]
name = "north-in"
lane = "north"
from = "outside"
to = "hall"

[[reader]]
name = "in"
point = "north-in"
driver = "serial"
device = "/dev/serial/by-id/usb-Newland_Serial_Scanner_SN03-if00"
"""
CODE = "8K2MPX4T7Q"
TODAY = "2026-11-21 10:00:00"
SYNCHRONISED = "install -D /dev/null /run/systemd/timesync/synchronized"
"""What systemd-timesyncd leaves when it has set the clock. There is no time server in here."""


@pytest.fixture(scope="module")
def guest(computers: Callable[..., Guest]) -> Guest:
    """A computer that wakes up in 1970."""
    guest = computers(rtc="1970-01-01")
    guest.boot(until="system")
    return guest


def shown(guest: Guest, unit: str, *names: str) -> dict[str, str]:
    """Properties of a unit, as systemd has them."""
    words = " ".join(f"-p {name}" for name in names)
    return dict(line.split("=", 1) for line in guest.run(f"systemctl show {unit} {words}").ok().splitlines())


def process(guest: Guest) -> int:
    return int(shown(guest, "gateway", "MainPID")["MainPID"])


def hardware(guest: Guest) -> None:
    """Lines and scanner, after a boot."""
    guest.call("lines.make")
    guest.call("serialscanner.make", name="scanner")
    guest.call("serialscanner.plug", name="scanner", socket=0)


def rises(guest: Guest, since: int) -> int:
    """How often the relay line went on since an index of the news."""
    return sum(n["value"] for n in guest.told("gpio", since) if n["line"] == 1)


def admits(guest: Guest, gate: Gate) -> dict[str, Any]:
    """A scan is granted, recorded, and opens the lane once."""
    guest.until(lambda: gate.reader_up("in"), "the reader is up")
    last, since = gate.last(), len(guest.news)

    def scanned() -> bool:
        guest.call("serialscanner.type", name="scanner", code=CODE)
        return bool(guest.until(lambda: gate.last() > last, "an event", timeout=10, every=1))

    guest.until(scanned, "a scan")
    guest.until(lambda: len(guest.told("gpio", since)) >= 2, "the pulse is over")
    [event, *_] = [e for e in gate.events(last) if e["kind"] == "scan"]
    assert event["verdict"] == "granted"
    assert rises(guest, since) == 1
    return event


def test_without_a_configuration_nothing_runs_and_nothing_failed(guest: Guest) -> None:
    """Right after the installation both services wait for a configuration; none of them counts as failed."""
    for unit in ("gateway", "gateway-sync"):
        state = shown(guest, unit, "ActiveState", "ConditionResult", "UnitFileState")
        assert state == {"ActiveState": "inactive", "ConditionResult": "no", "UnitFileState": "enabled"}
    assert guest.run("systemctl list-units --failed --no-legend 'gateway*'").ok() == ""


def test_a_wrong_configuration_is_told_and_not_tried_again(guest: Guest, gate: Gate) -> None:
    """The status says key, line and remedy; the gate is not started over and over, and no socket is left that
    would have it started by whoever asks."""
    gate.configure(CONFIGURATION.replace('lane = "north"', 'lane = "nroth"'))
    assert guest.run("systemctl start gateway", timeout=120).code != 0
    state = shown(guest, "gateway", "ActiveState", "NRestarts", "ExecMainStatus")
    assert state == {"ActiveState": "failed", "NRestarts": "0", "ExecMainStatus": "2"}
    status = guest.run("systemctl status --no-pager --lines=20 --full gateway").out
    assert 'did you mean "north"' in status
    guest.until(lambda: guest.run("test -e /run/gateway/admin.sock").code == 1, "no socket is left")


def test_it_is_ready_when_it_says_so(guest: Guest, gate: Gate) -> None:
    """The start comes back when the gate admits; systemd has its state in words, and both sockets are there
    with their groups."""
    hardware(guest)
    guest.run(f"date -s '{TODAY}'; {SYNCHRONISED}").ok()
    gate.configure(CONFIGURATION)
    gate.cards([CODE])
    gate.start()
    assert gate.up()
    assert shown(guest, "gateway", "StatusText")["StatusText"].startswith("admitting, generation")
    sockets = guest.run("stat -c '%n %U:%G %a' /run/gateway/*.sock").ok().splitlines()
    assert sockets == [
        "/run/gateway/admin.sock gateway:gateway 660",
        "/run/gateway/sync.sock gateway:gateway-sync 660",
    ]
    admits(guest, gate)


def test_how_exposed_they_are(guest: Guest) -> None:
    """The scores of the installed units, by the guest's systemd: 0.5 for the gate, 1.2 for the sync."""
    for unit, most in (("gateway", 5), ("gateway-sync", 12)):
        # The threshold of systemd-analyze is in tenths, and it fails above it.
        guest.run(f"systemd-analyze security --threshold={most} {unit}.service").ok()


def test_it_stays_in_memory(guest: Guest) -> None:
    """The interpreter's code and the heap are locked in memory, as the unit allows; no store is."""
    pid = process(guest)
    smaps = guest.run(f"cat /proc/{pid}/smaps").ok()
    kept = kept_by(smaps)
    program = guest.run(f"readlink -f /proc/{pid}/exe").ok().strip()
    assert any(line.endswith(program) for line in kept)
    assert any(line.endswith("[heap]") for line in kept)
    assert ".mdb" in smaps
    assert not any(".mdb" in line for line in kept)


def test_the_gate_has_no_network_and_the_sync_no_device(guest: Guest, gate: Gate) -> None:
    """The gate lives in a network namespace of its own, with nothing in it; the sync sees no scanner and no
    GPIO line, and of the gate it reaches one socket, as others do not."""
    guest.run("systemctl start gateway-sync", timeout=300).ok()
    pid = process(guest)
    assert guest.run(f"readlink /proc/{pid}/ns/net").ok() != guest.run("readlink /proc/1/ns/net").ok()
    interfaces = guest.run(f"tail -n +3 /proc/{pid}/net/dev").ok().split()
    assert [word for word in interfaces if word.endswith(":")] == ["lo:"]
    sync = shown(guest, "gateway-sync", "MainPID")["MainPID"]
    there = guest.run(f"nsenter -m -t {sync} find /dev -type c").ok().split()
    assert "/dev/null" in there
    devices = ("/dev/ttyA", "/dev/ttyS", "/dev/ttyU", "/dev/hidraw", "/dev/gpio", "/dev/input")
    assert not [node for node in there if node.startswith(devices)]

    connect = "import socket,sys; socket.socket(socket.AF_UNIX).connect(sys.argv[1])"
    for user, path, may in (
        ("gateway-sync", "/run/gateway/sync.sock", True),
        ("gateway-sync", "/run/gateway/admin.sock", False),
        ("technician", "/run/gateway/sync.sock", False),
        ("technician", "/run/gateway/admin.sock", False),
        ("gateway", "/run/gateway/admin.sock", True),
    ):
        done = guest.run(f"sudo -u {user} python3 -c '{connect}' {path}")
        assert (done.code == 0) is may, (user, path, done.err)
    assert guest.run("sudo -u gateway-sync ls /var/lib/gateway").code != 0
    health = 'import urllib.request as r; print(r.urlopen("http://127.0.0.1:9480/metrics").read().decode())'
    guest.until(lambda: "gateway_gate_up 1.0" in guest.run(f"python3 -c '{health}'").out, "the sync's pages")


def test_fields_in_the_journal(guest: Guest) -> None:
    """A reader's lines are found by its name, with a message for people."""
    said = guest.run("journalctl -u gateway -o cat GATEWAY_READER=in GATEWAY_EVENT='reader is ready'").ok()
    assert "reader is ready reader=in" in said


def test_a_frozen_gate_is_started_again(guest: Guest, gate: Gate) -> None:
    """A gate that stands still is ended by the watchdog and started again without a pulse; it admits."""
    pid, since = process(guest), len(guest.news)
    guest.run(f"kill -STOP {pid}").ok()
    guest.until(lambda: process(guest) not in (0, pid), "another process", timeout=120)
    guest.until(gate.up, "the gate is back", timeout=120)
    assert "watchdog" in guest.run("journalctl -b -u gateway _PID=1 -o cat").ok().lower()
    assert rises(guest, since) == 0
    admits(guest, gate)


def test_a_crash_loop_does_not_wear_out_the_lane(guest: Guest, gate: Gate) -> None:
    """Six crashes, some in the middle of the start: each is followed by another start, and none of it moves
    the relay."""
    since = len(guest.news)
    for crash in range(6):
        pid = guest.until(lambda: process(guest), "a process", timeout=120)
        if crash % 2:
            guest.until(gate.up, "the gate is up", timeout=120)
        guest.run(f"kill -KILL {pid}").ok()
        guest.until(lambda pid=pid: process(guest) != pid, "it is gone")
    guest.until(gate.up, "the gate is back", timeout=120)
    assert rises(guest, since) == 0
    admits(guest, gate)


def test_the_clock_wakes_up_in_the_past_and_jumps(guest: Guest, gate: Gate) -> None:
    """After a power cut the gate starts by itself on a clock that lies years back: it does not believe it and
    judges by the newest time that it knows; when the clock is set it goes on, without a pulse and without
    being started again."""
    guest.cut()
    guest.boot()
    hardware(guest)
    guest.until(gate.up, "the gate started at boot", timeout=300)
    assert gate.metric("gateway_clock_suspect") == 1
    assert admits(guest, gate)["at"] >= "2026-11-21T"
    pid, since = process(guest), len(guest.news)
    guest.run(f"date -s '2026-11-23 12:00:00'; {SYNCHRONISED}").ok()
    guest.until(lambda: gate.metric("gateway_clock_suspect") == 0, "the clock is believed")
    assert (process(guest), rises(guest, since)) == (pid, 0)
    assert admits(guest, gate)["at"] >= "2026-11-23T"


@pytest.mark.parametrize(("fail", "left"), [("secure", 0), ("safe", 1)])
def test_stop_leaves_the_lane_as_configured(guest: Guest, gate: Gate, fail: str, left: int) -> None:
    """The relay's last word from a gate that is stopped is off for fail-secure, and on for fail-safe."""
    gate.configure(CONFIGURATION.replace('name = "north"\nrelay', f'name = "north"\nfail = "{fail}"\nrelay'))
    gate.start()
    since = len(guest.news)
    gate.stop()
    told = [n["value"] for n in guest.told("gpio", since) if n["line"] == 1]
    assert (told[-1] if told else 0) == left
    assert shown(guest, "gateway", "Result", "ActiveState") == {
        "Result": "success",
        "ActiveState": "inactive",
    }
    guest.until(lambda: guest.run("test -e /run/gateway/sync.sock").code == 1, "no socket is left")
