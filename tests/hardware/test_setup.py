"""`gateway setup` on the machine itself: scanners and a relay board are plugged in, and nothing is known."""

from __future__ import annotations

from typing import Any

import pytest

from tests.hardware.gate import Gate
from tests.hardware.guest import Guest

SETUP_CODE = "GATE-Zy#\\"
"""As it is printed in docs/setup.md."""
CODE = "8K2MPX4T7Q"
ON, OFF = "ff01000000000000", "fd01000000000000"


class Session:
    """A set-up that runs, what it has said, and a keyboard for its questions."""

    def __init__(self, guest: Guest) -> None:
        self._guest = guest
        self._read = 0
        guest.run(
            "mkfifo /run/keys; exec > /dev/null 2>&1; sleep 3600 > /run/keys &"
            " (setsid gateway setup < /run/keys > /run/said 2>&1; echo status $? >> /run/said) &"
        ).ok()

    def says(self, text: str, timeout: float = 120) -> str:
        """Waits until it has said this, after what it said before; gives all that came up to it."""

        def found() -> int:
            return self._said().find(text, self._read) + 1

        end = self._guest.until(found, f"setup says {text!r}", timeout, every=1) - 1 + len(text)
        begin, self._read = self._read, end
        return self._said()[begin:end]

    def _said(self) -> str:
        return self._guest.read("/run/said")

    def answer(self, text: str) -> None:
        self._guest.run(f"echo '{text}' > /run/keys").ok()


@pytest.fixture(scope="module")
def north(guest: Guest, gate: Gate) -> Gate:
    """Two scanners alike, of which one plays a French keyboard, and a board of two relays."""
    for socket, name in enumerate(("left", "right")):
        guest.call("keyboard.make", name=name, label="Twin-Wedge")
        guest.call("keyboard.plug", name=name, socket=socket)
    guest.call("dcttech.make", name="board")
    guest.call("dcttech.plug", name="board", socket=2)
    nodes = "ls /dev/input/by-path/platform-dummy_hcd.[01]-*-event-kbd /dev/hidraw2"
    guest.until(lambda: guest.run(f"udevadm settle; {nodes}").code == 0, "the nodes of all devices", 120)
    return gate


def scanned(gate: Gate) -> dict[str, Any]:
    """The entry of a member at the way in."""
    seq = gate.last()
    gate.guest.call("keyboard.type", name="right", code=CODE, layout="fr")
    return gate.scans(seq, 1)[0]


def test_from_a_scan_and_a_click_to_a_gate_that_runs(north: Gate) -> None:
    """Which scanner is which and what it types is learned from the printed code, which relay from a click;
    it ends when gate and sync run."""
    guest, session = north.guest, Session(north.guest)
    for question in ("Name of this gateway", "How many turnstiles", "Name of lane 1", "the area that lane"):
        session.says(question)
        session.answer("north" if question == "Name of this gateway" else "")
    session.says("a scanner for the way out too")
    session.answer("")
    for way, scanner, layout in (("in", "right", "fr"), ("out", "left", "us")):
        session.says(f"Name of the way {way}")
        session.answer("")
        session.says("(Enter: go on without a scan)")
        guest.call("load.silence", seconds=2)  # what is typed at once could be the rest of a code
        guest.call("keyboard.type", name=scanner, code=SETUP_CODE, layout=layout)
        socket = {"left": 0, "right": 1}[scanner]
        session.says(
            f"That was Newland Twin-Wedge (1eab:0003), /dev/input/by-path/platform-dummy_hcd.{socket}-"
        )
    assert "1  relay 1 of USBRelay2 BITFT" in session.says("Number [1]")
    session.answer("1")
    session.says("and shall it? [y/N]")
    heard = len(guest.told("board"))
    session.answer("y")
    session.says("Did lane north open?")
    clicks = [told["command"] for told in guest.told("board")[heard:]]
    assert clicks.count(ON) == 1
    assert set(clicks) == {ON, OFF}
    assert clicks[-1] == OFF
    session.answer("1")
    session.says("Address of the central")
    session.answer("none")
    written = session.says("Write this to /etc/gateway/gateway.toml? [Y/n]")
    assert 'layout = "fr"' in written
    session.answer("")
    session.says("Test a scanner now (there are no cards yet")
    session.answer("")
    session.says("(Enter: go on without a scan)")
    guest.call("load.silence", seconds=2)
    guest.call("keyboard.type", name="right", code=CODE, layout="fr")
    session.says("north-in: unknown_credential")
    session.says("Open lane north once")
    session.answer("")
    assert "Started, now and at each boot" in session.says("status ", 600)
    assert session.says("\n") == "0\n"


def test_what_setup_wrote_runs(north: Gate) -> None:
    """Gate and sync are up, now and at each boot; a member goes in by the scanner that was learned."""
    guest = north.guest
    assert guest.run("systemctl is-active gateway gateway-sync").out.split() == ["active", "active"]
    assert guest.run("systemctl is-enabled gateway gateway-sync").out.split() == ["enabled", "enabled"]
    north.cards([CODE])
    guest.until(lambda: north.reader_up("north-in-scanner"), "the scanner is up")
    guest.call("load.silence", seconds=2)
    heard = len(guest.told("board"))
    event = scanned(north)
    assert (event["verdict"], event["reader"]) == ("granted", "north-in-scanner")
    guest.until(lambda: len(guest.told("board")[heard:]) >= 2, "the relay's pulse")
    assert [told["command"] for told in guest.told("board")[heard:]] == [ON, OFF]
