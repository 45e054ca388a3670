"""The package on 64-bit Arm: a serial scanner, from its socket to the entry in the ledger."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.hardware import arm
from tests.hardware.gate import Gate
from tests.hardware.guest import Guest

CODE = "8K2MPX4T7Q"
RELAY = 0
PULSE_MS = 700
"""Not the default, so that it is the configured time that is seen."""
LANE = f"""
[gateway]
id = "north"
data_dir = "/var/lib/gateway"

[[lane]]
name = "north"
pulse_ms = {PULSE_MS}
relay = {{ driver = "gpio", chip = "{arm.CHIP}", line = {RELAY} }}

[[point]]
name = "north-in"
lane = "north"
from = "outside"
to = "hall"

"""


@pytest.fixture(scope="module")
def guest(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Guest]:
    """The computer, switched on, with the package installed as README.md says."""
    made = arm.guest(tmp_path_factory.mktemp("guest"), arm.disk(), arm.base(), arm.brought())
    made.boot(until="system")
    yield made
    made.cut()


@pytest.fixture(scope="module")
def gate(guest: Guest) -> Gate:
    """The gate in it."""
    return Gate(guest)


def test_the_package_is_for_this_machine(guest: Guest) -> None:
    """The computer is a 64-bit Arm, has no compiler, and the program and its libraries run on it."""
    assert guest.run("uname -m").ok().strip() == "aarch64"
    assert guest.run("command -v cc gcc").code != 0
    assert guest.run("gateway --version", user="technician", timeout=120).ok().startswith("gateway ")
    assert guest.run("systemctl is-enabled gateway").ok().strip() == "enabled"


def test_a_serial_scanner_opens_the_lane(guest: Guest, gate: Gate) -> None:
    """Plugged in it is found; with the lines that were printed its code is an entry in the ledger, and the
    relay's line is high for the configured time."""
    gate.configure(LANE + '[[reader]]\nname = "none yet"\npoint = "north-in"\ndriver = "stdin"\n')
    gate.cards([CODE])
    guest.call("lines.hear", label=arm.CHIP, lines=8)
    guest.call("serialscanner.make", name="port")
    guest.call("serialscanner.plug", name="port", socket=0)

    def found() -> list[dict[str, Any]]:
        return [device for device in gate.devices() if "Serial Scanner" in device.get("description", "")]

    [device] = guest.until(found, "gateway devices shows the scanner", 120)
    assert device["device"].startswith("/dev/serial/by-id/usb-Newland_Serial_Scanner_SN03")
    assert device["note"] == "", "something stands in the way of using it"
    gate.configure(LANE + gate.lines_for("port", "north-in", device))
    gate.start()
    guest.until(lambda: gate.reader_up("port"), "the reader is up", 120)
    since, heard = gate.last(), len(guest.news)
    guest.call("serialscanner.type", name="port", code=CODE)
    [scan] = gate.scans(since, 1, 60)
    assert (scan["verdict"], scan["credential"], scan["reader"]) == ("granted", "C0", "port")
    pulse = [news for news in guest.heard("gpio", 2, heard) if news["line"] == RELAY]
    assert [news["value"] for news in pulse] == [1, 0]
    held = (pulse[1]["at"] - pulse[0]["at"]) / 1000
    assert PULSE_MS * 0.9 < held < PULSE_MS * 2, Path(guest.console)


def test_it_stays_in_memory(guest: Guest) -> None:
    """The kernel counts memory of the running gate as locked, as the unit allows."""
    status = guest.run("cat /proc/$(systemctl show -P MainPID gateway)/status").ok()
    fields = dict(line.split(":", 1) for line in status.splitlines())
    assert fields["Name"].strip() == "gateway"
    assert int(fields["VmLck"].split()[0]) > int(fields["RssAnon"].split()[0])
